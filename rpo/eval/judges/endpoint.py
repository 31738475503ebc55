"""A chat model behind an OpenAI-compatible endpoint as judge: GPT-4 as in the paper, or a server of one's own."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from rpo.core import checks
from rpo.core.errors import InvalidArgument, MissingDependency, shown
from rpo.eval.judges import UNTOLD, JudgeFailed, Question, Usage, Verdict, token_count
from rpo.eval.judges.wording import TEMPLATE_VERSION, messages, read_verdict

OPENAI = "https://api.openai.com/v1"
# What the server itself may overcome; any other refusal is of this request, or of them all.
PASSING = (408, 409, 425, 429)
FATAL = (401, 402, 403, 404, 405)
OF_ONE_QUESTION = ("content_filter", "context_length_exceeded", "string_above_max_length")
OWN_FIELDS = ("messages", "model", "stream", "n")
# How servers say that a reply came to its end. Any other reason ("length", "content_filter") means that it did not.
ENDED = (None, "", "stop", "eos", "eos_token", "stop_sequence", "stop_token", "end_turn")


class Endpoint:
    """Asks a chat model for a verdict; one request a call, one connection pool for all threads.

    model: its name at the endpoint. api_key_env: the environment variable that holds the key, read at the
    first question and never shown; a loopback address needs none. temperature, max_tokens: of the reply;
    None leaves them out of the request. timeout: seconds from request to whole reply. options: further
    fields of the request body. The address is part of the identity: the same name elsewhere is another
    judge, so a redirect is not followed. Retries are the caller's; at temperature 0, or with a seed, a
    question is asked once as it is and once in other words. Raises InvalidArgument, MissingDependency.
    Needs the extra `eval`.
    """

    at_once = 1

    def __init__(
        self,
        model: str,
        *,
        base_url: str = OPENAI,
        api_key_env: str = "OPENAI_API_KEY",
        temperature: float | None = 0.0,
        max_tokens: int | None = 512,
        timeout: float = 60.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingDependency("An endpoint as judge needs openai: pip install 'rpo-lab[eval]'.") from error
        self._openai = openai
        self.model = checks.instance("model", model, str)
        self.base_url, self._loopback = _address(base_url)
        if not isinstance(api_key_env, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", api_key_env):
            # Not quoted: it may be the key itself.
            raise InvalidArgument(
                "api_key_env",
                expected="the name of an environment variable",
                got="something else",
                remedy="Put the key into a variable and give its name here, never the key.",
            )
        self._api_key_env = api_key_env
        self.timeout = checks.positive("timeout", timeout)
        body: dict[str, Any] = {}
        if temperature is not None:
            body["temperature"] = checks.nonnegative("temperature", temperature)
        if max_tokens is not None:
            body["max_tokens"] = checks.integer("max_tokens", max_tokens, minimum=1)
        self.body = {**body, **_fields({} if options is None else options)}
        self._lock = threading.Lock()
        self._session: _Session | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Address, model, version of the wording, and every field of the request."""
        return {
            "kind": "endpoint",
            "base_url": self.base_url,
            "model": self.model,
            "template": TEMPLATE_VERSION,
            **self.body,
        }

    def tokens(self, question: Question) -> tuple[int, int]:
        """Return tokens in, at 4 ASCII characters or one other each, and the most out (512 where no limit is set)."""
        text = "".join(message["content"] for message in messages(question))
        plain = sum(map(str.isascii, text))
        limits = [value for name, value in self.body.items() if name.endswith("_tokens") and isinstance(value, int)]
        return -(-plain // 4) + len(text) - plain, max(limits, default=512)

    def __call__(self, questions: Sequence[Question]) -> list[Verdict]:
        """Return a verdict each. Raises JudgeFailed, and InvalidArgument where there is no key."""
        return [self._ask(question) for question in checks.instances("questions", questions, Question)]

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; requests under way are given up."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def _ask(self, question: Question) -> Verdict:
        with self._lock:
            if self._session is None:
                self._session = _Session(self._openai, self.base_url, self._key(), self._loopback)
            session = self._session
        try:
            answer = session.run(self._request(session, question))
        except CancelledError:
            answer = JudgeFailed("given up", "the reply was not waited for", retry=False, usage=UNTOLD)
        # Raised here, where no exception is being handled: the client's own holds the request and so the key.
        if isinstance(answer, JudgeFailed):
            raise answer
        return answer

    async def _request(self, session: _Session, question: Question) -> Verdict | JudgeFailed:
        openai = self._openai
        try:
            # The client's own limit is one between bytes, which a server that trickles never reaches.
            async with asyncio.timeout(self.timeout):
                raw = await session.client.chat.completions.with_raw_response.create(
                    model=self.model, messages=messages(question), extra_body=self.body, timeout=self.timeout
                )
            return self._read(raw.http_response.text, session.redact, question)
        except (TimeoutError, openai.APITimeoutError):
            return JudgeFailed("timeout", f"no whole reply within {self.timeout:g} s", usage=UNTOLD)
        except openai.APIStatusError as error:
            return _refusal(error, session.redact)
        except openai.APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            reached = not cause.startswith("Connect")
            return JudgeFailed("connection", f"{cause} from {self.base_url}", usage=UNTOLD if reached else Usage())
        except (openai.OpenAIError, UnicodeError) as error:
            return JudgeFailed("client", type(error).__name__, retry=False)

    def _read(self, text: str, redact: Any, question: Question) -> Verdict | JudgeFailed:
        """Return the verdict of a response body, or how it is none."""
        body: Any = None
        try:
            body = json.loads(text)
            found = body["choices"][0]
            reply, reason = found["message"]["content"], found.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return JudgeFailed("unreadable", f"not a chat completion: {redact(text)[:200]!r}", usage=_usage(body))
        drawn = self.body.get("temperature") != 0 and "seed" not in self.body
        retry, usage = drawn or not question.again, _usage(body)  # undrawn, the same words bring the same reply
        if isinstance(reply, list):  # parts; those that reason have another type
            reply = "".join(str(part.get("text", "")) for part in reply if _is_text(part))
        words = redact(reply if isinstance(reply, str) else "")
        if reason not in ENDED:
            said = f"the reply has no end (finish_reason {str(reason)[:40]!r}): {words[-200:]!r}"
            return JudgeFailed("cut", said, retry=retry, usage=usage)
        choice = read_verdict(reply)
        if choice is None:
            said = f"no verdict at the end of the reply: {words[-200:]!r}"
            return JudgeFailed("invalid", said, retry=retry, usage=usage)
        return Verdict(choice, words, redact(str(body.get("model", ""))), usage.input_tokens, usage.output_tokens)

    def _key(self) -> str | None:
        key = os.environ.get(self._api_key_env, "").strip()
        if not key and self._loopback:
            return None
        if not key or not key.isascii() or not key.isprintable():
            raise InvalidArgument(
                "api_key_env",
                expected=f"a key in the environment variable {self._api_key_env}",
                got="a value with characters that no key has" if key else "none",
                remedy="Set it before the run; it is neither stored nor shown.",
            )
        return key


class _Session:
    """A client and the thread whose event loop it lives on: only there can a request be given up at any point."""

    def __init__(self, openai: Any, base_url: str, key: str | None, loopback: bool) -> None:
        self._secret = key
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge-endpoint", daemon=True)
        self._thread.start()
        # No proxy stands between this machine and itself.
        http = openai.DefaultAsyncHttpxClient(trust_env=not loopback, follow_redirects=False)
        self.client = openai.AsyncOpenAI(base_url=base_url, api_key=key or "none", max_retries=0, http_client=http)

    def run(self, coroutine: Any) -> Any:
        """Return what the coroutine returns, from any thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def redact(self, text: str) -> str:
        """Return text from the server without the key, should it echo it."""
        return text.replace(self._secret, "[key]") if self._secret else text

    def close(self) -> None:
        """Give up requests under way, close the connections and end the thread."""
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self.client.close()


def _address(base_url: str) -> tuple[str, bool]:
    """Return the address without a final slash, and whether it is on loopback. Raises InvalidArgument."""
    try:
        parts = urlsplit(base_url if isinstance(base_url, str) else "")
        host = parts.hostname or ""
        parts.port  # noqa: B018 (raises for one that is no number)
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or "@" in parts.netloc:
        # Not quoted: it may hold a password.
        raise InvalidArgument(
            "base_url",
            expected="http(s)://host[:port]/path, without user, password and query",
            got="something else",
            remedy=f"For example {OPENAI} or http://localhost:8000/v1.",
        )
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return base_url.rstrip("/"), loopback


def _fields(options: Any) -> Mapping[str, Any]:
    """Return further fields of the request body, or refuse what JSON cannot hold and what the judge sets itself."""
    checks.instance("options", options, Mapping)  # type: ignore[type-abstract]
    wrong = [name for name in options if not isinstance(name, str) or name in OWN_FIELDS]
    try:
        json.dumps(dict(options), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        wrong.append(f"{error}")
    for name in wrong[:1]:
        raise InvalidArgument(
            "options",
            expected="fields of JSON that the judge does not set itself",
            got=shown(name),
            remedy="Leave it out.",
        )
    return dict(options)


def _refusal(error: Any, redact: Any) -> JudgeFailed:
    """Return a failure that says what the server's status and words do, and whether to ask again."""
    status, headers = int(error.status_code), error.response.headers
    if 300 <= status < 400:
        where = redact(headers.get("location", "nowhere"))[:200]
        message = f"HTTP {status}: the server sends questions on to {where!r}; if that is meant, give it as base_url"
        return JudgeFailed("redirect", message, retry=False, fatal=True)
    body = error.body if isinstance(error.body, dict) else {}
    said = redact(str(body.get("message") or error.response.text))[:200]
    used_up = body.get("code") == "insufficient_quota"
    passes = status in PASSING or status >= 500
    return JudgeFailed(
        f"HTTP {status}",
        f"HTTP {status}: {said!r}",
        retry=passes and not used_up,
        fatal=status in FATAL or used_up,
        common=not passes and body.get("code") not in OF_ONE_QUESTION,
        retry_after=_retry_after(headers),
    )


def _usage(body: Any) -> Usage:
    """Return the tokens that a response counts, untold where it does not."""
    found = body.get("usage") if isinstance(body, dict) else None
    usage: dict[str, Any] = found if isinstance(found, dict) else {}
    tokens = token_count(usage.get("prompt_tokens")), token_count(usage.get("completion_tokens"))
    return Usage(*tokens) if any(tokens) else UNTOLD


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("text", "output_text")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number, or a date."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None
