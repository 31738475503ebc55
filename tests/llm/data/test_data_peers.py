"""The tokens of TRL's own trainer, where its rules and ours are the same."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers_for_tests import CHATML, characters, chat_row, turn

from rpo.llm.data import RefusedRow, prepare_pairs

# transformers deprecates names that TRL and its configuration still use
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning")

TEXT = [
    {"prompt": "The sky is", "chosen": " blue", "rejected": " green"},
    {"prompt": "1+1=", "chosen": "2</s>", "rejected": "3"},
]
IMPLICIT = [{"chosen": "The sky is blue", "rejected": "The sky is green"}]
CHAT = [
    chat_row("Hi", "Yes", "No"),
    {"prompt": [turn("system", "s"), turn("user", "q")], "chosen": [turn("assistant", "a")],
     "rejected": [turn("assistant", "b\n")]},
]  # fmt: skip
IMPLICIT_CHAT = [{name: [turn("user", "q"), turn("assistant", name)] for name in ("chosen", "rejected")}]


SEVERAL = [chat_row() | {"chosen": [turn("assistant", "a"), turn("user", "u"), turn("assistant", "b")]}]


@pytest.mark.parametrize("rows", [TEXT, IMPLICIT, CHAT, IMPLICIT_CHAT, SEVERAL])
def test_trl_tokenizes_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """Equal token by token, but for the newline that TRL trains after ChatML's end of turn."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    from transformers import LlamaConfig, LlamaForCausalLM

    datasets.disable_progress_bars()
    tokenizer = characters(CHATML)
    tokenizer.pad_token = "<unk>"
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    trainer = trl.DPOTrainer(
        model=LlamaForCausalLM(config),
        ref_model=LlamaForCausalLM(config),
        args=trl.DPOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    newline = tokenizer.convert_tokens_to_ids("\n")
    after = [newline] if rows in (CHAT, IMPLICIT_CHAT, SEVERAL) else []
    ours = prepare_pairs(rows, tokenizer)
    assert len(ours) == len(trainer.train_dataset) == len(rows)
    for pair, theirs in zip(ours, trainer.train_dataset, strict=True):
        assert list(pair.prompt_ids) == theirs["prompt_ids"]
        assert [*pair.chosen_ids, *after] == theirs["chosen_ids"]
        assert [*pair.rejected_ids, *after] == theirs["rejected_ids"]


def test_the_templates_of_the_field() -> None:
    """Every chat template that TRL ships ends an answer once, at the end, after all its words; or the row is refused.

    Refused are those that write only texts given in parts, and those whose prompt opens a thought that the whole
    conversation drops.
    """
    folder = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    used, refused, scored = [], [], []
    for path in sorted(folder.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        tokenizer = characters(bos="<s>")
        marks = set(re.findall(r"<\|?[^\s<>{}'\"]+\|?>", template)) - {"<think>", "</think>"}
        tokenizer.add_special_tokens({"additional_special_tokens": sorted(marks)})
        try:
            (pair,) = prepare_pairs([chat_row("Hi", "Yes.", "No")], tokenizer, chat_template=template)
        except RefusedRow as refusal:
            refused.append(refusal.reason)
            continue
        used.append(path.name)
        ends = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        for ids, words in ((pair.chosen_ids, "Yes."), (pair.rejected_ids, "No")):
            assert ids[-1] in ends, path.name
            assert tokenizer.decode(list(ids), skip_special_tokens=True).strip().endswith(words), path.name
        several = chat_row() | {"chosen": [turn("assistant", "a1"), turn("user", "u2"), turn("assistant", "a2")]}
        with contextlib.suppress(RefusedRow):
            (pair,) = prepare_pairs([several], tokenizer, chat_template=template)
            mask = pair.scored[0]
            assert mask is not None
            learnt, read = (
                tokenizer.decode([t for t, m in zip(pair.chosen_ids, mask, strict=True) if m == each])
                for each in (1, 0)
            )
            assert "a1" in learnt and "a2" in learnt and "u2" in read and "u2" not in learnt, path.name
            scored.append(path.name)
    assert set(refused) == {"template_prefix", "unwritten"}
    assert len(used) > 2 * len(refused)
    assert len(scored) > 0.8 * len(used)
