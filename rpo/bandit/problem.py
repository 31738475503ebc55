"""The contextual bandit of the paper's Section 2, and the trainable policies that start at its reference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rpo.bandit.drawing import pairs_of, recorded_wins, win_table
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.numerics import log_softmax
from rpo.core.summary import Summarised, counted
from rpo.core.synonyms import with_synonyms

if TYPE_CHECKING:
    from rpo.bandit.data import PreferenceCounts
    from rpo.bandit.lists import RankedLists


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ContextualBandit(Summarised):
    """A finite contextual bandit with X prompts, A responses and Bradley-Terry preferences.

    d0: (X,), prompt distribution. reference: (X, A), pi_ref; a zero forbids the response.
    reward: (X, A), the true r* in [0, reward_bound], log-odds units; None for real data.
    reward_bound: R; defaults to the largest reward. features: (X, A, D) or None.
    behavior: (X, A) response distribution, or (X, A, A) pair distribution mu(a1, a0 | x), from which
    preferences are drawn; defaults to the reference. label_noise: probability in [0, 1/2] that a drawn
    winner is recorded as the loser; r* stays what it is. own_labels: those of each prompt's responses,
    where they differ from prompt to prompt. Raises InvalidArgument. Source: paper, Section 2.
    """

    d0: Array
    reference: Array
    reward: Array | None = None
    reward_bound: float | None = None
    features: Array | None = None
    behavior: Array | None = None
    label_noise: float = 0.0
    prompt_labels: tuple[str, ...] | None = None
    response_labels: tuple[str, ...] | None = None
    own_labels: tuple[tuple[str, ...], ...] | None = None
    name: str = "bandit"
    _pairs: Array | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "d0", checks.probabilities("d0", self.d0, shape=(None,)))
        set_(self, "reference", checks.probabilities("reference", self.reference, shape=(len(self.d0), None)))
        x, a = self.reference.shape
        if self.reward_bound is not None:
            set_(self, "reward_bound", checks.positive("reward_bound", self.reward_bound))
        if self.reward is not None:
            reward = checks.finite("reward", self.reward, shape=(x, a))
            set_(self, "reward", reward)
            if self.reward_bound is None and reward.max() > 0:
                set_(self, "reward_bound", float(reward.max()))
            bound = self.reward_bound or 0.0
            if reward.min() < 0 or reward.max() > bound:
                raise InvalidArgument(
                    "reward",
                    expected=f"entries in [0, reward_bound] = [0, {bound:g}]",
                    got=f"entries in [{reward.min():g}, {reward.max():g}]",
                    remedy="Shift each prompt's rewards to start at zero, or raise reward_bound.",
                )
        if self.features is not None:
            set_(self, "features", checks.finite("features", self.features, shape=(x, a, None)))
        if self.behavior is not None:
            flat = checks.finite("behavior", self.behavior)
            checks.has_shape("behavior", flat, (x, a, a) if flat.ndim == 3 else (x, a))
            checks.probabilities("behavior", flat.reshape(x, -1))
            set_(self, "behavior", flat)
        set_(self, "label_noise", checks.nonnegative("label_noise", self.label_noise))
        if self.label_noise > 0.5:
            raise InvalidArgument(
                "label_noise",
                expected="a probability in [0, 1/2]",
                got=self.label_noise,
                remedy="Above one half the labels mean the opposite: swap chosen and rejected.",
            )
        set_(self, "prompt_labels", checks.labels("prompt_labels", self.prompt_labels, x))
        set_(self, "response_labels", checks.labels("response_labels", self.response_labels, a))
        if self.own_labels is not None and len(self.own_labels) != x:
            raise InvalidArgument(
                "own_labels", expected=f"{x} labels", got=len(self.own_labels), remedy="Pass one for each."
            )

    @property
    def summary(self) -> tuple[str, dict[str, str]]:
        """Its size; rewards, whose responses are compared, features and noise."""
        x, a = self.reference.shape
        headline = f"ContextualBandit {self.name!r}: {counted(x, 'prompt')}, {counted(a, 'response')} each"
        known = "unknown" if self.reward is None else f"from {self.reward.min():.3g} to {self.reward.max():.3g}"
        bound = "" if self.reward_bound is None else f" (R = {self.reward_bound:.3g})"
        facts = {"rewards": known + bound, "preferences drawn from": "pi_ref" if self.behavior is None else "behavior"}
        if self.features is not None:
            facts["features"] = str(self.features.shape[-1])
        if self.label_noise:
            facts["labels flipped"] = f"{self.label_noise:.3g}"
        return headline, facts

    @property
    def num_prompts(self) -> int:
        """X."""
        return int(self.reference.shape[0])

    @property
    def num_responses(self) -> int:
        """A."""
        return int(self.reference.shape[1])

    @property
    def log_reference(self) -> Array:
        """(X, A), log pi_ref in nats; -inf where the reference gives no mass."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.reference))

    def true_reward(self) -> Array:
        """Return r*, (X, A), or refuse when it is unknown (real data)."""
        if self.reward is None:
            raise InvalidArgument("problem.reward", expected="a known r*", got=None, remedy="Pass reward=(X, A).")
        return self.reward

    def pair_distribution(self) -> Array:
        """Return mu(a1, a0 | x), (X, A, A): symmetric, zero diagonal, each prompt summing to one.

        A response distribution b gives mu proportional to b(a1) b(a0) for a1 != a0: two draws,
        repeated until they differ.
        """
        if self._pairs is None:
            shape = (self.num_prompts, self.num_responses, self.num_responses)
            checks.table_size("problem", shape, remedy="Pairs are drawn from a table: use fewer responses.")
            mu, total = pairs_of(self.reference if self.behavior is None else self.behavior, shape)
            if (total <= 0).any():
                raise InvalidArgument(
                    "behavior",
                    expected="mass on at least two responses of every prompt",
                    got=f"one response at prompt {int(np.argmin(total))}",
                    remedy="Two different responses are needed to draw a preference.",
                )
            object.__setattr__(self, "_pairs", mu / total)
        return self._pairs  # type: ignore[return-value]

    def preference_probability(self, labels: Any = None) -> Array:
        """Return P(a1 is recorded as beating a0 | x), (X, A, A): Bradley-Terry, then flips at rate `label_noise`.

        labels: (X, A), the reward by which annotators judge, in log-odds; r* by default.
        """
        reward = self.true_reward() if labels is None else checks.finite("labels", labels, shape=self.reference.shape)
        return recorded_wins(reward, self.label_noise)

    def draw_pairs(self, n: int, generator: np.random.Generator) -> Any:
        """Return how often each prompt and pair a1 < a0 is drawn, (X, A (A - 1) / 2) integers that sum to n."""
        first, second = np.triu_indices(self.num_responses, k=1)
        mass = 2.0 * self.d0[:, None] * self.pair_distribution()[:, first, second]
        return generator.multinomial(n, mass.ravel() / mass.sum()).reshape(mass.shape)

    @with_synonyms
    def sample_preferences(self, n: int, *, labels: Any = None, rng: Any) -> PreferenceCounts:
        """Draw n preferences x ~ d0, (a1, a0) ~ mu(.|x), winner ~ Bradley-Terry, as win counts.

        The time does not depend on n (1 to 1e12): multinomial over pairs, then binomial wins.
        labels: (X, A), the reward by which annotators judge, r* by default: what is claimed in place of what follows,
        or one principle of several. rng: Generator, SeedSequence or int.
        """
        from rpo.bandit.data import MAX_COUNT, PreferenceCounts

        total = checks.integer("n", n, minimum=1, maximum=MAX_COUNT)
        generator = checks.generator("rng", rng)
        first, second = np.triu_indices(self.num_responses, k=1)
        win = self.preference_probability(labels)[:, first, second]
        drawn = self.draw_pairs(total, generator)
        wins = win_table(drawn, generator.binomial(drawn, win), self.num_responses)
        return PreferenceCounts.from_wins(wins, prompt_labels=self.prompt_labels, response_labels=self.response_labels)

    def sample_rankings(self, n: int, *, size: int, score_noise: float | None = None, rng: Any) -> RankedLists:
        """Draw n lists of `size` responses, x ~ d0, best first by Plackett-Luce, as counts.

        The responses are draws from the behavior at x, repeated until all differ. Each place of a list goes to one of
        those left with probability proportional to exp(r*). score_noise: with a number, each response has a score, r*
        plus normal noise of this standard deviation, and the list is ordered by them, equal ones in the order of the
        responses' numbers. The time does not depend on n but with noise. rng: Generator, SeedSequence or int. Raises
        InvalidArgument. Source: Plackett 1975; at size 2 Bradley-Terry.
        """
        from rpo.bandit.data import MAX_COUNT
        from rpo.bandit.lists import RankedLists, counted
        from rpo.bandit.rankings import draw_rankings, draw_scored, draw_sets

        total = checks.integer("n", n, minimum=1, maximum=MAX_COUNT)
        k = checks.integer("size", size, minimum=2, maximum=self.num_responses)
        generator = checks.generator("rng", rng)
        reward, behavior = self.true_reward(), self.reference if self.behavior is None else self.behavior
        if self.label_noise:
            raise InvalidArgument(
                "problem.label_noise",
                expected="0: noise flips a pair, and says nothing of a list",
                got=self.label_noise,
                remedy="Draw lists of a problem without it.",
            )
        if behavior.ndim == 3:
            if k > 2:
                raise InvalidArgument(
                    "problem.behavior",
                    expected=f"a response distribution (X, A) for lists of {k}",
                    got="a pair distribution (X, A, A)",
                    remedy="Pass behavior=(X, A), or size=2.",
                )
            drawn = self.draw_pairs(total, generator)
            prompt, pair = np.nonzero(drawn)
            sets, count = np.stack(np.triu_indices(self.num_responses, k=1), axis=1)[pair], drawn[prompt, pair]
        else:
            times = generator.multinomial(total, self.d0 / self.d0.sum())
            prompt, sets, count = draw_sets(times, behavior, k, generator)
        scores = None
        if score_noise is None:
            prompt, ranked, count = draw_rankings(prompt, sets, count, reward, generator)
        else:
            noise = checks.nonnegative("score_noise", score_noise)
            prompt, ranked, count, scores = draw_scored(prompt, sets, count, reward, noise, generator)
        return RankedLists(
            by_size=(counted(prompt, ranked, count, scores),),
            num_prompts=self.num_prompts,
            num_responses=self.num_responses,
            prompt_labels=self.prompt_labels,
            response_labels=self.response_labels,
        )

    def expected_reward(self, policy: Array) -> float:
        """Return gold J(pi) = E_{d0, pi}[r*], in reward units. policy: (X, A). Source: paper, Eq. (2.3)."""
        return self._expected_reward(checks.probabilities("policy", policy, shape=self.reference.shape))

    def _expected_reward(self, policy: Array) -> float:
        return float(self.d0 @ (policy * self.true_reward()).sum(axis=1))

    def greedy_policy(self) -> Array:
        """Return the policy greedy on r*, (X, A), ties shared: the default comparator."""
        reward = np.where(self.reference > 0, self.true_reward(), -np.inf)
        best = reward == reward.max(axis=1, keepdims=True)
        return np.asarray(best / best.sum(axis=1, keepdims=True))

    def suboptimality(self, policy: Array, comparator: Array | None = None) -> float:
        """Return Gap = J(comparator) - J(policy), comparator greedy by default. Source: paper, Eq. (2.5)."""
        worth = self.expected_reward(policy)
        if comparator is None:
            return self._expected_reward(self.greedy_policy()) - worth
        comparator = checks.probabilities("comparator", comparator, shape=self.reference.shape)
        return self._expected_reward(comparator) - worth

    def softmax_policy(self) -> TabularSoftmaxPolicy:
        """Return a trainable table that starts at the reference."""
        return TabularSoftmaxPolicy(self)

    def linear_softmax_policy(self) -> LinearSoftmaxPolicy:
        """Return a trainable linear softmax over `features` that starts at the reference."""
        return LinearSoftmaxPolicy(self)


@dataclass(frozen=True, eq=False)
class SoftmaxPolicy(ABC):
    """pi(a|x) proportional to pi_ref(a|x) exp(offset(x, a)), the offset linear in the parameters."""

    problem: ContextualBandit
    parameters: Array

    @property
    @abstractmethod
    def design(self) -> Array:
        """(X, A, P): the derivative of the offsets in the P flattened parameters."""

    @property
    def logps(self) -> Array:
        """(X, A), log pi in nats; -inf where the reference gives no mass."""
        offset = self.design @ self.parameters.ravel()
        return np.asarray(log_softmax(self.problem.log_reference + offset))

    def with_parameters(self, parameters: Array) -> Self:
        """Return the same policy with other parameters, of the same shape."""
        new = checks.finite("parameters", parameters)
        checks.has_shape("parameters", new, self.parameters.shape)
        return replace(self, parameters=new)


class TabularSoftmaxPolicy(SoftmaxPolicy):
    """One logit per prompt and response. parameters: (X, A), zero at the reference."""

    def __init__(self, problem: ContextualBandit, parameters: Array | None = None) -> None:
        checks.instance("problem", problem, ContextualBandit)
        start = np.zeros(problem.reference.shape) if parameters is None else parameters
        super().__init__(problem, checks.finite("parameters", start, shape=problem.reference.shape))

    @property
    def design(self) -> Array:
        """(X, A, X * A): the identity."""
        x, a = self.problem.reference.shape
        return np.eye(x * a).reshape(x, a, x * a)


class LinearSoftmaxPolicy(SoftmaxPolicy):
    """Logits linear in the features. parameters: theta (D,), zero at the reference."""

    def __init__(self, problem: ContextualBandit, parameters: Array | None = None) -> None:
        checks.instance("problem", problem, ContextualBandit)
        if problem.features is None:
            raise InvalidArgument(
                "problem.features", expected="an (X, A, D) array", got=None, remedy="Build the problem with features=."
            )
        start = np.zeros(problem.features.shape[2]) if parameters is None else parameters
        super().__init__(problem, checks.finite("parameters", start, shape=(problem.features.shape[2],)))

    @property
    def design(self) -> Array:
        """(X, A, D): the features."""
        return np.asarray(self.problem.features)
