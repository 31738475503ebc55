"""Labels repaired by an ensemble of rewards: how strongly it holds each preference, flips, and soft labels.

Shapes: K distinct triples of a `PreferenceCounts`, M rewards of an ensemble. Source: Wang et al. 2024 (arXiv
2401.06080), "Secrets of RLHF in large language models II", as quoted elsewhere: the paper itself was not read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rpo.bandit.data import PreferenceCounts
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument


def preference_strength(data: PreferenceCounts, rewards: Any) -> Array:
    """Return mu_k = mean over the ensemble of r_m(x, w) - r_m(x, l), (K,): below zero it disputes the label.

    rewards: (M, X, A), log-odds. Raises InvalidArgument.
    """
    checks.instance("data", data, PreferenceCounts)
    tables = checks.finite("rewards", rewards, shape=(None, data.num_prompts, data.num_responses))
    if not len(tables):
        raise InvalidArgument("rewards", expected="at least one reward", got="none", remedy="Fit an ensemble first.")
    apart = tables[:, data.prompt, data.chosen] - tables[:, data.prompt, data.rejected]
    return np.asarray(apart.mean(axis=0))


def flip_weakest(data: PreferenceCounts, strength: Any, share: float) -> PreferenceCounts:
    """Return the data with the weakest `share` of the N preferences turned round, the last of them in part.

    strength: (K,), as `preference_strength` returns. share: in (0, 1). Ties turn in the order of the data. Raises
    InvalidArgument.
    """
    checks.instance("data", data, PreferenceCounts)
    order = np.argsort(checks.finite("strength", strength, shape=data.count.shape), kind="stable")
    before = np.cumsum(data.count[order]) - data.count[order]
    turned = np.zeros(data.count.shape)
    turned[order] = np.clip((checks.fraction("share", share) * data.n - before) / data.count[order], 0.0, 1.0)
    return soft_labels(data, 1.0 - turned)


def soft_labels(data: PreferenceCounts, right: Any) -> PreferenceCounts:
    """Return the data with each preference counted `right` times as it is and 1 - `right` times turned round.

    right: in [0, 1], a number or (K,): how likely the label is right, such as the mean of sigmoid over an ensemble's
    margins. The likelihood of such counts is cross-entropy with soft labels. Raises InvalidArgument.
    """
    checks.instance("data", data, PreferenceCounts)
    kept = checks.finite("right", right)
    if kept.shape not in ((), data.count.shape) or kept.min() < 0 or kept.max() > 1:
        raise InvalidArgument(
            "right",
            expected=f"a number in [0, 1], or one for each of the {len(data.count)} triples",
            got=right if kept.shape == () else f"shape {kept.shape} in [{kept.min():g}, {kept.max():g}]",
            remedy="Pass the probability that a label is right.",
        )
    counts = np.concatenate([data.count * kept, data.count * (1.0 - kept)])
    some = counts > 0
    found = PreferenceCounts.from_pairs(
        np.tile(data.prompt, 2)[some],
        np.concatenate([data.chosen, data.rejected])[some],
        np.concatenate([data.rejected, data.chosen])[some],
        count=counts[some],
        num_prompts=data.num_prompts,
        num_responses=data.num_responses,
        prompt_labels=data.prompt_labels,
        response_labels=data.response_labels,
    )
    return replace(found, own_labels=data.own_labels)
