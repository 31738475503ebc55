"""`rpo judge`: responses of several models put before a judge; win rates, a matrix, a ranking."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from rpo.core import checks, shown
from rpo.core.errors import RPOError
from rpo.core.records import check_output, environment, staged_output, write_json
from rpo.eval import matrix
from rpo.eval.judges.loading import load
from rpo.eval.judging import Judged, judge_pairs
from rpo.eval.matchups import Matchups, draw_pairs, read_responses
from rpo.eval.pacing import Calls
from rpo.eval.planning import plan_questions
from rpo.eval.ranking import Ranking, bradley_terry
from rpo.eval.spending import Prices
from rpo.eval.verdicts import VerdictStore, canonical
from rpo.eval.win_rates import Comparison, compare_models

MARKER = "results.json"


class VerdictsMissing(RPOError):
    """Some questions have no verdict; what there is was written, and the same command asks the rest."""


def judge_command(
    responses: list[str],
    judge: str,
    output: str,
    prompts: int = 150,
    samples: int = 1,
    swap: bool = True,
    seed: int = 0,
    base_url: str = "https://api.openai.com/v1",
    api_key_env: str = "OPENAI_API_KEY",
    temperature: float | None = 0.0,
    max_tokens: int | None = 512,
    options: dict[str, Any] | None = None,
    timeout: float = 60.0,
    concurrency: int = 8,
    requests_per_minute: float | None = None,
    attempts: int = 6,
    first_wait: float = 1.0,
    max_wait: float = 120.0,
    price_input: float | None = None,
    price_output: float | None = None,
    max_cost: float | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    dry_run: bool = False,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Judge models' responses pairwise: win rates with intervals, matrix, ranking; continues where it was stopped.

    Args:
        responses: files written by `rpo generate`, with one model each or several told apart by "model".
        judge: endpoint:MODEL (a chat model), scorer:NAME (as scorer:model:FOLDER, a reward model), or recorded:FILE.
        output: folder for verdicts.jsonl, results.json, matrix.md, matrix.csv and config.yaml.
        prompts: how many prompts, drawn among those that all models answer.
        samples: how many of each prompt's responses.
        swap: ask in both orders, and take the mean.
        seed: of the draw of prompts, of the bootstrap and of the waits between attempts.
        base_url: of the endpoint, OpenAI-compatible.
        api_key_env: name of the environment variable with the key; none is needed on loopback.
        temperature: of the judge's reply; null leaves it out of the request.
        max_tokens: limit of the judge's reply; null leaves it out of the request.
        options: further fields of the request, as {max_completion_tokens: 512}.
        timeout: of a request, in seconds.
        concurrency: requests at a time.
        requests_per_minute: limit of requests started; null for none.
        attempts: how often a question is asked until there is a verdict.
        first_wait: seconds before the second attempt, then doubled.
        max_wait: the longest wait, in seconds; a server that asks for more ends the run.
        price_input: of a million tokens in, for the cost estimate.
        price_output: of a million tokens out.
        max_cost: of all requests, retries and earlier runs included; no request starts that may pass it.
        level: of the intervals.
        resamples: of the bootstrap.
        dry_run: print plan and cost only.
        overwrite: replace the results of a finished run; verdicts are always kept.
    """
    replace = overwrite or dry_run or not _finished(Path(output))
    folder = check_output(output, overwrite=replace, marker=MARKER)
    checks.fraction("level", level)  # before anything is paid for
    checks.integer("resamples", resamples, minimum=20)
    matchups = draw_pairs(read_responses(responses), prompts=prompts, samples=samples, seed=seed)
    endpoint = {
        "base_url": base_url,
        "api_key_env": api_key_env,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "timeout": timeout,
        "options": options,
    }
    prices = Prices(input=price_input, output=price_output)
    calls = Calls(
        concurrency=concurrency,
        per_minute=requests_per_minute,
        attempts=attempts,
        first_wait=first_wait,
        max_wait=max_wait,
        seed=seed,
    )
    asked = load(judge, **endpoint)
    with contextlib.ExitStack() as stack:
        if hasattr(asked, "close"):
            stack.callback(asked.close)
        store = stack.enter_context(VerdictStore(folder / "verdicts.jsonl"))
        print(matchups.sentence())
        print(plan_questions(matchups.pairs, asked, store, swap=swap).sentence(prices))
        if dry_run:
            return
        judged = judge_pairs(matchups.pairs, asked, store, swap=swap, calls=calls, prices=prices, max_cost=max_cost)
        identity = dict(asked.identity)
    comparisons, ranking = _evaluate(matchups, judged, level, resamples, seed)
    record = {
        "status": "complete" if judged.complete else "incomplete",
        "judge": identity,
        "models": matchups.models,
        "prompts": {"judged": matchups.prompts, "common": matchups.common, "missing": matchups.missing},
        "samples": samples,
        "swap": swap,
        "seed": seed,
        "cut_at_length_limit": matchups.cut,
        "judging": judged.to_dict(),
        "cost": judged.spent.cost(prices),
        "comparisons": [one.to_dict() for one in comparisons],
        "ranking": None if ranking is None else ranking.to_dict(),
        "environment": environment(),
    }
    with staged_output(folder, overwrite=True, marker=MARKER) as stage:
        (stage / "matrix.md").write_text(matrix.to_markdown(comparisons), encoding="utf-8")
        (stage / "matrix.csv").write_text(matrix.to_csv(comparisons), encoding="utf-8")
        (stage / "config.yaml").write_text(resolved, encoding="utf-8")
        write_json(stage / MARKER, record)
    print("\n".join(_summary(matchups, judged, comparisons, ranking)))
    print(f"Written to {shown.line(folder)}")
    if not judged.complete:
        raise VerdictsMissing(_missing(judged))


def _finished(folder: Path) -> bool:
    """Return whether the folder holds the results of a complete run."""
    try:
        return bool(json.loads((folder / MARKER).read_text(encoding="utf-8"))["status"] == "complete")
    except FileNotFoundError:
        return False
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return True  # somebody's file


def _evaluate(
    matchups: Matchups, judged: Judged, level: float, resamples: int, seed: int
) -> tuple[list[Comparison], Ranking | None]:
    """Return comparisons of the models that have pairs with a result, and the ranking of those models."""
    known = [place for place, result in enumerate(judged.results) if result == result]
    pairs = [matchups.pairs[place] for place in known]
    if not pairs:
        return [], None
    ranking = bradley_terry(
        [pair.model_a for pair in pairs],
        [pair.model_b for pair in pairs],
        judged.results[known],
        [canonical(pair.prompt) for pair in pairs],
        level=level,
    )
    met = {(pair.model_a, pair.model_b) for pair in pairs}
    places = [place for place, pair in enumerate(matchups.pairs) if (pair.model_a, pair.model_b) in met]
    comparisons = compare_models(
        [matchups.pairs[place] for place in places], judged.results[places], level=level, resamples=resamples, rng=seed
    )
    return comparisons, ranking


def _summary(matchups: Matchups, judged: Judged, comparisons: list[Comparison], ranking: Ranking | None) -> list[str]:
    lines = [matrix.to_text(comparisons)] if comparisons else ["No win rates: no pair has a result"]
    lines += [matrix.sentence(one) for one in comparisons]
    met = {frozenset((one.model_a, one.model_b)) for one in comparisons}
    lines += [
        f"No win rate of {shown.line(a)} against {shown.line(b)}: none of their pairs has a result"
        for a, b in itertools.combinations(matchups.models, 2)
        if comparisons and {a, b} not in met
    ]
    lines += [judged.uninformative] if judged.uninformative else []
    lines += [matrix.ranking_text(ranking)] if ranking is not None and len(ranking.models) > 2 else []
    shares = {
        "both orders agree on {:.1%} of the pairs": judged.consistent,
        "{:.1%} of the verdicts without a tie prefer what was shown first": judged.first_preferred,
    }
    parts = [words.format(share) for words, share in shares.items() if share == share]
    parts.append(f"{judged.calls} calls, {sum(judged.troubles.values())} of them failed")
    parts.append(judged.spent.sentence())
    return [*lines, "; ".join(parts)]


def _missing(judged: Judged) -> str:
    kinds = Counter(failure.kind for failure in judged.failures.values())
    parts = [f"{count} {kind}" for kind, count in sorted(kinds.items())]
    parts += [f"{judged.not_asked} not asked"] if judged.not_asked else []
    last = judged.stopped or str(next(iter(judged.failures.values()), ""))
    return (
        f"{kinds.total() + judged.not_asked} of {judged.questions} questions have no verdict ({', '.join(parts)}). "
        f"{last[:1].upper()}{last[1:].rstrip('.')}. The same command asks them again, and no other."
    )
