"""The comparison graph of one prompt drawn as the electrical network that coverage is."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, Wedge

from rpo.bandit.coverage.pair_distributions import chosen_distribution
from rpo.bandit.coverage.resistance import Network, check_conductance, effective_resistance, reduce_network
from rpo.bandit.problem import ContextualBandit
from rpo.core import checks
from rpo.core.checks import PROBABILITY_TOLERANCE, Array
from rpo.core.errors import InvalidArgument
from rpo.plotting import CYCLE, legend_below, letters, new_figure, style

BASE_COLOR, COMPARATOR_COLOR, CURRENT_COLOR = CYCLE[4], CYCLE[0], CYCLE[1]
EDGE_COLOR = "#b8b8b8"
SMALLEST, LARGEST = 0.08, 0.38  # radius of a node, in units of the distance between neighbours
WIDEST = 7.0
UNBALANCED = "#D55E00"


def comparison_network(
    source: ContextualBandit | Any,
    *,
    prompt: int = 0,
    p: Any = None,
    q: Any = None,
    labels: Any = None,
    currents: bool = True,
    title: str | None = None,
) -> Figure:
    """Draw one prompt's comparisons as a network between two policies, its effective resistance in the title.

    A node is a response: left half the base q, right half the comparator p, area proportional to mass.
    An edge is a compared pair, its width the frequency; an arrow is the current that carries q's mass to
    p within its component, its width the current. Components stand apart, each in a dashed frame.

    source: a problem, or symmetric weights (A, A). p, q: (A,) or (X, A), default greedy on r* and
    `chosen_distribution`; needed with weights. labels: A names. Raises InvalidArgument.
    """
    if isinstance(source, ContextualBandit):
        x = checks.integer("prompt", prompt, minimum=0, maximum=source.num_prompts - 1)
        pairs = source.pair_distribution()[x]
        weights = pairs + pairs.T
        p = source.greedy_policy() if p is None else p
        q = chosen_distribution(source) if q is None else q
        labels = source.response_labels if labels is None else labels
    else:
        x = checks.integer("prompt", prompt, minimum=0)
        weights = check_conductance("source", source)
        if p is None or q is None:
            raise InvalidArgument(
                "p, q", expected="two distributions", got=None, remedy="Weights come without policies."
            )
    comparator, base = _row("p", p, x, len(weights)), _row("q", q, x, len(weights))
    names = [str(label) for label in checks.labels("labels", labels, len(weights)) or range(len(weights))]
    network = reduce_network(weights)
    position, frames = _layout(network)
    resistance = effective_resistance(weights, comparator, base)
    demand = comparator - base
    low, high = position.min(axis=0) - 0.75, position.max(axis=0) + 0.75
    for center, radius in frames if len(frames) > 1 else []:
        low, high = np.minimum(low, center - radius - 0.15), np.maximum(high, center + radius + 0.15)
    low[1] -= 0.35 if len(frames) > 1 else 0.0
    width = float(np.clip(1.2 * (high - low)[0], 5.0, 11.0))
    with style():
        figure, axes = new_figure(1, 1, width=width, height=width * (high - low)[1] / (high - low)[0] + 1.1)
        axis = axes[0, 0]
        axis.set_aspect("equal")
        axis.axis("off")
        axis.set_xlim(low[0], high[0])
        axis.set_ylim(low[1], high[1])
        if len(frames) > 1:
            _draw_frames(axis, network, comparator, base, frames)
        _draw_edges(axis, network, position)
        drawn = currents and _draw_currents(axis, network, position, comparator, base)
        _draw_nodes(axis, position, comparator, base, names, frames)
        legend_below(figure, _legend(drawn), columns=4 if width > 6 else 2)
        axis.set_title(_title(x, resistance, network, demand) if title is None else title, loc="center", wrap=True)
    return figure


def _row(name: str, value: Any, prompt: int, size: int) -> Array:
    array = checks.numbers(name, value)
    if array.ndim == 2:
        if prompt >= len(array):
            raise InvalidArgument(
                "prompt", expected=f"a row of {name}, below {len(array)}", got=prompt, remedy="Lower it."
            )
        array = array[prompt]
    return checks.probabilities(name, array, shape=(size,))


def _title(prompt: int, resistance: float, network: Network, demand: Array) -> str:
    if np.isfinite(resistance):
        return f"prompt {prompt}: effective resistance {resistance:.3g}"
    moved = np.abs(network.masses(demand)).sum() / 2
    return (
        f"prompt {prompt}: effective resistance infinite\n"
        f"mass {moved:.2g} changes component, which no comparison can check"
    )


def _draw_frames(
    axis: Any, network: Network, comparator: Array, base: Array, frames: list[tuple[Array, float]]
) -> None:
    """A dashed circle around each component, its two masses below, coloured where they differ."""
    masses = zip(network.masses(base), network.masses(comparator), strict=True)
    for (center, radius), (before, after) in zip(frames, masses, strict=True):
        color = "#606060" if abs(after - before) <= 2 * PROBABILITY_TOLERANCE else UNBALANCED
        axis.add_patch(Circle((float(center[0]), float(center[1])), radius, fill=False, ls="--", lw=1.1, ec=color))
        text = f"base {before:.2g}\ncomparator {after:.2g}"
        axis.text(center[0], center[1] - radius - 0.06, text, ha="center", va="top", fontsize=letters(8.5), color=color)


def _layout(network: Network) -> tuple[Array, list[tuple[Array, float]]]:
    """Place each component on a circle, neighbours one unit apart; return (A, 2) and a frame a component.

    Around the circle, nodes follow the second eigenvector of the component's Laplacian, which keeps
    those often compared near each other.
    """
    position = np.zeros((len(network.component), 2))
    frames: dict[int, tuple[Array, float]] = {}
    left = 0.0
    order = sorted(range(network.num_components), key=lambda c: -int((network.component == c).sum()))
    for number in order:
        members = np.flatnonzero(network.component == number)
        size = len(members)
        radius = 0.0 if size == 1 else 0.5 / np.sin(np.pi / max(size, 3)) if size > 2 else 0.5
        if size > 3:
            part = network.conductance[np.ix_(members, members)]
            degree = np.sqrt(part.sum(axis=1))
            _, vectors = np.linalg.eigh(np.eye(size) - part / np.outer(degree, degree))
            angle_order = np.argsort(np.arctan2(vectors[:, 2] / degree, vectors[:, 1] / degree), kind="stable")
            members = members[angle_order]
        frame = radius + (0.72 if size > 1 else 0.55)
        center = np.array([left + frame, 0.0])
        start = np.pi if size == 2 else np.pi / 2
        angle = start - 2 * np.pi * np.arange(size) / size
        position[members] = center + radius * np.column_stack([np.cos(angle), np.sin(angle)])
        frames[number] = (center, frame)
        left += 2 * frame + 0.35
    return position, [frames[number] for number in range(network.num_components)]


def _draw_edges(axis: Any, network: Network, position: Array) -> None:
    most = network.conductance.max(initial=0.0)
    for a, b in zip(*np.nonzero(np.triu(network.conductance)), strict=True):
        width = max(0.6, WIDEST * network.conductance[a, b] / most)
        axis.plot(*position[[a, b]].T, color=EDGE_COLOR, lw=width, solid_capstyle="round", zorder=1)


def _draw_currents(axis: Any, network: Network, position: Array, comparator: Array, base: Array) -> bool:
    """Draw arrows from the base's surplus to the comparator's where components keep their mass; return whether any."""
    demand, size = comparator - base, _radius(np.maximum(comparator, base))
    _, voltage = network.energy(network.balanced(demand))
    covered = np.abs(network.masses(demand)) <= 2 * PROBABILITY_TOLERANCE
    flow = network.conductance * (voltage[None, :] - voltage[:, None])  # a to b where b's potential is higher
    flow = np.where(covered[network.component][:, None], flow, 0.0)
    most = flow.max(initial=0.0)
    if most <= 0:
        return False
    for a, b in zip(*np.nonzero(flow > 0.02 * most), strict=True):
        step = position[b] - position[a]
        length = float(np.linalg.norm(step))
        # The middle of the edge, clear of both nodes.
        tail = max(0.3, (size[a] + 0.03) / length)
        head = max(min(0.7, 1.0 - (size[b] + 0.03) / length), tail + 0.1)
        axis.add_patch(
            FancyArrowPatch(
                position[a] + tail * step,
                position[a] + head * step,
                arrowstyle="-|>",
                mutation_scale=9 + 9 * flow[a, b] / most,
                lw=0.8 + 2.4 * flow[a, b] / most,
                color=CURRENT_COLOR,
                shrinkA=0,
                shrinkB=0,
                zorder=2,
            )
        )
    return True


def _draw_nodes(
    axis: Any, position: Array, comparator: Array, base: Array, names: list[str], frames: list[tuple[Array, float]]
) -> None:
    centers = np.array([center for center, _ in frames])
    for a, place in enumerate(position):
        for mass, first, color in ((base[a], 90, BASE_COLOR), (comparator[a], 270, COMPARATOR_COLOR)):
            face = color if mass > 0 else "white"
            half = Wedge(tuple(place), float(_radius(mass)), first, first + 180, fc=face, ec="black", lw=0.8, zorder=3)
            axis.add_patch(half)
        # The label goes outwards from the component's centre.
        away = place - centers[np.argmin(((centers - place) ** 2).sum(axis=1))]
        size = float(np.linalg.norm(away))
        away = away / size if size > 1e-9 else np.array([0.0, 1.0])
        reach = float(_radius(max(base[a], comparator[a]))) + 0.13
        axis.text(*(place + reach * away), names[a], ha="center", va="center", fontsize=letters(9), zorder=4)


def _radius(mass: Any) -> Any:
    return np.maximum(SMALLEST, LARGEST * np.sqrt(mass))


def _legend(currents: bool) -> list[Any]:
    handles = [
        Line2D([], [], marker="o", ls="", ms=9, mfc=BASE_COLOR, mec="black", label="base mass"),
        Line2D([], [], marker="o", ls="", ms=9, mfc=COMPARATOR_COLOR, mec="black", label="comparator mass"),
        Line2D([], [], color=EDGE_COLOR, lw=4, label="comparisons"),
    ]
    if currents:
        handles.append(Line2D([], [], color=CURRENT_COLOR, marker=">", lw=2, label="current"))
    return handles
