"""A stream gives what preparation gives, whatever the number of data-loader workers."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers_for_tests import characters
from torch.utils.data import DataLoader

from rpo.core.errors import InvalidArgument
from rpo.llm.data import RefusedRow, binarize, load_preferences, mix, prepare_pairs, stream_pairs

ROWS = [{"prompt": "p", "chosen": "a" * (k + 1), "rejected": "b"} for k in range(7)]

# torch warns of workers beyond the machine's cores, and tokenizers of threads after a fork
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(autouse=True)
def no_tokenizer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def loaded(stream: Any, workers: int) -> list[Any]:
    return list(DataLoader(stream, batch_size=None, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_pairs_as_prepared(workers: int) -> None:
    tokenizer = characters()
    expected = list(prepare_pairs(ROWS, tokenizer))
    stream = stream_pairs(ROWS, tokenizer)
    assert sorted(loaded(stream, workers), key=lambda pair: pair.row) == expected
    assert list(stream) == list(stream) == expected  # every epoch
    assert stream.report == prepare_pairs(ROWS, tokenizer).report


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_streamed_dataset_splits_itself_and_loses_nothing(workers: int) -> None:
    """Three shards over two workers. Taking every second row of a worker's own share would lose half."""
    datasets = pytest.importorskip("datasets")
    source = load_preferences(datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=3))
    for rows in (source, binarize(datasets.Dataset.from_list(scored()).to_iterable_dataset(num_shards=3))):
        pairs = loaded(stream_pairs(rows, characters()), workers)
        assert sorted(len(pair.chosen_ids) for pair in pairs) == [2, 3, 4, 5, 6, 7, 8]


def scored() -> list[dict[str, Any]]:
    return [{"prompt": "p", "responses": ["b", row["chosen"]], "scores": [1, 2]} for row in ROWS]


def test_mixtures_stream_unless_their_sources_split_themselves() -> None:
    datasets = pytest.importorskip("datasets")
    tokenizer = characters()
    mixture = mix([(ROWS, 1.0), (ROWS[:2], 1.0)], 0)
    expected = [len(pair.chosen_ids) for pair in prepare_pairs(mixture, tokenizer)]
    assert sorted(len(pair.chosen_ids) for pair in loaded(stream_pairs(mixture, tokenizer), 2)) == sorted(expected)
    streamed = mix([(ROWS, 1.0), (datasets.Dataset.from_list(ROWS).to_iterable_dataset(), 1.0)], 0)
    assert len(loaded(stream_pairs(streamed, tokenizer), 1)) >= 14
    with pytest.raises(RuntimeError, match="InvalidArgument: dataloader_num_workers: expected 0 or 1"):
        loaded(stream_pairs(streamed, tokenizer), 2)


def test_errors_arise_where_the_row_is_read() -> None:
    with pytest.raises(InvalidArgument, match="^rows: .*got a generator"):
        stream_pairs(iter(ROWS), characters())
    stream = stream_pairs([*ROWS, {"prompt": "p"}], characters())
    with pytest.raises(RefusedRow, match="^row 7, chosen"):
        loaded(stream, 0)
    with pytest.raises(RuntimeError, match="RefusedRow: row 7, chosen"):  # torch keeps a worker's words, not its type
        loaded(stream, 2)
    with pytest.raises(InvalidArgument, match="^rows: expected at least one usable row, got 1 rows and no pair"):
        list(stream_pairs([{"prompt": "p"}], characters(), on_refused="drop"))
    with pytest.raises(InvalidArgument, match="^max_length: "):
        stream_pairs(ROWS, characters(), max_length=1)


def test_the_epoch_reaches_the_source() -> None:
    class Shuffled(list[Any]):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    rows = Shuffled(ROWS)
    stream = stream_pairs(rows, characters())
    stream.set_epoch(3)
    assert rows.epoch == 3
    stream_pairs(ROWS, characters()).set_epoch(3)  # a list has none
