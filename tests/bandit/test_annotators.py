"""Annotators of planted groups found again; what one reward for all costs the group worst off, and when it does not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rpo.bandit import (
    AnnotatorGroups,
    ContextualBandit,
    Hull,
    PreferenceCounts,
    Unconstrained,
    annotator_groups,
    robust_policy,
)
from rpo.bandit.baselines.plain import maximum_likelihood
from rpo.bandit.bounds import clopper_pearson
from rpo.core.errors import InvalidArgument

ARMS, PEOPLE, MINORITY = 6, 60, 0.25
PROBLEM = ContextualBandit(d0=np.ones(1), reference=np.full((1, ARMS), 1 / ARMS), reward_bound=6.0)


def planted(seed: int, pairs: int, disagreement: float) -> tuple[Any, Any, list[PreferenceCounts]]:
    """Return two groups' utilities (2, A), each annotator's group, and each annotator's pairs.

    The groups share a part and oppose one another in the rest, whose share is `disagreement`; a quarter are in the
    second.
    """
    g = np.random.default_rng(seed)
    shared, opposed = g.normal(size=ARMS), g.normal(size=ARMS)
    opposed -= opposed.mean()
    sides = np.array([opposed, -opposed])
    utility = 1.5 * ((1 - disagreement) * shared + disagreement * sides)
    group = (g.random(PEOPLE) < MINORITY).astype(int)
    people = []
    for mine in utility[group]:
        first = g.integers(0, ARMS, pairs)
        second = (first + g.integers(1, ARMS, pairs)) % ARMS
        wins = g.random(pairs) < 1 / (1 + np.exp(mine[second] - mine[first]))
        chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
        people.append(
            PreferenceCounts.from_pairs(np.zeros(pairs, int), chosen, rejected, num_prompts=1, num_responses=ARMS)
        )
    return utility, group, people


def pooled(people: list[PreferenceCounts]) -> Any:
    return PreferenceCounts.from_wins(sum(one.wins() for one in people))


@pytest.fixture(scope="module")
def studies() -> dict[float, dict[str, Any]]:
    """Return, by disagreement, over 12 seeds of 40 pairs each: who was matched, and gains of both groups, (12, 2)."""
    found: dict[float, dict[str, Any]] = {}
    for disagreement in (0.0, 0.5, 1.0):
        rows: dict[str, list[Any]] = {"matched": [], "single": [], "robust": [], "best": []}
        for seed in range(12):
            utility, group, people = planted(seed, 40, disagreement)
            fitted = annotator_groups(PROBLEM, people, rng=seed)
            assert fitted.certified
            assert np.diff(fitted.history).min() >= -1e-9 * abs(fitted.log_likelihood)
            single = maximum_likelihood(PROBLEM, pooled(people), base="reference").reward
            for name, rewards in (("single", single[None]), ("robust", fitted.rewards)):
                made = robust_policy(PROBLEM, Hull(rewards), beta=0.3)
                assert made.status == "certified"
                rows[name].append(utility @ made.policy[0] - utility.mean(axis=1))
            rows["matched"].append(fitted.matched(group))
            rows["best"].append(utility.max(axis=1) - utility.mean(axis=1))
        found[disagreement] = {name: np.array(row) for name, row in rows.items()}
    return found


def test_planted_groups_are_found_again(studies: dict[float, dict[str, Any]]) -> None:
    """40 pairs each: .988 of 720 at a disagreement of one half. Control: without any, fewer than by naming all alike.

    Naming all annotators alike matches three quarters.
    """
    rates = {d: clopper_pearson(int(found["matched"].sum()), 12 * PEOPLE) for d, found in studies.items()}
    assert rates[0.5].low > 0.975 and rates[1.0].low > 0.99
    assert rates[0.0].high < 0.75


def test_one_reward_fails_the_minority_the_more_the_groups_disagree(studies: dict[float, dict[str, Any]]) -> None:
    """Mean gains (majority, minority) of one reward and of the hull: (1.00, -.06) and (.54, .52) at one half.

    At full opposition the hull stays at the reference. Control: without disagreement splitting the data gains nothing.
    """
    regret = {d: (found["best"] - found["single"]).max(axis=1) for d, found in studies.items()}
    for less, more in ((0.0, 0.5), (0.5, 1.0)):
        apart = regret[more] - regret[less]
        assert apart.mean() > 1.96 * apart.std(ddof=1) / np.sqrt(12)
    half, none = studies[0.5], studies[0.0]
    gain = half["robust"].min(axis=1) - half["single"].min(axis=1)
    assert gain.mean() > 1.96 * gain.std(ddof=1) / np.sqrt(12)
    assert half["robust"][:, 0].mean() < half["single"][:, 0].mean() - 0.1  # the majority pays
    assert np.abs(studies[1.0]["robust"]).max() < 0.25 < np.abs(studies[1.0]["single"]).min()
    assert (none["robust"].min(axis=1) - none["single"].min(axis=1)).mean() <= 0.0


def test_one_group_is_the_pooled_maximum_likelihood() -> None:
    _, _, people = planted(0, 10, 0.5)
    found = annotator_groups(PROBLEM, people, groups=1, rng=0)
    reward = maximum_likelihood(PROBLEM, pooled(people), base="reference").reward
    assert found.rewards[0] == pytest.approx(reward - reward.mean(), abs=1e-8)
    z = np.concatenate([reward[one.prompt, one.chosen] - reward[one.prompt, one.rejected] for one in people])
    count = np.concatenate([one.count for one in people])
    assert found.log_likelihood == pytest.approx(-float(count @ np.logaddexp(0, -z)), abs=1e-6)
    assert found.shares == pytest.approx([1.0]) and found.groups.tolist() == [0] * PEOPLE


def opposed_groups(rewards: Any) -> AnnotatorGroups:
    shares = np.full(len(rewards), 1 / len(rewards))
    return AnnotatorGroups(
        rewards=rewards, shares=shares, responsibilities=shares[None], log_likelihood=0.0, history=(),
        restarts_agree=1, certified=True,
    )  # fmt: skip


def test_posterior_of_one_pair_by_hand() -> None:
    """Rewards +-1 on a gap: odds sigmoid(2) : sigmoid(-2) = e^2, so .8808; without data the shares."""
    known = opposed_groups(np.array([[[1.0, -1.0]], [[-1.0, 1.0]]]))
    one = PreferenceCounts.from_pairs([0], [0], [1], num_prompts=1, num_responses=2)
    assert known.posterior(one)[0] == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_the_free_energy_of_any_other_belief_is_worse_by_its_divergence() -> None:
    """log p(D) - E_q[log p(D, c) - log q] = KL(q || posterior): what a variational posterior loses."""
    rewards = np.random.default_rng(0).normal(size=(3, 1, ARMS))
    _, _, (data, *_) = planted(1, 8, 0.5)
    known = opposed_groups(rewards)
    z = rewards[:, 0, data.chosen] - rewards[:, 0, data.rejected]
    joint = np.log(1 / 3) - np.logaddexp(0, -z) @ data.count
    posterior = known.posterior(data)
    for q in np.random.default_rng(1).dirichlet(np.ones(3), size=5):
        free = q @ (joint - np.log(q))
        assert np.logaddexp.reduce(joint) - free == pytest.approx(q @ np.log(q / posterior), abs=1e-12)


def test_a_few_pairs_of_a_person_are_worth_most_of_knowing_the_group() -> None:
    """Two opposed users, 300 seeds, beta = .3: the averaged reward is worth 0, three pairs 1.6, the group itself 1.9.

    Source: the enumerable case of Poddar et al. 2024 (arXiv 2408.10075). Control: no pairs, no gain.
    """
    value: dict[int, list[float]] = {0: [], 3: [], 10: []}
    oracle = []
    for seed in range(300):
        g = np.random.default_rng(seed)
        r = 1.5 * g.normal(size=ARMS)
        r -= r.mean()
        utility = np.array([r, -r])
        known, mine = opposed_groups(utility[:, None]), utility[g.integers(0, 2)]

        def worth(reward: Any, mine: Any = mine) -> float:
            policy = np.exp((reward - reward.max()) / 0.3)
            return float(mine @ policy / policy.sum())

        oracle.append(worth(mine))
        for pairs, found in value.items():
            weight = known.shares
            if pairs:
                first = g.integers(0, ARMS, pairs)
                second = (first + g.integers(1, ARMS, pairs)) % ARMS
                wins = g.random(pairs) < 1 / (1 + np.exp(mine[second] - mine[first]))
                chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
                weight = known.posterior(
                    PreferenceCounts.from_pairs(
                        np.zeros(pairs, int), chosen, rejected, num_prompts=1, num_responses=ARMS
                    )
                )
            found.append(worth(weight @ utility))
    mean = {pairs: float(np.mean(found)) for pairs, found in value.items()}
    assert abs(mean[0]) < 1e-12
    assert mean[3] == pytest.approx(1.59, abs=0.15) and mean[10] == pytest.approx(1.86, abs=0.12)
    assert np.mean(oracle) == pytest.approx(1.91, abs=0.12) and mean[3] < mean[10] < np.mean(oracle)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"annotators": []}, "^annotators"),
        ({"annotators": [PreferenceCounts.from_wins(np.ones((1, 3, 3)) - np.eye(3))]}, r"^annotators\[0\]: expected"),
        ({"groups": 0}, "^groups"),
        ({"restarts": 0}, "^restarts"),
        ({"tolerance": 0.0}, "^tolerance"),
        ({"reward_class": Hull(np.zeros((1, 1, ARMS)))}, "^reward_class: .*many instances"),
        ({"reward_class": Unconstrained()}, "^reward_class: expected a bounded class"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], match: str) -> None:
    asked: dict[str, Any] = {"annotators": planted(0, 3, 0.5)[2], "rng": 0, **change}
    ask: Callable[..., Any] = annotator_groups
    with pytest.raises(InvalidArgument, match=match):
        ask(PROBLEM, **asked)
    with pytest.raises(InvalidArgument, match="^truth"):
        opposed_groups(np.zeros((2, 1, ARMS))).matched([-1])
