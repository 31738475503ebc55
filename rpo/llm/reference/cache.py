"""Reference log-probabilities in one portable file, so that a sweep pays for the reference once.

An entry is the summed log-probability, in nats, of one response after one prompt, found by their
tokens: the order of rows, beta, eta, the objective and seeds do not enter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from rpo.core import checks
from rpo.core.errors import InvalidArgument, OutputError, RPOError
from rpo.core.locks import STAGE
from rpo.core.progress import track
from rpo.core.records import check_file
from rpo.llm.logps.scoring import PromptGroup, ScoringPath, check_groups
from rpo.llm.reference.sources import Reference

CACHE_VERSION = 1
FORMAT = "rpo.llm reference log-probabilities"
DIGEST_BYTES = 16
DTYPES = ("float32", "float64")

MEANING = {
    "weights": "weights of the reference (base, then adapter)",
    "dtype": "type it computes in",
    "template": "chat template and special tokens of the tokenizer",
    "code": "version of the code that computes the values",
}


class CacheMismatch(RPOError, ValueError):
    """Cached values that belong to something else; `differences` maps a field to (in the file, wanted)."""

    def __init__(self, path: Path, differences: dict[str, tuple[str, str]]) -> None:
        self.differences = differences
        parts = [f"{name} ({MEANING[name]}): {a!r} in the file, {b!r} here" for name, (a, b) in differences.items()]
        super().__init__(f"{path}: {'; '.join(parts)}. Use another file, or delete this one to compute the values.")


class CacheCorrupted(RPOError, OSError):
    """A cache file that is damaged, cut short, or no cache at all."""


class CacheMiss(RPOError, LookupError):
    """Responses that a cache holds no value for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKey:
    """What cached values depend on besides tokens."""

    weights: str
    dtype: str
    template: str
    code: str

    @classmethod
    def of(
        cls, reference: Reference, path: ScoringPath, tokenizer: Any, *, autocast_dtype: torch.dtype | None = None
    ) -> CacheKey:
        """Return the key of a reference scored by `path`; autocast_dtype: of the policy's autocast, None without."""
        computed = next(p.dtype for p in reference.model.parameters() if p.is_floating_point())
        names = [str(dtype).removeprefix("torch.") for dtype in (computed, autocast_dtype) if dtype is not None]
        return cls(
            weights=reference.fingerprint(),
            dtype=" under autocast ".join(names),
            template=template_hash(tokenizer),
            # A path that changes what its numbers mean raises its `version`.
            code=f"{CACHE_VERSION}, path {path.name} {getattr(path, 'version', 1)}",
        )


class LogpCache:
    """Values by (prompt tokens, response tokens), all computed under one `key`."""

    def __init__(self, key: CacheKey) -> None:
        self.key = key
        self.dtype: str | None = None
        self._values: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._values

    def update(self, digests: Iterable[bytes], values: Iterable[float], *, dtype: str) -> None:
        """Add finite values, in nats, of type "float32" or "float64", the same for the whole cache."""
        checks.one_of("dtype", dtype, DTYPES)
        if self.dtype not in (None, dtype):
            raise InvalidArgument("dtype", expected=self.dtype or "", got=dtype, remedy="Start a cache of that type.")
        self.dtype = dtype
        self._values.update(zip(digests, values, strict=True))

    def lookup(self, groups: Sequence[PromptGroup]) -> NDArray[Any]:
        """Return the values of G prompts' responses, (G, m), in the type they were computed in, NaN for no response.

        Raises CacheMiss if one is missing, InvalidArgument for groups no path can score.
        """
        check_groups(groups)
        digests = [response_digests(group) for group in groups]
        missing = [(g, k) for g, row in enumerate(digests) for k, digest in enumerate(row) if digest not in self]
        if missing:
            (g, k), total = missing[0], sum(map(len, digests))
            raise CacheMiss(
                f"groups: expected cached reference values of all {total} responses, got {total - len(missing)}; "
                f"the first without is response {k} of groups[{g}]. Call precompute with these groups first."
            )
        values = np.full((len(digests), max(map(len, digests))), np.nan, dtype=self.dtype)
        for row, found in zip(values, digests, strict=True):
            row[: len(found)] = [self._values[digest] for digest in found]
        return values

    def describe(self) -> dict[str, Any]:
        """Return what a run's record stores: number of entries, their type, and the key."""
        return {"kind": "cached", "entries": len(self), "values": self.dtype, **asdict(self.key)}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file whole or not at all, over an earlier one if need be. Raises OutputError.

        Safetensors: "digests" (N, 16) uint8, sorted, "logps" (N,), and the key and a checksum as metadata.
        """
        target = check_file("path", path)
        digests = sorted(self._values)
        tensors = {
            "digests": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES),
            "logps": np.array([self._values[digest] for digest in digests], dtype=self.dtype or DTYPES[0]),
        }
        metadata = {"format": FORMAT, **asdict(self.key)}
        metadata["checksum"] = _checksum(metadata, tensors)
        # A name of its own for every writer: the last one to finish wins, and the file is always one of theirs.
        stage = target.with_name(f"{STAGE}{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with stage.open("xb") as file:
                file.write(save_safetensors(tensors, metadata))
                file.flush()
                os.fsync(file.fileno())
            os.replace(stage, target)
            _sync_folder(target.parent)
        except OSError as error:
            raise OutputError(
                f"path: writing {target} failed ({error}). An earlier file is as it was; free space or choose another."
            ) from error
        finally:
            stage.unlink(missing_ok=True)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str], expected_key: CacheKey | None = None) -> LogpCache:
        """Read what `save` wrote, without pickle; expected_key: None for any.

        Raises OutputError, CacheCorrupted, CacheMismatch.
        """
        source = Path(path)
        try:
            content = source.read_bytes()
        except OSError as error:
            raise OutputError(f"path: expected a cache file, got {source} ({error}). Compute it first.") from error
        try:
            tensors = load_safetensors(content)
            metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            whole = metadata.pop("checksum") == _checksum(metadata, tensors) and metadata.pop("format") == FORMAT
            key = CacheKey(**metadata)
            digests, logps = tensors["digests"], tensors["logps"]
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CacheCorrupted(_corrupted(source, f"{type(error).__name__}: {error}")) from error
        if not whole:
            raise CacheCorrupted(_corrupted(source, "the checksum does not match"))
        wanted, found = asdict(expected_key or key), asdict(key)
        differences = {name: (found[name], wanted[name]) for name in wanted if found[name] != wanted[name]}
        if differences:
            raise CacheMismatch(source, differences)
        cache = cls(key)
        flat = digests.tobytes()
        keys = [flat[at : at + DIGEST_BYTES] for at in range(0, len(flat), DIGEST_BYTES)]
        cache.update(keys, logps.tolist(), dtype=str(logps.dtype))
        return cache


def precompute(
    reference: Reference,
    path: ScoringPath,
    groups: Iterable[PromptGroup],
    *,
    cache: LogpCache,
    file: str | os.PathLike[str] | None = None,
    batch_tokens: int = 16384,
    device: torch.device | str | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    save_every: int = 32,
    show: bool | None = None,
    say: Callable[[str], object] = len,
) -> LogpCache:
    """Score what `cache` lacks and return it, the same on every process; the work is shared among them.

    groups: the same on every process; m may differ. file: saved to by the main process every
    `save_every` batches, and when interrupted, so that a rerun continues. batch_tokens: padded
    tokens per batch; a longer single group is a batch of its own. device: of the inputs, by default
    the model's. autocast: makes the policy's autocast context. show: as in `track`. say: takes a
    line on what lies ahead.
    Raises InvalidArgument for a value that is not finite, OutputError.
    """
    batch_tokens = checks.integer("batch_tokens", batch_tokens, minimum=1)
    save_every = checks.integer("save_every", save_every, minimum=1)
    state = PartialState()
    # What the main process read from the file may not be on the others, and all must plan alike.
    cache.dtype, cache._values = broadcast_object_list([(cache.dtype, cache._values)])[0]
    groups = list(groups)
    batches = plan_batches(groups, cache, batch_tokens)
    rounds = -(-len(batches) // state.num_processes)
    place = next(reference.model.parameters()).device if device is None else torch.device(device)
    fresh: list[Scored] = []
    tokens = [sum(map(_tokens, batch)) for batch in batches]
    say(_outlook(len(groups), sum(map(len, batches)), sum(tokens), file))
    sizes = [sum(tokens[k : k + state.num_processes]) for k in range(0, len(batches), state.num_processes)]
    try:
        for turn in track(
            range(rounds),
            "Reference log-probabilities, tokens",
            show=show if state.is_main_process else False,
            sizes=sizes,
        ):
            share = turn * state.num_processes + state.process_index
            # A process without work repeats the last batch: sharded models need every process in every forward pass.
            batch = batches[min(share, len(batches) - 1)]
            inputs = path.collate([todo.group for todo in batch])
            with autocast():
                logps = reference.logps(path, {name: tensor.to(place) for name, tensor in inputs.items()})
            if share < len(batches):
                dtype = str(logps.dtype).removeprefix("torch.")
                rows = zip(batch, logps.tolist(), strict=True)
                fresh += [Scored(todo.place, todo.digests, row, dtype) for todo, row in rows]
            if (turn + 1) % save_every == 0 or turn + 1 == rounds:
                everyone, fresh = gather_object(fresh), []
                _store(everyone, cache, file)
    except BaseException:
        with contextlib.suppress(InvalidArgument):
            _store(fresh, cache, file)
        raise
    state.wait_for_everyone()
    return cache


class Todo(NamedTuple):
    """A group's place among all groups, and the responses of it still to be scored with their digests."""

    place: int
    group: PromptGroup
    digests: list[bytes]


class Scored(NamedTuple):
    """A group's place, and digests and values of its responses."""

    place: int
    digests: list[bytes]
    values: list[float]
    dtype: str


def _outlook(groups: int, lacking: int, tokens: int, file: str | os.PathLike[str] | None) -> str:
    """Return what a pass has before it, in words."""
    if not lacking:
        return f"Reference log-probabilities: {groups:,} groups, all cached" + (f" in {file}." if file else ".")
    known = f"; {groups - lacking:,} more are cached" if lacking < groups else ""
    return f"Reference log-probabilities: {lacking:,} groups, {tokens:,} tokens to score{known}."


def _tokens(todo: Todo) -> int:
    """Return the tokens to score of a group, its prompt once."""
    return len(todo.group.prompt_ids) + sum(map(len, todo.group.responses))


def plan_batches(groups: Iterable[PromptGroup], cache: LogpCache, batch_tokens: int) -> list[list[Todo]]:
    """Return batches of what `cache` lacks, each response once, alike in m and length, the longest first."""
    todos: list[Todo] = []
    planned: set[bytes] = set()
    for place, group in enumerate(groups):
        check_groups([group])
        lacking = {
            digest: each
            for digest, *each in zip(response_digests(group), group.responses, group.masks, strict=True)
            if digest not in cache and digest not in planned
        }
        planned.update(lacking)
        if lacking:
            responses, masks = zip(*lacking.values(), strict=True)
            todos.append(Todo(place, PromptGroup(group.prompt_ids, responses, masks), list(lacking)))

    def cost(todo: Todo) -> tuple[int, int]:
        return len(todo.digests), len(todo.group.prompt_ids) + max(map(len, todo.group.responses))

    batches: list[list[Todo]] = []
    # Longest first: a batch that does not fit in memory fails at once, not after hours.
    for todo in sorted(todos, key=cost, reverse=True):
        if batches:
            count, width = cost(batches[-1][0])
            if len(todo.digests) == count and (len(batches[-1]) + 1) * count * width <= batch_tokens:
                batches[-1].append(todo)
                continue
        batches.append([todo])
    return batches


def response_digests(group: PromptGroup) -> list[bytes]:
    """Return one digest of 16 bytes for each response after the group's prompt; equal tokens scored, equal digests."""
    prompt = array("I", group.prompt_ids).tobytes()  # three times as fast as through NumPy
    # The prompt's length marks where the response begins.
    stem = hashlib.blake2b(len(group.prompt_ids).to_bytes(8, "little") + prompt, digest_size=DIGEST_BYTES)
    digests = []
    for response, mask in zip(group.responses, group.scored or (None,) * len(group.responses), strict=True):
        whole = stem.copy()
        whole.update(array("I", response).tobytes())
        if mask is not None and not all(mask):
            whole.update(b"scored" + mask)
        digests.append(whole.digest())
    return digests


def template_hash(tokenizer: Any) -> str:
    """Return a hash of the tokenizer's chat template and special tokens."""
    parts = [getattr(tokenizer, "chat_template", None), getattr(tokenizer, "special_tokens_map", {})]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _store(scored: Sequence[Scored], cache: LogpCache, file: str | os.PathLike[str] | None) -> None:
    """Add scored groups to the cache, refusing values that are not finite, and save it on the main process."""
    bad = [item.place for item in scored if not np.isfinite(item.values).all()]
    for item in scored:
        if np.isfinite(item.values).all():
            cache.update(item.digests, item.values, dtype=item.dtype)
    if file is not None and scored and PartialState().is_main_process:
        cache.save(file)
    if bad:
        raise InvalidArgument(
            "groups",
            expected="finite reference log-probabilities",
            got=f"NaN or infinity in {len(bad)} of {len(scored)} groups, the first groups[{bad[0]}]",
            remedy="Use bfloat16 or float32 in place of float16, or look at these rows.",
        )


def _checksum(metadata: dict[str, str], tensors: dict[str, NDArray[Any]]) -> str:
    content = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        content.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode() + tensors[name].tobytes())
    return content.hexdigest()


def _corrupted(path: Path, why: str) -> str:
    return f"{path}: expected a cache of reference log-probabilities, got a damaged file ({why}). Delete it."


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where folders can be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
