"""SFT and Bradley-Terry against values derived by hand, and against the objective whose terms they are.

Summed log-probabilities are (-1, -3) over (2, 4) tokens. Rewards are (1, ln 3) and (1, 0): the differences
(0, ln 3) have the losses (ln 2, ln(4/3)), and the sums squared are (4, ln(3)^2).
"""

import math

import numpy as np
import pytest
import torch

from rpo.core.errors import InvalidArgument
from rpo.core.likelihoods import SFT, BradleyTerry
from rpo.core.objectives import RPO, preference_loss

LN2, LN3 = math.log(2.0), math.log(3.0)
LOGPS, LENGTHS = np.array([-1.0, -3.0]), np.array([2, 4])
CHOSEN, REJECTED = np.array([1.0, LN3]), np.array([1.0, 0.0])
WEIGHTS = np.array([0.25, 0.75])
MEAN = (LN2 + math.log(4.0 / 3.0)) / 2


@pytest.mark.parametrize(
    ("reduction", "plain", "weighted"),
    [
        ("sequence_sum", 2.0, 2.5),  # (1 + 3)/2; 1/4 + 9/4
        ("sequence_mean", 0.625, 0.6875),  # (1/2 + 3/4)/2; 1/8 + 9/16
        ("batch_token_mean", 4.0 / 6.0, 2.5 / 3.5),  # (1 + 3)/(2 + 4); (1/4 + 9/4)/(2/4 + 12/4)
    ],
)
def test_sft_is_the_hand_derived_value(reduction, plain, weighted) -> None:
    """NumPy and torch, the mean and weights (1/4, 3/4)."""
    sft = SFT(reduction=reduction)
    for kind in (np.asarray, torch.tensor):
        loss, terms = sft(kind(LOGPS), chosen_lengths=kind(LENGTHS))
        assert float(loss) == float(terms.sft) == pytest.approx(plain, rel=1e-14)
        assert float(terms.preference) == 0.0
        loss, _ = sft(kind(LOGPS), chosen_lengths=kind(LENGTHS), weights=kind(WEIGHTS))
        assert float(loss) == pytest.approx(weighted, rel=1e-14)


@pytest.mark.parametrize("reduction", ["sequence_sum", "sequence_mean", "batch_token_mean"])
def test_sft_is_the_sft_term_of_rpo(reduction) -> None:
    """Bit for bit, value and gradient, on random batches with weights."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(7))
    lengths = rng.integers(1, 9, size=7)
    logps = torch.tensor(-rng.gamma(3.0, 2.0, size=7), requires_grad=True)
    others = [torch.tensor(row) for row in -rng.gamma(3.0, 2.0, size=(3, 7))]
    ours, _ = SFT(reduction=reduction)(logps, chosen_lengths=lengths, weights=weights)
    objective = RPO(beta=0.5, eta=0.2, sft_reduction=reduction)
    theirs = objective(logps, *others, chosen_lengths=lengths, weights=weights)[1].sft
    assert ours.item() == theirs.item()
    assert torch.equal(*(torch.autograd.grad(value, logps)[0] for value in (ours, theirs)))


def test_bradley_terry_is_the_hand_derived_value() -> None:
    """The mean of (ln 2, ln(4/3)); weights (1/4, 3/4); centering by 0.1 adds 0.1 (4 + ln(3)^2) / 2."""
    for kind in (np.asarray, torch.tensor):
        loss, terms = BradleyTerry()(kind(CHOSEN), kind(REJECTED))
        assert float(loss) == float(terms.preference) == pytest.approx(MEAN, rel=1e-14)
        assert math.isnan(terms.sft)
        loss, _ = BradleyTerry()(kind(CHOSEN), kind(REJECTED), weights=kind(WEIGHTS))
        assert float(loss) == pytest.approx(LN2 / 4 + 3 * math.log(4 / 3) / 4, rel=1e-14)
        loss, _ = BradleyTerry(center_rewards_coefficient=0.1)(kind(CHOSEN), kind(REJECTED))
        assert float(loss) == pytest.approx(MEAN + 0.05 * (4 + LN3**2), rel=1e-14)


def test_bradley_terry_is_the_preference_term_with_rewards_for_beta_log_ratios() -> None:
    """DPO is a reward model in disguise: r = beta log(pi/pi_ref) has the same loss, to rounding."""
    rng = np.random.default_rng(1)
    chosen, rejected, anchors = rng.normal(size=5), rng.normal(size=5), np.zeros(5)
    dpo = RPO(beta=0.3, eta=0.1)(chosen, rejected, anchors, anchors)[1].preference
    assert BradleyTerry()(0.3 * chosen, 0.3 * rejected)[0] == pytest.approx(dpo, rel=1e-14)
    assert BradleyTerry()(chosen, rejected)[0] == preference_loss(chosen - rejected, 1.0).mean()


def test_only_differences_of_rewards_matter_unless_they_are_centered() -> None:
    """A constant added to every reward; centering is what sees it (control)."""
    for coefficient, moves in ((0.0, False), (0.1, True)):
        loss = BradleyTerry(center_rewards_coefficient=coefficient)
        change = loss(CHOSEN + 5, REJECTED + 5)[0] - loss(CHOSEN, REJECTED)[0]
        assert (abs(change) > 1e-3) == moves


def test_likelihood_is_maximal_at_the_empirical_log_odds() -> None:
    """One pair of arms, won 3 times of 4: the loss is least at r_w - r_l = ln 3, where the gradient is zero."""
    difference = torch.tensor(LN3, dtype=torch.float64, requires_grad=True)
    zeros, signs = torch.zeros(4, dtype=torch.float64), torch.tensor([1.0, 1.0, 1.0, -1.0])
    loss, _ = BradleyTerry()(signs * difference, zeros)
    (gradient,) = torch.autograd.grad(loss, difference)
    assert abs(gradient.item()) < 1e-15
    assert loss.item() == pytest.approx(LN2 * 2 - 0.75 * LN3, rel=1e-14)  # entropy of (3/4, 1/4)


def test_half_precision_is_promoted_and_float64_stays() -> None:
    for given, kept in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        logps = torch.tensor(LOGPS, dtype=given)
        assert SFT()(logps, chosen_lengths=LENGTHS)[0].dtype == kept
        assert BradleyTerry()(logps, logps)[0].dtype == kept


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: SFT(reduction="sum"), "reduction"),
        (lambda: SFT()(LOGPS), "chosen_lengths"),
        (lambda: SFT()(LOGPS, chosen_lengths=[2, 0]), "chosen_lengths"),
        (lambda: SFT()(LOGPS, chosen_lengths=[2, 3, 4]), "chosen_lengths"),
        (lambda: SFT()(LOGPS[:0], chosen_lengths=[]), "policy_chosen_logps"),
        (lambda: SFT(reduction="sequence_sum")(LOGPS, weights=[1.0, 1.0]), "weights"),
        (lambda: BradleyTerry(center_rewards_coefficient=-1.0), "center_rewards_coefficient"),
        (lambda: BradleyTerry()(CHOSEN[:, None], REJECTED), "policy_chosen_logps"),
        (lambda: BradleyTerry()(CHOSEN, REJECTED[:1]), "policy_rejected_logps"),
        (lambda: BradleyTerry()(CHOSEN, REJECTED, weights=[0.5]), "weights"),
    ],
)
def test_bad_input_is_named(call, name) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert caught.value.name == name


def test_records_hold_every_field() -> None:
    assert SFT().to_dict() == {"name": "SFT", "reduction": "batch_token_mean"}
    assert BradleyTerry().to_dict() == {"name": "BradleyTerry", "center_rewards_coefficient": 0.0}
