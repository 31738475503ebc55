"""The saddle function phi(pi, r) of the paper, with everything it depends on resolved to arrays.

The paper's divergence is the KL and its loss Bradley-Terry's; here both are the objective's, and pairs may be lists
(docs/theory.md, 9, 11 and 13).

Shapes: X prompts, A responses, G different groups of one size K, such as (prompt, chosen, rejected) triples. Rewards in
log-odds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from rpo.bandit.data import CountedGroups, Index, RankedBlock, require_groups
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import RewardClass, check_reward_class
from rpo.bandit.solver.data_term import DataTerm, Groups, MarginTerm, data_term
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.columns import Columns
from rpo.core.divergences import KL, Divergence
from rpo.core.errors import InvalidArgument
from rpo.core.inputs import check_scores, require_size
from rpo.core.numerics import weighted_mean
from rpo.core.objectives import LossTerms, Objective, require_margin_shape, require_objective
from rpo.core.replies import Reply
from rpo.core.shapes import Logistic

PROMPT_WEIGHTS = ("data", "population")
ON_TABLE = frozenset({"reference", "lengths"})  # what every data set has; lists may have scores too
MAX_RESPONSES = 10_000  # at one prompt: Newton's method holds five (S, S) arrays, 4 GB at this size


@dataclass(frozen=True, eq=False)
class Saddle:
    """phi(pi, r) = eta (E[<pi - pi_base, r>] - beta E[D_f(pi || pi_ref)]) + L_D(r).

    log_reference, base: (X, A). d: (X,), prompt weights of the penalty. groups: what L_D is about, those of one size
    together, on the flat table (X A,), with weights n / N. Source: paper, Eq. (3.1)-(3.3), (5.4).
    """

    objective: Objective
    reward_class: RewardClass
    log_reference: Array
    base: Array
    d: Array
    groups: tuple[Groups, ...]

    @cached_property
    def term(self) -> DataTerm:
        """What the data add to the loss, L_D."""
        return data_term(self.objective, self.groups, self.log_reference.ravel())

    @property
    def margin_term(self) -> MarginTerm:
        """The same where it is of one margin. Raises InvalidArgument."""
        require_margin_shape(self.objective)
        return cast(MarginTerm, self.term)

    @cached_property
    def prompt(self) -> Index:
        """The prompt of each group, (G,), size by size."""
        return np.concatenate([groups.entries[0] for groups in self.groups]) // self.base.shape[1]

    @cached_property
    def chosen(self) -> Index:
        """The best response of each group, (G,), size by size."""
        return np.concatenate([groups.entries[0] for groups in self.groups]) % self.base.shape[1]

    @cached_property
    def rejected(self) -> Index:
        """The last response of each group, (G,), size by size."""
        return np.concatenate([groups.entries[-1] for groups in self.groups]) % self.base.shape[1]

    @cached_property
    def weights(self) -> Array:
        """n / N of each group, (G,), size by size."""
        return np.concatenate([groups.weights for groups in self.groups])

    @property
    def beta(self) -> float:
        """Reward units per nat: rewards are beta * log(pi / pi_ref)."""
        return self.objective.link.beta

    @property
    def sft_weight(self) -> float:
        """eta * beta."""
        return self.objective.anchor.weight

    @property
    def eta(self) -> float:
        """Weight of the reward penalty."""
        return self.objective.reward_penalty

    @property
    def divergence(self) -> Divergence:
        """What holds the policy to the reference: that of the link."""
        return getattr(self.objective.link, "divergence", KL())

    @cached_property
    def support(self) -> Any:
        """(X, A) bool: responses to which the reference gives mass."""
        return np.isfinite(self.log_reference)

    @cached_property
    def log_measure(self) -> Array:
        """(X, A), log of what the divergence is measured against: pi_ref, or without a reference one a response."""
        if getattr(self.objective.link, "reference", True):
            return self.log_reference
        return np.where(self.support, 0.0, -np.inf)

    def margins(self, reward: Array) -> Array:
        """Return z = r(x, w) - r(x, l), less what the shape asks to win by, (G,). Raises InvalidArgument for lists."""
        return np.asarray(self.margin_term.margins(reward.ravel()))

    def reply(self, reward: Array) -> Reply:
        """Return pi_r, the inner maximiser: pi_ref (f')^{-1}(r / beta - Z), for the KL the Gibbs policy."""
        return self.divergence.reply(reward / self.beta, self.log_measure)

    def gibbs_logps(self, reward: Array) -> Array:
        """Return log pi_r, (X, A)."""
        return self.reply(reward).logps

    def gibbs(self, reward: Array) -> Array:
        """Return pi_r, (X, A)."""
        return self.reply(reward).policy

    def base_value(self, logps: Array, s: Array | None = None) -> Array:
        """Return minus what the anchor weighs, (X,): E_base[log pi], or `Divergence.base_value` of another one."""
        return self.objective.anchor.divergence.base_value(self.base, logps, self.log_measure, s)

    def log_ratio(self, logps: Array) -> Array:
        """Return h = log(pi / pi_ref), (X, A), zero outside the support; logps: log pi, (X, A)."""
        return np.where(self.support, logps - np.where(self.support, self.log_reference, 0.0), 0.0)

    def loss(self, logps: Array) -> tuple[Any, LossTerms]:
        """Return the objective (loss, terms) of a policy given as log pi, (X, A): docs/theory.md, section 4."""
        means = zip(self.columns(logps), self.groups, strict=True)
        preference = sum(weighted_mean(self.objective.per_pair(columns), groups.weights) for columns, groups in means)
        return self.objective.total(preference, self.base_value(logps), None, self.d)

    def columns(self, logps: Array) -> list[Columns]:
        """Return the groups of each size as an objective reads them, responses of one token; logps: log pi, (X, A)."""
        flat = logps.ravel(), self.log_reference.ravel()
        return [groups.columns(*flat) for groups in self.groups]

    @property
    def constant(self) -> float:
        """Reward side minus loss at pi_r: for the KL eta * beta * E_base[log pi_ref], else 0."""
        if self.eta == 0:
            return 0.0
        return float(self.sft_weight * (self.d @ self.base_value(self.log_measure)))

    def reward_side(self, reward: Array) -> float:
        """Return max over pi of phi(pi, r), as the loss at pi_r plus `constant`."""
        reply = self.reply(reward)
        base_value = self.base_value(reply.logps, reply.s)
        loss, _ = self.objective.total(self.term.value(reward.ravel()), base_value, None, self.d)
        return float(loss) + self.constant

    def multiplier(self, policy: Array, p: Array) -> Array:
        """Return g = (1/N) sum_k n_k p_k delta_k - eta d (pi - pi_base), (X, A); zero iff r is free.

        p: as of `losing_probabilities`; of a list p_k delta_k are minus its slopes.
        """
        return self._data_term(p) - self.eta * self.d[:, None] * (policy - self.base)

    def policy_side(self, policy: Array, p: Array, support_value: float) -> float:
        """Return min over R of phi(pi, r) bounded below through p (G,), given S_R(g); of a loss of one margin."""
        import cvxpy  # the shape's dual is an expression

        kept = self.d @ self.divergence.from_reference(policy, self.log_measure)
        term = self.margin_term
        asked = 0.0 if term.offset is None else term.offset
        dual = self.weights @ (term.shape.dual(cvxpy.Constant(p)).value + p * asked)
        return float(-self.sft_weight * kept + dual - support_value)

    def balanced_policy(self, p: Array) -> Array:
        """Return the policy that makes g = 0: pi_base + (1 / (N eta d)) sum_k n_k p_k delta_k, (X, A).

        Entries may be negative: then no policy balances p and the unconstrained dual value is -inf.
        """
        scale = (self.eta * self.d)[:, None]
        step = np.divide(self._data_term(p), scale, out=np.zeros(self.base.shape), where=scale > 0)
        return np.asarray(self.base + step)

    def losing_probabilities(self, reward: Array) -> Array:
        """Return p = -shape'(z), (G,): the maximiser of the conjugate form; for Bradley-Terry sigmoid(-z).

        Of a loss of lists minus its slopes in each reward: K G of each size, in a row.
        """
        return self.term.slopes(reward.ravel())

    @property
    def is_likelihood(self) -> bool:
        """Whether the preference term is Bradley-Terry's negative log-likelihood."""
        shape = self.objective.shape
        return isinstance(shape, Logistic) and shape.is_likelihood

    def _data_term(self, p: Array) -> Array:
        return self.term.pull(p, self.base.size).reshape(self.base.shape)


def require_on_table(value: object, name: str = "objective", *, scored: bool = False) -> Objective:
    """Return `value`, or refuse an objective that reads what a table does not have; scored: whether it has scores."""
    objective = require_objective(value, name)
    if absent := sorted(objective.needs - ON_TABLE - {"scores" if scored else ""}):
        remedy = "Train a language model with it; a loss whose shift follows the policy has a fixed point only."
        if absent == ["scores"]:
            remedy = "Pass RankedLists with scores: problem.sample_rankings(n, size=K, score_noise=0), for example."
        raise InvalidArgument(
            name,
            expected=f"a loss of log-probabilities {'and scores ' * scored}alone: a table has no batches"
            + " and no scores" * (not scored),
            got=f"{objective.label}, which reads {', '.join(absent)}",
            remedy=remedy,
        )
    return objective


def build_saddle(
    problem: ContextualBandit,
    data: CountedGroups,
    objective: Objective,
    reward_class: RewardClass,
    *,
    prompt_weights: str = "data",
    base_policy: Any = None,
) -> Saddle:
    """Resolve pi_base and the prompt weights, and check that data, base and class fit the problem.

    Prompts without data take pi_base = pi_ref, unless base_policy says otherwise; with prompt weights
    "data" their weight is zero. A response here is one token: every sft_reduction is the same.
    """
    checks.one_of("prompt_weights", prompt_weights, PROMPT_WEIGHTS)
    checks.instance("problem", problem, ContextualBandit)
    require_groups(data)
    require_on_table(objective, scored=data.scored)
    check_reward_class(reward_class)
    shape = problem.reference.shape
    if (data.num_prompts, data.num_responses) != shape:
        raise InvalidArgument(
            "data",
            expected=f"counts over {shape[0]} prompts and {shape[1]} responses, as in problem",
            got=f"{data.num_prompts} prompts and {data.num_responses} responses",
            remedy="Pass num_prompts and num_responses of the problem when counting.",
        )
    reward_class.check_shape(shape)
    support = problem.reference > 0
    largest = int(support.sum(axis=1).max())
    if largest > MAX_RESPONSES:
        raise InvalidArgument(
            "problem.reference",
            expected=f"at most {MAX_RESPONSES} responses with mass at any one prompt",
            got=f"{largest}, for which Newton's method needs {5 * 8 * largest**2 / 1e9:.0f} GB",
            remedy="Give each comparison its prompt (--prompt_column), or merge responses into fewer labels.",
        )
    for block in data.blocks:
        size = block.responses.shape[1]
        require_size(objective, size, "data")
        if size == 1 and "scores" not in objective.needs:
            raise InvalidArgument(
                "data",
                expected="labels of single responses, which a table does not have",
                got=f"scores, which {objective.label} does not read",
                remedy="Take pairs or lists, or train a language model with it.",
            )
        if "scores" in objective.needs and block.scores is not None:
            check_scores(objective, "data.scores", tuple(block.scores.T))
        for k, index in enumerate(block.responses.T):
            outside = np.flatnonzero(~support[block.prompt, index])
            if outside.size:
                g = int(outside[0])
                raise InvalidArgument(
                    f"data.{('chosen', 'rejected')[k]}" if size == 2 else "data.responses",
                    expected="responses to which problem.reference gives mass",
                    got=f"response {int(index[g])} at prompt {int(block.prompt[g])}",
                    remedy="Give it reference mass, or drop its comparisons.",
                )
    base = _base_table(problem, data, objective, base_policy)
    check_support("base_policy", base, support)
    return Saddle(
        objective=objective,
        reward_class=reward_class,
        log_reference=problem.log_reference,
        base=base,
        d=data.prompt_frequencies if prompt_weights == "data" else problem.d0,
        groups=tuple(_groups(block, data.n, shape[1]) for block in data.blocks),
    )


def _groups(block: RankedBlock, n: float, arms: int) -> Groups:
    """Return a block's groups on the flat table (X A,)."""
    scores = None if block.scores is None else tuple(np.ascontiguousarray(block.scores.T))
    return Groups(tuple(block.prompt * arms + index for index in block.responses.T), block.count / n, scores)


def _base_table(problem: ContextualBandit, data: CountedGroups, objective: Objective, base_policy: Any) -> Array:
    check_base(objective, base_policy)
    if base_policy is not None:
        return checks.probabilities("base_policy", base_policy, shape=problem.reference.shape)
    if objective.anchor.role == "reference":
        return problem.reference
    frequencies = data.response_frequencies(objective.anchor.role)
    return np.where(frequencies.sum(axis=1, keepdims=True) > 0, frequencies, problem.reference)


def check_support(name: str, base: Array, support: Any) -> None:
    """Refuse mass of a base (X, A) outside the reference's support, (X, A) bool."""
    if (base[~support] > 0).any():
        raise InvalidArgument(
            name,
            expected="no mass where problem.reference has none",
            got=f"mass {base[~support].max():g}",
            remedy="Give those responses reference mass.",
        )


def check_base(objective: Objective, base_policy: Any) -> None:
    """Refuse a base_policy without objective.base "custom", and "custom" without one."""
    if (objective.anchor.role == "custom") != (base_policy is not None):
        raise InvalidArgument(
            "base_policy",
            expected="an array exactly when objective.base is 'custom'",
            got=f"base={objective.anchor.role!r} with base_policy {'given' if base_policy is not None else None}",
            remedy="Set objective.base='custom' and pass base_policy, or neither.",
        )
