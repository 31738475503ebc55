"""The methods RPO is held against, all run by `solve(problem, data, baseline)`."""

from rpo.bandit.baselines.catalogue import list_baselines
from rpo.bandit.baselines.ensembles import RewardEnsemble
from rpo.bandit.baselines.members import ensemble_rewards
from rpo.bandit.baselines.pessimism import PessimisticMLE
from rpo.bandit.baselines.plain import BasePolicy, BestOfN, ChiSquaredPO, Greedy, PlugIn, ReferencePolicy
from rpo.core.aggregators import entropic

__all__ = [
    "BasePolicy",
    "BestOfN",
    "ChiSquaredPO",
    "Greedy",
    "PessimisticMLE",
    "PlugIn",
    "ReferencePolicy",
    "RewardEnsemble",
    "ensemble_rewards",
    "entropic",
    "list_baselines",
]
