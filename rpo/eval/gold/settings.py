"""What a gold-reward experiment is: every knob of it, validated, with the digest that a resumed run must share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rpo.core import checks
from rpo.core.errors import InvalidArgument, shown
from rpo.core.fields import hold
from rpo.core.objectives import RPO

PROXY = "proxy"


@dataclass(frozen=True, kw_only=True)
class GoldStudy:
    """Preferences labelled by a known gold reward, policies trained on them, and what gold says of each.

    Both responses of a pair are drawn from pi_ref within a nucleus; the first wins with probability
    sigmoid((gold_1 - gold_2) / label_temperature), and a share of the labels is then a coin's. The proxy is a
    Bradley-Terry reward model trained on the same pairs. Raises InvalidArgument.

    Args:
        model: name or folder of a causal language model: pi_ref, and where every policy starts.
        gold: weights of scorers (sentiment, length, repetition, model:FOLDER, package.module:function), summed.
        prompts: text file, a prompt a line; null for openings of film reviews.
        train_prompts: prompts with preferences, drawn anew for each seed.
        pairs_per_prompt: preferences for each.
        eval_prompts: other prompts, on which policies are measured.
        max_new_tokens: length limit of responses, in tokens.
        coverage: nucleus (top-p) of pi_ref from which labelled responses are drawn; 1 covers all of it.
        label_temperature: of the Bradley-Terry labels, in units of gold.
        noise: share of labels that are a coin's.
        beta: KL temperature of every policy.
        etas: weights of the reward penalty, a policy each; 0 is DPO.
        learning_rate: of the policies, constant.
        batch_size: pairs an update.
        epochs: passes over the pairs.
        checkpoints: measurements, at updates spaced evenly in log.
        eval_samples: responses per prompt at each measurement.
        best_of: largest n of best-of-n under the proxy.
        proxy_learning_rate: of the reward model.
        proxy_epochs: passes of the reward model over the pairs.
        proxies: reward models of different seeds on the same pairs; of two or more, best-of-n is measured too under
            their mean, their worst case (WCO) and their mean less their variance (UWO).
        variance_penalty: weight of that variance.
        seeds: each draws prompts, responses, labels and the order of training anew.
        bf16: compute in bfloat16 on float32 weights.
    """

    model: str
    gold: Mapping[str, float] = field(default_factory=lambda: {"sentiment": 1.0, "repetition": -1.0})
    prompts: str | None = None
    train_prompts: int = 64
    pairs_per_prompt: int = 1
    eval_prompts: int = 48
    max_new_tokens: int = 24
    coverage: float = 1.0
    label_temperature: float = 0.25
    noise: float = 0.25
    beta: float = 0.05
    etas: tuple[float, ...] = (0.0, 0.1, 1.0)
    learning_rate: float = 5e-5
    batch_size: int = 8
    epochs: int = 8
    checkpoints: int = 6
    eval_samples: int = 1
    best_of: int = 16
    proxy_learning_rate: float = 3e-5
    proxy_epochs: int = 2
    proxies: int = 1
    variance_penalty: float = 0.5
    seeds: tuple[int, ...] = (0, 1, 2)
    bf16: bool = False

    def __post_init__(self) -> None:
        checks.instance("model", self.model, str)
        if self.prompts is not None:
            checks.path("prompts", self.prompts)
        counts = ("train_prompts", "pairs_per_prompt", "max_new_tokens", "batch_size", "epochs", "checkpoints")
        hold(self, checks.integer, *counts, "eval_samples", "best_of", "proxy_epochs", "proxies", minimum=1)
        hold(self, checks.integer, "eval_prompts", minimum=2)
        hold(self, checks.positive, "label_temperature", "beta", "learning_rate", "proxy_learning_rate")
        hold(self, checks.nonnegative, "coverage", "noise", "variance_penalty")
        for name, low in (("coverage", 0.0), ("noise", -1.0)):
            value = getattr(self, name)
            if not low < value <= 1.0:
                raise InvalidArgument(name, expected="a share in [0, 1], coverage > 0", got=value, remedy="Change it.")
        if not checks.instance("gold", self.gold, Mapping):  # type: ignore[type-abstract]
            raise InvalidArgument("gold", expected="at least one scorer", got="none", remedy="Pass {'sentiment': 1}.")
        for name, weight in self.gold.items():
            checks.instance("gold", name, str)
            checks.finite("gold", weight, shape=())
        for name in ("etas", "seeds"):
            values = getattr(self, name)
            ordered = isinstance(values, Sequence) and checks.is_listed(values)
            for value in values if ordered else ():
                checks.nonnegative(name, value)
            if not ordered or not values or len(set(values)) != len(values):
                raise InvalidArgument(
                    name, expected="different values in a list, at least one", got=shown(values), remedy="Change it."
                )
        for seed in self.seeds:
            checks.integer("seeds", seed, minimum=0)
        self.objectives()  # refuses a beta and an eta that are none

    def objectives(self) -> list[RPO]:
        """Return the objective of every policy that is trained."""
        return [RPO(beta=self.beta, eta=eta) for eta in self.etas]

    def proxy_folders(self) -> list[str]:
        """Return the folder of each reward model; policies are measured by the first."""
        return [PROXY, *(f"{PROXY}-{k}" for k in range(1, self.proxies))]

    @property
    def pairs(self) -> int:
        """Pairs asked for, a seed."""
        return self.train_prompts * self.pairs_per_prompt

    def schedule(self, pairs: int) -> list[int]:
        """Return the updates after which policies are measured, the last one included."""
        last = -(-pairs // self.batch_size) * self.epochs
        spaced = np.geomspace(1, last, self.checkpoints) if self.checkpoints > 1 else np.array([last])
        return sorted({round(step) for step in spaced} | {last})

    def to_dict(self) -> dict[str, Any]:
        """Return every field, for records."""
        return {**asdict(self), "gold": dict(self.gold), "etas": list(self.etas), "seeds": list(self.seeds)}

    def digest(self) -> str:
        """Return a digest of all but the seeds and etas: more of these may join a study that has begun."""
        fixed = {name: value for name, value in self.to_dict().items() if name not in ("seeds", "etas")}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def method_name(objective: RPO) -> str:
    """Return "DPO", or "RPO eta=0.1"."""
    return f"RPO eta={objective.eta:g}" if objective.eta else "DPO"
