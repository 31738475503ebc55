"""The command that serves the explorer."""

from __future__ import annotations

import ipaddress
import socket

from rpo.core import checks
from rpo.core.errors import InvalidArgument, MissingDependency

LOOPBACK = "127.0.0.1"


def explore_command(
    port: int = 5006, host: str = LOOPBACK, browser: bool = True, export: str | None = None, resolved: str = ""
) -> None:
    """Open a page of sliders: what the method, the data, beta and eta do to the policy. Ctrl-C ends it.

    Args:
        port: of the page; 0 for any that is free.
        host: address to listen on. Only this machine reaches 127.0.0.1; the page has no password.
        browser: open the page in the default browser.
        export: an HTML file to write instead: the page with some thousand states computed beforehand, which opens
            anywhere without a server or an installation. Takes 90 s of an idle processor, 163 s of a loaded one.
    """
    if export is not None:
        from rpo.explore import export_page

        made = export_page(export)
        words = ", ".join(f"{count} {word}" for word, count in made.evidence.items())
        print(
            f"Written to {made.path}: {made.states} states ({words}), {made.size / 1e6:.1f} MB. Open it in a browser."
        )
        return
    number = checks.integer("port", port, minimum=0, maximum=65535)
    try:
        from rpo.explore.server import serve
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("panel", "param", "bokeh"):
            raise
        raise MissingDependency("The explorer needs panel: pip install 'rpo-lab[explore]'.") from error
    address = own_address(host)
    number = free_port(number, address)
    print(f"Explorer: http://{host}:{number}/ (Ctrl-C ends it)", flush=True)
    loopback = {"localhost"} if ipaddress.ip_address(address).is_loopback else set()
    serve(number, address, {host, address, *loopback}, browser=browser)


def own_address(host: str) -> str:
    """Return the IPv4 address that `host` means, or refuse what is none, or all of them (as 0, 0x0 and 0.0.0.0)."""
    expected = "one IPv4 address or name of this machine"
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)}
    except (OSError, UnicodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidArgument("host", expected=expected, got=f"{host!r} ({reason})", remedy="Check it.") from error
    if not host.strip() or any(ipaddress.ip_address(address).is_unspecified for address in found):
        raise InvalidArgument(
            "host",
            expected=expected,
            got=repr(host),
            remedy="Only pages from that address may talk to the server, so all of them at once cannot be meant.",
        )
    return LOOPBACK if LOOPBACK in found else min(found)


def free_port(port: int, address: str) -> int:
    """Return `port`, or for 0 one that is free, or refuse an address that cannot be listened on."""
    try:
        with socket.create_server((address, port)) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise InvalidArgument(
            "port, host",
            expected="an address that is free",
            got=f"{address}:{port} ({error.strerror or error})",
            remedy="Pass another port, or --port 0.",
        ) from error
