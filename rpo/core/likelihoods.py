"""The two likelihoods beside the objective: of responses, for pi_ref (SFT), and of preferences, for a reward model.

Shapes: N responses or pairs. Both share the formulas of `rpo.core.objectives`, whose two terms they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rpo.core import checks, numerics
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import LossTerms, _check_alike, _like, preference_loss
from rpo.core.reduction import SFT_REDUCTIONS, check_weights, reduced


class BradleyTerryTerms(NamedTuple):
    """The parts of a reward model's loss, unweighted: loss = preference + center_rewards_coefficient * centering."""

    preference: Any
    centering: Any


@dataclass(frozen=True, kw_only=True)
class SFT:
    r"""Supervised fine-tuning: minus the log-probability of responses; the SFT term of `RPO`, alone.

    reduction: "batch_token_mean" (sum over tokens divided by their number), "sequence_mean" or
    "sequence_sum", as `RPO.sft_reduction`. Raises InvalidArgument. Source: paper, Eq. (4.8), second term.
    """

    reduction: str = "batch_token_mean"

    def __post_init__(self) -> None:
        checks.one_of("reduction", self.reduction, SFT_REDUCTIONS)

    def __call__(self, policy_logps: Any, *, lengths: Any = None, weights: Any = None) -> tuple[Any, LossTerms]:
        """Return (loss, LossTerms) of N responses, the preference term NaN; NumPy arrays or torch tensors (autograd).

        policy_logps: (N,), summed over tokens, nats. lengths: (N,), tokens > 0, needed unless reduction is
        "sequence_sum". weights: (N,), summing to one; None for the mean. Raises InvalidArgument.
        """
        logps = _vector("policy_logps", policy_logps)
        lengths, weights = _like("lengths", lengths, logps), _like("weights", weights, logps)
        check_weights(weights, logps)
        values = reduced(logps, lengths, weights, self.reduction, whose="lengths", setting="reduction")
        loss = numerics.weighted_mean(-values, weights)
        return loss, LossTerms(preference=float("nan"), sft=loss)

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores: the class's name and every field."""
        return {"name": type(self).__name__, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    r"""Maximum likelihood of a reward under Bradley-Terry: $E_D[\mathrm{softplus}(-(r_w - r_l))]$.

    center_rewards_coefficient: weight, >= 0, of $E_D[(r_w + r_l)^2]$, which keeps rewards around zero;
    0 leaves it out. Rewards have the scale at which beta = 1. Raises InvalidArgument.
    Source: paper, Eq. (3.2); centering: Eisenstein et al. 2023, Eq. 2.
    """

    center_rewards_coefficient: float = 0.0

    def __post_init__(self) -> None:
        value = checks.nonnegative("center_rewards_coefficient", self.center_rewards_coefficient)
        object.__setattr__(self, "center_rewards_coefficient", value)

    def __call__(
        self, chosen_rewards: Any, rejected_rewards: Any, *, weights: Any = None
    ) -> tuple[Any, BradleyTerryTerms]:
        """Return (loss, BradleyTerryTerms) of N pairs; NumPy arrays or torch tensors (autograd).

        chosen_rewards, rejected_rewards: (N,). weights: (N,), summing to one; None for the mean.
        Raises InvalidArgument.
        """
        chosen, rejected = (
            _vector("chosen_rewards", chosen_rewards),
            numerics.promote(rejected_rewards, "rejected_rewards"),
        )
        _check_alike("rejected_rewards", rejected, chosen)
        weights = _like("weights", weights, chosen)
        check_weights(weights, chosen)
        preference = numerics.weighted_mean(preference_loss(chosen - rejected, beta=1.0), weights)
        centering = numerics.weighted_mean((chosen + rejected) ** 2, weights)
        # At 0 centering is reported but left out: 0 * inf would be NaN.
        coefficient = self.center_rewards_coefficient
        loss = preference + coefficient * centering if coefficient > 0 else preference
        return loss, BradleyTerryTerms(preference, centering)

    def to_dict(self) -> dict[str, Any]:
        """Return what a record stores: the class's name and every field."""
        return {"name": type(self).__name__, **asdict(self)}


def _vector(name: str, value: Any) -> Any:
    """Return `value` in at least float32, or refuse it unless its shape is (N,) with N >= 1."""
    value = numerics.promote(value, name)
    if value.ndim != 1 or value.shape[0] == 0:
        raise InvalidArgument(
            name, expected="shape (N,) with N >= 1", got=f"shape {tuple(value.shape)}", remedy="Pass one a row."
        )
    return value
