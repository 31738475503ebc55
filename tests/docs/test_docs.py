"""What the documentation says is so: links, paths, commands, printed numbers, names, messages, and the site builds."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import docs_pages as pages
import numpy as np
import pandas
import pytest
import yaml

import rpo
from rpo.cli import COMMANDS, build_parser
from rpo.commands.choices import Given
from rpo.commands.data_source import DataSource
from rpo.commands.train import Lora
from rpo.methods.registry import METHODS

ROOT, SITE = pages.ROOT, pages.SITE
EVERYWHERE = [*SITE, *pages.ELSEWHERE]
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers.python", "math_core")
# Their tables name the options of other programs.
FOREIGN = {"docs/coming_from.md", "docs/paper_index.md"}
PACKAGES = (
    "rpo",
    "rpo.bandit",
    "rpo.bandit.baselines",
    "rpo.bandit.batched",
    "rpo.bandit.bounds",
    "rpo.bandit.coverage",
    "rpo.bandit.plots",
    "rpo.bandit.simulation",
    "rpo.compare",
    "rpo.explore",
    "rpo.llm",
    "rpo.llm.data",
    "rpo.llm.diagnostics",
)


# --- links, paths and names ------------------------------------------------------------------------


@pytest.mark.parametrize("page", EVERYWHERE)
def test_links_and_anchors_resolve(page: str) -> None:
    assert pages.broken_links(page, pages.text_of(page)) == []


def test_the_link_check_sees_a_missing_file_and_a_missing_anchor() -> None:
    """Control: two good links and two bad ones; a link inside code is none."""
    text = "[a](theory.md) [b](theory.md#4-equality-with-dpo--eta-beta-sft) [c](no.md) [d](theory.md#no) `[e](x.md)`"
    assert pages.broken_links("docs/index.md", text) == ["no.md", "theory.md#no"]


@pytest.mark.parametrize("page", EVERYWHERE)
def test_paths_named_exist(page: str) -> None:
    text = pages.text_of(page)
    named = re.findall(r"(?<![\w/.])((?:rpo|docs|tests|recipes|benchmarks|examples)/[\w./-]*\w)", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", EVERYWHERE)
def test_dotted_names_exist(page: str) -> None:
    spans = pages.SPAN.findall(pages.prose(page))
    named = [match[0] for span in spans if (match := re.match(r"rpo(?:\.\w+)+", span))]
    assert [name for name in named if resolve(name) is None] == []


def resolve(name: str) -> Any:
    """The object of a dotted name, or None."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            found = getattr(found, part, None)
        return found
    return None


def test_the_name_check_sees_a_name_that_is_not_there() -> None:
    assert resolve("rpo.bandit.solve") is not None
    assert resolve("rpo.bandit.sole") is None
    assert resolve("rpo.bandits") is None


@pytest.mark.parametrize("page", SITE)
def test_settings_named_exist(page: str) -> None:
    from rpo.llm.training.config import RPOConfig

    groups = {"training": [RPOConfig], "lora": [Lora], "dataset": [DataSource]}
    groups["objective"] = [method.load() for method in METHODS.values()]
    known = {
        name: {"name"}.union(*({field.name for field in fields(kind)} | set(dir(kind)) for kind in kinds))
        for name, kinds in groups.items()
    }
    spans = pages.SPAN.findall(pages.prose(page))
    named = [
        match
        for span in spans
        for match in re.findall(r"(?<![\w.])(training|objective|lora|dataset)\.(?!py\b)(\w+)", span)
    ]
    assert [f"{group}.{name}" for group, name in named if name not in known[group]] == []


@pytest.mark.parametrize("page", EVERYWHERE)
def test_extras_named_exist(page: str) -> None:
    extras = tomllib.loads(pages.text_of("pyproject.toml"))["project"]["optional-dependencies"]
    named = re.findall(r"(?:rpo-lab|-e '?\.)\[([\w,]+)\]", pages.text_of(page))
    assert [name for names in named for name in names.split(",") if name not in extras] == []


@pytest.mark.parametrize("page", EVERYWHERE)
def test_rows_of_a_table_have_its_columns(page: str) -> None:
    """A bar in a formula splits a cell on GitHub and here alike."""
    for table in re.findall(r"(?:^\|.*\n)+", pages.prose(page), flags=re.MULTILINE):
        rows = [re.sub(r"`[^`]*`", "", row) for row in table.splitlines()]
        assert {row.count("|") - row.count("\\|") for row in rows} == {rows[0].count("|")}, table[:200]


# --- commands ----------------------------------------------------------------------------------------


def parse(arguments: list[str]) -> None:
    """Parse as `rpo` does; raise for anything it would refuse."""
    name = next(name for name in COMMANDS if arguments[: name.count(" ") + 1] == name.split())
    given = Given(arguments[name.count(" ") + 1 :])
    parser = build_parser(name, COMMANDS[name].settle(given))[0]
    for mistake in given.mistakes:
        raise mistake
    parser.parse_args([*name.split(), *given.arguments])


@pytest.mark.parametrize("page", EVERYWHERE)
def test_commands_parse(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for arguments in pages.commands(pages.text_of(page)):
        parse(arguments)


def test_the_command_check_refuses_what_rpo_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: an unknown option, an unknown command, a recipe that is not there."""
    monkeypatch.chdir(ROOT)
    parse(["solve", "pairs.csv", "--objective.beta", "1"])
    for wrong in (["solve", "pairs.csv", "--objective.betas", "1"], ["solve", "--config", "recipes/no.yaml"], ["solv"]):
        with pytest.raises(Exception):  # noqa: B017 (jsonargparse's own, or none left to choose from)
            parse(wrong)


@functools.cache
def options_of(name: str, *given: str) -> set[str]:
    """Return the options of a command, with those of the objective that the words given name."""
    sub = build_parser(name, COMMANDS[name].settle(Given(given)))[1]
    return {option for action in sub._actions for option in action.option_strings} if sub is not None else set()


@pytest.mark.parametrize("page", [page for page in EVERYWHERE if page not in FOREIGN])
def test_commands_and_options_named_in_the_text_exist(page: str) -> None:
    spans = [span for span in pages.SPAN.findall(pages.prose(page)) if re.match(r"rpo [a-z]|--\w", span)]
    for span in spans:
        named = [name for name in COMMANDS if re.match(rf"rpo {name}\b", span)]
        if span.startswith("rpo "):
            assert named or any(name.startswith(span.removeprefix("rpo ").split()[0]) for name in COMMANDS), span
        given = set(re.findall(r"(?<!\S)--[\w.]+", span)) - {"--smoke", "--noise", "--threads", "--dtype"}
        for option in given:
            words = span.split() if "--objective " in span else []
            assert any(option in options_of(name, *words) for name in (named or COMMANDS)), span


def test_every_command_is_described() -> None:
    text = pages.text_of("docs/api/commands.md")
    documented = {name: resolve(name) for name in pages.directives(text)}
    for name, command in COMMANDS.items():
        assert f"## rpo {name}\n" in text
        assert command.function in documented.values(), name


# --- code and numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in SITE if pages.python_blocks(pages.text_of(page))])
def test_python_blocks_run_and_print_what_is_printed(page: str) -> None:
    """Marked blocks run in order in one namespace, as a reader would; of the others names and keywords are checked."""
    namespace: dict[str, Any] = {}
    for block in pages.python_blocks(pages.text_of(page)):
        if not block.run:
            check_names(block.code)
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.code, page, "exec"), namespace)
        assert printed.getvalue() == (block.printed or "")


def check_names(code: str) -> None:
    """Run the imports, and hold keywords of RPOConfig and rpo.fit to the fields there are."""
    from rpo.llm.training.config import RPOConfig
    from rpo.llm.training.fitting import fit

    known = {field.name for field in fields(RPOConfig)}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            exec(compile(ast.Module([node], []), "docs", "exec"), {})
        elif isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in ("RPOConfig", "rpo.fit"):
            allowed = known | (set(inspect.signature(fit).parameters) if name == "rpo.fit" else set())
            assert {keyword.arg for keyword in node.keywords} <= allowed, ast.unparse(node)


def test_the_name_check_of_blocks_sees_a_wrong_keyword() -> None:
    check_names("from rpo.llm import RPOConfig\nRPOConfig(beta=0.1)")
    with pytest.raises(AssertionError):
        check_names("RPOConfig(betas=0.1)")
    with pytest.raises(ImportError):
        check_names("from rpo.bandit import sole")


@pytest.mark.parametrize("page", SITE)
def test_numbers_quoted_from_elsewhere_are_there(page: str) -> None:
    assert pages.unfounded_numbers(pages.text_of(page)) == []


def test_the_number_check_sees_another_number() -> None:
    """Control: of the two numbers the first is in the table of the benchmark, the second is not."""
    text = "<!-- from benchmarks/README.md -->\n| 30 | .583 (.099) |\n\n.098 is under no comment\n"
    assert pages.unfounded_numbers(text) == [".099 (benchmarks/README.md)"]


# --- public names ----------------------------------------------------------------------------------------


def public_names() -> dict[str, Any]:
    """Public name -> object: what the packages export, and what the modules of core and eval define."""
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        found |= {f"{package}.{name}": resolve(f"{package}.{name}") for name in module.__all__}
    for folder in ("core", "eval"):
        for path in sorted((ROOT / "rpo" / folder).rglob("*.py")):
            if path.stem.endswith("_command"):
                continue
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            module = importlib.import_module(dotted)
            found |= {
                f"{dotted}.{name}": value
                for name, value in vars(module).items()
                if not name.startswith("_") and getattr(value, "__module__", None) == dotted and callable(value)
            }
    return found


def test_every_public_name_has_a_docstring_and_a_place_in_the_reference() -> None:
    shown = {name for page in SITE if page.startswith("docs/api/") for name in pages.directives(pages.text_of(page))}
    missing, undocumented = [], []
    names = public_names()
    for name, value in names.items():
        if name == "rpo.__version__":
            continue
        if inspect.ismodule(value):
            covered = any(one == value.__name__ or one.startswith(f"{value.__name__}.") for one in shown)
        else:
            home = f"{value.__module__}.{value.__qualname__}"
            covered = name in shown or home in shown or value.__module__ in shown or resolved(value, shown)
        missing += [] if covered else [name]
        undocumented += [] if (inspect.getdoc(value) or "").strip() else [name]
    assert (missing, undocumented) == ([], [])
    assert len(names) > 250  # the collection sees the packages


def resolved(value: Any, shown: set[str]) -> bool:
    """Whether some entry of the reference is this very object under another name."""
    return any(one.rpartition(".")[2] == getattr(value, "__name__", "") and resolve(one) is value for one in shown)


@pytest.mark.parametrize("page", [page for page in SITE if page.startswith("docs/api/")])
def test_the_reference_names_what_exists(page: str) -> None:
    assert [name for name in pages.directives(pages.text_of(page)) if resolve(name) is None] == []


# --- messages ------------------------------------------------------------------------------------------------


def test_messages_quoted_are_messages_of_the_code() -> None:
    known = pages.messages()
    quotes = pages.quoted_messages(pages.text_of("docs/troubleshooting.md"))
    assert [quote for quote in quotes if not any(pages.covers(message, quote) for message in known)] == []
    assert len(quotes) > 50


def test_the_message_check_sees_a_changed_word() -> None:
    """Control, on a refusal of the trainer's configuration."""
    known = pages.messages()
    quote = "fp16: expected a CUDA device, got none. Use bf16=True, or neither."
    assert any(pages.covers(message, quote) for message in known)
    assert not any(pages.covers(message, quote.replace("neither", "either")) for message in known)


# --- metadata and the site -----------------------------------------------------------------------------------


def test_citation_and_changes_have_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what the format requires
    assert citation["version"] == rpo.__version__
    assert 'version = { attr = "rpo.__version__" }' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert len(citation["preferred-citation"]["authors"]) == 8
    assert f"## {rpo.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation_and_the_other_way_round() -> None:
    listed = re.findall(
        r"^ +- [^\n]*: ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    hooks = (ROOT / "docs" / "mkdocs_hooks.py").read_text(encoding="utf-8")
    kept_elsewhere = re.findall(r'^    "([\w/.]+)": "([\w.]+)",$', hooks, flags=re.MULTILINE)
    assert all((ROOT / source).exists() for source, _ in kept_elsewhere)
    made = {page for _, page in kept_elsewhere}
    made |= {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert sorted(listed) == sorted({page.removeprefix("docs/") for page in SITE} | made)


def absent() -> list[str]:
    found = []
    for name in NEEDED:
        try:
            there = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            there = False
        found += [] if there else [name]
    return found


@pytest.mark.skipif(bool(absent()), reason=f"needs {', '.join(absent())}: pip install 'rpo-lab[docs]'")
def test_the_site_builds_without_a_warning_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    written = {
        path.relative_to(tmp_path / "site").as_posix(): path.read_text("utf-8") for path in tmp_path.rglob("*.html")
    }
    assert "<math" in written["theory.html"] and "<math" in written["api/core.html"]
    lesson = written["notebooks/01_overoptimization.html"]
    assert "<math" in lesson and 'src="data:image/png;base64,' in lesson and "not answered yet" in lesson
    for name, html in written.items():
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]*src="(https?:[^"]*)|<link[^>]*stylesheet[^>]*href="(https?:[^"]*)', html
        )
        assert loaded == [], name
        assert 'class="arithmatex"' not in html, name
    anchors = {name for html in written.values() for name in re.findall(r'id="(rpo[\w.]*)"', html)}
    for name in ("rpo.RPO", "rpo.fit", "rpo.bandit.solve", "rpo.llm.RPOTrainer", "rpo.eval.win_rates.win_rate"):
        assert name in anchors


def test_the_study_on_smollm2_says_what_its_table_holds() -> None:
    """docs/reproduce.md against the measurements beside its figure: each row, rounded; and pi_ref's own gold."""
    frame = pandas.read_csv(ROOT / "docs" / "figures" / "gold_smollm2.csv")
    text = pages.text_of("docs/reproduce.md")
    block = re.search(r"<!-- gold_smollm2 -->\n(.*?)<!-- end -->", text, flags=re.DOTALL)
    assert block
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block[1].strip().splitlines()[2:]]
    expected = []
    for (seed, method), run in frame.groupby(["seed", "method"]):
        best, last = run.loc[run["gold"].idxmax()], run.loc[run["step"].idxmax()]
        gold = [f"{at['gold']:.2f} ({at['gold_se']:.2f}) at {at['kl/reference']:.0f}" for at in (best, last)]
        shares = [f"{100 * last[name]:.0f} %" for name in ("win_rate/gold", "text/repetition")]
        expected.append([str(seed), method, *gold, *shares, f"{last['logps/chosen']:.0f}"])
    assert rows == expected and len(rows) == 6
    references = [f"{value:.2f}" for value in frame.groupby("seed")["gold/reference"].first()]
    assert f"pi_ref itself earns {references[0]}, {references[1]} and {references[2]}." in text
    ends = frame[frame["step"] == frame["step"].max()]
    best = frame.groupby(["seed", "method"])["gold"].max().groupby("method").mean()
    assert (
        f"from {best['RPO eta=1']:.2f} to {ends.groupby('method')['gold'].mean()['RPO eta=1']:.2f} on average" in text
    )
    wide = ends.pivot(index="seed", columns="method", values=["gold", "gold_se"])
    apart = wide["gold"]["RPO eta=1"] - wide["gold"]["DPO"]
    assert (apart > 4 * np.hypot(wide["gold_se"]["RPO eta=1"], wide["gold_se"]["DPO"])).all()
