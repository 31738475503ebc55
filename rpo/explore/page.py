"""The explorer's page as HTML text: controls, once a session, and results, once a change."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rpo.explore import drawing
from rpo.explore.settings import ALONG, METHODS, REFERENCES, SLIDERS, Settings, shortest
from rpo.explore.view import DRAWS, View

CSS = Path(__file__).with_name("page.css")


def controls(settings: Settings) -> str:
    """Return the form, its controls at `settings`, and the empty places of the results.

    Every control is a native one with a label, so that keyboards and screen readers find what they know.
    """
    sliders = []
    for slider in SLIDERS:
        value = getattr(settings, slider.name)
        positions = slider.with_value(value)
        shown = shortest(value)
        sliders.append(
            f'<div class="slider"><label for="{slider.name}">{html.escape(slider.label)}</label>'
            f'<output for="{slider.name}">{shown}</output>'
            f'<input type="range" id="{slider.name}" name="{slider.name}" min="0" max="{len(positions) - 1}" step="1" '
            f'value="{positions.index(value)}" aria-valuetext="{shown}" '
            f'data-positions="{html.escape(json.dumps(positions), quote=True)}"></div>'
        )
    return (
        f"<style>{CSS.read_text(encoding='utf-8')}</style>"
        '<div class="layout"><form aria-label="Settings"><h1>RPO on a bandit</h1>'
        + _select("method", "method", METHODS, settings.method)
        + "".join(sliders)
        + _select("reference", "pi_ref", REFERENCES, settings.reference)
        + _select("along", "path through the simplex along", ALONG, settings.along)
        + '<p><a href="?">Defaults</a> The address holds every setting: copy it to share this state.</p></form>'
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
        f"One draw: {html.escape(view.problem.name)}, label noise {settings.noise:g}, N = {settings.n}, "
        f"seed {settings.seed}"
    )
    caption = ""
    if settings.arms == 3:
        caption = f"All policies over three arms, with lines of equal gold; the path on this draw along {view.along}."
        caption = f"<figcaption>{caption}</figcaption>"
    certified = f"{view.curve.certified} of {view.curve.solved} solutions certified"
    return (
        f"{alert}<h2>{title}</h2>"
        f"<figure>{drawing.bars(view)}<figcaption>Probability of each arm; below it r* (log-odds) and "
        "wins : losses in the data.</figcaption></figure>"
        f"<figure>{drawing.curves(view)}<figcaption>Reward over pi_ref's, log-odds, as beta falls; the dot is the "
        f"present beta. Means over {DRAWS} data sets of this problem, 95 % bands; {certified}.</figcaption></figure>"
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
    return (
        f'<div><table><caption>Certificate: <strong class="{view.status}" data-name="status">{view.status}</strong>'
        f"</caption>{body}</table><p>{html.escape(view.message)}</p>"
        + (f"<p>{html.escape(view.coverage_message)}</p>" if math.isinf(view.coverage_data) else "")
        + "</div>"
    )


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
