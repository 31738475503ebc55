"""Loss settings of other trainers as objectives: converted where the loss is the same on every batch, else refused.

The coefficients of DPO with an SFT term, both ways, are `rpo.core.conversions`. Here are the loss types of TRL 1.16
(and of Unsloth, which patches TRL's trainers and keeps their options), and of trainers that name losses as TRL does.
An SFT term over "batch_token_mean" is the same provided that the micro-batches are; means over tokens are over those
that are scored, the end of sequence among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rpo.core import checks
from rpo.core.conversions import from_trl
from rpo.core.divergences import Alpha, Divergence, ForwardKL, JensenShannon
from rpo.core.errors import InvalidArgument, shown
from rpo.core.objectives import DPO, RPO, Objective
from rpo.methods.divergence import FDPO
from rpo.methods.foreign import OPTIONS
from rpo.methods.pairs import EXO, IPO, ConservativeDPO, DiscoPOP, RobustDPO, SLiC
from rpo.methods.pointwise import NCA, APODown, APOZero
from rpo.methods.reference_free import CPO, ORPO, AlphaPO, SimPO

DIVERGENCES: dict[str, Callable[[float], Divergence]] = {
    "forward_kl": lambda coef: ForwardKL(),
    "js_divergence": lambda coef: JensenShannon(),
    "alpha_divergence": Alpha,
}
# A loss type of DPOTrainer -> the objective of (beta, label_smoothing, discopop_tau).
LOSSES: dict[str, Callable[[float, float, float], Objective]] = {
    "sigmoid": lambda beta, epsilon, tau: DPO(beta=beta),
    "hinge": lambda beta, epsilon, tau: SLiC(beta=beta),
    "ipo": lambda beta, epsilon, tau: IPO(tau=beta, per_token=True),
    "exo_pair": lambda beta, epsilon, tau: EXO(beta=beta, epsilon=epsilon),
    "nca_pair": lambda beta, epsilon, tau: NCA(beta=beta),
    "robust": lambda beta, epsilon, tau: RobustDPO(beta=beta, epsilon=epsilon),
    "apo_zero": lambda beta, epsilon, tau: APOZero(beta=beta),
    "apo_down": lambda beta, epsilon, tau: APODown(beta=beta),
    "discopop": lambda beta, epsilon, tau: DiscoPOP(beta=beta, tau=tau),
}
KTO_REMEDY = "Use KTO, whose z0 is that of the update before over its global batch, not of the micro-batch at hand."
SMOOTHED = ("robust", "exo_pair")
OTHERS: dict[str, str] = {
    "bco_pair": "It is rpo.BCO times two and without the shift; rpo.BCO has the paper's.",
    "sppo_hard": "It fits each log-ratio to +-1 / (2 beta), which no registered method does.",
    "aot": "It sorts the batch, so that its loss is no mean over pairs.",
    "aot_unpaired": "It sorts the batch, so that its loss is no mean over pairs.",
    "sigmoid_norm": "It is DPO on log-ratios per token: a class of your own with LogRatio(beta, per_token=True).",
    "sft": "SFT() trains it alone; beside sigmoid it is RPO.",
}


def from_dpo_config(
    *,
    loss_type: str | Sequence[str] = "sigmoid",
    beta: float = 0.1,
    loss_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float = 0.5,
    discopop_tau: float = 0.05,
    ld_alpha: float | None = None,
    use_weighting: bool = False,
) -> Objective:
    """Return the objective of these fields of TRL's DPOConfig, by its names and defaults.

    Refused: what TRL takes and ignores (label_smoothing but for robust and exo_pair), what it alone has, and losses
    weighted by anything but [1, w] of sigmoid and sft. Raises InvalidArgument. Source: TRL 1.16, trainer/dpo_config.py
    and the loss types of trainer/dpo_trainer.py.
    """
    _refuse_tokens(ld_alpha, use_weighting)
    kinds = _loss_types(loss_type)
    temperature = checks.positive("beta", beta)
    epsilon = checks.nonnegative("label_smoothing", label_smoothing)
    checks.one_of("f_divergence_type", f_divergence_type, ("reverse_kl", *DIVERGENCES))
    if f_divergence_type != "reverse_kl":
        if kinds != ["sigmoid"]:
            remedy = "Compose it of rpo.core.links.LogRatio(beta, divergence) and a shape, as a class of your own."
            raise InvalidArgument("f_divergence_type", expected="loss_type sigmoid", got=shown(kinds), remedy=remedy)
        _refuse_smoothing("sigmoid", epsilon)
        return FDPO(beta=temperature, divergence=DIVERGENCES[f_divergence_type](f_alpha_divergence_coef))
    if sorted(kinds) == ["sft", "sigmoid"]:
        _refuse_smoothing("sigmoid", epsilon)
        weights = _loss_weights(kinds, loss_weights)
        return from_trl(temperature, [weights["sigmoid"], weights["sft"]])
    kind = _single(kinds, loss_weights)
    if kind not in SMOOTHED:
        _refuse_smoothing(kind, epsilon)
    return LOSSES[kind](temperature, epsilon, discopop_tau)


def from_cpo_config(
    *,
    loss_type: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    cpo_alpha: float = 1.0,
    simpo_gamma: float = 0.5,
    alpha: float = 0.0,
) -> Objective:
    """Return the objective of these fields of TRL's CPOConfig: CPO, SimPO, AlphaPO, or the reference-free hinge.

    Its SimPO has an SFT term unless cpo_alpha is 0, which no method of that name has: refused. Raises InvalidArgument.
    Source: TRL 1.16, experimental/cpo/cpo_config.py and cpo_trainer.py.
    """
    checks.one_of("loss_type", loss_type, ("sigmoid", "hinge", "ipo", "simpo", "alphapo"))
    sft = checks.nonnegative("cpo_alpha", cpo_alpha)
    power = float(checks.finite("alpha", alpha, shape=()))
    if loss_type == "alphapo":  # TRL reads it as simpo without the SFT term
        loss_type, sft = "simpo", 0.0
    if checks.nonnegative("label_smoothing", label_smoothing):
        remedy = "Compose it of LogRatio(beta, reference=False) and Logistic(tilt=epsilon), as a class of your own."
        raise InvalidArgument("label_smoothing", expected="0 without a reference", got=label_smoothing, remedy=remedy)
    if loss_type == "simpo":
        if sft:
            remedy = "Set cpo_alpha to 0, which is SimPO; CPO has an SFT term."
            raise InvalidArgument("cpo_alpha", expected="0 with simpo", got=cpo_alpha, remedy=remedy)
        if power:
            return AlphaPO(beta=beta, gamma=simpo_gamma, alpha=power)
        return SimPO(beta=beta, gamma=simpo_gamma)
    if power:
        remedy = "AlphaPO's rewards are means over tokens: use loss_type alphapo."
        raise InvalidArgument("alpha", expected=f"0 with {loss_type}", got=alpha, remedy=remedy)
    if loss_type == "ipo":
        remedy = "IPO has a reference; without one, compose LogRatio(1, reference=False, per_token=True) and Square."
        raise InvalidArgument("loss_type", expected="sigmoid, hinge, simpo or alphapo", got="'ipo'", remedy=remedy)
    if loss_type == "hinge":
        return SLiC(beta=beta, reference=False, sft_weight=sft, sft_reduction="batch_token_mean")
    return CPO(beta=beta, sft_weight=sft)


def from_ms_swift(
    *,
    rlhf_type: str = "dpo",
    beta: float | None = None,
    loss_type: str | Sequence[str] | None = None,
    loss_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    rpo_alpha: float | None = None,
    ld_alpha: float | None = None,
    discopop_tau: float = 0.05,
    cpo_alpha: float = 1.0,
    simpo_gamma: float = 1.0,
) -> Objective:
    """Return the objective of these arguments of ms-swift's `swift rlhf`, by its names and defaults.

    It computes DPO's losses itself: unlike TRL's, its sigmoid honours label_smoothing, and rpo_alpha is the weight of
    the token mean of the chosen responses. Raises InvalidArgument. Source: ms-swift, swift/arguments/rlhf_args.py and
    swift/rlhf_trainers/dpo_trainer.py.
    """
    if rlhf_type == "kto":
        expected = "a loss without statistics of the batch"
        raise InvalidArgument("rlhf_type", expected=expected, got="'kto'", remedy=KTO_REMEDY)
    checks.one_of("rlhf_type", rlhf_type, ("dpo", "cpo", "simpo", "orpo"))
    temperature = checks.positive("beta", (2.0 if rlhf_type == "simpo" else 0.1) if beta is None else beta)
    if rlhf_type == "orpo":
        return ORPO(weight=temperature)
    if rlhf_type != "dpo":
        kind = rlhf_type if loss_type is None else _single(_loss_types(loss_type), None, known=("sigmoid", "simpo"))
        kind = "sigmoid" if kind == "cpo" else kind
        return from_cpo_config(loss_type=kind, beta=temperature, cpo_alpha=cpo_alpha, simpo_gamma=simpo_gamma)
    _refuse_tokens(ld_alpha, False)
    kinds = _loss_types("sigmoid" if loss_type is None else loss_type)
    epsilon = checks.nonnegative("label_smoothing", label_smoothing)
    if (rpo_alpha is not None and kinds != ["sigmoid"]) or (epsilon and (rpo_alpha is not None or len(kinds) > 1)):
        name = "label_smoothing" if epsilon else "rpo_alpha"
        remedy = "No method has smoothed labels, or another loss than DPO's, beside an SFT term of its own weight."
        raise InvalidArgument(name, expected="sigmoid alone", got=shown(list(kinds)), remedy=remedy)
    if rpo_alpha is not None:
        return from_trl(temperature, [1.0, checks.nonnegative("rpo_alpha", rpo_alpha)])
    if kinds == ["sigmoid"] and epsilon and loss_weights is None:
        return ConservativeDPO(beta=temperature, epsilon=epsilon)
    if "ipo" in kinds:
        remedy = "Use IPO(tau=beta, per_token=True), which is TRL's."
        expected = "a loss of log-probabilities whose division by tokens is that of each response"
        raise InvalidArgument("loss_type", expected=expected, got="'ipo' of ms-swift", remedy=remedy)
    return from_dpo_config(
        loss_type=kinds,
        beta=temperature,
        loss_weights=loss_weights,
        label_smoothing=epsilon or (1e-3 if kinds == ["exo_pair"] else 0.0),  # its default there
        discopop_tau=discopop_tau,
    )


def from_nemo_rl(
    *,
    reference_policy_kl_penalty: float = 0.05,
    preference_loss_weight: float = 1.0,
    sft_loss_weight: float = 0.0,
    preference_average_log_probs: bool = False,
    sft_average_log_probs: bool = False,
) -> RPO:
    """Return the objective of these fields of `dpo` in NeMo-RL's configuration, by its names and defaults.

    eta = sft_loss_weight / reference_policy_kl_penalty, over sums or means of tokens of each response; at 0 it is DPO.
    Raises InvalidArgument. Source: NeMo-RL, examples/configs/dpo.yaml and DPOLossFn of its loss functions.
    """
    temperature = checks.positive("reference_policy_kl_penalty", reference_policy_kl_penalty)
    sft = checks.nonnegative("sft_loss_weight", sft_loss_weight)
    if checks.positive("preference_loss_weight", preference_loss_weight) != 1.0:
        remedy = "Divide both weights by it and multiply the learning rate by it."
        raise InvalidArgument("preference_loss_weight", expected="1", got=preference_loss_weight, remedy=remedy)
    if preference_average_log_probs:
        remedy = OTHERS["sigmoid_norm"]
        raise InvalidArgument("preference_average_log_probs", expected="False", got=True, remedy=remedy)
    reduction = "sequence_mean" if sft_average_log_probs else "sequence_sum"
    return RPO(beta=temperature, eta=sft / temperature, sft_reduction=reduction)


def from_axolotl(
    *,
    rl: str,
    rl_beta: float | None = None,
    orpo_alpha: float | None = None,
    rpo_alpha: float | None = None,
    dpo_label_smoothing: float | None = None,
    dpo_use_weighting: bool = False,
    dpo_norm_loss: bool = False,
    simpo_gamma: float | None = None,
    cpo_alpha: float | None = None,
) -> Objective:
    """Return the objective of these keys of an Axolotl file, which it hands to TRL. rl: dpo, ipo, simpo or orpo.

    Raises InvalidArgument. Source: Axolotl, src/axolotl/core/builders/rl.py and core/trainers/dpo/__init__.py.
    """
    if rl == "kto":
        expected = "a loss without statistics of the batch"
        raise InvalidArgument("rl", expected=expected, got="'kto'", remedy=KTO_REMEDY)
    checks.one_of("rl", rl, ("dpo", "ipo", "simpo", "orpo"))
    for name, value in (("rpo_alpha", rpo_alpha), ("dpo_norm_loss", dpo_norm_loss or None)):
        if value is not None:
            remedy = {"rpo_alpha": OPTIONS["rpo_alpha"], "dpo_norm_loss": OTHERS["sigmoid_norm"]}[name]
            raise InvalidArgument(name, expected="nothing: TRL 1.16 has no such option", got=value, remedy=remedy)
    if rl == "orpo":
        weight = rl_beta if rl_beta is not None else orpo_alpha
        return ORPO() if weight is None else ORPO(weight=weight)
    beta = 0.1 if rl_beta is None else rl_beta
    if rl == "simpo":
        if simpo_gamma is None:
            remedy = "Set it; TRL's own default is 0.5."
            raise InvalidArgument("simpo_gamma", expected="a number with simpo", got=None, remedy=remedy)
        sft = 1.0 if cpo_alpha is None else cpo_alpha
        return from_cpo_config(loss_type="simpo", beta=beta, cpo_alpha=sft, simpo_gamma=simpo_gamma)
    return from_dpo_config(
        loss_type="ipo" if rl == "ipo" else "sigmoid",
        beta=beta,
        label_smoothing=(dpo_label_smoothing or 0.0) if rl == "dpo" else 0.0,
        use_weighting=dpo_use_weighting,
    )


def _loss_types(loss_type: Any) -> list[str]:
    kinds = [loss_type] if isinstance(loss_type, str) else checks.instances("loss_type", loss_type, str)
    for kind in kinds:
        checks.one_of("loss_type", kind, (*LOSSES, *OTHERS, "simpo"))
    return kinds


def _loss_weights(kinds: Sequence[str], weights: Any) -> dict[str, float]:
    given = [1.0] * len(kinds) if weights is None else checks.listed("loss_weights", weights)
    if len(given) != len(kinds):
        remedy = "Give each loss type its weight."
        raise InvalidArgument("loss_weights", expected=f"{len(kinds)} numbers", got=shown(weights), remedy=remedy)
    return {kind: checks.nonnegative("loss_weights", value) for kind, value in zip(kinds, given, strict=True)}


def _single(kinds: Sequence[str], weights: Any, known: Sequence[str] = tuple(LOSSES)) -> str:
    """Return the one loss type, or refuse several, a weight, and one that no method has."""
    if len(kinds) != 1:
        remedy = "A mixture of losses is a class of your own."
        raise InvalidArgument(
            "loss_type", expected="one loss, or sigmoid and sft", got=shown(list(kinds)), remedy=remedy
        )
    if _loss_weights(kinds, weights)[kinds[0]] != 1.0:
        remedy = "Leave it out, and multiply the learning rate by it."
        raise InvalidArgument("loss_weights", expected="[1.0]", got=shown(weights), remedy=remedy)
    if kinds[0] not in known:
        remedy = OTHERS.get(kinds[0], "Choose one of them.")
        raise InvalidArgument("loss_type", expected=f"one of {', '.join(known)}", got=repr(kinds[0]), remedy=remedy)
    return kinds[0]


def _refuse_smoothing(kind: str, epsilon: float) -> None:
    if epsilon:
        remedy = "Pass 0 for what it trains; ConservativeDPO(epsilon=...) or RobustDPO(epsilon=...) for what is meant."
        expected = f"0 with {kind}, where TRL ignores it"
        raise InvalidArgument("label_smoothing", expected=expected, got=epsilon, remedy=remedy)


def _refuse_tokens(ld_alpha: Any, use_weighting: Any) -> None:
    if ld_alpha is not None and ld_alpha != 1.0:
        raise InvalidArgument("ld_alpha", expected="None", got=ld_alpha, remedy=OPTIONS["ld_alpha"])
    if use_weighting:
        raise InvalidArgument("use_weighting", expected="False", got=True, remedy=OPTIONS["use_weighting"])
