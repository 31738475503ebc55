"""Settings of other code bases: losses written out from each one's definition, and every refusal."""

from __future__ import annotations

import numpy as np
import pytest

from rpo.core.conversions import (
    Conversion,
    from_authors_averaged,
    from_official,
    from_trl,
    to_authors_averaged,
    to_official,
    to_trl,
    trl_batch_weight,
)
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO

EQUAL = np.full(6, 7)
VARIED = np.array([5, 40, 12, 400, 90, 7])
REDUCTIONS = ("sequence_sum", "sequence_mean", "batch_token_mean")


def batch(seed: int = 0, n: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
    return {name: -30.0 + 5.0 * rng.standard_normal(n) for name in names}


def dpo_loss(b: dict[str, np.ndarray], beta: float) -> float:
    """mean of -log sigmoid(beta (h_w - h_l)), by its definition."""
    chosen = b["policy_chosen_logps"] - b["reference_chosen_logps"]
    rejected = b["policy_rejected_logps"] - b["reference_rejected_logps"]
    return float(np.mean(np.log1p(np.exp(-beta * (chosen - rejected)))))


def official_loss(b, lengths, *, beta, eta):
    """DPO - beta eta S per pair."""
    return dpo_loss(b, beta) - beta * eta * float(np.mean(b["policy_chosen_logps"]))


def authors_averaged_loss(b, lengths, *, beta, nll_loss_coef):
    """DPO + c times the mean over pairs of -S / T."""
    return dpo_loss(b, beta) + nll_loss_coef * float(np.mean(-b["policy_chosen_logps"] / lengths))


def trl_loss(b, lengths, *, beta, loss_type, loss_weights):
    """Weighted sum of the sigmoid loss and the mean over all tokens of the batch."""
    values = {"sigmoid": dpo_loss(b, beta), "sft": float(-b["policy_chosen_logps"].sum() / lengths.sum())}
    return sum(weight * values[kind] for kind, weight in zip(loss_type, loss_weights, strict=True))


PEERS = {
    "official": (to_official, official_loss, "sequence_sum"),
    "authors_averaged": (to_authors_averaged, authors_averaged_loss, "sequence_mean"),
    "trl": (to_trl, trl_loss, "batch_token_mean"),
}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_exact_conversions_have_the_same_loss(peer, reduction):
    """Whatever is called exact must be: on random batches the peer's formula equals the objective to 1e-12.

    Equal lengths make every pair of reductions exact; the control, lengths that vary, must differ
    unless the reductions are the same.
    """
    convert, loss, native = PEERS[peer]
    objective = RPO(beta=0.1, eta=0.05, sft_reduction=reduction)
    conversion = convert(objective, chosen_lengths=EQUAL)
    assert conversion.exact
    assert conversion.note.startswith("Exact")
    for seed in range(5):
        ours, _ = objective(**batch(seed), chosen_lengths=EQUAL)
        assert loss(batch(seed), EQUAL, **conversion.settings) == pytest.approx(float(ours), rel=1e-12)
    varied, _ = objective(**batch(), chosen_lengths=VARIED)
    same = loss(batch(), VARIED, **conversion.settings) == pytest.approx(float(varied), rel=1e-6)
    assert same == (reduction == native)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_varied_lengths_are_refused_unless_approximate(peer, reduction):
    """Same reduction: exact whatever the lengths. Otherwise lengths are needed, and must be equal or approximate."""
    convert, _, native = PEERS[peer]
    objective = RPO(beta=0.1, eta=0.05, sft_reduction=reduction)
    if reduction == native:
        assert convert(objective).exact
        assert convert(objective, chosen_lengths=VARIED).settings == convert(objective).settings
        return
    with pytest.raises(
        InvalidArgument, match=f"chosen_lengths: expected token counts.*{reduction!r} becomes {native!r}"
    ):
        convert(objective)
    with pytest.raises(InvalidArgument, match=r"chosen_lengths: expected equal lengths.*from 5 to 400 \(mean 92.3"):
        convert(objective, chosen_lengths=VARIED)
    conversion = convert(objective, chosen_lengths=VARIED, approximate=True)
    assert not conversion.exact
    assert conversion.note.startswith("Approximate")


@pytest.mark.parametrize(
    ("source", "peer", "weight", "low", "high"),
    [
        ("sequence_sum", "trl", 0.005 * 40, "0.5", "2"),
        ("sequence_sum", "authors_averaged", 0.005 * 40, "0.5", "2"),
        ("sequence_mean", "official", 0.005 / 40, "0.5", "2"),
        ("batch_token_mean", "official", 0.005 / 40, "0.5", "2"),
        ("sequence_mean", "trl", 0.005, "0.5", "2"),
        ("batch_token_mean", "authors_averaged", 0.005, "0.5", "2"),
    ],
)
def test_the_mean_length_and_the_spread_are_stated(source, peer, weight, low, high):
    """Lengths 20, 20, 80, 40, 40 have mean 40: factors 20/40 = 0.5 and 80/40 = 2, the same when inverted.

    beta = 0.1, eta = 0.05: weight 0.005 on sums is 0.2 on means and the reverse; between means it stays.
    """
    convert, _, _ = PEERS[peer]
    lengths = [20, 20, 80, 40, 40]
    conversion = convert(RPO(beta=0.1, eta=0.05, sft_reduction=source), chosen_lengths=lengths, approximate=True)
    settings = conversion.settings
    if peer == "official":
        assert settings["eta"] * settings["beta"] == pytest.approx(weight)
    else:
        assert settings.get("nll_loss_coef", settings.get("loss_weights", [None])[-1]) == pytest.approx(weight)
    assert "from 20 to 80 tokens (mean 40)" in conversion.note
    assert f"between {low} and {high} times" in conversion.note


def test_the_direction_of_the_factor():
    """Lengths 10 and 30, mean 20. A sum given as a token mean: the short one gets 20/10 = 2, the long 20/30 = 0.667.

    The reverse, a mean given as a sum: 10/20 = 0.5 and 30/20 = 1.5.
    """
    forward = to_trl(RPO(beta=0.1, eta=0.05), chosen_lengths=[10, 30], approximate=True)
    assert "between 0.667 and 2 times" in forward.note
    mean = RPO(beta=0.1, eta=0.05, sft_reduction="sequence_mean")
    assert "between 0.5 and 1.5 times" in to_official(mean, chosen_lengths=[10, 30], approximate=True).note
    token = RPO(beta=0.1, eta=0.05, sft_reduction="batch_token_mean")
    note = to_authors_averaged(token, chosen_lengths=[10, 30], approximate=True).note
    assert "between 0.667 and 2 times" in note


@pytest.mark.parametrize("seed", range(5))
def test_trl_batch_weight_is_exact_on_its_batch(seed):
    """The weight eta beta sum(T) / B of a batch gives TRL the paper's loss on it; another batch's does not."""
    objective = RPO(beta=0.1, eta=0.05)
    lengths = np.random.default_rng(seed).integers(1, 400, size=6)
    weight = trl_batch_weight(objective, lengths)
    assert weight == pytest.approx(0.005 * lengths.sum() / 6, rel=1e-12)
    ours, _ = objective(**batch(seed))
    settings = {"beta": 0.1, "loss_type": ["sigmoid", "sft"]}
    assert trl_loss(batch(seed), lengths, **settings, loss_weights=[1.0, weight]) == pytest.approx(
        float(ours), rel=1e-12
    )
    other = trl_batch_weight(objective, 2 * lengths)
    assert trl_loss(batch(seed), lengths, **settings, loss_weights=[1.0, other]) != pytest.approx(float(ours), rel=1e-3)


def test_trl_batch_weight_of_the_other_reductions():
    """Token mean: eta beta, whatever the lengths. Sequence mean: eta beta for equal lengths, refused otherwise."""
    assert trl_batch_weight(RPO(beta=0.1, eta=0.05, sft_reduction="batch_token_mean"), VARIED) == pytest.approx(0.005)
    mean = RPO(beta=0.1, eta=0.05, sft_reduction="sequence_mean")
    assert trl_batch_weight(mean, EQUAL) == pytest.approx(0.005)
    with pytest.raises(InvalidArgument, match="chosen_lengths: expected equal lengths"):
        trl_batch_weight(mean, VARIED)


def test_trl_batch_weight_takes_torch():
    """Lengths 3 and 5: weight 0.005 * 8 / 2 = 0.02."""
    torch = pytest.importorskip("torch")
    assert trl_batch_weight(RPO(beta=0.1, eta=0.05), torch.tensor([3, 5])) == pytest.approx(0.02)


def test_from_each_peer():
    """official (0.01, 0.005): eta unchanged. Averaged (0.5, 0.2): eta = 0.4. TRL (0.01, [1, 0.005]): eta = 0.5."""
    assert from_official(0.01, 0.005) == RPO(beta=0.01, eta=0.005)
    assert from_authors_averaged(0.5, 0.2) == RPO(beta=0.5, eta=0.4, sft_reduction="sequence_mean")
    assert from_trl(0.01, [1.0, 0.005]) == RPO(beta=0.01, eta=0.5, sft_reduction="batch_token_mean")


def test_round_trips():
    """From a peer and back gives its own settings, to rounding: eta = w / beta and w = eta * beta."""
    assert to_official(from_official(0.01, 0.005)).settings == {"beta": 0.01, "eta": 0.005}
    back = to_authors_averaged(from_authors_averaged(0.3, 0.2)).settings
    assert back == {"beta": 0.3, "nll_loss_coef": pytest.approx(0.2, rel=1e-15)}
    back = to_trl(from_trl(0.3, [1.0, 0.7])).settings
    assert back == {
        "beta": 0.3,
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, pytest.approx(0.7, rel=1e-15)],
    }


def test_the_documented_trl_recipe_is_off_by_beta_times_length():
    """TRL's recipe for the paper, w = 0.005 with beta = 0.01, is the paper's eta = 0.005 only at 100 tokens.

    At 300 tokens eta * beta * T = 0.015: the recipe has a third of the force.
    """
    paper = from_official(0.01, 0.005)
    weights = [to_trl(paper, chosen_lengths=[t, t]).settings["loss_weights"][1] for t in (100, 300)]
    assert weights == pytest.approx([0.005, 0.015])


@pytest.mark.parametrize(
    "objective", [DPO(beta=0.2), RPO(beta=0.2, eta=0.0, sft_reduction="sequence_mean", base="reference")]
)
def test_without_sft_term_everything_is_exact(objective):
    """eta = 0: the weight is zero everywhere; neither lengths nor the base matter."""
    assert to_official(objective).settings == {"beta": 0.2, "eta": 0.0}
    assert to_authors_averaged(objective).settings == {"beta": 0.2, "nll_loss_coef": 0.0}
    assert to_trl(objective).settings["loss_weights"] == [1.0, 0.0]
    assert to_official(objective).exact
    assert trl_batch_weight(objective, VARIED) == 0.0


@pytest.mark.parametrize("convert", [to_official, to_authors_averaged, to_trl])
def test_other_bases_and_objects_are_refused(convert):
    with pytest.raises(InvalidArgument, match=r"objective\.base: expected 'chosen'.*got 'reference'"):
        convert(RPO(beta=0.1, eta=0.05, base="reference"), chosen_lengths=EQUAL)
    with pytest.raises(InvalidArgument, match="objective: expected an RPO or a DPO, .* got dict"):
        convert({"beta": 0.1, "eta": 0.05})


def test_an_eta_the_official_trainer_ignores_is_refused():
    """Below 1e-6 it trains DPO: 1e-6 itself and 0 pass, 9e-7 does not, in either direction."""
    assert from_official(0.1, 1e-6).eta == 1e-6
    assert from_official(0.1, 0.0).eta == 0.0
    with pytest.raises(InvalidArgument, match="eta: expected 0 or at least 1e-06, got 9e-07"):
        from_official(0.1, 9e-7)
    assert to_official(RPO(beta=0.1, eta=1e-6)).settings["eta"] == 1e-6
    with pytest.raises(InvalidArgument, match=r"objective\.eta: expected 0 or at least 1e-06"):
        to_official(RPO(beta=0.1, eta=9e-7))
    # a mean over 100 tokens with eta = 5e-5 is a sum with eta = 5e-7
    with pytest.raises(InvalidArgument, match=r"objective\.eta: expected 0 or at least 1e-06"):
        to_official(RPO(beta=0.1, eta=5e-5, sft_reduction="sequence_mean"), chosen_lengths=[100, 100])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_official(0.0, 0.005), "beta: expected a finite number > 0"),
        (lambda: from_official(0.1, -1.0), "eta: expected a finite number >= 0"),
        (lambda: from_authors_averaged(0.5, -0.2), "nll_loss_coef: expected a finite number >= 0"),
        (lambda: from_authors_averaged(0.0, 0.2), "beta: expected a finite number > 0"),
        (lambda: from_trl(0.1, [1.0]), "loss_weights: expected two weights"),
        (lambda: from_trl(0.1, None), "loss_weights: expected two weights"),  # type: ignore[arg-type]
        (lambda: from_trl(0.1, "12"), "loss_weights: expected two weights"),  # type: ignore[arg-type]
        (lambda: from_trl(0.1, [0.5, 0.005]), r"loss_weights\[0\]: expected 1.0.*got 0.5"),
        (lambda: from_trl(0.1, [1.0, -0.1]), r"loss_weights\[1\]: expected a finite number >= 0"),
        (lambda: trl_batch_weight(RPO(beta=0.1, eta=0.1), []), "chosen_lengths: expected at least one token count"),
        (lambda: trl_batch_weight(RPO(beta=0.1, eta=0.1), [3, 0]), "chosen_lengths: expected .*each > 0, got 0"),
        (lambda: trl_batch_weight(RPO(beta=0.1, eta=0.1), [[3]]), r"chosen_lengths: expected shape \(any\)"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()


def test_a_conversion_is_frozen():
    conversion = to_official(RPO(beta=0.1, eta=0.05))
    assert conversion == Conversion(
        settings={"beta": 0.1, "eta": 0.05}, exact=True, note="Exact: both reduce by sequence_sum."
    )
    with pytest.raises(AttributeError):
        conversion.exact = False  # type: ignore[misc]
