"""The stand-in is a model that rpo.fit trains, and the exercises of notebook 07 are counted out."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import rpo
from rpo.teaching import exercises
from rpo.teaching.lessons import real_model

ROOT = Path(__file__).resolve().parents[2]


def row(question: str, good: str, bad: str) -> dict:
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": good}],
        "rejected": [{"role": "assistant", "content": bad}],
    }


ROWS = [row(f"How was day {k}?", f"Day {k} was a lovely one.", f"Day {k} was dull, as ever.") for k in range(8)]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_model.stand_in(tmp_path_factory.mktemp("model") / "stand-in", ROWS)


def test_a_folder_with_a_model_is_taken_and_another_is_not(
    stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert real_model.find_or_make(stand_in, ROWS) == stand_in
    assert capsys.readouterr().out == f"The model in {stand_in}.\n"
    made = real_model.find_or_make(tmp_path / "nothing", ROWS)
    assert "stands in. What it says means nothing." in capsys.readouterr().out
    assert (made / "model.safetensors").read_bytes() == (stand_in / "model.safetensors").read_bytes()  # same seed


def test_the_stand_in_reads_and_writes_the_texts(stand_in: Path) -> None:
    tokenizer = rpo.llm.load_tokenizer(stand_in)
    text = "Day 3 was a lovely one."
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    prepared = rpo.llm.prepare_pairs(ROWS, tokenizer)
    check = rpo.llm.check_pairs(prepared, tokenizer)
    assert check.pairs == 8 and check.missing_ends == 0 and check.unknown_tokens == 0


def test_the_notebooks_path_from_pairs_to_a_saved_model(
    stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with real_model.quietly():
        run = rpo.fit(
            stand_in,
            ROWS[:4],
            rpo.RPO(beta=0.1, eta=0.05),
            eval_dataset=ROWS[4:],
            output_dir=tmp_path / "out",
            num_train_epochs=1,
            per_device_train_batch_size=2,
            logging_steps=1,
            learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
    assert capsys.readouterr().out == ""
    assert run.history[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-6)
    frame = real_model.held_out([run])
    last = run.history[-1]
    assert frame.loc["RPO", "fell"] == last["eval_displacement/share"]
    assert frame.loc["RPO", "preference"] == last["eval_loss/preference"]
    tokenizer, again = rpo.llm.load_tokenizer(stand_in), rpo.llm.load_model(tmp_path / "out")
    said = real_model.answers(
        {"trained": run.artifact, "loaded": again}, tokenizer, ["How was day 2?"], max_new_tokens=8
    )
    question, trained, loaded = said.split("\n")
    assert question == "> How was day 2?"
    assert trained.removeprefix("  trained: ") == loaded.removeprefix("  loaded: ")


def test_a_workspace_is_new_and_empty() -> None:
    first, second = real_model.workspace(), real_model.workspace()
    assert first != second and not any(first.iterdir())


def test_the_exercises_counted_out() -> None:
    book = exercises("07")
    per_device, accumulation, processes, pairs, passes = 8, 4, 2, 270, 3
    updates, seen = 0, 0
    for _ in range(passes):
        left = pairs
        while left > 0:  # one update: every process takes so many micro-batches, as long as there are pairs
            taken = 0
            for _ in range(accumulation):
                micro = min(per_device * processes, left)
                left, taken = left - micro, taken + micro
            updates, seen = updates + 1, max(seen, taken)
    assert book["07.1"].solve() == seen
    assert book["07.2"].solve() == updates
    # The preference loss where policy and reference agree, by the objective itself.
    logps = np.array([-3.0, -5.0])
    _, terms = rpo.DPO(beta=0.1)(logps, logps - 1.0, logps, logps - 1.0)
    assert book["07.3"].accepts(terms.preference)
    # The SFT terms of both trainers on one batch, from made-up token log-probabilities.
    rng = np.random.default_rng(0)
    tokens = [-rng.exponential(size=length) for length in (20, 40, 60)]
    ours = 0.05 * 0.1 * np.mean([-t.sum() for t in tokens])
    theirs = -np.concatenate(tokens).mean()
    assert book["07.4"].accepts(ours / theirs)
    even = [-rng.exponential(size=400) for _ in range(3)]
    assert book["07.5"].accepts(0.2 * -np.concatenate(even).mean() / (0.1 * np.mean([-t.sum() for t in even])))


def test_the_committed_notebook_shows_the_real_model() -> None:
    """The cells that depend on the model are marked, so that a run with the stand-in is held to the others only."""
    path = ROOT / "notebooks" / "07_real_model.ipynb"
    cells = json.loads(path.read_text())["cells"]
    marked = ["".join(cell["source"]) for cell in cells if "varies" in cell["metadata"].get("tags", [])]
    assert any("find_or_make" in source for source in marked) and any("answers(" in source for source in marked)
    assert re.search(r"134\.5 million parameters", path.read_text())
