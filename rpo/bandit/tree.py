"""Responses as sequences of tokens: what a policy over them says of each token, and searching token by token.

Shapes: X prompts, A responses, L tokens. A bandit's responses become the leaves of a tree by their tokens, `sequences`
(A, L), no two alike; a shorter response is filled up with a token of its own, an end. What a policy does at a token is
a ratio of its masses of two prefixes. Source: Rafailov et al. 2024 (arXiv 2404.12358).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rpo.bandit.data import Index
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument


def token_logps(policy: Any, sequences: Any) -> Array:
    """Return log pi of each token given those before it, (X, A, L): summed over tokens it is log pi.

    policy: (X, A). A token that takes no mass has -inf. Raises InvalidArgument.
    """
    pi = checks.probabilities("policy", policy, shape=(None, None))
    prefixes = _prefixes(sequences, pi.shape[1])
    mass = np.zeros((len(prefixes), *pi.shape))
    for at, of in zip(mass, prefixes, strict=True):
        of_prefix = np.zeros((int(of.max()) + 1, len(pi)))
        np.add.at(of_prefix, of, pi.T)
        at[:] = of_prefix[of].T
    inside = mass[1:] > 0
    ratio = np.divide(mass[1:], mass[:-1], out=np.ones(mass[1:].shape), where=inside)
    return np.asarray(np.moveaxis(np.where(inside, np.log(ratio), -np.inf), 0, 2))


def token_advantages(policy: Any, reference: Any, sequences: Any, *, beta: float) -> Array:
    r"""Return beta log(pi / pi_ref) of each token, (X, A, L), which is Q* - V* of the reward that the policy implies.

    $Q^\ast$ is the worth of a token where the Gibbs policy of that reward goes on from it, less its later penalties
    $\beta\log(\pi/\pi_{\mathrm{ref}})$; $V^\ast$ is the soft maximum over tokens, zero at the end. The sum over
    tokens is $r-\beta\log Z$, the implicit reward, whose mean over the reference's responses is
    $-\beta\,\mathrm{KL}(\pi_{\mathrm{ref}}\|\pi)$: never positive. -inf where a response has no mass. policy,
    reference: (X, A). Raises InvalidArgument. Source: Rafailov et al. 2024, Eqs. 5 to 11, whose own Q* has
    beta log pi_ref added.
    """
    temperature = checks.positive("beta", beta)
    rho = checks.probabilities("reference", reference, shape=(None, None))
    if (rho <= 0).any():
        raise InvalidArgument("reference", expected="mass on every response", got=rho.min(), remedy="Mix in others.")
    pi = checks.probabilities("policy", policy, shape=rho.shape)
    return np.asarray(temperature * (token_logps(pi, sequences) - token_logps(rho, sequences)))


def beam_search(scores: Any, sequences: Any, *, width: int) -> Index:
    """Return the response that a beam of this width finds, (X,): of the sum of scores over tokens.

    scores: (X, A, L), each the same for responses that agree up to its token, such as `token_logps` or
    `token_advantages`; -inf allowed. Width one is greedy; of equal scores the prefix that comes first in the order of
    tokens is kept. Raises InvalidArgument.
    """
    table, most = checks.numbers("scores", scores), checks.integer("width", width, minimum=1)
    checks.has_shape("scores", table, (None, None, None))
    x, a, length = table.shape
    prefixes = _prefixes(sequences, a)
    if len(prefixes) != length + 1:
        raise InvalidArgument(
            "scores", expected=f"{len(prefixes) - 1} tokens", got=length, remedy="One for each token."
        )
    totals = np.cumsum(table, axis=2)
    if np.isnan(totals).any():
        raise InvalidArgument("scores", expected="numbers below inf", got="nan or inf", remedy="Leave out what is not.")
    alive = np.ones((x, a), dtype=bool)
    for t in range(length):
        of = prefixes[t + 1]
        first = np.unique(of, return_index=True)[1]
        here = np.where(alive[:, first], totals[:, first, t], -np.inf)
        order = np.lexsort((~alive[:, first], -here), axis=1)  # of prefixes at -inf those alive come first
        kept = np.zeros(here.shape, dtype=bool)
        np.put_along_axis(kept, order[:, :most], True, axis=1)
        alive = kept[:, of]
    return np.asarray(first[order[:, 0]], dtype=np.int64)


def _prefixes(sequences: Any, responses: int) -> list[Index]:
    """Return the number of each response's prefix of length 0 to L, (A,) each, numbered in the order of tokens."""
    tokens = checks.finite("sequences", sequences, shape=(responses, None))
    found = [np.unique(tokens[:, :t], axis=0, return_inverse=True)[1].ravel() for t in range(1, tokens.shape[1] + 1)]
    if not found or found[-1].max() + 1 < responses:
        raise InvalidArgument(
            "sequences",
            expected="the tokens of every response, no two alike",
            got="responses that are the same",
            remedy="Give shorter responses an end token, and each response once.",
        )
    return [np.zeros(responses, dtype=np.int64), *found]
