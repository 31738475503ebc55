"""What a tag would publish: one version everywhere, and a wheel, built from the source archive, that runs by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import rpo

ROOT = Path(__file__).parents[1]


def test_the_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "rpo.__version__"}
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == rpo.__version__
    assert f"## {rpo.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflows_run_what_is_here() -> None:
    """The Pythons they name are those the package names; the release reads the version where it is."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    tests = (ROOT / ".github/workflows/tests.yml").read_text()
    assert str(named).replace("'", '"') in tests and project["requires-python"] == f">={named[0]}"
    pattern = re.search(r"sed -n 's/(.*?)/", (ROOT / ".github/workflows/release.yml").read_text())[1]
    found = re.findall(pattern.replace(r"\(", "(").replace(r"\)", ")"), (ROOT / "rpo/__init__.py").read_text(), re.M)
    assert found == [rpo.__version__]


@pytest.mark.slow
def test_the_wheel_runs_from_a_fresh_environment(tmp_path: Path) -> None:
    """Built from the source archive; only dependencies are borrowed, so that nothing need be downloaded twice."""
    copy = tmp_path / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, files)):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    build = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=copy, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    build = build.replace("sdist", "wheel")
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=unpacked, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"rpo/py.typed", "rpo/cli.py", "rpo/explore/page.css"} & names >= {"rpo/py.typed", "rpo/cli.py"}
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "notebooks/"))]

    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", str(fresh)], check=True)
    python = fresh / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    borrowed = "import sys, pathlib; print(next(p for p in sys.path if p.endswith('site-packages')))"
    site = Path(subprocess.run([python, "-c", borrowed], check=True, capture_output=True, text=True).stdout.strip())
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    where = [python, "-c", "import rpo; print(rpo.__file__, rpo.__version__)"]
    shown = subprocess.run(where, cwd=tmp_path, env=clean, check=True, capture_output=True, text=True).stdout.split()
    assert Path(shown[0]).is_relative_to(fresh) and shown[1] == rpo.__version__
    command = [fresh / "bin" / "rpo", "compare", "--output", "report"]
    subprocess.run(command, cwd=tmp_path, env=clean, check=True, capture_output=True)
    assert (tmp_path / "report" / "report.html").is_file()
