"""Who is compared with whom: the pair distributions of coverage, and the chosen responses they give."""

from __future__ import annotations

from typing import Any

import numpy as np

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.problem import ContextualBandit
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.preferences import bradley_terry


def chosen_distribution(problem: ContextualBandit, pair_distribution: Any = None) -> Array:
    """Return the population distribution of chosen responses, (X, A): pi_base "chosen" without sampling noise.

    P(chosen = a | x) = sum_b (mu(a, b | x) + mu(b, a | x)) sigma(r*(x, a) - r*(x, b)).
    pair_distribution: mu, (X, A, A), default the problem's; a prompt without pairs gets pi_ref, as in
    `build_saddle`. Raises InvalidArgument.
    """
    reward = checks.instance("problem", problem, ContextualBandit).true_reward()
    mu = problem.pair_distribution()
    if pair_distribution is not None:
        mu = check_pairs("pair_distribution", pair_distribution, problem)
    # A response drawn against itself is chosen either way: sigma(0) = 1/2, counted twice.
    chosen = ((mu + mu.transpose(0, 2, 1)) * bradley_terry(reward[:, :, None], reward[:, None, :])).sum(axis=2)
    return np.where(mu.sum(axis=(1, 2))[:, None] > 0, chosen, problem.reference)


def empirical_pair_distribution(counts: PreferenceCounts) -> Array:
    """Return how often each pair was compared, mu(a, b | x), (X, A, A), symmetric; zero for a prompt without data."""
    wins = checks.instance("counts", counts, PreferenceCounts).wins()
    both = wins + wins.transpose(0, 2, 1)
    total = both.sum(axis=(1, 2), keepdims=True)
    return np.divide(both, total, out=np.zeros(both.shape), where=total > 0)


def check_pairs(name: str, pairs: Any, problem: ContextualBandit) -> Array:
    """Return `pairs` as mu(a, b | x), (X, A, A), each prompt a distribution or, without data, all zero."""
    x, a = problem.reference.shape
    mu = checks.finite(name, pairs, shape=(x, a, a))
    some = mu.any(axis=(1, 2))
    if not some.any():
        raise InvalidArgument(name, expected="pairs at some prompt", got="only zeros", remedy="Pass mu(a, b | x).")
    checks.probabilities(name, mu[some].reshape(int(some.sum()), -1))
    return mu


def check_data(problem: ContextualBandit, data: Any, prompt_distribution: Any) -> tuple[Array, Array]:
    """Resolve mu(a, b | x), (X, A, A), and mu(x), (X,), of coverage: given, counted, or the problem's own."""
    default = problem.d0
    if data is None:
        mu = problem.pair_distribution()
    elif isinstance(data, PreferenceCounts):
        if (data.num_prompts, data.num_responses) != problem.reference.shape:
            raise InvalidArgument(
                "data_distribution",
                expected=f"counts over {problem.num_prompts} prompts and {problem.num_responses} responses",
                got=f"{data.num_prompts} and {data.num_responses}",
                remedy="Pass num_prompts and num_responses of the problem when counting.",
            )
        mu, default = empirical_pair_distribution(data), data.prompt_frequencies
    else:
        mu = check_pairs("data_distribution", data, problem)
    prompts = default
    if prompt_distribution is not None:
        prompts = checks.probabilities("data_prompt_distribution", prompt_distribution, shape=problem.d0.shape)
    without = np.flatnonzero((prompts > 0) & ~mu.any(axis=(1, 2)))
    if without.size:
        raise InvalidArgument(
            "data_distribution",
            expected="pairs at every prompt to which the data give mass",
            got=f"none at prompt {int(without[0])}, whose mass is {prompts[without[0]]:g}",
            remedy="Pass data_prompt_distribution with zeros where there are no data.",
        )
    return mu, prompts
