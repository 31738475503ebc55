"""Existence of a minimiser against an enumeration of recession directions, and against descent.

F(r) = sum_k w_k softplus(-(r_w - r_l)) + eta (beta log sum pi_ref exp(r / beta) - <base, r>), one prompt.
"""

import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from rpo.bandit.data import PreferenceCounts
from rpo.bandit.reward_class import Unconstrained
from rpo.bandit.solver.existence import comparison_components, minimizer_exists
from rpo.bandit.solver.saddle import Saddle, build_saddle
from rpo.bandit.tables import bandit_from_preferences
from rpo.core.objectives import RPO


def brute_force(wins: Any, base: Any, support: Any, eta: float) -> bool:
    """Enumerate d in {0, 1}^A on the support of pi_ref.

    F is convex and analytic, so a minimum is attained iff every direction d along which F does not
    grow is one along which it is constant (Rockafellar 1970, Theorem 27.1; along a half-line from a
    minimiser F is constant, hence on the whole line). The slopes of F at infinity along d are
    sum_k w_k max(0, d_l - d_w) and, times eta, max_supp d - <base, d>. Both are <= 0 iff
    d_w >= d_l for every win and d = max d on supp(base). F is constant iff both also hold for -d:
    all of d equal for eta > 0; d_w = d_l for every win for eta = 0 (where only the first slope counts).
    0/1 vectors suffice: the conditions only compare entries, so the indicator of {d >= t} meets
    them too, and some threshold t (max d; or between d_l and d_w) keeps the violation.
    """
    arms = np.flatnonzero(support)
    pairs = [(w, lost) for w, lost in zip(*np.nonzero(wins), strict=True)]
    for bits in itertools.product((0, 1), repeat=arms.size):
        d = np.zeros(len(support))
        d[arms] = bits
        if any(d[w] < d[lost] for w, lost in pairs):
            continue
        if eta > 0:
            if (d[base > 0] == d[arms].max()).all() and d[arms].min() < d[arms].max():
                return False
        elif any(d[w] > d[lost] for w, lost in pairs):
            return False
    return True


def random_graph(rng: np.random.Generator, full_support: bool = False) -> tuple[Any, Any, Any]:
    """Wins (A, A), base and reference with random supports, base within the reference's; A = 2..4."""
    a = int(rng.integers(2, 5))
    while True:
        reference = np.where((rng.uniform(size=a) < 0.8) | full_support, rng.uniform(0.5, 1.0, size=a), 0.0)
        base = np.where(rng.uniform(size=a) < 0.5, reference, 0.0)
        wins = np.where(rng.uniform(size=(a, a)) < rng.uniform(0.1, 0.7), 1.0, 0.0) * (1 - np.eye(a))
        wins *= (reference > 0)[:, None] * (reference > 0)[None, :]
        if wins.sum() and base.sum():
            return wins, base / base.sum(), reference / reference.sum()


@pytest.mark.parametrize("eta", [0.1, 0.0])
def test_existence_agrees_with_enumerated_recession_directions(make_saddle: Callable[..., Saddle], eta: float) -> None:
    """400 random graphs of two to four responses; both answers are common."""
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(400):
        wins, base, reference = random_graph(rng)
        s = make_saddle(wins[None], eta=eta, base=base[None], reference=reference[None])
        answers.append(brute_force(wins, base, reference > 0, eta))
        assert minimizer_exists(s).exists == answers[-1], (wins, base, reference)
    assert min(sum(answers), 400 - sum(answers)) > 60


@pytest.mark.parametrize("eta", [0.3, 0.0])
def test_existence_agrees_with_descent_in_a_growing_box(make_saddle: Callable[..., Saddle], eta: float) -> None:
    """L-BFGS-B from zero within |r - mean| of 4 and 8: the spread follows the wall iff nothing exists.

    24 graphs with beta = 1 and pi_ref of full support. F is written out here.
    """
    rng = np.random.default_rng(1)
    answers = []
    while len(answers) < 24:
        wins, base, reference = random_graph(rng, full_support=True)
        answer = brute_force(wins, base, reference > 0, eta)
        if answers.count(answer) == 12:
            continue
        answers.append(answer)
        s = make_saddle(wins[None], eta=eta, beta=1.0, base=base[None], reference=reference[None])
        assert minimizer_exists(s).exists == answer
        weights = wins / wins.sum()

        def f(r: Any, n: Any = weights, b: Any = base, q: Any = reference) -> tuple[float, Any]:
            z = r[:, None] - r[None, :]
            lose = n / (1.0 + np.exp(z))
            policy = q * np.exp(r)
            total = policy.sum()
            slope = -lose.sum(axis=1) + lose.sum(axis=0) + eta * (policy / total - b)
            return float((n * np.logaddexp(0.0, -z)).sum() + eta * (np.log(total) - b @ r)), slope

        spread = []
        for wall in (4.0, 8.0):
            options = {"maxiter": 5000, "maxfun": 20000, "ftol": 0.0, "gtol": 1e-9}
            r = minimize(f, np.zeros(len(base)), jac=True, bounds=[(-wall, wall)] * len(base), options=options).x
            spread.append(np.abs(r - r.mean()).max())
        if answer:
            assert spread[1] == pytest.approx(spread[0], abs=1e-3) and spread[1] < 6.0
        else:
            assert spread[1] > spread[0] + 1.5


def test_chain_of_wins_down_to_the_base_is_enough(make_saddle: Callable[..., Saddle]) -> None:
    """2 beats 1 beats 0 and only 0 is in the base: exists; with one win turned round it does not."""
    base = np.array([[1.0, 0.0, 0.0]])
    chain = [[[0, 0, 0], [1, 0, 0], [0, 1, 0]]]
    assert minimizer_exists(make_saddle(chain, base=base)).exists
    for wins in ([[[0, 1, 0], [0, 0, 0], [0, 1, 0]]], [[[0, 0, 0], [1, 0, 1], [0, 0, 0]]]):
        assert not minimizer_exists(make_saddle(wins, base=base)).exists


def test_refusal_names_the_prompt_and_the_response(make_saddle: Callable[..., Saddle]) -> None:
    """At prompt 1 response 2 never won and pi_base (chosen) gives it nothing; prompt 0 is fine."""
    wins = np.zeros((2, 3, 3))
    wins[0, 0, 1] = wins[0, 1, 2] = wins[0, 2, 0] = wins[1, 0, 1] = wins[1, 1, 0] = wins[1, 1, 2] = 1
    answer = minimizer_exists(make_saddle(wins))
    assert not answer.exists and "prompt 1: response 2 has no mass under pi_base" in answer.reason
    wins[1, 2, 0] = 1
    assert minimizer_exists(make_saddle(wins)).exists


def test_refusal_at_eta_zero_names_the_prompt_and_both_responses(make_saddle: Callable[..., Saddle]) -> None:
    """At prompt 1 response 0 beat 2 and nothing leads back; 0 and 1 beat each other."""
    wins = np.zeros((2, 3, 3))
    wins[0, 0, 1] = wins[0, 1, 0] = wins[1, 0, 1] = wins[1, 1, 0] = wins[1, 0, 2] = 1
    answer = minimizer_exists(make_saddle(wins, eta=0.0))
    assert not answer.exists and "prompt 1: responses 0 and 2 were compared" in answer.reason
    wins[1, 2, 1] = 1
    assert minimizer_exists(make_saddle(wins, eta=0.0)).exists


def test_prompt_without_penalty_needs_the_condition_of_eta_zero(make_saddle: Callable[..., Saddle]) -> None:
    """d0 = (1, 0) with population weights: a one-sided prompt 1 has no minimiser though pi_base is full."""
    wins = np.zeros((2, 2, 2))
    wins[0, 0, 1] = wins[1, 0, 1] = 1
    kinds = {"prompt_weights": "population", "base": "reference"}
    answer = minimizer_exists(make_saddle(wins, d0=[1.0, 0.0], **kinds))
    assert not answer.exists and answer.reason.startswith("prompt 1: responses 0 and 1")
    assert minimizer_exists(make_saddle(wins, d0=[0.5, 0.5], **kinds)).exists


def test_prompt_without_data_does_not_spoil_existence(make_saddle: Callable[..., Saddle]) -> None:
    """It takes pi_base = pi_ref: fine under either weighting; response 1 of prompt 0 must still win once."""
    wins = np.zeros((2, 2, 2))
    wins[0, 0, 1] = wins[0, 1, 0] = 1
    for weighting in ("data", "population"):
        assert minimizer_exists(make_saddle(wins, prompt_weights=weighting)).exists
    wins[0, 1, 0] = 0
    assert not minimizer_exists(make_saddle(wins)).exists


def test_memory_follows_the_data_and_not_the_square_of_the_responses() -> None:
    """500 prompts with two texts of their own: a table of wins over all 1,000 texts would take 500 MB."""
    x = np.arange(500)
    data = PreferenceCounts.from_pairs(
        np.repeat(x, 2), np.stack([2 * x, 2 * x + 1], 1).ravel(), np.stack([2 * x + 1, 2 * x], 1).ravel(),
        num_prompts=500, num_responses=1000,
    )  # fmt: skip
    problem = bandit_from_preferences(data)
    tracemalloc.start()
    for eta, base in ((0.1, "chosen"), (0.0, "chosen"), (0.1, "reference")):
        assert minimizer_exists(build_saddle(problem, data, RPO(beta=1.0, eta=eta, base=base), Unconstrained())).exists
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_the_first_stranded_pair_is_named_in_a_larger_component(make_saddle: Callable[..., Saddle]) -> None:
    """0 is alone; 1 -> 3 -> 1 is strong; 2 -> 3 leads nowhere back: the first two apart are 1 and 2."""
    wins = np.zeros((1, 4, 4))
    wins[0, 1, 3] = wins[0, 3, 1] = wins[0, 2, 3] = 1
    assert minimizer_exists(make_saddle(wins, eta=0.0)).responses == (1, 2)


def test_comparison_components_by_hand() -> None:
    """0-2 and 1-3-4 are linked, 5 is alone; the direction of a win does not matter."""
    wins = np.zeros((6, 6), dtype=bool)
    wins[2, 0] = wins[1, 3] = wins[4, 3] = True
    groups = [set(np.flatnonzero(comparison_components(wins) == c)) for c in range(3)]
    assert sorted(groups, key=min) == [{0, 2}, {1, 3, 4}, {5}]
