"""The theory, exactly: small contextual bandits solved, certified and measured in float64."""

from rpo.bandit import instances
from rpo.bandit.certificate import Certificate, certify
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.existence import Existence, minimizer_exists
from rpo.bandit.fitting import fit, maximum_likelihood_reward
from rpo.bandit.maximin import Solution, solve
from rpo.bandit.method import Baseline, PolicyResult
from rpo.bandit.metrics import policy_metrics, policy_outcome
from rpo.bandit.policies import LinearSoftmaxPolicy, TabularSoftmaxPolicy
from rpo.bandit.problem import ContextualBandit
from rpo.bandit.reward_class import Box, LinearBall, Unconstrained
from rpo.bandit.saddle import Saddle, build_saddle
from rpo.bandit.tables import PreferenceTable, bandit_from_preferences, read_preferences

__all__ = [
    "Baseline",
    "Box",
    "Certificate",
    "ContextualBandit",
    "Existence",
    "LinearBall",
    "LinearSoftmaxPolicy",
    "PolicyResult",
    "PreferenceCounts",
    "PreferenceTable",
    "Saddle",
    "Solution",
    "TabularSoftmaxPolicy",
    "Unconstrained",
    "bandit_from_preferences",
    "build_saddle",
    "certify",
    "fit",
    "instances",
    "maximum_likelihood_reward",
    "minimizer_exists",
    "policy_metrics",
    "policy_outcome",
    "read_preferences",
    "solve",
]
