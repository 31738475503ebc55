"""One run a folder: a live one keeps others out, a dead one never does, and what it left half-written goes."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rpo.core.errors import OutputError
from rpo.core.locks import LOCK, STAGE, InUse, alone
from rpo.core.records import staged_output

HOLD = """
import sys, time
from rpo.core.locks import alone
with alone(sys.argv[1]) as folder:
    (folder / ".stage-half").mkdir()
    (folder / ".stage-half" / "x").write_text("half")
    (folder / ".stage-file").write_text("half")
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that has tmp_path / "out", and is writing in it."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.communicate()


def test_a_live_run_keeps_others_out_and_is_named(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(InUse, match=rf"out \(process {holder.pid} on .*\) is in use by another run\. Wait"):
        alone(tmp_path / "out").__enter__()
    with pytest.raises(InUse), staged_output(tmp_path / "out", overwrite=True, marker="x"):
        raise AssertionError("not reached")
    assert (tmp_path / "out" / f"{STAGE}half" / "x").exists()  # what a live run is writing stays
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(InUse):
        alone(tmp_path / "link").__enter__()  # another spelling of the same folder


def test_a_killed_run_keeps_nobody_out_and_what_it_was_writing_goes(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    (tmp_path / "out" / "result").write_text("whole")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "out" / LOCK).exists() and (tmp_path / "out" / f"{STAGE}file").exists()
    with alone(tmp_path / "out"):
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [LOCK, "result"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result"]


def test_one_thread_may_enter_again_and_another_may_not(tmp_path: Path) -> None:
    refused: list[InUse] = []

    def try_it() -> None:
        try:
            alone(tmp_path).__enter__()
        except InUse as error:
            refused.append(error)

    with alone(tmp_path), alone(tmp_path):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert len(refused) == 1
    with alone(tmp_path):  # control: free again
        pass


def test_folders_made_for_nothing_go_again(tmp_path: Path) -> None:
    with alone(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with alone(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept"]


@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "file/below"])
def test_paths_that_no_system_takes_are_typed_errors(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="expected a (writable )?folder"):
        alone(tmp_path / name).__enter__()


def test_a_folder_that_goes_while_it_is_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What mkdir meets when the run that had the folder removes it between the system's answer and the next look."""
    mkdir, seen = Path.mkdir, []

    def late(path: Path, *args: object, **kwargs: object) -> None:
        seen.append(path)
        if len(seen) == 1:
            raise FileExistsError(17, "File exists", str(path))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", late)
    with alone(tmp_path / "out") as folder:
        assert folder.is_dir() and len(seen) == 2


def test_many_at_once_have_it_one_after_the_other(tmp_path: Path) -> None:
    """Eight processes each take the folder twenty times: no two at a time, no file left, none fails otherwise."""
    code = """
import sys, os, time
from pathlib import Path
from rpo.core.locks import alone, InUse
got = 0
while got < 20:
    try:
        with alone(sys.argv[1]) as folder:
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            (folder / "inside").unlink()
            got += 1
    except InUse:
        time.sleep(0.001)
"""
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")]) for _ in range(8)]
    assert [run.wait(timeout=120) for run in runs] == [0] * 8
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
