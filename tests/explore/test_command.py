"""`rpo explore` refuses what it cannot serve, before it serves."""

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from rpo import explore
from rpo.commands.explore import LOOPBACK, explore_command, free_port, own_address
from rpo.core.errors import InvalidArgument, MissingDependency, OutputError
from rpo.explore import export_page


def test_without_panel_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "panel", None)
    monkeypatch.delitem(sys.modules, "rpo.explore.server", raising=False)
    with pytest.raises(MissingDependency, match=r"rpo-lab\[explore\]"):
        explore_command(browser=False)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"beta": (0.5, 1.0)}, "grid: beta: expected different values, rising, with the default 0.1 among them"),
        ({"beta": (0.1, 0.05)}, "rising"),
        ({"beta": (0.1, 0.1)}, "different"),
        ({"n": (30, 2.5)}, "grid: n: expected an integer"),
        ({"method": ("dpo", "ppo")}, "grid: method: expected one of"),
        ({"along": ("beta", "eta")}, "grid: expected settings among"),
    ],
)
def test_a_grid_that_no_page_can_hold_is_refused(tmp_path: Path, grid: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        export_page(tmp_path / "page.html", grid)
    assert not list(tmp_path.iterdir())


def test_an_export_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "page.html"):
        with pytest.raises(OutputError, match="export"):
            explore_command(export=str(path))


def test_the_command_says_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"method": ("dpo", "base"), "beta": (0.1, 1.0)}
    monkeypatch.setattr(explore, "export_page", lambda path: export_page(path, small))
    explore_command(export=str(tmp_path / "page.html"))
    said, told = capsys.readouterr()
    assert told.startswith("Computing 1 draws; ")
    assert said.startswith(f"Written to {tmp_path / 'page.html'}: 3 states (2 certified, 1 exact), 0.0 MB.")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_a_taken_port_is_refused_and_a_free_one_is_kept() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidArgument, match=f"{LOOPBACK}:{port}.*--port 0"):
            free_port(port, LOOPBACK)
    assert free_port(port, LOOPBACK) == port  # control: free again
    assert free_port(0, LOOPBACK) > 0


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "0", "0x0", "0.0", "00", "0x0.0x0", "0.0.0", "", " ", "::", "::0", "host.invalid", "a" * 300]
)
def test_hosts_that_cannot_be_one_address_are_refused(host: str) -> None:
    with pytest.raises(InvalidArgument, match="host: expected one IPv4 address"):
        own_address(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "0x7f000001"])
def test_other_spellings_of_loopback_are_loopback(host: str) -> None:
    """The control of the refusals: what names one address is taken, and bound by that address."""
    assert own_address(host) == LOOPBACK


@pytest.mark.parametrize("port", [-1, 65536, 1.5])
def test_ports_out_of_range_are_refused(port: float) -> None:
    with pytest.raises(InvalidArgument, match="port: expected an integer"):
        explore_command(port=port, browser=False)  # type: ignore[arg-type]
