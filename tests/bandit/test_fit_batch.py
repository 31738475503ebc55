"""Any objective fitted on many instances at once: the single fit's answer where there is one, stationary elsewhere."""

from typing import Any

import numpy as np
import pytest
import torch

import rpo
from rpo.bandit import Box, ContextualBandit, LinearBall, RankedLists, Unconstrained, instances, solve, solve_batch
from rpo.bandit.batched.fitting import fit_batch, is_fit_batchable
from rpo.bandit.solver.saddle import build_saddle
from rpo.core.columns import Columns
from rpo.core.objectives import Objective

SEEDS = 5


def draws(problem: ContextualBandit, n: int) -> list[Any]:
    return [problem.sample_preferences(n, rng=seed) for seed in range(SEEDS)]


def batch(problem: ContextualBandit, data: list[Any], objective: Objective, design: Any = None) -> Any:
    return fit_batch([build_saddle(problem, one, objective, Unconstrained()) for one in data], design=design)


@pytest.mark.parametrize(
    "objective", [rpo.CPL(), rpo.ASFT(), rpo.GammaDPO(beta=0.5, gamma=0.5), rpo.CPO(beta=0.5), rpo.NCA(beta=0.5)]
)
@pytest.mark.parametrize("linear", [False, True])
def test_the_batch_ends_where_the_single_fit_does(objective: Objective, linear: bool) -> None:
    """Losses with one minimum or infimum: equal to 1e-8, policies to 1e-6, over three prompts that share features."""
    problem = instances.random(prompts=3, arms=5, features=4, rng=0)
    data = draws(problem, 300)
    found = batch(problem, data, objective, problem.features if linear else None)
    assert found.gradient.max() <= 1e-10
    for seed, pairs in enumerate(data):
        policy = problem.linear_softmax_policy() if linear else problem.softmax_policy()
        run = rpo.fit(policy, pairs, objective, proxy_reward=None, max_steps=3000)
        mine = np.exp(policy.with_parameters(found.parameters[seed]).logps)
        assert found.loss[seed] == pytest.approx(run.loss, abs=1e-8)
        assert mine == pytest.approx(run.policy, abs=1e-5)


@pytest.mark.parametrize("objective", [rpo.ORPO(), rpo.EXO(beta=0.5), rpo.DiscoPOP(beta=0.5), rpo.APOZero(beta=0.5)])
def test_a_loss_that_is_not_convex_ends_where_autograd_finds_no_slope(objective: Objective) -> None:
    problem = instances.coverage_skew(arms=6, skew=0.5, rng=1)
    data = draws(problem, 200)
    found = batch(problem, data, objective)
    start = batch(problem, data, objective).loss  # the same draws, the same ends
    assert np.array_equal(start, found.loss)
    for seed, pairs in enumerate(data):
        t = torch.tensor(found.parameters[seed], requires_grad=True)
        logps = (torch.tensor(problem.log_reference) + t).log_softmax(-1)[0]
        reference = torch.tensor(problem.log_reference[0])
        ends = (pairs.chosen, pairs.rejected)
        one = torch.ones(len(pairs.chosen), dtype=torch.float64)
        columns = Columns(
            logps=tuple(logps[end] for end in ends), reference=tuple(reference[end] for end in ends), lengths=(one, one)
        )
        base = torch.tensor(pairs.response_frequencies("chosen")[0]) @ logps
        loss = objective.loss(columns, base[None], torch.tensor(pairs.weights), torch.ones(1, dtype=torch.float64))[0]
        loss.backward()
        assert float(loss.detach()) == pytest.approx(found.loss[seed], rel=1e-12)
        assert float(t.grad.abs().max()) <= 1e-9


@pytest.mark.parametrize("objective", [rpo.ListNCA(beta=0.5), rpo.PlackettLuceDPO(beta=0.5), rpo.ListEXO(beta=0.5)])
def test_lists_of_several_sizes_end_where_the_single_fit_does(objective: Objective) -> None:
    """Lists of 2, 3 and 4 with scores, not of the same sizes on every draw, over two prompts: losses equal to 1e-9."""
    problem = instances.random(prompts=2, arms=5, rng=0)
    data = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        responses = [list(rng.permutation(5)[: 2 + k % (2 + seed % 2)]) for k in range(60)]
        scores = [sorted(rng.normal(size=len(each)), reverse=True) for each in responses]
        given = {"num_prompts": 2, "num_responses": 5, "scores": scores}
        data.append(RankedLists.from_lists(rng.integers(2, size=60), responses, **given))
    assert {one.sizes for one in data} == {(2, 3), (2, 3, 4)}
    found = batch(problem, data, objective)
    for seed, ranked in enumerate(data):
        run = rpo.fit(problem.softmax_policy(), ranked, objective, proxy_reward=None, max_steps=3000)
        assert found.gradient[seed] <= 1e-9 and found.loss[seed] == pytest.approx(run.loss, abs=1e-9)


def test_responses_without_reference_mass_are_left_out() -> None:
    problem = instances.coverage_skew(arms=4, skew=0.0, rng=2)
    reference = np.array([[0.5, 0.3, 0.2, 0.0]])
    narrow = ContextualBandit(d0=problem.d0, reference=reference, reward=problem.reward, reward_bound=3.0)
    data = draws(narrow, 60)
    found = batch(narrow, data, rpo.NCA(beta=0.5))
    assert np.isfinite(found.loss).all() and found.gradient.max() <= 1e-10


def test_a_penalty_of_another_divergence_is_for_the_single_fit() -> None:
    assert not is_fit_batchable(rpo.FRPO(beta=0.1, eta=0.1, divergence=rpo.core.divergences.ChiSquaredKL()))
    assert is_fit_batchable(rpo.ORPO()) and is_fit_batchable(rpo.FDPO())


@pytest.mark.parametrize("objective", [rpo.SLiC(beta=0.3), rpo.SLiC(beta=1.0, sft_weight=0.05)])
@pytest.mark.parametrize("kind", ["box", "unconstrained", "ball"])
def test_a_hinge_is_certified_on_many_instances_as_on_one(objective: Objective, kind: str) -> None:
    """Both certified as the true hinge: values within the sum of their gaps, existence alike."""
    problem = instances.random(prompts=1, arms=6, features=3, reward_bound=3.0, rng=3)
    classes = {"box": Box(3.0), "unconstrained": Unconstrained(), "ball": LinearBall(problem.features, 2.0)}
    data = draws(problem, 60)
    found = solve_batch(
        np.stack([one.wins() for one in data]), objective, reference=problem.reference, reward_class=classes[kind]
    )
    for seed, pairs in enumerate(data):
        if not found.exists[seed]:
            with pytest.raises(rpo.core.errors.NoMinimizer):
                solve(problem, pairs, objective, reward_class=classes[kind], method="newton")
            continue
        one = solve(problem, pairs, objective, reward_class=classes[kind], method="newton")
        assert found.certified[seed] and one.status == "certified"
        gaps = found.gap[seed] + one.certificate.gap + 1e-12
        assert abs(found.value[seed] - one.certificate.reward_value) <= gaps
