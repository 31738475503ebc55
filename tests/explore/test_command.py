"""`rpo explore` refuses what it cannot serve, before it serves."""

import socket
import sys

import pytest

from rpo.core.errors import InvalidArgument, MissingDependency
from rpo.explore.command import LOOPBACK, explore_command, free_port


def test_without_panel_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "panel", None)
    monkeypatch.delitem(sys.modules, "rpo.explore.server", raising=False)
    with pytest.raises(MissingDependency, match=r"rpo-lab\[explore\]"):
        explore_command(browser=False)


def test_a_taken_port_is_refused_and_a_free_one_is_kept() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidArgument, match=f"{LOOPBACK}:{port}.*--port 0"):
            free_port(port, LOOPBACK)
    assert free_port(port, LOOPBACK) == port  # control: free again
    assert free_port(0, LOOPBACK) > 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "host.invalid"])
def test_hosts_that_cannot_be_one_address_are_refused(host: str) -> None:
    with pytest.raises(InvalidArgument, match="host"):
        free_port(0, host)


@pytest.mark.parametrize("port", [-1, 65536, 1.5])
def test_ports_out_of_range_are_refused(port: float) -> None:
    with pytest.raises(InvalidArgument, match="port: expected an integer"):
        explore_command(port=port, browser=False)  # type: ignore[arg-type]
