"""What a reader of the notebooks is promised; `make notebooks` runs them."""

import ast
import builtins
import copy
import importlib.util
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from rpo.compare.atlas import entrants
from rpo.core.errors import InvalidArgument
from rpo.teaching import exercises, sliders

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TEACHING = [path for path in NOTEBOOKS if path.name[:2].isdigit()]


def load(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def the_runner() -> Any:
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_are_there() -> None:
    assert [path.name[:2] for path in TEACHING] == ["01", "02", "03", "04", "05", "06", "07", "08"]
    assert len(NOTEBOOKS) - len(TEACHING) == 7


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_says_what_it_teaches_and_how_long_it_takes(path: Path) -> None:
    notebook = load(path)
    first = notebook.cells[0].source
    assert notebook.cells[0].cell_type == "markdown" and first.startswith("# ")
    goals = "Learning goals" if path in TEACHING else "What it answers"
    assert goals in first and re.search(r"Run time: (about|under) \d+ (s|minutes)", first)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_begins_with_a_cell_that_installs_the_package_where_it_is_not(path: Path) -> None:
    """With the package nothing is run; without it one pip command, from the folder above."""
    first = load(path).cells[1]
    assert first.cell_type == "code" and first.outputs == []
    commands: list[tuple[str, str]] = []

    class Shell:
        def run_line_magic(self, *command: str) -> None:
            commands.append(command)  # type: ignore[arg-type]

    def absent(name: str, *args: Any, **options: Any) -> Any:
        raise ModuleNotFoundError(name)

    exec(first.source, {"get_ipython": Shell})
    assert commands == []
    exec(first.source, {"get_ipython": Shell, "__builtins__": vars(builtins) | {"__import__": absent}})
    assert commands == [("pip", "install --quiet -e ..[notebooks]")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_import_from_rpo_only_and_define_no_mathematics(path: Path) -> None:
    """A cell may bind a drawing function to its sliders with lambda; what is computed lives in the package.

    `math` is there for the reader's own answers, math.log(100) say.
    """
    for source in code(load(path)):
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] in ("rpo", "math") for alias in node.names), source
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] == "rpo", source
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef), source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_committed_small_and_clean(path: Path) -> None:
    notebook = load(path)
    assert path.stat().st_size < 400_000
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in ran)
    outputs = [output for cell in ran for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert "/tmp/" not in path.read_text() and "/home/" not in path.read_text()


@pytest.mark.parametrize("path", TEACHING, ids=lambda path: path.stem)
def test_exercises_are_asked_where_they_are_checked(path: Path) -> None:
    number = path.name[:2]
    asked = re.findall(r'check\("([\d.]+)", \.\.\.\)', "\n".join(code(load(path))))
    assert sorted(asked) == sorted(exercises(number)) and len(asked) >= 3
    text = "\n".join(cell.source for cell in load(path).cells if cell.cell_type == "markdown")
    assert all(f"**Exercise {name}" in text for name in asked)


def test_lesson_08_counts_the_losses_it_lists() -> None:
    counted = re.search(r"one of (\d+) losses, listed below", load(TEACHING[7]).cells[0].source)
    assert counted and int(counted[1]) == len({one.name.partition(",")[0] for one in entrants(steps=2)})


def test_every_link_leads_somewhere() -> None:
    for path in NOTEBOOKS:
        for cell in load(path).cells:
            if cell.cell_type == "markdown":
                for target in re.findall(r"\]\(([^)#]+)", cell.source):
                    if not target.startswith("http"):
                        assert (FOLDER / target).exists(), f"{path.name}: {target}"


def test_the_runner_sees_a_changed_output_and_forgives_rounding() -> None:
    runner = the_runner()
    assert runner.same("gap 0.500 at 3", "gap 0.502 at 3")
    assert not runner.same("gap 0.500 at 3", "gap 0.560 at 3")
    assert not runner.same("gap 0.5", "distance 0.5")
    assert not runner.same("1 2", "1")
    old = load(TEACHING[0])
    assert runner.differences(old, old) == []
    new = copy.deepcopy(old)
    cell = next(cell for cell in new.cells if cell.get("outputs") and runner.printed(cell))
    next(output for output in cell.outputs if output.output_type == "stream").text += "one more line\n"
    assert len(runner.differences(old, new)) == 1
    drawn = next(cell for cell in new.cells if runner.pictures(cell))
    drawn.outputs = [output for output in drawn.outputs if "image/png" not in output.get("data", {})]
    assert len(runner.differences(old, new)) == 2


def test_sliders_become_one_figure_of_the_middle(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RPO_STATIC", "1")
    drawn = []
    sliders(lambda **setting: drawn.append(setting), eta=[0, 1, 2], beta=[0.1, 0.2], start={"beta": 0.1})
    assert drawn == [{"eta": 1, "beta": 0.1}]
    assert "eta: 0 to 2; beta: 0.1 to 0.2" in capsys.readouterr().out
    with pytest.raises(InvalidArgument, match="eta: expected at least one value"):
        sliders(print, eta=[])
    with pytest.raises(InvalidArgument, match="start: expected eta among"):
        sliders(print, eta=[0, 1], start={"eta": 3})


def test_sliders_in_a_notebook_draw_again_when_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a live kernel: ipywidgets' own slider is moved, and the figure function is called with its value."""
    import ipywidgets

    import rpo.teaching.controls as module

    monkeypatch.setattr(module, "_live", lambda: True)
    boxes, drawn = [], []
    monkeypatch.setattr("IPython.display.display", boxes.append)
    sliders(lambda eta: drawn.append(eta), eta=[0.0, 0.1, 0.2])
    box = next(item for item in boxes if isinstance(item, ipywidgets.VBox))
    box.children[0].value = 0.2
    assert drawn == [0.1, 0.2]
