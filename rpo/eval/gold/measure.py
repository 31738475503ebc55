"""What gold, the proxy and the KL say of a policy, on responses sampled from it; best-of-n from samples of pi_ref.

Shapes: X prompts, S samples each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import gammaln

from rpo.core import checks
from rpo.core.aggregators import combine
from rpo.core.checks import Array
from rpo.eval.scorers import Length, Repetition, Scorer
from rpo.llm.diagnostics.kl import kl_of_samples
from rpo.llm.logps.scoring import PromptGroup
from rpo.llm.reference import Reference
from rpo.llm.sampling import prompt_token_ids, sample_ids, stop_token_ids
from rpo.llm.training.reward_model import score_tokens, share_pad_token

ENSEMBLES = ("mean", "worst", "variance")


@dataclass(frozen=True)
class Instruments:
    """How policies are measured: the same prompts, scorers and decoding for each of them.

    gold: of texts. proxy: a reward model on tokens, whose units are its own.
    """

    tokenizer: Any
    prompts: Sequence[str]
    gold: Scorer
    proxy: Any
    max_new_tokens: int
    batch_size: int = 32

    @property
    def prompt_ids(self) -> list[list[int]]:
        """X prompts in tokens."""
        return [prompt_token_ids(self.tokenizer, prompt) for prompt in self.prompts]


@dataclass(frozen=True)
class Sampled:
    """Responses of one policy: texts and token ids, X lists of S; gold and proxy, (X, S)."""

    texts: list[list[str]]
    ids: list[list[tuple[int, ...]]]
    gold: Array
    proxy: Array


def sample(model: Any, instruments: Instruments, *, num_samples: int, seed: int) -> Sampled:
    """Draw S responses to every prompt, exact samples of the model, and score them."""
    tokenizer, prompt_ids = instruments.tokenizer, instruments.prompt_ids
    ids = sample_ids(
        model,
        prompt_ids,
        num_samples=num_samples,
        max_new_tokens=instruments.max_new_tokens,
        seed=seed,
        eos_token_id=stop_token_ids(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id or 0,
        batch_size=2 * instruments.batch_size,
        progress=False,
    )
    texts = [[tokenizer.decode(y, skip_special_tokens=True) for y in ys] for ys in ids]
    return Sampled(
        texts, ids, _scored(instruments.gold, instruments.prompts, texts), judged(instruments.proxy, ids, instruments)
    )


def judged(proxy: Any, ids: Sequence[Sequence[Sequence[int]]], instruments: Instruments) -> Array:
    """Return a reward model's scores of X lists of S responses (token ids), (X, S)."""
    groups = [PromptGroup(x, ys) for x, ys in zip(instruments.prompt_ids, ids, strict=True)]
    pad = share_pad_token(proxy, None)
    return score_tokens(proxy, groups, pad_token_id=pad, batch_size=instruments.batch_size, progress=False)


def snapshot(
    model: Any, reference: Reference, instruments: Instruments, baseline: Sampled, *, num_samples: int, seed: int
) -> tuple[dict[str, float], list[str]]:
    """Return the metrics of one policy with their standard errors over prompts, and one response per prompt.

    Rewards are in the scorers' own units. win_rate/gold: against as many responses of `baseline`, drawn from
    pi_ref, by gold, ties half. kl/reference: nats per response, prefix estimator.
    """
    found = sample(model, instruments, num_samples=num_samples, seed=seed)
    tokenizer = instruments.tokenizer
    kl = kl_of_samples(
        model,
        reference,
        instruments.prompt_ids,
        found.ids,
        eos_token_id=stop_token_ids(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id or 0,
        batch_size=max(1, instruments.batch_size // num_samples),
    )
    others = baseline.gold[:, :num_samples]
    wins = (found.gold > others) + 0.5 * (found.gold == others)
    values = {
        "reward/gold": found.gold,
        "reward/proxy": found.proxy,
        "win_rate/gold": wins,
        "text/length": _scored(Length(), instruments.prompts, found.texts),
        "text/repetition": _scored(Repetition(), instruments.prompts, found.texts),
    }
    metrics = dict(kl.metrics())
    for name, value in values.items():
        metrics[name], metrics[f"{name}_se"] = mean_and_error(value)
    return metrics, [texts[0] for texts in found.texts]


def mean_and_error(values: Array) -> tuple[float, float]:
    """Return the mean of (X, S) values and its standard error, prompts being the independent draws."""
    means = values.mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(means.size)) if means.size > 1 else float("nan")


def best_of_n(samples: Sampled, n: int) -> dict[str, float]:
    r"""Return gold and proxy of best-of-n under the proxy, estimated from S >= n samples of pi_ref a prompt.

    The mean over all subsets of n, exactly: sorted by the proxy, sample k is the best of a subset with
    probability C(k-1, n-1) / C(S, n). KL = log n - (n - 1)/n, exact without ties, an upper bound with
    them. Raises InvalidArgument. Source: Gao, Schulman, Hilton 2023, Section 2 and Appendix A.
    """
    count = checks.instance("samples", samples, Sampled).proxy.shape[1]
    n = checks.integer("n", n, minimum=1, maximum=count)
    order = np.argsort(samples.proxy, axis=1, kind="stable")
    k = np.arange(n, count + 1)
    weights = np.zeros(count)
    weights[n - 1 :] = np.exp(_log_choose(k - 1, n - 1) - _log_choose(count, n))
    metrics = {"kl/reference": float(np.log(n) - (n - 1) / n), "kl/reference_se": 0.0}
    for name, value in (("reward/gold", samples.gold), ("reward/proxy", samples.proxy)):
        ranked = np.take_along_axis(value, order, axis=1) @ weights
        metrics[name], metrics[f"{name}_se"] = mean_and_error(ranked[:, None])
    return metrics


def best_of_ensemble(
    samples: Sampled, members: Any, sizes: Sequence[int], penalty: float
) -> dict[str, list[dict[str, float]]]:
    """Return best-of-n of each size under the members' mean, worst case and mean less penalty times their variance.

    members: (M, X, S), rewards of the samples. Each is first measured against its mean over a prompt's samples, which
    are pi_ref's: a reward model leaves each prompt's constant free. reward/proxy is the combined reward. Raises
    InvalidArgument. Source: Coste et al. 2024 (arXiv 2310.02743), Section 3.
    """
    rewards = checks.finite("members", members, shape=(None, *samples.proxy.shape))
    centred = rewards - rewards.mean(axis=2, keepdims=True)
    found = {}
    for how in ENSEMBLES:
        under = replace(samples, proxy=combine(centred, how, penalty))
        found[how] = [{"n": n, **best_of_n(under, n)} for n in sizes]
    return found


def _log_choose(n: Any, k: Any) -> Any:
    return gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(np.asarray(n) - k + 1.0)


def _scored(scorer: Scorer, prompts: Sequence[str], texts: Sequence[Sequence[str]]) -> Array:
    """Return the scores of X lists of S responses, (X, S)."""
    flat = scorer([x for x, ys in zip(prompts, texts, strict=True) for _ in ys], [y for ys in texts for y in ys])
    return np.asarray(flat, dtype=np.float64).reshape(len(texts), -1)
