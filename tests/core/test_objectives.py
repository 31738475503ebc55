"""The objective against values derived by hand, other backends, and derivatives by differences.

The batch used throughout has two pairs with beta = 0.5. Its implicit rewards are h_w = (0.5, ln 3) and
h_l = (0.5, -ln 3), so the margins are (0, 2 ln 3), beta * margins = (0, ln 3) and the preference
losses are (ln 2, ln(1 + 1/3)) = (ln 2, ln(4/3)). The chosen log-probabilities are (-1, -3).
"""

import dataclasses
import math
from dataclasses import dataclass, fields

import cvxpy as cp
import numpy as np
import pytest
import torch

from rpo.core.errors import InvalidArgument
from rpo.core.fields import Fraction
from rpo.core.objectives import (
    DPO,
    FORMULA,
    RPO,
    check_objective,
    implicit_margins,
    preference_derivatives,
    preference_loss,
    require_objective,
)

LN2, LN3 = math.log(2.0), math.log(3.0)
PREFERENCE = (LN2, math.log(4.0 / 3.0))


def batch() -> list[np.ndarray]:
    chosen, rejected = np.array([-1.0, -3.0]), np.array([-2.0, -4.0])
    return [chosen, rejected, chosen - np.array([0.5, LN3]), rejected - np.array([0.5, -LN3])]


def random_batch(seed: int, n: int = 7) -> list[np.ndarray]:
    return list(-np.random.default_rng(seed).gamma(3.0, 2.0, size=(4, n)))


def test_margins_are_the_difference_of_log_ratios() -> None:
    """(-1 + 1.5) - (-2 + 2.5) = 0 and (ln 3) - (-ln 3) = 2 ln 3."""
    assert implicit_margins(*batch()) == pytest.approx([0.0, 2 * LN3], abs=1e-15)


def test_loss_is_the_hand_derived_value() -> None:
    """preference = (ln 2 + ln(4/3)) / 2, sft = (1 + 3) / 2 = 2, eta * beta = 0.2 * 0.5 = 0.1."""
    loss, terms = RPO(beta=0.5, eta=0.2)(*batch())
    assert terms.preference == pytest.approx(sum(PREFERENCE) / 2, rel=1e-14)
    assert terms.sft == pytest.approx(2.0, rel=1e-14)
    assert loss == pytest.approx(sum(PREFERENCE) / 2 + 0.1 * 2.0, rel=1e-14)


@pytest.mark.parametrize("kind", ["numpy", "float64", "float32"])
def test_arithmetic_is_that_of_the_formula_as_written_bit_for_bit(kind: str) -> None:
    """(pc - rc) - (pr - rr) first, times -beta, softplus, mean; eta*beta times the SFT term added last."""
    for seed in range(20):
        logps: list = random_batch(seed)
        if kind != "numpy":
            logps = [torch.tensor(v, dtype=getattr(torch, kind), requires_grad=True) for v in logps]
        margins = (logps[0] - logps[2]) - (logps[1] - logps[3])
        if kind == "numpy":
            z = -0.3 * margins
            preference = (np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))).mean()
        else:
            preference = torch.logaddexp(-0.3 * margins, margins.new_zeros(())).mean()
        by_hand = preference + 0.2 * 0.3 * (-logps[0]).mean()
        loss, _ = RPO(beta=0.3, eta=0.2)(*logps)
        assert loss == by_hand and DPO(beta=0.3)(*logps)[0] == preference
        if kind != "numpy":
            ours, theirs = (torch.autograd.grad(v, logps, retain_graph=True) for v in (loss, by_hand))
            assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


def test_weights_enter_both_terms() -> None:
    """Weights (1/4, 3/4): preference = ln2/4 + 3 ln(4/3)/4, sft = 1/4 + 9/4 = 2.5."""
    loss, terms = RPO(beta=0.5, eta=0.2)(*batch(), weights=np.array([0.25, 0.75]))
    assert terms.preference == pytest.approx(0.25 * PREFERENCE[0] + 0.75 * PREFERENCE[1], rel=1e-14)
    assert terms.sft == pytest.approx(2.5, rel=1e-14)
    assert loss == pytest.approx(terms.preference + 0.25, rel=1e-14)


def test_integer_weights_equal_repeated_pairs() -> None:
    """A pair of weight 3/4 counts as three copies beside one of weight 1/4, for every reduction."""
    lengths = np.array([2.0, 4.0])
    repeat = [0, 1, 1, 1]
    for reduction in ("sequence_sum", "sequence_mean", "batch_token_mean"):
        objective = RPO(beta=0.5, eta=0.2, sft_reduction=reduction)
        weighted, _ = objective(*batch(), chosen_lengths=lengths, weights=np.array([0.25, 0.75]))
        repeated, _ = objective(*(v[repeat] for v in batch()), chosen_lengths=lengths[repeat])
        assert weighted == pytest.approx(repeated, rel=1e-14)


@pytest.mark.parametrize(
    ("reduction", "plain", "weighted"),
    [
        ("sequence_sum", 2.0, 2.5),  # (1 + 3)/2; 1/4 + 9/4
        ("sequence_mean", 0.625, 0.6875),  # (1/2 + 3/4)/2; 1/8 + 9/16
        ("batch_token_mean", 4.0 / 6.0, 2.5 / 3.5),  # (1 + 3)/(2 + 4); (1/4 + 9/4)/(2/4 + 12/4)
    ],
)
def test_sft_reduction_is_the_hand_derived_value(reduction: str, plain: float, weighted: float) -> None:
    """Summed log-probabilities (-1, -3) over lengths (2, 4)."""
    objective = RPO(beta=0.5, eta=0.2, sft_reduction=reduction)
    for lengths in (np.array([2, 4]), torch.tensor([2, 4])):
        logps = batch() if isinstance(lengths, np.ndarray) else [torch.tensor(v) for v in batch()]
        weights = np.array([0.25, 0.75]) if isinstance(lengths, np.ndarray) else torch.tensor([0.25, 0.75]).double()
        assert float(objective(*logps, chosen_lengths=lengths)[1].sft) == pytest.approx(plain, rel=1e-12)
        got = objective(*logps, chosen_lengths=lengths, weights=weights)[1].sft
        assert float(got) == pytest.approx(weighted, rel=1e-12)


def test_only_the_batch_token_mean_depends_on_how_a_batch_is_split() -> None:
    """Mean over two halves: -1/2 and -3/4 give 0.625 for the token mean, against 4/6 for the whole."""
    lengths = np.array([2.0, 4.0])
    for reduction, moves in (("sequence_sum", False), ("sequence_mean", False), ("batch_token_mean", True)):
        objective = RPO(beta=0.5, eta=0.2, sft_reduction=reduction)
        whole, _ = objective(*batch(), chosen_lengths=lengths)
        halves = [objective(*(v[i : i + 1] for v in batch()), chosen_lengths=lengths[i : i + 1])[0] for i in (0, 1)]
        assert (abs(whole - sum(halves) / 2) > 1e-3) == moves


def test_base_logps_replace_the_chosen_ones() -> None:
    """base_logps (-5, -7): sft = 6; lengths of the base, not of the chosen, divide it."""
    base = np.array([-5.0, -7.0])
    assert RPO(beta=0.5, eta=0.2, base="custom")(*batch(), base_logps=base)[1].sft == pytest.approx(6.0)
    mean = RPO(beta=0.5, eta=0.2, base="custom", sft_reduction="sequence_mean")
    _, terms = mean(*batch(), base_logps=base, base_lengths=np.array([5, 2]), chosen_lengths=np.array([9, 9]))
    assert terms.sft == pytest.approx((1.0 + 3.5) / 2)


def test_base_weights_weigh_the_sft_term_alone() -> None:
    """terms: margins of weight (1/4, 3/4), base_logps (-2, -4, -8) of weight (1/2, 1/4, 1/4): sft = 4."""
    margins = np.array([0.0, 2 * LN3])
    loss, terms = RPO(beta=0.5, eta=0.2).terms(
        margins, np.array([-2.0, -4.0, -8.0]), np.array([0.25, 0.75]), np.array([0.5, 0.25, 0.25])
    )
    assert terms.sft == pytest.approx(4.0)
    assert terms.preference == pytest.approx(0.25 * PREFERENCE[0] + 0.75 * PREFERENCE[1])
    assert loss == pytest.approx(terms.preference + 0.4)


def test_rpo_at_eta_zero_is_dpo_and_otherwise_is_not() -> None:
    logps = random_batch(0)
    dpo, dpo_terms = DPO(beta=0.3)(*logps)
    zero, zero_terms = RPO(beta=0.3, eta=0.0)(*logps)
    assert zero == dpo and zero_terms == dpo_terms
    assert dpo == pytest.approx(np.mean(np.log1p(np.exp(-0.3 * implicit_margins(*logps)))), rel=1e-13)
    assert RPO(beta=0.3, eta=0.1)(*logps)[0] > dpo + 0.03 * 0.5
    assert DPO(beta=0.3).eta == 0.0 and DPO(beta=0.3).sft_weight == 0.0


def test_eta_zero_leaves_an_infinite_sft_term_out() -> None:
    """0 * inf would be NaN; with eta > 0 the loss is honestly infinite."""
    base = np.array([-np.inf, -1.0])
    loss, terms = RPO(beta=0.5, eta=0.0, base="custom")(*batch(), base_logps=base)
    assert loss == pytest.approx(sum(PREFERENCE) / 2) and terms.sft == np.inf
    assert RPO(beta=0.5, eta=0.1, base="custom")(*batch(), base_logps=base)[0] == np.inf


def test_sft_weight_is_eta_times_beta() -> None:
    assert RPO(beta=0.25, eta=0.5).sft_weight == 0.125


def test_numpy_torch_and_cvxpy_agree_on_the_terms() -> None:
    rng = np.random.default_rng(1)
    margins, base, weights = rng.normal(size=5) * 4, -rng.gamma(2.0, size=3), rng.dirichlet(np.ones(5))
    base_weights = rng.dirichlet(np.ones(3))
    for objective in (RPO(beta=0.7, eta=0.4), RPO(beta=0.7, eta=0.0), DPO(beta=0.7)):
        for w, bw in ((weights, base_weights), (None, base_weights), (None, None)):
            table, parts = objective.terms(margins, base, w, bw)
            tensors = [None if v is None else torch.tensor(v) for v in (margins, base, w, bw)]
            assert float(objective.terms(*tensors)[0]) == pytest.approx(float(table), rel=1e-14)
            m, b = cp.Variable(5), cp.Variable(3)
            m.value, b.value = margins, base
            program, program_parts = objective.terms(m, b, w, bw)
            assert float(program.value) == pytest.approx(float(table), rel=1e-12)
            assert float(program_parts.sft.value) == pytest.approx(float(parts.sft), rel=1e-12)


def test_terms_are_a_convex_program_when_base_logps_are_concave() -> None:
    """-log_sum_exp is concave, so the loss is convex; with the sign flipped cvxpy must refuse it."""
    r = cp.Variable(3)
    objective = RPO(beta=0.7, eta=0.4)
    concave = cp.hstack([r[0] - cp.log_sum_exp(r)])
    assert objective.terms(r[:2] - r[1:], concave)[0].is_convex()
    assert not objective.terms(r[:2] - r[1:], -concave)[0].is_dcp()


def test_autograd_agrees_with_finite_differences_and_with_preference_derivatives() -> None:
    """By the chain rule d loss / d chosen = slope/N - eta*beta/N, d loss / d rejected = -slope/N."""
    logps = random_batch(2)
    objective = RPO(beta=0.6, eta=0.3)
    tensors = [torch.tensor(v, requires_grad=True) for v in logps]
    loss, _ = objective(*tensors)
    loss.backward()
    n = logps[0].size
    slope, _ = preference_derivatives(implicit_margins(*logps), 0.6)
    expected = [slope / n - 0.18 / n, -slope / n, -slope / n, slope / n]
    for which, (tensor, by_hand) in enumerate(zip(tensors, expected, strict=True)):
        assert tensor.grad is not None
        assert tensor.grad.numpy() == pytest.approx(by_hand, rel=1e-12)
        differences = np.empty(n)
        for i in range(n):
            up, down = [v.copy() for v in logps], [v.copy() for v in logps]
            up[which][i] += 1e-5
            down[which][i] -= 1e-5
            differences[i] = (objective(*up)[0] - objective(*down)[0]) / 2e-5
        assert differences == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize("beta", [0.1, 0.6, 3.0])
def test_preference_derivatives_agree_with_finite_differences(beta: float) -> None:
    margins = np.linspace(-8.0, 8.0, 33) / beta
    step = 1e-4 / beta
    slope, curvature = preference_derivatives(margins, beta)
    up, middle, down = (preference_loss(margins + k * step, beta) for k in (1, 0, -1))
    assert slope == pytest.approx((up - down) / (2 * step), abs=beta * 1e-8)
    assert curvature == pytest.approx((up - 2 * middle + down) / step**2, abs=beta**2 * 1e-6)


def test_order_of_the_batch_does_not_matter_but_the_pairing_does() -> None:
    logps, order = random_batch(3), np.random.default_rng(3).permutation(7)
    objective = RPO(beta=0.6, eta=0.3)
    loss, _ = objective(*logps)
    assert objective(*(v[order] for v in logps))[0] == pytest.approx(loss, rel=1e-14)
    unpaired, _ = objective(logps[0], logps[1][order], *logps[2:])
    assert abs(unpaired - loss) > 1e-3


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_before_any_arithmetic(half: torch.dtype) -> None:
    """Reading half values as float32 first gives the same bits; arithmetic in half would not."""
    logps = [torch.tensor(v).to(half) for v in random_batch(4)]
    objective = RPO(beta=0.1, eta=0.005)
    loss, terms = objective(*logps)
    assert loss.dtype == torch.float32 and terms.sft.dtype == torch.float32
    assert float(loss) == float(objective(*(v.float() for v in logps))[0])
    in_half = objective.terms(implicit_margins(*logps), logps[0])[0]
    assert abs(float(in_half) - float(loss)) > 1e-5


def test_numpy_half_becomes_float32_and_float64_stays() -> None:
    half = [v.astype(np.float16) for v in batch()]
    assert RPO(beta=0.5, eta=0.2)(*half)[0].dtype == np.float32
    moved = [batch()[0] - 1e-12, *batch()[1:]]
    assert RPO(beta=0.5, eta=0.2)(*moved)[0] > RPO(beta=0.5, eta=0.2)(*batch())[0]
    tensors = [torch.tensor(v) for v in moved]
    assert RPO(beta=0.5, eta=0.2)(*tensors)[0].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_margins_neither_overflow_nor_lose_the_gradient(dtype: torch.dtype) -> None:
    """beta * margin = -1e4: loss 1e4 and slope -beta; at +1e4 loss 0 and slope 0."""
    margins = torch.tensor([-1e5, 1e5], dtype=dtype, requires_grad=True)
    loss = preference_loss(margins, 0.1)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([1e4, 0.0], rel=1e-6)
    assert margins.grad is not None and margins.grad.tolist() == pytest.approx([-0.1, 0.0])
    assert preference_loss(np.array([-1e5, 1e5]), 0.1) == pytest.approx([1e4, 0.0])


def test_moderate_margins_keep_their_tail() -> None:
    """softplus(-30) = log1p(exp(-30)), which log(1 + exp) would round to 0; softplus(21) = 21 + log1p(exp(-21)),
    which torch's own softplus, the identity above 20, would round to 21.
    """
    for value in (preference_loss(np.array([30.0]), 1.0), preference_loss(torch.tensor([30.0]).double(), 1.0)):
        assert float(value[0]) == pytest.approx(math.log1p(math.exp(-30.0)), rel=1e-12)
    for value in (preference_loss(np.array([-21.0]), 1.0), preference_loss(torch.tensor([-21.0]).double(), 1.0)):
        assert float(value[0]) - 21.0 == pytest.approx(math.log1p(math.exp(-21.0)), rel=1e-4)


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"beta": -0.1}, "beta"),
        ({"beta": 0.0}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"beta": math.inf}, "beta"),
        ({"beta": "0.1"}, "beta"),
        ({"beta": None}, "beta"),
        ({"beta": True}, "beta"),
        ({"eta": -1e-9}, "eta"),
        ({"eta": math.nan}, "eta"),
        ({"eta": "0.1"}, "eta"),
        ({"sft_reduction": "mean"}, "sft_reduction"),
        ({"sft_reduction": None}, "sft_reduction"),
        ({"base": "greedy"}, "base"),
    ],
)
def test_construction_refuses_a_bad_value_and_names_it(keywords: dict[str, object], name: str) -> None:
    arguments: dict = {"beta": 0.1, "eta": 0.1, **keywords}
    with pytest.raises(InvalidArgument, match=f"^{name}: expected") as caught:
        RPO(**arguments)
    assert caught.value.name == name
    if "eta" not in keywords and "sft_reduction" not in keywords:
        with pytest.raises(InvalidArgument, match=f"^{name}: expected"):
            DPO(**{"beta": 0.1, **keywords})


def test_refusing_negative_eta_says_what_it_would_mean() -> None:
    with pytest.raises(InvalidArgument, match="optimism"):
        RPO(beta=0.1, eta=-0.1)


CALLS = [
    ({"policy_chosen_logps": np.zeros((2, 1))}, {}, "policy_chosen_logps"),
    ({"policy_chosen_logps": np.zeros(0)}, {}, "policy_chosen_logps"),
    ({"policy_chosen_logps": np.float64(0.0)}, {}, "policy_chosen_logps"),
    ({"policy_rejected_logps": np.zeros(3)}, {}, "policy_rejected_logps"),
    ({"reference_chosen_logps": np.zeros(1)}, {}, "reference_chosen_logps"),
    ({"reference_rejected_logps": np.zeros((1, 2))}, {}, "reference_rejected_logps"),
    ({"weights": np.array([0.5, 0.4])}, {}, "weights"),
    ({"weights": np.array([1.5, -0.5])}, {}, "weights"),
    ({"weights": np.array([np.nan, 1.0])}, {}, "weights"),
    ({"weights": np.ones(1)}, {}, "weights"),
    ({"base_logps": np.zeros(3)}, {}, "base_logps"),
    ({}, {"base": "reference"}, "base_logps"),
    ({}, {"base": "responses"}, "base_logps"),
    ({}, {"sft_reduction": "sequence_mean"}, "chosen_lengths"),
    ({}, {"sft_reduction": "batch_token_mean"}, "chosen_lengths"),
    ({"base_logps": np.zeros(2)}, {"sft_reduction": "sequence_mean"}, "base_lengths"),
    ({"chosen_lengths": np.array([3, 0])}, {"sft_reduction": "sequence_mean"}, "chosen_lengths"),
    ({"chosen_lengths": np.array([3, np.nan])}, {"sft_reduction": "batch_token_mean"}, "chosen_lengths"),
    ({"chosen_lengths": np.array([3])}, {"sft_reduction": "batch_token_mean"}, "chosen_lengths"),
]


@pytest.mark.parametrize(
    "weights", [torch.tensor([True, False]), torch.tensor([1.0 + 1.0j, 0.0]), torch.eye(2)[0].to_sparse()]
)
def test_tensors_that_hold_no_real_numbers_are_refused(weights: torch.Tensor) -> None:
    with pytest.raises(InvalidArgument, match=r"^weights: expected a dense tensor of real numbers, got torch\."):
        DPO(beta=0.5)(*map(torch.tensor, batch()), weights=weights)


@pytest.mark.parametrize(("keywords", "fields", "name"), CALLS)
def test_call_refuses_a_bad_batch_and_names_the_argument(keywords: dict, fields: dict, name: str) -> None:
    names = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
    good = dict(zip(names, batch(), strict=True))
    objective = RPO(**{"beta": 0.5, "eta": 0.2, **fields})
    with pytest.raises(InvalidArgument, match=name):
        objective(**{**good, **keywords})


@pytest.mark.parametrize("keywords", [{"weights": [0.25, 0.75]}, {"chosen_lengths": [2, 4]}])
def test_lists_are_read_in_the_backend_of_the_logps(keywords: dict) -> None:
    """As log-probabilities are: lists beside NumPy, and lists or arrays beside torch."""
    reduction = "sequence_mean" if "chosen_lengths" in keywords else "sequence_sum"
    objective = RPO(beta=0.5, eta=0.2, sft_reduction=reduction)
    expected, _ = objective(*batch(), **{k: np.array(v) for k, v in keywords.items()})
    assert objective(*(v.tolist() for v in batch()), **keywords)[0] == pytest.approx(expected, rel=1e-14)
    tensors = [torch.tensor(v) for v in batch()]
    for given in (keywords, {k: np.array(v) for k, v in keywords.items()}):
        assert float(objective(*tensors, **given)[0]) == pytest.approx(expected, rel=1e-14)


def test_bad_base_lengths_are_named() -> None:
    objective = RPO(beta=0.5, eta=0.2, sft_reduction="sequence_mean")
    with pytest.raises(InvalidArgument, match=r"^base_lengths: expected lengths > 0"):
        objective(*batch(), base_logps=np.zeros(2), base_lengths=np.array([1, 0]))


def test_terms_refuse_a_missing_sft_term_unless_eta_is_zero() -> None:
    with pytest.raises(InvalidArgument, match=r"^base_logps"):
        RPO(beta=0.5, eta=0.2).terms(np.zeros(2))
    loss, terms = DPO(beta=0.5).terms(np.zeros(2))
    assert loss == pytest.approx(LN2) and math.isnan(terms.sft)


@pytest.mark.parametrize("objective", [RPO(beta=0.5, eta=0.2), DPO(beta=0.5)])
def test_objectives_are_frozen_and_the_only_ones(objective: RPO | DPO) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.beta = 1.0  # type: ignore[misc]
    assert check_objective(objective) is objective
    same = type("Same", (type(objective),), {})(**{f.name: getattr(objective, f.name) for f in fields(objective)})
    for other in (same, type(objective), object(), None, {"beta": 0.5}):
        with pytest.raises(InvalidArgument, match=r"^loss: expected an RPO or a DPO, .* Pass rpo.RPO"):
            check_objective(other, "loss")


def test_record_holds_every_field_and_the_class() -> None:
    assert RPO(beta=0.5, eta=0.2, base="reference").to_dict() == {
        "name": "RPO",
        "beta": 0.5,
        "eta": 0.2,
        "sft_reduction": "sequence_sum",
        "base": "reference",
    }
    assert DPO(beta=0.5).to_dict() == {"name": "DPO", "beta": 0.5, "base": "chosen"}


@pytest.mark.parametrize("name", FORMULA)
def test_a_subclass_cannot_override_the_formula_unseen(name: str) -> None:
    """Its `terms` would be ignored by the trainer, or its `__call__` by a solver: two losses under one name."""
    with pytest.raises(InvalidArgument, match=rf"^Mine: .* got its own {name}"):
        type("Mine", (RPO,), {name: lambda self, *_: 0.0})
    mixed_in = type("Mixed", (), {name: lambda self, *_: 0.0})
    with pytest.raises(InvalidArgument, match=rf"^Mine: .* got its own {name}"):
        type("Mine", (mixed_in, RPO), {})


@pytest.mark.parametrize("part", ["link", "shape", "anchor"])
def test_parts_of_another_kind_are_refused_by_name(part: str) -> None:
    mine = type("Mine", (RPO,), {part: property(lambda self: None)})
    with pytest.raises(InvalidArgument, match=rf"^objective.{part}: expected an? {part.title()}, got NoneType"):
        require_objective(mine(beta=1.0, eta=0.1))


def test_fields_are_held_to_their_annotations_in_own_classes_too() -> None:
    """Values are kept as the check returns them: an integer becomes a float; what is inherited is still checked."""

    @dataclass(frozen=True, kw_only=True)
    class Mine(RPO):
        share: Fraction = 0.5
        free: float = 1

    made = Mine(beta=1, eta=0, share=np.float64(0.25))
    assert [type(value) for value in (made.beta, made.eta, made.share, made.free)] == [float, float, float, int]
    for wrong in ({"beta": 0}, {"eta": -1}, {"share": 1}, {"base": "nobody"}, {"sft_reduction": "mean"}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            Mine(**{"beta": 1.0, "eta": 0.1} | wrong)
