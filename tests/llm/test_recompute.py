"""Selective activation checkpointing: the same training, no matrix product twice, and what would do nothing refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from models_for_tests import tiny_model, tiny_tokenizer
from test_fitting import QUICK, rows
from test_parity import PAIRS, gradient_error, gradients, score
from torch.utils._python_dispatch import TorchDispatchMode

import rpo
from rpo.core.errors import InvalidArgument
from rpo.llm.logps.scoring import PATHS
from rpo.llm.training.config import RPOConfig
from rpo.llm.training.recompute import keep_products

RENAMED = "ignore:.*gradient_checkpointing.*:FutureWarning"
KWARGS = "gradient_checkpointing_kwargs"


class Calls(TorchDispatchMode):
    """Counts the operations that run, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.filterwarnings(RENAMED)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_products_run_once_and_the_rest_again(family: str, path: str) -> None:
    """The gradient is that of no checkpointing; products are no more, activations are.

    The control is plain checkpointing, under which products run again. Gemma 2's soft caps are products by themselves
    (bmm), which are not kept: they are T x T.
    """

    def run(mode: str) -> tuple[dict[str, torch.Tensor], Counter[str]]:
        model = tiny_model(family).train()
        kind = PATHS[path]
        scoring = kind(0) if path == "padded" else kind()
        if mode != "none":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if mode == "selective":
            keep_products(model)
        with Calls() as calls:
            found = gradients(score(scoring, model, PAIRS).sum(), model)
        return found, calls.seen

    (expected, plain), (_, whole), (found, selective) = (run(mode) for mode in ("none", "plain", "selective"))
    assert gradient_error(found, expected) < 1e-6
    products = ["mm", "addmm", "_scaled_dot_product_flash_attention_for_cpu"]
    activation = {"llama": "silu", "gemma2": "gelu", "gpt2": "tanh"}[family]
    assert [selective[name] for name in products] == [plain[name] for name in products]
    assert sum(whole[name] for name in products) > sum(plain[name] for name in products)
    assert selective[activation] > plain[activation] > 0


@pytest.mark.filterwarnings(RENAMED)
def test_two_passes_under_one_autocast() -> None:
    """The second finds the weights cast by the first, in the forward pass and not in the backward pass."""
    found = []
    for selective in (False, True):
        model = tiny_model("llama").train()
        if selective:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            keep_products(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = sum(score(PATHS["padded"](0), model, PAIRS).sum() for _ in range(2))
        found.append(gradients(total, model))
    assert gradient_error(found[1], found[0]) < 1e-2


@pytest.mark.filterwarnings(RENAMED)
@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"lora": {"r": 2}}], ids=str)
def test_training_is_what_it_was(tmp_path: Path, options: dict[str, Any]) -> None:
    """A run's numbers are those without it, and its record says what was asked for."""
    if "lora" in options:
        pytest.importorskip("peft")
        options = {"peft_config": options["lora"]}

    def run(**more: Any) -> Any:
        given = {"model": tiny_model("llama"), "processing_class": tiny_tokenizer()}
        folder = tmp_path / str(len(more))
        return rpo.fit(
            given["model"], rows(), rpo.RPO(beta=0.1, eta=0.05), tokenizer=given["processing_class"],
            output_dir=folder, **QUICK, **options, **more,
        )  # fmt: skip

    plain, selective = run(), run(gradient_checkpointing=True, gradient_checkpointing_kwargs={"selective": True})
    numbers = [[row[name] for row in each.history if (name := "loss") in row] for each in (plain, selective)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-5 if "bf16" not in options else 1e-3) and len(numbers[0]) == 6
    assert "selective" in str(selective.config)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({KWARGS: {"selective": True}}, "gradient_checkpointing: expected True"),
        ({"gradient_checkpointing": True, KWARGS: {"selectiv": True}}, "'selective'"),
        ({"gradient_checkpointing": True, KWARGS: {"selective": 1}}, "selective: expected true or false"),
        ({"gradient_checkpointing": True, KWARGS: {"selective": True, "use_reentrant": True}}, "use_reentrant"),
        (
            {"gradient_checkpointing": True, KWARGS: {"selective": True}, "gradient_diagnostics_steps": 1},
            "gradient_diagnostics_steps: expected 0",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(tmp_path: Path, given: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        RPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **given)
