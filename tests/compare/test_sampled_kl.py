"""Sampled KL against the exact one: the stated interval covers as often as it says, and not where it must not."""

import numpy as np
import pandas
import pytest

from rpo.bandit import ContextualBandit, PreferenceCounts
from rpo.bandit.bounds import clopper_pearson
from rpo.compare import EnumerableLM, fit_language_model, tiny_gpt2
from rpo.compare.sampled_kl import exact_kl, kl_coverage
from rpo.core.objectives import DPO

Small = tuple[EnumerableLM, ContextualBandit, PreferenceCounts]


@pytest.fixture(scope="module")
def trained(small: Small) -> EnumerableLM:
    lm, problem, data = small
    return fit_language_model(lm, data, DPO(beta=0.3), problem=problem, steps=60, log_every=60, progress=False).artifact


def shares(frame: pandas.DataFrame) -> dict[str, tuple[int, int]]:
    return {str(name): (int(rows["covered"].sum()), len(rows)) for name, rows in frame.groupby("estimator")}


def test_the_exact_kl_is_the_tables(small: Small, trained: EnumerableLM) -> None:
    policy, reference = trained.policy(), small[0].policy()
    assert exact_kl(trained, small[0]) == pytest.approx((policy * np.log(policy / reference)).sum(1).mean(), rel=1e-12)
    assert exact_kl(trained, small[0]) > 0.05


def test_the_interval_covers_within_binomial_error_and_a_wrong_reference_is_found_out(
    small: Small, trained: EnumerableLM
) -> None:
    """100 intervals at 95 %: their share's 99.9 % interval holds 0.95. Against another reference it is far below."""
    frame = kl_coverage(trained, small[0], draws=64, repetitions=100, rng=0)
    for name, (covered, trials) in shares(frame).items():
        found = clopper_pearson(covered, trials, level=0.999)
        assert found.low <= 0.95 <= found.high, (name, found)
    other = tiny_gpt2(prompts=2, vocab_size=3, length=2, spread=2.0, rng=99)
    wrong = kl_coverage(trained, other, draws=64, repetitions=20, exact=exact_kl(trained, small[0]), rng=0)
    assert all(covered <= 5 for covered, _ in shares(wrong).values())


def test_the_prefix_estimator_varies_less_and_says_so(small: Small, trained: EnumerableLM) -> None:
    frame = kl_coverage(trained, small[0], draws=64, repetitions=20, rng=1)
    estimates = frame.pivot(index="repetition", columns="estimator", values="estimate")
    assert estimates["prefix"].std() < estimates["plain"].std()
    errors = frame.groupby("estimator")["standard_error"].mean()
    assert errors["prefix"] < errors["plain"]


def test_the_reference_keeps_its_gradients(small: Small, trained: EnumerableLM) -> None:
    kl_coverage(trained, small[0], draws=4, repetitions=1, rng=0)
    assert all(parameter.requires_grad for parameter in small[0].model.parameters())
