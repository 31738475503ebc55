"""What the documentation says of TRL is so in the version installed; a release in which it is not fails by name here.

Each test quotes the sentence it holds, so that neither goes without the other.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import math
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import docs_pages as pages
import models_for_tests
import pytest
import torch

trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'rpo-lab[dev]'")
datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'rpo-lab[datasets]'")

SPOKEN_OF = "1.16"
# transformers deprecates names that TRL and its configuration still use; TRL deprecates its own Liger flag.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
ROWS = [
    {"prompt": "w1 w2 ", "chosen": "w3 w4 w5", "rejected": "w6"},
    {"prompt": "w7 ", "chosen": "w8", "rejected": "w9 w10 w11"},
]


def says(page: str, words: str) -> None:
    """Fail unless the page has the sentence that the test is about."""
    assert words in " ".join(pages.text_of(page).split()), f"{page} says no longer {words!r}: change or drop its test"


def trainer(
    folder: Path,
    model: Any = None,
    *,
    reference: Any = None,
    peft_config: Any = None,
    rows: Any = ROWS,
    template: str | None = None,
    **options: Any,
) -> Any:
    datasets.disable_progress_bars()
    settings: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 2, "max_length": None,
        "gradient_checkpointing": False, "use_cpu": True, "bf16": False, "report_to": [], "max_steps": 1,
        "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    alone = model is None and peft_config is None
    return trl.DPOTrainer(
        model=models_for_tests.tiny_model("llama") if model is None else model,
        # TRL reads the reference of a whole model from where the model came from; this one came from nowhere.
        ref_model=models_for_tests.tiny_model("llama") if alone else reference,
        args=trl.DPOConfig(**(settings | options)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=models_for_tests.tiny_tokenizer(chat_template=template),
        peft_config=peft_config,
    )


def batch(made: Any) -> Any:
    return made.data_collator([made.train_dataset[k] for k in range(len(ROWS))])


def loss(made: Any) -> float:
    return float(made.compute_loss(made.model, batch(made)).detach())


def adapter(**options: Any) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'rpo-lab[peft]'")
    return peft, peft.LoraConfig(r=2, task_type="CAUSAL_LM", **options)


def test_the_version_the_documentation_speaks_of() -> None:
    says("docs/coming_from.md", f"What is said of TRL here is so in {SPOKEN_OF}, which the tests hold it to")
    version = importlib.metadata.version("trl")
    assert version.startswith(f"{SPOKEN_OF}."), (
        f"trl {version} is installed and the documentation speaks of {SPOKEN_OF}: run this file, correct the sentences "
        "that fail (docs/coming_from.md, docs/faq.md, README.md, benchmarks/README.md), then SPOKEN_OF."
    )


def test_names_and_defaults_of_its_configuration() -> None:
    """Those in the left column of "From TRL", with the defaults beside them."""
    made = {one.name: getattr(trl.DPOConfig(output_dir="unused", use_cpu=True, bf16=None), one.name)
            for one in fields(trl.DPOConfig)}  # fmt: skip
    stated = {"precompute_ref_log_probs": False, "max_length": 1024, "truncation_mode": "keep_start",
              "gradient_checkpointing": True, "bf16": True, "disable_dropout": True}  # fmt: skip
    assert {name: made[name] for name in stated} == stated
    others = {"beta", "loss_type", "loss_weights", "precompute_ref_batch_size", "padding_free", "use_liger_kernel",
              "label_smoothing", "f_divergence_type", "ld_alpha", "use_weighting", "sync_ref_model"}  # fmt: skip
    assert others <= made.keys()
    assert not [name for name in made if "packing" in name], "TRL packs for DPO: say so in docs/coming_from.md"
    text = pages.text_of("docs/coming_from.md")
    assert [name for name in {*stated, *others} if f"`{name}" not in text and f".{name}`" not in text] == []


def test_it_starts_at_ln_2_and_its_head_is_fused_for_every_dpo_loss(tmp_path: Path) -> None:
    says("docs/coming_from.md", "What does not differ: both start at $\\ln 2$")
    says("docs/coming_from.md", "both make no logits of the whole batch, with every DPO loss")
    plain = trainer(tmp_path)
    assert loss(plain) == pytest.approx(math.log(2.0), abs=1e-6)
    for loss_type in (["sigmoid"], ["sigmoid", "sft"], ["ipo"]):
        made = trainer(tmp_path, loss_type=loss_type)
        asked: list[bool] = []
        original = made.model.forward

        def forward(*given: Any, original: Any = original, asked: list[bool] = asked, **more: Any) -> Any:
            asked.append(more.get("fused_lm_head", False))
            return original(*given, **more)

        made.model.forward = forward
        loss(made)
        assert asked == [True] * len(asked) and asked, loss_type


def test_on_a_cpu_its_head_scores_every_position() -> None:
    says("docs/coming_from.md", "on a CPU TRL's head scores prompts and padding too")
    says("benchmarks/README.md", "its fused head scores every position on a CPU and completions only on CUDA")
    use_triton = importlib.import_module("trl.trainer.utils")._use_triton
    assert not use_triton(torch.device("cpu"))


def test_padding_free_is_accepted_warned_about_and_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    says("docs/coming_from.md", "there accepted, warned about and switched off")
    logger = logging.getLogger("trl.trainer.dpo_trainer")
    logger.addHandler(caplog.handler)
    try:
        made = trainer(tmp_path, padding_free=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert made.padding_free is False
    assert any("padding_free" in record.getMessage() for record in caplog.records)


def test_a_prompt_is_fed_once_a_response(tmp_path: Path) -> None:
    """Four rows of two pairs, prompt and padding in each: nothing is shared or packed."""
    says("docs/coming_from.md", "here rows are packed and a prompt is fed once for its pair")
    rows = batch(trainer(tmp_path))["input_ids"]
    assert rows.shape[0] == 2 * len(ROWS)
    assert [row[:2] for row in rows[::2].tolist()] == [rows[0, :2].tolist(), rows[2, :2].tolist()]
    assert rows[0, 0] == rows[2, 0] and rows[1, 0] == rows[3, 0]


def test_sigmoid_ignores_label_smoothing(tmp_path: Path) -> None:
    """The control is "robust", which does not."""
    says("docs/coming_from.md", "TRL's `sigmoid` takes `label_smoothing` and ignores it")

    def smoothed(loss_type: str, value: float) -> float:
        made = trainer(tmp_path, loss_type=[loss_type], label_smoothing=value, beta=2.0)
        torch.manual_seed(0)
        for weight in made.model.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
        return loss(made)

    assert smoothed("sigmoid", 0.0) == smoothed("sigmoid", 0.3)
    assert abs(smoothed("robust", 0.0) - smoothed("robust", 0.3)) > 1e-3


def test_its_sft_term_is_not_logged_apart(tmp_path: Path) -> None:
    says("docs/coming_from.md", "`loss/sft`, which TRL does not log apart")
    made = trainer(tmp_path, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5])
    made.train()
    logged = {name for row in made.state.log_history for name in row}
    assert {"loss", "rewards/margins"} <= logged
    assert not [name for name in logged if "sft" in name or "nll" in name]


def test_an_adapter_on_the_head_is_refused(tmp_path: Path) -> None:
    says("docs/coming_from.md", "| `peft_config` on `lm_head` | the same argument | refused there |")
    _, config = adapter(target_modules=["lm_head"])
    with pytest.raises(ValueError, match="lm_head"):
        trainer(tmp_path, peft_config=config)


def test_the_reference_of_an_adapter_is_a_frozen_copy(tmp_path: Path) -> None:
    says("docs/coming_from.md", "the reference of both is a frozen copy of it, not the bare base model")
    says("docs/faq.md", "TRL copies the adapter since")
    peft, config = adapter(target_modules=["q_proj"], init_lora_weights=False)
    made = trainer(tmp_path, peft.get_peft_model(models_for_tests.tiny_model("llama"), config))
    weights = dict(made.model.named_parameters())
    pairs = [(name, name.replace(".default.", ".ref.")) for name in weights if ".default." in name]
    assert pairs and all(torch.equal(weights[one], weights[other]) for one, other in pairs)
    assert loss(made) == pytest.approx(math.log(2.0), abs=1e-6)


def test_the_liger_flag_is_deprecated(tmp_path: Path) -> None:
    says("docs/coming_from.md", "| `use_liger_kernel` (deprecated) |")
    if importlib.util.find_spec("liger_kernel") is not None:
        pytest.skip("with liger_kernel installed the flag patches the model")
    source = importlib.import_module("trl.trainer.dpo_trainer").__file__ or ""
    assert "`use_liger_kernel=True` is deprecated" in Path(source).read_text(encoding="utf-8")


def test_what_it_has_removed(tmp_path: Path) -> None:
    says("docs/coming_from.md", "The judges of earlier TRL versions, and its trainers of XPO, Nash-MD, BCO and PPO")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = set(trl.__all__) if hasattr(trl, "__all__") else set(dir(trl))
    gone = [f"{name}{what}" for name in ("XPO", "NashMD", "BCO", "PPO") for what in ("Trainer", "Config")]
    assert not names & {*gone, "BasePairwiseJudge", "PairRMJudge", "HfPairwiseJudge", "WinRateCallback"}
    for module in ("xpo", "nash_md", "bco", "ppo", "judges", "winrate_callback"):
        assert importlib.util.find_spec(f"trl.experimental.{module}") is None, module


def test_a_prompt_that_fills_a_row_is_left_out(tmp_path: Path) -> None:
    says("docs/coming_from.md", "with `keep_start` leaves out rows whose prompt alone fills it")
    assert len(trainer(tmp_path, max_length=2).train_dataset) == 1


def test_what_does_not_begin_like_its_prompt_is_scored_from_where_they_part(tmp_path: Path) -> None:
    says("docs/coming_from.md", "TRL warns once, and scores from there in either case")
    source = importlib.import_module("trl.trainer.dpo_trainer")
    assert source.common_prefix_length([1, 2, 3], [1, 2, 4]) == 2


def test_an_adapter_beside_an_adapter_is_refused(tmp_path: Path) -> None:
    says("docs/coming_from.md", "together with `peft_config` it is refused, as a `PeftModel` is by TRL")
    peft, config = adapter(target_modules=["q_proj"])
    with pytest.raises(ValueError, match="PeftModel"):
        trainer(tmp_path, peft.get_peft_model(models_for_tests.tiny_model("llama"), config), peft_config=config)


def test_every_token_after_the_prompt_is_scored(tmp_path: Path) -> None:
    """A template that writes "w2" after the end of a turn, and an answer after a tool's result."""
    says("docs/coming_from.md", "such as the newline after `<|im_end|>`, is scored by TRL and not here")
    says("docs/coming_from.md", "TRL scores every token after the prompt")
    template = (
        "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} </s> w2 {% endfor %}"
        "{% if add_generation_prompt %}<|assistant|> {% endif %}"
    )

    def turns(*contents: str) -> list[dict[str, str]]:
        return [{"role": ("assistant", "user")[k % 2], "content": words} for k, words in enumerate(contents)]

    rows = [{"prompt": [{"role": "user", "content": "w1"}], "chosen": turns("w3", "w4", "w5"), "rejected": turns("w6")}]
    made = trainer(tmp_path, rows=rows, template=template)
    tokens = made.processing_class.convert_ids_to_tokens(made.train_dataset[0]["chosen_ids"])
    assert tokens == ["w3", "</s>", "w2", "<|user|>", "w4", "</s>", "w2", "<|assistant|>", "w5", "</s>", "w2"]
    collated = made.data_collator([made.train_dataset[0]])
    assert int(collated["completion_mask"][0].sum()) == len(tokens)


def test_the_router_loss_is_on_for_every_mixture_of_experts(tmp_path: Path) -> None:
    says("docs/coming_from.md", "TRL adds it to every such model")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "mixtral", **{**models_for_tests.COMMON, "num_local_experts": 2, "output_router_logits": False}
    )
    model, reference = (AutoModelForCausalLM.from_config(config) for _ in range(2))
    made = trainer(tmp_path, model, reference=reference)
    assert made.aux_loss_enabled and made.router_aux_loss_coef == config.router_aux_loss_coef > 0
