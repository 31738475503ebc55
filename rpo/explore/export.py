"""The explorer as one file: every state of a grid computed beforehand, under the same controls; no server, no install.

The states of a draw, as the page's HTML, are deflated together (neighbours differ in few digits: about 400 bytes a
state) and stand in the file as base64. The browser inflates a draw when a slider reaches it.
"""

from __future__ import annotations

import base64
import html
import itertools
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpo.core.errors import InvalidArgument, OutputError
from rpo.core.progress import track
from rpo.core.records import check_file, environment, write_file
from rpo.explore.page import SHOWN_VERSIONS, controls, results, said
from rpo.explore.settings import PESSIMISTIC, REGISTERED, RULES, Settings, shortest
from rpo.explore.view import state

HERE = Path(__file__).parent
TIME = "all 72 of the class's grid take 90 s of an idle processor, 163 s of a loaded one"
DRAW = ("arms", "skew", "noise", "n", "seed", "reference")
# For a class: who falls and who does not, with how much data, coverage and noise, on three draws.
GRID: Mapping[str, Sequence[Any]] = {
    "method": ("rpo", "dpo", "ipo", "chipo", "simpo", "exo", "greedy", "base"),
    "skew": (0.0, 2.0),
    "noise": (0.0, 0.2, 0.4),
    "n": (10, 30, 100, 1000),
    "beta": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    "eta": (0.0, 0.01, 0.03, 0.1, 0.3, 1.0),
    "seed": (1, 2, 143),
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A written page: its path, bytes, and how many states have which evidence."""

    path: Path
    size: int
    evidence: Mapping[str, int]

    @property
    def states(self) -> int:
        """How many states it holds."""
        return sum(self.evidence.values())


def export_page(path: str | os.PathLike[str], grid: Mapping[str, Sequence[Any]] = GRID) -> Exported:
    """Compute every state of a grid and write the page that shows them, over an earlier one.

    grid: values of settings, rising where they are numbers, the defaults among them; settings that are not named have
    their defaults. Raises InvalidArgument, OutputError.
    """
    target = check_file("export", path)
    if not target.parent.is_dir():
        raise OutputError(f"export: expected a path in a folder that exists, got {target}. Make {target.parent} first.")
    axes = _axes(grid)
    found = environment()
    versions = {name: found[name] for name in SHOWN_VERSIONS if name in found}
    draws = [dict(zip(DRAW, values, strict=True)) for values in itertools.product(*(axes[name] for name in DRAW))]
    evidence: Counter[str] = Counter()
    packed = []
    if not sys.stderr.isatty():  # where no bar is drawn
        print(f"Computing {len(draws)} draws; {TIME}.", file=sys.stderr, flush=True)
    for draw in track(draws, "draws"):
        pages = {}
        for settings in _states(axes, draw):
            view = state(settings)
            pages[_key(settings)] = [results(view, (), versions), said(view)]
            evidence[view.status] += 1
        deflated = zlib.compress(json.dumps(pages).encode(), 9)
        packed.append(
            f'<script type="text/plain" id="{_draw_key(draw)}">{base64.b64encode(deflated).decode()}</script>'
        )
    write_file(target, _page(axes, packed, evidence))
    return Exported(path=target, size=target.stat().st_size, evidence=evidence)


def _axes(grid: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the values of every setting, checked."""
    start = Settings()
    axes = {name: (getattr(start, name),) for name in RULES}
    for name, values in grid.items():
        if name not in RULES or name == "along":
            known = ", ".join(sorted(set(RULES) - {"along"}))
            raise InvalidArgument("grid", expected=f"settings among {known}", got=name, remedy="Leave it out.")
        kept = tuple(RULES[name](f"grid: {name}", value) for value in values)
        ordered = kept if isinstance(getattr(start, name), str) else tuple(sorted(kept))
        if getattr(start, name) not in kept or len(set(kept)) < len(kept) or ordered != kept:
            raise InvalidArgument(
                f"grid: {name}",
                expected=f"different values, rising, with the default {getattr(start, name)!r} among them",
                got=kept,
                remedy="The page opens on the defaults.",
            )
        axes[name] = kept
    return axes


def _uses(method: str) -> tuple[str, ...]:
    """Return which of the method's numbers it has: its pages differ in no other."""
    return ("beta",) * (method in REGISTERED) + ("eta",) * (method in PESSIMISTIC)


def _states(axes: Mapping[str, Sequence[Any]], draw: Mapping[str, Any]) -> Iterator[Settings]:
    for method in axes["method"]:
        # beta moves fastest: its pages share a curve.
        names = _uses(method)[::-1]
        for values in itertools.product(*(axes[name] for name in names)):
            yield Settings(method=method, **draw, **dict(zip(names, values, strict=True)))


def _key(settings: Settings) -> str:
    return " ".join([settings.method, *(shortest(getattr(settings, name)) for name in _uses(settings.method))])


def _draw_key(draw: Mapping[str, Any]) -> str:
    return " ".join(shortest(draw[name]) for name in DRAW)


def _page(axes: Mapping[str, Sequence[Any]], packed: Sequence[str], evidence: Mapping[str, int]) -> str:
    words = ", ".join(f"{count} {word}" for word, count in evidence.items())
    fixed = Settings()
    note = (
        f"This file holds {sum(evidence.values())} states, computed beforehand ({words}), with {fixed.arms} arms and "
        "pi_ref where the data come from; <code>rpo explore</code> has every method and what is between."
    )
    given = {
        "axes": {name: [shortest(value) for value in values] for name, values in axes.items()},
        "draw": DRAW,
        "uses": {method: _uses(method) for method in axes["method"]},
        "controls": controls(fixed, axes, note),
    }
    data = json.dumps(given).replace("</", "<\\/")
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in ("page.js", "export.js"))
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>RPO explorer</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}"></head>\n'
        '<body style="margin:0"><div id="page"></div>'
        "<noscript><p>This page needs JavaScript, of its own and none from elsewhere.</p></noscript>\n"
        f'<script type="application/json" id="grid">{data}</script>\n'
        + "\n".join(packed)
        + f'\n<script type="module">\n{script}</script></body></html>\n'
    )
