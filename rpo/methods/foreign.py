"""Options of other trainers that choose a loss, and what they are called here; `conversions` reads their values.

Only strings, so that a message costs no import.
"""

from __future__ import annotations

from rpo.core.errors import InvalidArgument

# Of TRL and of those that name losses as it does.
OPTIONS: dict[str, str] = {
    "loss_type": "A loss is an objective here: DPO (sigmoid), SLiC (hinge), IPO (ipo, with per_token), EXO, NCA, "
    "RobustDPO, APOZero, APODown, DiscoPOP, RPO (sigmoid with sft); rpo.methods.conversions.from_dpo_config converts.",
    "loss_weights": "The weight of TRL's sft loss is eta * beta of RPO; rpo.core.conversions.from_trl converts.",
    "label_smoothing": "It is epsilon of RobustDPO, EXO or ConservativeDPO, whichever loss was meant; TRL's sigmoid "
    "takes it and ignores it.",
    "f_divergence_type": "Use FDPO with divergence ForwardKL, JensenShannon or Alpha, or KL, which is DPO.",
    "f_alpha_divergence_coef": "Use FDPO with divergence Alpha, whose alpha is that number.",
    "rpo_alpha": "The SFT term is RPO's, of weight eta * beta: eta = rpo_alpha / beta with sft_reduction "
    "batch_token_mean where rpo_alpha multiplied the SFT term, as in ms-swift.",
    "nll_loss_coef": "The SFT term is RPO's; rpo.core.conversions.from_authors_averaged converts the coefficient.",
    "simpo_gamma": "Use SimPO, whose gamma is that number, not its ratio to beta.",
    "gamma_beta_ratio": "Use SimPO, whose gamma is that ratio times beta.",
    "cpo_alpha": "Use CPO, whose sft_weight is that number.",
    "orpo_alpha": "Use ORPO, whose weight is that number.",
    "discopop_tau": "Use DiscoPOP, whose tau is that number.",
    "ld_alpha": "No method here weighs the tokens of a response apart, as LD-DPO does; RDPO corrects for length.",
    "use_weighting": "Use WPO, of that beta, with capped false; weight_column takes fixed weights.",
    "reference_free": "Use a method without a reference: SimPO, CPO, CPL, ORPO, ASFT, or SLiC with reference false.",
    "desirable_weight": "Use KTO, which has it as a field.",
    "undesirable_weight": "Use KTO, which has it as a field.",
}


def refusal(name: str, where: str) -> InvalidArgument:
    """Return the refusal of one of OPTIONS, given among the options of `where`."""
    return InvalidArgument(
        name, expected=f"an option of {where}", got="one of another trainer", remedy=OPTIONS[name.rpartition(".")[2]]
    )
