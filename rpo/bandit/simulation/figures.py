"""From a simulated table to its figure and the data behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from rpo.bandit.plots.bounds import gap_against_n
from rpo.bandit.plots.eta_heatmap import heatmap
from rpo.bandit.plots.gold_proxy import curves, fits, overoptimization
from rpo.core import checks
from rpo.core.errors import InvalidArgument

if TYPE_CHECKING:
    import pandas

KINDS = ("overoptimization", "gap_against_n", "heatmap")


def draw(table: pandas.DataFrame, kind: str) -> tuple[Figure, pandas.DataFrame]:
    """Return (figure, its data) of a table from `simulate`.

    kind: "overoptimization" (path: beta; needs ReferencePolicy among the methods and one n),
    "gap_against_n" or "heatmap" (over beta and eta, one panel an N; needs RPO). Parameters of the instance have one
    value. Rows that are not certified are left out and counted in the title; of a path the whole seed is.
    Raises InvalidArgument.
    """
    checks.one_of("kind", kind, KINDS)
    of_instance = list(table.columns[: list(table.columns).index("n")])
    varied = {name: sorted(table[name].unique().tolist()) for name in of_instance if table[name].nunique() > 1}
    if varied:
        raise InvalidArgument(
            "table",
            expected="one value of every parameter of the instance",
            got=", ".join(f"{name} = {values}" for name, values in varied.items()),
            remedy="Draw the rows of one value at a time.",
        )
    solved = table[table["status"].isin(["certified", "exact"])].copy()
    kept, left_out = solved.index, len(table) - len(solved)
    title = f"{table['seed'].nunique()} seeds" + (f", {left_out} rows not certified left out" if left_out else "")
    # A method that takes no eta repeats itself along the grid's; each row of it is kept once.
    solved["series"] = [
        f"{method}, eta = {eta:g}" if kind_of == "RPO" else str(method)
        for method, kind_of, eta in zip(solved["method"], solved["objective/name"], solved["eta"], strict=True)
    ]
    solved = solved.drop_duplicates(["series", "n", "beta", "seed"])
    if kind == "heatmap":
        rows = solved[solved["objective/name"] == "RPO"]
        if rows.empty:
            raise InvalidArgument("table", expected="rows of RPO", got="none", remedy="Add RPO to the methods.")
        return heatmap(rows, title=title), rows[["n", "beta", "eta", "seed", "gap"]]
    if kind == "gap_against_n":
        grouped = solved.groupby(["series", "n"], sort=False)["gap"].agg(["mean", "sem"]).reset_index()
        grouped = grouped.rename(columns={"sem": "standard_error"})
        # No slopes: all N share the same problems, and a fitted interval needs independent points.
        figure = gap_against_n(grouped)
        figure.suptitle(title, fontsize=10)
        return figure, grouped
    anchor = solved[solved["objective/name"] == "ReferencePolicy"].drop_duplicates("seed")
    if anchor.empty or solved["n"].nunique() != 1:
        raise InvalidArgument(
            "table",
            expected="rows of ReferencePolicy and a single n",
            got=f"{len(anchor)} such rows, n = {sorted(solved['n'].unique())}",
            remedy="Add {method: ReferencePolicy} to the methods, and one n to the grid.",
        )
    others = solved[solved["objective/name"] != "ReferencePolicy"]
    import pandas

    frame = pandas.concat([others.assign(method=others["series"]), anchor.assign(method="reference")])
    fixed = {name: solved[name].iloc[0] for name in of_instance}
    shown = [f"{name} = {value if isinstance(value, str) else f'{value:g}'}" for name, value in fixed.items()]
    title = ", ".join([*shown, f"N = {int(np.asarray(solved['n'])[0])}"])
    broken = set(table.loc[~table.index.isin(kept), "seed"])
    if broken:
        frame = frame[~frame["seed"].isin(broken)]
        title += f", {len(broken)} seed(s) not certified everywhere left out"
    return overoptimization(frame, fits(frame, form="closest", rng=0), title=title), curves(frame)
