"""`rpo explore` refuses what it cannot serve, before it serves."""

import socket
import sys

import pytest

from rpo.commands.explore import LOOPBACK, explore_command, free_port, own_address
from rpo.core.errors import InvalidArgument, MissingDependency


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
