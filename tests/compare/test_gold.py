"""The gold-reward laboratory against hand-made curves, independent solutions and the bound from total variation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from rpo.bandit import ContextualBandit, PreferenceCounts, Unconstrained, policy_outcome, solve
from rpo.bandit.baselines import BestOfN
from rpo.commands.enumerable import gold_command
from rpo.compare import total_variation
from rpo.compare.equivalence import connected_preferences
from rpo.compare.gold import GoldExperiment, draw_instance, gold_experiment
from rpo.compare.gold_evidence import ALL_DRAWS, BEST_OF_N, TRAINED, by_source, gaps, outcome_bounds, peak
from rpo.compare.gold_report import save_gold, verdict
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO

TINY: dict[str, Any] = {
    "prompts": 1, "vocab_size": 3, "length": 2, "num_preferences": 60, "betas": (4.0, 1.0, 0.5), "etas": (0.3,),
    "ns": (1, 2, 4, 16), "draws": 6, "trained_draws": 2, "kl_draws": 16, "kl_repetitions": 1,
    "seed": 5, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def result() -> GoldExperiment:
    return gold_experiment(**TINY, steps=140)


@pytest.fixture(scope="module")
def drawn() -> tuple[ContextualBandit, list[PreferenceCounts]]:
    """The same instance and data, drawn again from the seed."""
    instance, data, _ = np.random.default_rng(5).spawn(3)
    _, problem = draw_instance(
        prompts=1, vocab_size=3, length=2, skew=1.0, label_noise=0.3, reward_bound=4.0, rng=instance
    )
    return problem, [connected_preferences(problem, 60, label_smoothing=0.05, rng=rng)[0] for rng in data.spawn(6)]


# --- the tolerance -------------------------------------------------------------------------------


def three_arms(reward: Sequence[float] = (0.0, 1.0, 3.0)) -> ContextualBandit:
    return ContextualBandit(d0=np.ones(1), reference=np.full((1, 3), 1 / 3), reward=np.array([reward]))


def outcomes(policy: Any, problem: ContextualBandit, proxy: Any) -> dict[str, float]:
    worth = policy_outcome(np.asarray(policy), problem, problem.reference, np.asarray(proxy))
    return {name.split("/")[0 if name.startswith("kl") else 1]: value for name, value in worth.items()}


def test_the_tolerance_by_hand() -> None:
    """T = 1/4, rewards 0, 1, 3, proxy 0, 0, 2: gold 3/4, proxy 1/2, KL h(1/4) + log(2)/4 (uniform reference)."""
    found = outcome_bounds(np.array([0.25]), three_arms(), np.array([[0.0, 0.0, 2.0]]))
    entropy = 0.25 * np.log(4) + 0.75 * np.log(4 / 3)
    assert found == pytest.approx({"gold": 0.75, "proxy": 0.5, "kl": entropy + 0.25 * np.log(2)}, rel=1e-12)


def test_the_tolerance_is_reached_so_no_smaller_constant_would_do() -> None:
    """Mass moved from the worst arm to the best; a point mass against the uniform policy, where Fano is equality."""
    problem, proxy = three_arms(), np.array([[0.0, 1.0, 3.0]])
    first, second = np.array([[0.5, 0.3, 0.2]]), np.array([[0.1, 0.3, 0.6]])
    bound = outcome_bounds(total_variation(first, second), problem, proxy)
    apart = outcomes(second, problem, proxy)["gold"] - outcomes(first, problem, proxy)["gold"]
    assert apart == pytest.approx(bound["gold"], rel=1e-12)
    point = np.array([[0.0, 1.0, 0.0]])
    bound = outcome_bounds(total_variation(point, problem.reference), problem, proxy)
    assert outcomes(point, problem, proxy)["kl"] == pytest.approx(bound["kl"], rel=1e-12)
    assert bound["kl"] == pytest.approx(np.log(3), rel=1e-12)


def test_random_policies_never_differ_by_more_than_the_tolerance() -> None:
    rng = np.random.default_rng(0)
    closest = 0.0
    for _ in range(300):
        reference, first, second = (rng.dirichlet(np.full(4, 0.3), size=2) for _ in range(3))
        reference = (reference + 0.01) / 1.04
        problem = ContextualBandit(d0=np.array([0.3, 0.7]), reference=reference, reward=rng.uniform(0, 2, (2, 4)))
        proxy = rng.normal(size=(2, 4))
        bounds = outcome_bounds(total_variation(first, second), problem, proxy)
        one, other = outcomes(first, problem, proxy), outcomes(second, problem, proxy)
        for name, bound in bounds.items():
            assert abs(one[name] - other[name]) <= bound + 1e-12
            closest = max(closest, abs(one[name] - other[name]) / bound)
    assert closest > 0.75  # control: three quarters of the tolerance would have failed


# --- the data ------------------------------------------------------------------------------------


def test_smoothed_labels_by_hand_and_what_they_are_for() -> None:
    """Each preference counts 1 - s as drawn and s the other way round: N stays, every compared pair goes both ways."""
    problem = ContextualBandit(d0=np.ones(1), reference=np.full((1, 3), 1 / 3), reward=np.array([[0.0, 8.0, 16.0]]))
    plain = problem.sample_preferences(30, rng=np.random.default_rng(0)).wins()
    data, draws = connected_preferences(problem, 30, label_smoothing=0.1, rng=np.random.default_rng(0))
    assert draws == 1
    np.testing.assert_allclose(data.wins(), 0.9 * plain + 0.1 * plain.transpose(0, 2, 1), rtol=1e-12)
    assert data.n == pytest.approx(30)
    with pytest.raises(InvalidArgument, match="strongly connected"):  # control: nobody ever beats the best arm
        connected_preferences(problem, 30, rng=np.random.default_rng(0))
    with pytest.raises(InvalidArgument, match="label_smoothing: expected a share"):
        connected_preferences(problem, 30, label_smoothing=0.5, rng=0)


# --- the exact side ------------------------------------------------------------------------------


def rows(result: GoldExperiment, source: str, method: str) -> pandas.DataFrame:
    frame = result.frame
    return frame[(frame["source"] == source) & (frame["method"] == method)]


def test_the_exact_curves_are_those_of_solve_on_the_same_data(
    result: GoldExperiment, drawn: tuple[ContextualBandit, list[PreferenceCounts]]
) -> None:
    """One draw at a time, by both convex programs; the proxy is DPO's reward at another beta, shift and all."""
    problem, datasets = drawn
    assert problem.name == result.problem.name
    for seed in (0, 5):
        proxy = solve(problem, datasets[seed], DPO(beta=0.7), reward_class=Unconstrained()).reward
        for method, objective in (("DPO", DPO(beta=1.0)), ("RPO, eta = 0.3", RPO(beta=1.0, eta=0.3))):
            solution = solve(problem, datasets[seed], objective, reward_class=Unconstrained())
            expected = policy_outcome(solution.policy, problem, datasets[seed].response_frequencies("chosen"), proxy)
            found = rows(result, "theory", method)
            found = found[(found["seed"] == seed) & (found["beta"] == 1.0)].iloc[0]
            assert found["status"] == "certified"
            for name, value in expected.items():
                assert found[name] == pytest.approx(value, abs=1e-6), (seed, method, name)


def test_best_of_n_is_the_baselines(
    result: GoldExperiment, drawn: tuple[ContextualBandit, list[PreferenceCounts]]
) -> None:
    problem, datasets = drawn
    found = rows(result, "theory", BEST_OF_N)
    for n in (1, 4):
        policy = solve(problem, datasets[2], BestOfN(n, reward_class=Unconstrained())).policy
        row = found[(found["seed"] == 2) & (found["n"] == n)].iloc[0]
        assert row["reward/gold"] == pytest.approx(problem.expected_reward(policy), abs=1e-9)
    assert (found.loc[found["n"] == 1, "kl/reference"].abs() <= 1e-12).all()


# --- the transformers ----------------------------------------------------------------------------


def test_every_transformer_is_near_its_exact_policy_and_within_the_tolerance(result: GoldExperiment) -> None:
    """A control: the reference itself, untrained, is far outside the tolerance that the transformers keep to."""
    agreed = result.evidence["agreement"]
    assert list(agreed) == ["DPO", "RPO, eta = 0.3", BEST_OF_N]
    assert all(found["within"] for found in agreed.values())
    assert agreed["DPO"]["max_total_variation"] < 0.05 and agreed["RPO, eta = 0.3"]["max_total_variation"] < 0.005
    assert agreed["DPO"]["points"] == 2 * 3 and agreed[BEST_OF_N]["points"] == 2 * 4
    exact, trained = rows(result, "theory", "DPO"), rows(result, TRAINED, "DPO")
    merged = trained.merge(exact, on=["beta", "seed"], suffixes=("", "/exact"))
    apart = (merged["reward/gold"] - merged["reward/gold/exact"]).abs()
    np.testing.assert_allclose(apart, merged["difference/gold"].abs(), atol=1e-12)
    reference = rows(result, "theory", "reference").set_index("seed")["reward/gold"]
    untrained = (merged["seed"].map(reference) - merged["reward/gold/exact"]).abs()
    assert (untrained > 2 * merged["bound/gold"]).mean() > 0.5


def test_peaks_and_gaps_of_transformers_are_those_of_the_theory_within_the_tolerance(result: GoldExperiment) -> None:
    """A fall and a gap are differences of two golds, so they have twice the tolerance of one."""
    peaks, found, agreed = (result.evidence[name] for name in ("peaks", "gaps", "agreement"))
    for method, exact in peaks["theory"].items():
        near, bounds = peaks[TRAINED][method], agreed[method]
        assert near["at"] == exact["at"]
        assert abs(near["kl"] - exact["kl"]) <= bounds["max_bound/kl"]
        assert abs(near["fall"] - exact["fall"]) <= 2 * bounds["max_bound/gold"]
    assert peaks["theory"]["DPO"]["fall"] > 0 == peaks["theory"]["RPO, eta = 0.3"]["fall"]
    tolerance = agreed["DPO"]["max_bound/gold"] + agreed["RPO, eta = 0.3"]["max_bound/gold"]
    for exact, trained in zip(found["theory"], found[TRAINED], strict=True):
        assert abs(trained["gap"] - exact["gap"]) <= tolerance
    assert max(abs(entry["gap"]) for entry in found["theory"]) > tolerance  # there is a gap to agree on
    assert {entry["seeds"] for entry in peaks[ALL_DRAWS].values()} == {6}


# --- what follows from a frame -------------------------------------------------------------------


def by_hand() -> pandas.DataFrame:
    """Two seeds, three betas; DPO's mean gold over the reference's (1) is 0.2, 0.4, -0.1, RPO's 0.1, 0.3, 0.5."""
    gold = {"DPO": [(1.1, 1.3, 0.7), (1.3, 1.5, 1.1)], "RPO, eta = 1": [(1.0, 1.2, 1.4), (1.2, 1.4, 1.6)]}
    made = [
        {"source": "theory", "method": name, "beta": beta, "seed": seed, "kl/reference": kl, "reward/gold": value}
        for name, table in gold.items()
        for seed, values in enumerate(table)
        for beta, kl, value in zip((4.0, 2.0, 1.0), (0.1, 0.5, 2.0), values, strict=True)
    ]
    anchor = {"source": "theory", "method": "reference", "kl/reference": 0.0, "reward/gold": 1.0}
    return pandas.DataFrame([*made, {**anchor, "seed": 0}, {**anchor, "seed": 1}])


def test_peak_and_fall_by_hand() -> None:
    """DPO falls by 0.6 and 0.4 in its seeds, so in every resample; RPO's largest value is its last."""
    falling, rising = (peak(by_hand(), name, rng=0) for name in ("DPO", "RPO, eta = 1"))
    assert (falling["at"], falling["kl"], falling["seeds"]) == (2.0, 0.5, 2)
    assert falling["gold"] == pytest.approx(0.4) and falling["fall"] == pytest.approx(0.5)
    assert falling["fall_interval"] == pytest.approx([0.4, 0.6]) and falling["overoptimizes"]
    assert rising["at"] == 1.0 and rising["fall_interval"] == [0.0, 0.0] and not rising["overoptimizes"]


def test_gaps_by_hand() -> None:
    """RPO minus DPO: seeds -0.1, -0.1; -0.1, -0.1; 0.7, 0.5 with standard error 0.2 / sqrt(2) / sqrt(2) = 0.1."""
    found = gaps(by_hand())
    assert [entry["gap"] for entry in found] == pytest.approx([-0.1, -0.1, 0.6])
    assert [entry["standard_error"] for entry in found] == pytest.approx([0.0, 0.0, 0.1], abs=1e-12)


def test_theory_is_compared_on_the_draws_trained_on(result: GoldExperiment) -> None:
    sources = by_source(result.frame)
    assert {name: sorted(set(frame["seed"])) for name, frame in sources.items()} == {
        "theory": [0, 1],
        TRAINED: [0, 1],
        ALL_DRAWS: [0, 1, 2, 3, 4, 5],
    }


# --- output --------------------------------------------------------------------------------------


def test_the_folder_holds_page_record_figure_and_tables(result: GoldExperiment, tmp_path: Path) -> None:
    page = save_gold(result, tmp_path / "out", config="seed: 3\n").read_text()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("gold.html", "gold.json", "gold.png", "gold.csv", "outcomes.csv", "sampled_kl.csv", "config.yaml")
    }
    assert verdict(result).split(" (exact")[0] in page and "http:" not in page and "https:" not in page
    record = json.loads((tmp_path / "out" / "gold.json").read_text())
    assert record["config"]["label_smoothing"] == 0.05 and record["environment"]["commit"]
    assert record["evidence"]["agreement"]["DPO"]["within"] is True
    assert set(record["evidence"]["gao"]) == {"theory", TRAINED, ALL_DRAWS}
    assert len(pandas.read_csv(tmp_path / "out" / "outcomes.csv")) == len(result.frame)
    with pytest.raises(InvalidArgument, match="overwrite"):
        save_gold(result, tmp_path / "out")


def test_the_command_gives_the_rows_of_its_seed_again_and_refuses_before_any_work(
    result: GoldExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps, once by the command: theory is that of the fixture too, the barely trained transformers are not."""
    options = {key: value for key, value in TINY.items() if key != "progress"}
    gold_command(str(tmp_path / "out"), **options, steps=2, resolved="seed: 5\n")
    assert "95 % interval of the sampled KL" in capsys.readouterr().out
    assert (tmp_path / "out" / "config.yaml").read_text() == "seed: 5\n"
    again = gold_experiment(**TINY, steps=2)
    saved = pandas.read_csv(tmp_path / "out" / "outcomes.csv")
    pandas.testing.assert_frame_equal(saved, again.frame, rtol=1e-12)
    columns = ["kl/reference", "reward/gold", "reward/proxy"]
    for source, same in (("theory", True), (TRAINED, False)):
        few, more = (by_source(found)[source][columns].to_numpy() for found in (saved, result.frame))
        assert np.allclose(few, more, rtol=0, atol=1e-7) is same
    with pytest.raises(InvalidArgument, match="overwrite"):
        gold_command(str(tmp_path / "out"), **options, steps=10**9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": (1.0, 2.0, 4.0)}, "betas: expected three or more, falling"),
        ({"betas": (1.0, 0.5)}, "betas: expected three or more"),
        ({"etas": (0.3, 0.3)}, "etas: expected one or more, all different"),
        ({"ns": (1, 2, 4)}, "ns: expected three or more above 1"),
        ({"etas": (0.0,)}, "etas: expected a finite number > 0"),
        ({"trained_draws": 7}, r"trained_draws: expected an integer in \[2, 6\]"),
        ({"skew": -1.0}, "skew"),
        ({"label_noise": 0.7}, "label_noise"),
    ],
)
def test_mistakes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        gold_experiment(**{**TINY, **change}, steps=2)


# --- all of it -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_default_instance_shows_dpo_overoptimising_and_rpo_not_in_theory_and_in_transformers() -> None:
    result = gold_experiment(progress=False)
    peaks = result.evidence["peaks"]
    for source in peaks:
        assert peaks[source]["DPO"]["fall"] > 0.05
        assert peaks[source]["RPO, eta = 0.1"]["fall"] == 0.0
    assert peaks[ALL_DRAWS]["DPO"]["overoptimizes"]
    assert all(found["within"] for found in result.evidence["agreement"].values())
