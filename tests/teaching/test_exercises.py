"""The checker accepts what is right and refuses what is not; so does every exercise of every notebook."""

import numpy as np
import pytest

import rpo.teaching.exercise as teaching
from rpo import teaching as public
from rpo.core.errors import InvalidArgument
from rpo.teaching import Exercise, exercises

ALL = exercises()


def made(solve: object, **fields: object) -> Exercise:
    return Exercise("q?", lambda: solve, "a hint", "a reason", **fields)  # type: ignore[arg-type]


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> dict[str, Exercise]:
    """A book of exercises of every kind, in place of the notebooks'."""
    book = {
        "01.1": made(2.0, mistakes={"That is its square.": lambda: 4.0}),
        "01.2": made(np.array([0.25, 0.75])),
        "01.3": made("up", choices=("up", "down")),
        "01.4": made(True),
        "01.5": made(0.0),
    }
    monkeypatch.setattr(teaching, "exercises", lambda number=None: book)
    return book


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("01.1", 2),
        ("01.1", 2.019),
        ("01.1", np.float64(2)),
        ("01.2", [0.25, 0.75]),
        ("01.3", "up"),
        ("01.3", " Up"),
        ("01.4", True),
        ("01.5", 0),
    ],
)
def test_right_answers(one: dict[str, Exercise], name: str, right: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert teaching.check(name, right) is True
    assert capsys.readouterr().out == f"{name}: right. a reason\n"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("01.1", 2.021),
        ("01.1", "2"),
        ("01.1", [2.0]),
        ("01.1", float("nan")),
        ("01.1", True),
        ("01.2", [0.75, 0.25]),
        ("01.2", [0.25]),
        ("01.2", [[0.25, 0.75]]),
        ("01.3", "down"),
        ("01.3", "left"),
        ("01.3", 3),
        ("01.4", False),
        ("01.4", 1),
        ("01.5", 0.011),
    ],
)
def test_wrong_answers(one: dict[str, Exercise], name: str, wrong: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert teaching.check(name, wrong) is False
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: not yet. ") and "a reason" not in out


def test_a_known_mistake_is_named_and_no_answer_is_not_a_wrong_one(
    one: dict[str, Exercise], capsys: pytest.CaptureFixture[str]
) -> None:
    assert teaching.check("01.1", 4.0) is False
    assert capsys.readouterr().out == "01.1: not yet. That is its square.\n"
    assert teaching.check("01.1", ...) is None
    assert "not answered yet" in capsys.readouterr().out
    assert teaching.answer("01.1") == 2.0
    teaching.hint("01.1")
    assert capsys.readouterr().out == "01.1: a reason\n01.1: a hint\n"


@pytest.mark.parametrize("name", ["01.9", "99.1", "nonsense", ""])
def test_an_exercise_that_does_not_exist(name: str) -> None:
    with pytest.raises(InvalidArgument, match="name: expected"):
        public.check(name, 1.0)
    with pytest.raises(InvalidArgument, match="notebook: expected"):
        exercises("99")


@pytest.mark.parametrize("name", ALL)
def test_every_exercise_accepts_its_answer_and_refuses_others(name: str) -> None:
    """Other numbers: half as much again, the opposite sign, one more; every other choice; every mistake it names."""
    exercise = ALL[name]
    right = exercise.solve()
    assert exercise.accepts(right)
    assert exercise.question.strip() and exercise.hint.strip() and exercise.because.strip()
    if exercise.choices:
        assert right in exercise.choices and len(set(exercise.choices)) == len(exercise.choices) > 1
        others: list[object] = [choice for choice in exercise.choices if choice != right]
    elif isinstance(right, bool | np.bool_):
        others = [not right]
    else:
        array = np.asarray(right, dtype=float)
        assert np.isfinite(array).all()
        scale = np.abs(array).max() or 1.0
        others = [array + 0.5 * scale, array - 0.5 * scale, *([-array] if array.any() else [])]
    assert not any(exercise.accepts(other) for other in others)
    for remark, wrong in exercise.mistakes.items():
        assert not exercise.accepts(wrong()), remark
        assert exercise.remark(wrong()) == remark
    assert not exercise.remark(right)
