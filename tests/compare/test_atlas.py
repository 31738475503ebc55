"""The atlas: who enters, what a loss does to unseen responses, the numbers, resuming, the pages."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rpo
from rpo.bandit import instances
from rpo.bandit.simulation.cell import Cell
from rpo.bandit.simulation.grid import source
from rpo.cli import main
from rpo.compare.atlas import INSTANCES, Atlas, AtlasInstance, Entrant, atlas, entrants, found_pull
from rpo.compare.atlas.block import MEASURES, solve_block
from rpo.compare.atlas.entrants import absent, settled
from rpo.compare.atlas.lists import ListCell, within_unit
from rpo.compare.atlas.report import write_atlas
from rpo.compare.atlas.summary import fall, summary
from rpo.core.errors import InvalidArgument
from rpo.core.fields import Positive
from rpo.core.objectives import Objective
from rpo.core.shapes import Logistic, MarginShape
from rpo.methods import registry

SMALL = AtlasInstance(name="small", sentence="small", source="coverage_skew", parameters={"arms": 5, "skew": 1.0}, n=20)
LINEAR = next(one for one in INSTANCES if one.name == "zhu")
KNOWN = {one.name: one for one in entrants(steps=3)}
FULL = {one.name: one for one in entrants()}


# --- who enters, and what is predicted of them -------------------------------------------------------


def test_every_registered_method_enters_or_is_named_with_a_reason() -> None:
    here = {one.method.__name__ for one in entrants()}
    assert here | set(absent()) == set(registry.METHODS) and not here & set(absent())
    assert all(len(why) > 10 for why in absent().values())
    assert {"RPO", "RPO, base = reference", "DPO"} <= set(KNOWN)
    for one in entrants():
        assert one.default in one.values and one.values[0] != one.values[-1]


@pytest.mark.parametrize("name", KNOWN)
def test_what_a_loss_does_to_unseen_responses_is_what_is_predicted(name: str) -> None:
    """Fitted from two starts that differ in the unseen responses' logits, a quarter along the full path."""
    entrant = KNOWN[name]
    full = FULL[name].values
    assert found_pull(entrant.at(full[len(full) // 4])) == entrant.pull


def test_the_reward_unit_of_ipo_is_its_tau() -> None:
    """Its link leaves tau out: h = r / tau, so that a box of R log-odds is one of R / tau for h."""
    assert KNOWN["IPO"].reward_unit(0.25) == 0.25 and KNOWN["DPO"].reward_unit(0.25) == 1.0


# --- the numbers -------------------------------------------------------------------------------------


def chosen(*names: str) -> list[Entrant]:
    return [KNOWN[name] for name in names]


def test_the_overestimate_is_proxy_less_gold_and_splits_over_the_responses() -> None:
    table = solve_block(SMALL, chosen("DPO", "RPO", "ORPO", "SLiC"), range(6), 0)
    kl, gold, proxy, unseen, rare, often = (table[..., k] for k in range(6))
    there = np.isfinite(gold)
    assert there.sum() >= 4 * 3 * 6
    assert (unseen + rare + often)[there] == pytest.approx((proxy - gold)[there], abs=1e-12)
    assert kl[there].min() >= 0.0 and np.abs(unseen[there]).max() > 1e-3


def test_measures_of_one_policy_are_those_of_its_definition() -> None:
    """Gold, KL, unseen mass and displacement of one draw, written out."""
    entrant = dataclasses.replace(KNOWN["DPO"], values=(0.3,), default=0.3)
    row = dict(zip(MEASURES, solve_block(SMALL, [entrant], [4], 0)[0, 0, 0], strict=True))
    cell = Cell(source(SMALL.source), SMALL.unit, [4], 0, at_once=False)
    draw: Any = cell.draws[0]
    problem, data = draw.problem, draw.data
    solution = rpo.bandit.solve(problem, data, rpo.DPO(beta=0.3, base="reference"), reward_class=rpo.bandit.Box(3.0))
    pi, ref = solution.policy[0], problem.reference[0]
    assert row["kl"] == pytest.approx(pi @ np.log(pi / ref), abs=1e-6)
    assert row["gold"] == pytest.approx((pi - ref) @ problem.reward[0], abs=1e-6)
    seen = data.response_counts("responses")[0] > 0
    assert row["mass/unseen"] == pytest.approx(pi[~seen].sum(), abs=1e-6)
    assert row["displacement"] == pytest.approx(data.weights @ np.log(pi / ref)[data.chosen], abs=1e-4)
    assert row["evidence"] == 2.0 and row["binding"] == float(np.ptp(solution.reward) >= 3.0 - 1e-9)


def test_rpo_lands_on_dpo_as_eta_goes_to_zero() -> None:
    """With base = reference, whose tie-break DPO's free rewards have here too."""
    made = solve_block(SMALL, chosen("DPO"), range(5), 0)
    close = dataclasses.replace(KNOWN["RPO, base = reference"], fixed={"eta": 1e-7, "base": "reference"})
    near = solve_block(SMALL, [close], range(5), 0)
    far = solve_block(SMALL, chosen("RPO, base = reference"), range(5), 0)
    assert np.abs(near - made)[0, :, :, :3].max() <= 1e-3
    assert np.abs(far - made)[0, :, :, :3].max() > 0.05


def test_the_penalty_of_base_reference_is_the_kl_of_the_reference_from_the_policy() -> None:
    rng = np.random.default_rng(0)
    pi, ref = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    pairs = {"policy_chosen_logps": np.log(pi[:1]), "policy_rejected_logps": np.log(pi[1:2])}
    pairs |= {"reference_chosen_logps": np.log(ref[:1]), "reference_rejected_logps": np.log(ref[1:2])}
    objective = KNOWN["RPO, base = reference"].at(0.5)
    penalty = objective(**pairs, base_logps=np.array([ref @ np.log(pi)]))[0] - rpo.DPO(beta=0.5)(**pairs)[0]
    entropy = -ref @ np.log(ref)
    assert penalty == pytest.approx(0.1 * 0.5 * (ref @ np.log(ref / pi) + entropy), rel=1e-12)


def handmade(gold: Any, kl: Any) -> Atlas:
    """Return an atlas of two entrants whose curves are given, (2, K, S); everything else zero."""
    gold, kl = np.asarray(gold, dtype=float), np.asarray(kl, dtype=float)
    table = np.zeros((1, *gold.shape, len(MEASURES)))
    table[0, ..., MEASURES.index("gold")], table[0, ..., MEASURES.index("kl")] = gold, kl
    pair = [dataclasses.replace(KNOWN[name], values=(4.0, 1.0, 0.1)) for name in ("DPO", "RPO")]
    return Atlas(instances=(SMALL,), entrants=tuple(pair), seeds=gold.shape[2], table=table)


def test_peak_fall_and_matched_kl_of_curves_made_by_hand() -> None:
    """DPO's gold goes 0, 1, 0.4 at KL 0, 0.8, 1.2; RPO's 0, 1.2, 1.5 at the same. At 0.5: 0.625 and 0.75."""
    steady = np.ones(4)
    gold = [np.outer([0.0, 1.0, 0.4], steady), np.outer([0.0, 1.2, 1.5], steady)]
    frame = summary(handmade(gold, [np.outer([0.0, 0.8, 1.2], steady)] * 2)).set_index("method")
    assert list(frame["peak"]) == pytest.approx([1.0, 1.5]) and list(frame["drop"]) == pytest.approx([0.6, 0.0])
    assert list(frame["drop/low"]) == pytest.approx([0.6, 0.0]) == list(frame["drop/high"])
    assert list(frame["gold@0.5"]) == pytest.approx([0.625, 0.75])
    assert frame.loc["RPO", "gold-DPO@0.5"] == pytest.approx(0.125)
    assert frame.loc["RPO", "gold-DPO@0.5/low"] == pytest.approx(0.125)
    assert list(frame["gold@1"]) == pytest.approx([0.7, 1.35])
    assert np.isnan(summary(handmade(gold, [np.outer([0.0, 0.1, 0.2], steady)] * 2))["gold@0.5"]).all()


def test_the_interval_of_a_fall_comes_from_the_seeds() -> None:
    """Falls of 0 and 1 in equal numbers: the mean's interval, by the binomial, is 0.5 -+ 1.96 * 0.5 / sqrt(100)."""
    falls = np.tile([0.0, 0.0, 1.0, 1.0], 25)
    gold = np.stack([np.zeros(100), np.ones(100), 1.0 - falls])
    frame = summary(handmade([gold, gold], [np.outer([0.0, 0.5, 1.0], np.ones(100))] * 2))
    assert frame["drop"][0] == 0.5
    assert list(frame.loc[0, ["drop/low", "drop/high"]]) == pytest.approx([0.402, 0.598], abs=0.002)


def test_where_nothing_falls_no_fall_is_seen() -> None:
    """200 atlases of noise alone: the mean fall is zero, and its interval lies above zero in at most a few.

    The control is the fall from the largest of the same means, which is above zero every time.
    """
    noise = np.random.default_rng(0).normal(size=(200, 9, 100))
    found = [fall(gold) for gold in noise]
    means = np.array([one["drop"] for one in found])
    assert abs(means.mean()) < 3 * means.std() / np.sqrt(200)
    assert sum(one["drop/low"] > 0 for one in found) <= 12  # 2.5 % of 200 are 5
    biased = [gold.mean(axis=1).max() - gold.mean(axis=1)[-1] for gold in noise]
    assert np.mean(biased) > 0.1


LISTS = next(one for one in INSTANCES if one.lists)


def test_lists_are_read_whole_or_as_all_their_pairs() -> None:
    """20 lists of 4 are 120 pairs; a method on lists is solved on the lists, or fitted, all draws at once."""
    cell = ListCell(LISTS, [0, 1], 0)
    draw: Any = cell.draws[1]
    assert draw.ranked.n == 20 and draw.data.n == 120 and draw.ranked.scored
    objective = rpo.InfoNCA(beta=0.5)
    answer: Any = cell.whole_lists(objective)[1]
    expected = rpo.bandit.solve(draw.problem, draw.ranked, settled(objective), reward_class=rpo.bandit.Box(3.0))
    assert answer.status == "certified" and answer.policy == pytest.approx(expected.policy, abs=1e-6)
    scaled = within_unit(draw.ranked)
    raw, unit = (np.concatenate([np.ravel(b.scores) for b in ranked.blocks]) for ranked in (draw.ranked, scaled))
    assert (unit.min(), unit.max()) == (0.0, 1.0) and np.ptp((raw - raw.min()) / np.ptp(raw) - unit) < 1e-12
    fitted: Any = cell.whole_lists(rpo.ListNCA(beta=0.5))[1]
    alone = rpo.fit(draw.problem.softmax_policy(), draw.ranked, rpo.ListNCA(beta=0.5), proxy_reward=None)
    assert fitted.status == "certified" and fitted.policy == pytest.approx(alone.policy, abs=1e-4)
    table = solve_block(LISTS, [dataclasses.replace(KNOWN["CoPG"], values=(0.5,), default=0.5)], [0, 1], 0)
    assert np.isfinite(table).all()
    assert np.isnan(solve_block(SMALL, chosen("InfoNCA"), [0], 0)).all()


# --- runs --------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".md", ".png", ".html")
    }


def test_a_run_that_lost_blocks_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpo.compare.atlas.run.BLOCK", 2)
    methods, places = chosen("DPO", "RPO", "CPL"), [SMALL, LINEAR]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write_atlas(atlas(whole, seeds=4, methods=methods, instances=places), whole)
    shutil.copytree(whole, cut)
    for path in sorted((cut / "shards").iterdir())[::2]:
        path.unlink()
    for name in files(whole):
        (cut / name).unlink()
    write_atlas(atlas(cut, seeds=4, methods=methods, instances=places), cut)
    assert files(cut) == files(whole) and len(files(whole)) == 8
    assert "Zhu" in (whole / "atlas.html").read_text(encoding="utf-8")
    with pytest.raises(InvalidArgument, match="another one"):
        atlas(whole, seeds=5, methods=methods, instances=places)


def test_processes_and_blocks_of_others_do_not_change_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpo.compare.atlas.run.BLOCK", 2)
    one = atlas(seeds=4, methods=chosen("DPO", "NCA"), instances=[SMALL])
    two = atlas(tmp_path, seeds=4, methods=chosen("DPO", "NCA"), instances=[SMALL], jobs=2)
    assert np.array_equal(one.table, two.table, equal_nan=True)


class Cautious(MarginShape):
    """DPO's likelihood with a floor under the margin's effect: flat beyond two."""

    convex = False

    def of_margin(self, z: Any) -> Any:
        return Logistic().of_margin(z)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(Objective):
    """A method of one's own."""

    beta: Positive = 0.1

    @property
    def link(self) -> Any:
        return rpo.DPO(beta=self.beta).link

    @property
    def shape(self) -> Any:
        return Cautious()


def test_a_method_of_ones_own_enters(tmp_path: Path) -> None:
    mine = Entrant(name="mine", method=Mine, knob="beta", values=(1.0, 0.3), default=0.3)
    made = atlas(tmp_path, seeds=3, methods=[*chosen("DPO"), mine], instances=[SMALL])
    frame = write_atlas(made, tmp_path).set_index("method")
    assert frame.loc["mine", "pull/found"] == "free" and frame.loc["mine", "certified"] <= 1.0
    assert np.isfinite(frame.loc["mine", "peak"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 1}, "^seeds: "),
        ({"methods": []}, "^methods: expected one or more"),
        ({"methods": [rpo.DPO(beta=0.1)]}, "^methods: "),
        ({"instances": ["even"]}, "^instances: "),
        ({"rng": -1}, "^rng: "),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        atlas(**options)


def test_the_command_writes_the_page_and_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seeds", "3", "--methods", '["CPO"]', "--instances", '["noisy"]', "--jobs", "1"]
    assert main(["atlas", "--output", str(tmp_path), *options]) == 0
    assert "2 methods on 1 instances, 3 seeds each" in capsys.readouterr().out
    assert {"atlas.csv", "atlas.md", "atlas.png", "atlas.html", "config.yaml"} <= {p.name for p in tmp_path.iterdir()}
    assert main(["atlas", "--output", str(tmp_path / "b"), "--methods", '["CPOO"]']) == 2
    assert "'CPO'" in capsys.readouterr().err


def test_instances_of_the_atlas_build_and_say_what_they_are() -> None:
    assert len(INSTANCES) >= 6 and len({one.name for one in INSTANCES}) == len(INSTANCES)
    for one in INSTANCES:
        problem = Cell(source(one.source), one.unit, [0], 0, at_once=False).problem(0)
        assert one.ball is not None or problem.reward_bound == one.bound
        assert one.ball is None or problem.features is not None
    assert instances.zhu_four_arms(n=30).features is not None
