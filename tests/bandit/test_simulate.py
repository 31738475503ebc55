"""`simulate`: closed forms, seeds, failures as rows, and tables that do not depend on how they were computed."""

import contextlib
import functools
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas
import pytest
import scipy
from scipy.special import expit

import rpo
from rpo.bandit import (
    Baseline,
    Box,
    ContextualBandit,
    LinearBall,
    PolicyResult,
    PreferenceCounts,
    Unconstrained,
    fit,
    instances,
    solve,
)
from rpo.bandit.baselines.plain import BestOfN, Greedy, ReferencePolicy
from rpo.bandit.simulation.cell import Cell
from rpo.bandit.simulation.code import code_digest
from rpo.bandit.simulation.engine import FailedRows, make_plan, simulate
from rpo.bandit.simulation.grid import canonical, source
from rpo.bandit.simulation.methods import Maximin, from_dict, is_solvable
from rpo.bandit.simulation.store import CorruptShard, GridMismatch, GridStore, MixedCode
from rpo.core import divergences
from rpo.core.errors import InvalidArgument, MissingDependency, OutputError, RPOError
from rpo.core.objectives import DPO, RPO
from rpo.methods.registry import ABSENT, METHODS

ROOT = Path(__file__).parents[2]
GRID = {"n": [30, 100], "beta": [0.1], "eta": [0.1, 0.3], "skew": [0.5, 1.0]}
SMALL = {"n": [20], "beta": [0.5], "eta": [0.1], "arms": [3]}


def two_arms(*, lead: float, bound: float = 2.0) -> ContextualBandit:
    """One prompt, r* = (lead, 0), uniform reference."""
    return ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward=[[lead, 0.0]], reward_bound=bound)


def own_skew(*, arms: int, rng: Any) -> ContextualBandit:
    """The package's instance as a function of one's own."""
    return instances.coverage_skew(arms=arms, rng=rng)


def broken_at_odd_draws(*, rng: Any) -> ContextualBandit:
    """Raise for about half of the draws, the first one not among them."""
    broken_at_odd_draws.calls += 1  # type: ignore[attr-defined]
    if broken_at_odd_draws.calls % 2 == 0:  # type: ignore[attr-defined]
        raise ZeroDivisionError("no such world")
    return two_arms(lead=1.0)


broken_at_odd_draws.calls = 0  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False, kw_only=True)
class Coin(Baseline):
    """A random policy, by turns certified and not; `what` makes it misbehave."""

    what: str = "fine"

    @property
    def label(self) -> str:
        return "coin"

    def solve(self, problem: Any, data: Any, *, rng: Any = None) -> PolicyResult:
        if self.what == "raises":
            raise FloatingPointError("lost")
        if self.what == "exits":
            sys.exit("lost")
        policy = np.full((1, 2), 0.5) if self.what != "not a policy" else np.full((1, 2), np.nan)
        if self.what == "random":
            first = rng.uniform()
            policy = np.array([[first, 1.0 - first]])
        status = "inaccurate" if self.what == "inaccurate" else "exact"
        return PolicyResult(policy=policy, label="coin", status=status, message="by hand", evidence={"gap": 0.25})


def same(a: pandas.DataFrame, b: pandas.DataFrame) -> None:
    pandas.testing.assert_frame_equal(a, b, check_exact=True)


@pytest.fixture
def solved_chunks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows by one whenever a chunk is computed in this process."""
    seen: list[Any] = []
    original = Cell.rows

    def rows(self: Cell, *arguments: Any) -> Any:
        seen.append((self.n, self.seeds))
        return original(self, *arguments)

    monkeypatch.setattr(Cell, "rows", rows)
    return seen


def test_one_comparison_of_two_arms_has_the_gap_worked_out_by_hand() -> None:
    """One pair in Box(R): softplus(-z) falls in z, so z = R for the winner and pi(winner) = sigma(R / beta).

    r* = (1, 0), R = 2, beta = 1: the gap is sigma(-2) when the better arm won, with probability
    sigma(1) = 0.731, else sigma(2); KL(pi || 1/2) = ln 2 - H(sigma(2)) either way. The proxy is
    +-2 E_{pi - base}: r_MLE is 2 for the winner, base is the winner, so 2 (sigma(2) - 1). RPO's
    penalty pulls the same way. Over 400 seeds the fraction of wins has standard error 0.022.
    """
    frame = simulate(two_arms, {"d": DPO(beta=1.0), "r": RPO(beta=1.0, eta=0.5)}, {"n": [1], "lead": [1.0]}, 400, rng=3)
    low, high = expit(-2.0), expit(2.0)
    for _, rows in frame.groupby("method"):
        won = np.isclose(rows["gap"], low, atol=1e-7)
        assert np.allclose(rows["gap"][~won], high, atol=1e-7)
        assert abs(won.mean() - expit(1.0)) < 4 * 0.0222
        assert np.allclose(rows["reward/gold"], 1.0 - rows["gap"])
        assert np.allclose(rows["reward/proxy"], 2.0 * (high - 1.0), atol=1e-6)
        assert np.allclose(rows["kl/reference"], np.log(2) + high * np.log(high) + low * np.log(low), atol=1e-7)
        assert (rows["status"] == "certified").all() and (rows["message"] == "").all()
        assert (rows["relative_gap"] <= 1e-7).all()
    assert frame["tv_bound"][frame["method"] == "r"].max() <= 1e-3
    assert set(frame["reward_class"]) == {"Box(bound=2)"}
    assert sorted(set(frame["objective/eta"])) == [0.0, 0.5]


@pytest.mark.parametrize("own", [False, True])
def test_rows_are_what_solve_gives_on_draws_made_by_the_documented_recipe(own: bool) -> None:
    """Streams written out again with hashlib, the problem solved one by one by the other solver.

    The package's instance is drawn in blocks of 100: here seed 105, the sixth of the second block, by NumPy alone.
    One's own function gets the generator of its seed.
    """
    name = f"{own_skew.__module__}.own_skew" if own else "rpo.bandit.instances.coverage_skew"

    def stream(kind: int, content: dict[str, Any], number: int) -> Any:
        state = hashlib.sha256()
        for part in (name, content):
            state.update(json.dumps(part, sort_keys=True, separators=(",", ":")).encode() + b"\0")
        return np.random.default_rng(np.random.SeedSequence([7, kind, int(state.hexdigest()[:32], 16), number]))

    grid = {"n": [50], "beta": [0.2], "eta": [0.1], "arms": [4]}
    frame = simulate(own_skew if own else "coverage_skew", RPO, grid, [2, 105], rng=7)
    for row in frame.to_dict("records"):
        number = row["seed"] if own else row["seed"] // 100
        rng = stream(0 if own else 3, {"arms": 4}, number)
        of_data = stream(1 if own else 4, {"arms": 4, "n": 50}, number)
        if own:
            problem = own_skew(arms=4, rng=rng)
            data = problem.sample_preferences(50, rng=of_data)
        else:
            reward = rng.uniform(0.0, 3.0, size=(100, 4))
            logits = rng.normal(size=(100, 4)) + 0.5 * reward
            behavior = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            i, j = np.triu_indices(4, k=1)
            mass = behavior[:, i] * behavior[:, j]
            drawn = of_data.multinomial(50, mass / mass.sum(axis=1, keepdims=True))
            won = of_data.binomial(drawn, expit(reward[:, i] - reward[:, j]))
            here, wins = row["seed"] % 100, np.zeros((1, 4, 4))
            wins[0, i, j], wins[0, j, i] = won[here], (drawn - won)[here]
            problem = ContextualBandit(
                d0=[1.0], reference=np.full((1, 4), 0.25), reward=reward[[here]], reward_bound=3.0
            )
            data = PreferenceCounts.from_wins(wins)
        answer = solve(problem, data, RPO(beta=0.2, eta=0.1), method="newton")
        worth = float((answer.policy * problem.reward).sum())
        assert row["gap"] == pytest.approx(float(problem.reward.max()) - worth, abs=1e-6)
        assert row["kl/reference"] == pytest.approx(float((answer.policy * np.log(4 * answer.policy)).sum()), abs=1e-6)
        mle = solve(problem, data, DPO(beta=0.2), method="newton").reward
        assert row["reward/proxy"] == pytest.approx(float(((answer.policy - answer.saddle.base) * mle).sum()), abs=1e-4)


def test_overoptimisation_and_its_cure_have_the_shape_of_the_theory() -> None:
    """theory.md section 3, fact 5, its direction: paired over 150 seeds, differences beyond 3 standard errors.

    Few data: some pessimism beats none and too much; at eta = 0 the proxy promises far more than there is.
    More data: less pessimism is best.
    """
    grid = {"n": [30, 300], "beta": [0.05], "eta": [0.03, 0.1, 1.0], "reward_bound": [3.0]}
    frame = simulate("coverage_skew", {"RPO": RPO, "DPO": DPO}, grid, 150, rng=0)
    gap = frame.pivot_table(index="seed", columns=["n", "method", "eta"], values="gap")

    def smaller(a: Any, b: Any) -> bool:
        difference = gap[b] - gap[a]
        return bool(difference.mean() > 3 * difference.sem())

    assert smaller((30, "RPO", 0.1), (30, "DPO", 0.1))
    assert smaller((30, "RPO", 0.1), (30, "RPO", 1.0))
    assert smaller((300, "RPO", 0.03), (300, "RPO", 0.1))
    assert not smaller((300, "RPO", 1.0), (300, "DPO", 1.0))  # control: too much does not help
    dpo = frame[(frame["method"] == "DPO") & (frame["n"] == 30) & (frame["eta"] == 0.1)]
    greedy = dpo["reward/gold"] + dpo["gap"]
    assert dpo["reward/proxy"].mean() > 0.7
    assert (greedy - dpo["reward/gold"]).mean() > 0.4


def test_rows_columns_and_order() -> None:
    frame = simulate("coverage_skew", [RPO, DPO], GRID, [4, 1], rng=0)
    assert len(frame) == 2 * 1 * 2 * 2 * 2 * 2
    assert list(frame.columns[:6]) == ["skew", "n", "beta", "eta", "seed", "method"]
    keys = list(frame.columns[:6])
    same(frame, frame.sort_values(keys, ignore_index=True))
    assert not frame.duplicated(keys).any()
    assert (frame["objective/beta"] == 0.1).all()
    rpo = frame[frame["method"] == "RPO"]
    assert (rpo["objective/eta"] == rpo["eta"]).all()
    dpo = frame[frame["method"] == "DPO"].groupby(["skew", "n", "seed"])["gap"]
    assert (dpo.nunique() == 1).all()  # one DPO, repeated at every eta


def test_every_certified_method_enters_beside_rpo() -> None:
    """FRPO at the KL is RPO's row, ChiPO's that of the plug-in baseline, whose box decides. A kink is solved alone."""
    js = divergences.JensenShannon()
    methods = {
        "RPO": RPO(beta=0.1, eta=0.05),
        "FRPO": rpo.FRPO(beta=0.1, eta=0.05),
        "JS": rpo.FRPO(beta=0.1, eta=0.05, divergence=js),
        "IPO": functools.partial(rpo.IPO, tau=0.5),
        "SimPO": rpo.SimPO(beta=1.0),
        "ChiPO": rpo.ChiPO(beta=0.1),
        "plug-in": rpo.bandit.baselines.ChiSquaredPO(beta=0.1),
    }
    frame = simulate("coverage_skew", methods, {"n": [300], "arms": [4]}, 3, rng=0, proxy=True)
    assert (frame["status"] == "certified").all()
    of = {name: rows.reset_index(drop=True) for name, rows in frame.groupby("method")}
    for column in ("gap", "reward/gold", "reward/proxy", "duality_gap"):
        assert (of["FRPO"][column] == of["RPO"][column]).all()
    assert of["ChiPO"]["gap"].to_numpy() == pytest.approx(of["plug-in"]["gap"].to_numpy(), abs=1e-6)
    assert np.abs(of["JS"]["gap"] - of["RPO"]["gap"]).max() > 1e-2
    assert list(of["IPO"]["objective/base"]) == ["chosen"] * 3
    kinked = simulate("coverage_skew", [rpo.SLiC(beta=1.0)], {"n": [300], "arms": [4]}, 3, rng=0)
    assert (kinked["status"] == "certified").all()


def test_order_of_the_grid_and_of_the_seeds_does_not_matter_and_the_root_does() -> None:
    frame = simulate("coverage_skew", {"b": RPO, "a": DPO}, GRID, [0, 1, 2], rng=0)
    turned = {key: list(reversed(GRID[key])) for key in reversed(GRID)}
    same(frame, simulate("coverage_skew", {"a": DPO, "b": RPO}, turned, [2, 0, 1], rng=0))
    other = simulate("coverage_skew", {"b": RPO, "a": DPO}, GRID, [0, 1, 2], rng=1)
    assert (other["gap"] != frame["gap"]).all()
    seeded = simulate("coverage_skew", {"b": RPO, "a": DPO}, GRID, [0, 1, 2], rng=np.random.default_rng(5))
    again = simulate("coverage_skew", {"b": RPO, "a": DPO}, GRID, [0, 1, 2], rng=np.random.default_rng(5))
    same(seeded, again)


def test_a_cell_is_the_same_in_any_grid_and_its_methods_share_the_draws() -> None:
    whole = simulate("coverage_skew", {"one": RPO, "two": RPO, "dpo": DPO}, GRID, 4, rng=0)
    part = simulate(
        "coverage_skew", {"one": RPO}, {"n": [100], "beta": [0.1], "eta": [0.3], "skew": [1.0]}, [1, 3], rng=0
    )
    wanted = whole.query("n == 100 and eta == 0.3 and skew == 1.0 and seed in (1, 3) and method == 'one'")
    for column in ("gap", "reward/proxy", "kl/reference"):
        assert np.allclose(part[column], wanted[column], atol=1e-9, rtol=0)
    one, two = (whole[whole["method"] == name]["gap"].to_numpy() for name in ("one", "two"))
    assert (one == two).all()
    # the same problems at every n: gold + gap is the best arm's reward
    best = (whole["reward/gold"] + whole["gap"]).groupby([whole["skew"], whole["seed"]]).nunique()
    assert (
        np.round(whole["reward/gold"] + whole["gap"], 9).groupby([whole["skew"], whole["seed"]]).nunique() == 1
    ).all()
    assert len(best) == 8 and whole["gap"].nunique() > 8


def test_flipped_labels_are_an_axis_of_every_instance_and_leave_the_problem() -> None:
    """At rate 1/2 labels say nothing: with 4,000 pairs DPO (box) does no better than chance, 2 sigma(0) = 1/2."""
    grid = {"n": [4000], "beta": [1.0], "label_noise": [0.0, 0.5], "lead": [2.0]}
    frame = simulate(two_arms, [DPO], grid, 30, rng=0)
    clean, noisy = (frame[frame["label_noise"] == rate]["gap"] for rate in (0.0, 0.5))
    assert clean.mean() == pytest.approx(2.0 * expit(-2.0), abs=0.03)
    assert noisy.mean() == pytest.approx(1.0, abs=0.03)
    frame = simulate("coverage_skew", DPO(beta=1.0), {"n": [50], "label_noise": [0.0, 0.25]}, 4, rng=0)
    best = (frame["reward/gold"] + frame["gap"]).round(9).groupby(frame["seed"])
    assert (best.nunique() == 1).all() and (frame.groupby("seed")["gap"].nunique() == 2).all()


def test_reward_classes_custom_bases_population_weights_and_instances_that_take_n() -> None:
    def base(problem: ContextualBandit) -> Any:
        return instances.zhu_base()

    methods = {
        "ball": Maximin(RPO(beta=0.1, eta=0.1), "ball", 2.0),
        "based": Maximin(RPO(beta=0.1, eta=0.1, base="custom"), "ball", 2.0, base_policy=base),
        "array": Maximin(RPO(beta=0.1, eta=0.1, base="custom"), "ball", 2.0, base_policy=instances.zhu_base()),
    }
    frame = simulate("zhu_four_arms", methods, {"n": [10, 40]}, 3, rng=0).set_index(["method", "n", "seed"])
    assert (frame["status"] == "certified").all()
    assert set(frame["reward_class"]) == {"LinearBall(radius=2, dimension=2)"}
    assert (frame.loc["based"]["gap"] == frame.loc["array"]["gap"]).all()
    assert (frame.loc["based"]["gap"] != frame.loc["ball"]["gap"]).all()

    grid = {"n": [50], "prompts": [3], "arms": [3]}
    weights = {name: Maximin(RPO(beta=0.5, eta=0.5), prompt_weights=name) for name in ("data", "population")}
    both = simulate("random", weights, grid, 3, rng=0)
    data, population = (both[both["method"] == name]["gap"].to_numpy() for name in weights)
    assert np.abs(data - population).min() > 1e-6
    same_class = simulate(
        "random",
        {"given": Maximin(RPO(beta=0.5, eta=0.5), Box(2.0)), "named": RPO(beta=0.5, eta=0.5)},
        grid,
        2,
        rng=0,
    )
    given, named = (same_class[same_class["method"] == name]["gap"].to_numpy() for name in ("given", "named"))
    assert (given == named).all()


def unit_ball(problem: ContextualBandit) -> LinearBall:
    return LinearBall(problem.features, 1.0)


def test_a_class_may_be_made_for_each_problem() -> None:
    """Features differ by draw, so no one ball fits; RPO's "ball" and a function agree; a baseline takes it too."""
    methods = {
        "named": Maximin(RPO(beta=0.2, eta=0.1), "ball", 1.0),
        "made": Maximin(RPO(beta=0.2, eta=0.1), unit_ball),
        "greedy": Greedy(reward_class=unit_ball),
        "boxed": Greedy(),
    }
    frame = simulate("linear_outside_span", methods, {"n": [60]}, 4, rng=0).set_index(["method", "seed"])
    assert not (frame["status"] == "failed").any()
    assert (frame.loc["named"]["gap"] == frame.loc["made"]["gap"]).all()
    for seed in range(4):
        cell = Cell(make_plan("linear_outside_span", DPO(beta=1.0), {"n": [60]}, 4, rng=0).source, {"n": 60}, [seed], 0)
        draw = cell.draws[0]
        by_hand = Greedy(reward_class=unit_ball(draw.problem)).solve(draw.problem, draw.data)
        assert frame.loc[("greedy", seed)]["gap"] == pytest.approx(draw.problem.suboptimality(by_hand.policy), abs=1e-9)
    assert (frame.loc["greedy"]["gap"] != frame.loc["boxed"]["gap"]).any()


def test_baselines_run_beside_objectives() -> None:
    """pi_ref of two arms is worth lead / 2; best-of-n comes with its own evidence."""
    frame = simulate(
        two_arms,
        [ReferencePolicy(), functools.partial(BestOfN, n=4)],
        {"n": [9], "lead": [1.0], "beta": [1.0]},
        5,
        rng=0,
    )
    reference = frame[frame["objective/name"] == "ReferencePolicy"]
    assert np.allclose(reference["gap"], 0.5) and np.allclose(reference["kl/reference"], 0.0)
    assert (reference["status"] == "exact").all()
    best = frame[frame["method"] == "BestOfN"]
    assert len(best) == 5 and (best["kl/reference"] > 0.1).all()


@pytest.mark.parametrize(
    ("what", "status", "message"),
    [
        ("raises", "failed", "FloatingPointError: lost"),
        ("exits", "failed", "SystemExit: lost"),
        ("not a policy", "failed", "finite numbers"),
        ("inaccurate", "inaccurate", "by hand"),
        ("fine", "exact", "by hand"),
    ],
)
def test_what_a_baseline_does_wrong_is_a_row(what: str, status: str, message: str) -> None:
    told = pytest.warns(FailedRows, match=f"^3 of 6 rows failed .*3 of coin.*coin at seed 0: .*{message}")
    with told if status == "failed" else contextlib.nullcontext():
        frame = simulate(two_arms, [Coin(what=what), DPO(beta=1.0)], {"n": [5], "lead": [1.0]}, 3, rng=0)
    coin = frame[frame["method"] == "coin"]
    assert list(coin["status"]) == [status] * 3
    assert all(message in text for text in coin["message"])
    assert coin["gap"].isna().all() == (status == "failed")
    assert coin["duality_gap"].isna().all() == (status == "failed")
    assert (frame[frame["method"] == "DPO"]["status"] == "certified").all()


def test_a_baselines_own_randomness_is_seeded_and_its_own() -> None:
    def run(seeds: Any, *more: Any) -> Any:
        frame = simulate(two_arms, [Coin(what="random"), *more], {"n": [5], "lead": [1.0]}, seeds, rng=0)
        return frame[frame["method"] == "coin"].set_index("seed")["gap"]

    alone = run(4)
    assert alone.nunique() == 4
    assert (run([3, 1], DPO(beta=1.0)) == alone[[1, 3]]).all()


def test_draws_without_a_minimiser_or_without_a_problem_are_rows() -> None:
    """One comparison in the unconstrained class has no minimiser at eta = 0 (the loser's reward runs away)."""
    free = {"free": Maximin(DPO(beta=1.0), Unconstrained())}
    with pytest.warns(FailedRows, match="3 of free"):
        frame = simulate(two_arms, free, {"n": [1], "lead": [1.0]}, 3, rng=0)
    assert list(frame["status"]) == ["failed"] * 3
    assert all("no minimiser" in text and "Unconstrained" in text for text in frame["message"])
    assert frame["gap"].isna().all()
    broken_at_odd_draws.calls = 0  # type: ignore[attr-defined]
    with pytest.warns(FailedRows, match="2 of 4 rows .* seed 0: ZeroDivisionError: no such world"):
        frame = simulate(broken_at_odd_draws, DPO(beta=1.0), {"n": [5]}, 4, rng=0)
    assert list(frame["status"]) == ["failed", "certified", "failed", "certified"]
    assert frame["message"][0] == "ZeroDivisionError: no such world"
    assert list(frame["gap"].isna()) == [True, False, True, False]


def test_one_draw_the_solver_refuses_does_not_take_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    from rpo.bandit.simulation import answers

    original = answers.solve_batch

    def picky(wins: Any, *arguments: Any, **options: Any) -> Any:
        if (wins[:, 0, 0, 1] > 3).any():
            raise np.linalg.LinAlgError("singular")
        return original(wins, *arguments, **options)

    monkeypatch.setattr(answers, "solve_batch", picky)
    with pytest.warns(FailedRows, match="LinAlgError: singular"):
        frame = simulate(two_arms, DPO(beta=1.0), {"n": [5], "lead": [1.0]}, 20, rng=0)
    assert set(frame["status"]) == {"failed", "certified"}
    assert set(frame["message"]) == {"", "LinAlgError: singular"}


# ---- on disk -------------------------------------------------------------------------------------


def test_the_table_is_written_and_read_back(tmp_path: Path, solved_chunks: list[Any]) -> None:
    frame = simulate("coverage_skew", [RPO, DPO], GRID, 3, rng=0, output=tmp_path / "a" / "b")
    folder = tmp_path / "a" / "b"
    same(frame, pandas.read_parquet(folder / "table.parquet"))
    same(frame, simulate("coverage_skew", [RPO, DPO], GRID, 3, rng=0))
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "shards",
        "table.parquet",
        "timings.csv",
    ]
    timings = pandas.read_csv(folder / "timings.csv")
    assert timings["rows"].sum() == len(frame) and (timings["seconds"] > 0).all()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["config"]["grid"]["n"] == [30, 100] and manifest["environment"]["numpy"]
    before, count = (folder / "table.parquet").read_bytes(), len(solved_chunks)
    same(frame, simulate("coverage_skew", [RPO, DPO], GRID, 3, rng=0, output=folder))
    assert len(solved_chunks) == count and (folder / "table.parquet").read_bytes() == before


def test_a_killed_run_continues_to_the_same_bytes(tmp_path: Path, solved_chunks: list[Any]) -> None:
    """SIGKILL once three of eight chunks are there; control: a chunk that was finished is not computed again."""
    grid = {**GRID, "n": [30, 50, 70, 100]}
    code = f"""
import time
from rpo.bandit.simulation import store as grid_store
from rpo.bandit.simulation.engine import simulate
from rpo.core.objectives import DPO, RPO
save = grid_store.GridStore.save
def slow(self, *arguments):
    save(self, *arguments)
    time.sleep(0.3)
grid_store.GridStore.save = slow
simulate("coverage_skew", [RPO, DPO], {grid!r}, 5, rng=0, output={str(tmp_path / "killed")!r})
"""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    shards = tmp_path / "killed" / "shards"
    deadline = time.monotonic() + 60
    while len(list(shards.glob("[!.]*.json"))) < 3:
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in shards.glob("[!.]*.json")}
    assert 3 <= len(finished) < 8
    (shards / ".stage-0000006.json").write_text('{"half": ')  # what a kill inside a write leaves

    simulate("coverage_skew", [RPO, DPO], grid, 5, rng=0, output=tmp_path / "killed")
    assert len(solved_chunks) == 8 - len(finished)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    simulate("coverage_skew", [RPO, DPO], grid, 5, rng=0, output=tmp_path / "whole")
    tables = [(tmp_path / name / "table.parquet").read_bytes() for name in ("killed", "whole")]
    assert tables[0] == tables[1]
    assert sorted(path.name for path in shards.iterdir()) == [f"{i:07d}.json" for i in range(8)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: b"",
        lambda text: text.replace(b"certified", b"certifies", 1),
        lambda text: text.replace(b'"gap": [0', b'"gap": [1', 1),
    ],
    ids=["cut", "empty", "letter", "digit"],
)
def test_a_damaged_chunk_is_reported_and_computed_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, solved_chunks: list[Any]
) -> None:
    simulate("coverage_skew", [RPO], GRID, 3, rng=0, output=tmp_path)
    table = (tmp_path / "table.parquet").read_bytes()
    shard = tmp_path / "shards" / "0000002.json"
    whole = shard.read_bytes()
    assert damage(whole) != whole
    shard.write_bytes(damage(whole))
    solved_chunks.clear()
    with pytest.warns(CorruptShard, match=r"0000002.json: its checksum does not fit.*computed again"):
        simulate("coverage_skew", [RPO], GRID, 3, rng=0, output=tmp_path)
    assert len(solved_chunks) == 1
    assert (tmp_path / "table.parquet").read_bytes() == table


def test_a_chunk_of_another_simulation_is_not_taken(tmp_path: Path) -> None:
    simulate("coverage_skew", [RPO], SMALL, 3, rng=0, output=tmp_path / "a")
    simulate("coverage_skew", [RPO], SMALL, 3, rng=1, output=tmp_path / "b")
    table = (tmp_path / "b" / "table.parquet").read_bytes()
    name = "shards/0000000.json"
    (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    with pytest.warns(CorruptShard, match="belongs to another simulation"):
        simulate("coverage_skew", [RPO], SMALL, 3, rng=1, output=tmp_path / "b")
    assert (tmp_path / "b" / "table.parquet").read_bytes() == table


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grid": {**SMALL, "n": [20, 40]}}, "grid.n: [20] there, [20, 40] here"),
        ({"grid": {**SMALL, "skew": [1.0]}}, "grid.skew: absent there"),
        ({"seeds": 4}, "seeds: [0, 1, 2] there"),
        ({"rng": 1}, "root: 0 there, 1 here"),
        ({"methods": [DPO]}, "methods.RPO: absent here"),
        ({"methods": {"RPO": Maximin(functools.partial(RPO, base="reference"), "unconstrained")}}, "methods.RPO"),
        ({"instance": "random"}, "instance"),
        ({"proxy": False}, "proxy: true there, false here"),
    ],
)
def test_another_simulation_in_the_folder_is_refused_and_kept(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"instance": "coverage_skew", "methods": [RPO], "grid": SMALL, "seeds": 3, "rng": 0}
    simulate(**given, output=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(GridMismatch) as caught:
        simulate(**{**given, **change}, output=tmp_path)
    assert words in str(caught.value) and "overwrite" in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    frame = simulate(**{**given, **change}, output=tmp_path, overwrite=True)
    same(frame, simulate(**{**given, **change}))


def test_another_version_of_what_computes_is_refused_and_a_broken_manifest_too(tmp_path: Path) -> None:
    simulate("coverage_skew", [RPO], SMALL, 2, rng=0, output=tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["environment"]["scipy"] = "0.1"
    path.write_text(json.dumps(manifest))
    with pytest.raises(GridMismatch, match=r"version of scipy: 0\.1 there"):
        simulate("coverage_skew", [RPO], SMALL, 2, rng=0, output=tmp_path)
    manifest["environment"] |= {"scipy": scipy.__version__, "code": "older"}
    path.write_text(json.dumps(manifest))
    with pytest.warns(MixedCode, match="other code of rpo"):
        simulate("coverage_skew", [RPO], SMALL, 2, rng=0, output=tmp_path)
    path.write_text("{")
    with pytest.raises(OutputError, match="cannot be read"):
        simulate("coverage_skew", [RPO], SMALL, 2, rng=0, output=tmp_path)


def test_rows_of_other_draws_are_not_mixed_with_these(tmp_path: Path) -> None:
    """A folder from before problems were drawn in blocks says nothing of draws; one's own instance never does."""
    simulate("coverage_skew", [RPO], SMALL, 2, rng=0, output=tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["config"].pop("draws") == "at once, 100 seeds"
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(GridMismatch, match=r"draws: absent there.*overwrite"):
        simulate("coverage_skew", [RPO], SMALL, 2, rng=0, output=tmp_path / "a")
    simulate(two_arms, DPO(beta=1.0), {"n": [5], "lead": [1.0]}, 2, rng=0, output=tmp_path / "b")
    assert "draws" not in json.loads((tmp_path / "b" / "manifest.json").read_text())["config"]


OWN = """
import dataclasses
import functools
import numpy as np
import HELPER_MODULE
from HELPER_MODULE import helped
from rpo.bandit import Baseline, Box, ContextualBandit, PolicyResult
from rpo.bandit.simulation import Maximin
from rpo.core.objectives import RPO

NUMBER, TABLE, NAMES = 1.0, {"a": [1, 2]}, frozenset({"x", "y", "z"})

def helper(x):
    return x + 1

def instance(*, rng):
    return helper(NUMBER) + TABLE["a"][0] + helped() + HELPER_MODULE.other() + len(NAMES & {"p", "q", "x"})

def factory(scale, table=np.ones(2)):
    def made(*, rng):
        return scale * table
    return made

closed = factory(2.0)
closed_array = factory(np.array([1.0, 2.0]))

def default(*, rng, scale=3.0):
    return scale

class Parent(Baseline):
    power = 4
    def inherited(self):
        return 5

@dataclasses.dataclass(frozen=True)
class Mine(Parent):
    beta: float = 0.5
    rule: object = None
    extra: list = dataclasses.field(default_factory=list)
    @property
    def label(self):
        return "mine"
    def solve(self, problem, data, *, rng=None):
        return self.inherited() + self._twice(6)
    @functools.cache
    def _cached(self):
        return 7
    @staticmethod
    def _twice(x):
        return [helper(y) * 8 for y in range(x)]

mine = Mine()
ruled = Mine(rule=instance)
maximin = Maximin(RPO(beta=0.5, eta=0.1), lambda problem: Box(9.0))
based = Maximin(RPO(beta=0.5, eta=0.1, base="custom"), base_policy=default)
bandit = type("Own", (ContextualBandit,), {"draw_pairs": helper})(d0=np.ones(1), reference=np.full((1, 2), 0.5))

def elsewhere():
    return 10
"""
OWN_HELPER = """
def helped():
    return 11
def other():
    return below()
def below():
    return 12
"""


def load_own(change: tuple[str, str] = ("", ""), name: str = "rpo_test_own") -> Any:
    """Return the module above, and the one that it imports, with `change` made to their text."""
    for module, text in ((f"{name}_helper", OWN_HELPER), (name, OWN.replace("HELPER_MODULE", f"{name}_helper"))):
        sys.modules[module] = loaded = ModuleType(module)
        exec(compile(text.replace(*change) if change[0] else text, f"<{module}>", "exec"), vars(loaded))
    return loaded


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        (("x + 1", "x + 2"), {"instance", "mine", "ruled", "bandit"}),
        (("NUMBER, TABLE, NAMES = 1.0", "NUMBER, TABLE, NAMES = 1.5"), {"instance", "ruled"}),
        (("[1, 2]", "[1, 3]"), {"instance", "ruled"}),
        (('"y", "z"})', '"y", "w"})'), {"instance", "ruled"}),
        (("return 11", "return 0"), {"instance", "ruled"}),
        (("return 12", "return 0"), {"instance", "ruled"}),
        (("factory(2.0)", "factory(2.5)"), {"closed"}),
        (("np.ones(2)", "np.zeros(2)"), {"closed", "closed_array"}),
        (("[1.0, 2.0]", "[1.0, 2.5]"), {"closed_array"}),
        (("scale=3.0", "scale=3.5"), {"default", "based"}),
        (("power = 4", "power = 5"), {"mine", "ruled"}),
        (("return 5", "return 6"), {"mine", "ruled"}),
        (("* 8", "* 9"), {"mine", "ruled"}),
        (("return 7", "return 0"), {"mine", "ruled"}),
        (("beta: float = 0.5", "beta: float = 0.6"), {"mine", "ruled"}),
        (("Box(9.0)", "Box(9.5)"), {"maximin"}),
        (("return 10", "return 0"), set()),
        (("def factory", "# a comment\n\ndef factory"), set()),
    ],
)
def test_the_digest_of_own_code_changes_with_what_runs_and_only_then(
    change: tuple[str, str], touched: set[str]
) -> None:
    """Body, helper, constant, imported module, closure, default, base class, class attribute, decorated method."""
    names = ("instance", "closed", "closed_array", "default", "mine", "ruled", "maximin", "based", "bandit")
    before, same, after = (load_own(made) for made in (("", ""), ("", ""), change))
    digests = [{name: code_digest(name, getattr(own, name)) for name in names} for own in (before, same, after)]
    assert digests[0] == digests[1] and None not in digests[0].values()
    assert {name for name in names if digests[0][name] != digests[2][name]} == touched


@pytest.mark.parametrize(
    "statement",
    ["import INNER", "from INNER import inner", "import INNER as other", "from INNER_package import INNER_sub"],
)
def test_what_a_function_imports_when_it_runs_counts(
    statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded before or not, the digest is the same; a module of Python's own and one that is not there add nothing."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("rpo_test_inner", "rpo_test_inner_package.rpo_test_inner_sub")
    (tmp_path / "rpo_test_inner_package").mkdir()
    (tmp_path / "rpo_test_inner_package" / "__init__.py").write_text("")

    def digest(said: str, number: int, *, fresh: bool = True) -> str | None:
        for name in names if fresh else ():
            (tmp_path / f"{name.replace('.', '/')}.py").write_text(f"def inner():\n    return {number}\n")
            sys.modules.pop(name, None)
            sys.modules.pop(name.partition(".")[0], None)
        # The time of a source decides whether its compiled form is read, and two of these are written in one second.
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        shutil.rmtree(tmp_path / "rpo_test_inner_package" / "__pycache__", ignore_errors=True)
        importlib.invalidate_caches()
        made: dict[str, Any] = {"__name__": "rpo_test_outer"}
        exec(f"def mine():\n    def within():\n        {said}\n    return within", made)
        return code_digest("mine", made["mine"])

    said = statement.replace("INNER", "rpo_test_inner")
    first = digest(said, 1)
    assert first == digest(said, 1, fresh=False) == digest(said, 1) != digest(said, 2)
    assert digest("import wave", 1) == digest("import wave", 2)
    assert digest("import rpo_test_nowhere", 1) == digest("import rpo_test_nowhere", 2)


def test_the_digest_does_not_depend_on_the_process_and_the_package_has_none(tmp_path: Path) -> None:
    (tmp_path / "own_helper.py").write_text(OWN_HELPER)
    (tmp_path / "own.py").write_text(OWN.replace("HELPER_MODULE", "own_helper"))
    code = (
        "import own; from rpo.bandit.simulation.code import code_digest as d; print(d('', own.mine), d('', own.ruled))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1 and len(found.pop()) == 66
    for own in (instances.coverage_skew, Greedy(), Maximin(RPO(beta=1.0, eta=0.1), Box(1.0)), two_arms(lead=1.0)):
        assert code_digest("a", own) is None


@pytest.mark.parametrize("held", [object(), np.random.default_rng(0), iter([1]), len])
def test_what_cannot_be_told_from_its_later_self_is_refused_with_output_alone(held: Any, tmp_path: Path) -> None:
    def instance(*, rng: Any) -> ContextualBandit:
        return two_arms(lead=1.0 if held else 0.5)

    simulate(instance, DPO(beta=1.0), {"n": [5]}, 1, rng=0)
    if held is len:  # Python's own: its version tells
        simulate(instance, DPO(beta=1.0), {"n": [5]}, 1, rng=0, output=tmp_path)
        return
    with pytest.raises(InvalidArgument, match=r"^instance with output: expected Python code.*or run without output"):
        simulate(instance, DPO(beta=1.0), {"n": [5]}, 1, rng=0, output=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_own_code_that_has_changed_are_not_taken(tmp_path: Path, solved_chunks: list[Any]) -> None:
    """The same name, the same grid, another reward: refused; told apart from a run that continues."""

    def run(lead: float, **more: Any) -> pandas.DataFrame:
        def mine(*, rng: Any) -> ContextualBandit:
            return two_arms(lead=lead)

        return simulate(mine, [ReferencePolicy(), Coin()], {"n": [5]}, 3, rng=0, output=tmp_path, **more)

    first = run(1.0)
    assert first.attrs["rows_reused"] == 0 and run(1.0).attrs["rows_reused"] == len(first) == 6
    assert len(solved_chunks) == 1
    with pytest.raises(GridMismatch, match=r"code\.instance.*overwrite"):
        run(1.5)
    assert (run(1.5, overwrite=True)["gap"] == 0.75).all()


class Flaky(Coin):
    """Fails until the file is there."""

    where = Path()

    def solve(self, problem: Any, data: Any, *, rng: Any = None) -> PolicyResult:
        self.where.read_text()
        return super().solve(problem, data, rng=rng)


def test_rows_that_failed_are_tried_again_and_an_answer_of_none_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solved_chunks: list[Any]
) -> None:
    monkeypatch.setattr(Flaky, "where", tmp_path / "there")
    options: dict[str, Any] = {"seeds": 2, "rng": 0, "output": tmp_path / "out"}
    grid = {"n": [5], "lead": [1.0, 2.0]}
    with pytest.warns(FailedRows, match=r"^4 of 4 rows failed .*\(4 of coin\).*coin at seed 0: FileNotFoundError"):
        simulate(two_arms, Flaky(), grid, **options)
    (tmp_path / "there").write_text("")
    mended = simulate(two_arms, Flaky(), grid, **options)
    assert list(mended["status"]) == ["exact"] * 4 and mended.attrs["rows_reused"] == 0
    assert len(solved_chunks) == 4
    assert simulate(two_arms, Flaky(), grid, **options).attrs["rows_reused"] == 4
    free = {"free": Maximin(DPO(beta=1.0), Unconstrained())}
    for reused in (0, 2):
        with pytest.warns(FailedRows, match=r"2 of 2 rows failed .*no minimiser exists on this data"):
            frame = simulate(two_arms, free, {"n": [1], "lead": [1.0]}, 2, rng=0, output=tmp_path / "free")
        assert frame.attrs["rows_reused"] == reused


def test_overwrite_removes_only_what_a_simulation_wrote(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    simulate("coverage_skew", [RPO], SMALL, 2, rng=0, output=tmp_path)
    simulate("coverage_skew", [RPO], SMALL, 1, rng=0, output=tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(pandas.read_parquet(tmp_path / "table.parquet")) == 1


def test_csv_is_a_choice_and_a_missing_pyarrow_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = simulate("coverage_skew", [RPO], SMALL, 2, rng=0, output=tmp_path / "c", table_format="csv")
    read = pandas.read_csv(tmp_path / "c" / "table.csv", keep_default_na=False)
    assert np.array_equal(read["gap"].to_numpy(float), frame["gap"])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependency, match=r"rpo-lab\[parquet\].*table_format='csv'"):
        simulate("coverage_skew", [RPO], SMALL, 2, rng=0, output=tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, solved_chunks: list[Any]) -> None:
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", "/proc/nowhere/out"):
        with pytest.raises(OutputError, match="output: expected"):
            simulate("coverage_skew", [RPO], SMALL, 2, rng=0, output=bad)
    assert solved_chunks == []


def test_a_full_disk_says_so_and_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = GridStore.write

    def full(self: GridStore, name: str, content: Any) -> None:
        if "0000002" in name:
            monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        original(self, name, content)

    monkeypatch.setattr(GridStore, "write", full)
    with pytest.raises(OutputError, match=r"No space left.*finished is kept"):
        simulate("coverage_skew", [RPO], GRID, 2, rng=0, output=tmp_path)
    monkeypatch.undo()
    assert len(list((tmp_path / "shards").glob("*.json"))) == 2
    same(
        simulate("coverage_skew", [RPO], GRID, 2, rng=0, output=tmp_path),
        simulate("coverage_skew", [RPO], GRID, 2, rng=0),
    )


# ---- in parallel ---------------------------------------------------------------------------------


def test_two_jobs_and_threads_give_the_bytes_of_one(tmp_path: Path) -> None:
    """Control: the tables are compared as bytes, and another root's differ."""
    methods = {"rpo": RPO, "ref": ReferencePolicy()}
    grid = {"n": [30, 100], "beta": [0.05], "eta": [0.1], "prompts": [2]}
    tables = []
    for name, options in (("one", {}), ("two", {"jobs": 2}), ("threads", {"jobs": 2, "backend": "threading"})):
        simulate("coverage_skew", methods, grid, 40, rng=0, output=tmp_path / name, **options)
        tables.append((tmp_path / name / "table.parquet").read_bytes())
    assert tables[0] == tables[1] == tables[2]
    simulate("coverage_skew", methods, grid, 40, rng=1, output=tmp_path / "other")
    assert (tmp_path / "other" / "table.parquet").read_bytes() != tables[0]


def test_the_number_of_blas_threads_does_not_show(tmp_path: Path) -> None:
    """60 arms x 3 prompts: large enough that OpenBLAS splits a product among threads, which moves last bits."""
    code = """
import sys
from rpo.bandit.simulation.engine import simulate
from rpo.core.objectives import RPO
grid = {"n": [30, 1000], "beta": [0.05], "eta": [0.1], "arms": [60], "prompts": [3]}
simulate("coverage_skew", RPO, grid, 8, rng=0, output=sys.argv[1])
"""
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        command = [sys.executable, "-c", code, str(tmp_path / threads)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    tables = [(tmp_path / threads / "table.parquet").read_bytes() for threads in ("1", "2")]
    assert tables[0] == tables[1]


def test_dask_gives_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    expected = simulate("coverage_skew", [RPO, DPO], GRID, 3, rng=0)
    where: list[str] = []
    original = Cell.rows

    def rows(self: Cell, *arguments: Any) -> Any:
        where.append(threading.current_thread().name)
        return original(self, *arguments)

    monkeypatch.setattr(Cell, "rows", rows)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
    ):
        same(expected, simulate("coverage_skew", [RPO, DPO], GRID, 3, rng=0, backend="dask", jobs=-1))
    assert len(where) == 4 and "MainThread" not in where


@contextlib.contextmanager
def loopback(backend: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two worker processes of a cluster on this machine."""
    if backend == "dask":
        distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
        options = {"protocol": "tcp", "host": "127.0.0.1", "dashboard_address": None}
        with (
            distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, **options) as cluster,
            distributed.Client(cluster),
        ):
            yield
        return
    ray = pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token into the home folder
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # its sockets' names must be short
        own: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "_temp_dir": folder}
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False, **own)
        try:
            yield
        finally:
            ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_cluster_gives_the_bytes_of_one_process(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that span chunks, a baseline and a fitted method; which processes drew, an instance of one's own says."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys.modules["rpo.bandit.simulation.engine"], "CHUNK_SEEDS", 60)
    methods = {"rpo": RPO, "ref": ReferencePolicy(), "orpo": rpo.ORPO()}
    seen = tmp_path / "pids"
    seen.mkdir()

    def own(*, rng: Any) -> ContextualBandit:
        (seen / str(os.getpid())).touch()
        return ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward=[[rng.uniform(), 0.0]], reward_bound=1.0)

    simulate("coverage_skew", methods, GRID, 150, rng=0, output=tmp_path / "one")
    expected = simulate(own, DPO(beta=1.0), {"n": [5, 6, 7, 8]}, 150, rng=0)
    with loopback(backend, monkeypatch):
        before = set(seen.iterdir())
        simulate("coverage_skew", methods, GRID, 150, rng=0, output=tmp_path / backend, backend=backend, jobs=2)
        same(expected, simulate(own, DPO(beta=1.0), {"n": [5, 6, 7, 8]}, 150, rng=0, backend=backend, jobs=2))
    assert set(seen.iterdir()) > before
    tables = [(tmp_path / name / "table.parquet").read_bytes() for name in ("one", backend)]
    assert tables[0] == tables[1]


def test_the_bar_counts_chunks_and_is_silent_when_stderr_is_not_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: asked for, it draws (transient: off a terminal only the line end of its last frame is left)."""
    simulate("coverage_skew", [RPO], GRID, 2, rng=0)
    assert capfd.readouterr() == ("", "")
    simulate("coverage_skew", [RPO], GRID, 2, rng=0, progress=True)
    assert capfd.readouterr().err != ""
    seen: list[Any] = []

    def track(items: Any, description: str, *, show: Any) -> Any:
        for item in items:
            seen.append((len(items), item, show))
            yield item

    monkeypatch.setattr(sys.modules["rpo.bandit.simulation.engine"], "track", track)
    simulate("coverage_skew", [RPO], GRID, 2, rng=0)
    assert seen == [(4, i, None) for i in range(4)]


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"instance": "coverage_scew"}, "instance"),
        ({"instance": 3}, "instance"),
        ({"instance": functools.partial(instances.coverage_skew, arms=3)}, "instance"),
        ({"instance": lambda rng: 3, "grid": {"n": [1], "beta": [1], "eta": [1]}}, "instance"),
        ({"methods": []}, "methods"),
        ({"methods": [RPO, RPO]}, "methods"),
        ({"methods": ["RPO"]}, "methods"),
        ({"methods": [RPO(beta=1.0, eta=1.0)]}, "methods: beta"),
        ({"methods": [functools.partial(RPO, eta=1.0)]}, "methods: eta of RPO"),
        ({"grid": {"n": [20], "beta": [0.5]}}, "methods: eta of RPO"),
        ({"methods": [functools.partial(RPO, base="custom")]}, "methods: base_policy"),
        ({"methods": [Maximin(RPO, "ball", 1.0)]}, "reward_class"),
        ({"grid": {"beta": [1.0], "eta": [1.0]}}, "grid"),
        ({"grid": [20]}, "grid"),
        ({"grid": {**SMALL, "n": 20}}, "grid.n"),
        ({"grid": {**SMALL, "n": []}}, "grid.n"),
        ({"grid": {**SMALL, "n": [20, 20.0]}}, "grid.n"),
        ({"grid": {**SMALL, "n": [1.5]}}, "grid.n"),
        ({"grid": {**SMALL, "beta": [0.0]}}, "grid.beta"),
        ({"grid": {**SMALL, "eta": [-1.0]}}, "grid.eta"),
        ({"grid": {**SMALL, "beta": [1e-300, 0.5]}}, "methods: RPO.beta"),
        ({"grid": {**SMALL, "beta": [1e300]}}, "methods: RPO.beta"),
        ({"seeds": 10**400}, "seeds"),
        ({"seeds": [10**400]}, "seeds"),
        ({"grid": {**SMALL, "arms": [10**400]}}, "arms"),
        ({"grid": {**SMALL, "arm": [3]}}, "grid.arm"),
        ({"grid": {**SMALL, "arms": [1]}}, "arms"),
        ({"grid": {**SMALL, "arms": [[3]]}}, "grid.arms"),
        ({"grid": {**SMALL, "skew": [float("nan")]}}, "grid.skew"),
        ({"grid": {**SMALL, "skew": "1"}}, "grid.skew"),
        ({"grid": {**SMALL, "label_noise": [0.9]}}, "label_noise"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": "many"}, "seeds"),
        ({"rng": None}, "rng"),
        ({"rng": -1}, "rng"),
        ({"jobs": 0}, "jobs"),
        ({"jobs": 2, "backend": "clouds"}, "backend"),
        ({"backend": "clouds"}, "backend"),
        ({"table_format": "xlsx"}, "table_format"),
    ],
)
def test_mistakes_are_refused_before_any_work(
    change: dict[str, Any], name: str, tmp_path: Path, solved_chunks: list[Any]
) -> None:
    given: dict[str, Any] = {"instance": "coverage_skew", "methods": [RPO], "grid": SMALL, "seeds": 3, "rng": 0}
    with pytest.raises(InvalidArgument) as caught:
        simulate(**{**given, **change}, output=tmp_path / "out")
    assert caught.value.name.startswith(name)
    assert solved_chunks == [] and not (tmp_path / "out").exists()


def test_a_parameter_without_default_must_be_in_the_grid() -> None:
    with pytest.raises(InvalidArgument, match="grid.lead"):
        simulate(two_arms, DPO(beta=1.0), {"n": [1]}, 1, rng=0)


def test_a_fixed_bandit_is_told_by_its_numbers(tmp_path: Path) -> None:
    simulate(two_arms(lead=1.0), DPO(beta=1.0), {"n": [9]}, 2, rng=0, output=tmp_path)
    with pytest.raises(GridMismatch, match="instance"):
        simulate(two_arms(lead=0.5), DPO(beta=1.0), {"n": [9]}, 2, rng=0, output=tmp_path)
    with pytest.raises(InvalidArgument, match="known r"):
        simulate(ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]]), DPO(beta=1.0), {"n": [9]}, 2, rng=0)


def test_recipe_entries_make_methods_and_mistakes_in_them_are_named() -> None:
    name, method = from_dict({"method": "RPO", "name": "free", "reward_class": "unconstrained", "base": "reference"})
    assert name == "free" and method.reward_class == "unconstrained"
    assert method.objective(beta=1.0, eta=1.0) == RPO(beta=1.0, eta=1.0, base="reference")
    _, method = from_dict({"method": "DPO", "base": "custom", "base_policy": [[0.5, 0.5]], "bound": 3})
    frame = simulate(two_arms, {"m": method}, {"n": [5], "lead": [1.0], "beta": [1.0]}, 1, rng=0)
    assert list(frame["reward_class"]) == ["Box(bound=3)"] and list(frame["objective/base"]) == ["custom"]
    name, method = from_dict({"method": "IPO", "tau": 0.5, "bound": 2})
    assert (name, method.bound, method.objective()) == ("IPO", 2, rpo.IPO(tau=0.5))
    name, method = from_dict({"method": "BestOfN", "n": 8})
    assert (name, method().n) == ("BestOfN", 8)
    for bad, words in (
        ({"method": "PPO"}, "'RPO'|RPO, DPO"),
        (3, "entries with a key 'method'"),
        ({"method": "IPO", "beta": 1.0}, "methods: beta of IPO"),
        ({"method": "DPO", "eta": 1.0}, "methods: eta of DPO"),
        ({"method": "RPO", "reward_class": "sphere"}, "reward_class"),
    ):
        with pytest.raises(RPOError, match=words):
            from_dict(bad)


def test_chunks_are_cut_by_size_and_their_rows_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["rpo.bandit.simulation.engine"]
    whole = simulate("coverage_skew", [RPO], GRID, 7, rng=0)
    monkeypatch.setattr(module, "CHUNK_SEEDS", 3)
    plan = make_plan("coverage_skew", [RPO], GRID, 7, rng=0)
    assert [len(seeds) for _, seeds in plan.chunks] == [3, 3, 1] * 4
    cut = simulate("coverage_skew", [RPO], GRID, 7, rng=0)
    keys = [*GRID, "seed", "method", "status"]
    same(whole[keys], cut[keys])
    pandas.testing.assert_frame_equal(whole[["gap", "reward/proxy"]], cut[["gap", "reward/proxy"]], atol=1e-7, rtol=0)
    monkeypatch.setattr(module, "CHUNK_ENTRIES", 100)
    assert len(make_plan("coverage_skew", [RPO], GRID, 7, rng=0).chunks) == 4 * 7


def test_one_spelling_of_a_value() -> None:
    assert canonical({"b": 1.0, "a": np.int64(2)}) == '{"a":2,"b":1}'
    assert canonical(True) != canonical(1)


# Drawn pairs have no scores.
NEED_SCORES = ("ODPO", "PRO", "LiPO", "InfoNCA", "ListNCA", "ListEXO", "CoPG", "ALoL")


def test_every_registered_method_enters_by_the_best_evidence_there_is() -> None:
    """What `solve` takes is its policy, with a gap; all else is where `fit` ends, on the same data, and its word."""
    problem = instances.coverage_skew(arms=4, skew=1.0, rng=0)
    every = {name: method.load() for name, method in METHODS.items() if method.evidence != ABSENT}
    kinds = {name: kind for name, kind in every.items() if name not in NEED_SCORES}
    bare = {name: [f.name for f in fields(kind) if f.default is f.default_factory] for name, kind in kinds.items()}
    made = {name: kind(**dict.fromkeys(bare[name], 0.2)) for name, kind in kinds.items()}
    frame = simulate(problem, made, {"n": [400]}, 1, rng=0, proxy=False).set_index("method")
    draw: Any = Cell(source(problem), {"n": 400}, [0], 0).draws[0]
    for name, objective in made.items():
        row = frame.loc[name]
        assert row["objective/name"] == name
        if is_solvable(objective):
            policy, word = solve(problem, draw.data, objective).policy, "certified"
        else:
            run = fit(problem.softmax_policy(), draw.data, objective, proxy_reward=None)
            policy, word = run.policy, "inaccurate" if run.evidence == "none" else run.evidence
        assert row["status"] == word and np.isfinite(row["duality_gap"]) >= (word == "certified"), name
        worth = problem.expected_reward(problem.greedy_policy()) - problem.expected_reward(policy)
        assert row["gap"] == pytest.approx(worth, abs=1e-6), name
    assert {"certified", "stationary"} <= set(frame["status"])
    for name in ("KTO", *NEED_SCORES):
        with pytest.raises(InvalidArgument, match=f"methods: {name}: expected a loss of log-probabilities alone"):
            simulate(problem, [METHODS[name].load()()], {"n": [400]}, 1, rng=0)
