"""What MkDocs does not do by itself: pages kept outside docs/, and mathematics without JavaScript."""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Files of the repository that are pages too. Links are written as in the repository and resolve there.
PAGES = {
    "README.md": "overview.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/smollm2/README.md": "example_data.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
MATHML = LatexToMathML(annotation=True, fancy_error=False)
TAG = re.compile(r"\\tag\{(\w+)\}")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages kept elsewhere."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links at the pages: from where a file lies in the repository to where it lies in the site."""
    here = page.file.src_uri
    source = next((path for path, name in PAGES.items() if name == here), f"docs/{here}")

    def moved(match: re.Match[str]) -> str:
        target, mark, anchor = match.group(1).partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        goal = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if not target or "://" in target or goal is None:
            return match.group()
        return f"]({posixpath.relpath(goal, posixpath.dirname(here) or '.')}{mark}{anchor})"

    return LINK.sub(moved, markdown)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Replace every formula by MathML, which browsers draw themselves; refuse one that cannot be converted."""

    def drawn(match: re.Match[str], *, display: bool) -> str:
        formula = html.unescape(match.group(1)).strip()
        number = TAG.search(formula)
        try:
            mathml = MATHML.convert_with_local_state(TAG.sub("", formula), displaystyle=display)
        except LatexError as error:
            raise PluginError(f"{page.file.src_uri}: {error} In: {formula}") from error
        if not display:
            return mathml
        label = f'<span style="float: right">({number.group(1)})</span>' if number else ""
        return f'<div style="overflow-x: auto">{label}{mathml}</div>'

    content = INLINE.sub(lambda match: drawn(match, display=False), content)
    return DISPLAY.sub(lambda match: drawn(match, display=True), content)
