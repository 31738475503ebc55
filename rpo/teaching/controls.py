"""Sliders in a live notebook, and a figure of their middle where nobody can move them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rpo.core.errors import InvalidArgument

__all__ = ["show_figures", "sliders"]

DPI = 80  # of figures in notebooks: what a page shows


def show_figures() -> None:
    """Have a notebook draw the figures that cells return: made without pyplot, they would be shown as text."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is not None:
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"}, dpi=DPI)


def sliders(draw: Callable[..., Any], *, start: dict[str, Any] | None = None, **values: Sequence[Any]) -> None:
    """Show `draw(**setting)` with a slider for each argument in `values`.

    Where ipywidgets is missing, outside a notebook, or with RPO_STATIC=1 in the environment (as the committed outputs
    are made), one figure is shown instead, and what could be moved is said.

    Args:
        draw: Returns a matplotlib Figure, or anything a notebook displays.
        start: The setting shown first; the middle of each list otherwise.
        **values: The values of each slider, in order.

    Raises:
        InvalidArgument: a slider without values, or a start that is not among them.
    """
    setting = {}
    for name, choices in values.items():
        if not len(choices):
            raise InvalidArgument(name, expected="at least one value", got=choices, remedy="List the slider's values.")
        setting[name] = (start or {}).get(name, choices[len(choices) // 2])
        if setting[name] not in choices:
            raise InvalidArgument(
                "start", expected=f"{name} among {list(choices)}", got=setting[name], remedy="Pick one."
            )
    if not _live():
        _static(draw, setting, values)
        return
    import ipywidgets

    controls = {
        name: ipywidgets.SelectionSlider(
            options=list(choices), value=setting[name], description=name, continuous_update=False
        )
        for name, choices in values.items()
    }
    output = ipywidgets.interactive_output(lambda **chosen: _display(draw(**chosen)), controls)
    from IPython.display import display

    display(ipywidgets.VBox([*controls.values(), output]))


def _live() -> bool:
    if os.environ.get("RPO_STATIC"):
        return False
    try:
        import ipywidgets  # noqa: F401
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _static(draw: Callable[..., Any], setting: dict[str, Any], values: dict[str, Sequence[Any]]) -> None:
    _display(draw(**setting))
    shown = ", ".join(f"{name} = {value}" for name, value in setting.items())
    ranges = "; ".join(f"{name}: {choices[0]} to {choices[-1]}" for name, choices in values.items())
    print(f"Shown: {shown}. Run this notebook to move the sliders ({ranges}).")


def _display(figure: Any) -> None:
    try:
        from IPython.display import display
    except ImportError:
        return
    display(figure)
    if hasattr(figure, "savefig"):
        import matplotlib.pyplot as plt

        plt.close(figure)  # else the inline backend draws it once more
