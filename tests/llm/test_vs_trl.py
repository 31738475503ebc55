"""The bookkeeping of benchmarks/vs_trl.py on a tiny model: equal losses, counted products, its record."""

from __future__ import annotations

import importlib
import json
import warnings
from typing import Any

import pytest
import vs_trl_workload as workload
from models_for_tests import PAD
from torch.utils.flop_counter import FlopCounterMode

from rpo.llm.logps.scoring import PaddedPath, PromptGroup


@pytest.fixture(scope="module")
def benchmark() -> Any:
    for package in ("trl", "datasets"):
        pytest.importorskip(package)
    return importlib.import_module("vs_trl")


@pytest.fixture(scope="module")
def record(benchmark, tmp_path_factory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("vs_trl") / "record.json"
    benchmark.main(["--smoke", "--device", "cpu", "--threads", "1", "--no-memory", "--output", str(file)])
    return json.loads(file.read_text())


def test_every_variant_takes_the_same_step(benchmark, record) -> None:
    """Every loss is TRL's; the control is one variant's loss off by 1 %."""
    assert set(record["variants"]) == {*benchmark.THEIRS, *benchmark.OURS}
    assert record["loss_error"] < 1e-5
    found = record["measured"]
    assert benchmark.check_losses(found, "float32") == record["loss_error"]
    found["variants"]["ours, shared, cached"]["loss"][0] *= 1.01
    with pytest.raises(SystemExit, match="ours, shared, cached: its loss is not TRL's"):
        benchmark.check_losses(found, "float32")
    found["variants"]["ours, shared, cached"]["loss"][0] /= 1.01


def test_the_record(record) -> None:
    """Paths as asked for; fewer tokens without padding and fewer yet with shared prompts; environment and commit."""
    rows = record["variants"]
    assert [rows[f"ours, {path}, live"]["path"] for path in ("padded", "packed", "shared")] == [
        "padded",
        "packed",
        "shared",
    ]
    fed = [rows[name]["fed_tokens"] for name in ("TRL default", "ours, padded, live", "ours, packed, live")]
    assert fed[0] == fed[1] > fed[2] > rows["ours, shared, live"]["fed_tokens"]
    assert record["tokens"] == sum(record["measured"]["tokens"])
    assert record["tflop_live"] > record["tflop_cached"] > 0
    assert {"commit", "torch", "transformers"} <= record["environment"].keys()
    for name, row in rows.items():
        assert name not in row["ratios"] or row["ratios"][name] == [1.0, 1.0, 1.0]
        assert row["of_floor"]["square"] > 0


def test_the_table_has_a_row_a_variant(benchmark, record) -> None:
    lines = benchmark.markdown(record).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(record["variants"])
    assert len({line.count("|") for line in rows}) == 1


def test_ratios_are_of_one_batch_and_totals_where_batches_differ(benchmark) -> None:
    """2/1, 6/2 and 4/4: median 2 of (2, 3, 1); grouped batches: 12/7."""
    seconds = {"TRL default": [2.0, 6.0, 4.0], "TRL cached, grouped": [2.0, 6.0, 4.0], "ours, shared, live": [1, 2, 4]}
    found = {"variants": {name: {"seconds": times} for name, times in seconds.items()}}
    assert benchmark.ratio(found, "TRL default", "ours, shared, live") == [2.0, 1.0, 3.0]
    assert benchmark.ratio(found, "TRL cached, grouped", "ours, shared, live") == [12 / 7]


def test_grouping_keeps_every_pair_once() -> None:
    pairs = workload.random_pairs(12, 64, 0.05)
    batches = [pairs[k : k + 4] for k in range(0, 12, 4)]
    cut = workload.grouped(batches, 4)
    assert cut[0] == batches[0]
    assert sorted(pair.row for batch in cut for pair in batch) == list(range(12))

    def padding(batches: Any) -> int:
        return sum(len(b) * max(map(workload.padded_length, b)) for b in batches)

    assert padding(cut) < padding(batches)


@pytest.mark.parametrize("reference", [False, True])
def test_the_products_of_a_step_are_what_torch_counts(tiny_model, reference) -> None:
    """One sequence of n = 6 + 5 - 1 fed tokens, on which eager attention computes all n^2 pairs, not n (n + 1) / 2.

    Two multiply-adds a pair, head (4), width (8) and layer (2); twice as many backward, and the reference's once.
    """
    model, other = (tiny_model("llama", attn_implementation="eager", seed=seed) for seed in (0, 1))
    groups, path = [PromptGroup([7] * 6, [[8] * 5])], PaddedPath(PAD, fused_head=False)
    inputs = path.collate(groups)
    with FlopCounterMode(display=False) as counter:
        path.logps(model, inputs).sum().backward()
        if reference:
            path.logps(other.requires_grad_(False), inputs)
    needed = workload.needed_flops(model, groups, shared=False, reference=reference)
    # The padded path feeds the last token as well: 11.
    passes = 3 + reference
    linear = sum(m.weight.numel() for m in model.model.modules() if hasattr(m, "in_features"))
    attention = 2 * 2 * passes * 4 * 8 * 2
    expected = needed + 2 * linear * passes + attention * (11 * 11 - 10 * 11 // 2)
    # transformers before 5.18 computes 4 rotary frequencies x 11 positions as a matrix product, a forward pass each.
    rotary = 2 * 4 * 11 * (1 + reference)
    assert counter.get_total_flops() - expected in (0, rotary)


def test_a_shared_prompt_is_fed_once(tiny_model) -> None:
    """Prompt 6, responses 3 and 2 (2 and 1 of them fed): 9 tokens in place of 15.

    Visible pairs: 21 of the prompt once instead of twice, the rest as before.
    """
    model, groups = tiny_model("llama"), [PromptGroup([7] * 6, [[8] * 3, [9] * 2])]
    apart, shared = (workload.needed_flops(model, groups, shared=s, reference=False) for s in (False, True))
    linear = sum(m.weight.numel() for m in model.model.modules() if hasattr(m, "in_features"))
    assert apart - shared == 2 * 3 * linear * 6 + 2 * 2 * 3 * 4 * 8 * 2 * 21


def test_both_sides_share_their_parameters_and_nothing_else(tiny_model) -> None:
    model = tiny_model("qwen2")
    other = workload.twin(model)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert other.lm_head is not model.lm_head and other.config is not model.config


def test_peak_memory_of_one_variant(benchmark, capsys) -> None:
    """Printed as the last line, in MiB, for the process that asked: a Python with torch takes over 100."""
    benchmark.main(["--model", "tiny", "--device", "cpu", "--threads", "1", "--batches", "1", "--only",
                    "ours, shared, cached"])  # fmt: skip
    assert 100 < float(capsys.readouterr().out.strip().splitlines()[-1]) < 1e5


def test_without_a_model_the_command_says_what_to_give(benchmark, capsys) -> None:
    with pytest.raises(SystemExit):
        benchmark.parse(["--model", ""])
    assert "expected a folder" in capsys.readouterr().err


def test_the_parts_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    """Shares of time sum to one, parts of memory to the whole, and selective checkpointing holds fewer activations."""
    step = importlib.import_module("step")
    found = {}
    for name in ("ours, float32", "ours, float32, selective checkpointing"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers' new name for gradient checkpointing
            step.main(["--model", "tiny", "--threads", "1", "--variant", name])
        found[name] = json.loads(capsys.readouterr().out.splitlines()[-1])
        mib = found[name]["mib"]
        assert sum(found[name]["shares"].values()) == pytest.approx(1.0)
        assert sum(value for part, value in mib.items() if part != "total") == pytest.approx(mib["total"])
    plain, selective = (row["mib"]["activation"] for row in found.values())
    assert 0 < selective < plain
