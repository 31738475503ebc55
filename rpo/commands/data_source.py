"""Preference data as command lines and recipes name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rpo.core.errors import InvalidArgument


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Preference data.

    Args:
        source: JSONL, JSON, CSV or Parquet file, or a hub name.
        split: of a hub data set.
        name: its configuration, if it has several.
        binarize: make pairs of scored completions: the best against the worst, or a random lower one; or all.
        ultrafeedback: rows are UltraFeedback's or CodeUltraFeedback's: score each response by the mean of its ratings,
            or by the overall score (wrong in UltraFeedback before its revision 40b4365).
        weight: in a mixture; rows are drawn in proportion to it.
        streaming: read rows as they are needed; nothing is known of the whole then.
    """

    source: str
    split: str = "train"
    name: str | None = None
    binarize: Literal["best_vs_worst", "best_vs_random", "all_pairs"] | None = None
    ultrafeedback: Literal["aspects", "overall_score"] | None = None
    weight: float = 1.0
    streaming: bool = False


def load(given: str | DataSource | list[DataSource], seed: int, *, on_refused: str = "error") -> Any:
    """Return what `rpo.llm.fit` takes; seed: of mixtures and of random binarization. Raises InvalidArgument.

    A plain name stays one, since records quote it. on_refused: of rows that are to be binarized.
    """
    if isinstance(given, str):
        return given
    if isinstance(given, DataSource):
        return _load(given, seed, on_refused)
    from rpo.llm.data import mix

    if not given:
        raise InvalidArgument("dataset", expected="at least one source", got="none", remedy="Name one.")
    mixture = mix([(_load(one, seed, on_refused), one.weight) for one in given], rng=seed)
    return mixture if any(one.streaming for one in given) else list(mixture)


def _load(one: DataSource, seed: int, on_refused: str) -> Any:
    from rpo.llm.data import Derived, binarize, load_preferences, ultrafeedback

    rows = load_preferences(one.source, split=one.split, name=one.name, streaming=one.streaming)
    if one.ultrafeedback is not None:
        rows = ultrafeedback(rows, score=one.ultrafeedback, on_refused=on_refused)
    if one.binarize is None:
        if one.streaming or not isinstance(rows, Derived):
            return rows
        kept = list(rows)
        print(f"{one.source}: {rows.report.rows} rows gave {rows.report.made} lists, refused {rows.report.refused}")
        return kept
    pairs = binarize(rows, strategy=one.binarize, rng=seed, on_refused=on_refused)
    if one.streaming:
        return pairs
    kept = list(pairs)
    report = pairs.report
    print(
        f"{one.source}: {report.rows} scored rows gave {report.pairs} pairs; dropped {report.ties} ties and "
        f"{report.too_few} with fewer than two scores ({report.unscored} completions had none)"
        + (f" and {report.tied_pairs} pairs of equal scores" if report.tied_pairs else "")
        + (f", refused {report.refused} that are not scored" if report.refused else "")
    )
    return kept
