"""An OpenAI-compatible server on loopback that knows the right answer, counts what it is asked, and fails at will."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from rpo.eval.planning import Pair

QUESTION = re.compile(
    r"\[prompt\]\n(.*)\n\[end of prompt\]\n\n\[answer A\]\n(.*)\n\[end of answer A\]\n\n"
    r"\[answer B\]\n(.*)\n\[end of answer B\]",
    re.DOTALL,
)
Asked = tuple[str, str, str]
FAULTS = ("500", "503", "429", "drop", "cut", "hang", "html", "no choices", "outside", "prose", "length", "thinking")


def quality(text: str) -> int:
    """The number after "q": what the truthful server goes by."""
    return int(re.search(r"q(-?\d+)", text)[1])  # type: ignore[index]


def truth(asked: Asked) -> str:
    a, b = quality(asked[1]), quality(asked[2])
    return "tie" if a == b else "A" if a > b else "B"


def pairs(count: int, seed: int = 0) -> list[Pair]:
    """Two models whose responses say how good they are."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 4, count), rng.integers(0, 3, count)
    return [
        Pair(f"p{k}", "a", "b", f"p{k} a q{i}", f"p{k} b q{j}")
        for k, (i, j) in enumerate(zip(first, second, strict=True))
    ]


def none(asked: Asked, attempt: int) -> None:
    return None


def often(share: float, seed: int = 0, kinds: tuple[str, ...] = FAULTS) -> Callable[[Asked, int], str | None]:
    """Fail `share` of the requests, which ones being a function of the question and of how often it was asked."""

    def fault(asked: Asked, attempt: int) -> str | None:
        rng = random.Random(f"{seed} {asked} {attempt}")
        return rng.choice(kinds) if rng.random() < share else None

    return fault


class JudgeServer:
    """asked, answered: requests and verdicts by question; keys: Authorization headers; bodies: requests."""

    def __init__(
        self,
        answer: Callable[[Asked], str] = truth,
        fault: Callable[[Asked, int], str | None] = none,
        delay: float = 0.0,
    ) -> None:
        self.answer, self.fault, self.delay = answer, fault, delay
        self.asked: Counter[Asked] = Counter()
        self.answered: Counter[Asked] = Counter()
        self.faults: Counter[str] = Counter()
        self.keys: list[str | None] = []
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.usage: tuple[int, int] | None = (100, 10)
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._server = _Quiet(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def begin(self, handler: BaseHTTPRequestHandler) -> tuple[Asked, str | None]:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        asked: Asked = QUESTION.search(body["messages"][-1]["content"]).groups()  # type: ignore[assignment, union-attr]
        with self._lock:
            self.asked[asked] += 1
            self.times.append(time.monotonic())
            self.keys.append(handler.headers.get("Authorization"))
            self.bodies.append(body)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            fault = self.fault(asked, self.asked[asked])
            self.faults[fault or ""] += 1
        return asked, fault

    def end(self, asked: Asked | None) -> None:
        with self._lock:
            self.at_once -= 1
            if asked is not None:
                self.answered[asked] += 1


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are expected here."""


def _handler(server: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            asked, fault = server.begin(self)
            answered = None
            try:
                if server.delay:
                    server.closing.wait(server.delay)
                if fault is None:
                    words = f'Because.\n{{"verdict": "{server.answer(asked)}"}}'
                    self.send(200, completion(words, usage=server.usage))
                    answered = asked
                else:
                    self.fail(fault)
            finally:
                server.end(answered)

        def fail(self, fault: str) -> None:
            if fault == "drop":
                self.close_connection = True
            elif fault == "cut":
                self.send(200, completion("Beca"), claimed=1000)
                self.close_connection = True
            elif fault == "hang":
                server.closing.wait(30)
                self.close_connection = True
            elif fault == "trickle":
                self.send(200, " ", claimed=1000)
                while not server.closing.wait(0.03):
                    self.wfile.write(b" ")
            elif fault == "html":
                self.send(200, "<html>busy</html>", kind="text/html")
            elif fault == "no choices":
                self.send(200, json.dumps({"choices": []}))
            elif fault == "outside":
                self.send(200, completion('{"verdict": "C"}', usage=server.usage))
            elif fault == "prose":
                self.send(200, completion("Answer A is better, I think.", usage=server.usage))
            elif fault == "length":
                self.send(200, completion('{"verdict": "A"}', "length", usage=server.usage))
            elif fault == "thinking":
                self.send(200, completion('<think>Say, {"verdict": "A"}', usage=server.usage))
            elif fault.startswith("307"):
                self.send(307, "", headers={"Location": fault.partition(" ")[2]})
            elif fault.startswith("429"):
                self.send(429, error("slow down"), headers={"Retry-After": fault.partition(" ")[2] or "0.01"})
            elif fault == "quota":
                self.send(429, error("out of credit", code="insufficient_quota"))
            elif fault == "echo":
                self.send(500, error(f"you sent {self.headers.get('Authorization')}"))
            elif fault == "echo in a reply":
                self.send(200, completion(f'You sent {self.headers.get("Authorization")}.\n{{"verdict": "A"}}'))
            else:
                self.send(int(fault), error(f"status {fault}"))

        def send(
            self,
            status: int,
            text: str,
            *,
            kind: str = "application/json",
            claimed: int | None = None,
            headers: dict[str, str] | None = None,
        ) -> None:
            body = text.encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(claimed or len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler


def completion(words: Any, reason: str | None = "stop", usage: tuple[int, int] | None = (100, 10), **more: Any) -> str:
    message = {"role": "assistant", "content": words, **more}
    body: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "judge-2026",
        "choices": [{"index": 0, "finish_reason": reason, "message": message}],
    }
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return json.dumps(body)


def error(message: str, code: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "type": "error", "code": code}})
