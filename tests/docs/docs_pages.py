"""The documentation as data: pages, their code blocks, anchors, commands, and the messages of the code."""

import ast
import functools
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
ELSEWHERE = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "examples/smollm2/README.md",
    "notebooks/README.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NUMBER = re.compile(r"(?<![\w.])(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:e-?\d+)?")
GAP = "…"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def without_fences(text: str) -> str:
    return FENCE.sub("", text)


def prose(page: str) -> str:
    return without_fences(text_of(page))


# --- links ---------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def has_anchor(page: str, anchor: str) -> bool:
    text = text_of(page)
    if anchor in {slug(heading) for heading in re.findall(r"^#+ (.*)$", without_fences(text), flags=re.MULTILINE)}:
        return True
    return any(anchor == name or anchor.startswith(f"{name}.") for name in directives(text))


def directives(text: str) -> list[str]:
    """What a page of the reference has mkdocstrings write about."""
    return re.findall(r"^::: ([\w.]+)$", text, flags=re.MULTILINE)


def broken_links(page: str, text: str) -> list[str]:
    found = []
    for target in LINK.findall(SPAN.sub("", without_fences(text))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        if not place.exists() or (anchor and not has_anchor(place.resolve().relative_to(ROOT).as_posix(), anchor)):
            found.append(target)
    return found


# --- code ----------------------------------------------------------------------------------------


class Block(NamedTuple):
    code: str
    run: bool
    printed: str | None


def python_blocks(text: str) -> list[Block]:
    """Python blocks in order; `run` where the comment <!-- run --> stands before, `printed` the text block after."""
    fences = list(FENCE.finditer(text))
    found = []
    for fence, after in itertools.zip_longest(fences, fences[1:]):
        if fence[1] == "python":
            run = text[: fence.start()].rstrip().endswith("<!-- run -->")
            follows = after is not None and after[1] == "text" and not text[fence.end() : after.start()].strip()
            found.append(Block(fence[2], run, after[2] if follows and after is not None else None))
    return found


def commands(text: str) -> list[list[str]]:
    """The arguments of each `rpo ...` in the bash blocks."""
    found = []
    for fence in FENCE.finditer(text):
        if fence[1] not in ("bash", ""):
            continue
        for line in fence[2].replace("\\\n", " ").splitlines():
            if not line.startswith("rpo ") and "rpo.cli" not in line:
                continue
            words = shlex.split(line, comments=True)
            if words[:1] == ["rpo"]:
                found.append(words[1:])
            elif "rpo.cli" in words:
                found.append(words[words.index("rpo.cli") + 1 :])
    return found


# --- numbers -------------------------------------------------------------------------------------


def unfounded_numbers(text: str) -> list[str]:
    """Numbers in a block under <!-- from FILE --> that FILE does not have."""
    found = []
    for source, block in re.findall(r"<!-- from ([\w./]+) -->\n(.*?)(?:\n\n|\Z)", text, flags=re.DOTALL):
        known = set(NUMBER.findall(text_of(source)))
        found += [f"{number} ({source})" for number in NUMBER.findall(block) if number not in known]
    return found


# --- messages ------------------------------------------------------------------------------------


def words_of(node: ast.expr | None, local: Mapping[str, list[str]]) -> list[str]:
    """The texts a string expression may make, with a gap for what varies; local: those of a function's variables."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [a + b for a in words_of(node.left, local) for b in words_of(node.right, local)]
    if isinstance(node, ast.Name):
        return local.get(node.id, [GAP])
    return [GAP]


@functools.cache
def messages() -> tuple[str, ...]:
    """Every string of the package, and every refusal put together as InvalidArgument and RefusedRow do."""
    return tuple({text for text in _messages() if " " in text})


def _messages() -> Iterator[str]:
    for path in sorted((ROOT / "rpo").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.JoinedStr, ast.BinOp, ast.Constant)):
                yield from words_of(node, {})
            if isinstance(node, ast.FunctionDef):
                yield from refusals(node)


def refusals(function: ast.FunctionDef) -> Iterator[str]:
    local: dict[str, list[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            local.setdefault(node.targets[0].id, []).extend(words_of(node.value, {}))
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if "expected" in given:
            name = ", ".join(words_of(argument, {})[0] for argument in node.args)
            name = f"row {name}" if "reason" in given else name  # RefusedRow
            parts = [words_of(given.get(part), local) for part in ("expected", "got", "remedy")]
        elif ast.unparse(node.func).endswith(".refuse") and len(node.args) == 5:  # of data/formats.py
            name = f"row {GAP}, {words_of(node.args[0], {})[0]}"
            parts = [words_of(argument, local) for argument in node.args[2:]]
        else:
            continue
        for expected, got, remedy in itertools.product(*parts):
            yield f"{name}: expected {expected}, got {got}. {remedy}"


def quoted_messages(text: str) -> list[str]:
    return re.findall(r"^### `(.*)`$", text, flags=re.MULTILINE)


def covers(message: str, quote: str) -> bool:
    """Whether the code's message, gaps taken as any text, says what is quoted, whose gaps are any text too."""
    pieces = [piece.strip() for piece in quote.split(GAP) if piece.strip(" .,:;")]
    position = 0
    for piece in pieces:
        found = message.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    return bool(pieces)
