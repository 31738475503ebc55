"""Shapes of lists: from the implicit rewards of K responses to a prompt, best first, to the loss of their group.

K = 2 gives the pair's loss. Scores are columns like the others; nothing is differentiated in them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rpo.core import numerics
from rpo.core.columns import Columns
from rpo.core.shapes import Logistic, MarginShape, Shape

SCORES = frozenset({"scores"})


class GroupShape(Shape):
    """A loss of K >= 2 rewards."""

    lists = True


class PlackettLuce(GroupShape):
    """-log of the probability of the order: sum over k of logsumexp(r_k, ..., r_K) - r_k; at K = 2 Bradley-Terry's.

    Source: Plackett 1975; Rafailov et al. 2023, Appendix A.3.
    """

    convex = True
    invariant = True
    concordant = True

    def arrows(self, columns: Columns) -> dict[tuple[int, int], Any] | None:
        """From each response to every later one."""
        return dict.fromkeys(_pairs(len(columns.logps)), True)

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,)."""
        rewards = tuple(beta * value for value in values)
        return _chain((reward, numerics.logsumexp(rewards[k + 1 :])) for k, reward in enumerate(rewards[:-1]))


class ScoreGaps(GroupShape):
    """PRO's chain: the best against the rest by a softmax whose temperatures are gaps of scores, then the next best.

    With g_i = score_k - score_i of the later ones and T their largest, sum over k of logsumexp(T r_k, g_i r_i) - T r_k.
    Not the same when a constant is added to all rewards, for K > 2. Source: Song et al. 2023 (arXiv 2306.17492), as
    its code computes it.
    """

    convex = True

    @property
    def falls(self) -> bool:
        """Yes: no temperature is above that of the response that wins."""
        return True

    @property
    def needs(self) -> frozenset[str]:
        """Scores."""
        return SCORES

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,)."""
        rewards, scores = tuple(beta * value for value in values), columns.scores or ()
        return _chain(
            (
                numerics.times(score - scores[-1], reward),
                numerics.logsumexp(
                    [
                        numerics.times(score - later, other)
                        for later, other in zip(scores[k + 1 :], rewards[k + 1 :], strict=True)
                    ]
                ),
            )
            for k, (score, reward) in enumerate(zip(scores[:-1], rewards[:-1], strict=True))
        )


@dataclass(frozen=True, kw_only=True)
class ScoredPairs(GroupShape):
    """The sum of a pair's loss over all pairs of unequal scores."""

    pair: MarginShape = field(default_factory=Logistic)
    invariant = True

    @property
    def convex(self) -> bool:  # type: ignore[override]
        """Whether the pair's loss is."""
        return self.pair.convex

    @property
    def needs(self) -> frozenset[str]:
        """Scores."""
        return SCORES

    @property
    def smooth(self) -> bool:
        """Whether the pair's loss has no corner."""
        return self.pair.smooth

    @property
    def concordant(self) -> bool:  # type: ignore[override]
        """Whether the pair's loss is."""
        return self.pair.concordant

    def arrows(self, columns: Columns) -> dict[tuple[int, int], Any] | None:
        """Those of the pair's loss between any two of unequal scores."""
        of_pair, scores = self.pair.arrows(columns), columns.scores or ()
        if of_pair is None:
            return None
        ends = {(0, 1): lambda i, j: (i, j), (1, 0): lambda i, j: (j, i)}
        return {ends[arrow](i, j): scores[i] > scores[j] for i, j in _pairs(len(scores)) for arrow in of_pair}

    def pair_weights(self, rewards: tuple[Any, ...], scores: tuple[Any, ...]) -> dict[tuple[int, int], Any]:
        """Return the weight, (N,), of each pair of positions, the better first: one where their scores differ."""
        return {pair: numerics.indicator(scores[pair[0]] > scores[pair[1]], scores[0]) for pair in _pairs(len(scores))}

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,)."""
        rewards = tuple(beta * value for value in values)
        weights = self.pair_weights(rewards, columns.scores or ())
        return sum(
            numerics.times(weight, self.pair.of_margin(rewards[i] - rewards[j])) for (i, j), weight in weights.items()
        )


@dataclass(frozen=True, kw_only=True)
class LambdaPairs(ScoredPairs):
    """Pairs weighed by what exchanging the two would change of the list's discounted cumulative gain, LambdaRank's.

    |2^score_i - 2^score_j| * |1 / log(1 + rank_i) - 1 / log(1 + rank_j)|, ranks by the rewards at hand, under
    stop-gradient; of equal rewards, as all are at pi = pi_ref, the better score ranks higher. Not convex: ranks move.
    Source: Liu et al. 2024 (arXiv 2402.01878), Eq. 9-11.
    """

    unit_scores = True
    convex = False

    def pair_weights(self, rewards: tuple[Any, ...], scores: tuple[Any, ...]) -> dict[tuple[int, int], Any]:
        """Return the weight, (N,), of each pair of positions, the better first."""
        discounts = [1.0 / numerics.log(1.0 + rank) for rank in ranks(rewards)]
        gains = [2.0**score for score in scores]
        return {(i, j): (gains[i] - gains[j]) * abs(discounts[i] - discounts[j]) for i, j in _pairs(len(scores))}


def ranks(rewards: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the rank of each of K responses by its reward, 1 the highest, K vectors (N,); ties in their order."""
    held = [numerics.constant(reward) for reward in rewards]
    return tuple(
        1.0 + sum(
            numerics.indicator(other >= reward if j < i else other > reward, reward)
            for j, other in enumerate(held)
            if j != i
        )
        for i, reward in enumerate(held)
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SoftTargets(GroupShape):
    """Cross-entropy of softmax(r) from the targets softmax(score / temperature): InfoNCA's.

    normalised: whether targets are that softmax; else they are the scores themselves, >= 0.
    Source: Chen et al. 2024 (arXiv 2402.05369).
    """

    temperature: float = 1.0
    normalised: bool = True
    convex = True
    invariant = True
    concordant = True

    @property
    def unit_scores(self) -> bool:  # type: ignore[override]
        """Where scores are the targets."""
        return not self.normalised

    @property
    def needs(self) -> frozenset[str]:
        """Scores."""
        return SCORES

    def arrows(self, columns: Columns) -> dict[tuple[int, int], Any] | None:
        """From each response that should have a share to every other."""
        shares = self.targets(columns)
        return {(i, j): shares[i] > 0 for i in range(len(shares)) for j in range(len(shares)) if i != j}

    def log_targets(self, columns: Columns) -> tuple[Any, ...]:
        """Return the log of what each response's share should be, K vectors (N,)."""
        scaled = [score / self.temperature for score in columns.scores or ()]
        total = numerics.logsumexp(scaled)
        return tuple(score - total for score in scaled)

    def targets(self, columns: Columns) -> tuple[Any, ...]:
        """Return what each response's share should be, K vectors (N,)."""
        if not self.normalised:
            return columns.scores or ()
        return tuple(map(numerics.exp, self.log_targets(columns)))

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,)."""
        rewards = tuple(beta * value for value in values)
        total = numerics.logsumexp(rewards)
        return sum(
            numerics.times(target, total - reward)
            for target, reward in zip(self.targets(columns), rewards, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class ReverseTargets(SoftTargets):
    """KL of softmax(r) from the targets: EXO's on lists; bounded where scores are, not convex.

    Source: Ji et al. 2024 (arXiv 2402.00856).
    """

    convex = False

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,)."""
        rewards = tuple(beta * value for value in values)
        total = numerics.logsumexp(rewards)
        loss: Any = 0.0
        for target, reward in zip(self.log_targets(columns), rewards, strict=True):
            share = reward - total
            loss = loss + numerics.exp(share) * (share - target)
        return loss


@dataclass(frozen=True, kw_only=True)
class NoiseContrast(SoftTargets):
    """sum over i of target_i softplus(-r_i) + softplus(r_i) / K: NCA's on lists; absolute likelihood counts.

    Source: Chen et al. 2024 (arXiv 2402.05369).
    """

    invariant = False

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,)."""
        return sum(
            numerics.times(target, numerics.softplus(-beta * value)) + numerics.softplus(beta * value) / len(values)
            for target, value in zip(self.targets(columns), values, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class PointwiseScores(GroupShape):
    """Each response against its own score: the sum of (score - r)^2, or of the logistic loss of sigma(r) from it.

    Source: Liu et al. 2024 (arXiv 2402.01878), Eq. 7-8.
    """

    logistic: bool = False
    convex = True

    @property
    def unit_scores(self) -> bool:  # type: ignore[override]
        """Where scores are probabilities."""
        return self.logistic

    @property
    def needs(self) -> frozenset[str]:
        """Scores."""
        return SCORES

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,)."""
        rewards = [beta * value for value in values]
        pairs = zip(rewards, columns.scores or (), strict=True)
        if self.logistic:
            return sum(numerics.softplus(reward) - numerics.times(score, reward) for reward, score in pairs)
        return sum(numerics.square(reward - score) for reward, score in pairs)


class SquaredGaps(GroupShape):
    """sum over pairs of ((r_i - r_j) - (score_i - score_j))^2 / (2 beta (K - 1)): contrastive policy gradient's.

    Its least value over all policies does not depend on which responses were drawn. Source: Flet-Berliac et al. 2024
    (arXiv 2406.19185), Eq. 7-19, as a square; K > 2 as quoted from a later report.
    """

    convex = True
    invariant = True
    concordant = True

    def arrows(self, columns: Columns) -> dict[tuple[int, int], Any] | None:
        """Both ways between any two responses."""
        return {end: True for i, j in _pairs(len(columns.logps)) for end in ((i, j), (j, i))}

    @property
    def needs(self) -> frozenset[str]:
        """Scores."""
        return SCORES

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,)."""
        scores, size = columns.scores or (), len(values)
        gaps = (beta * (values[i] - values[j]) - (scores[i] - scores[j]) for i, j in _pairs(size))
        return sum(numerics.square(gap) for gap in gaps) / (2.0 * beta * (size - 1))


@dataclass(frozen=True, kw_only=True)
class Advantage(Shape):
    """-max(score, 0) * ratio * value + kl_weight * value of single responses: A-LoL's, the score an advantage.

    ratio: exp(value) within [1 - clip, 1 + clip] under stop-gradient, or without clip one. Source: Baheti et al. 2023
    (arXiv 2305.14718), as its code computes it.
    """

    clip: float | None = None
    kl_weight: float = 0.0
    pairs = False
    unpaired = True

    @property
    def convex(self) -> bool:  # type: ignore[override]
        """Linear without a ratio."""
        return self.clip is None

    @property
    def falls(self) -> bool:
        """Whether no response is held back by the KL."""
        return not self.kl_weight

    @property
    def needs(self) -> frozenset[str]:
        """Scores."""
        return SCORES

    def __call__(self, values: tuple[Any, ...], beta: float, columns: Columns) -> Any:
        """Return the losses (N,)."""
        (value,), (score,) = values, columns.scores or ()
        weight = numerics.relu(score)
        if self.clip is not None:
            ratio = numerics.exp(numerics.constant(value))
            weight = weight * numerics.clip(ratio, 1.0 - self.clip, 1.0 + self.clip)
        return numerics.times(self.kl_weight - weight, value)


def _pairs(size: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(size) for j in range(i + 1, size)]


def _chain(steps: Any) -> Any:
    """Return the sum of softplus(rest - first), -log of first's share against the rest, over (first, rest)."""
    return sum(numerics.softplus(rest - first) for first, rest in steps)
