"""Records, chunks, caches, manifests and checkpoints that a disk or a hand has damaged.

The independent reading: what is read back is what was written, or nothing is. Text inside a JSON file may be changed
into other text unseen, which is why only checksummed files are held to their bytes.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from fuzzing import TIERS, command, damaged, explore, outcome
from hypothesis import strategies as st

from rpo.bandit import simulate
from rpo.core.objectives import DPO
from rpo.core.records import Run
from rpo.llm.reference.cache import CacheKey, LogpCache
from rpo.llm.training.checkpoints import read_manifest, write_manifest

RUN = Run(
    label="run", objective={"name": "RPO", "beta": 0.5, "eta": 0.25}, config={"seed": 0}, status="converged",
    message="Converged.", history=[{"step": 0, "loss": 0.75, "logps/chosen": -3.5}, {"step": 1, "loss": 0.5}],
    arrays={"policy": np.array([[0.25, 0.75]])}, environment={"python": "3"},
)  # fmt: skip
seeds = st.integers(0, 2**32)
SHAPES = ["[]", "{}", "null", "3", '"text"', '{"record_version": 1}', '{"record_version": 1, "history": null}', "[[]]",
          '{"files": {}, "run": []}', '{"files": [], "run": {}}', '{"files": {"a": 1}, "run": {}}', "NaN"]  # fmt: skip


@st.composite
def harms(draw: Any) -> tuple[int | None, str, float]:
    """How a file is damaged: the seed of `damaged`, or other JSON in its place; and which file, in [0, 1)."""
    which = draw(st.floats(0, 1, exclude_max=True))
    return (draw(seeds), "", which) if draw(st.integers(0, 3)) else (None, draw(st.sampled_from(SHAPES)), which)


def harm(folder: Path, drawn: tuple[int | None, str, float]) -> Path:
    how, text, which = drawn
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[int(which * len(files))]
    path.write_bytes(text.encode() if how is None else damaged(path.read_bytes(), how))
    return path


@pytest.mark.parametrize("tier", TIERS)
def test_runs(tier: int, record_property: Any) -> None:
    """`Run.load`, and `rpo plot`, which reads the same record without its arrays."""

    def read(drawn: tuple[int | None, str, float]) -> str:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) / "run"
            RUN.save(folder)
            hurt = harm(folder, drawn)

            def check(run: Run) -> None:
                assert isinstance(run.label, str) and isinstance(run.history, list) and isinstance(run.objective, dict)
                assert all(isinstance(row, dict) for row in run.history)
                assert isinstance(run.loss, float | int)
                if hurt.name == "arrays.npz":
                    assert np.array_equal(run.policy, RUN.policy)

            found = outcome(lambda: Run.load(folder), check)
            drawing = command(["plot", str(folder), "--output", str(Path(made) / "figure.png")], Path(made))
            assert found != "result" or drawing == "exit 0" or hurt.name != "arrays.npz"
            return found

    explore("records", tier, harms(), read, record_property)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], pandas.DataFrame]:
    """The arguments of a small simulation, and its table."""
    arguments: dict[str, Any] = {
        "instance": "coverage_skew", "methods": {"dpo": DPO(beta=1.0)}, "grid": {"n": [20, 40], "arms": [3]},
        "seeds": 2, "rng": 0, "proxy": False, "progress": False, "table_format": "csv",
    }  # fmt: skip
    return arguments, simulate(**arguments, output=tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("tier", TIERS)
def test_simulations(tier: int, record_property: Any, simulated: Any, tmp_path_factory: Any) -> None:
    """Any file of the folder damaged: the rows are those of the run that was not, or the folder is refused."""
    arguments, whole = simulated
    kept = tmp_path_factory.mktemp("kept") / "run"
    simulate(**arguments, output=kept)

    def again(drawn: tuple[int | None, str, float]) -> str:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) / "run"
            shutil.copytree(kept, folder)
            harm(folder, drawn)
            return outcome(
                lambda: simulate(**arguments, output=folder),
                lambda frame: pandas.testing.assert_frame_equal(frame, whole, check_dtype=False),
            )

    explore("simulation folders", tier, harms(), again, record_property)


@pytest.mark.parametrize("tier", TIERS)
def test_caches_and_checkpoints(tier: int, record_property: Any) -> None:
    key = CacheKey(weights="w", dtype="float32", template="t", code="1")

    def read(drawn: tuple[tuple[int | None, str, float], bool]) -> str:
        harmed, is_cache = drawn
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            if is_cache:
                cache = LogpCache(key)
                cache.update([bytes(16), bytes(range(16))], [-1.5, -2.5], dtype="float32")
                path = cache.save(folder / "logps.safetensors")
                harm(folder, harmed)
                return outcome(lambda: LogpCache.load(path, key), lambda found: _same_values(found, cache))
            (folder / "model.safetensors").write_bytes(bytes(range(64)))
            torch.save({"step": 1}, folder / "optimizer.pt")
            write_manifest(folder, {"objective": {"beta": 0.5}}, checksums=True)
            hurt = harm(folder, harmed)
            before = hurt.read_bytes()

            def check(run: Any) -> None:
                assert isinstance(run, dict) and hurt.read_bytes() == before
                assert hurt.name == "manifest.json" or not _changed(hurt), f"{hurt.name} is damaged and taken"

            return outcome(lambda: read_manifest(folder), check)

    explore("caches and checkpoints", tier, st.tuples(harms(), st.booleans()), read, record_property)


def _same_values(found: LogpCache, cache: LogpCache) -> None:
    assert found._values == cache._values and found.key == cache.key


def _changed(path: Path) -> bool:
    return path.name == "model.safetensors" and path.read_bytes() != bytes(range(64))
