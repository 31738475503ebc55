"""Imports go one way, cost little and load no backend that is not used; user input is never asserted."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rpo"
FOUNDATION = {
    "rpo.bandit",
    "rpo.llm",
    "rpo.eval",
    "rpo.compare",
    "rpo.teaching",
    "rpo.cli",
    "rpo.commands",
    "torch",
    "cvxpy",
    "transformers",
}
FORBIDDEN = {
    "core": FOUNDATION,
    "methods": FOUNDATION,
    "bandit": {
        "rpo.llm",
        "rpo.eval",
        "rpo.compare",
        "rpo.teaching",
        "rpo.cli",
        "rpo.commands",
        "torch",
        "transformers",
    },
    "llm": {"rpo.bandit", "rpo.compare", "rpo.teaching", "rpo.cli", "rpo.commands", "cvxpy"},
    "eval": {"rpo.bandit", "rpo.compare", "rpo.teaching", "rpo.cli", "rpo.commands", "cvxpy"},
    "compare": {"rpo.teaching", "rpo.cli", "rpo.commands"},
    "teaching": {"rpo.cli", "rpo.commands"},
    "explore": {
        "rpo.llm",
        "rpo.eval",
        "rpo.compare",
        "rpo.teaching",
        "rpo.cli",
        "rpo.commands",
        "torch",
        "transformers",
    },
}


def run(code: str) -> str:
    """Return what a fresh interpreter prints, started beside the package under test."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    return done.stdout


def seconds(module: str) -> float:
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    return min(float(run(code)) for _ in range(3))


def loaded_by(module: str) -> set[str]:
    code = f"import json, sys, {module}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    return set(json.loads(run(code)))


def imported(source: str, package: str) -> list[tuple[int, str]]:
    """Return (line, absolute module) of every import statement, those inside functions included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            stem = ".".join([*parts, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{stem}.{alias.name}") for alias in node.names]
    return found


def breaches(source: str, package: str, forbidden: set[str]) -> list[str]:
    return [
        f"{line}: {name}"
        for line, name in imported(source, package)
        if any(name == bad or name.startswith(bad + ".") for bad in forbidden)
    ]


def test_import_rpo_takes_less_than_300_ms() -> None:
    if seconds("numpy") > 1.0:
        pytest.skip("this machine takes over a second to import numpy alone")
    assert seconds("rpo") < 0.3


def test_bandit_loads_neither_torch_nor_transformers() -> None:
    names = loaded_by("rpo.bandit.maximin, rpo.bandit.solver.programs, rpo.bandit")
    assert {"numpy", "scipy", "cvxpy"} <= names
    assert not names & {"torch", "transformers"}


def test_core_loads_neither_torch_nor_cvxpy() -> None:
    modules = ", ".join(f"rpo.core.{p.stem}" for p in sorted((PACKAGE / "core").glob("*.py")) if p.stem != "__init__")
    names = loaded_by(modules)
    assert "numpy" in names and not names & {"torch", "cvxpy", "transformers"}


@pytest.mark.parametrize("part", sorted(FORBIDDEN))
def test_imports_go_one_way(part: str) -> None:
    found = []
    for path in sorted((PACKAGE / part).rglob("*.py")):
        package = ".".join(path.parent.relative_to(PACKAGE.parent).parts)
        found += [f"{path}:{breach}" for breach in breaches(path.read_text(), package, FORBIDDEN[part])]
    assert not found


@pytest.mark.parametrize(
    "statement",
    [
        "import torch.nn",
        "from torch import nn",
        "from rpo.llm.logps.logprobs import token_logps",
        "from rpo import llm",
        "from ..llm import logprobs",
        "from .. import compare",
        "def f():\n    import transformers",
    ],
)
def test_the_import_check_sees_every_spelling(statement: str) -> None:
    """Control of the test above, with the same statement in a string and a lookalike module as innocents."""
    assert len(breaches(statement, "rpo.bandit", FORBIDDEN["bandit"])) == 1
    innocent = f"{statement!r}\nimport torchless\nfrom rpo.core import checks"
    assert breaches(innocent, "rpo.bandit", FORBIDDEN["bandit"]) == []


def circles(sources: dict[str, str]) -> list[set[str]]:
    """Return the sets of modules that import one another, in a circle, of module (packages end in .__init__) -> source.

    Imports inside functions and for types count too: they hide a circle, they do not break it. To import a module is to
    import the packages it lies in, but for those that the importer lies in itself.
    """
    names = {module.removesuffix(".__init__"): module for module in sources}
    after: dict[str, set[str]] = {}
    for name, module in names.items():
        package = module.rpartition(".")[0]
        found = {parent for _, target in imported(sources[module], package) for parent in prefixes(target)}
        after[name] = (found & set(names)) - set(prefixes(name))
    reached = {name: set(targets) for name, targets in after.items()}
    grown = True
    while grown:
        grown = False
        for targets in reached.values():
            more = set().union(*(reached[target] for target in targets)) - targets
            targets |= more
            grown |= bool(more)
    return [
        {other for other in reached if name in reached[other] and other in reached[name]}
        for name in reached
        if name in reached[name]
    ]


def prefixes(name: str) -> list[str]:
    """Return a, a.b and a.b.c of a.b.c."""
    parts = name.split(".")
    return [".".join(parts[: k + 1]) for k in range(len(parts))]


def test_no_modules_import_one_another_in_a_circle() -> None:
    sources = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path.read_text()
        for path in PACKAGE.rglob("*.py")
    }
    assert len(sources) > 200 and circles(sources) == []


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ({"p.a": "import p.b", "p.b": "from p import a"}, [{"p.a", "p.b"}] * 2),
        ({"p.a": "from p.b import x", "p.b": "def f():\n    from p.a import y"}, [{"p.a", "p.b"}] * 2),
        ({"p.a": "if TYPE_CHECKING:\n    from p.q.b import X", "p.q.b": "from ..a import y"}, [{"p.a", "p.q.b"}] * 2),
        ({"p.a": "import p.b", "p.b": "import p.c", "p.c": "import p.a"}, [{"p.a", "p.b", "p.c"}] * 3),
        # Through a package, which p.q.b makes Python run.
        ({"p.a": "import p.q.b", "p.q.__init__": "import p.a", "p.q.b": ""}, [{"p.a", "p.q"}] * 2),
        # Innocents: a package and its modules; a chain.
        ({"p.q.__init__": "from p.q.a import f", "p.q.a": "from p.q import b", "p.q.b": "import p.c", "p.c": ""}, []),
    ],
)
def test_the_search_for_circles_finds_them(sources: dict[str, str], found: list[set[str]]) -> None:
    assert circles(sources) == found


def test_every_file_beside_the_code_goes_into_the_wheel_py_typed_among_them() -> None:
    declared = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {
        path
        for package, patterns in declared.items()
        for pattern in patterns
        for path in PACKAGE.parent.joinpath(*package.split(".")).glob(pattern)
    }
    beside = {path for path in PACKAGE.rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert PACKAGE / "py.typed" in beside and packed == beside


def test_user_input_is_never_asserted() -> None:
    """`assert` vanishes under python -O; refusals are typed exceptions."""
    found = [
        f"{path}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert not found and len(list(PACKAGE.rglob("*.py"))) > 10


@pytest.mark.parametrize(
    "package",
    ["rpo", "rpo.bandit", "rpo.bandit.plots", "rpo.llm", "rpo.eval", "rpo.compare", "rpo.explore", "rpo.teaching"],
)
def test_no_public_name_is_also_a_module(package: str) -> None:
    """Importing a submodule would put it in the place of the function of that name."""
    folder = PACKAGE.parent.joinpath(*package.split("."))
    modules = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    public = getattr(importlib.import_module(package), "__all__", [])
    assert [
        name
        for name in public
        if name in modules and not inspect.ismodule(getattr(importlib.import_module(package), name))
    ] == []
