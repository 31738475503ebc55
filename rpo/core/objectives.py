"""The objective, written once: it runs unchanged on NumPy, torch and cvxpy.

Shapes: N pairs, X prompts. `logps` are summed token log-probabilities in nats, one a response.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rpo.core import checks, numerics
from rpo.core.errors import InvalidArgument
from rpo.core.reduction import SFT_REDUCTIONS, check_weights, reduced

BASES = ("chosen", "rejected", "responses", "reference", "custom")
LEAST_SCALE = 1e-20  # its square, and that of its inverse, leave float64 room for the data's own scale


class LossTerms(NamedTuple):
    """The parts of a loss, unweighted, each a scalar: loss = preference + eta*beta * sft."""

    preference: Any
    sft: Any


def preference_loss(margins: Any, beta: float) -> Any:
    """Return softplus(-beta * margins), one value a pair: the Bradley-Terry negative log-likelihood.

    margins: (N,), h(chosen) - h(rejected) with h = log(pi / pi_ref), in nats.
    Source: paper, Eq. (3.2) with r from Eq. (4.5); Rafailov et al. 2023, Eq. 7.
    """
    return numerics.softplus(-beta * margins)


def preference_derivatives(margins: Any, beta: float) -> tuple[Any, Any]:
    """Return the first and second derivative of `preference_loss` in the margins, each (N,)."""
    losing = numerics.sigmoid(-beta * margins)
    return -beta * losing, beta**2 * losing * (1.0 - losing)


def _terms(
    objective: Objective, margins: Any, base_logps: Any, weights: Any, base_weights: Any
) -> tuple[Any, LossTerms]:
    """The formula: weighted mean preference loss, plus sft_weight times the SFT term."""
    preference = numerics.weighted_mean(preference_loss(margins, objective.beta), weights)
    if base_logps is None:
        if objective.eta > 0:
            raise InvalidArgument(
                "base_logps", expected="log-probabilities under pi_base", got=None, remedy="The SFT term needs them."
            )
        return preference, LossTerms(preference, float("nan"))
    sft = numerics.weighted_mean(-base_logps, weights if base_weights is None else base_weights)
    # At eta = 0 the SFT term is reported but left out: 0 * inf would be NaN.
    loss = preference + objective.sft_weight * sft if objective.eta > 0 else preference
    return loss, LossTerms(preference, sft)


def implicit_margins(
    policy_chosen_logps: Any, policy_rejected_logps: Any, reference_chosen_logps: Any, reference_rejected_logps: Any
) -> Any:
    """Return h(chosen) - h(rejected), h = log(pi / pi_ref): (N,), in nats."""
    return (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)


@dataclass(frozen=True, kw_only=True)
class RPO:
    r"""Regularized Preference Optimization: DPO + eta * beta * SFT.

    $L(\pi) = E_D[\mathrm{softplus}(-\beta (h_w - h_l))] + \eta\beta\, E_{d_0, \pi_{base}}[-\log\pi]$.

    beta: KL temperature, > 0, reward units per nat. eta: weight of the reward penalty, >= 0; at 0
    this is DPO. sft_reduction: "sequence_sum" (the paper), "sequence_mean" or "batch_token_mean".
    base: whose log-probabilities the SFT term takes; anything but "chosen" must be passed as
    `base_logps`. Raises InvalidArgument. Source: paper, Eq. (4.8), Algorithm 2, Theorem 5.6.
    """

    beta: float
    eta: float
    sft_reduction: str = "sequence_sum"
    base: str = "chosen"

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", checks.positive("beta", self.beta))
        remedy = "eta < 0 rewards unseen responses (optimism, as in XPO) and is unbounded here; use eta >= 0."
        object.__setattr__(self, "eta", checks.nonnegative("eta", self.eta, remedy=remedy))
        checks.one_of("sft_reduction", self.sft_reduction, SFT_REDUCTIONS)
        checks.one_of("base", self.base, BASES)

    @property
    def sft_weight(self) -> float:
        """Weight of the SFT term: the only place where eta and beta are multiplied."""
        return self.eta * self.beta

    def terms(
        self, margins: Any, base_logps: Any = None, weights: Any = None, base_weights: Any = None
    ) -> tuple[Any, LossTerms]:
        """Return (loss, LossTerms) from margins (N,) and reduced base_logps (N,) or (X,), in nats.

        weights: (N,), of the pairs, summing to one; None for the plain mean. base_weights: of
        base_logps; None for `weights`. NumPy, torch, or cvxpy (margins affine, base_logps concave).
        """
        return _terms(self, margins, base_logps, weights, base_weights)

    def __call__(
        self,
        policy_chosen_logps: Any,
        policy_rejected_logps: Any,
        reference_chosen_logps: Any,
        reference_rejected_logps: Any,
        *,
        base_logps: Any = None,
        chosen_lengths: Any = None,
        base_lengths: Any = None,
        weights: Any = None,
    ) -> tuple[Any, LossTerms]:
        """Return (loss, LossTerms) of a batch of N pairs; NumPy arrays or torch tensors (autograd).

        *_logps: (N,), summed over tokens, nats. chosen_lengths, base_lengths: (N,), tokens > 0,
        needed unless sft_reduction is "sequence_sum". weights: (N,), summing to one; None for the
        mean. Raises InvalidArgument for wrong shapes, weights or missing inputs.
        """
        logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
        return _evaluate(self, logps, base_logps, chosen_lengths, base_lengths, weights)

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores: the class's name and every field."""
        return {"name": type(self).__name__, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Direct Preference Optimization: the preference term alone; the limit eta -> 0 of RPO.

    beta: KL temperature, > 0. `base` only breaks the tie among several maximum-likelihood rewards
    (docs/theory.md, section 2). Source: Rafailov et al. 2023, Eq. 7.
    """

    beta: float
    base: str = "chosen"

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", checks.positive("beta", self.beta))
        checks.one_of("base", self.base, BASES)

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

    def terms(
        self, margins: Any, base_logps: Any = None, weights: Any = None, base_weights: Any = None
    ) -> tuple[Any, LossTerms]:
        """Return (loss, LossTerms); the SFT term is reported (NaN without base_logps), not optimised."""
        return _terms(self, margins, base_logps, weights, base_weights)

    def __call__(
        self,
        policy_chosen_logps: Any,
        policy_rejected_logps: Any,
        reference_chosen_logps: Any,
        reference_rejected_logps: Any,
        *,
        base_logps: Any = None,
        chosen_lengths: Any = None,
        base_lengths: Any = None,
        weights: Any = None,
    ) -> tuple[Any, LossTerms]:
        """Return (loss, LossTerms) of a batch of N pairs; arguments as for `RPO`."""
        logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
        return _evaluate(self, logps, base_logps, chosen_lengths, base_lengths, weights)

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores: the class's name and every field."""
        return {"name": type(self).__name__, **asdict(self)}


Objective = RPO | DPO


def check_objective(value: object, name: str = "objective") -> Objective:
    """Return `value`, or refuse anything but an RPO or DPO itself, of a beta and eta that float64 can square.

    Solvers and certificates use derivatives and signs of these two losses that a subclass, which may override
    any of them, does not promise.
    """
    if not (isinstance(value, Objective) and type(value) in (RPO, DPO)):
        raise InvalidArgument(
            name,
            expected="an RPO or a DPO, not a subclass or another loss",
            got=f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__,
            remedy="Pass rpo.RPO(beta=0.1, eta=0.05) or rpo.DPO(beta=0.1): only their derivatives are known here.",
        )
    for which, number in (("beta", value.beta), ("eta", value.eta)):
        if abs(number) > 1.0 / LEAST_SCALE or (abs(number) < LEAST_SCALE and (which == "beta" or number != 0)):
            raise InvalidArgument(
                f"{name}.{which}",
                expected=f"a number between {LEAST_SCALE:g} and {1.0 / LEAST_SCALE:g}" + " or 0" * (which == "eta"),
                got=number,
                remedy="Measure rewards in other units: only beta and eta in units of the reward matter.",
            )
    return value


def _evaluate(
    objective: Objective,
    pair_logps: tuple[Any, ...],
    base_logps: Any,
    chosen_lengths: Any,
    base_lengths: Any,
    weights: Any,
) -> tuple[Any, LossTerms]:
    """Check a batch, form margins and reduced base log-probabilities, and call `objective.terms`."""
    names = (
        "policy_chosen_logps",
        "policy_rejected_logps",
        "reference_chosen_logps",
        "reference_rejected_logps",
    )
    logps = [numerics.promote(value, name) for name, value in zip(names, pair_logps, strict=True)]
    if logps[0].ndim != 1 or logps[0].shape[0] == 0:
        raise InvalidArgument(
            names[0], expected="shape (N,) with N >= 1", got=f"shape {tuple(logps[0].shape)}", remedy="Pass one a pair."
        )
    for name, value in zip(names[1:], logps[1:], strict=True):
        _check_alike(name, value, logps[0])
    weights = _like("weights", weights, logps[0])
    check_weights(weights, logps[0])
    if base_logps is not None:
        base_logps, lengths, whose = numerics.promote(base_logps, "base_logps"), base_lengths, "base_lengths"
        _check_alike("base_logps", base_logps, logps[0])
    elif objective.base == "chosen":
        base_logps, lengths, whose = logps[0], chosen_lengths, "chosen_lengths"
    elif objective.eta > 0:
        raise InvalidArgument(
            "base_logps",
            expected=f"log-probabilities of responses of base {objective.base!r}",
            got=None,
            remedy="Pass base_logps, or use base='chosen'.",
        )
    if base_logps is not None:
        lengths = _like(whose, lengths, base_logps)
        base_logps = reduced(
            base_logps, lengths, weights, objective.sft_reduction, whose=whose, setting="sft_reduction"
        )
    return objective.terms(implicit_margins(*logps), base_logps, weights)


def _check_alike(name: str, value: Any, first: Any) -> None:
    """Refuse a value of another shape or backend than the first of its kind."""
    kinds = numerics.backend(value), numerics.backend(first)
    if kinds[0] != kinds[1]:
        raise InvalidArgument(name, expected=f"a {kinds[1]} array", got=kinds[0], remedy="Pass all in one of them.")
    checks.has_shape(name, value, tuple(first.shape))


def _like(name: str, values: Any, logps: Any) -> Any:
    """Return `values` (None, a sequence, an array) in the backend and precision of `logps`."""
    if values is None:
        return None
    if numerics.backend(logps) == "torch":
        given = values if numerics.backend(values) == "torch" else checks.numbers(name, values)
        return sys.modules["torch"].as_tensor(given, dtype=logps.dtype, device=logps.device)
    return checks.numbers(name, values).astype(logps.dtype, copy=False)
