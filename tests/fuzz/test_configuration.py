"""Configuration of `rpo solve`, `rpo simulate` and `rpo train`: YAML and options, parsed and looked over, not run.

The independent reading: an option that is taken has the value it was given, read by YAML.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import TIERS, chosen, damaged, explore, files_in
from hypothesis import strategies as st

import rpo.llm.training.config  # noqa: F401 (the parser of `rpo train` imports it; no input's time limit should fall on that)
from rpo import cli
from rpo.core.errors import RPOError

ACCEPTED = "nothing was refused"
KEYS: dict[str, list[str]] = {
    "solve": ["pairs", "objective", "objective.beta", "objective.eta", "objective.base", "reward_class", "reward_bound",
              "ties", "prompt_column", "output", "overwrite"],
    "simulate": ["output", "grid", "grid.n", "instance", "methods", "seeds", "seed", "proxy", "table_format", "jobs",
                 "backend", "figure", "overwrite"],
    "train": ["model", "dataset", "dataset.source", "dataset.weight", "training.output_dir", "training.learning_rate",
              "training.max_length", "training.num_train_epochs", "training.seed", "training.optim", "objective.beta",
              "training.per_device_train_batch_size", "training.bf16", "lora", "lora.r", "dtype", "resume", "ref_model",
              "quantization", "training.truncation_mode", "training.path", "training.save_steps"],
}  # fmt: skip
VALUES = ["1", "0", "-1", "0.5", "1e-320", "1e400", "nan", ".inf", "null", "true", "", "text", "[]", "{}", "[1, 2]",
          "{a: 1}", "chosen", "box", "a\x00b", "x" * 5000, "9" * 400, "é", "\u2028", "!!python/object:os.system x",
          "&a [*a]", "@", "%", "'", '"', "[", "{", "- ", "a: b: c", "0x10", "1_000", "2020-01-01", "~", "*",
          "/dev/null", "/proc/nowhere/out", "../..", "config.yaml", "--", "-", "{n: [10], beta: [1]}",
          "[{method: RPO}]", "[{method: Nobody}]", "auto", "csv", "pairs.csv"]  # fmt: skip
FIXED = {
    "solve": "pairs: pairs.csv\n",
    "simulate": "output: out\ngrid:\n  n: [10]\n  beta: [1.0]\n  eta: [0.1]\nseeds: 1\n",
    "train": "model: ./model\ndataset: pairs.csv\ntraining:\n  output_dir: out\n",
}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES = ["", "[1, 2]\n", "text\n", "a: [\n", "config: config.yaml\n", BOMB, "? [a]\n: b\n", "a: 1\na: 2\n",
         "\ufeffseed: 1\n", "!!python/name:os.system\n", "---\na: 1\n---\nb: 2\n", "[" * 2000, "1: 2\n", "null: 1\n",
         "seed: 1\r\nties: drop\r\n"]  # fmt: skip


class Accepted(RPOError):
    """Stands for running the command: everything before it found nothing wrong."""


@st.composite
def invocations(draw: Any, name: str) -> tuple[list[str], bytes | None]:
    """The options on the line, and the bytes of a config file."""
    options = []
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2, 3]))):
        key = chosen(draw, KEYS[name]) if draw(st.integers(0, 9)) else draw(st.text(max_size=6))
        value = chosen(draw, VALUES) if draw(st.integers(0, 4)) else draw(st.text(max_size=8))
        options += [f"--{key}={value}"] if draw(st.booleans()) else [f"--{key}", value]
    how = draw(st.integers(0, 8))
    content = FIXED[name]
    if how == 0:
        return options, None
    if how == 1:
        content = chosen(draw, FILES)
    elif 3 <= how <= 5:
        key, value = chosen(draw, KEYS[name]).split("."), chosen(draw, VALUES)
        content += "".join(f"{'  ' * depth}{part}:" + "\n" * (depth < len(key) - 1) for depth, part in enumerate(key))
        content += f" {value}\n"
    raw = content.encode("utf-8", "surrogatepass")
    if how == 2:
        raw = damaged(raw, draw(st.integers(0, 2**32)))
    return options, raw


@pytest.fixture
def dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[Any], str]]:
    """Return what makes, for a command, the outcome of parsing and looking over an invocation in its own folder."""
    parsed: list[Any] = []

    def looked_over(command: cli.Command) -> cli.Command:
        def preflight(options: Any) -> list[RPOError]:
            parsed.append(options)
            found = [] if command.preflight is None else command.preflight(options)
            return [*found, Accepted(ACCEPTED)]

        return command._replace(preflight=preflight)

    monkeypatch.setattr(cli, "COMMANDS", {name: looked_over(command) for name, command in cli.COMMANDS.items()})

    def of(name: str) -> Callable[[Any], str]:
        def run(drawn: tuple[list[str], bytes | None]) -> str:
            options, content = drawn
            with tempfile.TemporaryDirectory(dir=tmp_path) as made, contextlib.chdir(made):
                folder = Path(made)
                (folder / "pairs.csv").write_text("chosen,rejected\na,b\nb,a\n")
                (folder / "model").mkdir()
                given = [name, *options]
                if content is not None:
                    (folder / "config.yaml").write_bytes(content)
                    given[1:1] = ["--config", "config.yaml"]
                before = files_in(folder)
                parsed.clear()
                out, err = io.StringIO(), io.StringIO()
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    code = cli.main(given)
                lines = err.getvalue().splitlines()
                assert code == 2 and out.getvalue() == "", (code, out.getvalue())
                assert lines and all(line.startswith("rpo") and ": error: " in line for line in lines), lines
                assert "Traceback" not in err.getvalue() and "object at 0x" not in err.getvalue()
                assert files_in(folder) == before
                accepted = len(lines) == 1 and lines[0].endswith(ACCEPTED)
                if accepted:
                    check_values(parsed[-1], options)
                return "accepted" if accepted else "refused"

        return run

    return of


def check_values(parsed: Any, options: list[str]) -> None:
    """The last of a plain number on the line is what was parsed."""
    pairs = [option.removeprefix("--").split("=", 1) for option in options if "=" in option]
    for key, text in {key: text for key, text in pairs if key != "config"}.items():
        try:
            meant, found = yaml.safe_load(text), parsed.get(key)
        except (yaml.YAMLError, KeyError):
            continue
        later = [other for other in options if other == f"--{key}"]
        if isinstance(meant, (int, float)) and isinstance(found, (int, float)) and not later and meant == meant:
            assert float(found) == float(meant), (key, text, found)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", sorted(KEYS))
def test_configuration(name: str, tier: int, dry: Any, record_property: Any) -> None:
    explore(f"{name} options", tier, invocations(name), dry(name), record_property)
