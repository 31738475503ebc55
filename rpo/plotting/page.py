"""A report as one self-contained HTML page: pictures inlined, text escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
table { border-collapse: collapse; }
th, td { padding: .3rem .9rem; border-bottom: 1px solid #ddd; text-align: left; }
td.number { font-variant-numeric: tabular-nums; text-align: right; }
img { max-width: 100%; } figure { margin: 1.2rem 0; } figcaption { color: #444; font-size: .93rem; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .85rem; }
.verdict { background: #eef6fb; border-left: 4px solid #0072b2; padding: .7rem 1rem; }
"""


def page(title: str, verdict: str, parts: Sequence[str]) -> str:
    """Return the page; parts are HTML, from the functions below."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head><body>\n<h1>{html.escape(title)}</h1>\n"
        f'<p class="verdict">{html.escape(verdict)}</p>\n' + "\n".join(parts) + "\n</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return parts under a heading."""
    return f"<h2>{html.escape(title)}</h2>\n" + "\n".join(parts)


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def picture(path: str | Path, caption: str) -> str:
    """Return a PNG file inlined, with its caption, which is its text alternative too."""
    data, text = base64.b64encode(Path(path).read_bytes()).decode(), html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Return a table of texts; the columns in `numbers` are set flush right."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=number' if column in numbers else ''}>{html.escape(cell)}</td>"
            for column, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def listing(values: Mapping[str, Any]) -> str:
    """Return names and values, a line each, as they stand."""
    return "<pre>" + html.escape("\n".join(f"{name}: {value}" for name, value in values.items())) + "</pre>"
