"""What a policy's log-probabilities, gradients and samples say of it on preference data: the numbers of `rpo diagnose`.

Shapes: N pairs, whose columns are chosen and rejected. w is the chosen response, l the rejected one, rho the reference,
h = log(pi / rho), in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import preference_loss
from rpo.core.pair_diagnostics import CASES, idealised_log_ratio, ranking_threshold
from rpo.llm.data.collate import group_of
from rpo.llm.data.pairs import TokenizedGroup
from rpo.llm.diagnostics.displacement import displacement_values
from rpo.llm.diagnostics.gradients import gradient_entanglement
from rpo.llm.diagnostics.kl import measure_kl
from rpo.llm.logps.packing import choose_path
from rpo.llm.logps.scoring import pad_token
from rpo.llm.reference import AsGiven, Reference
from rpo.llm.reference.cache import CacheKey, LogpCache, precompute
from rpo.llm.sampling import stop_token_ids

ERROR = "_se"
ROUNDING = 1e-9  # of a mean of equal numbers, whose error is zero but for it
NOT_SHARES = frozenset((
    "ranking/threshold", "rewards/margins", "loss/preference", "displacement/chosen_change",
    "displacement/rejected_change", "gradients/pair_cosine", "gradients/least_eta", "gradients/least_eta_median",
    "kl/reference",
))  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Diagnosis:
    """A report: numbers, each with its standard error under the same name and `_se` where it is a mean over pairs.

    untrained: whether the reference is the model itself, so that what compares the two is left out. eta: of the loss
    the model was trained on, None where it is not known. policy, reference: (N, 2), nats.
    """

    pairs: int
    beta: float
    eta: float | None
    chosen_rate: float
    untrained: bool
    numbers: dict[str, float]
    policy: Array = field(repr=False)
    reference: Array = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the log-probabilities."""
        kept = ("pairs", "beta", "eta", "chosen_rate", "untrained", "numbers")
        return {name: getattr(self, name) for name in kept}

    def rows(self) -> list[tuple[str, str, str]]:
        """Return what is printed: name, number, and what the number means."""
        given, rows = self.numbers, []

        def of(key: str) -> str:
            return _shown(key, given[key]) if key in given else "none"

        def add(name: str, key: str, meaning: str) -> None:
            if key in given:
                error = given.get(key + ERROR, 0.0)
                more = f" +- {_shown(key, error)}" if error > ROUNDING * max(1.0, abs(given[key])) else ""
                rows.append((name, of(key) + more, meaning))

        add(
            "ranking accuracy",
            "ranking/accuracy",
            "of the pairs have a chosen response at least as likely as the rejected one; by the mean over tokens "
            f"{of('ranking/accuracy_per_token')}",
        )
        if not self.untrained:
            add("  of the reference", "ranking/reference", "the same before training")
        add(
            "  idealised",
            "ranking/idealised",
            f"the same at the optimum of DPO, at beta {self.beta:g} and with chosen responses that would be preferred "
            f"again {100 * self.chosen_rate:g}% of the time",
        )
        add(
            "  threshold",
            "ranking/threshold",
            "DPO's loss below which a pair is ranked right, median of the "
            f"{of('ranking/wrong')} that the reference ranks wrong",
        )
        add(
            "  turned",
            "ranking/turned",
            "of the pairs that the reference ranks wrong are ranked right by the model; in "
            f"{of('ranking/moved')} of them the chosen response has gained on the rejected one",
        )
        add(
            "implicit reward",
            "rewards/accuracies",
            "of the pairs have a chosen response that gained on the rejected one since the reference; the reward "
            f"margin is {of('rewards/margins')} on average",
        )
        add("  DPO's loss", "loss/preference", "mean over the pairs; log 2 = 0.693 before training")
        add(
            "displacement",
            "displacement/share",
            "of the pairs have a chosen response less likely than under the reference; chosen ones changed by "
            f"{of('displacement/chosen_change')}, rejected by {of('displacement/rejected_change')} nats on average",
        )
        add(
            "gradients",
            "gradients/ideal",
            "of the pairs: a step on the preference makes the chosen response likelier and the rejected one less; "
            f"both fall in {of('gradients/both_fall')}, both rise in {of('gradients/both_rise')}",
        )
        add(
            "  cosine",
            "gradients/pair_cosine",
            "between the gradients of the two responses' log-probabilities; near 1 a step moves both together",
        )
        add(
            "  least eta",
            "gradients/least_eta",
            "eta of RPO above which the chosen response rises in every pair where both would fall; median of them "
            f"{of('gradients/least_eta_median')}"
            + ("" if self.eta is None else f"; eta {self.eta:g} lifts {of('gradients/lifted')} of them"),
        )
        add(
            "KL to the reference",
            "kl/reference",
            f"nats a response, over samples of the model, {of('kl/unfinished')} of them cut short",
        )
        for where, prefix in (("explicit reward", ""), ("  on shifted data", "shifted/")):
            add(
                where,
                f"{prefix}explicit/accuracies",
                "of the pairs are ranked right by the reward model"
                + (
                    f", {of(f'{prefix}implicit/accuracies')} by the implicit reward, a lead of "
                    f"{of(f'{prefix}explicit/lead')} +- {of(f'{prefix}explicit/lead{ERROR}')}; the two agree on "
                    f"{of(f'{prefix}explicit/agreement')}"
                    if f"{prefix}explicit/lead" in given
                    else ""
                ),
            )
        if "explicit/accuracies" not in given:
            add(
                "  on shifted data",
                "shifted/implicit/accuracies",
                "of the other pairs have a chosen response that gained on the rejected one",
            )
        return rows


def diagnose(
    model: Any,
    pairs: Sequence[TokenizedGroup],
    *,
    reference: Reference,
    tokenizer: Any,
    beta: float,
    eta: float | None = None,
    chosen_rate: float = 0.999,
    rewards: Any = None,
    shifted: Sequence[TokenizedGroup] | None = None,
    shifted_rewards: Any = None,
    gradient_pairs: int = 32,
    kl_prompts: int = 32,
    max_new_tokens: int = 64,
    seed: int = 0,
    path: str = "auto",
    batch_tokens: int = 16384,
    progress: bool | None = None,
) -> Diagnosis:
    """Return what preference pairs say of a model: how it ranks, what moved, how gradients stand, how far it went.

    reference: `AsGiven(model)` for a model that is not trained. beta, eta: of the loss; eta None where it is not known.
    chosen_rate: how often the chosen response would win if asked again, in (0, 1), for the idealised accuracy. rewards,
    shifted_rewards: (N, 2), an explicit reward of the pairs, and of pairs of another distribution, `shifted`.
    gradient_pairs, kl_prompts: how many are drawn for gradients and samples; 0 leaves that out. Gradients are those of
    the parameters that require one. path, batch_tokens: of the scoring. Means are weighted as the pairs are. Raises
    InvalidArgument.
    """
    scale = checks.positive("beta", beta)
    penalty = None if eta is None else checks.nonnegative("eta", eta)
    checks.instance("reference", reference, Reference)
    counts = {"gradient_pairs": gradient_pairs, "kl_prompts": kl_prompts}
    for name, value in counts.items():
        counts[name] = checks.integer(name, value, minimum=0)
    generator = np.random.default_rng(checks.integer("seed", seed, minimum=0))
    kept = _require_pairs("pairs", pairs)
    scoring = choose_path(model, pad_token(tokenizer), path)
    untrained = isinstance(reference, AsGiven)

    def scored(groups: Sequence[TokenizedGroup]) -> tuple[Array, Array]:
        """Return log-probabilities (N, 2) under the policy and the reference."""
        found = []
        for one in (AsGiven(model), reference)[: 1 if untrained else 2]:
            cache = LogpCache(CacheKey.of(one, scoring, tokenizer))
            own = [group_of(pair) for pair in groups]
            precompute(one, scoring, own, cache=cache, batch_tokens=batch_tokens, show=progress)
            found.append(np.asarray(cache.lookup(own), dtype=np.float64))
        return found[0], found[-1]

    policy, anchor = scored(kept)
    weights = np.array([pair.weight for pair in kept])
    lengths = np.array([pair.lengths for pair in kept], dtype=np.float64)
    numbers = _ranking(policy, anchor, lengths, weights, scale, chosen_rate, untrained)
    if not untrained:
        numbers |= _moved(policy - anchor, lengths, weights, scale)
    margins = _difference(policy - anchor)
    if counts["gradient_pairs"]:
        drawn = _drawn(generator, len(kept), counts["gradient_pairs"])
        groups = [group_of(kept[k]) for k in drawn]
        numbers |= _gradients(model, scoring, groups, margins[drawn], weights[drawn], scale, penalty, progress)
    if counts["kl_prompts"] and not untrained:
        prompts = sorted({pair.prompt_ids for pair in kept})
        numbers |= measure_kl(
            model,
            reference,
            [prompts[k] for k in _drawn(generator, len(prompts), counts["kl_prompts"])],
            eos_token_id=stop_token_ids(model, tokenizer),
            pad_token_id=pad_token(tokenizer),
            max_new_tokens=max_new_tokens,
            seed=int(generator.integers(2**31)),
        ).metrics()
    numbers |= _explicit("", margins, rewards, weights, untrained)
    if shifted is not None:
        others = _require_pairs("shifted", shifted)
        policies, anchors = (policy[:0], anchor[:0]) if untrained and shifted_rewards is None else scored(others)
        own = np.array([pair.weight for pair in others])
        numbers |= _explicit("shifted/", _difference(policies - anchors), shifted_rewards, own, untrained)
    return Diagnosis(
        pairs=len(kept),
        beta=scale,
        eta=penalty,
        chosen_rate=float(chosen_rate),
        untrained=untrained,
        numbers=numbers,
        policy=policy,
        reference=anchor,
    )


def _ranking(
    policy: Array, anchor: Array, lengths: Array, weights: Array, beta: float, chosen_rate: float, untrained: bool
) -> dict[str, float]:
    """Return the ranking accuracies of policy, reference and optimum, and what became of wrong pairs."""
    now, before = _difference(policy), _difference(anchor)
    wrong = before < 0
    numbers = _means(
        weights,
        {
            "ranking/accuracy": now >= 0,
            "ranking/accuracy_per_token": _difference(policy / lengths) >= 0,
            "ranking/reference": ~wrong,
            "ranking/idealised": idealised_log_ratio(before, beta, chosen_rate) > 0,
        },
    )
    numbers["ranking/wrong"] = 1.0 - numbers["ranking/reference"]
    if wrong.any():
        numbers["ranking/threshold"] = float(np.median(ranking_threshold(before[wrong], beta)))
        if not untrained:
            turned = {"ranking/turned": now[wrong] >= 0, "ranking/moved": now[wrong] > before[wrong]}
            numbers |= _means(weights[wrong], turned)
    return numbers


def _moved(h: Array, lengths: Array, weights: Array, beta: float) -> dict[str, float]:
    """Return implicit rewards and displacement, from h (N, 2)."""
    margins = _difference(h)
    values: dict[str, Any] = {
        "rewards/accuracies": margins > 0,
        "rewards/margins": beta * margins,
        "loss/preference": preference_loss(margins, beta),
    }
    moved = displacement_values(*torch.as_tensor(h).T, *torch.as_tensor(lengths).T)
    return _means(weights, values | {name: value.numpy() for name, value in moved.items()})


def _gradients(
    model: Any,
    path: Any,
    groups: Sequence[Any],
    margins: Array,
    weights: Array,
    beta: float,
    eta: float | None,
    progress: bool | None,
) -> dict[str, float]:
    """Return how the gradients of pairs stand, and the eta of RPO's that lifts the chosen responses."""
    found = gradient_entanglement(model, path, groups, progress=progress)
    values = {f"gradients/{case.replace(' ', '_')}": found.case == case for case in CASES}
    numbers = _means(weights, values | {"gradients/pair_cosine": found.cosine})
    numbers["gradients/pairs"] = float(len(groups))
    least = found.least_eta(margins, beta)
    falling = least > 0
    if falling.any():
        numbers["gradients/least_eta"] = float(least.max())
        numbers["gradients/least_eta_median"] = float(np.median(least[falling]))
        if eta is not None:
            numbers |= _means(weights[falling], {"gradients/lifted": least[falling] < eta})
    return numbers


def _explicit(prefix: str, margins: Array, rewards: Any, weights: Array, untrained: bool) -> dict[str, float]:
    """Return how an explicit reward (N, 2) and the implicit one rank the pairs, compared pair by pair."""
    values = {} if untrained else {f"{prefix}implicit/accuracies": margins > 0}
    if rewards is not None:
        name = "shifted_rewards" if prefix else "rewards"
        explicit = _difference(checks.finite(name, rewards, shape=(len(weights), 2)))
        values[f"{prefix}explicit/accuracies"] = explicit > 0
        if not untrained:
            values[f"{prefix}explicit/lead"] = (explicit > 0) - 1.0 * (margins > 0)
            values[f"{prefix}explicit/agreement"] = np.sign(explicit) == np.sign(margins)
    return _means(weights, values)


def _means(weights: Array, values: dict[str, Any]) -> dict[str, float]:
    """Return weighted means over pairs, and of more than one pair their standard errors."""
    share, count, numbers = weights / weights.sum(), len(weights), {}
    for name, value in values.items():
        x = np.asarray(value, dtype=np.float64)
        numbers[name] = mean = float(share @ x)
        if count > 1:
            numbers[name + ERROR] = float(share**2 @ (x - mean) ** 2 * count / (count - 1)) ** 0.5
    return numbers


def _difference(values: Array) -> Array:
    return values[:, 0] - values[:, 1]


def _drawn(generator: np.random.Generator, count: int, wanted: int) -> Array:
    """Return which of them are taken, in order: all, or so many at random."""
    return np.sort(generator.permutation(count)[:wanted])


def _require_pairs(name: str, groups: Sequence[TokenizedGroup]) -> Sequence[TokenizedGroup]:
    sizes = {len(group.responses) for group in groups}
    if sizes != {2}:
        raise InvalidArgument(
            name,
            expected="pairs, at least one",
            got="none" if not sizes else f"groups of {', '.join(map(str, sorted(sizes)))} responses",
            remedy="Make pairs of lists (binarize), and leave out base columns.",
        )
    return groups


def _shown(key: str, value: float) -> str:
    """Return the number of a name, or its error, as text: a share in percent."""
    if key.removesuffix(ERROR) in NOT_SHARES:
        return _number(value)
    return f"{100 * value:.1f}%"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 100 else f"{value:.3f}"
