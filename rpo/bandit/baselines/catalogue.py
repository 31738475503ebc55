"""Every baseline by its name."""

from __future__ import annotations

from dataclasses import dataclass

from rpo.bandit.baseline import Baseline
from rpo.bandit.baselines.ensembles import RewardEnsemble
from rpo.bandit.baselines.pessimism import PessimisticMLE
from rpo.bandit.baselines.plain import BasePolicy, BestOfN, ChiSquaredPO, Greedy, PlugIn, ReferencePolicy


@dataclass(frozen=True)
class BaselineInfo:
    """One line of `list_baselines`: the class to construct, and what it is in one sentence."""

    method: type[Baseline]
    sentence: str


def list_baselines() -> dict[str, BaselineInfo]:
    """Return name -> BaselineInfo of every baseline that `solve` runs. DPO and RPO are objectives."""

    methods: dict[str, type[Baseline]] = {
        "plug_in": PlugIn,
        "greedy": Greedy,
        "best_of_n": BestOfN,
        "pessimistic_mle": PessimisticMLE,
        "chi_squared_po": ChiSquaredPO,
        "reward_ensemble": RewardEnsemble,
        "reference": ReferencePolicy,
        "base": BasePolicy,
    }
    return {name: BaselineInfo(method, (method.__doc__ or "").splitlines()[0]) for name, method in methods.items()}
