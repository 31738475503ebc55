"""The shipped citation counts against their published table and their published Bradley-Terry fit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from rpo.bandit.datasets import citations_path, load_citations
from rpo.bandit.maximin import solve
from rpo.bandit.reward_class import Unconstrained
from rpo.bandit.tables import bandit_from_preferences
from rpo.core.objectives import DPO

# Rows cited, columns citing, in the order of the labels; the published diagonal is left out.
TABLE = np.array([[0, 730, 498, 221], [33, 0, 68, 17], [320, 813, 0, 142], [284, 276, 325, 0]])
LABELS = ("Biometrika", "Comm Statist", "JASA", "JRSS-B")
# Printed by the R package BradleyTerry2 for these data, with Biometrika at zero.
PUBLISHED = np.array([0.0, -2.9490725, -0.4795698, 0.2689541])


def test_the_file_holds_the_published_table():
    """Stigler's counts: the cited journal wins; 730 + 498 + 221 + 33 + 68 + 17 + 320 + ... = 3727."""
    table = load_citations()
    assert citations_path().name == "citations.csv"
    assert table.counts.response_labels == LABELS
    assert np.array_equal(table.counts.wins()[0], TABLE)
    assert table.counts.n == 3727
    assert table.dropped == {}


def independent_fit(wins: np.ndarray) -> np.ndarray:
    """Maximise the Bradley-Terry likelihood sum n_ij log(a_i / (a_i + a_j)), a = exp(r), r_0 = 0."""

    def negative_log_likelihood(free: np.ndarray) -> float:
        ability = np.exp(np.concatenate([[0.0], free]))
        return -float((wins * np.log(ability[:, None] / (ability[:, None] + ability[None, :]))).sum()) / wins.sum()

    result = minimize(
        negative_log_likelihood, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14}
    )
    return np.concatenate([[0.0], result.x])


def test_an_independent_fit_reproduces_the_published_one():
    """Counts from the file, likelihood written out here; read the wrong way round, every sign would flip."""
    fit = independent_fit(load_citations().counts.wins()[0])
    assert fit == pytest.approx(PUBLISHED, abs=1e-5)
    assert independent_fit(TABLE.T)[1:] == pytest.approx(-PUBLISHED[1:], abs=1e-5)


def test_the_solver_reproduces_the_published_fit():
    """DPO, unconstrained: the reward is the maximum-likelihood one, up to a constant."""
    counts = load_citations().counts
    problem = bandit_from_preferences(counts, name="citations")
    solution = solve(problem, counts, DPO(beta=1.0, base="reference"), reward_class=Unconstrained())
    assert solution.status == "certified"
    assert solution.reward[0] - solution.reward[0, 0] == pytest.approx(PUBLISHED, abs=1e-5)
