"""Settings of other code bases, to and from `RPO`: exact where that is possible, refused where not.

With S_i the summed log-probability of the chosen response of pair i, T_i its number of tokens and
N (or B, of a micro-batch) the number of pairs, every one of them adds to the DPO loss

    =====================  ==============================  =====================  ==================
    code base              its setting                     SFT term added         reduction in RPO
    =====================  ==============================  =====================  ==================
    official trainer       beta, eta                       beta eta mean_i(-S_i)  sequence_sum
    authors, averaged      beta, nll_loss_coef = c         c mean_i(-S_i / T_i)   sequence_mean
    TRL DPOConfig          beta, loss_weights = [1, w],    w sum_i(-S_i)          batch_token_mean
                           loss_type = [sigmoid, sft]        / sum_i(T_i)
    =====================  ==============================  =====================  ==================

Only the official trainer multiplies its weight by beta. The other two weights are eta * beta of the
paper times a length. T_i counts the tokens that are scored: the completion with its end of sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument, shown
from rpo.core.objectives import DPO, RPO, check_objective

# Below it the official trainer silently trains DPO.
OFFICIAL_LEAST_ETA = 1e-6
TRL_LOSS_TYPE = ("sigmoid", "sft")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Settings for another code base.

    settings: name there -> value. exact: whether its loss is the objective's on every batch, up to
    rounding. note: one sentence, with the size of the approximation where there is one.
    """

    settings: dict[str, Any]
    exact: bool
    note: str


def from_official(beta: float, eta: float) -> RPO:
    """Return the objective of the official trainer's settings; refuse 0 < eta < 1e-6, which it ignores.

    Raises InvalidArgument. Source: paper, Algorithm 2, as the authors released it.
    """
    _check_official_eta("eta", checks.nonnegative("eta", eta))
    return RPO(beta=beta, eta=eta)


def to_official(objective: RPO | DPO, *, chosen_lengths: Any = None, approximate: bool = False) -> Conversion:
    """Return beta and eta for the official trainer; exact for "sequence_sum" or equal lengths.

    chosen_lengths: (N,), tokens. Raises InvalidArgument, also for 0 < eta < 1e-6.
    """
    weight, exact, note = _convert(objective, "sequence_sum", chosen_lengths, approximate)
    same = objective.sft_reduction == "sequence_sum"
    eta = objective.eta if same else weight / objective.beta  # no rounding where nothing changes
    _check_official_eta("objective.eta", eta)
    return Conversion(settings={"beta": objective.beta, "eta": eta}, exact=exact, note=note)


def from_authors_averaged(beta: float, nll_loss_coef: float) -> RPO:
    """Return the objective of the authors' second code base, whose coefficient is not multiplied by beta.

    eta = nll_loss_coef / beta, over per-sequence token means. Raises InvalidArgument.
    """
    temperature = checks.positive("beta", beta)
    weight = checks.nonnegative("nll_loss_coef", nll_loss_coef)
    return RPO(beta=temperature, eta=weight / temperature, sft_reduction="sequence_mean")


def to_authors_averaged(objective: RPO | DPO, *, chosen_lengths: Any = None, approximate: bool = False) -> Conversion:
    """Return beta and nll_loss_coef for the authors' second code base.

    Exact for "sequence_mean" or equal lengths. chosen_lengths: (N,), tokens. Raises InvalidArgument.
    """
    weight, exact, note = _convert(objective, "sequence_mean", chosen_lengths, approximate)
    return Conversion(settings={"beta": objective.beta, "nll_loss_coef": weight}, exact=exact, note=note)


def from_trl(beta: float, loss_weights: Sequence[float]) -> RPO:
    """Return the objective of TRL's DPOConfig with loss_type=["sigmoid", "sft"] and these weights.

    loss_weights: [1.0, w]; eta = w / beta, over the token mean of each micro-batch. Another first
    weight scales the whole loss, which is no RPO: refused. Raises InvalidArgument.
    """
    temperature = checks.positive("beta", beta)
    listed = isinstance(loss_weights, (Sequence, np.ndarray)) and not isinstance(loss_weights, str)
    if not listed or getattr(loss_weights, "ndim", 1) != 1 or len(loss_weights) != 2:
        raise InvalidArgument(
            "loss_weights",
            expected='two weights, for loss_type=["sigmoid", "sft"]',
            got=shown(loss_weights),
            remedy="Pass [1.0, w]; TRL's default None means [1.0, 1.0].",
        )
    preference, weight = (checks.nonnegative(f"loss_weights[{k}]", value) for k, value in enumerate(loss_weights))
    if preference != 1.0:
        raise InvalidArgument(
            "loss_weights[0]",
            expected="1.0, the weight of the preference term in RPO",
            got=preference,
            remedy="Divide both weights by the first and multiply the learning rate by it.",
        )
    return RPO(beta=temperature, eta=weight / temperature, sft_reduction="batch_token_mean")


def to_trl(objective: RPO | DPO, *, chosen_lengths: Any = None, approximate: bool = False) -> Conversion:
    """Return beta, loss_type and loss_weights for TRL's DPOConfig.

    Exact for "batch_token_mean" with the same micro-batches, or for equal lengths; otherwise one
    weight cannot serve every batch, and `trl_batch_weight` gives that of a batch. chosen_lengths:
    (N,), tokens. Raises InvalidArgument.
    """
    weight, exact, note = _convert(objective, "batch_token_mean", chosen_lengths, approximate)
    settings = {"beta": objective.beta, "loss_type": list(TRL_LOSS_TYPE), "loss_weights": [1.0, weight]}
    return Conversion(settings=settings, exact=exact, note=note)


def trl_batch_weight(objective: RPO | DPO, chosen_lengths: Any) -> float:
    """Return the weight of TRL's "sft" loss that equals the objective's SFT term on this micro-batch.

    chosen_lengths: (B,), tokens. "sequence_sum": eta * beta * sum(T) / B. "batch_token_mean":
    eta * beta. "sequence_mean": eta * beta when the lengths are equal, refused otherwise, since the
    sum of S / T is not a multiple of the sum of S. Raises InvalidArgument.
    """
    lengths = _lengths(chosen_lengths)
    # From the sum, the mean length of this batch is no approximation: sum(S) / B = mean(T) sum(S) / sum(T).
    per_batch = check_objective(objective).sft_reduction == "sequence_sum"
    return _convert(objective, "batch_token_mean", lengths, per_batch)[0]


def _convert(objective: RPO | DPO, target: str, chosen_lengths: Any, approximate: bool) -> tuple[float, bool, str]:
    """Return (weight of the SFT term under reduction `target`, exact, note)."""
    check_objective(objective)
    if objective.eta == 0:
        return 0.0, True, "Exact: eta = 0, so there is no SFT term and the loss is DPO."
    if objective.base != "chosen":
        raise InvalidArgument(
            "objective.base",
            expected="'chosen', the only base the other code bases know",
            got=repr(objective.base),
            remedy="Use base='chosen', or train with this package.",
        )
    source = objective.sft_reduction
    if source == target:
        proviso = ", provided that the micro-batches are the same" if target == "batch_token_mean" else ""
        return objective.sft_weight, True, f"Exact: both reduce by {target}{proviso}."
    if chosen_lengths is None:
        raise InvalidArgument(
            "chosen_lengths",
            expected=f"token counts, since sft_reduction={source!r} becomes {target!r}",
            got=None,
            remedy="Pass the lengths of the chosen responses of your data.",
        )
    lengths = _lengths(chosen_lengths)
    least, mean, most = float(lengths.min()), float(lengths.mean()), float(lengths.max())
    factor = {"sequence_sum": 1.0, "sequence_mean": mean, "batch_token_mean": mean}
    weight = objective.sft_weight * (factor[target] / factor[source])
    if least == most:
        return weight, True, f"Exact while every chosen response has {least:g} tokens, as in chosen_lengths."
    if not approximate:
        raise InvalidArgument(
            "chosen_lengths",
            expected=f"equal lengths, without which {source!r} and {target!r} weigh sequences differently",
            got=f"lengths from {least:g} to {most:g} (mean {mean:g})",
            remedy="Pass approximate=True to use the mean length (for TRL, trl_batch_weight is exact batch by batch).",
        )
    return weight, False, _approximation(source, target, least, mean, most)


def _approximation(source: str, target: str, least: float, mean: float, most: float) -> str:
    """Say between which factors the weight on a token differs from the one intended."""
    if source == "sequence_sum" or (source, target) == ("batch_token_mean", "sequence_mean"):
        low, high = mean / most, mean / least  # the factor of a pair is mean(T) / T
    else:
        low, high = least / mean, most / mean  # T / mean(T)
    if "batch_token_mean" not in (source, target):
        where = "of a pair"
    elif "sequence_sum" in (source, target):
        where = "in a micro-batch of one pair"
    else:
        where = "in a batch of that mean length"
    return (
        f"Approximate: uses the mean of chosen lengths that run from {least:g} to {most:g} tokens (mean {mean:g}); "
        f"the weight on a token {where} is between {low:.3g} and {high:.3g} times the one intended."
    )


def _lengths(chosen_lengths: Any) -> Array:
    lengths = checks.finite("chosen_lengths", chosen_lengths, shape=(None,))
    if not lengths.size or lengths.min() <= 0:
        raise InvalidArgument(
            "chosen_lengths",
            expected="at least one token count, each > 0",
            got=lengths.min() if lengths.size else "none",
            remedy="Drop empty responses.",
        )
    return lengths


def _check_official_eta(name: str, eta: float) -> None:
    if 0 < eta < OFFICIAL_LEAST_ETA:
        raise InvalidArgument(
            name,
            expected=f"0 or at least {OFFICIAL_LEAST_ETA:g}",
            got=eta,
            remedy="The official trainer takes a smaller eta as 0 without saying so: use 0, which is what it trains.",
        )
