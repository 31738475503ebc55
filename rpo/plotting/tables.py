"""Tables of means with standard errors, as Markdown or LaTeX, from any tidy frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rpo.core import checks
from rpo.core.errors import InvalidArgument

if TYPE_CHECKING:
    import pandas

FORMATS = ("markdown", "latex")
SPECIAL = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\^{}",
}


def mean_table(
    frame: pandas.DataFrame, values: str | Sequence[str], *, by: str | Sequence[str] = "method", form: str = "markdown"
) -> str:
    """Return a table with mean (standard error) of `values` over the rows of each group, in the order they come.

    frame: one row a measurement, such as a seed's. by: columns that make a group. Both have the decimals at which the
    error has two digits; a group of one row has no error. LaTeX needs booktabs. Raises InvalidArgument.
    """
    checks.one_of("form", form, FORMATS)
    keys = [by] if isinstance(by, str) else list(by)
    wanted = [values] if isinstance(values, str) else list(values)
    for name in (*keys, *wanted):
        if name not in frame:
            expected = f"columns of the frame: {', '.join(map(str, frame))}"
            raise InvalidArgument("values, by", expected=expected, got=name, remedy="Check the spelling.")
    groups = frame.groupby(keys, sort=False, dropna=False)[wanted]
    means, errors = groups.mean(), groups.sem(ddof=1)
    rows = []
    for key, mean, error in zip(means.index, means.to_numpy(), errors.to_numpy(), strict=True):
        names = key if isinstance(key, tuple) else (key,)
        cells = [_number(*pair) for pair in zip(mean, error, strict=True)]
        rows.append([*(f"{name:.6g}" if isinstance(name, float) else str(name) for name in names), *cells])
    head = [*keys, *wanted]
    return _markdown(head, rows, len(keys)) if form == "markdown" else _latex(head, rows, len(keys))


def _number(mean: float, error: float) -> str:
    if math.isnan(mean):
        return ""
    if not error > 0:
        return f"{mean:.3g}"
    decimals = max(0, -int(f"{error:.1e}".partition("e")[2]) + 1)
    return f"{mean:.{decimals}f} ({error:.{decimals}f})"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]], keys: int) -> str:
    lines = [head, ["---"] * keys + ["---:"] * (len(head) - keys), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _latex(head: Sequence[str], rows: Sequence[Sequence[str]], keys: int) -> str:
    columns = "l" * keys + "r" * (len(head) - keys)
    lines = [" & ".join("".join(SPECIAL.get(c, c) for c in cell) for cell in line) + r" \\" for line in (head, *rows)]
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}"]) + "\n"
