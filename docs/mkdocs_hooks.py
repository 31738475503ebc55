"""What MkDocs does not do by itself: pages kept outside docs/ (notebooks, too), and formulas without JavaScript."""

from __future__ import annotations

import html
import json
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
    "notebooks/README.md": "notebooks.md",
    "CHANGELOG.md": "changelog.md",
}
PAGES |= {f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
MATHML = LatexToMathML(annotation=True, fancy_error=False)
TAG = re.compile(r"\\tag\{(\w+)\}")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages kept elsewhere."""
    for source, page in PAGES.items():
        path = ROOT / source
        if path.suffix == ".ipynb":
            files.append(File.generated(config, page, content=notebook_page(path)))
        else:
            files.append(File.generated(config, page, abs_src_path=str(path)))
    return files


def notebook_page(path: Path) -> str:
    """Return a notebook's text, code and committed outputs as Markdown, figures inside."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                image = "".join(data["image/png"]).replace("\n", "")
                parts.append(f"![Figure drawn by the cell above](data:image/png;base64,{image})")
            else:
                text = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


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
