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
from rpo.plotting import COLORS, CYCLE, NORMAL_95, color_of
from rpo.plotting.overoptimization import message, root_ticks

REFERENCE, GRID, INK = "#888888", "#dddddd", "#222222"
SIZE = 15  # of letters, in units that the page shows as about a pixel at 1280 x 720
NARROW = 8.0  # of one of them, about
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
Scale = Callable[[float], float]


def color_of_method(key: str) -> str:
    """Return the colour of one of `METHODS`."""
    return {"greedy": CYCLE[5], "base": "#000000"}.get(key) or color_of(METHODS[key])


def bars(view: View) -> str:
    """Return pi_ref, the method's policy and the best policy as bars an arm, pi_base as diamonds."""
    width, height, left, bottom = 480, 330, 50, 76
    name, color = METHODS[view.settings.method], color_of_method(view.settings.method)
    shown = (("pi_ref", view.problem.reference[0], REFERENCE), (name, view.policy, color))
    slot = (width - left - 8) / len(view.policy)
    y = _scale(0.0, 1.0, height - bottom, 46)
    parts = [_title("What the data make of each arm"), _axis_y(y, (0.0, 0.25, 0.5, 0.75, 1.0), left, width - 8)]
    wins = view.data.wins()[0]
    size = SIZE if len(view.policy) <= 8 else 13
    heads = ("arm", "r*", "won", "lost")
    parts += [_text(2, height - 58 + 17 * k, line, "start", 13) for k, line in enumerate(heads)]
    for a, best in enumerate(view.best):
        x = left + slot * (a + 0.09)
        bar = 0.82 * slot / 3
        for k, (_, policy, fill) in enumerate(shown):
            parts.append(_rect(x + k * bar, y(policy[a]), 0.92 * bar, y(0.0) - y(policy[a]), fill))
        if best > 0:
            parts.append(_rect(x + 2 * bar, y(best), 0.92 * bar, y(0.0) - y(best), "none", rim=COLORS["gold"]))
        parts.append(_diamond(x + 1.5 * bar - 0.04 * bar, y(view.base[a]), "#000000"))
        middle = left + slot * (a + 0.5)
        reward = view.problem.true_reward()[0, a]
        label = (str(a), f"{reward:.2f}", _short(wins[a].sum()), _short(wins[:, a].sum()))
        parts += [_text(middle, height - 58 + 17 * k, line, "middle", size) for k, line in enumerate(label)]
    legend = [*((n, c, "square") for n, _, c in shown), ("best", COLORS["gold"], "box"), ("pi_base", "#000", "diamond")]
    parts.append(_legend(legend, left, 36))
    heard = ", ".join(f"arm {a}: {p:.3f}" for a, p in enumerate(view.policy))
    return _svg(width, height, f"Probabilities of {name}: {heard}; best arm {int(view.best.argmax())}.", parts)


def simplex(view: View) -> str:
    """Return the path of three arms' policies through the triangle of all policies, or a note for more arms."""
    width, height, side = 420, 380, 300
    if len(view.policy) != 3:
        note = "The simplex is drawn with 3 arms."
        return _svg(width, 60, note, [_text(width / 2, 34, note, "middle", SIZE)])

    def place(policy: Array) -> tuple[float, float]:
        x, y = policy @ CORNERS
        return 60 + side * float(x), 338 - side * float(y)

    color, name = color_of_method(view.settings.method), METHODS[view.settings.method]
    reward = view.problem.true_reward()[0]
    triangle = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, np.eye(3)))
    parts = [f'<polygon points="{triangle}" fill="#f6f6f6" stroke="#777"/>', *_contours(reward, place)]
    for a, (corner, anchor, shift) in enumerate(zip(np.eye(3), ("start", "end", "middle"), (24, 24, -10), strict=True)):
        x, y = place(corner)
        parts.append(_text(x + (-58, 58, 0)[a], y + shift, f"arm {a}: r* {reward[a]:.2f}", anchor, SIZE))
    other = view.contrast if view.along == "beta" else None
    if other is not None:
        parts.append(_line([place(p) for p in view.contrast_path], color_of(other.method), 1.8, dashes="2 3"))
    points = [place(p) for p in view.path]
    parts.append(_line(points, color, 2.4))
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}"/>' for x, y in points]
    x, y = place(view.problem.reference[0])
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="{REFERENCE}" stroke="white"/>')
    parts.append(_diamond(*place(view.base), "#000000"))
    x, y = place(view.policy)
    fill, rim = (color, "white") if view.proved else ("white", color)
    parts.append(_rect(x - 6, y - 6, 12, 12, fill, rim=rim))
    x, y = place(view.best)
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="none" stroke="{COLORS["gold"]}" stroke-width="2.5"/>')
    legend = [
        ("pi_ref", REFERENCE, "dot"),
        ("pi_base", "#000", "diamond"),
        (name, color, "square" if view.proved else "box"),
        ("best", COLORS["gold"], "ring"),
        *([] if other is None else [(other.method, color_of(other.method), "dotted")]),
    ]
    parts.append(_legend(legend, 4, 16))
    first, last = view.path_values[0], view.path_values[-1]
    knob = view.settings.knob if view.along == "beta" else view.along
    start = f"pi_ref to {knob} = {last:g}" if np.isinf(first) else f"{knob} = {first:g} to {last:g}"
    heard = f"Path of policies from {start}, in the triangle of three arms."
    if np.isnan(last):
        heard = "pi_ref and the method's policy, in the triangle of three arms."
    return _svg(width, height, heard, parts)


def curves(view: View) -> str:
    """Return gold (solid) and proxy (dashed) over pi_ref's against KL, square-root scale, with 95 % bands."""
    width, height, left, bottom = 480, 330, 66, 58
    drawn = [view.curve, view.contrast]
    bands = {name: NORMAL_95 * getattr(view.curve, f"{name}_error") for name in ("gold", "proxy")}
    ends = [getattr(view.curve, name) + sign * half for name, half in bands.items() for sign in (-1.0, 1.0)]
    heights = np.concatenate([*ends, *(c.gold for c in drawn)])
    top, low = max(0.0, float(heights.max())), min(0.0, float(heights.min()))
    reach = max(1e-6, max(float(c.kl.max()) for c in drawn))
    root = _scale(0.0, float(np.sqrt(1.04 * reach)), left, width - 8)
    y = _scale(low - 0.06 * (top - low), top + 0.06 * (top - low) + 1e-9, height - bottom, 46)

    def x(kl: float) -> float:
        return root(float(np.sqrt(max(kl, 0.0))))

    parts = [_title(_message(view)), _axis_y(y, _ticks(low, top), left, width - 8)]
    parts.append(f'<line x1="{left}" x2="{width - 8}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="{INK}"/>')
    for tick in root_ticks(reach):
        parts.append(_text(x(tick), height - bottom + 18, f"{tick:g}", "middle", SIZE))
    label = _text(0, 0, "over pi_ref's, log-odds", "middle", SIZE)
    parts.append(f'<g transform="translate(14 {(46 + height - bottom) / 2:.0f}) rotate(-90)">{label}</g>')
    parts.append(_text((left + width) / 2, height - 18, "KL(pi || pi_ref), nats (square-root scale)", "middle", SIZE))
    contrast = color_of(view.contrast.method)
    parts.append(_line(_points(view.contrast, "gold", x, y), contrast, 1.8, dashes="2 3"))
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
        parts.append(_line(line, COLORS[what], 2.4, dashes=dashes))
        here = view.curve.beta == view.settings.beta
        px, py = line[int(here.argmax()) if here.any() else 0]
        fill, rim = (COLORS[what], "white") if view.proved else ("white", COLORS[what])
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5.5" fill="{fill}" stroke="{rim}" stroke-width="1.5"/>')
    legend = [
        ("gold", COLORS["gold"], "solid"),
        ("proxy", COLORS["proxy"], "dashed"),
        ("95 %", REFERENCE, "band"),
        (f"gold of {view.contrast.method}", contrast, "dotted"),
    ]
    parts.append(_legend(legend, 40, 36))
    peak = int(view.curve.gold.argmax())
    heard = (
        f"{_message(view)}. Rewards over pi_ref's: gold is largest, {view.curve.gold[peak]:.3f} log-odds, at "
        f"KL {view.curve.kl[peak]:.3g} nats; the proxy reaches {view.curve.proxy.max():.3f}."
    )
    return _svg(width, height, heard, parts)


def _message(view: View) -> str:
    """Return what the curve shows, as its title."""
    curve = view.curve
    if curve.gold.size == 1:
        return f"{curve.method}: one policy, without a knob"
    if curve.gold.max() < 0.0:
        return f"{curve.method}: gold below the reference throughout"
    return f"{curve.method}: {message(curve.gold, curve.proxy)}"


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


def _short(count: float) -> str:
    """Return a count in at most four letters: 24, 1.2k, 340k, 1M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.2g}{letter}" if count < 10 * size else f"{count / size:.0f}{letter}"
    return f"{count:g}"


def _axis_y(y: Scale, ticks: Sequence[float], left: float, right: float) -> str:
    return "".join(
        f'<line x1="{left}" x2="{right}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="{GRID}"/>'
        + _text(left - 6, y(t) + 5, f"{t:g}", "end", SIZE)
        for t in ticks
    )


def _legend(entries: Sequence[tuple[str, str, str]], x: float, y: float) -> str:
    parts = []
    for label, color, mark in entries:
        stroke = f'<line x1="{x}" x2="{x + 16}" y1="{y - 5}" y2="{y - 5}" stroke="{color}" stroke-width="2.4"'
        parts.append(
            {
                "square": _rect(x + 3, y - 10, 11, 11, color),
                "box": _rect(x + 3, y - 10, 11, 11, "none", rim=color),
                "diamond": _diamond(x + 8, y - 5, color),
                "dot": f'<circle cx="{x + 8}" cy="{y - 5}" r="5" fill="{color}"/>',
                "ring": f'<circle cx="{x + 8}" cy="{y - 5}" r="5" fill="none" stroke="{color}" stroke-width="2"/>',
                "solid": f"{stroke}/>",
                "dashed": f'{stroke} stroke-dasharray="6 3"/>',
                "dotted": f'{stroke} stroke-dasharray="2 3"/>',
                "band": _rect(x, y - 10, 16, 10, color).replace("/>", ' opacity="0.35"/>'),
            }[mark]
        )
        parts.append(_text(x + 21, y, label, "start", SIZE))
        x += 33 + NARROW * len(label)
    return "".join(parts)


def _title(text: str) -> str:
    return _text(2, 16, text, "start", SIZE + 1).replace("<text", '<text font-weight="600"')


def _rect(x: float, y: float, width: float, height: float, fill: str, *, rim: str = "") -> str:
    stroke = f' stroke="{rim}" stroke-width="2"' if rim else ""
    size = f'width="{width:.1f}" height="{max(height, 0.0):.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{fill}"{stroke}/>'


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
