"""Win counts: round trips, tables counted by hand, and refusals that name the argument."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rpo.bandit.data import MAX_COUNT, PreferenceCounts
from rpo.bandit.maximin import solve
from rpo.bandit.problem import ContextualBandit
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import RPO

# Prompt 0: response 0 beats 1 twice, 1 beats 0 once, 2 beats 1 once. Prompt 1: none. Prompt 2: 1 beats 2.
PAIRS = [(0, 0, 1), (2, 1, 2), (0, 1, 0), (0, 0, 1), (0, 2, 1)]


def counted(**more: Any) -> PreferenceCounts:
    prompt, chosen, rejected = np.array(PAIRS).T
    return PreferenceCounts.from_pairs(prompt, chosen, rejected, num_prompts=3, num_responses=3, **more)


def test_equal_pairs_are_added_up() -> None:
    """Five pairs, four distinct; the one that occurs twice has count 2."""
    data = counted()
    got = sorted(zip(data.prompt, data.chosen, data.rejected, data.count, strict=True))
    assert got == [(0, 0, 1, 2.0), (0, 1, 0, 1.0), (0, 2, 1, 1.0), (2, 1, 2, 1.0)]
    assert data.n == 5.0 and data.weights.sum() == pytest.approx(1.0)


def test_pairs_round_trip_up_to_order() -> None:
    back = sorted(zip(*(v.tolist() for v in counted().to_pairs()), strict=True))
    assert back == sorted(PAIRS)


def test_wins_are_the_dense_table_and_round_trip() -> None:
    table = np.zeros((3, 3, 3))
    for x, w, lost in PAIRS:
        table[x, w, lost] += 1
    assert (counted().wins() == table).all()
    again = PreferenceCounts.from_wins(table)
    for name in ("prompt", "chosen", "rejected", "count"):
        assert (getattr(again, name) == getattr(counted(), name)).all()
    assert (again.num_prompts, again.num_responses) == (3, 3)


def test_counts_given_explicitly_equal_pairs_repeated() -> None:
    data = PreferenceCounts.from_pairs(
        [0, 0, 0, 0, 2], [0, 1, 2, 0, 1], [1, 0, 1, 1, 2], count=[1.5, 1, 1, 0.5, 1], num_prompts=3, num_responses=3
    )
    assert (data.wins() == counted().wins()).all()


def test_response_frequencies_by_hand() -> None:
    """Prompt 0 has four pairs: chosen 0,0,1,2; rejected 1,1,0,1; so responses 0: 3/8, 1: 4/8, 2: 1/8."""
    data = counted()
    assert data.response_frequencies("chosen") == pytest.approx(np.array([[0.5, 0.25, 0.25], [0, 0, 0], [0, 1, 0]]))
    assert data.response_frequencies("rejected") == pytest.approx(np.array([[0.25, 0.75, 0], [0, 0, 0], [0, 0, 1]]))
    either = np.array([[0.375, 0.5, 0.125], [0, 0, 0], [0, 0.5, 0.5]])
    assert data.response_frequencies("responses") == pytest.approx(either)


def test_prompt_frequencies_by_hand() -> None:
    assert counted().prompt_frequencies == pytest.approx([0.8, 0.0, 0.2])


def test_counting_the_same_data_in_pieces_changes_no_solution(make_bandit: Callable[..., ContextualBandit]) -> None:
    """Half counts listed twice, or all counts times 1000, give the same policy; one more win does not."""
    problem = make_bandit(0, prompts=3, arms=3)
    whole = counted()
    pieces = PreferenceCounts(
        prompt=np.tile(whole.prompt, 2),
        chosen=np.tile(whole.chosen, 2),
        rejected=np.tile(whole.rejected, 2),
        count=np.tile(whole.count / 2, 2),
        num_prompts=3,
        num_responses=3,
    )
    thousandfold = PreferenceCounts.from_wins(1000 * whole.wins())
    altered = whole.wins()
    altered[0, 1, 0] += 1
    objective = RPO(beta=0.3, eta=0.1)
    policies = [
        solve(problem, d, objective, method="newton").policy
        for d in (whole, pieces, thousandfold, PreferenceCounts.from_wins(altered))
    ]
    assert policies[1] == pytest.approx(policies[0], abs=1e-9)
    assert policies[2] == pytest.approx(policies[0], abs=1e-9)
    assert np.abs(policies[3] - policies[0]).max() > 1e-3


def test_a_trillion_preferences_are_held_exactly() -> None:
    wins = np.zeros((1, 2, 2))
    wins[0, 0, 1], wins[0, 1, 0] = MAX_COUNT - 1, 1
    data = PreferenceCounts.from_wins(wins)
    assert data.n == MAX_COUNT and data.count.tolist() == [MAX_COUNT - 1, 1]
    wins[0, 1, 0] = 2
    with pytest.raises(InvalidArgument, match=r"^count: expected a total <= 1e\+12"):
        PreferenceCounts.from_wins(wins)


def test_split_ties_are_kept_but_cannot_become_pairs() -> None:
    wins = np.zeros((1, 2, 2))
    wins[0, 0, 1] = wins[0, 1, 0] = 0.5
    assert PreferenceCounts.from_wins(wins).n == 1.0
    with pytest.raises(InvalidArgument, match=r"^counts: expected whole counts"):
        PreferenceCounts.from_wins(wins).to_pairs()


def test_too_many_counts_cannot_become_pairs() -> None:
    wins = np.zeros((1, 2, 2))
    wins[0, 0, 1] = 10**7 + 1
    with pytest.raises(InvalidArgument, match=r"^counts: .*at most 1e"):
        PreferenceCounts.from_wins(wins).to_pairs()


def test_counts_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        counted().num_prompts = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"rejected": [0, 1]}, "rejected"),
        ({"prompt": [], "chosen": [], "rejected": []}, "pairs"),
        ({"prompt": [0, 2]}, "prompt"),
        ({"prompt": [0, -1]}, "prompt"),
        ({"chosen": [0, 3]}, "chosen"),
        ({"rejected": [1, 3]}, "rejected"),
        ({"chosen": [0.0, 1.0]}, "chosen"),
        ({"chosen": ["a", "b"]}, "chosen"),
        ({"chosen": [True, False]}, "chosen"),
        ({"prompt": [[0, 0]]}, "prompt"),
        ({"chosen": [0]}, "chosen"),
        ({"rejected": [1, 2, 1]}, "rejected"),
        ({"count": [1.0]}, "count"),
        ({"count": [1.0, 0.0]}, "count"),
        ({"count": [1.0, -1.0]}, "count"),
        ({"count": [1.0, np.nan]}, "count"),
        ({"num_responses": 1}, "num_responses"),
        ({"num_prompts": 0}, "num_prompts"),
        ({"num_prompts": 1.5}, "num_prompts"),
        ({"num_prompts": 10**8}, "num_prompts, num_responses"),
        ({"prompt_labels": ("a",)}, "prompt_labels"),
        ({"response_labels": ("a", "b")}, "response_labels"),
    ],
)
def test_from_pairs_refuses_and_names_the_argument(keywords: dict[str, Any], name: str) -> None:
    good = {"prompt": [0, 1], "chosen": [0, 1], "rejected": [1, 2], "num_prompts": 2, "num_responses": 3}
    with pytest.raises(InvalidArgument, match=f"^{name}: expected"):
        PreferenceCounts.from_pairs(**{**good, **keywords})


def test_a_response_against_itself_is_located_and_counted() -> None:
    with pytest.raises(InvalidArgument, match=r"response 2 against itself at pair 1 \(2 such pairs\)"):
        PreferenceCounts.from_pairs([0, 0, 0], [0, 2, 1], [1, 2, 1], num_prompts=1, num_responses=3)


@pytest.mark.parametrize(
    ("wins", "name"),
    [
        (np.zeros((1, 2, 3)), "wins"),
        (np.zeros((2, 2)), "wins"),
        (-np.ones((1, 2, 2)), "wins"),
        (np.full((1, 2, 2), np.nan), "wins"),
        (np.ones((1, 2, 2)), "rejected"),
        (np.zeros((1, 2, 2)), "pairs"),
    ],
)
def test_from_wins_refuses_and_names_the_argument(wins: Any, name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{name}: expected"):
        PreferenceCounts.from_wins(wins)


def test_responses_are_numbered_prompt_by_prompt() -> None:
    """Prompt 0 holds responses 1 and 4, prompt 1 none, prompt 2 holds 0, 1 and 3: numbered 0, 1 and 0, 1, 2."""
    labels = ("a", "b", "c", "d", "e")
    counts = PreferenceCounts.from_pairs(
        [0, 0, 2, 2], [4, 1, 0, 3], [1, 4, 3, 1], count=[2, 1, 1, 1], num_prompts=3, num_responses=5,
        response_labels=labels,
    )  # fmt: skip
    own = counts.per_prompt()
    assert own.num_responses == 3
    assert list(zip(own.prompt, own.chosen, own.rejected, own.count, strict=True)) == [
        (0, 0, 1, 1.0), (0, 1, 0, 2.0), (2, 0, 2, 1.0), (2, 2, 1, 1.0),
    ]  # fmt: skip
    assert own.own_labels == (("b", "e"), (), ("a", "b", "d"))
    assert own.response_labels is None
    assert own.per_prompt() is own


def test_tables_that_do_not_fit_are_refused_before_they_are_made() -> None:
    """6,000 prompts with two texts of their own each: 6,000 x 12,000 is 0.6 GB, and 6,000 x 2 is nothing."""
    x = np.arange(6000)
    counts = PreferenceCounts.from_pairs(x, 2 * x, 2 * x + 1, num_prompts=6000, num_responses=12000)
    with pytest.raises(InvalidArgument, match=r"^counts: expected a table .* 6000 x 12000, 0.6 GB.*per_prompt\(\)"):
        counts.response_counts("chosen")
    with pytest.raises(InvalidArgument, match=r"^counts: expected a table .* 6000 x 12000 x 12000, 6912.0 GB"):
        counts.wins()
    assert counts.per_prompt().response_counts("responses").shape == (6000, 2)
    with pytest.raises(InvalidArgument, match=r"^num_prompts, num_responses: .*X = 50000000, A = 1000000"):
        PreferenceCounts.from_pairs([0], [0], [1], num_prompts=50_000_000, num_responses=1_000_000)
    many = ContextualBandit(d0=[1.0], reference=np.full((1, 8000), 1 / 8000))
    with pytest.raises(InvalidArgument, match=r"^problem: expected a table of at most .*1 x 8000 x 8000, 0.5 GB"):
        many.pair_distribution()


def test_response_frequencies_refuse_an_unknown_kind() -> None:
    with pytest.raises(InvalidArgument, match=r"^which: expected one of 'chosen', 'rejected', 'responses'"):
        counted().response_frequencies("all")
