"""Cached reference values: the same numbers, for the right tokens and weights, in a file that is whole or refused."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rpo.core.errors import InvalidArgument, OutputError
from rpo.llm.logps.scoring import PaddedPath, PromptGroup
from rpo.llm.reference import FrozenModel
from rpo.llm.reference.cache import (
    CacheCorrupted,
    CacheKey,
    CacheMismatch,
    CacheMiss,
    LogpCache,
    plan_batches,
    precompute,
    response_digests,
)

ROOT = Path(__file__).resolve().parents[2]
PATH = PaddedPath(0)
KEY = CacheKey(weights="w", dtype="float32", template="t", code="1")


def groups(count: int = 7, *, m: int = 2, seed: int = 0) -> list[PromptGroup]:
    """Return prompts and responses of 1 to 9 random tokens."""
    rng = np.random.default_rng(seed)

    def tokens() -> list[int]:
        return rng.integers(6, 64, size=rng.integers(1, 10)).tolist()

    return [PromptGroup(tokens(), [tokens() for _ in range(m)]) for _ in range(count)]


def naive(model: Any, rows: Sequence[PromptGroup]) -> np.ndarray:
    """Return (G, m) log-probabilities, one sequence at a time, without padding or mask."""
    values = []
    with torch.no_grad():
        for prompt, responses, _ in rows:
            for response in responses:
                logps = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
                values.append(sum(float(logps[len(prompt) - 1 + k, token]) for k, token in enumerate(response)))
    return np.array(values).reshape(len(rows), -1)


class Counting(PaddedPath):
    """A path that counts the responses it scores, and breaks after `limit` batches."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__(0)
        self.scored, self.batches, self.limit = 0, 0, limit

    def logps(self, model: Any, inputs: Any) -> torch.Tensor:
        if self.batches == self.limit:
            raise KeyboardInterrupt
        self.batches += 1
        self.scored += inputs["lengths"].numel()
        return super().logps(model, inputs)


@pytest.fixture
def reference(tiny_model: Any) -> FrozenModel:
    return FrozenModel(tiny_model("llama"))


def generators() -> tuple[Any, ...]:
    """Return the states of the three global generators."""
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def filled(rows: Sequence[PromptGroup], *, shift: float = 0.0, dtype: str = "float32") -> LogpCache:
    """Return a cache of invented values: -1/3, -2/3, ... plus `shift`, rounded to `dtype`."""
    cache = LogpCache(KEY)
    digests = [digest for group in rows for digest in response_digests(group)]
    values = (-np.arange(1, len(digests) + 1) / 3 + shift).astype(dtype)
    cache.update(digests, values.tolist(), dtype=dtype)
    return cache


# --- the numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_cached_online_and_naive_values_agree(tiny_model: Any, tmp_path: Path, dtype: str, tolerance: float) -> None:
    """Through the file too, which keeps the type; another model's values are far away (the control)."""
    reference, rows = FrozenModel(tiny_model("llama", dtype=getattr(torch, dtype))), groups()
    key = CacheKey.of(reference, PATH, None)
    cache = precompute(reference, PATH, rows, cache=LogpCache(key), file=tmp_path / "c.safetensors", batch_tokens=40)
    found = LogpCache.load(tmp_path / "c.safetensors", key).lookup(rows)
    assert found.dtype == dtype and np.array_equal(found, cache.lookup(rows))
    online = reference.logps(PATH, PATH.collate(rows)).numpy()
    np.testing.assert_allclose(found, online, rtol=tolerance)
    np.testing.assert_allclose(found, naive(reference.model, rows), rtol=tolerance)
    assert np.abs(found - naive(tiny_model("llama", seed=1), rows)).min() > 1e-2


def test_a_value_is_found_by_its_tokens_alone(reference: FrozenModel) -> None:
    """Rows in another order, some of them, responses swapped, other wrappings: each has the value it had."""
    rows = groups()
    cache = precompute(reference, PATH, rows, cache=LogpCache(KEY))
    values = cache.lookup(rows)
    order = [5, 0, 3]
    assert np.array_equal(cache.lookup([rows[k] for k in order]), values[order])
    swapped = [PromptGroup(tuple(p), [np.array(r) for r in reversed(responses)]) for p, responses, _ in rows]
    assert np.array_equal(cache.lookup(swapped), values[:, ::-1])
    assert not np.array_equal(values, values[:, ::-1])


def test_where_the_prompt_ends_is_part_of_the_key() -> None:
    """The same three tokens, cut in two ways, are two responses; also beside a prompt of another length."""
    (one,), (two,) = response_digests(PromptGroup([7, 8], [[9]])), response_digests(PromptGroup([7], [[8, 9]]))
    assert one != two and one == response_digests(PromptGroup((7, 8), [(1,), (9,)]))[1]
    assert len(one) == 16


def test_only_what_is_missing_is_scored_and_each_response_once(reference: FrozenModel) -> None:
    """14 responses and a row twice, 2 of them known; then one known row, one with a third response, one new."""
    rows, path = groups(), Counting()
    cache = precompute(reference, PATH, rows[:1], cache=LogpCache(KEY))
    assert len(precompute(reference, path, [*rows, rows[5]], cache=cache)) == 14 and path.scored == 12
    more = [*rows, rows[2], PromptGroup(rows[3].prompt_ids, [*rows[3].responses, [11, 12]]), *groups(1, m=3, seed=9)]
    precompute(reference, path, more, cache=cache)
    assert path.scored == 12 + 1 + 3
    np.testing.assert_allclose(cache.lookup(more[-2:]), naive(reference.model, more[-2:]), rtol=1e-5)
    precompute(reference, path, more, cache=cache)
    assert path.scored == 16


def test_batches_hold_no_more_padded_tokens_than_asked_for_longest_first() -> None:
    rows = [*groups(40), *groups(10, m=3, seed=1)]
    batches = plan_batches(rows, LogpCache(KEY), 60)
    sizes = []
    for batch in batches:
        widest = max(len(todo.group.prompt_ids) + max(map(len, todo.group.responses)) for todo in batch)
        assert len({len(todo.digests) for todo in batch}) == 1
        sizes.append((len(batch[0].digests), widest, len(batch)))
        assert len(batch) == 1 or len(batch) * len(batch[0].digests) * widest <= 60
    assert sum(size[2] for size in sizes) == 50 and [size[:2] for size in sizes] == sorted(
        (size[:2] for size in sizes), reverse=True
    )
    assert len(batches) < 40  # the control: they are batches indeed


def test_the_policy_s_autocast_and_rng(reference: FrozenModel) -> None:
    """Under autocast, the numbers are those of autocast, bit for bit where the batch is; no generator moves."""

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16)

    rows = [PromptGroup([7, 8], [[9, 10, 1], [11, 12, 1]])]
    before = generators()
    cache = precompute(reference, PATH, rows, cache=LogpCache(KEY), autocast=autocast)
    assert generators() == before
    torch.rand(1)
    assert generators() != before  # the control
    with autocast():
        online = reference.logps(PATH, PATH.collate(rows)).numpy()
    assert np.array_equal(cache.lookup(rows), online)
    assert not np.array_equal(online, reference.logps(PATH, PATH.collate(rows)).numpy())


def test_a_response_without_a_value_is_named() -> None:
    rows = groups()
    cache = filled(rows[:5])
    with pytest.raises(CacheMiss, match=r"of all 14 responses, got 10; the first without is response 0 of groups\[5\]"):
        cache.lookup(rows)
    assert isinstance(CacheMiss("a"), LookupError) and str(CacheMiss("a")) == "a"


def test_values_that_are_not_finite_are_refused_and_the_others_kept(reference: FrozenModel, tmp_path: Path) -> None:
    """A model that overflows on token 30: the row is named, and the other six are in the file."""
    rows = [PromptGroup([7], [[8 + k], [18 + k]]) for k in range(7)]
    rows[4] = PromptGroup([30], [[8], [9]])
    with torch.no_grad():
        reference.model.model.embed_tokens.weight[30] = float("nan")
    with pytest.raises(InvalidArgument, match=r"NaN or infinity in 1 of 7 groups, the first groups\[4\]"):
        precompute(reference, PATH, rows, cache=LogpCache(KEY), file=tmp_path / "c")
    assert len(LogpCache.load(tmp_path / "c", KEY)) == 12


def test_one_cache_holds_one_type() -> None:
    cache = filled(groups(1))
    with pytest.raises(InvalidArgument, match="dtype: expected float32, got float64"):
        cache.update([b"x" * 16], [-1.0], dtype="float64")


# --- interrupted and shared ---------------------------------------------------------------------


def test_interrupted_work_is_continued(reference: FrozenModel, tmp_path: Path) -> None:
    """Stopped after 3 of 7 one-row batches, nothing of the three is lost and the rerun does four."""
    rows, file = groups(), tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        precompute(reference, Counting(limit=3), rows, cache=LogpCache(KEY), file=file, batch_tokens=1, save_every=2)
    cache, rest = LogpCache.load(file, KEY), Counting()
    assert len(cache) == 6
    precompute(reference, rest, rows, cache=cache, file=file, batch_tokens=1)
    assert rest.batches == 4 and len(LogpCache.load(file, KEY)) == 14


WORKER = """
import sys
sys.path[:0] = ["tests/llm"]
import torch
from test_cache import KEY, PATH, groups
from models_for_tests import tiny_model
from rpo.llm.reference.cache import LogpCache, precompute
from rpo.llm.reference import FrozenModel
torch.set_num_threads(1)
file, rank = sys.argv[1], int(sys.argv[2])
rows = groups(9)
# Only the main process knows the first two rows: the others must not plan by themselves.
cache = LogpCache.load(file, KEY) if rank == 0 else LogpCache(KEY)
precompute(FrozenModel(tiny_model("llama")), PATH, rows, cache=cache, file=file, batch_tokens=1, save_every=2)
assert len(cache) == 18, len(cache)
print(cache.lookup(rows).tolist())
torch.distributed.destroy_process_group()
"""


def test_two_processes_share_the_work_and_end_with_the_same_values(reference: FrozenModel, tmp_path: Path) -> None:
    """Seven one-row batches for two processes (one repeats a batch), the main one having two rows from a file."""
    rows, file = groups(9), tmp_path / "c"
    precompute(reference, PATH, rows[:2], cache=LogpCache(KEY), file=file, batch_tokens=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(file), str(rank)],
            cwd=ROOT,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    alone = precompute(reference, PATH, rows, cache=LogpCache(KEY), batch_tokens=1).lookup(rows)
    assert outputs[0][0] == outputs[1][0] == f"{alone.tolist()}\n"
    assert np.array_equal(LogpCache.load(file, KEY).lookup(rows), alone)


# --- the file -----------------------------------------------------------------------------------


def header(content: bytes) -> dict[str, Any]:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_file_keeps_every_bit_and_does_not_depend_on_the_order_of_rows(tmp_path: Path, dtype: str) -> None:
    rows = groups()
    cache = filled(rows, dtype=dtype)
    first = cache.save(tmp_path / "new" / "folder" / "a").read_bytes()
    loaded = LogpCache.load(tmp_path / "new" / "folder" / "a", KEY)
    assert np.array_equal(loaded.lookup(rows), cache.lookup(rows)) and loaded.dtype == dtype
    shuffled = LogpCache(KEY)
    for group in reversed(rows):
        shuffled.update(response_digests(group), cache.lookup([group])[0].tolist(), dtype=dtype)
    assert header(shuffled.save(tmp_path / "b").read_bytes()) == header(first)  # and so the checksum
    assert header(first)["__metadata__"]["weights"] == "w"  # to be read by eye
    filled(rows, dtype=dtype, shift=1e-6).save(tmp_path / "b")
    assert header((tmp_path / "b").read_bytes()) != header(first)  # the control


@pytest.mark.parametrize("field", ["weights", "dtype", "template", "code"])
def test_a_mismatch_says_what_differs(tmp_path: Path, field: str) -> None:
    filled(groups()).save(tmp_path / "c")
    with pytest.raises(CacheMismatch) as caught:
        LogpCache.load(tmp_path / "c", replace(KEY, **{field: "another"}))
    assert caught.value.differences == {field: (getattr(KEY, field), "another")}
    assert f"{getattr(KEY, field)!r} in the file, 'another' here" in str(caught.value)
    assert all((f"{name} (" in str(caught.value)) == (name == field) for name in ("weights", "dtype", "template"))


def test_the_key_tells_apart_what_changes_the_values(tiny_model: Any, tiny_tokenizer: Any) -> None:
    class Newer(PaddedPath):
        version = 2

    class Other(PaddedPath):
        name = "other"

    tokenizer = tiny_tokenizer()
    key = CacheKey.of(FrozenModel(tiny_model("llama")), PATH, tokenizer)
    assert CacheKey.of(FrozenModel(tiny_model("llama")), PATH, tiny_tokenizer()) == key
    half = CacheKey.of(FrozenModel(tiny_model("llama")), PATH, tokenizer, autocast_dtype=torch.bfloat16)
    assert half.dtype == "float32 under autocast bfloat16"
    changed = {
        "weights": CacheKey.of(FrozenModel(tiny_model("llama", seed=1)), PATH, tokenizer),
        "dtype": half,
        "template": CacheKey.of(FrozenModel(tiny_model("llama")), PATH, tiny_tokenizer(chat_template="{{ 1 }}")),
    }
    for field, other in changed.items():
        assert replace(other, **{field: getattr(key, field)}) == key != other, field
    codes = {CacheKey.of(FrozenModel(tiny_model("llama")), path, tokenizer).code for path in (PATH, Newer(0), Other(0))}
    assert len(codes) == 3


def test_every_flipped_byte_and_every_cut_is_caught(tmp_path: Path) -> None:
    """Three flips of each of the file's bytes: refused, or (padding of the header) nothing has changed."""
    rows = groups(2)
    cache = filled(rows)
    content = cache.save(tmp_path / "c").read_bytes()
    damaged, refused = tmp_path / "damaged", 0
    for place in range(len(content)):
        for bit in (1, 16, 128):
            damaged.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            try:
                assert np.array_equal(LogpCache.load(damaged, KEY).lookup(rows), cache.lookup(rows))
            except CacheCorrupted:
                refused += 1
    assert refused >= 3 * len(content) - 3 * 8
    for length in (*range(0, len(content), 7), len(content) - 1):
        damaged.write_bytes(content[:length])
        with pytest.raises(CacheCorrupted, match="got a damaged file"):
            LogpCache.load(damaged, KEY)
    with pytest.raises(OutputError, match="expected a cache file"):
        LogpCache.load(tmp_path / "absent", KEY)


def test_a_pickle_or_another_safetensors_file_is_no_cache(tmp_path: Path) -> None:
    torch.save({"logps": torch.zeros(2)}, tmp_path / "pickle")
    from safetensors.torch import save_file

    save_file({"logps": torch.zeros(2)}, tmp_path / "other", metadata={"format": "pt"})
    for name in ("pickle", "other"):
        with pytest.raises(CacheCorrupted):
            LogpCache.load(tmp_path / name, KEY)


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = groups(2), groups(4, seed=1)
    filled(old).save(tmp_path / "c")

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fails)
            with pytest.raises(OutputError, match="No space left on device.*An earlier file is as it was"):
                filled(new).save(tmp_path / "c")
        assert len(LogpCache.load(tmp_path / "c", KEY)) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


KILLED = """
import os, signal, sys
sys.path[:0] = ["tests/llm"]
from test_cache import filled, groups
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
filled(groups(4, seed=1)).save(sys.argv[1])
"""


def test_killed_between_writing_and_renaming_the_earlier_file_is_whole(tmp_path: Path) -> None:
    filled(groups(2)).save(tmp_path / "c")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "c")], cwd=ROOT, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(LogpCache.load(tmp_path / "c", KEY)) == 4
    assert len(list(tmp_path.iterdir())) == 2  # the control: the new file had been written, and was not renamed


def test_of_two_writers_one_whole_file_stays_and_readers_never_see_a_part(tmp_path: Path) -> None:
    rows = groups(50)
    caches = [filled(rows), filled(rows, shift=-1000.0)]
    expected = [cache.lookup(rows).tolist() for cache in caches]
    caches[0].save(tmp_path / "c")
    failures: list[BaseException] = []

    def write(cache: LogpCache) -> None:
        try:
            for _ in range(30):
                cache.save(tmp_path / "c")
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(cache,)) for cache in caches]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(expected.index(LogpCache.load(tmp_path / "c", KEY).lookup(rows).tolist()))
    for writer in writers:
        writer.join()
    assert not failures and seen == {0, 1} and [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_mask_is_part_of_what_a_value_belongs_to() -> None:
    """Equal tokens with other tokens scored are another entry; a mask of ones is none."""
    plain, all_, some = (PromptGroup([6, 7], [[8, 9]], scored) for scored in ((), (b"\1\1",), (b"\1\0",)))
    assert response_digests(plain) == response_digests(all_) != response_digests(some)
    ((todo,),) = plan_batches([some], LogpCache(KEY), 100)
    assert todo.group.masks == [b"\1\0"]
