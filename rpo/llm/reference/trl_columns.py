"""Reference values to and from the columns in which TRL keeps them: ref_chosen_logps and ref_rejected_logps.

Both are summed log-probabilities of a response in nats, so that they are the same numbers where the same tokens are
scored. N rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.llm.data import prepare_pairs
from rpo.llm.logps.packing import choose_path
from rpo.llm.logps.scoring import PromptGroup, pad_token
from rpo.llm.reference.cache import CacheKey, LogpCache, response_digests
from rpo.llm.reference.scoring_pass import compared
from rpo.llm.reference.sources import FrozenModel

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


def to_trl_columns(rows: Iterable[Mapping[str, Any]], tokenizer: Any, file: str | Path, **data: Any) -> list[Any]:
    """Return the rows with TRL's two columns, read from a cache of reference values (`ref_logps_cache`).

    data: what the run that made it passed on to `prepare_pairs` (max_length ...). Raises CacheMiss where a response is
    not in the cache, InvalidArgument, OutputError.
    """
    rows, groups = _groups(rows, tokenizer, data)
    values = LogpCache.load(file).lookup(groups)
    return [
        {**row, **dict(zip(COLUMNS, map(float, pair), strict=True))} for row, pair in zip(rows, values, strict=True)
    ]


def from_trl_columns(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    reference: Any,
    file: str | Path,
    *,
    path: str = "auto",
    autocast_dtype: torch.dtype | None = None,
    check: int = 8,
    tolerance: float = 1e-3,
    **data: Any,
) -> Path:
    """Write the values in TRL's two columns as a cache file, which a run takes as `ref_logps_cache`.

    reference: the model they are of. path, autocast_dtype: of the run, bfloat16 with bf16=True. data: what the run
    passes on to `prepare_pairs`. The first `check` rows are scored here too, and a difference above `tolerance` a token
    is refused: other weights, or other tokens, as where a template writes on after the end of a turn, which TRL scores.
    Raises InvalidArgument, OutputError.
    """
    count = checks.integer("check", check, minimum=1)
    limit = checks.positive("tolerance", tolerance)
    rows, groups = _groups(rows, tokenizer, data)
    absent = [k for k, row in enumerate(rows) if not all(isinstance(row.get(name), int | float) for name in COLUMNS)]
    if absent:
        remedy = "Let TRL write them, by precompute_ref_log_probs."
        raise InvalidArgument(f"row {absent[0]}", expected=" and ".join(COLUMNS), got="a row without", remedy=remedy)
    values = np.array([[row[name] for name in COLUMNS] for row in rows], dtype=np.float32)
    frozen, scoring = FrozenModel(reference), choose_path(reference, pad_token(tokenizer), path)
    device = next(reference.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in scoring.collate(groups[:count]).items()}
    with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
        known = frozen.logps(scoring, inputs).double().cpu().numpy()
    lengths = np.array([[len(response) for response in group.responses] for group in groups[:count]])
    apart = np.abs(known - values[:count]) / lengths
    if not apart.max() <= limit:
        row, side = np.unravel_index(int(apart.argmax()), apart.shape)
        raise InvalidArgument(
            f"{COLUMNS[int(side)]} of row {int(row)}",
            expected=f"{known[row, side]:.6g}, as the reference says of the tokens scored here",
            got=f"{values[row, side]:.6g}",
            remedy="Pass the same model, tokenizer and lengths; or score the data here, which takes one pass.",
        )
    cache = LogpCache(CacheKey.of(frozen, scoring, tokenizer, autocast_dtype=autocast_dtype))
    for group, pair in zip(groups, values.tolist(), strict=True):
        cache.update(response_digests(group), pair, dtype="float32")
    return cache.save(file)


def _groups(rows: Any, tokenizer: Any, data: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], list[PromptGroup]]:
    """Return the rows as a list, and each as it is tokenised. Raises InvalidArgument where a row makes no pair."""
    listed = list(rows)
    pairs = prepare_pairs(listed, tokenizer, progress=False, **data)
    if [pair.row for pair in pairs] != list(range(len(listed))):
        remedy = "rpo data check says which rows are dropped; take them out."
        raise InvalidArgument("rows", expected=f"a pair of each of {len(listed)}", got=len(pairs), remedy=remedy)
    return listed, [compared(pair, False) for pair in pairs]
