"""Two models' responses put before a judge, in both orders: nothing asked twice, no verdict lost, none invented."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.progress import track
from rpo.eval.judges import UNTOLD, Judge, JudgeFailed, Question, Usage, Verdict
from rpo.eval.pacing import Calls, Pacer
from rpo.eval.planning import Pair, check_cost, plan_questions
from rpo.eval.spending import Budget, Prices, Spent
from rpo.eval.verdicts import VerdictStore

# Of a pair from the first model's side: in the order (a, b), and in the order (b, a).
POINTS = ({"first": 1.0, "tie": 0.5, "second": 0.0}, {"first": 0.0, "tie": 0.5, "second": 1.0})
REFUSED = 3  # requests refused in a row, before any verdict, after which the rest would be too


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What came of it.

    results: (N,), a pair's mean over its orders from model a's side (1 win, 0.5 tie, 0 loss), so 1 and 0 mean
    that both orders agree, 0.5 that both tie or that they contradict each other, 0.75 and 0.25 that one ties;
    NaN where a verdict is missing. choices: a pair's verdicts as shown, None where missing. failures: why, by
    key. not_asked: distinct questions left when the run stopped early; stopped: why it did, or "".
    calls: made to the judge, failed ones included; troubles: failed calls by kind. models: who answered, as
    an endpoint says. spent: by every request for these questions, those of earlier runs included.
    """

    results: Array
    choices: tuple[tuple[str | None, ...], ...]
    failures: dict[str, JudgeFailed]
    questions: int
    stored: int
    not_asked: int
    stopped: str
    calls: int
    troubles: dict[str, int]
    models: tuple[str, ...]
    spent: Spent

    @property
    def complete(self) -> bool:
        """Whether every pair has its result."""
        return not np.isnan(self.results).any()

    @property
    def invalid(self) -> int:
        """Questions whose last answer was no verdict."""
        return sum(failure.answered for failure in self.failures.values())

    @property
    def consistent(self) -> float:
        """Share of the pairs judged in both orders whose two verdicts name the same winner, or both tie."""
        both = [pair for pair in self.choices if len(pair) == 2 and None not in pair]
        return _share(POINTS[0][str(one)] == POINTS[1][str(two)] for one, two in both)

    @property
    def first_preferred(self) -> float:
        """Share of the verdicts without a tie that prefer what was shown first: 0.5 without position bias.

        Meant for both orders; with one it holds the models' difference too.
        """
        return _share(choice == "first" for pair in self.choices for choice in pair if choice not in (None, "tie"))

    @property
    def uninformative(self) -> str:
        """Why the verdicts say nothing about the models, or ""."""
        given = [pair for pair in self.choices if None not in pair]
        said = {choice for pair in given for choice in pair}
        if not said or len(said) > 1:
            return ""
        if said == {"tie"}:
            return "The verdicts carry no information: every one is a tie."
        if all(len(pair) == 2 for pair in given):
            return f"The verdicts carry no information: every one prefers what was shown {said.pop()}, in both orders."
        return f"Every verdict prefers what was shown {said.pop()}; only the other order, with swap, tells why."

    def to_dict(self) -> dict[str, Any]:
        """Return the counts that a record stores."""
        names = ("questions", "stored", "not_asked", "stopped", "calls", "troubles", "models", "invalid")
        more = ("complete", "consistent", "first_preferred", "uninformative")
        failures = [
            {"key": key, "kind": failure.kind, "message": str(failure)} for key, failure in self.failures.items()
        ]
        return {
            "pairs": len(self.results),
            "undecided_pairs": int(np.isnan(self.results).sum()),
            **{name: getattr(self, name) for name in (*names, *more)},
            "spent": asdict(self.spent),
            "failures": failures,
        }


def judge_pairs(
    pairs: Sequence[Pair],
    judge: Judge,
    store: VerdictStore,
    *,
    swap: bool = True,
    calls: Calls | None = None,
    prices: Prices | None = None,
    max_cost: float | None = None,
    progress: bool | None = None,
) -> Judged:
    """Return the results of N pairs, asking what `store` does not hold.

    swap: ask in both orders. Every verdict is on disk before the next question of its thread. An answer that
    is no verdict is asked for again, then counted as invalid; neither it nor any other failure makes a
    result, and since only their cost is stored the next run asks those questions again. max_cost: of all
    requests for these questions, earlier runs' included; refuse to start where the plan would pass it, or costs
    an unknown sum, and stop before a request could. A judge's exception other than JudgeFailed stops all and
    is raised; so is Ctrl-C, once the requests under way have ended (a second one gives them up). Raises
    InvalidArgument, OutputError.
    """
    calls = Calls() if calls is None else checks.instance("calls", calls, Calls)
    prices = Prices() if prices is None else checks.instance("prices", prices, Prices)
    plan = plan_questions(pairs, judge, store, swap=swap)
    check_cost(plan, prices, max_cost)
    run = _Run(judge, store, calls, plan.spent, prices, max_cost)
    run.ask(plan.questions, progress)
    verdicts = {key: store.get(key) for keys in plan.keys for key in keys}
    choices = tuple(tuple(_choice(verdicts[key]) for key in keys) for keys in plan.keys)
    found = [verdict for verdict in verdicts.values() if verdict is not None]
    return Judged(
        results=np.array([_result(pair) for pair in choices], dtype=np.float64),
        choices=choices,
        failures=run.failures,
        questions=len(verdicts),
        stored=plan.stored,
        not_asked=len(verdicts) - len(found) - len(run.failures),
        stopped=run.stopped,
        calls=run.calls_made,
        troubles=dict(run.troubles),
        models=tuple(sorted({verdict.model for verdict in found} - {""})),
        spent=plan.spent,
    )


class _Run:
    """The threads' shared state: what failed, and whether to go on."""

    def __init__(
        self, judge: Judge, store: VerdictStore, calls: Calls, spent: Spent, prices: Prices, max_cost: float | None
    ) -> None:
        self._judge, self._store, self._calls = judge, store, calls
        self._identity = judge.identity
        self._stop = threading.Event()
        self._pacer = Pacer(calls.per_minute, self._stop)
        self._budget = Budget(spent, prices, None if max_cost is None else float(max_cost), self._stop)
        self._lock = threading.Lock()
        self._in_a_row, self._answered = 0, False
        self.failures: dict[str, JudgeFailed] = {}
        self.troubles: Counter[str] = Counter()
        self.calls_made = 0
        self.stopped = ""

    def ask(self, questions: dict[str, Question], progress: bool | None) -> None:
        """Ask them all, in threads where a call takes one question; return when no thread is left."""
        size = self._judge.at_once
        keys = list(questions)
        chunks = [keys[start : start + size] for start in range(0, len(keys), size)]
        pool = ThreadPoolExecutor(self._calls.concurrency if size == 1 else 1)
        try:
            done = as_completed([pool.submit(self._ask, {key: questions[key] for key in some}) for some in chunks])
            for _ in track(range(len(chunks)), "judging", show=progress):
                next(done).result()
        finally:
            self._stop.set()
            try:
                pool.shutdown(cancel_futures=True)  # replies under way are paid for: they are waited for, and stored
            except KeyboardInterrupt:
                getattr(self._judge, "close", lambda: None)()
                pool.shutdown()
                raise

    def _ask(self, questions: dict[str, Question]) -> None:
        try:
            self._attempt(questions)
        except BaseException:
            self._stop.set()  # here, not where it is raised again: until then this thread would go on asking
            raise

    def _attempt(self, questions: dict[str, Question]) -> None:
        first, shown = next(iter(questions)), list(questions.values())
        for wait in (*self._calls.waits(first), None):
            self._pacer.wait()
            found = None if self._stop.is_set() else self._call(shown)
            if found is None:
                return
            if not isinstance(found, JudgeFailed):
                self._store.add(shown, found, self._identity)
                with self._lock:
                    self._in_a_row, self._answered = 0, True
                return
            self._store.add_cost(first, found)
            if self._given_up(questions, found, last=wait is None):
                return
            if found.answered:
                shown = [replace(question, again=True) for question in shown]
            self._stop.wait(wait)

    def _call(self, shown: list[Question]) -> list[Verdict] | JudgeFailed | None:
        """Return the verdicts or the failure of a call, its cost counted; None where its cost stops the run."""
        estimate = _sum(self._judge.tokens(question) for question in shown)
        price = self._budget.start(estimate)
        if price is None:
            if not self._stop.is_set():
                self._halt(self._budget.refusal(estimate))
            return None
        with self._lock:
            self.calls_made += 1
        usages = [UNTOLD]
        try:
            verdicts = self._judge(shown)
            usages = [verdict.usage for verdict in verdicts]
        except JudgeFailed as failure:
            usages = [failure.usage]
            return failure
        finally:
            told = all(usage.told for usage in usages)
            self._budget.end(price, Usage(*_sum(usage[:2] for usage in usages), told), estimate)
        return verdicts

    def _given_up(self, questions: dict[str, Question], failure: JudgeFailed, *, last: bool) -> bool:
        """Count a failed call; return whether its questions are given up, and stop the run where it must."""
        pause = failure.retry_after or 0.0
        too_long = pause > self._calls.max_wait
        if not too_long:
            self._pacer.pause(pause)
        with self._lock:
            self.troubles[failure.kind] += 1
            if not (last or failure.fatal or too_long or not failure.retry):
                return False
            self.failures |= dict.fromkeys(questions, failure.with_traceback(None))
            self._in_a_row += failure.retry or failure.common or failure.answered
            few = failure.common and not self._answered
            if failure.fatal:
                self._halt(f"the judge refuses: {failure}")
            elif too_long:
                self._halt(f"the judge asks to wait {pause:.0f} s: {failure}")
            elif self._in_a_row >= (min(REFUSED, self._calls.give_up_after) if few else self._calls.give_up_after):
                self._halt(f"{self._in_a_row} questions in a row failed, the last with: {failure}")
            return True

    def _halt(self, reason: str) -> None:
        self.stopped = self.stopped or reason
        self._stop.set()


def _sum(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    first, second = np.array([*counts, (0, 0)]).sum(axis=0).tolist()
    return first, second


def _choice(verdict: Verdict | None) -> str | None:
    return None if verdict is None else verdict.choice


def _result(choices: tuple[str | None, ...]) -> float:
    if None in choices:
        return math.nan
    return float(np.mean([points[str(choice)] for points, choice in zip(POINTS, choices, strict=False)]))


def _share(answers: Iterable[bool]) -> float:
    """Return the share of true ones, NaN of none."""
    found = list(answers)
    return sum(found) / len(found) if found else math.nan
