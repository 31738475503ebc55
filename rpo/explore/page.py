"""The explorer's page as HTML text: controls, once a session, and results, once a change."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rpo.explore import drawing
from rpo.explore.settings import ALONG, KNOBS, METHODS, PESSIMISTIC, REFERENCES, REGISTERED, SLIDERS, Settings, shortest
from rpo.explore.view import DRAWS, View
from rpo.methods.registry import CERTIFIED, STATIONARY

DEFAULT = "a draw chosen to show it: of seeds 0 to 399, DPO's gold falls by more than 0.2 from its peak in 34"
SELECTS = (("reference", "pi_ref", REFERENCES), ("along", "path through the simplex along", ALONG))
SHOWN_VERSIONS = ("rpo-lab", "commit", "python", "numpy", "scipy")
CSS = Path(__file__).with_name("page.css")


def controls(settings: Settings, axes: Mapping[str, Sequence[Any]] | None = None, note: str = "") -> str:
    """Return the form, its controls at `settings`, and the empty places of the results.

    Every control is a native one with a label, so that keyboards and screen readers find what they know. axes: of a
    page that has these values alone: one value needs no control. note: HTML said below the controls.
    """
    sliders = []
    for slider in SLIDERS:
        value = getattr(settings, slider.name)
        positions = slider.with_value(value) if axes is None else tuple(axes[slider.name])
        if len(positions) == 1:
            continue
        shown = shortest(value)
        label = KNOBS[settings.knob] if slider.name == "beta" else slider.label
        unused = " disabled" if slider.name == "eta" and settings.method not in PESSIMISTIC else ""
        sliders.append(
            f'<div class="slider"><label for="{slider.name}">{html.escape(label)}</label>'
            f'<output for="{slider.name}">{shown}</output>'
            f'<input type="range" id="{slider.name}" name="{slider.name}" min="0" max="{len(positions) - 1}" step="1" '
            f'value="{positions.index(value)}" aria-valuetext="{shown}"{unused} '
            f'data-positions="{html.escape(json.dumps(positions), quote=True)}"></div>'
        )
    return (
        f"<style>{CSS.read_text(encoding='utf-8')}</style>"
        '<div class="layout"><form aria-label="Settings"><h1>Overoptimization</h1>'
        + _methods(settings.method, list(METHODS) if axes is None else list(axes["method"]))
        + "".join(sliders)
        + "".join(
            _select(name, label, options, getattr(settings, name))
            for name, label, options in SELECTS
            if axes is None or len(axes[name]) > 1
        )
        + f'<p><a href="{"#" if note else "?"}">Defaults</a>: {DEFAULT}. The address holds every setting: copy it to '
        f"share this state.</p><p>{note}</p></form>"
        '<section aria-label="Results"><p role="status"></p><div id="results"></div></section></div>'
    )


def results(view: View, problems: Sequence[str], versions: Mapping[str, str]) -> str:
    """Return figures and numbers; each number carries its exact value in `data-value`.

    problems: sentences about parameters of the address that were not used. versions: package -> version.
    """
    alert = ""
    if problems:
        lines = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in problems)
        alert = f'<div role="alert"><p>Not used, the default taken instead:</p><ul>{lines}</ul></div>'
    settings = view.settings
    title = (
        f"{html.escape(view.label)}: {settings.arms} arms, coverage skew {settings.skew:g}, label noise "
        f"{settings.noise:g}, N = {settings.n}, seed {settings.seed}"
    )
    caption = ""
    if settings.arms == 3:
        caption = f"All policies over three arms, with lines of equal gold; the path on this draw along {view.along}."
        if view.along == "beta" and settings.knob:
            caption = caption.replace("beta", settings.knob)
        caption = f"<figcaption>{caption}</figcaption>"
    words = ", ".join(f"{count} {word}" for word, count in view.curve.evidence.items())
    hollow = "" if view.proved else " Hollow marks: a stationary point, not a proved optimum."
    here = f"at this {settings.knob}" if settings.knob else "of the one policy"
    return (
        f"{alert}<h2>{title}</h2>"
        f"<figure>{drawing.bars(view)}<figcaption>Probability of each arm; below it r* (log-odds), and how often it "
        "won and lost in the data.</figcaption></figure>"
        f"<figure>{drawing.curves(view)}<figcaption>Reward over pi_ref's, log-odds, as {settings.knob or 'nothing'} "
        f"moves from the reference to the data; dots: the mean {here}. Means over {DRAWS} data sets of this "
        f"problem, 95 % bands; of {view.curve.solved} solutions {words}.{hollow}</figcaption></figure>"
        f'<div class="row"><figure>{drawing.simplex(view)}{caption}</figure>{_numbers(view)}</div>'
        f"<footer>{html.escape(', '.join(f'{name} {version}' for name, version in versions.items()))}</footer>"
    )


def said(view: View) -> str:
    """Return the sentence that a screen reader hears after a change."""
    return (
        f"{METHODS[view.settings.method]}: gold {view.gold:.3f} of at most {view.gold_best:.3f}, "
        f"KL {view.kl:.3g} nats, coverage {_shown(view.coverage)}, {view.status}."
    )


def _numbers(view: View) -> str:
    rows = (
        ("gold", "gold, E[r*], log-odds", view.gold),
        ("gold_reference", "gold of pi_ref", view.gold_reference),
        ("gold_best", "gold of the best policy", view.gold_best),
        ("suboptimality", "suboptimality, best minus gold", view.suboptimality),
        ("kl", "KL(pi || pi_ref), nats", view.kl),
        ("coverage", "coverage C, where the data come from", view.coverage),
        ("coverage_data", "coverage C, the pairs seen", view.coverage_data),
        ("gap", "duality gap", view.gap),
        ("relative_gap", "relative gap", view.relative_gap),
        ("tv_bound", "total variation to the optimum, at most", view.tv_bound),
    )
    body = "".join(
        f'<tr><th scope="row">{label}</th><td data-name="{name}" data-value="{value!r}">{_shown(value)}</td></tr>'
        for name, label, value in rows
    )
    # At eta = 0 the gap bounds the fit of the reward; policies of nearly equal fit may lie anywhere.
    unbounded = view.status == "certified" and math.isinf(view.tv_bound)
    evidence = "reward fit certified; the policy has no bound" if unbounded else view.status
    return (
        f'<div><table><caption>Evidence: <strong class="{view.status.split()[0]}" data-name="status">{evidence}'
        f"</strong></caption>{body}</table><p>{html.escape(view.message)}</p>"
        + (f"<p>{html.escape(view.coverage_message)}</p>" if math.isinf(view.coverage_data) else "")
        + "</div>"
    )


def _methods(chosen: str, keys: Sequence[str]) -> str:
    """Return the choice of method, by what is known of its optimum; each option says how its knob is called."""
    groups: dict[str, str] = {}
    for word in (CERTIFIED, STATIONARY, "baselines"):
        for key in keys:
            row = REGISTERED.get(key)
            if word == (row.evidence if row else "baselines"):
                knob = html.escape(KNOBS[row.knob if row else ""])
                selected = " selected" if key == chosen else ""
                eta = " data-eta" if key in PESSIMISTIC else ""
                option = f'<option value="{key}" data-knob="{knob}"{eta}{selected}>{html.escape(METHODS[key])}</option>'
                groups[word] = groups.get(word, "") + option
    entries = "".join(f'<optgroup label="{word}">{options}</optgroup>' for word, options in groups.items())
    return f'<label for="method">method</label><select id="method" name="method">{entries}</select>'


def _select(name: str, label: str, options: Mapping[str, str], chosen: str) -> str:
    entries = "".join(
        f'<option value="{key}"{" selected" if key == chosen else ""}>{html.escape(text)}</option>'
        for key, text in options.items()
    )
    return f'<label for="{name}">{label}</label><select id="{name}" name="{name}">{entries}</select>'


def _shown(value: float) -> str:
    if math.isnan(value):
        return "none"
    return "infinite" if math.isinf(value) else f"{value:.4g}"
