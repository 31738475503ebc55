"""The theory, exactly: small contextual bandits solved, certified and measured in float64."""

from rpo.bandit import baselines, bilevel, bounds, coverage, datasets, diagnostics, filters, instances, plots, tree
from rpo.bandit.advisor import Advice, advise
from rpo.bandit.annotators import AnnotatorGroups, annotator_groups
from rpo.bandit.baseline import Baseline, PolicyResult
from rpo.bandit.batched import BatchSolution, sample_wins, solve_batch
from rpo.bandit.data import PreferenceCounts
from rpo.bandit.fitting import fit, maximum_likelihood_reward
from rpo.bandit.label_repair import flip_weakest, preference_strength, soft_labels
from rpo.bandit.lists import RankedLists
from rpo.bandit.maximin import Solution, solve
from rpo.bandit.metrics import policy_metrics, policy_outcome
from rpo.bandit.paths import TrainingPath, training_path
from rpo.bandit.problem import ContextualBandit, LinearSoftmaxPolicy, TabularSoftmaxPolicy
from rpo.bandit.reward_class import Box, Hull, Intervals, LinearBall, Unconstrained
from rpo.bandit.robust import robust_policy
from rpo.bandit.simulation import simulate
from rpo.bandit.solver.certificate import Certificate, certify
from rpo.bandit.solver.existence import Existence, minimizer_exists
from rpo.bandit.solver.saddle import Saddle, build_saddle
from rpo.bandit.tables import PreferenceTable, bandit_from_preferences, read_preferences

__all__ = [
    "Advice",
    "AnnotatorGroups",
    "Baseline",
    "BatchSolution",
    "Box",
    "Certificate",
    "ContextualBandit",
    "Existence",
    "Hull",
    "Intervals",
    "LinearBall",
    "LinearSoftmaxPolicy",
    "PolicyResult",
    "PreferenceCounts",
    "PreferenceTable",
    "RankedLists",
    "Saddle",
    "Solution",
    "TabularSoftmaxPolicy",
    "TrainingPath",
    "Unconstrained",
    "advise",
    "annotator_groups",
    "bandit_from_preferences",
    "baselines",
    "bilevel",
    "bounds",
    "build_saddle",
    "certify",
    "coverage",
    "datasets",
    "diagnostics",
    "filters",
    "fit",
    "flip_weakest",
    "instances",
    "maximum_likelihood_reward",
    "minimizer_exists",
    "plots",
    "policy_metrics",
    "policy_outcome",
    "preference_strength",
    "read_preferences",
    "robust_policy",
    "sample_wins",
    "simulate",
    "soft_labels",
    "solve",
    "solve_batch",
    "training_path",
    "tree",
]
