"""Judges: what they ask and how their answers are read; an endpoint's faults; keys that stay unseen."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_server import JudgeServer, completion

from rpo.core.errors import InvalidArgument, OutputError
from rpo.eval.judges import UNTOLD, JudgeFailed, Question, Usage, Verdict
from rpo.eval.judges.endpoint import Endpoint, _address, _retry_after
from rpo.eval.judges.loading import load
from rpo.eval.judges.recorded import Recorded
from rpo.eval.judges.scored import Scored
from rpo.eval.judges.wording import TEMPLATE_VERSION, messages, prompt_text, read_verdict
from rpo.eval.scorers import Function, Length
from rpo.eval.verdicts import VerdictStore, question_key

KEY = "sk-never-shown-4711"
WORSE, BETTER = Question("p", "q1", "q2"), Question("p", "q3", "q2")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ('{"verdict": "A"}', "first"),
        ('B is wrong.\n{"verdict": "A"}\n', "first"),
        ('```json\n{"verdict": "B"}\n```', "second"),
        ('{\n  "verdict": "tie"\n}', "tie"),
        ('{"verdict": "A"} is what I would say, but {"verdict": "B"}', "second"),
        ('{"verdict": "A"} or maybe not', None),
        ('{"verdict": "a"}', "first"),
        ('{"verdict": "Tie"}', "tie"),
        ('**{"verdict": "B"}**', "second"),
        ('`{"verdict": "B"}`.', "second"),
        ("{'verdict': 'B'}", "second"),
        ("{\u201cverdict\u201d: \u201cB\u201d}", "second"),
        ('{"verdict": "**B**"}', "second"),
        ('{"verdict": "A"}<|eot_id|>', "first"),
        ('{"verdict": "A"}</s>', "first"),
        ('{"verdict": "A"} <end_of_turn>\n', "first"),
        ('{"verdict": "A"}<\uff5cend\u2581of\u2581sentence\uff5c>', "first"),
        ("Because.\nTie", "tie"),
        ("**Tie**", "tie"),
        ("Because.\n**Verdict:** B", "second"),
        ("My final verdict is A.", "first"),
        ("So it is [[B]]", "second"),
        ("[[A]]", "first"),
        ("[[C]]", None),
        ("Both are a", None),
        ("Neither A nor B", None),
        ("It is not A", None),
        ('Not {"verdict": "A"}?', None),
        ("A" + "*" * 2000, None),
        ("*" * 50000 + "{" * 50000, None),
        ('{"verdict": "C"}', None),
        ('{"verdict": ["A"]}', None),
        ('{"verdict": "A", "confidence": 1}', None),
        ("A", "first"),
        ("", None),
        (None, None),
        ([{"text": "A"}], None),
    ],
)
def test_only_a_verdict_at_the_end_is_one(reply: Any, choice: str | None) -> None:
    assert read_verdict(reply) == choice


@pytest.mark.parametrize(
    ("opens", "closes"),
    [
        ("<think>", "</think>"),
        ("<THINK>\n", "</Think>"),
        ("<thinking>", "</thinking>"),
        ("<thought>", "</thought>"),
        ("<reasoning>", "</reasoning>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|channel>thought\n", "<channel|>"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ],
)
def test_what_is_thought_aloud_is_no_verdict(opens: str, closes: str) -> None:
    """Only what follows the reasoning is the answer; a reply cut before that has none."""
    thought, answer = 'Say {"verdict": "A"}.\n{"verdict": "A"}', '\n{"verdict": "B"}'
    assert read_verdict(opens + thought) is None
    assert read_verdict(opens + thought + closes) is None
    assert read_verdict(opens + thought + closes + answer) == "second"
    assert read_verdict(thought + closes + answer) == "second"  # some templates open it in the question
    assert read_verdict(opens + closes + opens + thought) is None
    assert read_verdict(answer + opens + thought) is None
    assert read_verdict(thought + answer) == "second"  # control


def answered(body: str) -> Verdict | JudgeFailed:
    return Endpoint("m", base_url="http://localhost/v1")._read(body, str, WORSE)


def test_a_reply_that_did_not_end_or_says_it_elsewhere_is_no_verdict() -> None:
    """Why it ended is the server's word; a field beside the content holds no verdict, nor does a part that thinks."""
    words = 'So.\n{"verdict": "A"}'
    for reason in ("length", "content_filter", "max_tokens", "abort", ["length"]):
        found = answered(completion(words, reason, usage=(7, 9)))  # type: ignore[arg-type]
        assert isinstance(found, JudgeFailed) and found.kind == "cut" and found.answered
        assert str(reason) in str(found) and found.usage == Usage(7, 9)
    for reason in ("stop", None, "eos_token", ""):
        assert isinstance(answered(completion(words, reason)), Verdict)
    for field in ("reasoning_content", "reasoning"):
        for content in (None, ""):
            found = answered(completion(content, **{field: words}))
            assert isinstance(found, JudgeFailed) and found.kind == "invalid"
    parts = [{"type": "thinking", "text": words}, {"type": "text", "text": '{"verdict": "B"}'}]
    found = answered(completion(parts))
    assert isinstance(found, Verdict) and found.choice == "second"
    assert isinstance(answered(completion(parts[:1])), JudgeFailed)


@pytest.mark.parametrize(
    "body",
    ["[" * 100000, "[]", "{}", '{"choices": [1]}', '{"choices": {"0": 1}}', '{"choices": [[]], "usage": []}', "7"],
)
def test_bodies_that_are_no_completion_are_failures(body: str) -> None:
    found = answered(body)
    assert isinstance(found, JudgeFailed) and found.kind == "unreadable" and found.usage == UNTOLD


def test_counts_that_are_none_are_untold() -> None:
    for usage in ((-1, -5), (10**400, 0), (0, 0), None):
        found = answered(completion('{"verdict": "A"}', usage=usage))
        assert isinstance(found, Verdict) and found.usage == UNTOLD and found.input_tokens == 0
    assert answered(completion("no", usage=(3, 0))).usage == Usage(3, 0)


def test_a_question_asked_again_is_asked_in_other_words() -> None:
    """The same roles, the same question, a reminder after it; the stored key is that of the question."""
    first, again = messages(WORSE), messages(replace(WORSE, again=True))
    assert [one["role"] for one in again] == [one["role"] for one in first]
    assert again[0] == first[0] and again[1]["content"].startswith(first[1]["content"]) and again[1] != first[1]
    assert question_key(replace(WORSE, again=True), {}) == question_key(WORSE, {})


def test_a_redirect_is_not_followed() -> None:
    """The other server would answer; it gets neither question nor key, and nothing passes for the first one's."""
    with JudgeServer() as other:
        there = other.url + "/chat/completions"
        with (
            JudgeServer(fault=lambda asked, attempt: f"307 {there}") as server,
            Endpoint("m", base_url=server.url) as judge,
            pytest.raises(JudgeFailed) as caught,
        ):
            judge([WORSE])
        assert other.asked.total() == 0 and server.asked.total() == 1
        assert caught.value.fatal and there in str(caught.value) and "give it as base_url" in str(caught.value)
        with Endpoint("m", base_url=other.url) as judge:  # control
            assert judge([WORSE])[0].choice == "second"


def test_the_question_shows_everything_in_order() -> None:
    """Braces in a response are text; a lone message is bare, several have their roles."""
    chat = [{"role": "user", "content": "first?"}, {"role": "assistant", "content": "yes"}]
    (system, user) = messages(Question(chat, "{one}", "two {verdict}"))
    assert system["role"] == "system" and user["role"] == "user"
    text = user["content"]
    places = [text.index(part) for part in ("user: first?", "assistant: yes", "{one}", "two {verdict}", '{"verdict"')]
    assert places == sorted(places)
    lone = messages(Question([{"role": "user", "content": "ask"}], "a", "b"))
    assert lone == messages(Question("ask", "a", "b"))
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "sk"}]}]
    assert messages(Question(parts, "a", "b")) == lone
    called = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, {"role": "tool", "content": "7"}]
    assert prompt_text(called) == 'assistant: {"tool_calls": [{"name": "f"}]}\n\ntool: 7'
    with pytest.raises(InvalidArgument, match="messages of text"):
        messages(Question([{"role": "user", "content": [{"type": "image", "image": "x"}]}], "a", "b"))


def test_a_scorer_decides_by_its_scores() -> None:
    """Words: 1, 2, 2. Each text of a call is scored once, though it is shown four times."""
    seen: list[str] = []

    def count(prompts: Any, responses: Any) -> Any:
        seen.extend(responses)
        return Length()(prompts, responses)

    judge = Scored(Function(count, "count"))
    questions = [Question("p", "a", "b c"), Question("p", "b c", "a"), Question("p", "b c", "d e")]
    assert [verdict.choice for verdict in judge(questions)] == ["second", "first", "tie"]
    assert sorted(seen) == ["a", "b c", "d e"]
    assert judge(questions[:1])[0].text == "1 against 2"
    wide = Scored(Length(), margin=1.0)
    assert [verdict.choice for verdict in wide(questions)] == ["tie"] * 3
    assert wide.identity != judge.identity and judge.tokens(questions[0]) == (0, 0)


def test_a_score_that_is_no_number_stops() -> None:
    with pytest.raises(InvalidArgument, match="finite"):
        Scored(Function(lambda prompts, responses: np.full(len(responses), np.nan)))([WORSE])


def test_recorded_verdicts_are_given_for_the_recorded_order_alone(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    path.write_text('{"prompt": "p", "first": "q1", "second": "q2", "verdict": "second"}\n\n{"prompt": "p", "fir')
    judge = Recorded(path)
    assert judge([WORSE]) == [Verdict("second")]
    with pytest.raises(JudgeFailed) as caught:
        judge([Question("p", "q2", "q1")])
    assert (caught.value.kind, caught.value.retry) == ("not recorded", False)
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "p", "first": "q1", "second": "q2", "verdict": "first"}\n')
    assert Recorded(other).identity != judge.identity


def test_a_store_can_be_read_as_recorded_verdicts(tmp_path: Path) -> None:
    with VerdictStore(tmp_path / "verdicts.jsonl") as store:
        store.add_cost(question_key(BETTER, {"kind": "test"}), JudgeFailed("invalid", "prose", usage=Usage(5, 5)))
        store.add([BETTER], [Verdict("first", "clear", "gpt", 5, 6)], {"kind": "test"})
    assert load(f"recorded:{tmp_path / 'verdicts.jsonl'}")([BETTER]) == [Verdict("first", "clear", "gpt", 5, 6)]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"prompt": "p", "first": "a", "second": "b", "verdict": "A"}\n', "line 1: expected a verdict among"),
        ('{"prompt": "p", "first": "a", "verdict": "tie"}\n', "line 1: expected a row"),
        ("[1]\n", "line 1: expected a row"),
        ("{\n{}\n", "line 1: expected JSON"),
        (
            '{"prompt": "p", "first": "a", "second": "b", "verdict": "tie"}\n'
            '{"prompt": "p", "first": "a", "second": "b", "verdict": "first"}\n',
            "line 2: expected one verdict per question, got 'first' after 'tie'",
        ),
    ],
)
def test_recorded_files_that_are_none_are_refused(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises((InvalidArgument, OutputError)) as caught:
        Recorded(path)
    assert error in str(caught.value)
    with pytest.raises(OutputError, match="readable file"):
        Recorded(tmp_path / "none.jsonl")


def test_judges_are_loaded_by_name() -> None:
    assert load("scorer:length").identity == {"kind": "scorer", "scorer": "length", "margin": 0.0}
    endpoint = load("endpoint:llama3:8b", temperature=None, options={"seed": 1})
    assert endpoint.identity == {
        "kind": "endpoint",
        "base_url": "https://api.openai.com/v1",
        "model": "llama3:8b",
        "template": TEMPLATE_VERSION,
        "max_tokens": 512,
        "seed": 1,
    }
    for name in ("gpt-4", "scorer:", "judge:x", ""):
        with pytest.raises(InvalidArgument, match=r"endpoint:MODEL, scorer:NAME or recorded:FILE"):
            load(name)


def test_an_endpoint_is_asked_and_its_verdict_read() -> None:
    with JudgeServer() as server, Endpoint("gpt-4", base_url=server.url + "/", options={"seed": 3}) as judge:
        assert [one.choice for one in judge([WORSE, BETTER])] == ["second", "first"]
        (verdict,) = judge([Question("p", "q1", "q1 \u00e4")])
        assert verdict == Verdict("tie", 'Because.\n{"verdict": "tie"}', "judge-2026", 100, 10)
    body = server.bodies[0]
    assert body.pop("messages") == messages(WORSE)
    assert body == {"model": "gpt-4", "temperature": 0.0, "max_tokens": 512, "seed": 3}
    assert set(server.keys) == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("fault", "kind", "retry", "fatal"),
    [
        ("500", "HTTP 500", True, False),
        ("503", "HTTP 503", True, False),
        ("429", "HTTP 429", True, False),
        ("quota", "HTTP 429", False, True),
        ("400", "HTTP 400", False, False),
        ("401", "HTTP 401", False, True),
        ("404", "HTTP 404", False, True),
        ("drop", "connection", True, False),
        ("cut", "connection", True, False),
        ("hang", "timeout", True, False),
        ("trickle", "timeout", True, False),
        ("html", "unreadable", True, False),
        ("no choices", "unreadable", True, False),
        ("length", "cut", True, False),
        ("thinking", "invalid", True, False),
        ("outside", "invalid", True, False),
        ("prose", "invalid", True, False),
        ("echo", "HTTP 500", True, False),
    ],
)
def test_every_fault_is_a_failure_that_says_what_helps(fault: str, kind: str, retry: bool, fatal: bool) -> None:
    """One request each: the caller counts and retries. Neither the error nor what it was raised from has the key."""
    with JudgeServer(fault=lambda asked, attempt: fault) as server:
        with Endpoint("gpt-4", base_url=server.url, timeout=0.3) as judge, pytest.raises(JudgeFailed) as caught:
            start = time.monotonic()
            judge([WORSE])
        assert time.monotonic() - start < 3.0
    error = caught.value
    assert (error.kind, error.retry, error.fatal) == (kind, retry, fatal)
    assert error.retry_after == (0.01 if fault == "429" else None)
    counted = fault in ("outside", "prose", "length", "thinking")
    refused = kind.startswith("HTTP")
    assert error.usage == (Usage(100, 10) if counted else Usage() if refused else UNTOLD)
    assert error.common == (fault in ("400", "401", "404"))
    assert server.asked.total() == 1 and set(server.keys) == {f"Bearer {KEY}"}
    assert error.__cause__ is None and error.__context__ is None and KEY not in str(error)


def test_a_key_echoed_in_a_reply_is_not_kept() -> None:
    server = JudgeServer(fault=lambda asked, attempt: "echo in a reply")
    with server, Endpoint("gpt-4", base_url=server.url) as judge:
        (verdict,) = judge([WORSE])
    assert verdict.choice == "first" and verdict.text.startswith("You sent Bearer [key]")


def test_keys_come_from_the_environment_and_loopback_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with JudgeServer() as server, Endpoint("m", base_url=server.url) as judge:
        assert judge([BETTER])[0].choice == "first"
    with Endpoint("m", base_url="http://192.0.2.1/v1") as judge, pytest.raises(InvalidArgument) as caught:
        judge([BETTER])
    assert "environment variable OPENAI_API_KEY, got none" in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\u00e9")
    with Endpoint("m", base_url="http://192.0.2.1/v1") as judge, pytest.raises(InvalidArgument) as caught:
        judge([BETTER])
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key_env": KEY},
        {"base_url": f"https://user:{KEY}@example.org/v1"},
        {"base_url": f"https://example.org/v1?key={KEY}"},
        {"base_url": "example.org/v1"},
        {"base_url": "http://host:port/v1"},
        {"timeout": 0},
        {"temperature": -1},
        {"max_tokens": 0},
        {"options": {"messages": []}},
    ],
)
def test_settings_that_cannot_be_used_are_refused_without_showing_a_key(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Endpoint("m", **settings)
    assert caught.value.name in settings and KEY not in str(caught.value)


def test_loopback_addresses_are_known() -> None:
    local = ("http://localhost:1/v1", "http://127.0.0.2/v1", "http://[::1]:8000/v1")
    assert [_address(url)[1] for url in (*local, "https://localhost.example.org", "http://10.0.0.1")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_retry_after_is_seconds_or_a_date() -> None:
    assert _retry_after({"retry-after": "1.5"}) == 1.5
    assert _retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert 3e9 < (_retry_after({"retry-after": "Fri, 31 Dec 2199 23:59:59 GMT"}) or 0) < 1e10
    assert [_retry_after({"retry-after": text}) for text in ("soon", "nan", "inf", "")] == [None] * 4
    assert _retry_after({}) is None


def test_tokens_are_estimated_from_the_text_shown() -> None:
    """400 more ASCII characters are 100 more tokens, 10 others 10 more; the reply's limit bounds what comes out."""
    judge = Endpoint("m", max_tokens=64)
    (base, out), (more, _) = judge.tokens(WORSE), judge.tokens(Question("p" * 401, "q1", "q2"))
    assert (more - base, out) == (100, 64)
    assert judge.tokens(Question("p" + "\u4e2d" * 10, "q1", "q2"))[0] - base == 10
    assert Endpoint("m", max_tokens=None, options={"max_completion_tokens": 99}).tokens(WORSE)[1] == 99
    assert len(json.dumps(messages(WORSE))) / 6 < base < len(json.dumps(messages(WORSE))) / 3
