"""The explorer's figures as SVG text: bars, the simplex, and gold and proxy against KL; a millisecond each.

matplotlib takes tens of milliseconds a figure, which is felt under a moving slider.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

import numpy as np

from rpo.core.checks import Array
from rpo.explore.settings import METHODS
from rpo.explore.view import Curve, View
from rpo.plotting import COLORS, CYCLE, NORMAL_95

COLOR = {"rpo": COLORS["RPO"], "dpo": COLORS["DPO"], "chi_squared_po": CYCLE[4], "greedy": CYCLE[5], "base": "#000000"}
REFERENCE, GRID, INK = "#888888", "#dddddd", "#222222"
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
Scale = Callable[[float], float]


def bars(view: View) -> str:
    """Return pi_ref, the method's policy and the best policy as bars an arm, pi_base as diamonds."""
    width, height, left, bottom = 620, 300, 44, 62
    name = METHODS[view.settings.method]
    shown = (("pi_ref", view.problem.reference[0], REFERENCE), (name, view.policy, COLOR[view.settings.method]))
    slot = (width - left - 8) / len(view.policy)
    y = _scale(0.0, 1.0, height - bottom, 30)
    parts = [_axis_y(y, (0.0, 0.25, 0.5, 0.75, 1.0), left, width - 8)]
    wins = view.data.wins()[0]
    for a, best in enumerate(view.best):
        x = left + slot * (a + 0.09)
        bar = 0.82 * slot / 3
        for k, (_, policy, color) in enumerate(shown):
            parts.append(_rect(x + k * bar, y(policy[a]), 0.92 * bar, y(0.0) - y(policy[a]), color))
        if best > 0:
            box = _rect(x + 2 * bar, y(best), 0.92 * bar, y(0.0) - y(best), "none")
            parts.append(box.replace("/>", f' stroke="{COLORS["gold"]}" stroke-width="2"/>'))
        parts.append(_diamond(x + 1.5 * bar - 0.04 * bar, y(view.base[a]), "#000000"))
        middle = left + slot * (a + 0.5)
        reward = view.problem.true_reward()[0, a]
        label = (f"arm {a}", f"r* {reward:.2f}", f"{wins[a].sum():.3g}:{wins[:, a].sum():.3g}")
        small = 10 if len(view.policy) > 8 else 12
        parts += [_text(middle, height - 44 + 16 * k, line, "middle", small) for k, line in enumerate(label)]
    legend = [*((n, c, "square") for n, _, c in shown), ("best", COLORS["gold"], "box"), ("pi_base", "#000", "diamond")]
    parts.append(_legend(legend, left, 14))
    heard = ", ".join(f"arm {a}: {p:.3f}" for a, p in enumerate(view.policy))
    return _svg(width, height, f"Probabilities of {name}: {heard}; best arm {int(view.best.argmax())}.", parts)


def simplex(view: View) -> str:
    """Return the path of three arms' policies through the triangle of all policies, or a note for more arms."""
    width, height, side = 380, 340, 290
    if len(view.policy) != 3:
        note = "The simplex is drawn with 3 arms."
        return _svg(width, 60, note, [_text(width / 2, 34, note, "middle", 13)])

    def place(policy: Array) -> tuple[float, float]:
        x, y = policy @ CORNERS
        return 45 + side * float(x), 292 - side * float(y)

    color = COLOR[view.settings.method]
    reward = view.problem.true_reward()[0]
    triangle = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, np.eye(3)))
    parts = [f'<polygon points="{triangle}" fill="#f6f6f6" stroke="#777"/>', *_contours(reward, place)]
    for a, (corner, anchor, shift) in enumerate(zip(np.eye(3), ("start", "end", "middle"), (20, 20, -10), strict=True)):
        x, y = place(corner)
        parts.append(_text(x + (-30, 30, 0)[a], y + shift, f"arm {a}: r* {reward[a]:.2f}", anchor, 12))
    contrast = view.contrast_path if view.along == "beta" else None
    if contrast is not None:
        parts.append(_line([place(p) for p in contrast], COLORS["DPO"], 1.5, dashes="2 3"))
    points = [place(p) for p in view.path]
    parts.append(_line(points, color, 2.2))
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{color}"/>' for x, y in points]
    x, y = place(view.problem.reference[0])
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="{REFERENCE}" stroke="white"/>')
    parts.append(_diamond(*place(view.base), "#000000"))
    x, y = place(view.policy)
    parts.append(_rect(x - 6, y - 6, 12, 12, color).replace("/>", ' stroke="white" stroke-width="1.5"/>'))
    x, y = place(view.best)
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="none" stroke="{COLORS["gold"]}" stroke-width="2.5"/>')
    legend = [
        ("pi_ref", REFERENCE, "dot"),
        ("pi_base", "#000", "diamond"),
        ("now", color, "square"),
        ("best", COLORS["gold"], "ring"),
        *([] if contrast is None else [("DPO", COLORS["DPO"], "dot")]),
    ]
    parts.append(_legend(legend, 12, 14))
    first, last = view.path_values[0], view.path_values[-1]
    start = "pi_ref (beta = inf)" if np.isinf(first) else f"{view.along} = {first:g}"
    heard = f"Path of policies from {start} to {view.along} = {last:g}, in the triangle of three arms."
    if np.isnan(last):
        heard = "pi_ref and the method's policy, in the triangle of three arms."
    return _svg(width, height, heard, [*parts, _text(12, height - 6, heard[: heard.rfind(",")], "start", 11)])


def curves(view: View) -> str:
    """Return gold (solid) and proxy (dashed) over pi_ref's against KL, square-root scale, with 95 % bands."""
    width, height, left, bottom = 620, 320, 52, 48
    drawn = [view.curve] if view.contrast is None else [view.curve, view.contrast]
    bands = {name: NORMAL_95 * getattr(view.curve, f"{name}_error") for name in ("gold", "proxy")}
    ends = [getattr(view.curve, name) + sign * half for name, half in bands.items() for sign in (-1.0, 1.0)]
    heights = np.concatenate([*ends, *(c.gold for c in drawn)])
    top, low = float(heights.max()), min(0.0, float(heights.min()))
    reach = max(1e-6, max(float(c.kl.max()) for c in drawn))
    root = _scale(0.0, float(np.sqrt(1.04 * reach)), left, width - 8)
    y = _scale(low - 0.08 * (top - low), top + 0.08 * (top - low) + 1e-9, height - bottom, 30)

    def x(kl: float) -> float:
        return root(float(np.sqrt(max(kl, 0.0))))

    parts = [_axis_y(y, _ticks(low, top), left, width - 8)]
    for tick in _ticks(0.0, reach):
        parts.append(_text(x(tick), height - bottom + 16, f"{tick:g}", "middle", 11))
    parts.append(_text((left + width) / 2, height - 10, "KL(pi || pi_ref), nats (square-root scale)", "middle", 12))
    if view.contrast is not None:
        parts.append(_line(_points(view.contrast, "gold", x, y), COLORS["DPO"], 1.5, dashes="2 3"))
    for what, dashes in (("gold", ""), ("proxy", "7 4")):
        line = _points(view.curve, what, x, y)
        half, mean = bands[what], getattr(view.curve, what)
        band = [
            *((px, y(m + h)) for (px, _), m, h in zip(line, mean, half, strict=True)),
            *((px, y(m - h)) for (px, _), m, h in zip(line[::-1], mean[::-1], half[::-1], strict=True)),
        ]
        rim = f'stroke="{COLORS[what]}" stroke-width="3"' if len(line) == 1 else ""  # a band without width
        outline = " ".join(f"{px:.1f},{py:.1f}" for px, py in band)
        parts.append(f'<polygon points="{outline}" fill="{COLORS[what]}" opacity="0.18" {rim}/>')
        parts.append(_line(line, COLORS[what], 2.2, dashes=dashes))
        here = view.curve.beta == view.settings.beta
        at = int(here.argmax()) if here.any() else 0
        px, py = line[at]
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5.5" fill="{COLORS[what]}" stroke="white"/>')
    legend = [(f"{what}, {METHODS[view.settings.method]}", COLORS[what], "dot") for what in ("gold", "proxy")]
    if view.contrast is not None:
        legend.append(("gold, DPO", COLORS["DPO"], "dot"))
    parts.append(_legend(legend, left, 14))
    peak = int(view.curve.gold.argmax())
    heard = (
        f"Gold and proxy reward over pi_ref's along beta: gold is largest, {view.curve.gold[peak]:.3f} log-odds, at "
        f"KL {view.curve.kl[peak]:.3g} nats; the proxy reaches {view.curve.proxy.max():.3f}."
    )
    return _svg(width, height, heard, parts)


def _points(curve: Curve, what: str, x: Scale, y: Scale) -> list[tuple[float, float]]:
    return [(x(float(kl)), y(float(value))) for kl, value in zip(curve.kl, getattr(curve, what), strict=True)]


def _contours(reward: Array, place: Callable[[Array], tuple[float, float]]) -> list[str]:
    """Return lines of equal gold: each crosses the two edges on which its level lies."""
    lines = []
    for level in np.linspace(reward.min(), reward.max(), 9)[1:-1]:
        ends = []
        for i, j in ((0, 1), (1, 2), (0, 2)):
            if min(reward[i], reward[j]) <= level <= max(reward[i], reward[j]) and reward[i] != reward[j]:
                share = (level - reward[i]) / (reward[j] - reward[i])
                ends.append(place((1.0 - share) * np.eye(3)[i] + share * np.eye(3)[j]))
        lines.append(_line(ends[:2], "#cfe8df", 1.0))
    return lines


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (end - start) * (float(value) - low) / (high - low)


def _ticks(low: float, high: float) -> list[float]:
    """Return four to eight round numbers inside [low, high]."""
    rough = (high - low) / 5 or 1.0
    power = 10.0 ** np.floor(np.log10(rough))
    step = float(power * min((1, 2, 5, 10), key=lambda m: abs(m * power - rough)))
    return [float(f"{k * step:.6g}") for k in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def _axis_y(y: Scale, ticks: Sequence[float], left: float, right: float) -> str:
    return "".join(
        f'<line x1="{left}" x2="{right}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="{GRID}"/>'
        + _text(left - 6, y(t) + 4, f"{t:g}", "end", 11)
        for t in ticks
    )


def _legend(entries: Sequence[tuple[str, str, str]], x: float, y: float) -> str:
    parts = []
    for label, color, mark in entries:
        parts.append(
            {
                "square": _rect(x, y - 9, 11, 11, color),
                "box": _rect(x, y - 9, 11, 11, "none").replace("/>", f' stroke="{color}" stroke-width="2"/>'),
                "diamond": _diamond(x + 6, y - 4, color),
                "dot": f'<circle cx="{x + 6}" cy="{y - 4}" r="5" fill="{color}"/>',
                "ring": f'<circle cx="{x + 6}" cy="{y - 4}" r="5" fill="none" stroke="{color}" stroke-width="2"/>',
            }[mark]
        )
        parts.append(_text(x + 16, y, label, "start", 12))
        x += 34 + 7.0 * len(label)
    return "".join(parts)


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(height, 0.0):.1f}" fill="{fill}"/>'


def _diamond(x: float, y: float, fill: str) -> str:
    return f'<path d="M{x:.1f} {y - 5.5:.1f}l5 5.5-5 5.5-5-5.5z" fill="{fill}" stroke="white"/>'


def _line(points: Sequence[tuple[float, float]], color: str, width: float, *, dashes: str = "") -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="{width}"{dashed}/>'


def _text(x: float, y: float, text: str, anchor: str, size: int) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}">'
        f"{html.escape(text)}</text>"
    )


def _svg(width: int, height: int, heard: str, parts: Sequence[str]) -> str:
    label = html.escape(heard, quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
