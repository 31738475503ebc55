"""SIGKILL at seeded random moments: what is there is whole, and repeating or continuing ends in the same bytes.

One process imports everything and forks for each command, so that the moments fall into the work, not into imports.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "llm"))

from models_for_tests import tiny_model, tiny_tokenizer

from rpo.core.locks import LOCK, STAGE

CITATIONS = Path(__file__).parents[1] / "rpo" / "bandit" / "datasets" / "citations.csv"
FORKS = """
import json, os, sys
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch, pandas, pyarrow.parquet, rpo.bandit, rpo.bandit.simulation.engine
import rpo.llm.training.fitting, rpo.commands.train
from rpo.cli import main
torch.set_num_threads(1)
for line in sys.stdin:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        code = 99
        try:
            code = main(json.loads(line))
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """Commands, each in a process of its own that may be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, "-W", "ignore", "-c", FORKS]
        self.process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *arguments: object, kill_after: float | None = None) -> int:
        """Return the exit code, -9 where the command was killed `kill_after` seconds from its start."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(item) for item in arguments]) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            # Not waited for by us, so that the number is still its own: the parent reports it only after this.
            os.kill(child, signal.SIGKILL) if Path(f"/proc/{child}").exists() else None
        return int(self.process.stdout.readline())

    def finish(self, *arguments: object) -> float:
        """Run to the end and return the seconds it took."""
        began = time.monotonic()
        code = self.run(*arguments)
        assert code == 0, (self.folder / "log").read_text()[-3000:]
        return time.monotonic() - began


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    made = Forks(tmp_path_factory.mktemp("kills"))
    yield made
    made.process.kill()
    made.process.communicate()


def contents(folder: Path, *names: str) -> dict[str, bytes]:
    """Return the files by name, but for the line that names the commit: the tree may move on meanwhile."""
    found = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    return {
        name: b"\n".join(line for line in data.split(b"\n") if b"commit" not in line) for name, data in found.items()
    }


def nothing_left_over(folder: Path) -> None:
    left = [path for path in folder.rglob("*") if path.name.startswith(STAGE) or path.name == LOCK]
    assert left == []


TIERS = [pytest.param(False), pytest.param(True, marks=pytest.mark.slow)]
KILLS = {"solve": (4, 30), "simulate": (4, 24), "train": (3, 18)}


@pytest.mark.parametrize("slow", TIERS)
def test_solve_over_an_earlier_result(forks: Forks, slow: bool) -> None:
    """At any moment there is the old result, the new one, or none; repeated, it is the new one."""
    rng, out, killed = random.Random(1), forks.folder / "solved", 0
    files = ("solution.json", "policy.csv", "config.yaml")
    shutil.rmtree(out, ignore_errors=True)
    forks.finish("solve", CITATIONS, "--objective.eta", 0.5, "--output", out)
    shutil.copytree(out, forks.folder / "old", dirs_exist_ok=True)
    old = contents(out, *files)
    command = ["solve", CITATIONS, "--objective.eta", 0.01, "--output", out, "--overwrite", "true"]
    duration = forks.finish(*command)
    new = contents(out, *files)
    assert len(old) == len(new) == 3 and all(old[name] != new[name] for name in files)
    for number in range(KILLS["solve"][slow]):
        shutil.rmtree(out)
        shutil.copytree(forks.folder / "old", out)
        # The last tenth is where the files move.
        moment = rng.uniform(0, 1.1) if number % 2 else rng.uniform(0.85, 1.05)
        killed += forks.run(*command, kill_after=moment * duration) == -9
        found = contents(out, *files)
        assert "solution.json" not in found or found in (old, new)
        forks.finish(*command)
        assert contents(out, *files) == new
        assert sorted(path.name for path in out.iterdir()) == sorted(files)
    assert killed >= KILLS["solve"][slow] // 3


@pytest.mark.parametrize("slow", TIERS)
def test_simulate_goes_on_to_the_same_table(forks: Forks, slow: bool) -> None:
    """Killed again and again in one folder, then in a fresh one: the table of a run that was left alone."""
    rng, killed = random.Random(2), 0
    grid = {"n": list(range(20, 32)), "beta": [0.1], "eta": [0.1], "arms": [4]}
    options = ["simulate", "--grid", json.dumps(grid), "--seeds", 20, "--output"]
    whole = forks.folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    duration = forks.finish(*options, whole)
    table = (whole / "table.parquet").read_bytes()
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*"))
    for folder in range(KILLS["simulate"][slow] // 2):
        out = forks.folder / f"simulated-{slow}-{folder}"
        for _ in range(2):
            moment = rng.uniform(0.1, 0.9)
            while forks.run(*options, out, kill_after=moment * duration) != -9:
                shutil.rmtree(out)  # it ended first: the machine has less to do than when the time was taken
                duration *= 0.7
            killed += 1
            assert not (out / "table.parquet").exists() or (out / "table.parquet").read_bytes() == table
        forks.finish(*options, out)
        assert (out / "table.parquet").read_bytes() == table
        assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == names
        nothing_left_over(out)
    assert killed == KILLS["simulate"][slow]


@pytest.mark.parametrize("slow", TIERS)
def test_train_goes_on_to_the_same_weights(forks: Forks, slow: bool) -> None:
    """Three kills a folder, each continued by --resume auto: weights bit for bit, history and card those of one run."""
    here = forks.folder
    tiny_model("llama").save_pretrained(here / "model")
    tiny_tokenizer().save_pretrained(here / "model")
    rows = [{"prompt": f"w{k} w{k + 1} ", "chosen": f"w{k + 2}", "rejected": f"w{k + 3} w{k}"} for k in range(12)]
    (here / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {
        "max_steps": 12, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2, "save_steps": 1,
        "save_total_limit": 2, "disable_tqdm": "true", "report_to": "none", "use_cpu": "true",
    }  # fmt: skip
    command: list[object] = ["train", "--model", "./model", "--dataset", "pairs.jsonl", "--resume", "auto"]
    command += [part for name, value in options.items() for part in (f"--training.{name}", value)]
    rng, killed = random.Random(3), 0
    whole = here / "trained"
    shutil.rmtree(whole, ignore_errors=True)
    duration = forks.finish(*command, "--training.output_dir", whole)
    expected = contents(whole, "model.safetensors", "README.md")

    def history(folder: Path) -> Any:
        return json.loads((folder / "run.json").read_text())["history"]

    for folder in range(KILLS["train"][slow] // 3):
        out = here / f"trained-{slow}-{folder}"
        for _ in range(3):
            moment = rng.uniform(0.1, 0.9)
            while forks.run(*command, "--training.output_dir", out, kill_after=moment * duration) != -9:
                shutil.rmtree(out)  # it ended first: the machine has less to do than when the time was taken
                duration *= 0.7
            killed += 1
            assert not (out / "run.json").exists() or contents(out, *expected) == expected
        forks.finish(*command, "--training.output_dir", out)
        assert contents(out, *expected) == expected
        assert history(out) == history(whole)
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
        nothing_left_over(out)
    assert killed == KILLS["train"][slow]
