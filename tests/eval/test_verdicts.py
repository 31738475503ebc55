"""The store of verdicts: keys, what survives a kill at any byte, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rpo.core.errors import InvalidArgument, OutputError
from rpo.eval.judges import Question, Verdict
from rpo.eval.verdicts import VerdictStore, question_key, read_rows

WHO = {"kind": "endpoint", "model": "gpt-4", "template": "1", "temperature": 0.0}
QUESTIONS = [
    Question("p1", "a", "b"),
    Question("p1", "b", "a"),
    Question([{"role": "user", "content": "\u00fc"}], "c", "d"),
]
VERDICTS = [Verdict("first", "yes", "gpt-4-x", 7, 8), Verdict("second"), Verdict("tie", "line\nbreak \u2028 \ud800")]


def filled(path: Path) -> Path:
    with VerdictStore(path) as store:
        for question, verdict in zip(QUESTIONS, VERDICTS, strict=True):
            store.add([question], [verdict], WHO)
    return path


def stored(path: Path) -> list[Verdict | None]:
    with VerdictStore(path) as store:
        return [store.get(question_key(question, WHO)) for question in QUESTIONS]


def test_the_key_is_of_everything_that_a_verdict_depends_on() -> None:
    question = QUESTIONS[0]
    keys = [question_key(question, WHO)]
    keys += [question_key(replace(question, **{name: "z"}), WHO) for name in ("prompt", "first", "second")]
    keys.append(question_key(QUESTIONS[1], WHO))
    for name, value in {"model": "gpt-5", "template": "2", "temperature": 0.5}.items():
        keys.append(question_key(question, {**WHO, name: value}))
    assert len(set(keys)) == 8
    turned = dict(reversed(WHO.items()))
    assert question_key(Question("p1", "a", "b"), turned) == keys[0]


def test_verdicts_come_back_as_they_were(tmp_path: Path) -> None:
    path = filled(tmp_path / "deep" / "verdicts.jsonl")
    assert stored(path) == VERDICTS
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0]["judge"] == WHO and rows[0]["key"] == question_key(QUESTIONS[0], WHO)


def test_nothing_is_created_before_the_first_verdict(tmp_path: Path) -> None:
    with VerdictStore(tmp_path / "new" / "verdicts.jsonl") as store:
        assert len(store) == 0 and store.get("0") is None
    assert not list(tmp_path.iterdir())


def test_every_verdict_is_on_disk_when_add_returns(tmp_path: Path) -> None:
    with VerdictStore(tmp_path / "v.jsonl") as store:
        for count, question in enumerate(QUESTIONS, 1):
            store.add([question], [Verdict("tie")], WHO)
            assert len(read_rows(store.path)[0]) == count == len(store)


def test_a_file_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(tmp_path: Path) -> None:
    """Cut inside line k, lines before k are kept. A last line that lacks only its line end is whole."""
    data = filled(tmp_path / "whole.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(data) if byte == 10]
    path = tmp_path / "cut.jsonl"
    kept = set()
    for cut in [*range(0, len(data), 13), *(end + k for end in ends for k in (-2, -1, 0))]:
        path.write_bytes(data[:cut])
        whole = sum(end - 1 <= cut for end in ends)
        assert stored(path) == VERDICTS[:whole] + [None] * (3 - whole), cut
        with VerdictStore(path) as store:
            store.add(QUESTIONS[whole:], VERDICTS[whole:], WHO)
        assert stored(path) == VERDICTS
        assert len(path.read_bytes().splitlines()) == 3
        kept.add(whole)
    assert kept == {0, 1, 2, 3}


class Full:
    """A file on a disk that takes ten more bytes."""

    def __init__(self, file: Any) -> None:
        self.file, self.room = file, 10

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        room, self.room = self.room, 0
        return int(self.file.write(bytes(data)[:room]))


def test_a_write_that_fails_half_way_leaves_whole_lines(tmp_path: Path) -> None:
    """Ten bytes of the second verdict are written; the next one takes their place."""
    with VerdictStore(tmp_path / "v.jsonl") as store:
        store.add(QUESTIONS[:1], VERDICTS[:1], WHO)
        size, real = store.path.stat().st_size, store._file
        store._file = Full(real)  # type: ignore[assignment]
        with pytest.raises(OutputError, match="No space left"):
            store.add(QUESTIONS[1:2], VERDICTS[1:2], WHO)
        assert store.path.stat().st_size == size + 10 and len(read_rows(store.path)[0]) == 1
        store._file = real
        store.add(QUESTIONS[2:], VERDICTS[2:], WHO)
    assert stored(tmp_path / "v.jsonl") == [VERDICTS[0], None, VERDICTS[2]]


def test_two_runs_cannot_share_a_store(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = filled(tmp_path / "v.jsonl")
    with VerdictStore(path), pytest.raises(OutputError, match="in use by another run"):
        VerdictStore(path)
    assert stored(path) == VERDICTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"first": "a"', '"first": "z"', 1), "line 1: its key is not the digest"),
        (lambda text: text.replace('"temperature": 0.0', '"temperature": 1.0', 1), "line 1: its key"),
        (lambda text: text.replace('"verdict": "second"', '"verdict": "B"'), "line 2: expected a verdict"),
        (lambda text: "{" + text, "line 1: expected JSON"),
    ],
)
def test_a_store_changed_by_hand_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = filled(tmp_path / "v.jsonl")
    path.write_text(change(path.read_text()))
    before = path.read_bytes()
    with pytest.raises((OutputError, InvalidArgument)) as caught:
        VerdictStore(path)
    assert message in str(caught.value) and path.read_bytes() == before


def test_a_closed_store_takes_a_verdict_by_opening_again(tmp_path: Path) -> None:
    with VerdictStore(filled(tmp_path / "v.jsonl")) as store:
        store.close()
        store.add([Question("p9", "a", "b")], [Verdict("tie")], WHO)
        assert len(store) == 4
