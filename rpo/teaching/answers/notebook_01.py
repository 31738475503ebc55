"""Exercises of notebook 01."""

import math
from functools import cache

from rpo.teaching.exercise import Exercise

METHODS = ("greedy", "DPO", "RPO")
BETAS = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)


def _gibbs(first: float, reward: float, beta: float) -> float:
    """Return the first of two probabilities, proportional to first e^(reward / beta) and 1 - first."""
    tilted = first * math.exp(reward / beta)
    return tilted / (tilted + 1.0 - first)


@cache
def _best_beta(column: str) -> float:
    """Return the beta of 01.3 with the largest gold or proxy; imports here keep `rpo.teaching` light."""
    from rpo.bandit import policy_outcome, solve
    from rpo.core.objectives import DPO
    from rpo.teaching.lessons.overoptimization import skewed_problem

    problem = skewed_problem(arms=10, skew=2.0, rng=33)
    pairs = problem.sample_preferences(100, rng=33)

    def outcome(beta: float) -> float:
        solution = solve(problem, pairs, DPO(beta=beta), method="newton")
        return policy_outcome(solution.policy, problem, problem.reference, solution.reward)[column]

    return max(BETAS, key=outcome)


@cache
def _largest_gap() -> str:
    from rpo.bandit import baselines, simulate
    from rpo.core.objectives import DPO, RPO
    from rpo.teaching.lessons.overoptimization import skewed_problem

    methods = {"greedy": baselines.Greedy(), "DPO": DPO(beta=0.05), "RPO": RPO(beta=0.05, eta=0.05)}
    table = simulate(skewed_problem, methods, {"n": [10_000]}, seeds=30, rng=0, proxy=False, progress=False)
    return str(table.groupby("method")["gap"].mean().idxmax())


EXERCISES: dict[str, Exercise] = {
    "01.1": Exercise(
        question="The Gibbs policy's first probability for pi_ref = (0.2, 0.8), r = (1, 0), beta = 0.5.",
        solve=lambda: _gibbs(0.2, 1.0, 0.5),
        hint="The weights are 0.2 e^(1/0.5) and 0.8 e^0; divide the first by their sum.",
        because="0.2 e^2 / (0.2 e^2 + 0.8): a tilt by e^(r / beta), starting from pi_ref.",
        mistakes={
            "That forgets pi_ref: the tilt starts from 0.2 and 0.8, not from one half each.": lambda: _gibbs(
                0.5, 1.0, 0.5
            ),
            "The reward is divided by beta, not multiplied.": lambda: _gibbs(0.2, 1.0, 2.0),
            "That is the weight before it is divided by the sum of both.": lambda: 0.2 * math.exp(2.0),
        },
    ),
    "01.2": Exercise(
        question="KL of a policy with all its mass on a response of reference probability 0.01, nats.",
        solve=lambda: -math.log(0.01),
        hint="KL = sum of pi log(pi / pi_ref). Only one term is left.",
        because="1 log(1 / 0.01) = log 100 = 4.6 nats: rare responses are the far ones.",
        mistakes={
            "Natural logarithms: KL is in nats here.": lambda: 2.0,
            "That is in bits; KL is in nats here.": lambda: math.log2(100.0),
            "That is KL(pi_ref || pi) in sign, or log of 0.01: a KL is never negative.": lambda: math.log(0.01),
        },
    ),
    "01.3": Exercise(
        question="The beta, of six, at which gold is largest on the draw of the ten lines.",
        solve=lambda: _best_beta("reward/gold"),
        hint="A for loop over the six; compare problem.expected_reward of the policies.",
        because="Gold peaks in between: above it too little is learned, below it luck is maximised.",
        mistakes={
            "There the proxy is largest, not gold.": lambda: _best_beta("reward/proxy"),
            "There the policy has hardly moved.": lambda: 1.0,
        },
    ),
    "01.4": Exercise(
        question="Mean overestimate of the better-looking of two equals, where the difference has deviation 0.8.",
        solve=lambda: 0.8 / math.sqrt(2.0 * math.pi),
        hint="The difference of two independent errors has standard deviation sqrt(2) s. Which s is that here?",
        because="s = 0.8 / sqrt 2, so s / sqrt pi = 0.8 / sqrt(2 pi): selection alone makes it look that much better.",
        mistakes={
            "0.8 belongs to the difference: each error has 0.8 / sqrt 2.": lambda: 0.8 / math.sqrt(math.pi),
            "Divide by sqrt pi, not by pi.": lambda: 0.8 / math.sqrt(2.0) / math.pi,
            "By symmetry the errors average 0, but the larger of two does not.": lambda: 0.0,
        },
    ),
    "01.5": Exercise(
        question="The method with the largest gap at N = 10,000 with fixed beta and eta.",
        solve=_largest_gap,
        hint="When the estimates are good, what does it cost to doubt them?",
        because="The fit is good by then, and a penalty that does not fall with N goes on doubting it.",
        choices=METHODS,
    ),
}
