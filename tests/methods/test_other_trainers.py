"""Loss settings of other trainers against their formulas, and what is refused; TRL's also in test_trl_losses.py."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rpo
from rpo.core.errors import InvalidArgument
from rpo.methods.conversions import (
    LOSSES,
    OPTIONS,
    OTHERS,
    from_axolotl,
    from_cpo_config,
    from_dpo_config,
    from_ms_swift,
    from_nemo_rl,
)


def test_every_loss_type_of_trl_is_converted_or_refused_with_a_reason() -> None:
    from trl import DPOConfig

    text = DPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    for name in (*LOSSES, *OTHERS):
        assert f"'{name}'" in text
    assert text.count("'") == 2 * len({*LOSSES, *OTHERS}), text
    for name in set(OPTIONS) & set(DPOConfig.__dataclass_fields__):
        assert name not in rpo.llm.RPOConfig.__dataclass_fields__


B, T, BETA = 40, 12, 0.1
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(2, T, (2, B)).astype(float)
POLICY, REFERENCE = (-RNG.uniform(0.2, 2.0, (2, B)) * LENGTHS for _ in range(2))
MARGIN = (POLICY - REFERENCE)[0] - (POLICY - REFERENCE)[1]


def softplus(z: Any) -> Any:
    return np.logaddexp(0.0, z)


def ours(objective: Any) -> float:
    chosen, rejected = LENGTHS
    return float(objective(*POLICY, *REFERENCE, chosen_lengths=chosen, rejected_lengths=rejected)[0])


# Each loss written out from the trainer's definition.
FORMULAS: dict[str, tuple[Any, float]] = {
    "ms-swift sigmoid": (from_ms_swift(), softplus(-BETA * MARGIN).mean()),
    "ms-swift smooths": (
        from_ms_swift(label_smoothing=0.2),
        (0.8 * softplus(-BETA * MARGIN) + 0.2 * softplus(BETA * MARGIN)).mean(),
    ),
    "ms-swift rpo_alpha": (
        from_ms_swift(beta=0.2, rpo_alpha=0.7),
        softplus(-0.2 * MARGIN).mean() - 0.7 * POLICY[0].sum() / LENGTHS[0].sum(),
    ),
    "ms-swift robust": (
        from_ms_swift(loss_type="robust", label_smoothing=0.1),
        ((0.9 * softplus(-BETA * MARGIN) - 0.1 * softplus(BETA * MARGIN)) / 0.8).mean(),
    ),
    "ms-swift simpo": (
        from_ms_swift(rlhf_type="simpo", cpo_alpha=0),
        softplus(-(2.0 * (POLICY[0] / LENGTHS[0] - POLICY[1] / LENGTHS[1]) - 1.0)).mean(),
    ),
    "nemo-rl": (
        from_nemo_rl(reference_policy_kl_penalty=0.05, sft_loss_weight=0.3),
        softplus(-0.05 * MARGIN).mean() + 0.3 * (-POLICY[0]).mean(),
    ),
    "nemo-rl averages": (
        from_nemo_rl(sft_loss_weight=0.3, sft_average_log_probs=True),
        softplus(-0.05 * MARGIN).mean() + 0.3 * (-POLICY[0] / LENGTHS[0]).mean(),
    ),
    "axolotl ipo": (
        from_axolotl(rl="ipo", rl_beta=0.2),
        ((((POLICY - REFERENCE) / LENGTHS)[0] - ((POLICY - REFERENCE) / LENGTHS)[1] - 2.5) ** 2).mean(),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_conversion_is_the_formula_of_the_trainer(name: str) -> None:
    objective, expected = FORMULAS[name]
    assert ours(objective) == pytest.approx(expected, rel=1e-12)


def test_those_that_hand_their_settings_to_trl() -> None:
    assert from_axolotl(rl="dpo", rl_beta=0.3) == rpo.DPO(beta=0.3)
    assert from_axolotl(rl="orpo", orpo_alpha=0.2) == rpo.ORPO(weight=0.2)
    assert from_axolotl(rl="simpo", rl_beta=2, simpo_gamma=1, cpo_alpha=0) == rpo.SimPO(beta=2, gamma=1)
    assert from_ms_swift(rlhf_type="cpo") == rpo.CPO() and from_ms_swift(rlhf_type="orpo") == rpo.ORPO()
    assert from_ms_swift(loss_type="exo_pair") == rpo.EXO(epsilon=1e-3)


REFUSED: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (from_dpo_config, {"label_smoothing": 0.1}, "0 with sigmoid, where TRL ignores it.*ConservativeDPO"),
    (from_dpo_config, {"loss_type": "hinge", "label_smoothing": 0.1}, "0 with hinge"),
    (from_dpo_config, {"loss_type": ["sigmoid", "hinge"]}, "one loss, or sigmoid and sft"),
    (from_dpo_config, {"loss_type": "ipo", "loss_weights": [2.0]}, "multiply the learning rate"),
    (from_dpo_config, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "loss_weights: expected 2 numbers"),
    (from_dpo_config, {"loss_type": "aot"}, "sorts the batch"),
    (from_dpo_config, {"loss_type": "sigmoid_norm"}, "per_token=True"),
    (from_dpo_config, {"loss_type": "hinge", "f_divergence_type": "js_divergence"}, "expected loss_type sigmoid"),
    (from_dpo_config, {"f_divergence_type": "chi"}, "f_divergence_type: expected one of"),
    (from_dpo_config, {"ld_alpha": 0.5}, "RDPO corrects for length"),
    (from_dpo_config, {"use_weighting": True}, "Use WPO"),
    (from_dpo_config, {"loss_type": "kto"}, "loss_type: expected one of"),
    (from_cpo_config, {"loss_type": "simpo"}, "cpo_alpha: expected 0 with simpo, got 1.0"),
    (from_cpo_config, {"loss_type": "ipo"}, "IPO has a reference"),
    (from_cpo_config, {"alpha": 0.2}, "AlphaPO"),
    (from_cpo_config, {"label_smoothing": 0.2}, "label_smoothing"),
    (from_ms_swift, {"loss_type": "ipo"}, "which is TRL's"),
    (from_ms_swift, {"loss_type": "hinge", "rpo_alpha": 1.0}, "rpo_alpha: expected sigmoid alone"),
    (from_ms_swift, {"label_smoothing": 0.1, "rpo_alpha": 1.0}, "label_smoothing: expected sigmoid alone"),
    (from_ms_swift, {"rpo_alpha": 1.0, "ld_alpha": 0.3}, "ld_alpha"),
    (from_ms_swift, {"rlhf_type": "simpo"}, "cpo_alpha"),
    (from_ms_swift, {"rlhf_type": "kto"}, "the update before"),
    (from_ms_swift, {"rlhf_type": "ppo"}, "rlhf_type: expected one of"),
    (from_dpo_config, {"loss_type": "bco_pair"}, "without the shift"),
    (from_nemo_rl, {"preference_loss_weight": 2.0}, "multiply the learning rate"),
    (from_nemo_rl, {"preference_average_log_probs": True}, "per_token=True"),
    (from_axolotl, {"rl": "kto"}, "micro-batch at hand"),
    (from_axolotl, {"rl": "simpo"}, "simpo_gamma"),
    (from_axolotl, {"rl": "dpo", "rpo_alpha": 1.0}, "eta = rpo_alpha / beta"),
    (from_axolotl, {"rl": "dpo", "dpo_label_smoothing": 0.1}, "TRL ignores it"),
    (from_axolotl, {"rl": "dpo", "dpo_norm_loss": True}, "dpo_norm_loss"),
]


@pytest.mark.parametrize(("convert", "settings", "words"), REFUSED)
def test_what_is_not_exact_is_refused_and_says_what_differs(
    convert: Callable[..., Any], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        convert(**settings)
