"""Ranked lists: counted by hand, drawn by Plackett-Luce against its enumeration, made into pairs by each rule."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from rpo.bandit import ContextualBandit, PreferenceCounts, RankedLists
from rpo.bandit.data import MAX_COUNT
from rpo.bandit.lists import RULES
from rpo.core.errors import InvalidArgument

REWARD = np.array([[0.0, 1.0, 0.5, 2.0], [1.0, 0.0, 0.2, 0.3]])
BEHAVIOR = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])


def bandit(**more: Any) -> ContextualBandit:
    fields: dict[str, Any] = {"d0": [0.3, 0.7], "reference": np.full((2, 4), 0.25), "reward": REWARD}
    return ContextualBandit(**{**fields, "behavior": BEHAVIOR, **more})


def listed(lists: RankedLists) -> dict[tuple[int, ...], float]:
    """Return {(prompt, responses ...): count}."""
    return {
        (int(x), *map(int, row)): float(n)
        for block in lists.blocks
        for x, row, n in zip(block.prompt, block.responses, block.count, strict=True)
    }


def ragged() -> RankedLists:
    responses = [[0, 1], [2, 0, 1], [0, 1], [2, 0, 1], [1, 0]]
    return RankedLists.from_lists([0, 1, 0, 1, 0], responses, count=[1, 1, 2, 0.5, 4], num_prompts=2, num_responses=3)


def test_equal_lists_are_added_up_and_sizes_are_kept_apart() -> None:
    lists = ragged()
    assert lists.sizes == (2, 3) and lists.n == 8.5 and not lists.scored
    assert listed(lists) == {(0, 0, 1): 3.0, (0, 1, 0): 4.0, (1, 2, 0, 1): 1.5}
    assert lists.prompt_frequencies == pytest.approx([7 / 8.5, 1.5 / 8.5], rel=1e-15)


def test_the_first_of_a_list_is_chosen_and_every_other_rejected() -> None:
    """Prompt 1, one and a half lists 2 > 0 > 1."""
    lists = ragged()
    assert lists.response_counts("chosen").tolist() == [[3.0, 4.0, 0.0], [0.0, 0.0, 1.5]]
    assert lists.response_counts("rejected").tolist() == [[4.0, 3.0, 0.0], [1.5, 1.5, 0.0]]
    assert lists.response_frequencies("responses")[1] == pytest.approx(np.full(3, 1 / 3), rel=1e-15)


def test_pairs_and_lists_of_two_say_the_same() -> None:
    pairs = bandit().sample_preferences(500, rng=0)
    block = pairs.blocks[0]
    lists = RankedLists.from_lists(block.prompt, block.responses, count=block.count, num_prompts=2, num_responses=4)
    for which in ("chosen", "rejected", "responses"):
        assert np.array_equal(lists.response_frequencies(which), pairs.response_frequencies(which))
    assert np.array_equal(lists.prompt_frequencies, pairs.prompt_frequencies) and lists.n == pairs.n
    for rule in RULES:
        assert np.array_equal(lists.to_pairs(rule, rng=0).wins(), pairs.wins())


def test_equal_lists_of_other_scores_are_not_added_up() -> None:
    lists = RankedLists.from_lists(
        [0, 0, 0], [[0, 1]] * 3, scores=[[1.0, 0.5], [1.0, 0.5], [2.0, 0.5]], num_prompts=1, num_responses=2
    )
    assert lists.scored and lists.blocks[0].count.tolist() == [2.0, 1.0]
    assert lists.blocks[0].scores is not None and lists.blocks[0].scores.tolist() == [[1.0, 0.5], [2.0, 0.5]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": [[0, 1], [0, 0]]}, r"^responses: expected different responses in a list, got list 1: \[0, 0\]"),
        (
            {"responses": [[0, 1], [0]]},
            r"^responses: expected lists of at least two.*got 1 in list 1",
        ),
        ({"responses": [[0, 1]]}, r"^responses: expected 2 lists, got 1"),
        ({"responses": [[0, 1], [0, 3]]}, r"^responses: expected indices in \[0, 2\]"),
        ({"responses": [[0, 1], [0.5, 1.5]]}, r"^responses: expected .*integers"),
        ({"responses": np.zeros(2, dtype=int)}, r"^responses: expected shape \(2, any\)"),
        ({"prompt": [0, 2]}, r"^prompt: expected indices in \[0, 1\]"),
        ({"prompt": [], "responses": []}, r"^lists: expected at least one list"),
        ({"count": [1, 0]}, r"^count: expected counts > 0"),
        ({"count": [MAX_COUNT, 1]}, r"^count: expected a total"),
        ({"scores": [[1.0, 0.0], [0.0, 1.0]]}, r"^scores: expected scores that never rise.*list 1: \[0\.0, 1\.0\]"),
        ({"scores": [[1.0, 0.0], [1.0]]}, r"^scores: expected one for each response, got 1 for the 2 responses"),
        ({"scores": [[1.0, np.nan], [1.0, 0.0]]}, r"^scores: expected finite"),
    ],
)
def test_lists_that_say_nothing_certain_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"prompt": [0, 1], "responses": [[0, 1], [1, 2]]}
    with pytest.raises(InvalidArgument, match=message):
        RankedLists.from_lists(**{**good, **change}, num_prompts=2, num_responses=3)


# --- drawing ---------------------------------------------------------------------------------------


def exact(problem: ContextualBandit, size: int) -> dict[tuple[int, ...], float]:
    """Every ranking's probability: draws until all differ, then the best of those left, one by one."""
    behavior = BEHAVIOR if problem.behavior is None else problem.behavior
    found = {}
    for x in range(2):
        total = sum(np.prod(behavior[x, list(row)]) for row in permutations(range(4), size))
        for row in permutations(range(4), size):
            # A set is drawn in any of its orders.
            chance = sum(np.prod(behavior[x, list(order)]) for order in permutations(row)) / total
            for k in range(size):
                worth = np.exp(REWARD[x, list(row[k:])])
                chance *= worth[0] / worth.sum()
            found[(x, *row)] = problem.d0[x] * chance
    return found


@pytest.mark.parametrize("size", [2, 3, 4])
def test_rankings_drawn_are_plackett_luce(size: int) -> None:
    """A million lists; chi-squared over all prompts and rankings, p above 1e-3 at a fixed seed.

    The same counts against rewards turned round are refused beyond doubt.
    """
    problem = bandit()
    found, expected = listed(problem.sample_rankings(10**6, size=size, rng=size)), exact(problem, size)
    assert sum(expected.values()) == pytest.approx(1.0, rel=1e-12)
    seen = np.array([found.get(row, 0.0) for row in expected])
    assert seen.sum() == 1e6
    assert chisquare(seen, 1e6 * np.array(list(expected.values()))).pvalue > 1e-3
    turned = np.array([expected[(row[0], *row[:0:-1])] for row in expected])
    assert chisquare(seen, 1e6 * turned).pvalue < 1e-12


def test_lists_of_two_are_bradley_terry_pairs_of_the_pair_distribution() -> None:
    """Frequencies of 10^12 draws, within 1e-5, against mu(a, b) sigma(r_a - r_b) as `sample_preferences` has them."""
    problem = bandit()
    found = problem.sample_rankings(10**12, size=2, rng=0).to_pairs("all_pairs")
    expected = 2.0 * problem.d0[:, None, None] * problem.pair_distribution() * problem.preference_probability()
    assert found.n == 1e12 and np.abs(found.wins() / 1e12 - expected).max() <= 1e-5
    pairs = np.triu(np.ones((4, 4)), 1) / 6
    named = bandit(behavior=np.stack([pairs, pairs]))
    found = named.sample_rankings(10**12, size=2, rng=0).to_pairs("all_pairs")
    expected = 2.0 * named.d0[:, None, None] * named.pair_distribution() * named.preference_probability()
    assert np.abs(found.wins() / 1e12 - expected).max() <= 1e-5


def test_a_seed_draws_the_same_lists() -> None:
    draws = [listed(bandit().sample_rankings(50, size=3, rng=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_scored_lists_are_ordered_by_their_scores() -> None:
    """Without noise scores are r* and the order is theirs, equal ones by number; with it they spread as asked."""
    clean = bandit(reward=[[0.0, 1.0, 1.0, 2.0], [1.0, 0.0, 0.2, 0.3]]).sample_rankings(
        1_000, size=3, score_noise=0.0, rng=0
    )
    assert {row[1:] for row in listed(clean) if row[0] == 0} == {(3, 1, 2), (3, 1, 0), (3, 2, 0), (1, 2, 0)}
    noisy = bandit().sample_rankings(20_000, size=3, score_noise=0.5, rng=0).blocks[0]
    assert noisy.scores is not None and (np.diff(noisy.scores, axis=1) <= 0).all() and noisy.count.sum() == 20_000
    error = noisy.scores - REWARD[noisy.prompt[:, None], noisy.responses]
    assert error.std() == pytest.approx(0.5, abs=0.01) and error.mean() == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"label_noise": 0.1}, {}, r"^problem\.label_noise: expected 0"),
        ({"behavior": np.full((2, 4, 4), 1 / 16)}, {}, r"^problem\.behavior: expected a response distribution"),
        ({"behavior": [[0.5, 0.5, 0.0, 0.0]] * 2}, {}, r"^size: expected no more responses than every prompt"),
        ({"reward": None}, {}, r"^problem\.reward: expected a known"),
        ({}, {"size": 5}, r"^size: expected an integer in \[2, 4\]"),
        ({}, {"n": 0}, r"^n: expected an integer"),
        ({}, {"score_noise": -1.0}, r"^score_noise: expected a finite number >= 0"),
        ({}, {"n": 10**9, "score_noise": 1.0}, r"^n: expected at most 1e\+07 lists"),
    ],
)
def test_lists_that_cannot_be_drawn_are_refused(change: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        bandit(**change).sample_rankings(**{"n": 10, "size": 3, "rng": 0, **options})


# --- pairs of lists ---------------------------------------------------------------------------------


def test_each_rule_by_hand() -> None:
    """Twice 3 > 1 > 0 > 2: six pairs each, one, three, or one against each of the others in turn."""
    lists = RankedLists.from_lists([0], [[3, 1, 0, 2]], count=[2], num_prompts=1, num_responses=4)
    wins = {rule: lists.to_pairs(rule, rng=0).wins()[0] for rule in RULES}
    assert {tuple(row): 2.0 for row in np.argwhere(wins["all_pairs"] == 2.0).tolist()} == dict.fromkeys(
        [(3, 1), (3, 0), (3, 2), (1, 0), (1, 2), (0, 2)], 2.0
    )
    assert wins["best_worst"][3, 2] == wins["best_worst"].sum() == 2.0
    assert [wins["adjacent"][pair] for pair in ((3, 1), (1, 0), (0, 2))] == [2.0, 2.0, 2.0]
    assert wins["adjacent"].sum() == 6.0 and wins["all_pairs"].sum() == 12.0
    assert wins["best_random"][3].sum() == wins["best_random"].sum() == 2.0


def test_the_best_meets_each_other_equally_often() -> None:
    lists = RankedLists.from_lists([0], [[3, 1, 0, 2]], count=[900_000], num_prompts=1, num_responses=4)
    wins = lists.to_pairs("best_random", rng=0).wins()[0, 3, :3]
    assert wins.sum() == 900_000 and chisquare(wins).pvalue > 1e-3


def test_rules_are_named_and_a_draw_needs_whole_counts() -> None:
    with pytest.raises(InvalidArgument, match="^rule: expected one of 'all_pairs'"):
        ragged().to_pairs("best")
    alone = RankedLists.from_lists([0, 0], [[0], [1]], scores=[[1.0], [2.0]], num_prompts=1, num_responses=2)
    assert alone.sizes == (1,) and alone.response_counts("rejected").sum() == 0
    with pytest.raises(InvalidArgument, match="^lists: expected at least two responses in each"):
        alone.to_pairs("adjacent")
    with pytest.raises(InvalidArgument, match="^rule: expected another rule for lists whose counts are not whole"):
        ragged().to_pairs("best_random", rng=0)
    assert isinstance(ragged().to_pairs("adjacent"), PreferenceCounts)
