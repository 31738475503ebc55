"""Every argument of TRL's DPOTrainer is answered by `RPOTrainer`: taken, converted, or refused with what to do."""

import inspect
import logging
import re
from pathlib import Path
from typing import Any

import models_for_tests
import pytest
import torch
from training import config, tiny_pairs, trainer

from rpo.core.errors import InvalidArgument
from rpo.llm import RewardTrainer, RPOTrainer, SFTTrainer, load_model
from rpo.llm.data import stream_pairs
from rpo.llm.training import starting_model
from rpo.llm.training.starting_model import load_keywords

PAGE = (Path(__file__).parents[2] / "docs" / "coming_from.md").read_text(encoding="utf-8")
WORDS = [{"prompt": "w1 w2 ", "chosen": "w3 w4", "rejected": f"w{k}"} for k in range(5, 9)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("stored")
    models_for_tests.tiny_model("llama").save_pretrained(folder)
    models_for_tests.tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_the_arguments_are_trls_in_its_order_and_the_page_lists_them() -> None:
    trl = pytest.importorskip("trl")
    theirs = list(inspect.signature(trl.DPOTrainer.__init__).parameters)[1:]
    ours = inspect.signature(RPOTrainer.__init__).parameters
    assert [name for name, one in ours.items() if one.kind is one.POSITIONAL_OR_KEYWORD][1:] == theirs
    section = PAGE.partition("### Every argument of DPOTrainer")[2].partition("\n#")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == theirs


def test_positional_arguments_mean_what_they_mean_there(tmp_path: Path, stored: str) -> None:
    made = RPOTrainer(stored, None, config(tmp_path), None, WORDS, WORDS[:2])
    assert len(made.train_dataset) == 4 and len(made.eval_dataset) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data_collator": list}, "data_collator: expected None, got type. Rows are made into batches"),
        ({"compute_metrics": len}, "compute_metrics: expected None, got builtin_function_or_method. Evaluation keeps"),
        ({"tokenizer": 1, "processing_class": 2}, "tokenizer: expected None beside processing_class"),
        ({"beta": 0.1}, "beta: expected an argument of RPOTrainer"),
        ({"loss_type": "ipo"}, "It is a field of args."),
        ({"max_length": 3}, "It is a field of args."),
        ({"train_data": []}, "train_data: expected an argument of RPOTrainer (train_dataset), got another name. Check"),
    ],
)
def test_what_is_not_taken_is_refused_with_what_to_do(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        RPOTrainer(models_for_tests.tiny_model("llama"), args=config(tmp_path), **given)


@pytest.mark.parametrize("kind", [SFTTrainer, RewardTrainer])
def test_the_other_trainers_refuse_unknown_names_too(kind: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"an argument of {kind.__name__} "):
        kind("unused", data_collator=list)

    class Mine(kind):  # takes what it likes
        def __init__(self, *args: Any, **given: Any) -> None:
            self.given = given

    assert Mine(data_collator=1).given == {"data_collator": 1}


def test_the_tokenizer_is_found_where_the_model_is_from(
    tmp_path: Path, stored: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By name, by a loaded model's name, by the older name of the argument; without any, it says so."""
    by_name = trainer(tmp_path / "a", WORDS, model=stored)
    by_model = trainer(tmp_path / "b", WORDS, model=load_model(stored))
    given = RPOTrainer(
        models_for_tests.tiny_model("llama"), args=config(tmp_path / "c"), train_dataset=WORDS,
        tokenizer=models_for_tests.tiny_tokenizer(),
    )  # fmt: skip
    for one in (by_name, by_model, given):
        assert [one.train_dataset[0][name] for name in ("prompt_ids", "chosen_ids")] == [[7, 8], [9, 10, 1]]
    bare = models_for_tests.tiny_model("llama")
    bare.config.name_or_path = str(tmp_path / "nowhere")
    with caplog.at_level(logging.WARNING, logger=starting_model.__name__):
        assert trainer(tmp_path / "d", tiny_pairs(4), model=bare).processing_class is None
    assert "processing_class: none is given" in caplog.text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ({"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": torch.float32, "dtype": torch.float32}, {"dtype": torch.float32}),
        ({"device_map": None, "use_cache": False, "trust_remote_code": False, "low_cpu_mem_usage": True}, {}),
        ({"device_map": {"": 0}, "use_safetensors": True}, {}),
        ({"load_in_4bit": True, "load_in_8bit": False}, {"quantization": "4bit"}),
        ({"attn_implementation": "eager", "revision": "main"}, {"attn_implementation": "eager", "revision": "main"}),
    ],
)
def test_keywords_of_from_pretrained_become_load_models(given: Any, expected: dict[str, Any]) -> None:
    assert load_keywords(given, None, load_model) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"torch_dtype": "float16", "dtype": "float32"}, "torch_dtype: expected the same as dtype"),
        ({"device_map": {"": 3}}, "model_init_kwargs.device_map: expected None: each process"),
        ({"trust_remote_code": True}, "model_init_kwargs.trust_remote_code: expected False"),
        ({"token": "x"}, "HF_TOKEN"),
        ({"load_in_4bit": True, "quantization": "8bit"}, "load_in_4bit: expected the same as quantization"),
        ({"rope_scaling": 2}, "model_init_kwargs.rope_scaling: expected a keyword of load_model (dtype, quant"),
    ],
)
def test_other_keywords_are_refused(given: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(words)):
        load_keywords(given, None, load_model)


def test_a_quantization_config_is_for_a_model_given_by_name(tmp_path: Path, stored: str) -> None:
    from transformers import BitsAndBytesConfig

    eight = BitsAndBytesConfig(load_in_8bit=True)
    assert load_keywords(None, eight, load_model) == {"quantization": eight}
    made = load_keywords({"quantization_config": {"load_in_4bit": True}}, None, load_model)["quantization"]
    assert made.load_in_4bit and isinstance(made, BitsAndBytesConfig)
    if not torch.cuda.is_available():
        with pytest.raises(InvalidArgument, match="quantization: expected None without a CUDA device, got a Bits"):
            RPOTrainer(stored, args=config(tmp_path), train_dataset=WORDS, quantization_config=eight)
    with pytest.raises(InvalidArgument, match="quantization_config: expected None for a model that is loaded"):
        RPOTrainer(load_model(stored), args=config(tmp_path), train_dataset=WORDS, quantization_config=eight)


def test_items_have_trls_columns(tmp_path: Path) -> None:
    """Those of a stream too; the reference's values once they are known."""
    pairs = tiny_pairs(4)
    run = trainer(tmp_path, pairs, max_steps=1)
    item = run.train_dataset[1]
    assert (item["prompt_ids"], item["rejected_ids"]) == (list(pairs[1].prompt_ids), list(pairs[1].rejected_ids))
    assert "ref_chosen_logps" not in item
    run.train()
    item, known = run.train_dataset[1], run.train_dataset.known["reference_logps"]
    assert known is not None
    assert (item["ref_chosen_logps"], item["ref_rejected_logps"]) == tuple(known[1])
    rows = [{name: pair[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for pair in pairs]
    first = next(iter(stream_pairs(Rereadable(rows), None)))
    assert "prompt_ids" in first and "pair" not in first and first["chosen_ids"] == rows[0]["chosen_ids"]
    with pytest.raises(KeyError):
        first["labels"]


class Rereadable:
    """Rows without a length, as a stream's."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


def test_streams_switch_the_cached_reference_off_unless_it_was_asked_for(tmp_path: Path) -> None:
    pairs = tiny_pairs(8)
    rows = [{name: pair[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for pair in pairs]
    stream = stream_pairs(Rereadable(rows), None)
    made = trainer(tmp_path / "a", stream, max_steps=1)
    assert not made.precomputes and made.ref_model is not None and made.args.precompute_ref_log_probs is None
    assert trainer(tmp_path / "b", pairs).precomputes
    assert not trainer(tmp_path / "c", pairs, eval_dataset={"one": stream}).precomputes
    with pytest.raises(InvalidArgument, match=r"precompute_ref_log_probs.*not supported with IterableDataset"):
        trainer(tmp_path / "d", stream, precompute_ref_log_probs=True)
    with pytest.raises(InvalidArgument, match=r"precompute_ref_log_probs.*not supported with IterableDataset"):
        trainer(tmp_path / "e", pairs, precompute_ref_log_probs=True).evaluate({"one": stream})


def test_the_reference_model_by_its_name_there(tmp_path: Path) -> None:
    other = models_for_tests.tiny_model("llama", dtype=torch.float64, seed=1)
    assert trainer(tmp_path / "a", tiny_pairs(4), ref_model=other).ref_model is other
    assert trainer(tmp_path / "b", tiny_pairs(4)).ref_model is None  # its values are kept, no second model
    assert not trainer(tmp_path / "c", tiny_pairs(4)).aux_loss_enabled
