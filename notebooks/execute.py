"""Run notebooks from a clean kernel: `python notebooks/execute.py [--write] [NOTEBOOK ...]` (all of them by default).

Without --write nothing is changed, and a notebook whose committed text differs from what it prints now is an error:
numbers may differ by `TOLERANCE`, as they do between machines. With --write the outputs are stored.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

FOLDER = Path(__file__).resolve().parent
TOLERANCE = 0.05
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")


def execute(path: Path) -> tuple[Any, float]:
    """Return the notebook with fresh outputs, and the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    start = time.perf_counter()
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}})
    client.extra_arguments = ["--log-level=ERROR"]  # else a remark on loopback ports for every kernel
    client.execute()
    return notebook, time.perf_counter() - start


def tidy(notebook: Any) -> Any:
    """Drop what changes from run to run without meaning anything."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = smaller(output.data["image/png"])
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def smaller(image: str) -> str:
    """Return a base64 PNG with 128 colours: half the bytes, and nothing lost that a reader sees."""
    picture = Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")
    written = io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(written, format="png", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def pictures(cell: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))


def printed(cell: Any) -> str:
    texts = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.name == "stdout":
            texts.append(output.text)
        elif output.output_type == "execute_result" and "image/png" not in output.data:
            texts.append(output.data.get("text/plain", ""))
    return "".join(texts)


def same(old: str, new: str) -> bool:
    """Whether two texts agree, numbers up to `TOLERANCE` of the larger."""
    if NUMBER.sub("#", old).split() != NUMBER.sub("#", new).split():
        return False
    pairs = zip(map(float, NUMBER.findall(old)), map(float, NUMBER.findall(new)), strict=True)
    return all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) + 1e-6 for a, b in pairs)


def differences(old: Any, new: Any) -> list[str]:
    """What a reader of the committed notebook would read that is not printed now."""
    found = []
    for index, (before, after) in enumerate(zip(old.cells, new.cells, strict=True)):
        if "varies" in before.metadata.get("tags", []):
            continue
        was, now = printed(before), printed(after)
        if not same(was, now):
            found.append(f"cell {index}: the committed output is {was!r}, and now it is {now!r}")
        if pictures(before) != pictures(after):
            found.append(
                f"cell {index}: the committed output has {pictures(before)} figures, and now {pictures(after)}"
            )
    return found


def run(path: Path, write: bool) -> tuple[str, list[str]]:
    try:
        notebook, seconds = execute(path)
    except CellExecutionError as error:
        return f"{path.name}: failed", [str(error)]
    if write:
        nbformat.write(tidy(notebook), path)
    wrong = differences(nbformat.read(path, as_version=4), notebook)
    return f"{path.name}: {seconds:.0f} s", wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--write", action="store_true", help="store the outputs")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    # The kernels inherit these: static figures, one thread each, no network.
    os.environ |= {"RPO_STATIC": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    paths = options.notebooks or sorted(FOLDER.glob("*.ipynb"))
    failed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for line, wrong in pool.map(lambda path: run(path, options.write), paths):
            print(line, *wrong, sep="\n  ", flush=True)
            failed += bool(wrong)
    return 1 if failed or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
