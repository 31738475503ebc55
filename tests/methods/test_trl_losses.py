"""Every pair loss that TRL has and we have, through TRL's own functions: value and gradient in float64."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

import rpo
from rpo.core.columns import Columns
from rpo.core.divergences import Alpha, ForwardKL, JensenShannon
from rpo.core.links import LogRatio
from rpo.core.numerics import softplus
from rpo.core.objectives import Objective
from rpo.core.shapes import Hinge, Logistic, Pointwise, Shape, Square
from rpo.methods.conversions import LOSSES, from_cpo_config, from_dpo_config
from rpo.methods.divergence import FDPO

B, T, BETA = 16, 12, 0.1


@dataclass(frozen=True)
class Batch:
    """B pairs as TRL has them, chosen first: per-token log-probabilities (2B, T) and what is scored, (2B, T)."""

    logps: torch.Tensor
    reference: torch.Tensor
    mask: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        return self.mask.sum(1)


def batch(seed: int, dtype: torch.dtype, scale: float) -> Batch:
    """Draw responses of 2 to T tokens with log-probabilities uniform on [-scale, 0]."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, T + 1, (2 * B,), generator=draw)
    mask = (torch.arange(T) < lengths[:, None]).to(dtype)
    logps, reference = (-torch.rand(2 * B, T, generator=draw, dtype=dtype) * scale * mask for _ in range(2))
    return Batch(logps, reference, mask)


class Accelerator:
    """One process."""

    device = torch.device("cpu")

    def gather_for_metrics(self, value: Any) -> Any:
        return value

    gather = unwrap_model = gather_for_metrics


class Scored(torch.nn.Module):
    """A model that returns the log-probabilities it was given."""

    is_gradient_checkpointing = False

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, **_: Any) -> Any:
        return self.output


def collisions(given: Batch) -> torch.Tensor:
    """log sum_v p_v^2 of each token, (2B, T), as a distribution might have them."""
    return -0.3 - 0.5 * given.reference.abs() * given.mask


def dpo(loss_type: str | list[str], **options: Any) -> Callable[[torch.Tensor, Batch], torch.Tensor]:
    """Return `DPOTrainer._compute_loss` under a loss type, on a model that is only its log-probabilities."""
    types = loss_type if isinstance(loss_type, list) else [loss_type]
    chosen: dict[str, Any] = {
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "label_smoothing": 0.0,
        "loss_weights": [1.0] * len(types),
        "beta": BETA,
        "use_weighting": False,
    } | options

    def loss(logps: torch.Tensor, given: Batch) -> torch.Tensor:
        zeros = torch.zeros_like(given.logps)
        output = SimpleNamespace(
            log_probs=logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=collisions(given)
        )
        mask = torch.cat([torch.zeros(2 * B, 1), given.mask], 1)  # one token of prompt
        summed = given.reference.sum(1)
        trainer = SimpleNamespace(
            model=Scored(output).eval(),
            accelerator=Accelerator(),
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            loss_types=types,
            args=SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
            _metrics={"eval": collections.defaultdict(list)},
            _total_train_tokens=0,
            **chosen,
        )
        inputs = {
            "input_ids": torch.zeros(mask.shape, dtype=torch.long),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask.long(),
            "ref_chosen_logps": summed[:B],
            "ref_rejected_logps": summed[B:],
        }
        return DPOTrainer._compute_loss(trainer, trainer.model, inputs, False)

    return loss


def cpo(loss_type: str, *, nll: float = 0.0, per_token: bool = False, **options: Any) -> Callable[..., torch.Tensor]:
    """Return `CPOTrainer.cpo_loss`, plus `nll` times the chosen responses' token mean."""
    chosen: dict[str, Any] = {"alpha": 0.0, "beta": BETA, "simpo_gamma": 0.0, "label_smoothing": 0.0} | options

    def loss(logps: torch.Tensor, given: Batch) -> torch.Tensor:
        scored = logps.sum(1) / given.lengths if per_token else logps.sum(1)
        trainer = SimpleNamespace(loss_type=loss_type, accelerator=Accelerator(), **chosen)
        return CPOTrainer.cpo_loss(trainer, scored[:B], scored[B:])[0].mean() + nll * token_mean(logps, given)

    return loss


def kto(z0: float, **weights: float) -> Callable[[torch.Tensor, Batch], torch.Tensor]:
    """Return `KTOTrainer._compute_loss` on rows of which the first B are desirable, z0 given as one mismatched row."""

    def loss(logps: torch.Tensor, given: Batch) -> torch.Tensor:
        zeros = torch.zeros_like(given.logps)
        output = SimpleNamespace(log_probs=logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
        mask = torch.cat([torch.zeros(2 * B, 1), given.mask], 1)
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=False),
            accelerator=Accelerator(),
            aux_loss_enabled=False,
            precompute_ref_logps=True,
            calculate_KL=True,
            loss_type="kto",
            beta=BETA,
            _compute_kl_logps=lambda model, inputs: torch.tensor([z0], dtype=logps.dtype),
            _metrics={"eval": collections.defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
            **weights,
        )
        inputs = {
            "input_ids": torch.zeros(mask.shape, dtype=torch.long),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask.long(),
            "label": torch.arange(2 * B) < B,
            "ref_logps": given.reference.sum(1),
            "ref_KL_logps": torch.zeros(1, dtype=logps.dtype),
        }
        return KTOTrainer._compute_loss(trainer, lambda **_: output, inputs, False)

    return loss


def orpo(logps: torch.Tensor, given: Batch) -> torch.Tensor:
    means = logps.sum(1) / given.lengths
    odds = ORPOTrainer.odds_ratio_loss(SimpleNamespace(beta=0.1, accelerator=Accelerator()), means[:B], means[B:])[0]
    return token_mean(logps, given) - odds.mean()


def token_mean(logps: torch.Tensor, given: Batch) -> torch.Tensor:
    return -logps[:B].sum() / given.lengths[:B].sum()


@dataclass(frozen=True, kw_only=True)
class Composed(Objective):
    """Links and shapes that TRL combines by its options and no paper names."""

    by: LogRatio = field(default_factory=lambda: LogRatio(beta=BETA))
    of: Shape = field(default_factory=Logistic)

    @property
    def link(self) -> LogRatio:
        return self.by

    @property
    def shape(self) -> Shape:
        return self.of


JS = LogRatio(beta=BETA, divergence=JensenShannon())
NORMALISED = LogRatio(beta=BETA, per_token=True)
F32 = {"dtype": torch.float32, "value": 1e-6, "gradient": 1e-5}
# TRL keeps epsilon as a float32 tensor there.
ROUNDED = {"value": 1e-6, "gradient": 1e-6}
CASES: dict[str, tuple[Any, Objective, dict[str, Any]]] = {
    "sigmoid": (dpo("sigmoid"), rpo.DPO(beta=BETA), {}),
    "hinge": (dpo("hinge"), rpo.SLiC(beta=BETA), {}),
    "ipo": (dpo("ipo"), rpo.IPO(tau=BETA, per_token=True), {}),
    "exo_pair": (dpo("exo_pair", label_smoothing=1e-3), rpo.EXO(beta=BETA, epsilon=1e-3), ROUNDED),
    "nca_pair": (dpo("nca_pair"), rpo.NCA(beta=BETA), {}),
    "robust": (dpo("robust", label_smoothing=0.2), rpo.RobustDPO(beta=BETA, epsilon=0.2), {}),
    "bco_pair": (dpo("bco_pair"), Composed(of=Pointwise(lambda r: softplus(-r), softplus)), {}),
    "sppo_hard": (
        dpo("sppo_hard"),
        Composed(by=LogRatio(beta=1.0), of=Pointwise(lambda h: (h - 0.5 / BETA) ** 2, lambda h: (h + 0.5 / BETA) ** 2)),
        {},
    ),
    "apo_zero": (dpo("apo_zero"), rpo.APOZero(beta=BETA), {}),
    "use_weighting": (dpo("sigmoid", use_weighting=True), rpo.WPO(beta=BETA, capped=False), {}),
    "apo_down": (dpo("apo_down"), rpo.APODown(beta=BETA), {}),
    "discopop": (dpo("discopop"), rpo.DiscoPOP(beta=BETA, tau=0.05), {}),
    "sigmoid+sft": (
        dpo(["sigmoid", "sft"], loss_weights=[1.0, 0.03]),
        rpo.RPO(beta=BETA, eta=0.3, sft_reduction="batch_token_mean"),
        {},
    ),
    "sigmoid_norm": (dpo("sigmoid_norm"), Composed(by=NORMALISED), {}),
    "forward_kl": (
        dpo("sigmoid", f_divergence_type="forward_kl"),
        FDPO(beta=BETA, divergence=ForwardKL()),
        {"scale": 0.3},
    ),
    "js": (dpo("sigmoid", f_divergence_type="js_divergence"), FDPO(beta=BETA, divergence=JensenShannon()), {}),
    "js+hinge": (dpo("hinge", f_divergence_type="js_divergence"), Composed(by=JS, of=Hinge()), {}),
    "js+robust": (
        dpo("robust", f_divergence_type="js_divergence", label_smoothing=0.2),
        Composed(by=JS, of=Logistic(tilt=-0.2 / 0.6)),
        {},
    ),
    "alpha": (
        dpo("sigmoid", f_divergence_type="alpha_divergence"),
        FDPO(beta=BETA, divergence=Alpha(0.5)),
        F32 | {"scale": 0.3},
    ),
    "simpo": (cpo("simpo", beta=2.0, simpo_gamma=1.0, per_token=True), rpo.SimPO(beta=2.0, gamma=1.0), {}),
    "cpo": (cpo("sigmoid", nll=1.0), rpo.CPO(beta=BETA), {}),
    "cpo+smoothing": (
        cpo("sigmoid", label_smoothing=0.1),
        Composed(by=LogRatio(beta=BETA, reference=False), of=Logistic(tilt=0.1)),
        {},
    ),
    "cpo hinge": (cpo("hinge"), rpo.SLiC(beta=BETA, reference=False), {}),
    "cpo ipo": (cpo("ipo"), Composed(by=LogRatio(beta=1.0, reference=False), of=Square(target=0.5 / BETA)), {}),
    "alphapo": (
        cpo("simpo", beta=2.0, simpo_gamma=0.5, alpha=0.25, per_token=True),
        rpo.AlphaPO(beta=2.0, gamma=0.5, alpha=0.25),
        {},
    ),
    "orpo": (orpo, rpo.ORPO(weight=0.1), F32),
    "kto": (
        kto(0.7, desirable_weight=1.3, undesirable_weight=0.8),
        rpo.KTO(beta=BETA, desirable_weight=1.3, undesirable_weight=0.8),
        {"shift": 0.7},
    ),
    "bco": (lambda logps, given: dpo("bco_pair")(logps, given) / 2, rpo.BCO(beta=BETA), {"shift": 0.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_trls(name: str) -> None:
    """1e-12 and 1e-9 relative in float64, on five batches; looser where TRL itself computes in float32."""
    theirs, objective, how = CASES[name]
    for seed in range(5):
        given = batch(seed, how.get("dtype", torch.float64), how.get("scale", 1.0))
        mine, other = (given.logps.clone().requires_grad_() for _ in range(2))
        loss, reference = ours(objective, mine, given, shift=how.get("shift")), theirs(other, given)
        assert loss.item() == pytest.approx(reference.item(), rel=how.get("value", 1e-12))
        first, second = (torch.autograd.grad(v, x)[0] * given.mask for v, x in ((loss, mine), (reference, other)))
        assert float((first - second).norm() / second.norm()) < how.get("gradient", 1e-9)


# Of a case above, the settings of TRL that `rpo.methods.conversions` reads.
SETTINGS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    **{name: (from_dpo_config, {"loss_type": name}) for name in LOSSES if name not in ("robust", "exo_pair")},
    "robust": (from_dpo_config, {"loss_type": ["robust"], "label_smoothing": 0.2}),
    "exo_pair": (from_dpo_config, {"loss_type": "exo_pair", "label_smoothing": 1e-3}),
    "sigmoid+sft": (from_dpo_config, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.03]}),
    "forward_kl": (from_dpo_config, {"f_divergence_type": "forward_kl"}),
    "js": (from_dpo_config, {"f_divergence_type": "js_divergence"}),
    "alpha": (from_dpo_config, {"f_divergence_type": "alpha_divergence"}),
    "simpo": (from_cpo_config, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0}),
    "cpo": (from_cpo_config, {}),
    "cpo hinge": (from_cpo_config, {"loss_type": "hinge", "cpo_alpha": 0}),
    "alphapo": (from_cpo_config, {"loss_type": "alphapo", "beta": 2.0, "simpo_gamma": 0.5, "alpha": 0.25}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_trls_settings_are_the_objectives_that_its_own_functions_confirm(name: str) -> None:
    """The SFT term of the case "cpo hinge" has weight 0, so that its reduction does not matter."""
    convert, settings = SETTINGS[name]
    expected = CASES[name][1]
    if name == "cpo hinge":
        expected = replace(expected, sft_reduction="batch_token_mean")
    assert convert(**{"beta": BETA} | settings) == expected


def ours(objective: Objective, logps: torch.Tensor, given: Batch, **more: Any) -> torch.Tensor:
    policy, reference, lengths = logps.sum(1), given.reference.sum(1), given.lengths
    likeness = ((logps.detach() - collisions(given)) * given.mask).sum(1) / lengths
    return objective(
        policy[:B],
        policy[B:],
        reference[:B],
        reference[B:],
        chosen_lengths=lengths[:B],
        rejected_lengths=lengths[B:],
        chosen_likeness=likeness[:B],
        rejected_likeness=likeness[B:],
        **more,
    )[0]


@pytest.mark.parametrize("objective", [rpo.KTO(desirable_weight=1.3), rpo.BCO(), rpo.NCA(), rpo.APOZero()], ids=repr)
def test_a_pair_is_its_two_responses_with_labels(objective: Objective) -> None:
    """Of KTO and BCO a pair's loss is the mean over the two, as TRL has it; of the others it is their sum."""
    given = batch(3, torch.float64, 1.0)
    policy, reference = given.logps.sum(1), given.reference.sum(1)
    labels = (torch.arange(2 * B) < B).double()
    alone = objective.per_pair(Columns(logps=(policy,), reference=(reference,), labels=labels, shift=0.4))
    sides = ((policy[:B], policy[B:]), (reference[:B], reference[B:]))
    pairs = objective.per_pair(Columns(logps=sides[0], reference=sides[1], shift=0.4))
    share = 2.0 if "shift" in objective.needs else 1.0
    torch.testing.assert_close((alone[:B] + alone[B:]) / share, pairs, rtol=1e-14, atol=0.0)
    assert objective.takes_unpaired and not rpo.ASFT().takes_unpaired


def test_a_shift_moves_the_classifier_of_rewards_by_hand() -> None:
    """BCO: h = (2, -1), beta = 0.5, shift 0.6: (softplus(-0.5 * 1.4) + softplus(-0.5 * 1.6)) / 2."""
    one = torch.ones(1, dtype=torch.float64)
    loss, _ = rpo.BCO(beta=0.5)(2.0 * one, -one, 0.0 * one, 0.0 * one, shift=0.6)
    assert float(loss) == pytest.approx((math.log1p(math.exp(-0.7)) + math.log1p(math.exp(-0.8))) / 2, rel=1e-14)


def test_the_comparison_sees_a_beta_a_thousandth_off() -> None:
    """The control: a relative difference of 1e-3 in beta moves the loss by far more than the tolerance."""
    given = batch(0, torch.float64, 1.0)
    theirs = float(dpo("sigmoid")(given.logps, given))
    assert abs(float(ours(rpo.DPO(beta=BETA * 1.001), given.logps, given)) - theirs) > 1e-8


def test_trl_ignores_label_smoothing_under_sigmoid() -> None:
    """cDPO's oracle is therefore DPO on counts (1 - eps, eps), by hand: (1 - eps) softplus(-z) + eps softplus(z)."""
    given = batch(0, torch.float64, 1.0)
    assert dpo("sigmoid", label_smoothing=0.3)(given.logps, given) == dpo("sigmoid")(given.logps, given)
    policy, reference = given.logps.sum(1), given.reference.sum(1)
    loss, _ = rpo.ConservativeDPO(beta=BETA, epsilon=0.3)(policy[:B], policy[B:], reference[:B], reference[B:])
    won, _ = rpo.DPO(beta=BETA)(policy[:B], policy[B:], reference[:B], reference[B:])
    lost, _ = rpo.DPO(beta=BETA)(policy[B:], policy[:B], reference[B:], reference[:B])
    assert float(loss) == pytest.approx(float(0.7 * won + 0.3 * lost), rel=1e-12)


def test_length_takes_reward_off_the_longer_response() -> None:
    """R-DPO: h = 0, lengths 5 and 2, alpha = 0.1: softplus(-0.3); the reward per token taken off is 0.1."""
    none = torch.zeros(1, dtype=torch.float64)
    loss, _ = rpo.RDPO(alpha=0.1)(none, none, none, none, chosen_lengths=[5.0], rejected_lengths=[2.0])
    assert float(loss) == pytest.approx(math.log1p(math.exp(-0.3)), rel=1e-14)


def test_offset_of_scores_is_what_the_chosen_response_must_win_by() -> None:
    """h = 0, scores 3 and 1, alpha = 0.5: softplus(0.5 log 2); a difference of one asks for nothing, as DPO."""
    none = torch.zeros(2, dtype=torch.float64)
    scores = {"chosen_scores": [3.0, 5.0], "rejected_scores": [1.0, 4.0]}
    losses, _ = rpo.ODPO(alpha=0.5)(none, none, none, none, **scores)
    assert float(losses) == pytest.approx((math.log1p(math.sqrt(2.0)) + math.log(2.0)) / 2, rel=1e-14)
    given = batch(4, torch.float64, 1.0)
    shaped = ours(rpo.ODPO(alpha=0.0), given.logps, given)
    assert float(shaped) == float(ours(rpo.DPO(beta=0.1), given.logps, given))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_weight_of_the_reference_is_dpo_on_a_scaled_reference(gamma: float) -> None:
    given = batch(5, torch.float64, 1.0)
    scaled = Batch(given.logps, gamma * given.reference, given.mask)
    mine = ours(rpo.GammaDPO(beta=0.2, gamma=gamma), given.logps, given)
    assert float(mine) == pytest.approx(float(ours(rpo.DPO(beta=0.2), given.logps, scaled)), rel=1e-14)
    assert rpo.GammaDPO(gamma=gamma).needs == ({"reference"} if gamma else set())


def test_contrastive_preference_learning_is_dpo_without_a_reference_at_lambda_one() -> None:
    given = batch(1, torch.float64, 1.0)
    policy, flat = given.logps.sum(1), torch.zeros(B, dtype=torch.float64)
    cpl, _ = rpo.CPL(alpha=0.2, lam=1.0)(policy[:B], policy[B:])
    dpo_loss, _ = rpo.DPO(beta=0.2)(policy[:B], policy[B:], flat, flat)
    assert float(cpl) == pytest.approx(float(dpo_loss), rel=1e-14)
    weighed, _ = rpo.CPL(alpha=0.2, lam=0.5)(policy[:B], policy[B:])
    by_hand = torch.nn.functional.softplus(-0.2 * (policy[:B] - 0.5 * policy[B:])).mean()
    assert float(weighed) == pytest.approx(float(by_hand), rel=1e-12)


def test_asft_is_the_identity_its_authors_give() -> None:
    """-log p_w - lam log s(o_w) - lam log s(-o_l) = -(1 + lam) log p_w - lam log(1 - p_l), p the token mean."""
    given = batch(2, torch.float64, 1.0)
    means = given.logps.sum(1) / given.lengths
    summed, lengths = given.logps.sum(1), given.lengths
    loss, _ = rpo.ASFT(weight=0.7)(summed[:B], summed[B:], chosen_lengths=lengths[:B], rejected_lengths=lengths[B:])
    by_hand = (-1.7 * means[:B] - 0.7 * torch.log1p(-means[B:].exp())).mean()
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-12)
