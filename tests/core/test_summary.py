"""What results print as: a line or two with the numbers they are asked for, and the same in notebooks."""

import re
from typing import Any

import numpy as np
import pytest

import rpo
from rpo.bandit import PreferenceCounts, bounds
from rpo.core.records import Run

PROBLEM = rpo.bandit.instances.coverage_skew(arms=4, skew=1.0, rng=0)
PAIRS = PreferenceCounts.from_pairs([0, 0, 0], [0, 0, 1], [1, 1, 2], num_prompts=2, num_responses=4)
RUN = Run(
    label="a <b>",
    objective={},
    config={},
    status="completed",
    message="Trained 3 of 3 updates.",
    history=[{"step": 1, "loss": 0.5, "rewards/margins": 0.25}, {"step": 3, "loss": 0.125}],
    arrays={"big": np.zeros(10_000)},
)


def bound(n: float) -> Any:
    facts = {"coverage": 1.0, "margin_bound": 3.0, "log_covering": 5.0}
    return bounds.suboptimality_bound("hellinger", n=n, **facts)


SOLUTION = rpo.bandit.solve(PROBLEM, PROBLEM.sample_preferences(200, rng=1), rpo.RPO(beta=0.5, eta=0.1))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (PROBLEM, ["ContextualBandit", "1 prompt, 4 responses each", "R = 3"]),
        (PAIRS, ["3 comparisons", "distinct 2", "2 (1 with data)", "responses 4"]),
        (SOLUTION, ["RPO", ": certified", f"loss {SOLUTION.loss:.6g}", "relative gap", "policy 1 x 4"]),
        (RUN, ["a <b>", "completed. Trained 3 of 3 updates.", "loss 0.125", "rewards/margins 0.25", "evidence none"]),
        (bound(1e9), [f"gap <= {bound(1e9).value:.4g} with probability 0.95", "n 1e+09"]),
    ],
    ids=lambda one: type(one).__name__,
)
def test_results_print_in_a_line_or_two(made: Any, words: list[str]) -> None:
    text = repr(made)
    assert str(made) == text
    assert 1 <= len(text.splitlines()) <= 2 and len(text) < 400
    for word in words:
        assert word in text, (word, text)
    html = made._repr_html_()
    assert html.count("<tr>") == len(made.summary[1]) and "<b>" not in html
    plain = re.sub("<[^>]*>", " ", html)
    assert all(value in plain for value in made.summary[1].values())


def test_a_vacuous_bound_says_that_it_promises_nothing() -> None:
    """With three pairs the statistical term alone is far above R = 3; with a billion it is not."""
    assert bound(3.0).vacuous and not bound(1e9).vacuous
    assert "vacuous: no gap exceeds R = 3" in repr(bound(3.0)) and "<=" not in repr(bound(3.0))
    assert "vacuous" not in repr(bound(1e9))
