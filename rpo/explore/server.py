"""The page's server: Panel carries settings one way and results the other; both are made elsewhere.

Imports panel (extra `explore`).
"""

from __future__ import annotations

import html
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import panel
import param
from panel.custom import JSComponent
from tornado.web import ErrorHandler

from rpo.core.errors import RPOError
from rpo.core.records import environment
from rpo.explore.page import SHOWN_VERSIONS, controls, results, said
from rpo.explore.settings import Settings, read_settings
from rpo.explore.view import state

TITLE = "RPO explorer"
INTERNAL = "bokeh-"  # prefix of the server's own parameters of an address


class Explorer(JSComponent):
    """One visitor's page: it sets `request`, and gets `answer`."""

    controls = param.String(doc="HTML of the form")
    request = param.Dict(default={}, doc="serial, and settings: name -> list of texts")
    answer = param.Dict(default={}, doc="serial, html, said, query, problems: how many")

    _esm = Path(__file__).with_name("page.js")

    def __init__(self, settings: Settings, problems: tuple[str, ...], versions: dict[str, str]) -> None:
        self._versions = versions
        answer = self._compute(0, settings, problems)
        super().__init__(controls=controls(settings), answer=answer, sizing_mode="stretch_width", margin=0)
        self.param.watch(self._reply, "request")

    def _reply(self, event: Any) -> None:
        serial = event.new["serial"]
        try:
            self.answer = self._compute(serial, *read_settings(event.new["settings"]))
        except Exception as error:
            # The page waits for an answer: it gets one, and the terminal the traceback of what was not meant.
            if not isinstance(error, RPOError):
                logging.getLogger(__name__).exception("state")
            self.answer = {**self.answer, "serial": serial, "html": _failure(error), "said": "Failed.", "problems": 1}

    def _compute(self, serial: int, settings: Settings, problems: tuple[str, ...]) -> dict[str, Any]:
        view = state(settings)
        page = results(view, problems, self._versions)
        query = settings.to_query()
        return {"serial": serial, "html": page, "said": said(view), "query": query, "problems": len(problems)}


def _failure(error: Exception) -> str:
    text = str(error) if isinstance(error, RPOError) else f"{type(error).__name__}; the terminal says more."
    return f'<div role="alert"><p>{html.escape(text)}</p></div>'


def serve(port: int, address: str, names: Collection[str], *, browser: bool) -> None:
    """Serve the page until interrupted, to requests that name this server and no other. Raises OSError.

    names: by which browsers may call it, `address` among them. A page of another origin is refused, and so is another
    name for this address (as a page gives it that has its own name resolve to this machine).
    """
    found = environment()
    versions = {name: found[name] for name in SHOWN_VERSIONS if name in found}

    def session() -> Explorer:
        given = {
            name: [text.decode("utf-8", "replace") for text in texts]
            for name, texts in panel.state.session_args.items()
            if not name.startswith(INTERNAL)
        }
        return Explorer(*read_settings(given), versions)

    own = {f"{name.lower()}:{port}" for name in names} | ({name.lower() for name in names} if port == 80 else set())
    server = panel.serve(
        {"": session},
        port=port,
        address=address,
        websocket_origin=sorted(own),
        show=browser,
        start=False,
        title=TITLE,
        verbose=False,
    )
    _answer_only(server._tornado, own)
    server.start()
    server.io_loop.start()


def _answer_only(application: Any, own: Collection[str]) -> None:
    """Answer 403 to requests whose Host, or Origin where they have one, is not among `own`."""
    find = application.find_handler

    def checked(request: Any, **keywords: Any) -> Any:
        origin = request.headers.get("Origin")
        named = [request.host, *([] if origin is None else [urlsplit(origin).netloc])]
        if all(name.lower() in own for name in named):
            return find(request, **keywords)
        return application.get_handler_delegate(request, ErrorHandler, {"status_code": 403})

    application.find_handler = checked
