"""`--objective NAME`: which class is chosen, with which fields, from the line and from files, and what is refused."""

import contextlib
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rpo.cli import main
from rpo.core.links import Link, LogRatio
from rpo.core.objectives import Objective
from rpo.core.shapes import Logistic, Shape

ROOT = Path(__file__).parents[1]
CITATIONS = ROOT / "rpo" / "bandit" / "datasets" / "citations.csv"
SOLVE = ["solve", str(CITATIONS)]
TRAIN = ["train", "--model", "m", "--dataset", "d"]
PLAIN = {"name": "RPO", "beta": 1.0, "eta": 0.01, "sft_reduction": "sequence_sum", "base": "chosen"}
OWN = f"{__name__}:Tempered"
SIMPO = {"name": "SimPO", "beta": 2.0, "gamma": 0.5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tempered(Objective):
    """A method of one's own, without a name in the registry."""

    beta: float = 0.7

    @property
    def link(self) -> Link:
        return LogRatio(beta=self.beta)

    @property
    def shape(self) -> Shape:
        return Logistic()


def run(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(item) for item in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def resolved(*arguments: object) -> dict[str, Any]:
    code, out, err = run(*arguments, "--print_config")
    assert code == 0, err
    return dict(yaml.safe_load(out))


def lines(*arguments: object) -> list[str]:
    code, out, err = run(*arguments)
    assert (code, out) == (2, ""), (code, out, err)
    return err.splitlines()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Each with the YAML of config files, the line, and the objective that comes of it.
CASES: dict[str, tuple[list[str], list[str], dict[str, Any]]] = {
    "nothing": ([], [], PLAIN),
    "fields alone are RPO's": ([], ["--objective.eta", "0.3"], PLAIN | {"eta": 0.3}),
    "a name brings its own defaults": ([], ["--objective", "SimPO"], SIMPO),
    "the name after its fields": ([], ["--objective.beta", "3", "--objective", "SimPO"], SIMPO | {"beta": 3.0}),
    "with an equals sign": ([], ["--objective=SimPO", "--objective.gamma=1"], SIMPO | {"gamma": 1.0}),
    "as a field": ([], ["--objective.name", "SimPO"], SIMPO),
    "as YAML": ([], ["--objective", "{name: SimPO, gamma: 1}"], SIMPO | {"gamma": 1.0}),
    "the command's beta where a method has none": ([], ["--objective", "DPO"],
                                                   {"name": "DPO", "beta": 1.0, "base": "chosen"}),
    "a file's fields are RPO's": (["objective: {eta: 0.3}"], [], PLAIN | {"eta": 0.3}),
    "a file's name": (["objective: SimPO"], [], SIMPO),
    "a file's name and fields": (["objective: {gamma: 1, name: SimPO}"], [], SIMPO | {"gamma": 1.0}),
    "a line over a file": (["objective: {name: SimPO, gamma: 1}"], ["--objective.beta", "3"],
                           {"name": "SimPO", "beta": 3.0, "gamma": 1.0}),
    "the same name over a file": (["objective: {name: SimPO, gamma: 1}"], ["--objective", "SimPO"],
                                  SIMPO | {"gamma": 1.0}),
    "a file over a file": (["objective: {name: SimPO, gamma: 1}", "objective: {gamma: 2}"], [],
                           SIMPO | {"gamma": 2.0}),
    "another name in a later file": (["objective: {beta: 9, eta: 9}", "objective: {name: SimPO, gamma: 2}"], [],
                                     SIMPO | {"gamma": 2.0}),
    "another name on the line": (["objective: {beta: 9, eta: 9}"], ["--objective", "SimPO"], SIMPO),
    "back to RPO": (["objective: {name: SimPO, beta: 9}"], ["--objective", "RPO"], PLAIN),
    "a divergence": ([], ["--objective", "FDPO", "--objective.divergence", "ForwardKL"],
                     {"name": "FDPO", "beta": 0.1, "divergence": {"name": "ForwardKL"}}),
    "its own default": ([], ["--objective", "FDPO"],
                        {"name": "FDPO", "beta": 0.1, "divergence": {"name": "JensenShannon"}}),
    "a divergence with a field": (["objective: {name: FDPO, divergence: {name: Alpha, alpha: 0.3}}"], [],
                                  {"name": "FDPO", "beta": 0.1, "divergence": {"name": "Alpha", "alpha": 0.3}}),
    "another divergence than a file's": (["objective: {name: FDPO, beta: 2, divergence: {name: Alpha, alpha: 0.3}}"],
                                         ["--objective.divergence=KL"],
                                         {"name": "FDPO", "beta": 2.0, "divergence": {"name": "KL"}}),
    "a class of one's own": ([], ["--objective", OWN], {"name": OWN, "beta": 0.7}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_which_objective_is_meant(case: str, here: Path) -> None:
    """The trap: under a default RPO(beta=0.1) a parser gives SimPO beta = 0.1, not its own 2."""
    files, options, expected = CASES[case]
    given: list[str] = []
    for k, text in enumerate(files):
        (here / f"{k}.yaml").write_text(f"{text}\n")
        given += ["--config", f"{k}.yaml"]
    config = resolved(*SOLVE, *given, *options)
    assert config["objective"] == expected
    (here / "again.yaml").write_text(yaml.safe_dump(config))
    assert resolved("solve", "--config", "again.yaml") == config


def test_training_has_its_own_defaults_and_the_arguments_of_the_trainer_that_the_objective_has() -> None:
    plain = resolved(*TRAIN)
    assert plain["objective"] == PLAIN | {"beta": 0.1, "eta": 0.005} and "kl_steps" in plain["training"]
    assert resolved(*TRAIN, "--objective", "DPO")["objective"] == {"name": "DPO", "beta": 0.1, "base": "chosen"}
    sft = resolved(*TRAIN, "--objective", "SFT", "--training.response", "rejected")
    assert sft["objective"] == {"name": "SFT", "reduction": "batch_token_mean"}
    assert sft["training"]["learning_rate"] == 2e-5 and "kl_steps" not in sft["training"]
    reward = resolved(*TRAIN, "--objective", "BradleyTerry")
    assert reward["objective"] == {"name": "BradleyTerry", "center_rewards_coefficient": 0.0}
    assert reward["training"]["learning_rate"] == 1e-4
    (line,) = lines(*TRAIN, "--training.response", "rejected")
    assert "--training.response" in line


def test_what_gives_way_is_said_and_the_rest_of_its_file_stays_as_it_was(here: Path) -> None:
    """Values that YAML would read otherwise if they were written down again without care."""
    label = "1e3 \u2028 \x85 null: 'no'"
    texts = {"label": label, "revision": "2020-01-01"}
    (here / "c.yaml").write_text(yaml.safe_dump({"objective": {"eta": 1}, "lora": {"dropout": 1e-5}, **texts}))
    config = resolved(*TRAIN, "--config", "c.yaml", "--objective", "SimPO")
    assert {name: config[name] for name in texts} == texts and config["lora"]["dropout"] == 1e-5
    assert config["objective"] == SIMPO
    (here / "s.yaml").write_text("objective: {beta: 7}\nreward_bound: 3\n")
    code, out, err = run(*SOLVE, "--config", "s.yaml", "--objective", "IPO")
    assert code == 0 and "objective: IPO(tau=0.1" in out and "Box(bound=3.0)" in out
    assert err == "rpo solve: note: objective of s.yaml (RPO: beta) gives way to IPO.\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*SOLVE, "--objective", "simpo"], ["such as", "SimPO", "'simpo'", "rpo methods", "package.module:Name"]),
        ([*SOLVE, "--objective", "SFT"], ["objective", "'SFT'"]),
        ([*SOLVE, "--objective", "AOT"], ["objective", "sorts the margins of a whole batch"]),
        ([*SOLVE, "--objective", "KTO"], ["objective", "KTO"]),
        ([*SOLVE, "--objective", "nowhere:Mine"], ["objective", "No module named 'nowhere'"]),
        ([*SOLVE, "--objective", "rpo:fit"], ["objective", "subclass of", "rpo:fit"]),
        ([*SOLVE, "--objective", "rpo.core.objectives:Objective"], ["objective", "a whole subclass"]),
        ([*SOLVE, "--objective", "IPO", "--objective.beta", "1"], ["objective.beta", "field of IPO (tau, per_token)"]),
        ([*SOLVE, "--objective", "RDPO"], ["objective.alpha", "required"]),
        ([*SOLVE, "--objective", "IPO", "--objective.tau", "-1"], ["tau", "> 0", "got -1"]),
        ([*SOLVE, "--objective", "FDPO", "--objective.divergence", "js"], ["objective.divergence", "JensenShannon"]),
        ([*SOLVE, "--objective", "FDPO", "--objective.divergence.alpha", "0.5"],
         ["objective.divergence.alpha", "JensenShannon (it has none)"]),
        ([*SOLVE, "--objective", "DPO", "--objective.divergence", "KL"], ["objective.divergence", "(beta, base)"]),
        ([*SOLVE, "--objective", "FDPO", "--objective.divergence", "ChiSquared"], ["divergence", "f'(0) = -inf"]),
        ([*SOLVE, "--objective", "ORPO"], ["objective", "convex program", "ORPO"]),
        (["compare", "--output", "unused", "--objective", "IPO"], ["objective", "RPO"]),
        (["compare", "--output", "unused", "--objective", "DPO"], ["objective", "an RPO with eta > 0"]),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments: list[str], words: list[str], here: Path) -> None:
    (line,) = lines(*arguments)
    for word in words:
        assert word in line, (word, line)
    assert list(here.iterdir()) == []


def test_every_mistake_is_named_at_once(here: Path) -> None:
    (here / "c.yaml").write_text("objective: {name: SimPO, gama: 1, eta: 2}\nreward_bounds: 3\n")
    found = lines(*SOLVE, "--config", "c.yaml", "--objective.beta", "much", "--typo", "1")
    for word in ("objective.gama", "objective.eta", "objective.beta", "reward_bounds", "--typo"):
        assert sum(word in line for line in found) == 1, (word, found)


def test_listing_the_commands_imports_no_method_and_a_method_of_a_table_no_torch() -> None:
    code = (
        "import sys; from rpo.cli import main\ntry: main({!r})\nexcept SystemExit: pass\n"
        "print(*(name for name in sys.modules if name.startswith('rpo.methods.') or name == 'torch'))"
    )
    found = []
    for arguments in (["--help"], ["solve", "--objective", "SimPO", "--help"]):
        command = [sys.executable, "-c", code.format(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(set(done.stdout.splitlines()[-1].split()))
    assert found[0] <= {"rpo.methods.registry", "rpo.methods.foreign"}
    assert "torch" not in found[1] and "rpo.methods.reference_free" in found[1]


def test_solve_records_the_name_and_every_field(here: Path) -> None:
    assert run(*SOLVE, "--objective", "IPO", "--objective.tau", "0.2", "--output", "a")[0] == 0
    expected = {"name": "IPO", "tau": 0.2, "per_token": False}
    assert json.loads((here / "a" / "solution.json").read_text())["objective"] == expected
    assert yaml.safe_load((here / "a" / "config.yaml").read_text())["objective"] == expected
    assert run("solve", "--config", "a/config.yaml", "--output", "b")[0] == 0
    assert (here / "a" / "policy.csv").read_bytes() == (here / "b" / "policy.csv").read_bytes()


def test_names_of_trls_losses_answer_with_the_method(here: Path) -> None:
    """On the line, in a file, among the trainer's arguments and among an objective's fields: one sentence each."""
    (here / "c.yaml").write_text("training: {label_smoothing: 0.1, max_steps: 3}\nrpo_alpha: 1.0\n")
    found = lines(
        *TRAIN, "--config", "c.yaml", "--training.loss_type", "ipo", "--simpo_gamma=1", "--objective.ld_alpha", "0.5",
        "--typo", "1",
    )  # fmt: skip
    expected = {
        "training.label_smoothing": "epsilon of RobustDPO, EXO or ConservativeDPO",
        "error: rpo_alpha": "eta = rpo_alpha / beta",
        "training.loss_type": "IPO (ipo, with per_token)",
        "error: simpo_gamma": "SimPO, whose gamma",
        "objective.ld_alpha": "RDPO corrects for length",
        "--typo": "unrecognized",
    }
    assert len(found) == len(expected), found
    for name, words in expected.items():
        assert sum(name in line and words in line for line in found) == 1, (name, found)


@pytest.mark.parametrize("value", [1, 1.5, True, [1, 2]], ids=str)
@pytest.mark.parametrize(("key", "options"), [("objective", lambda value: value), ("objective.divergence", None)])
def test_a_number_where_a_name_is_due_is_a_line(key: str, options: Any, value: Any, tmp_path: Path) -> None:
    whole = value if options is not None else {"name": "FDPO", "divergence": value}
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"objective": whole}), encoding="utf-8")
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        assert main([*SOLVE, "--config", str(file)]) == 2
    assert f"{key}: expected the name of one" in error.getvalue() and "Traceback" not in error.getvalue()
