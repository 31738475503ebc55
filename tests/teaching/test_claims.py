"""Labellers, principles, demonstrations, filters and beams: the numbers of the figures, with controls."""

import numpy as np
import pytest

from rpo.teaching.lessons import beams, demonstrations, kept, labels


def test_what_people_get_follows_hindsight_and_what_labels_say_does_not() -> None:
    """300 instances at beta 1/4: utility -.79 +- .08 by foresight, 1.31 +- .06 by hindsight; labels gain 1.34 and 1.31.

    DPO on 100 drawn preferences an instance is within .15 of the exact policy.
    """
    frame = labels.hindsight([0.0, 0.5, 1.0], [1.0, 4.0])
    at = {(row.share, row.force): row for row in frame.itertuples()}
    assert at[0.0, 4.0].utility < at[0.0, 1.0].utility < -0.3 and at[1.0, 4.0].utility > at[1.0, 1.0].utility > 0.3
    assert at[0.0, 4.0].utility == pytest.approx(-0.785, abs=0.01)
    assert at[1.0, 4.0].utility == pytest.approx(1.310, abs=0.01)
    assert at[0.0, 4.0].label == pytest.approx(1.341, abs=0.01)
    assert at[0.0, 4.0].utility < at[0.5, 4.0].utility < at[1.0, 4.0].utility
    assert (frame["learnt"] - frame["utility"]).abs().max() < 0.15
    assert (frame["label"] > 0).all() and frame.loc[frame["share"] == 1.0, "label"].tolist() == pytest.approx(
        frame.loc[frame["share"] == 1.0, "utility"].tolist()
    )
    figure = labels.hindsight_figure(frame)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "foresight", "50 % hindsight", "hindsight", "DPO on drawn labels"
    ]  # fmt: skip


def test_simulated_hindsight_gains_less_the_noisier_it_is() -> None:
    """400 instances, noise .3, 1, 3, 10: 1.09, .88, .37 and .03, intervals +- .05 to .09; at 10 it is a coin."""
    frame = labels.noisy_hindsight([0.3, 1.0, 3.0, 10.0])
    assert frame["gain"].tolist() == pytest.approx([1.094, 0.877, 0.373, 0.026], abs=0.01)
    assert abs(frame["gain"].iloc[-1]) < frame["gain/half"].iloc[-1] and 0.4 < frame["made worse"].iloc[-1] < 0.6


def test_a_principle_cancels_what_the_judge_was_hacked_by_and_nothing_else() -> None:
    """300 instances: quality .74, 1.16, 1.28, .77 (+- .08) and length 1.17, .61, .01, -1.12 at weights 0, 1, 1.5, 3.

    At 1.5 length drops out of the sum, so that the policy is the one of quality alone. The control, a judge without the
    fault: every weight costs quality. Fitted principles show the same, less sharply: their errors add up.
    """
    frame = labels.principles([0.0, 1.0, 1.5, 3.0])
    assert frame["quality"].tolist() == pytest.approx([0.738, 1.159, 1.276, 0.765], abs=0.005)
    assert frame["length"].tolist() == pytest.approx([1.171, 0.611, 0.009, -1.122], abs=0.005)
    sound = labels.principles([0.0, 1.0, 1.5, 3.0], hacked=0.0)
    assert sound["quality"].iloc[0] == pytest.approx(frame["quality"].iloc[2], abs=1e-12)
    assert np.diff(sound["quality"]).max() < 0 and np.diff(sound["learnt/quality"]).max() < 0
    learnt = frame["learnt/quality"].tolist()
    assert learnt[1] > learnt[0] + 0.1 and learnt[3] < learnt[0]
    assert np.diff(frame["learnt/length"]).max() < 0


def test_demonstrations_pay_where_the_expert_is_good_and_comparisons_are_few() -> None:
    """100 instances, 1,000 demonstrations, 20 pairs: .022 held to the clone, .037 by pessimism, apart by .016 +- .005.

    A poor expert's clone costs .05 +- .03 there. With 500 pairs pessimism has caught up. Control: without
    demonstrations the experts do not differ, and the two uses by less than .03.
    """
    frame = demonstrations.regrets([0, 1000], [20, 500])
    at = {(row.expert, row.demonstrations, row.pairs): row for row in frame.itertuples(index=False)}
    half = frame.set_index(["expert", "demonstrations", "pairs"])["difference/half"]
    few, poor = at["good", 1000, 20], at["poor", 1000, 20]
    assert few.difference > half["good", 1000, 20] and few.held == pytest.approx(0.022, abs=0.002)
    assert few.held < few.clone + 0.001 and few.beta >= 0.4 > poor.beta
    assert poor.difference < -half["poor", 1000, 20]
    assert at["good", 1000, 500].difference < -half["good", 1000, 500]
    for pairs in (20, 500):
        assert at["good", 0, pairs]._replace(expert="poor") == at["poor", 0, pairs]
        assert abs(at["good", 0, pairs].difference) < 0.03
    named = [text.get_text().strip() for text in demonstrations.regrets_figure(frame).axes[0].texts[1::2]]
    assert named == ["", "held", "held", "pessimism"]


def test_wider_beams_lose_gold_only_where_the_reward_is_estimated() -> None:
    """200 trees, DPO on 600 preferences each, greedy to all 81: its implied reward leads from .86 to .75.

    Intervals +- .03. The controls: Q* - V* of the true reward gains, .961 to .989, and log pi, which holds the search
    to the reference, stays where it is.
    """
    frame = beams.found([1, 81]).set_index(["search", "width"])
    gold, half = frame["gold"], frame["gold/half"]
    assert gold["implied", 81] + half["implied", 81] < gold["implied", 1] - half["implied", 1]
    assert [gold["implied", 1], gold["implied", 81]] == pytest.approx([0.862, 0.751], abs=0.005)
    assert [gold["exact", 1], gold["exact", 81]] == pytest.approx([0.961, 0.989], abs=0.001)
    assert abs(gold["likelihood", 81] - gold["likelihood", 1]) < half["likelihood", 1]
    drawn = beams.found_figure(frame.reset_index())
    assert len(drawn.axes[0].get_legend().get_texts()) == len(beams.SEARCHES)


ORDER = ["best", "all", "best_random", "best_worst"]


@pytest.mark.parametrize(
    ("noise", "cosines"),
    [("even", [0.338, 0.458, 0.481, 0.583]), ("extremes unreliable", [0.393, 0.405, 0.435, 0.549])],
)
def test_at_equal_trained_responses_agreement_picks_the_filter(noise: str, cosines: list[float]) -> None:
    """Twenty responses, 400 seeds, intervals +- .02: best and worst teach most, .583 of the gold direction, all .458.

    The best alone teaches least. R^2 on what is kept has the same order, also where the noise is largest at the
    extremes. A random one beside the best gains .02; weights on all fifty responses in its place would reach .596.
    """
    frame = kept.steps(noise).set_index("filter")
    assert frame["R2"].sort_values().index.tolist() == ORDER == frame["cosine"].sort_values().index.tolist()
    assert frame.loc[ORDER, "cosine"].tolist() == pytest.approx(cosines, abs=0.001)
    assert frame["difference"]["best_worst"] > frame["difference/half"]["best_worst"]


def test_the_best_alone_learns_nothing_where_only_the_extremes_are_judged_well() -> None:
    """Cosine -.07 +- .02, and the least R^2, .06: kept responses are all good, and the noise decides among them."""
    frame = kept.steps("extremes reliable").set_index("filter")
    assert frame["R2"]["best"] < 0.1 < frame["R2"].drop("best").min()
    assert frame["cosine"]["best"] == pytest.approx(-0.065, abs=0.001)


@pytest.mark.parametrize("noise", kept.NOISES)
def test_at_equal_prompts_no_filter_gains(noise: str) -> None:
    """The control, ten prompts: all five responses of each teach more than any choice of them, whatever R^2 says."""
    frame = kept.steps(noise, trained=None).set_index("filter")
    assert (frame["difference"] < -frame["difference/half"]).drop("all").all()
    assert noise == "extremes reliable" or frame["R2"]["best_worst"] > frame["R2"]["all"]
