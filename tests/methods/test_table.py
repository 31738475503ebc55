"""Every method on a table: derivatives by differences, optima by closed forms and by another optimiser."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit

import rpo
from rpo.bandit import ContextualBandit, PreferenceCounts, fit, instances, solve
from rpo.bandit.reward_class import Unconstrained
from rpo.bandit.solver.saddle import build_saddle
from rpo.bandit.table_loss import TableLoss
from rpo.core.checks import Array
from rpo.core.columns import Columns
from rpo.core.divergences import Alpha, ChiSquaredKL, Divergence, ForwardKL, JensenShannon
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO, Objective
from rpo.methods import registry

GIVEN = {
    "RPO": {"beta": 0.5, "eta": 0.2, "base": "reference"},
    "FRPO": {"beta": 0.5, "eta": 0.2, "base": "reference"},
    "DPO": {"beta": 0.5},
    "RDPO": {"alpha": 0.1},
    "GammaDPO": {"gamma": 0.6},
}
ALL = {name: method.load()(**GIVEN.get(name, {})) for name, method in registry.METHODS.items()}
METHODS = {name: one for name, one in ALL.items() if one.needs <= {"reference", "lengths"}}


@pytest.fixture(scope="module")
def problem() -> ContextualBandit:
    return instances.random(prompts=2, arms=4, rng=3)


@pytest.fixture(scope="module")
def pairs(problem: ContextualBandit) -> PreferenceCounts:
    """Enough comparisons that every response of a prompt has beaten every other."""
    return problem.sample_preferences(4_000, rng=4)


def loss_of(problem: ContextualBandit, pairs: PreferenceCounts, objective: Objective) -> TableLoss:
    saddle = build_saddle(problem, pairs, objective, Unconstrained())
    return TableLoss(saddle, problem.softmax_policy())


@pytest.mark.parametrize("name", METHODS)
def test_derivatives_agree_with_differences(problem: ContextualBandit, pairs: PreferenceCounts, name: str) -> None:
    """Central differences of the loss and of its gradient, at a random table."""
    if name == "SLiC":  # away from the kink of its hinge
        METHODS[name] = rpo.SLiC(beta=0.1, delta=2.0, sft_weight=0.1)
    function = loss_of(problem, pairs, METHODS[name])
    at, step = np.random.default_rng(0).normal(scale=0.5, size=8), 1e-5
    value, gradient, hessian = function.derivatives(at)
    assert value == pytest.approx(float(function.saddle.loss(logps(problem, at))[0]), rel=1e-13)
    by_value, by_slope = np.empty(8), np.empty((8, 8))
    for k in range(8):
        up, down = (function.derivatives(at + sign * step * np.eye(8)[k]) for sign in (1, -1))
        by_value[k] = (up[0] - down[0]) / (2 * step)
        by_slope[k] = (up[1] - down[1]) / (2 * step)
    assert gradient == pytest.approx(by_value, abs=1e-8)
    assert hessian == pytest.approx(by_slope, abs=1e-7)


def logps(problem: ContextualBandit, parameters: Array) -> Array:
    return problem.softmax_policy().with_parameters(parameters.reshape(problem.reference.shape)).logps


@pytest.mark.parametrize("name", sorted(ALL.keys() - METHODS.keys()))
def test_what_a_table_does_not_have_is_refused_by_name(
    problem: ContextualBandit, pairs: PreferenceCounts, name: str
) -> None:
    why = rf"^objective: .*a table has no batches and no scores, got {name} .*reads"
    with pytest.raises(InvalidArgument, match=why):
        fit(problem.softmax_policy(), pairs, ALL[name])
    with pytest.raises(InvalidArgument, match=r"^objective: expected (an objective whose maximin|a loss of log-prob)"):
        solve(problem, pairs, ALL[name], reward_class=Unconstrained())


@pytest.mark.parametrize("name", METHODS)
def test_declared_convexity_in_the_logits_is_seen_in_the_hessian(
    problem: ContextualBandit, pairs: PreferenceCounts, name: str
) -> None:
    """No eigenvalue below zero at 200 random tables where the loss is said to be convex there."""
    function, rng = loss_of(problem, pairs, METHODS[name]), np.random.default_rng(1)
    least = min(
        np.linalg.eigvalsh(function.derivatives(rng.normal(scale=s, size=8))[2])[0]
        for s in (0.3, 1.0, 3.0, 10.0)
        for _ in range(50)
    )
    if METHODS[name].convex_in_logits:
        assert least >= -1e-9


def plug_in(reward: Array, reference: Array, beta: float, f: Divergence) -> Array:
    """argmax <pi, r> - beta D_f(pi || pi_ref) of one prompt, by bracketing the normaliser."""
    low = max(reward.min(), reward.max() - beta * f.top * (1 - 1e-12)) if np.isfinite(f.top) else reward.min()
    z = brentq(lambda z: reference @ f.ratio((reward - z) / beta)[0] - 1, low, reward.max(), xtol=1e-15)
    return reference * f.ratio((reward - z) / beta)[0]


@pytest.mark.parametrize("f", [ForwardKL(), JensenShannon(), Alpha(0.4), ChiSquaredKL()], ids=repr)
def test_another_divergence_is_the_same_reward_under_another_plug_in(
    problem: ContextualBandit, pairs: PreferenceCounts, f: Divergence
) -> None:
    """The pair loss fits one maximum-likelihood reward whatever f is; the policy is its plug-in."""
    reward = solve(problem, pairs, DPO(beta=1.0, base="reference"), reward_class=Unconstrained()).reward
    objective = rpo.ChiPO(beta=0.8) if isinstance(f, ChiSquaredKL) else rpo.FDPO(beta=0.8, divergence=f)
    run = fit(problem.softmax_policy(), pairs, objective, tolerance=1e-9)
    expected = np.stack([plug_in(r, rho, 0.8, f) for r, rho in zip(reward, problem.reference, strict=True)])
    assert run.status == "converged" and run.evidence == "certified"
    assert np.abs(run.policy - expected).max() <= 1e-6


def test_ipo_is_one_laplacian_solve(problem: ContextualBandit, pairs: PreferenceCounts) -> None:
    """Stationarity of sum n (h_w - h_l - 1/(2 tau))^2 is L h = (wins - losses) / (2 tau), L the graph's Laplacian."""
    run, wins = fit(problem.softmax_policy(), pairs, rpo.IPO(tau=0.4)), pairs.wins()
    for x in range(2):
        both = wins[x] + wins[x].T
        laplacian = np.diag(both.sum(1)) - both
        h = np.linalg.pinv(laplacian) @ (wins[x].sum(1) - wins[x].sum(0)) / (2 * 0.4)
        policy = problem.reference[x] * np.exp(h)
        assert run.policy[x] == pytest.approx(policy / policy.sum(), abs=1e-10)


def test_sft_on_a_table_is_the_frequency_of_the_chosen_responses(
    problem: ContextualBandit, pairs: PreferenceCounts
) -> None:
    run = fit(problem.softmax_policy(), pairs, rpo.SFT())
    assert run.status == "converged"
    assert run.policy == pytest.approx(pairs.response_frequencies("chosen"), abs=1e-7)
    with pytest.raises(InvalidArgument, match="got BradleyTerry .*which reads head"):
        fit(problem.softmax_policy(), pairs, rpo.BradleyTerry())


def test_conservative_labels_are_dpo_on_split_counts(problem: ContextualBandit, pairs: PreferenceCounts) -> None:
    wins = pairs.wins()
    split = PreferenceCounts.from_wins(0.8 * wins + 0.2 * wins.swapaxes(1, 2))
    run = fit(problem.softmax_policy(), pairs, rpo.ConservativeDPO(beta=0.5, epsilon=0.2))
    plain = fit(problem.softmax_policy(), split, DPO(beta=0.5))
    assert run.policy == pytest.approx(plain.policy, abs=1e-10)


@pytest.mark.parametrize(
    ("objective", "margin"),
    [
        (rpo.ConservativeDPO(beta=1.0, epsilon=0.2), logit(0.6 * 0.7 + 0.2)),
        (rpo.RobustDPO(beta=1.0, epsilon=0.2), logit((0.7 - 0.2) / 0.6)),
        (rpo.IPO(tau=0.5), 2 * 0.7 - 1),
        (DPO(beta=1.0), logit(0.7)),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_minimiser_of_one_pair_is_the_hand_derived_one(objective: Objective, margin: float) -> None:
    """A beats B in 7 of 10: p = 0.7. h_A - h_B is logit p (DPO), logit((1 - 2 eps) p + eps) (conservative),
    logit((p - eps) / (1 - 2 eps)) (robust), (2p - 1) / (2 tau) (IPO)."""
    problem = ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward_bound=1.0)
    pairs = PreferenceCounts.from_wins([[[0, 7], [3, 0]]])
    run = fit(problem.softmax_policy(), pairs, objective)
    assert run.status == "converged"
    assert np.log(run.policy[0, 0] / run.policy[0, 1]) == pytest.approx(margin, rel=1e-9)


@pytest.mark.parametrize(("lam", "mass"), [(1.0, 1 / 3), (0.9, 0.0), (0.5, 0.0)])
def test_contrastive_preference_learning_empties_what_was_never_compared(lam: float, mass: float) -> None:
    """Response C is in no pair: at lambda = 1 its logit feels nothing, below 1 its mass goes to zero."""
    problem = ContextualBandit(d0=[1.0], reference=[[1 / 3, 1 / 3, 1 / 3]], reward_bound=1.0)
    pairs = PreferenceCounts.from_pairs([0, 0], [0, 1], [1, 0], count=[5, 5], num_prompts=1, num_responses=3)
    run = fit(problem.softmax_policy(), pairs, rpo.CPL(alpha=1.0, lam=lam), optimizer="lbfgs")
    assert run.policy[0, 2] == pytest.approx(mass, abs=1e-3)


def by_autograd(problem: ContextualBandit, pairs: PreferenceCounts, objective: Objective, start: Array) -> Array:
    """The policy (X, A) that scipy's BFGS reaches on logits by torch's gradients: no code of the package but `loss`."""
    x, w, lost = (torch.as_tensor(index) for index in (pairs.prompt, pairs.chosen, pairs.rejected))
    reference, weights = torch.as_tensor(problem.log_reference), torch.as_tensor(pairs.weights)
    one = torch.ones(len(x), dtype=torch.float64)
    ref = (reference[x, w], reference[x, lost])

    def function(theta: Array) -> tuple[float, Any]:
        leaf = torch.tensor(theta, requires_grad=True)
        table = leaf.reshape(reference.shape).log_softmax(-1)
        columns = Columns(logps=(table[x, w], table[x, lost]), reference=ref, lengths=(one, one))
        base = table[x, w]
        if objective.anchor.role == "reference":
            base = (reference.exp() * table).sum(-1)[x]
        loss, _ = objective.loss(columns, base, weights)
        return loss.item(), torch.autograd.grad(loss, leaf)[0].numpy()

    found = minimize(function, start.ravel(), jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 5_000})
    return np.asarray(torch.tensor(found.x).reshape(reference.shape).softmax(-1))


HAS_MINIMISER = ("RPO", "DPO", "IPO", "ConservativeDPO", "RobustDPO", "RDPO", "SimPO", "NCA", "CPO", "ChiPO", "FDPO")


@pytest.mark.parametrize("name", HAS_MINIMISER)
def test_table_meets_another_optimiser(problem: ContextualBandit, pairs: PreferenceCounts, name: str) -> None:
    objective = METHODS[name]
    objective = dataclasses.replace(objective, **{"beta": 0.7} if hasattr(objective, "beta") else {"tau": 0.7})
    run = fit(problem.softmax_policy(), pairs, objective, tolerance=1e-9)
    assert run.status == "converged"
    other = by_autograd(problem, pairs, objective, problem.log_reference)
    assert np.abs(run.policy - other).max() <= 1e-6


def test_an_objective_of_ones_own_is_fitted_by_its_own_formula(
    problem: ContextualBandit, pairs: PreferenceCounts
) -> None:
    """Fifteen lines of a user: an exponential loss. On one pair of p = .7 its minimiser is logit(p) / 2."""
    from rpo.core import numerics
    from rpo.core.links import LogRatio
    from rpo.core.shapes import MarginShape

    class Exponential(MarginShape):
        convex = True

        def of_margin(self, z: Any) -> Any:
            return numerics.exp(-z)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Boosted(Objective):
        beta: float = 1.0

        @property
        def link(self) -> LogRatio:
            return LogRatio(beta=self.beta)

        @property
        def shape(self) -> Exponential:
            return Exponential()

    two = ContextualBandit(d0=[1.0], reference=[[0.5, 0.5]], reward_bound=1.0)
    run = rpo.fit(two.softmax_policy(), PreferenceCounts.from_wins([[[0, 7], [3, 0]]]), Boosted())
    assert np.log(run.policy[0, 0] / run.policy[0, 1]) == pytest.approx(logit(0.7) / 2, rel=1e-9)
    assert run.objective == {"name": "Boosted", "beta": 1.0}
    assert expit(2 * np.log(run.policy[0, 0] / run.policy[0, 1])) == pytest.approx(0.7)
    with pytest.raises(rpo.core.errors.InvalidArgument, match="slopes towards infinity are not declared"):
        solve(problem, pairs, Boosted(), reward_class=Unconstrained())


def test_rpo_is_the_same_through_the_generic_derivatives(problem: ContextualBandit, pairs: PreferenceCounts) -> None:
    """Log-probabilities of pairs, not rewards: a second construction of what `solve` certifies."""
    objective = RPO(beta=0.5, eta=0.2, base="reference")
    theory = solve(problem, pairs, objective, reward_class=Unconstrained())
    assert fit(problem.softmax_policy(), pairs, objective).policy == pytest.approx(theory.policy, abs=1e-9)
