"""Judging against a server on loopback that fails: no verdict is lost, none is invented, nothing is asked twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_server import FAULTS, Asked, JudgeServer, often, pairs, quality, truth

from rpo.core.errors import InvalidArgument, OutputError
from rpo.eval.judges import UNTOLD, JudgeFailed, Question, Usage, Verdict
from rpo.eval.judges.endpoint import Endpoint
from rpo.eval.judges.scored import Scored
from rpo.eval.judging import Judged, judge_pairs
from rpo.eval.pacing import Calls, Pacer
from rpo.eval.planning import Pair, plan_questions
from rpo.eval.scorers import Function
from rpo.eval.spending import Budget, Prices, Spent
from rpo.eval.verdicts import VerdictStore, is_cost, read_rows

ROOT = Path(__file__).parents[2]
QUICK = Calls(first_wait=0.01, max_wait=2.0, attempts=25, concurrency=8)


def expected(given: Sequence[Pair]) -> list[float]:
    return [float(np.sign(quality(one.response_a) - quality(one.response_b)) + 1) / 2 for one in given]


class Says:
    """A judge in this process: `answer` of a question; `asked` in order."""

    at_once = 1

    def __init__(self, answer: Any, name: str = "says") -> None:
        self.answer, self.identity = answer, {"kind": name}
        self.asked: list[Question] = []

    def tokens(self, question: Question) -> tuple[int, int]:
        return 1000, 100

    def __call__(self, questions: Sequence[Question]) -> list[Verdict]:
        self.asked += questions
        return [Verdict(self.answer(question)) for question in questions]


def verdict_rows(path: Path) -> list[Any]:
    return [row for row in read_rows(path)[0] if not is_cost(row)]


def judged(tmp_path: Path, given: Sequence[Pair], judge: Any, **settings: Any) -> Judged:
    with VerdictStore(tmp_path / "verdicts.jsonl") as store:
        return judge_pairs(given, judge, store, **{"calls": QUICK, "progress": False, **settings})


def test_a_server_that_fails_hangs_and_talks_nonsense_loses_and_invents_nothing(tmp_path: Path) -> None:
    """30 % of the requests fail in twelve ways. The truth is the server's; each question is answered once.

    Every reply of the judge costs 100 tokens in and 10 out, those without a verdict too. The judge draws its replies:
    one that does not is asked twice at most.
    """
    given = pairs(60)
    with (
        JudgeServer(fault=often(0.3, seed=1)) as server,
        Endpoint("gpt-4", base_url=server.url, timeout=1.0, temperature=0.7) as judge,
    ):
        found = judged(tmp_path, given, judge)
        assert found.complete and found.results.tolist() == expected(given)
        assert set(server.answered.values()) == {1} and len(server.answered) == 120 == found.questions
        assert server.faults.keys() == {"", *FAULTS} and server.faults[""] == 120
        # A request on a connection that the server has just dropped is a call that it never sees.
        asked = server.asked.total()
        assert 160 < asked <= found.calls and sum(found.troubles.values()) == found.calls - 120
        assert found.consistent == 1.0 and not found.failures and found.not_asked == 0
        counted = 120 + sum(server.faults[name] for name in ("outside", "prose", "length", "thinking"))
        assert counted > 130 and found.models == ("judge-2026",)
        assert (found.spent.input_tokens, found.spent.output_tokens) == (100 * counted, 10 * counted)
        uncounted = sum(server.faults[name] for name in ("hang", "cut", "html", "no choices"))
        assert uncounted <= found.spent.untold <= uncounted + found.troubles["connection"]
        again = judged(tmp_path, given, judge)
        assert again.spent == found.spent
        assert server.asked.total() == asked and (again.calls, again.stored) == (0, 120)
    assert again.results.tolist() == found.results.tolist()
    rows = verdict_rows(tmp_path / "verdicts.jsonl")
    answers = {"A": "first", "B": "second", "tie": "tie"}
    assert len(rows) == 120
    assert all(row["verdict"] == answers[truth((row["prompt"], row["first"], row["second"]))] for row in rows)


def test_what_stays_without_a_verdict_is_counted_and_asked_again(tmp_path: Path) -> None:
    """Of 8 pairs one is never answered sensibly, one only with errors, in one of its orders each: 6 results."""
    given = pairs(8)

    def fault(asked: Asked, attempt: int) -> str | None:
        return {given[2].response_a: "prose", given[5].response_a: "500"}.get(asked[1])

    with JudgeServer(fault=fault) as server, Endpoint("gpt-4", base_url=server.url, temperature=1.0) as judge:
        calls = Calls(first_wait=0.001, attempts=3)
        found = judged(tmp_path, given, judge, calls=calls)
        assert not found.complete and np.flatnonzero(np.isnan(found.results)).tolist() == [2, 5]
        assert (found.invalid, found.not_asked, len(found.failures)) == (1, 0, 2)
        assert found.troubles == {"invalid": 3, "HTTP 500": 3} and found.calls == 14 + 6
        assert sorted(failure.kind for failure in found.failures.values()) == ["HTTP 500", "invalid"]
        record = found.to_dict()
        assert record["undecided_pairs"] == 2 and "I think" in str(record["failures"])
        server.fault = lambda asked, attempt: None
        healed = judged(tmp_path, given, judge, calls=calls)
        assert healed.complete and healed.calls == 2 and healed.results.tolist() == expected(given)
    known = ~np.isnan(found.results)
    assert found.results[known].tolist() == healed.results[known].tolist()


SCRIPT = """
import sys
sys.path.insert(0, "tests/eval")
from judge_server import pairs
from rpo.eval.judges.endpoint import Endpoint
from rpo.eval.judging import judge_pairs
from rpo.eval.pacing import Calls
from rpo.eval.verdicts import VerdictStore
url, path = sys.argv[1:]
with VerdictStore(path) as store, Endpoint("gpt-4", base_url=url) as judge:
    try:
        judge_pairs(pairs(40), judge, store, calls=Calls(concurrency=4), progress=False)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("fault", [None, "hang"])
def test_ctrl_c_keeps_what_is_under_way_and_a_second_one_gives_it_up(tmp_path: Path, fault: str | None) -> None:
    """Replies take 0.5 s: those of four threads are stored. From a server that hangs (30 s) a second Ctrl-C parts."""
    path = tmp_path / "verdicts.jsonl"
    with JudgeServer(fault=lambda asked, attempt: fault, delay=0.5) as server:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        run = subprocess.Popen([sys.executable, "-c", SCRIPT, server.url, str(path)], cwd=ROOT, env=environment)
        while server.at_once < 4 and run.poll() is None:
            time.sleep(0.005)
        for _ in range(2 if fault else 1):
            time.sleep(0.2)
            run.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert run.wait(20) == 130 and time.monotonic() - start < 10
        assert server.asked.total() == 4
    rows, _ = read_rows(path)
    assert len(rows) == 4 and len(verdict_rows(path)) == (0 if fault else 4)
    assert {row.get("failure") for row in rows} == {"given up" if fault else None}


def test_a_judge_that_always_prefers_the_first_gives_50_percent_after_the_swap(tmp_path: Path) -> None:
    given = pairs(30)
    with JudgeServer(answer=lambda asked: "A") as server, Endpoint("gpt-4", base_url=server.url) as judge:
        swapped = judged(tmp_path, given, judge)
        assert set(swapped.results) == {0.5} and swapped.results.mean() == 0.5
        assert swapped.first_preferred == 1.0 and swapped.consistent == 0.0
        assert "no information: every one prefers what was shown first, in both orders" in swapped.uninformative
        alone = judged(tmp_path, given, judge, swap=False)  # control
        assert alone.results.mean() == 1.0 and alone.calls == 0
        assert alone.consistent != alone.consistent
        assert "Every verdict prefers what was shown first; only the other order" in alone.uninformative
        assert swapped.to_dict()["uninformative"] == swapped.uninformative


def test_a_pair_is_the_mean_of_its_two_orders(tmp_path: Path) -> None:
    """By hand, from a's side: (a b) then (b a), 1 for a. first+second 1, first+tie .75, ..., second+first 0."""
    words = ("first", "tie", "second")
    given = [Pair(f"{i}{j}", "a", "b", "A", "B") for i in range(3) for j in range(3)]

    def answer(question: Question) -> str:
        return words[int(question.prompt[0 if question.first == "A" else 1])]  # type: ignore[arg-type]

    found = judged(tmp_path, given, Says(answer))
    assert found.results.tolist() == [0.5, 0.75, 1.0, 0.25, 0.5, 0.75, 0.0, 0.25, 0.5]
    assert found.choices[1] == ("first", "tie")
    assert found.consistent == 3 / 9  # first+second, tie+tie, second+first
    assert found.first_preferred == 0.5  # 6 of 12
    assert found.uninformative == ""
    assert "every one is a tie" in judged(tmp_path, given, Says(lambda question: "tie", "ties")).uninformative


def test_identical_questions_are_asked_once(tmp_path: Path) -> None:
    """Pairs: x against y twice, y against x once, x against x: the questions xy, yx and xx."""
    given = [Pair("p", "a", "b", "x", "y")] * 2 + [Pair("p", "b", "c", "y", "x"), Pair("p", "a", "c", "x", "x")]
    judge = Says(lambda question: "first" if question.first == "x" else "second")
    found = judged(tmp_path, given, judge)
    assert len(judge.asked) == found.calls == found.questions == 3
    assert found.results.tolist() == [1.0, 1.0, 0.0, 0.5]
    other = Says(lambda question: "tie", name="another judge")
    assert judged(tmp_path, given, other).results.tolist() == [0.5] * 4 and len(other.asked) == 3


def test_scores_are_asked_for_in_large_calls(tmp_path: Path) -> None:
    given = pairs(50)
    judge = Scored(Function(lambda prompts, texts: [quality(text) for text in texts], "quality"), at_once=30)
    found = judged(tmp_path, given, judge)
    assert found.results.tolist() == expected(given) and found.calls == 4


@pytest.mark.parametrize(("fault", "word"), [("401", "refuses"), ("quota", "out of credit"), ("429 99", "wait 99 s")])
def test_a_run_that_cannot_succeed_stops_at_once(tmp_path: Path, fault: str, word: str) -> None:
    """With two threads at most a few requests go out for 40 questions; nothing is a result."""
    with JudgeServer(fault=lambda asked, attempt: fault) as server, Endpoint("m", base_url=server.url) as judge:
        found = judged(tmp_path, pairs(20), judge, calls=Calls(concurrency=2, max_wait=1.0))
    assert server.asked.total() <= 4 and word in found.stopped
    assert np.isnan(found.results).all() and len(found.failures) + found.not_asked == 40
    assert not (tmp_path / "verdicts.jsonl").exists()


@pytest.mark.parametrize(("temperature", "options", "most"), [(0.0, {}, 2), (None, {"seed": 1}, 2), (0.7, {}, 5)])
def test_the_same_bytes_are_not_sent_again_where_they_bring_the_same_reply(
    tmp_path: Path, temperature: float | None, options: dict[str, Any], most: int
) -> None:
    """A question is sent once as it is and once with a reminder; where replies are drawn it is tried five times."""
    given, calls = pairs(3), Calls(attempts=5, first_wait=0.0)
    for fault in ("prose", "length", "thinking"):
        (tmp_path / fault).mkdir()
        with (
            JudgeServer(fault=lambda asked, attempt, fault=fault: fault) as server,
            Endpoint("m", base_url=server.url, temperature=temperature, options=options) as judge,
        ):
            found = judged(tmp_path / fault, given, judge, calls=calls)
        sent = [str(body) for body in server.bodies]
        assert found.calls == len(sent) == 6 * most and len(set(sent)) == 12
        assert np.isnan(found.results).all() and found.invalid == 6
        assert found.spent == Spent(input_tokens=100 * len(sent), output_tokens=10 * len(sent))


def test_a_reply_without_a_verdict_is_followed_by_a_reminder_that_helps(tmp_path: Path) -> None:
    fault = lambda asked, attempt: "prose" if attempt == 1 else None  # noqa: E731
    with JudgeServer(fault=fault) as server, Endpoint("m", base_url=server.url) as judge:
        found = judged(tmp_path, pairs(3), judge)
    assert found.complete and found.results.tolist() == expected(pairs(3)) and found.calls == 12


@pytest.mark.parametrize(("status", "fault"), [("400", "400"), ("422", "422"), ("413", "413")])
def test_a_refusal_of_every_request_stops_after_a_few(tmp_path: Path, status: str, fault: str) -> None:
    """One thread: three of 200 requests. Control: after a first verdict, refusals may be of some questions alone."""
    with JudgeServer(fault=lambda asked, attempt: fault) as server, Endpoint("m", base_url=server.url) as judge:
        found = judged(tmp_path, pairs(100), judge, calls=Calls(concurrency=1))
    assert server.asked.total() == 3 and f"HTTP {status}: 'status {status}'" in found.stopped
    assert found.not_asked == 197 and found.spent == Spent()
    some = lambda asked, attempt: None if asked[0] in ("p0", "p9") else fault  # noqa: E731
    with JudgeServer(fault=some) as server, Endpoint("m", base_url=server.url) as judge:
        found = judged(tmp_path, pairs(5), judge, calls=Calls(concurrency=1))
    assert found.stopped == "" and len(found.failures) == 8 and found.results[0] == expected(pairs(5))[0]


def test_no_request_starts_that_could_pass_the_limit(tmp_path: Path) -> None:
    """Every second reply is no verdict, and costs as much: 300 in, 500 out, at 10 and 30 a million 0.018.

    40 questions as planned, at most 512 out, fit under 0.8, which their retries do not. Eight threads; then one more
    run, which may not begin; with a higher limit what is left is asked, and all of it is counted once.
    """
    prices, limit = Prices(input=10.0, output=30.0), 0.8
    fault = lambda asked, attempt: "prose" if attempt % 2 else None  # noqa: E731
    with JudgeServer(fault=fault, delay=0.01) as server, Endpoint("m", base_url=server.url, temperature=1.0) as judge:
        server.usage = (300, 500)
        found = judged(tmp_path, pairs(20), judge, prices=prices, max_cost=limit)
        assert "max_cost: 0." in found.stopped and 0 < found.not_asked < 40
        billed = 0.018 * server.asked.total()
        assert limit - 8 * 0.018 < billed <= limit and found.spent.cost(prices) == pytest.approx(billed)
        asked = server.asked.total()
        with pytest.raises(InvalidArgument, match="after 0.7.* spent by earlier runs"):
            judged(tmp_path, pairs(20), judge, prices=prices, max_cost=limit)
        assert server.asked.total() == asked
        rest = judged(tmp_path, pairs(20), judge, prices=prices, max_cost=3.0)
        assert rest.complete and rest.spent.cost(prices) == pytest.approx(0.018 * server.asked.total())
        assert server.asked.total() == 80 or rest.calls + asked == server.asked.total()


def test_a_judge_dearer_than_its_estimate_is_found_out_by_the_first_reply(tmp_path: Path) -> None:
    """20,000 tokens in, of which 170 were expected: 0.2 a request. Under 0.5 there are two, never eight."""
    prices = Prices(input=10.0, output=30.0)
    with JudgeServer() as server, Endpoint("m", base_url=server.url) as judge:
        server.usage = (20000, 10)
        found = judged(tmp_path, pairs(8), judge, prices=prices, max_cost=0.5)
    assert server.asked.total() == 2 and "max_cost: 0.4" in found.stopped


def test_what_a_judge_does_not_count_is_estimated(tmp_path: Path) -> None:
    """No usage in the replies; and replies that come too late, for which a judge may charge."""
    with JudgeServer() as server, Endpoint("m", base_url=server.url, timeout=0.3) as judge:
        server.usage, given = None, pairs(3)
        found = judged(tmp_path, given[:2], judge)
        tokens = np.array([judge.tokens(one) for pair in given[:2] for one in pair.questions(True)]).sum(axis=0)
        assert found.spent == Spent(untold=4, untold_input_tokens=tokens[0], untold_output_tokens=2048)
        assert "4 requests whose tokens the judge did not tell" in found.spent.sentence()
        server.usage, server.fault = (100, 10), lambda asked, attempt: "hang"
        late = judged(tmp_path, given, judge, calls=Calls(attempts=1))
        assert (late.spent.untold, late.spent.input_tokens, late.spent.untold_output_tokens) == (6, 0, 3072)
        assert judged(tmp_path, given, judge, calls=Calls(attempts=1)).spent.untold == 8


def test_under_a_limit_only_the_first_request_goes_alone(tmp_path: Path) -> None:
    """Also where the judge counts no tokens at all; a refusal shows nothing, so the one after it goes alone as well."""
    prices = Prices(input=10.0, output=30.0)
    for usage in ((100, 10), None):
        (tmp_path / str(usage)).mkdir()
        fault = lambda asked, attempt: None if server.asked.total() > 2 else "500"  # noqa: E731
        with JudgeServer(fault=fault, delay=0.05) as server, Endpoint("m", base_url=server.url) as judge:
            server.usage = usage
            found = judged(tmp_path / str(usage), pairs(12), judge, prices=prices, max_cost=9.0)
        assert found.complete and np.diff(server.times)[:3].min() > 0.04 and server.most_at_once > 2


def test_a_budget_waits_for_what_is_under_way() -> None:
    """The price of one request is 0.03; two fit under 0.07; a third waits, and starts once one came cheaper."""
    budget = Budget(Spent(input_tokens=1), Prices(input=10.0, output=20.0), 0.07, threading.Event())
    one, two = (budget.start((1000, 1000)) for _ in range(2))
    assert one == two == pytest.approx(0.03)
    got: list[float | None] = []
    thread = threading.Thread(target=lambda: got.append(budget.start((1000, 1000))))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    budget.end(one or 0.0, Usage(100, 10), (1000, 1000))
    thread.join(5.0)
    assert got == [pytest.approx(0.03)]
    budget.end(0.03, UNTOLD, (1000, 1000))
    budget.end(0.03, Usage(1000, 1000), (1000, 1000))
    assert budget.start((1000, 1000)) is None and "max_cost: 0.06" in budget.refusal((1000, 1000))


def test_a_dead_server_is_given_up(tmp_path: Path) -> None:
    calls = Calls(concurrency=1, attempts=2, first_wait=0.0, give_up_after=3)
    with Endpoint("m", base_url="http://127.0.0.1:9/v1") as judge:
        found = judged(tmp_path, pairs(20), judge, calls=calls)
    assert (found.calls, len(found.failures), found.not_asked) == (6, 3, 37)
    assert "3 questions in a row failed" in found.stopped and found.troubles == {"connection": 6}


def test_a_judge_that_breaks_stops_the_run_and_keeps_what_was_found(tmp_path: Path) -> None:
    def answer(question: Question) -> str:
        if question.prompt == "p3":
            raise ZeroDivisionError
        return "tie"

    with pytest.raises(ZeroDivisionError):
        judged(tmp_path, pairs(20), Says(answer), calls=Calls(concurrency=1))
    assert len(read_rows(tmp_path / "verdicts.jsonl")[0]) == 6


def test_a_store_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "verdicts.jsonl").mkdir()
    with pytest.raises(OutputError):
        judged(tmp_path, pairs(2), Says(lambda question: "tie"))


def test_retry_after_holds_all_threads_back(tmp_path: Path) -> None:
    """One 429 asks for 0.6 s: no request starts within that time of it, whichever thread. Control: with 0 they do."""
    starts = {}
    for wait in ("0.6", "0"):
        given = pairs(5)
        where = (given[0].prompt, given[0].response_a, given[0].response_b)
        fault = lambda asked, attempt, wait=wait, where=where: (  # noqa: E731
            f"429 {wait}" if asked == where and attempt == 1 else None
        )
        (tmp_path / wait).mkdir()
        with JudgeServer(fault=fault, delay=0.02) as server, Endpoint("m", base_url=server.url) as judge:
            found = judged(tmp_path / wait, given, judge, calls=Calls(first_wait=0.001, concurrency=2))
        assert found.complete and found.troubles == {"HTTP 429": 1}
        starts[wait] = np.diff(server.times).max()
    assert 0.45 < starts["0.6"] < 2.0 and starts["0"] < 0.45


def test_calls_keep_to_the_rate_and_to_the_number_at_a_time(tmp_path: Path) -> None:
    """1,200 a minute is one each 0.05 s: 12 calls span 0.55 s. Control: without a limit far less."""
    spans = {}
    for rate in (1200.0, None):
        times: list[float] = []
        judge = Says(lambda question, times=times: times.append(time.monotonic()) or "tie")
        (tmp_path / str(rate)).mkdir()
        judged(tmp_path / str(rate), pairs(6), judge, calls=Calls(per_minute=rate, concurrency=3))
        spans[rate] = max(times) - min(times)
    assert 0.5 < spans[1200.0] < 2.0 and spans[None] < 0.3
    with JudgeServer(delay=0.02) as server, Endpoint("m", base_url=server.url) as endpoint:
        judged(tmp_path, pairs(6), endpoint, calls=Calls(concurrency=3))
    assert 1 < server.most_at_once <= 3


def test_waits_grow_with_jitter_and_are_the_same_for_the_same_seed() -> None:
    """Full waits 1, 2, 4, 5, 5 (the cap); each is between half of that and all of it."""
    calls = Calls(attempts=6, first_wait=1.0, max_wait=5.0)
    full = np.array([1.0, 2.0, 4.0, 5.0, 5.0])
    waits = np.array([calls.waits(f"{k:x}".ljust(64, "a")) for k in range(1, 50)])
    assert ((full / 2 <= waits) & (waits <= full)).all() and waits.std(axis=0).min() > 0.1
    key = "ab" * 32
    assert calls.waits(key) == Calls(attempts=6, max_wait=5.0).waits(key) != Calls(attempts=6, seed=1).waits(key)
    assert Calls(attempts=1).waits(key) == []


def test_a_stopped_pacer_lets_waiting_threads_go() -> None:
    stop = threading.Event()
    pacer = Pacer(None, stop)
    pacer.pause(60.0)
    thread = threading.Thread(target=pacer.wait)
    thread.start()
    stop.set()
    thread.join(5.0)
    assert not thread.is_alive()


def test_cost_is_estimated_and_limits_the_start(tmp_path: Path) -> None:
    """20 questions of 1,000 tokens in and 100 out, at 10 and 30 per million: 0.20 + 0.06."""
    given, judge = pairs(10), Says(lambda question: "tie")
    prices = Prices(input=10.0, output=30.0)
    with VerdictStore(tmp_path / "verdicts.jsonl") as store:
        plan = plan_questions(given, judge, store)
        assert (len(plan.questions), plan.input_tokens, plan.output_tokens) == (20, 20000, 2000)
        assert prices.cost(plan.input_tokens, plan.output_tokens) == pytest.approx(0.26)
        assert "cost: up to about 0.26" in plan.sentence(prices) and "cost: unknown" in plan.sentence()
        for some, limit, got in ((prices, 0.25, "up to 0.26"), (Prices(input=1.0), 5.0, "an unknown cost")):
            with pytest.raises(InvalidArgument, match=got):
                judge_pairs(given, judge, store, prices=some, max_cost=limit, progress=False)
        assert not judge.asked
        judge_pairs(given[:5], judge, store, prices=prices, max_cost=0.13, progress=False)
        plan = plan_questions(given, judge, store)
        assert (plan.stored, len(plan.questions)) == (10, 10)
        assert Prices().cost(0, 0) == 0.0


@pytest.mark.parametrize(
    "settings",
    [{"concurrency": 0}, {"attempts": 0}, {"per_minute": 0}, {"first_wait": -1}, {"max_wait": -1}, {"seed": -1}],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Calls(**settings)
    assert caught.value.name in settings
    with pytest.raises(InvalidArgument):
        Prices(input=-1.0)


def test_a_question_not_recorded_fails_alone(tmp_path: Path) -> None:
    def answer(question: Question) -> str:
        if question.prompt != "p0":
            raise JudgeFailed("not recorded", "no verdict", retry=False)
        return "tie"

    found = judged(tmp_path, pairs(20), Says(answer))
    assert (len(found.failures), found.stopped, found.calls) == (38, "", 40) and found.results[0] == 0.5
