"""What README and docs say is what happens: the example's output, the paths, the names."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_examples_print_what_the_readme_says() -> None:
    """Run in order, in one namespace, as a reader would."""
    namespace: dict[str, object] = {}
    for code in blocks("python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), namespace)
        assert printed.getvalue() in blocks("text")


def test_the_solve_command_prints_what_the_readme_says() -> None:
    (command,) = (block for block in blocks("bash") if block.startswith("rpo solve rpo/"))
    arguments = command.split()[1:]
    result = subprocess.run(
        [sys.executable, "-m", "rpo.cli", *arguments], capture_output=True, text=True, cwd=ROOT, check=True
    )
    (table,) = [block for block in blocks("text") if block.startswith("3727")]
    assert result.stdout.startswith(table)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "benchmarks/README.md",
        *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    ],
)
def test_links_and_paths_in_the_docs_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith("https://"):
            assert (ROOT / page).parent.joinpath(target).exists(), target
    for path in re.findall(r"`((?:rpo|docs|tests|recipes|benchmarks)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
    for path, name in re.findall(r"`((?:core|bandit|llm|compare)/[\w/]+\.py):([\w.]+)`", text):
        source = (ROOT / "rpo" / path).read_text()
        for part in name.split("."):
            assert re.search(rf"\b(def|class) {part}\b|^\s*{part}\b.*[:=]", source, flags=re.MULTILINE), (path, name)
