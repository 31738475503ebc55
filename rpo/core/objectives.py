"""The objective, written once: it runs unchanged on NumPy, torch, cvxpy and jets.

Shapes: N pairs, X prompts. `logps` are summed token log-probabilities in nats, one per response.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Annotated, Any, NamedTuple

from rpo.core import checks, numerics
from rpo.core.checks import Array
from rpo.core.columns import Columns, by_size
from rpo.core.divergences import KL, Divergence
from rpo.core.errors import InvalidArgument
from rpo.core.fields import Positive, Reduction, check_fields
from rpo.core.inputs import check_alike, like, list_columns, pair_columns
from rpo.core.jets import differentiated
from rpo.core.links import Link, LogOdds, LogRatio
from rpo.core.reduction import SFT_REDUCTIONS, reduced
from rpo.core.shapes import AbsoluteOdds, Logistic, MarginShape, Shape

# What solvers and trainers evaluate; a method says what it is through link, shape, anchor and preference_weight.
FORMULA = ("__call__", "terms", "per_pair", "rewards", "at_reference", "derivatives", "loss", "of_lists", "total")
PROOFS = ("convex_in_logits", "convex_in_policy")  # derived from the parts: certificates rest on them
LEAST_SCALE = 1e-20  # its square, and that of its inverse, leave float64 room for the data's own scale
BASES = ("chosen", "rejected", "responses", "reference", "custom")


class LossTerms(NamedTuple):
    """The parts of a loss, unweighted, each a scalar: loss = preference_weight * preference + anchor.weight * sft."""

    preference: Any
    sft: Any


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """weight * E_role[-log pi]: the SFT term of an objective; at weight 0 it is reported and not optimised.

    role: whose responses. weight: signed; above zero pessimism, as in RPO. reduction: over a response's tokens.
    divergence: by another than the KL the term is weight * (E_ref[u f'(u) - f(u)] - E_role[f'(u)]), u = pi / pi_ref:
    f's Bregman divergence of pi from the role's policy up to a constant, which for the KL is the SFT term.
    """

    role: str = "chosen"
    weight: float = 0.0
    reduction: str = "sequence_sum"
    divergence: Divergence = field(default_factory=KL)

    def __post_init__(self) -> None:
        checks.one_of("base", self.role, BASES)
        checks.one_of("sft_reduction", self.reduction, SFT_REDUCTIONS)


class Objective(ABC):
    """A preference objective: the mean over pairs of shape(link(columns)), plus an anchor.

    A method is a frozen dataclass of its own symbols, checked by their annotations (`rpo.core.fields`), that says which
    `link`, which `shape` and, where it has an SFT term, which `anchor` and `preference_weight`;
    docs/guides/own_method.md shows one. Instances are called like `RPO`.
    A subclass that overrides the formula itself is refused: solvers and trainers would not see what it does.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in (*FORMULA, *PROOFS):
            if getattr(cls, name) is not getattr(Objective, name):  # its own, or that of a class mixed in
                raise InvalidArgument(
                    cls.__name__,
                    expected="link, shape, anchor and preference_weight of its own, and nothing else of the formula",
                    got=f"its own {name}",
                    remedy="Write the loss as a Shape; rpo/core/shapes.py has examples.",
                )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    @abstractmethod
    def link(self) -> Link:
        """How log-probabilities become implicit rewards."""

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """How the rewards of a pair become its loss."""

    @property
    def anchor(self) -> Anchor:
        """The SFT term; by default that of the chosen responses, reported and not optimised."""
        return Anchor()

    @property
    def preference_weight(self) -> float:
        """Weight of the preference term."""
        return 1.0

    @property
    def reward_penalty(self) -> float:
        """Weight of the maximin's penalty in reward units, RPO's eta: that of the anchor over beta."""
        return self.anchor.weight / self.link.beta

    @property
    def needs(self) -> frozenset[str]:
        """The columns read beside log-probabilities: "reference", "lengths", "scores", "shift", "mismatched" (responses
        to another prompt), "likeness".
        """
        return self.link.needs | self.shape.needs

    @property
    def takes_unpaired(self) -> bool:
        """Whether responses alone, with a label or a score each, will do in place of pairs."""
        return self.shape.unpaired and self.anchor.weight == 0

    @property
    def takes_lists(self) -> bool:
        """Whether groups of more than two responses will do."""
        return self.shape.lists

    @property
    def convex_in_logits(self) -> bool:
        """Whether the loss of a table is convex in its logits t: a convex loss of log-probabilities that never rises
        when all of a group rise together, since these are t less a convex function of t.
        """
        signs = self.anchor.weight >= 0 and self.preference_weight >= 0 and isinstance(self.anchor.divergence, KL)
        return signs and self.shape.convex and self.shape.falls and self.link.affine

    @property
    def convex_in_policy(self) -> bool:
        """Whether the loss of a table is convex in its probabilities (docs/theory.md, section 10)."""
        absolute = isinstance(self.link, LogOdds) and self.link.beta == 1.0 and type(self.shape) is AbsoluteOdds
        sft = self.anchor.weight >= 0 and isinstance(self.anchor.divergence, KL)
        return absolute and sft and self.preference_weight >= 0

    @property
    def label(self) -> str:
        """A short name for legends: the method with its numbers."""
        named = [(f.name, getattr(self, f.name)) for f in fields(self)]  # type: ignore[arg-type]
        shown = [f"{name} = {value:g}" for name, value in named if isinstance(value, float)]
        shown += [repr(value).removesuffix("()") for _, value in named if isinstance(value, Divergence)]
        return f"{type(self).__name__} ({', '.join(shown)})" if shown else type(self).__name__

    def per_pair(self, columns: Columns, sizes: Any = None) -> Any:
        """Return the preference losses, (N,), in the columns' backend.

        sizes: (N,), NumPy integers, how many of the K responses each group has, the first ones; None for all K.
        """
        if sizes is None:
            return self.shape(self.link(columns), self.link.beta, columns)
        return by_size(self.per_pair, columns, sizes)

    def loss(
        self, columns: Columns, base_logps: Any = None, weights: Any = None, base_weights: Any = None
    ) -> tuple[Any, LossTerms]:
        """Return (loss, LossTerms) of pairs; base_logps (N,) or (X,), reduced already; weights as in `terms`.

        For an anchor of another divergence base_logps are E_base[f'(u)] - E_ref[u f'(u) - f(u)], its `base_value`.
        """
        return self.total(numerics.weighted_mean(self.per_pair(columns), weights), base_logps, weights, base_weights)

    def rewards(self, columns: Columns) -> tuple[Any, ...]:
        """Return the implicit rewards of each response, K vectors (N,)."""
        return tuple(self.link.beta * value for value in self.link(columns))

    def at_reference(self, columns: Columns) -> Any:
        """Return the preference losses (N,) at pi = pi_ref; NaN where the objective has no reference."""
        if "reference" not in self.needs or columns.reference is None:
            return columns.logps[0] * float("nan")
        return self.per_pair(columns.with_logps(columns.reference))

    def derivatives(self, columns: Columns) -> tuple[Array, Array, Array]:
        """Return the preference losses (N,), their gradient (K, N) and Hessian (K, K, N) in the K log-probabilities.

        NumPy; from the same formula, by forward differentiation.
        """
        return differentiated(self.per_pair, columns)

    def terms(
        self, margins: Any, base_logps: Any = None, weights: Any = None, base_weights: Any = None
    ) -> tuple[Any, LossTerms]:
        """Return (loss, LossTerms) from margins (N,) and reduced base_logps (N,) or (X,), in nats.

        margins: differences of link values, chosen minus rejected, less what the shape asks the chosen response to win
        by, over beta. base_logps: as for `loss`. weights: (N,), of the pairs, summing to one; None
        for the plain mean. base_weights: of base_logps; None for `weights`. NumPy, torch, or cvxpy (margins affine,
        base_logps concave). Raises InvalidArgument for a shape that is not of one margin.
        """
        losses = require_margin_shape(self).of_margin(self.link.beta * margins)
        return self.total(numerics.weighted_mean(losses, weights), base_logps, weights, base_weights)

    def __call__(
        self,
        policy_chosen_logps: Any,
        policy_rejected_logps: Any = None,
        reference_chosen_logps: Any = None,
        reference_rejected_logps: Any = None,
        *,
        base_logps: Any = None,
        chosen_lengths: Any = None,
        rejected_lengths: Any = None,
        base_lengths: Any = None,
        weights: Any = None,
        chosen_scores: Any = None,
        rejected_scores: Any = None,
        chosen_likeness: Any = None,
        rejected_likeness: Any = None,
        shift: float | None = None,
    ) -> tuple[Any, LossTerms]:
        """Return (loss, LossTerms) of a batch of N pairs; NumPy arrays or torch tensors (autograd).

        *_logps: (N,), summed over tokens, nats; the rejected ones unless nothing is compared. *_lengths: (N,), tokens >
        0, where the objective needs them, or the reduction of its anchor does. weights: (N,), summing to one; None for
        the mean. *_scores: (N,), the chosen ones above the rejected, *_likeness: (N,), of the policy's own tokens
        (`Columns`), and shift: of the batches before (`rpo.core.shifts`), where the objective needs them. Raises
        InvalidArgument for wrong shapes, weights or missing inputs.
        """
        columns, weights = pair_columns(
            self,
            {
                "policy_chosen_logps": policy_chosen_logps,
                "policy_rejected_logps": policy_rejected_logps,
                "reference_chosen_logps": reference_chosen_logps,
                "reference_rejected_logps": reference_rejected_logps,
            },
            lengths={"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths},
            scores={"chosen_scores": chosen_scores, "rejected_scores": rejected_scores},
            likeness={"chosen_likeness": chosen_likeness, "rejected_likeness": rejected_likeness},
            weights=weights,
            shift=shift,
        )
        policy = columns.logps[0]
        anchor = require_sft(self).anchor
        if base_logps is not None:
            base_logps, of_base, whose = numerics.promote(base_logps, "base_logps"), base_lengths, "base_lengths"
            check_alike("base_logps", base_logps, policy)
        elif anchor.role == "chosen":
            base_logps, of_base, whose = policy, chosen_lengths, "chosen_lengths"
        elif anchor.weight:
            raise InvalidArgument(
                "base_logps",
                expected=f"log-probabilities of responses of base {anchor.role!r}",
                got=None,
                remedy="Pass base_logps, or use base='chosen'.",
            )
        if base_logps is not None:
            of_base = like(whose, of_base, base_logps)
            setting = "sft_reduction" if hasattr(self, "sft_reduction") else "reduction"
            base_logps = reduced(base_logps, of_base, weights, anchor.reduction, whose=whose, setting=setting)
        return self.loss(columns, base_logps, weights)

    def of_lists(
        self,
        policy_logps: Any,
        reference_logps: Any = None,
        *,
        lengths: Any = None,
        scores: Any = None,
        sizes: Any = None,
        weights: Any = None,
    ) -> tuple[Any, LossTerms]:
        """Return (loss, LossTerms) of N lists of up to K responses, best first; NumPy arrays or torch tensors.

        policy_logps, reference_logps, lengths, scores: (N, K), as for pairs; scores fall along a row, ties in the order
        given. sizes: (N,), how many of a row's entries there are, the first ones; None for all. weights: (N,), summing
        to one; None for the mean. An SFT term is that of the first responses. Raises InvalidArgument.
        """
        columns, counts, weights = list_columns(
            self, policy_logps, reference_logps, lengths=lengths, scores=scores, sizes=sizes, weights=weights
        )
        anchor, best, of_best = require_sft(self).anchor, None, None if lengths is None else columns.lengths
        if anchor.role == "chosen":
            of_first = None if of_best is None else of_best[0]
            best = reduced(
                columns.logps[0], of_first, weights, anchor.reduction, whose="lengths", setting="sft_reduction"
            )
        return self.total(numerics.weighted_mean(self.per_pair(columns, counts), weights), best, weights, None)

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores: the class's name and every field."""
        return _described(self)

    def total(self, preference: Any, base_logps: Any, weights: Any, base_weights: Any) -> tuple[Any, LossTerms]:
        """Return (loss, LossTerms) from the mean preference loss and the rest as for `loss`: the formula's one home.

        Where groups of several sizes are asked for one size at a time, their weighted sums add up to that mean.
        """
        anchor = self.anchor
        weighted = self.preference_weight * preference
        if base_logps is None:
            if anchor.weight:
                raise InvalidArgument(
                    "base_logps",
                    expected="log-probabilities under pi_base",
                    got=None,
                    remedy="The SFT term needs them.",
                )
            return weighted, LossTerms(preference, float("nan"))
        sft = numerics.weighted_mean(-base_logps, weights if base_weights is None else base_weights)
        # At weight 0 the SFT term is reported but left out: 0 * inf would be NaN.
        return weighted + anchor.weight * sft if anchor.weight else weighted, LossTerms(preference, sft)


def _described(value: Any) -> Any:
    """Return a dataclass as its class's name and fields, so that a record tells one divergence from another."""
    if not is_dataclass(value):
        return value
    return {"name": type(value).__name__, **{f.name: _described(getattr(value, f.name)) for f in fields(value)}}


def preference_loss(margins: Any, beta: float) -> Any:
    """Return softplus(-beta * margins), one value per pair: the Bradley-Terry negative log-likelihood.

    margins: (N,), h(chosen) - h(rejected) with h = log(pi / pi_ref), in nats.
    Source: paper, Eq. (3.2) with r from Eq. (4.5); Rafailov et al. 2023, Eq. 7.
    """
    return Logistic().of_margin(beta * margins)


def preference_derivatives(margins: Any, beta: float) -> tuple[Any, Any]:
    """Return the first and second derivative of `preference_loss` in the margins, each (N,)."""
    return Logistic().derivatives(margins, beta)


def implicit_margins(
    policy_chosen_logps: Any, policy_rejected_logps: Any, reference_chosen_logps: Any, reference_rejected_logps: Any
) -> Any:
    """Return h(chosen) - h(rejected), h = log(pi / pi_ref): (N,), in nats."""
    return (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)


class _Likelihood(Objective):
    """What RPO and DPO share: the likelihood of beta * h. Its parts are made once, since solvers ask at every step."""

    beta: float

    @cached_property
    def link(self) -> Link:
        """h, the log-ratio to the reference."""
        return LogRatio(beta=self.beta)

    @cached_property
    def shape(self) -> Shape:
        """Bradley-Terry's negative log-likelihood."""
        return Logistic()


def _pessimistic(name: str, value: object) -> float:
    remedy = "eta < 0 rewards unseen responses (optimism, as in XPO) and is unbounded here; use eta >= 0."
    return checks.nonnegative(name, value, remedy=remedy)


def _base(name: str, value: object) -> str:
    return checks.one_of(name, value, BASES)


Base = Annotated[str, _base]


@dataclass(frozen=True, kw_only=True)
class RPO(_Likelihood):
    r"""Regularized Preference Optimization: DPO + eta * beta * SFT.

    $L(\pi) = E_D[\mathrm{softplus}(-\beta (h_w - h_l))] + \eta\beta\, E_{d_0, \pi_{base}}[-\log\pi]$.

    beta: KL temperature, > 0, reward units per nat. eta: weight of the reward penalty, >= 0; at 0
    this is DPO. sft_reduction: "sequence_sum" (the paper), "sequence_mean" or "batch_token_mean".
    base: whose log-probabilities the SFT term takes; anything but "chosen" must be passed as
    `base_logps`. Raises InvalidArgument. Source: paper, Eq. (4.8), Algorithm 2, Theorem 5.6.
    """

    beta: Positive
    eta: Annotated[float, _pessimistic]
    sft_reduction: Reduction = "sequence_sum"
    base: Base = "chosen"

    @property
    def label(self) -> str:
        """A short name for legends; at eta = 0 that of DPO."""
        return super().label if self.eta else f"DPO (beta = {self.beta:g})"

    @property
    def sft_weight(self) -> float:
        """Weight of the SFT term: the only place where eta and beta are multiplied."""
        return self.eta * self.beta

    @property
    def reward_penalty(self) -> float:
        """Weight of the reward penalty, eta."""
        return self.eta

    @cached_property
    def anchor(self) -> Anchor:
        """The reward penalty, which is an SFT term."""
        return Anchor(role=self.base, weight=self.sft_weight, reduction=self.sft_reduction)


@dataclass(frozen=True, kw_only=True)
class DPO(_Likelihood):
    """Direct Preference Optimization: the preference term alone; the limit eta -> 0 of RPO.

    beta: KL temperature, > 0. `base` only breaks the tie among several maximum-likelihood rewards
    (docs/theory.md, section 2). Source: Rafailov et al. 2023, Eq. 7.
    """

    beta: Positive
    base: Base = "chosen"

    @property
    def eta(self) -> float:
        """Weight of the reward penalty: zero."""
        return 0.0

    @property
    def sft_weight(self) -> float:
        """Weight of the SFT term: zero."""
        return 0.0

    @property
    def sft_reduction(self) -> str:
        """Reduction of the SFT term, logged though it is not optimised."""
        return "sequence_sum"

    @cached_property
    def anchor(self) -> Anchor:
        """The SFT term at weight 0, under `base`."""
        return Anchor(role=self.base)


def require_margin_shape(objective: Objective) -> MarginShape:
    """Return the objective's shape, or refuse one of both rewards."""
    if isinstance(objective.shape, MarginShape):
        return objective.shape
    raise InvalidArgument(
        "objective",
        expected="a loss of the margin alone",
        got=f"{type(objective).__name__}, a loss of both rewards",
        remedy="Call the objective on log-probabilities.",
    )


def require_objective(value: object, name: str = "objective") -> Objective:
    """Return `value`, or refuse what is no preference objective, a class included, or one of extreme beta."""
    if not isinstance(value, Objective):
        raise InvalidArgument(
            name,
            expected="a preference objective: rpo.RPO(beta=0.1, eta=0.05), another of rpo.methods, or your own",
            got=f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__,
            remedy="Call the class with its numbers; `rpo methods` lists them.",
        )
    parts: tuple[tuple[str, Any], ...] = (("link", Link), ("shape", Shape), ("anchor", Anchor))
    for part, kind in parts:
        checks.instance(f"{name}.{part}", getattr(value, part), kind)
    _check_scales(name, {"beta": value.link.beta, "eta": getattr(value, "eta", 0.0)})
    return value


def require_sft(objective: Objective) -> Objective:
    """Return the objective, or refuse one whose anchor is no mean of log-probabilities of a base."""
    anchor = objective.anchor
    if anchor.weight and not isinstance(anchor.divergence, KL):
        raise InvalidArgument(
            "objective",
            expected="an SFT term of log-probabilities",
            got=f"{objective.label}, whose penalty is a mean over responses of the reference as well",
            remedy="Use rpo.bandit, or PreferenceTrainer, which samples them; with divergence=KL() it is RPO.",
        )
    return objective


def require_comparison(objective: Objective) -> Objective:
    """Return the objective, or refuse one that compares no log-probabilities: SFT, or a reward model's."""
    if objective.shape.compares and "head" not in objective.needs:
        return objective
    raise InvalidArgument(
        "objective",
        expected="a preference objective on log-probabilities",
        got=type(objective).__name__,
        remedy="SFT is for SFTTrainer, BradleyTerry for RewardTrainer; rpo.fit takes all of them.",
    )


# The two objectives of the paper, which sweeps, bounds and comparisons are about.
Solvable = RPO | DPO


def check_objective(value: object, name: str = "objective") -> Solvable:
    """Return `value`, or refuse anything but an RPO or DPO itself, of a beta and eta that float64 can square.

    Solvers and certificates use derivatives and signs of these two losses that a subclass, which may override
    any of them, does not promise.
    """
    if not (isinstance(value, Solvable) and type(value) in (RPO, DPO)):
        raise InvalidArgument(
            name,
            expected="an RPO or a DPO, not a subclass or another loss",
            got=f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__,
            remedy="Pass rpo.RPO(beta=0.1, eta=0.05) or rpo.DPO(beta=0.1): only their optima are certified here; "
            "rpo.fit minimises any objective.",
        )
    _check_scales(name, {"beta": value.beta, "eta": value.eta})
    return value


def _check_scales(name: str, numbers: dict[str, float]) -> None:
    """Refuse a beta or eta whose square, or that of its inverse, leaves float64 no room; eta may be 0."""
    for which, number in numbers.items():
        size = number if which == "beta" else abs(number)
        if not (LEAST_SCALE <= size <= 1.0 / LEAST_SCALE or (which == "eta" and number == 0)):
            raise InvalidArgument(
                f"{name}.{which}",
                expected=f"a number between {LEAST_SCALE:g} and {1.0 / LEAST_SCALE:g}" + " or 0" * (which == "eta"),
                got=number,
                remedy="Measure rewards in other units: only beta and eta in units of the reward matter.",
            )
