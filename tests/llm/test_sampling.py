"""Samples against exact probabilities, greedy decoding against unpadded passes, and what must not move."""

import itertools
import json
from pathlib import Path
from typing import Any

import models_for_tests
import numpy as np
import pytest
import torch
from scipy import stats

from rpo.core.errors import InvalidArgument
from rpo.llm.sampling import Sample, generate, prompt_token_ids, sample_ids, stop_token_ids

FAMILIES = ("llama", "qwen2", "gemma", "gemma2", "gpt2", "mistral")
# Of different lengths, so that a batch needs padding; longer than the sliding window of two families.
PROMPTS = [[7, 8, 9, 10, 11, 12, 13], [14, 15], [16, 17, 18, 19]]
TOKENS = 6  # a vocabulary that can be enumerated
LENGTH = 2
ENUMERABLE = {"vocab_size": TOKENS, "eos_token_id": 1, "bos_token_id": None, "initializer_range": 0.1}


def exact(model: Any, prompt: list[int], *, eos: int, temperature: float = 1.0) -> dict[tuple[int, ...], float]:
    """Return the probability of every response of at most LENGTH tokens, one unpadded float64 pass a prefix."""

    def following(prefix: tuple[int, ...]) -> np.ndarray:
        logits = model(input_ids=torch.tensor([[*prompt, *prefix]]), use_cache=False).logits[0, -1]
        return (logits / temperature).softmax(-1).numpy()

    found: dict[tuple[int, ...], float] = {}
    first = following(())
    for token in range(TOKENS):
        if token == eos:
            found[(token,)] = first[token]
        else:
            second = following((token,))
            found |= {(token, other): first[token] * second[other] for other in range(TOKENS)}
    return found


def p_value(samples: list[tuple[int, ...]], probabilities: dict[tuple[int, ...], float]) -> float:
    """Return the chi-square p-value of the samples; outcomes expected fewer than five times are pooled."""
    counts = dict.fromkeys(probabilities, 0)
    for ids in samples:
        counts[ids] += 1
    expected = np.array([probabilities[outcome] for outcome in counts]) * len(samples)
    observed, rare = np.array(list(counts.values())), expected < 5
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return float(stats.chisquare(observed, expected, sum_check=False).pvalue)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_samples_have_the_exact_probabilities(tiny_model: Any, family: str) -> None:
    """Two prompts of different length in each batch, so a wrong position or mask would show.

    Control: against the distribution at temperature 1.25 the same samples are refused.
    """
    model = tiny_model(family, **ENUMERABLE)
    prompts = [[2, 3, 4, 5, 2], [3]]
    drawn = sample_ids(
        model, prompts, num_samples=4000, max_new_tokens=LENGTH, eos_token_id=1, pad_token_id=0, batch_size=8000
    )
    model = model.double()
    with torch.no_grad():
        for prompt, samples in zip(prompts, drawn, strict=True):
            probabilities = exact(model, prompt, eos=1)
            assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-12)
            assert p_value(samples, probabilities) > 1e-3
            assert p_value(samples, exact(model, prompt, eos=1, temperature=1.25)) < 1e-6


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [({"top_k": 2}, 2), ({"top_p": 0.6}, None), ({"temperature": 0.5}, TOKENS)],
)
def test_warped_samples(tiny_model: Any, settings: dict[str, Any], allowed: int | None) -> None:
    """The first token's frequencies against the warped distribution, written out for one prompt in NumPy."""
    model = tiny_model("llama", **ENUMERABLE)
    (drawn,) = sample_ids(
        model, [[2, 3]], num_samples=3000, max_new_tokens=1, eos_token_id=1, pad_token_id=0, batch_size=3000, **settings
    )
    with torch.no_grad():
        p = model(input_ids=torch.tensor([[2, 3]])).logits[0, -1].double().softmax(-1).numpy()
    p = p ** (1 / settings.get("temperature", 1.0))
    p /= p.sum()
    order = np.argsort(-p)
    if "top_p" in settings:
        # The smallest set of likeliest tokens whose mass reaches 0.6.
        allowed = 1 + int(np.argmax(np.cumsum(p[order]) >= settings["top_p"]))
        assert 1 < allowed < TOKENS
    p[order[allowed:]] = 0.0
    p /= p.sum()
    assert {ids[0] for ids in drawn} == set(order[:allowed].tolist())
    assert p_value(drawn, {(token,): p[token] for token in order[:allowed].tolist()}) > 1e-3


# States in place of keys and values, both, sinks, experts whose router loss is asked for; and one that is refused.
RARE: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "expand": 2},
    "bamba": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "attn_layer_indices": [1],
    },
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8, "sliding_window": 5},
    "mixtral": {"num_local_experts": 4, "output_router_logits": True},
    "rwkv": {},
}


def rare_model(family: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = models_for_tests.COMMON | {"num_experts_per_tok": 2} | RARE[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields)).eval()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of rare models
@pytest.mark.parametrize("family", [*FAMILIES, *RARE])
def test_greedy_decoding_is_the_argmax_of_unpadded_passes(tiny_model: Any, family: str) -> None:
    """Prompts of lengths 7, 2 and 4 in one batch with a cache, against one sequence at a time without either."""
    # Eager attention, which Gemma 2 needs, turns rows of padding into NaN in float64 (transformers 5.23).
    dtype = torch.float32 if family == "gemma2" else torch.float64
    model = rare_model(family) if family in RARE else tiny_model(family, dtype=dtype)
    if family == "rwkv":
        with pytest.raises(InvalidArgument, match="past_key_values or cache_params, got RwkvForCausalLM"):
            sample_ids(model, PROMPTS, max_new_tokens=8, eos_token_id=1, pad_token_id=0)
        return
    drawn = sample_ids(model, PROMPTS, max_new_tokens=8, temperature=0.0, eos_token_id=1, pad_token_id=0)
    for prompt, (ids,) in zip(PROMPTS, drawn, strict=True):
        naive: list[int] = []
        while len(naive) < 8 and naive[-1:] != [1]:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + naive]), use_cache=False).logits
            naive.append(int(logits[0, -1].argmax()))
        assert ids == tuple(naive)


def test_greedy_decoding_stops_where_it_should(tiny_model: Any) -> None:
    """Declaring the third greedy token a stop token cuts there, keeps it, and does not touch the other rows."""
    model = tiny_model("llama", dtype=torch.float64)
    settings = {"max_new_tokens": 6, "temperature": 0.0, "pad_token_id": 0}
    free = sample_ids(model, PROMPTS, eos_token_id=[], **settings)
    assert all(len(ids) == 6 for (ids,) in free)
    stop = free[0][0][2]
    cut = sample_ids(model, PROMPTS, eos_token_id=[stop, 63], **settings)
    whole = sample_ids(model, PROMPTS, eos_token_id=[stop, 63], stop_early=False, **settings)
    for (full,), (ids,) in zip(free, cut, strict=True):
        ends = [k for k, token in enumerate(full, start=1) if token in (stop, 63)]
        assert ids == full[: ends[0] if ends else 6]
    assert len(cut[0][0]) <= 3 and whole == cut


def test_a_seed_repeats_and_neither_rng_nor_mode_moves(tiny_model: Any) -> None:
    """Control: another seed draws otherwise. One module left in evaluation mode on purpose stays there."""
    model = tiny_model("llama", attention_dropout=0.5).train()
    model.lm_head.eval()
    before = [module.training for module in model.modules()]
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    settings: dict[str, Any] = {"num_samples": 5, "max_new_tokens": 6, "eos_token_id": 1, "pad_token_id": 0}
    first, again, other = (sample_ids(model, PROMPTS, seed=seed, **settings) for seed in (3, 3, 4))
    assert first == again and first != other
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert [module.training for module in model.modules()] == before
    assert len({ids for responses in first for ids in responses}) > 10  # they are not one sample repeated


def test_the_mode_comes_back_after_an_error(tiny_model: Any) -> None:
    model = tiny_model("llama").train()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(InvalidArgument, match="finite logits, got NaN"):
        sample_ids(model, PROMPTS, eos_token_id=1, pad_token_id=0)
    assert all(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for the old name
def test_adapters_and_wrappers(tiny_model: Any) -> None:
    """A LoRA with non-zero B changes what is sampled; a wrapper around the model does not."""
    peft = pytest.importorskip("peft")
    model = tiny_model("llama", dtype=torch.float64)
    settings: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.0, "eos_token_id": 1, "pad_token_id": 0}
    plain = sample_ids(model, PROMPTS, **settings)
    assert sample_ids(torch.nn.DataParallel(model), PROMPTS, **settings) == plain
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], lora_alpha=8))
    assert sample_ids(adapted, PROMPTS, **settings) == plain
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=2.0, generator=generator)
    assert sample_ids(adapted, PROMPTS, **settings) != plain
    prompted = peft.get_peft_model(
        tiny_model("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(InvalidArgument, match="prompt-learning"):
        sample_ids(prompted, PROMPTS, **settings)


def test_generate_renders_messages_and_keeps_texts(tiny_model: Any, tiny_tokenizer: Any) -> None:
    """By hand: "<|user|> w1 w2 </s> <|assistant|>" is 4 7 8 1 5 (FIRST_WORD = 6); a text has no template."""
    tokenizer = tiny_tokenizer()
    messages = [{"role": "user", "content": "w1 w2"}]
    assert prompt_token_ids(tokenizer, messages) == [4, 7, 8, 1, 5]
    assert prompt_token_ids(tokenizer, "w1 w2") == [7, 8]
    model = tiny_model("llama")
    found = generate(model, tokenizer, [messages, "w1 w2"], num_samples=20, max_new_tokens=12, seed=1)
    ids = sample_ids(
        model, [[4, 7, 8, 1, 5], [7, 8]], num_samples=20, max_new_tokens=12, seed=1, eos_token_id=1, pad_token_id=0
    )
    assert [[sample.token_ids for sample in samples] for samples in found] == ids
    reasons = {"stop": 0, "length": 0}
    for sample in itertools.chain(*found):
        assert isinstance(sample, Sample)
        reasons[sample.finish_reason] += 1
        assert sample.finish_reason == ("stop" if sample.token_ids[-1] == 1 else "length")
        assert sample.finish_reason == "stop" or len(sample.token_ids) == 12
        assert "</s>" not in sample.text
        assert sample.text == " ".join(f"w{token - 6}" for token in sample.token_ids if token >= 6)
    assert min(reasons.values()) > 0


def test_a_text_begins_once_and_does_not_end(tiny_tokenizer: Any) -> None:
    """A tokenizer that writes <unk> (2) before and </s> (1) after each text; what the text itself says stays."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<unk>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A </s>", special_tokens=[("<unk>", 2), ("</s>", 1)]
    )
    assert tokenizer("w1").input_ids == [2, 7, 1]  # control
    assert prompt_token_ids(tokenizer, "w1") == [2, 7]
    assert prompt_token_ids(tokenizer, "<unk> w1") == [2, 7]
    assert prompt_token_ids(tokenizer, "<unk> w1 </s>") == [2, 7, 1]


def test_every_stop_token_of_the_model_counts(tiny_model: Any, tiny_tokenizer: Any) -> None:
    """As in Llama 3, whose turns end with a token that is not the tokenizer's end of sequence."""
    model = tiny_model("llama")
    model.generation_config.eos_token_id = [1, 40]
    assert stop_token_ids(model, tiny_tokenizer()) == (1, 40)
    model.generation_config.eos_token_id = 41
    assert stop_token_ids(model, tiny_tokenizer()) == (1, 41)


def test_generation_settings_of_the_model_do_not_bend_the_samples(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model("llama")
    first = generate(model, tiny_tokenizer(), ["w1"], num_samples=10, max_new_tokens=4)
    model.generation_config.update(temperature=0.01, top_k=1, repetition_penalty=5.0, do_sample=True)
    assert generate(model, tiny_tokenizer(), ["w1"], num_samples=10, max_new_tokens=4) == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": "w1"}, "prompts: expected a list of prompts, got str"),
        ({"prompts": [""]}, r"prompts\[0\]: expected at least one token"),
        ({"prompts": ["w1"], "max_new_tokens": 300}, r"prompt \+ max_new_tokens <= 256.*got 1 \+ 300"),
        ({"prompts": ["w1"], "num_samples": 0}, "num_samples: expected an integer >= 1, got 0"),
        ({"prompts": ["w1"], "top_p": 1.5}, r"top_p: expected a number in \(0, 1\]"),
        ({"prompts": ["w1"], "temperature": -1.0}, "temperature"),
        ({"prompts": ["w1"], "seed": -1}, "seed"),
    ],
)
def test_refusals(tiny_model: Any, tiny_tokenizer: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        generate(tiny_model("llama"), tiny_tokenizer(), change.pop("prompts"), **change)


def test_messages_need_a_chat_template(tiny_model: Any, tiny_tokenizer: Any) -> None:
    prompts = [[{"role": "user", "content": "w1"}]]
    with pytest.raises(InvalidArgument, match="a chat template"):
        generate(tiny_model("llama"), tiny_tokenizer(chat_template=None), prompts)


def test_the_shipped_pairs_are_what_their_readme_says() -> None:
    """Enough of them, on disjoint prompts, all labelled by the score, none a tie, and the counts add up."""
    folder = Path(__file__).parents[2] / "examples" / "smollm2"

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]

    train, evaluation, prompts = rows("pairs.jsonl"), rows("eval_pairs.jsonl"), rows("prompts.jsonl")
    meta = json.loads((folder / "pairs.meta.json").read_text(encoding="utf-8"))
    asked = [json.dumps(row["prompt"]) for row in (*train, *evaluation)]
    assert len(train) >= 240 and len(evaluation) >= 60
    assert len(set(asked)) == len(asked) and set(asked) <= {json.dumps(row["prompt"]) for row in prompts}
    for row in (*train, *evaluation):
        assert row["chosen_score"] > row["rejected_score"]
        for side in ("chosen", "rejected"):
            (message,) = row[side]
            assert message["role"] == "assistant" and message["content"].strip()
            assert row[f"{side}_finish_reason"] in ("stop", "length")
    counts = meta["counts"]
    assert (counts["pairs"], counts["eval_pairs"]) == (len(train), len(evaluation))
    assert counts["prompts"] == len(asked) + counts["dropped"] == len(prompts)
