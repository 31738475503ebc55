"""What --help says, and what is answered to a name that is none."""

import inspect
import re
from dataclasses import MISSING, fields

import pytest

import rpo as package
from rpo.cli import COMMANDS, build_parser
from rpo.commands import train
from rpo.commands.choices import Given
from rpo.commands.help_page import HIDDEN, field_words, meant
from rpo.commands.train_page import SECTIONS
from rpo.methods.registry import METHODS
from tests.test_cli import refused, rpo


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def page(*arguments: str) -> str:
    done = rpo(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_help_of_train_is_a_page_in_words() -> None:
    text = page("train", "--help")
    lines = text.splitlines()
    assert len(lines) < 120 and max(map(len, lines)) <= 80
    for title in SECTIONS:
        assert f"\n{title}:\n" in text
    options = re.findall(r"^  (--[\w.]+)(?: \S+)?(\n +| {2,})(\S.*)$", text, flags=re.MULTILINE)
    shown = {name for name, _, _ in options}
    assert {"--model", "--training.learning_rate", "--objective.eta", "--training.output_dir"} <= shown
    assert not any(words.startswith(("(", "--")) for _, _, words in options)  # each is described
    assert "required, " not in text and "(type" not in text
    assert re.search(r"--objective\.beta X +KL temperature", text) and "(default: 0.1)" in text


def test_the_rest_of_the_help_of_train_is_one_word_away() -> None:
    first, everything = page("train", "--help"), page("train", "--help", "all")
    assert "--training.adam_beta1" not in first and "rpo train --help all" in first
    sub = build_parser("train", everything=True)[1]
    assert sub is not None
    for action in sub._actions:
        assert getattr(action, HIDDEN, False) or action.option_strings[0] in everything, action.dest
        assert action.help, action.dest
    # Of two names for one number the page shows the one that is taken.
    for name, own in train.OWN_OPTIONS.items():
        assert f"--training.{name} " not in everything
        assert "objective" not in own or "center" in own or f"--{own} " in first


def test_the_sections_of_train_name_options_that_there_are() -> None:
    sub = build_parser("train")[1]
    assert sub is not None
    dests = {action.dest for action in sub._actions}
    named = [name for options in SECTIONS.values() for name in options]
    assert [name for name in named if not any(dest.startswith(name) for dest in dests)] == []


@pytest.mark.parametrize("name", [*METHODS, "SFT", "BradleyTerry"])
def test_every_field_of_a_method_is_described(name: str) -> None:
    kind = getattr(package, name, None) or METHODS[name].load()
    for item in fields(kind):
        words = field_words(kind, item.name)
        assert len(words) < 200, (name, item.name)
        assert words != "see docs/methods.md", (name, item.name)


def test_the_words_of_a_field_are_its_docstrings() -> None:
    assert field_words(package.RPO, "eta") == "weight of the reward penalty, >= 0"
    assert field_words(METHODS["GammaDPO"].load(), "gamma") == "margin that is asked for; >= 0"
    assert field_words(METHODS["IPO"].load(), "tau") == "> 0, weight of the KL"


@pytest.mark.parametrize(
    "command", [name for name, one in COMMANDS.items() if "objective" in inspect.signature(one.function).parameters]
)
def test_a_default_is_never_called_required(command: str) -> None:
    sub = build_parser(command)[1]
    assert sub is not None
    defaults = COMMANDS[command].settle(Given([]))
    assert defaults is not None and defaults.defaults
    for action in sub._actions:
        assert not (action.required and action.default is not None), action.dest
    # A field without a default of its own and of the command's stays required.
    choice = COMMANDS[command].settle(Given(["--objective", "IPO"]))
    sub = build_parser(command, choice)[1]
    bare = {f.name for f in fields(METHODS["IPO"].load()) if f.default is MISSING and f.default_factory is MISSING}
    assert sub is not None
    assert {a.dest for a in sub._actions if a.required and a.dest.startswith("objective.")} == {
        f"objective.{name}" for name in bare - set(choice.defaults if choice else {})
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["simulat"], "did you mean simulate?"),
        (["tran", "--model", "x"], "did you mean train?"),
        (["data", "chek", "x"], "did you mean data check?"),
        (["convert-ggu"], "did you mean convert-gguf"),
        (["solve", "--outptu", "x"], "did you mean output?"),
        (["solve", "--beta", "1"], "did you mean objective.beta?"),
        (["solve", "--zzz", "1"], "--zzz (see"),
        (["zzz"], "got 'zzz', which is none"),
    ],
)  # fmt: skip
def test_close_misses_are_suggested(given: list[str], words: str) -> None:
    done = rpo(*given)
    assert done.returncode == 2
    assert words in done.stderr


def test_options_of_a_file_are_suggested_too(tmp_path: object) -> None:
    text = "{reward_bonud: 3}"
    assert "did you mean reward_bound?" in refused(rpo("solve", "--config", text))


def test_meant_prefers_the_end_of_a_dotted_name() -> None:
    assert meant("learning_rate", ["training.learning_rate", "learning_rates"]) == ["training.learning_rate"]
    assert meant("simulat", ["solve", "simulate"]) == ["simulate"]
    assert meant("zzz", ["solve"]) == []
