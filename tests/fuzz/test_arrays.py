"""Array, number and object arguments of `rpo.core` and `rpo.bandit`, each spoilt in every way that a program can.

The independent reading: an argument that is honestly real numbers gives what the same numbers give as a float64 array,
and one that is not (a mask, an imaginary part, text, truth values, durations, NaN) is refused.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from fuzzing import TIERS, chosen, explore, numbers_in, outcome, same
from hypothesis import strategies as st

import rpo
from rpo.bandit import (
    Box,
    LinearBall,
    PreferenceCounts,
    TabularSoftmaxPolicy,
    Unconstrained,
    advise,
    bandit_from_preferences,
    build_saddle,
    certify,
    fit,
    instances,
    policy_metrics,
    policy_outcome,
    sample_wins,
    solve,
    solve_batch,
)
from rpo.bandit.baselines import BestOfN, ChiSquaredPO, PessimisticMLE, RewardEnsemble
from rpo.bandit.bounds import clopper_pearson, log_covering, loglog_slope, suboptimality_bound
from rpo.bandit.coverage import chosen_distribution, coverage_coefficient, effective_resistance
from rpo.core import checks, conversions
from rpo.core.errors import RPOError
from rpo.core.gao import bootstrap_gao, fit_gao
from rpo.core.likelihoods import SFT, BradleyTerry
from rpo.core.objectives import DPO, RPO
from rpo.eval import ranking, win_rates

PROBLEM = instances.random(prompts=2, arms=3, features=2, rng=0)
PAIRS = PROBLEM.sample_preferences(60, rng=0)
WINS = np.zeros((2, 3, 3))
WINS[PAIRS.prompt, PAIRS.chosen, PAIRS.rejected] = PAIRS.count
OBJECTIVE, BOX = RPO(beta=0.5, eta=0.1), Box(2.0)
SADDLE = build_saddle(PROBLEM, PAIRS, OBJECTIVE, BOX)
POLICY = np.array([[0.25, 0.25, 0.5], [0.5, 0.125, 0.375]])
REWARD = np.array([[0.5, 1.0, 1.5], [0.25, 0.0, 2.0]])
LOGPS = [np.array(row) for row in ([-1.0, -2.5, -4.0], [-2.0, -3.0, -1.5], [-1.5, -2.0, -4.5], [-2.5, -3.5, -1.0])]
KL, GOLD = np.array([0.25, 1.0, 4.0, 9.0, 16.0]), np.array([0.5, 1.0, 1.5, 1.25, 0.5])


@dataclass(frozen=True, repr=False)
class Target:
    """A call and arguments under which it works. arrays, numbers, counts, objects: names of arguments, by kind.

    counts: whole numbers that cost time, so that large ones are not tried. loose: takes NaN and infinity on purpose.
    """

    name: str
    call: Callable[..., Any]
    arguments: dict[str, Any]
    arrays: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    loose: bool = False

    def __repr__(self) -> str:
        return self.name


def bandit(**arguments: Any) -> Any:
    made = rpo.bandit.ContextualBandit(**arguments)
    return made.reference, made.d0, made.reward, made.behavior, made.features, made.label_noise


def solved(problem: Any = PROBLEM, data: Any = PAIRS, objective: Any = OBJECTIVE, **options: Any) -> Any:
    found = solve(problem, data, objective, **{"reward_class": BOX, "method": "newton", **options})
    return found.policy, found.reward


def fitted(policy: Any = None, data: Any = PAIRS, objective: Any = OBJECTIVE, **options: Any) -> Any:
    policy = TabularSoftmaxPolicy(PROBLEM) if policy is None else policy
    return fit(policy, data, objective, **{"max_steps": 3, "proxy_reward": None, **options}).policy


TARGETS = [
    Target(
        "ContextualBandit",
        bandit,
        {"d0": PROBLEM.d0, "reference": PROBLEM.reference, "reward": REWARD, "reward_bound": 2.0,
         "features": PROBLEM.features, "behavior": PROBLEM.reference, "label_noise": 0.125},
        arrays=("d0", "reference", "reward", "features", "behavior"),
        numbers=("reward_bound", "label_noise"),
    ),
    Target(
        "PreferenceCounts.from_pairs",
        PreferenceCounts.from_pairs,
        {"prompt": np.array([0, 1, 1]), "chosen": np.array([0, 1, 2]), "rejected": np.array([1, 2, 0]),
         "count": np.array([1.0, 2.0, 3.0]), "num_prompts": 2, "num_responses": 3},
        arrays=("prompt", "chosen", "rejected", "count"),
        counts=("num_prompts", "num_responses"),
    ),
    Target("PreferenceCounts.from_wins", PreferenceCounts.from_wins, {"wins": WINS}, arrays=("wins",)),
    Target("sample_preferences", PROBLEM.sample_preferences, {"n": 5, "rng": 0}, numbers=("n",), objects=("rng",)),
    Target("sample_wins", sample_wins, {"problem": PROBLEM, "n": 5, "draws": 2, "rng": 0},
           counts=("n", "draws"), objects=("problem", "rng")),
    Target("expected_reward", PROBLEM.expected_reward, {"policy": POLICY}, arrays=("policy",)),
    Target("suboptimality", PROBLEM.suboptimality, {"policy": POLICY, "comparator": PROBLEM.reference},
           arrays=("policy", "comparator")),
    Target("solve", solved, {"problem": PROBLEM, "data": PAIRS, "objective": OBJECTIVE, "reward_class": BOX},
           objects=("problem", "data", "objective", "reward_class")),
    Target("solve, base_policy", lambda base_policy: solved(objective=RPO(beta=0.5, eta=0.1, base="custom"),
           base_policy=base_policy), {"base_policy": POLICY}, arrays=("base_policy",)),
    Target("solve_batch", solve_batch,
           {"wins": WINS[None], "reference": PROBLEM.reference, "objective": OBJECTIVE, "reward_class": BOX,
            "d0": PROBLEM.d0},
           arrays=("wins", "reference", "d0"), objects=("objective", "reward_class")),
    Target("fit", fitted, {"policy": None, "data": PAIRS, "objective": OBJECTIVE, "learning_rate": 0.5,
           "tolerance": 1e-9, "max_steps": 3, "prompt_weights": "data"},
           numbers=("learning_rate", "tolerance"), counts=("max_steps",),
           objects=("policy", "data", "objective", "prompt_weights")),
    Target("rpo.fit", lambda **given: rpo.fit(TabularSoftmaxPolicy(PROBLEM), **given).policy,
           {"data": PAIRS, "objective": OBJECTIVE, "max_steps": 2},
           objects=("data", "objective"), counts=("max_steps",)),
    Target("TabularSoftmaxPolicy", lambda **given: TabularSoftmaxPolicy(**given).parameters,
           {"problem": PROBLEM, "parameters": REWARD}, arrays=("parameters",), objects=("problem",)),
    Target("Box", Box, {"bound": 2.0}, numbers=("bound",)),
    Target("LinearBall", LinearBall, {"features": PROBLEM.features, "radius": 1.5},
           arrays=("features",), numbers=("radius",)),
    Target("RPO", RPO, {"beta": 0.5, "eta": 0.25, "base": "chosen", "sft_reduction": "sequence_sum"},
           numbers=("beta", "eta"), objects=("base", "sft_reduction")),
    Target("DPO", DPO, {"beta": 0.5}, numbers=("beta",)),
    Target("RPO()", lambda *, a, b, c, d, **more: OBJECTIVE(a, b, c, d, **more),
           dict(zip("abcd", LOGPS, strict=True)) | {"weights": np.array([0.5, 0.25, 0.25])},
           arrays=("a", "b", "c", "d", "weights"), loose=True),
    Target("SFT()", lambda **given: SFT()(**given),
           {"policy_chosen_logps": LOGPS[0], "chosen_lengths": np.array([1, 2, 3])},
           arrays=("policy_chosen_logps", "chosen_lengths"), loose=True),
    Target("BradleyTerry()", lambda **given: BradleyTerry()(**given),
           {"policy_chosen_logps": LOGPS[0], "policy_rejected_logps": LOGPS[1]},
           arrays=("policy_chosen_logps", "policy_rejected_logps"), loose=True),
    Target("build_saddle", build_saddle,
           {"problem": PROBLEM, "data": PAIRS, "objective": OBJECTIVE, "reward_class": BOX, "prompt_weights": "data"},
           objects=("problem", "data", "objective", "reward_class", "prompt_weights")),
    Target("certify", certify, {"saddle": SADDLE, "reward": REWARD, "policy": POLICY},
           arrays=("reward", "policy"), objects=("saddle",)),
    Target("policy_outcome", policy_outcome, {"policy": POLICY, "problem": PROBLEM, "base": PROBLEM.reference},
           arrays=("policy", "base"), objects=("problem",)),
    Target("policy_metrics", policy_metrics, {"logps": np.log(POLICY), "saddle": SADDLE, "problem": PROBLEM},
           arrays=("logps",), objects=("saddle", "problem")),
    Target("bandit_from_preferences", lambda **given: bandit_from_preferences(**given).reference,
           {"counts": PAIRS, "reward_bound": 2.0}, objects=("counts",), numbers=("reward_bound",)),
    Target("coverage_coefficient", lambda **given: coverage_coefficient(PROBLEM, **given).value,
           {"comparator": POLICY, "base": PROBLEM.reference, "reward_class": BOX},
           arrays=("comparator", "base"), objects=("reward_class",)),
    Target("effective_resistance", effective_resistance,
           {"weights": np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 0.5], [2.0, 0.5, 0.0]]), "p": POLICY[0], "q": POLICY[1]},
           arrays=("weights", "p", "q")),
    Target("chosen_distribution", chosen_distribution,
           {"problem": PROBLEM, "pair_distribution": PROBLEM.pair_distribution()},
           arrays=("pair_distribution",), objects=("problem",)),
    Target("suboptimality_bound", suboptimality_bound,
           {"route": "paper", "coverage": 2.0, "n": 100.0, "margin_bound": 2.0, "log_covering": 3.0, "delta": 0.125},
           numbers=("coverage", "n", "margin_bound", "log_covering", "delta"), objects=("route",), loose=True),
    Target("log_covering", log_covering, {"reward_class": BOX, "prompts": 2, "arms": 3, "radius": 0.25},
           numbers=("radius", "prompts", "arms"), objects=("reward_class",)),
    Target("clopper_pearson", clopper_pearson, {"successes": 3, "trials": 8, "level": 0.75},
           numbers=("successes", "trials", "level")),
    Target("loglog_slope", loglog_slope,
           {"n": np.array([10.0, 20.0, 40.0]), "means": np.array([1.0, 0.5, 0.25]),
            "standard_errors": np.array([0.125, 0.0625, 0.03125])},
           arrays=("n", "means", "standard_errors"), loose=True),
    Target("fit_gao", fit_gao, {"kl": KL, "gold": GOLD, "form": "best_of_n", "level": 0.75},
           arrays=("kl", "gold"), numbers=("level",), objects=("form",)),
    Target("bootstrap_gao", bootstrap_gao,
           {"kl": np.stack([KL, KL, KL]), "gold": np.stack([GOLD, GOLD + 0.25, GOLD - 0.125]), "form": "policy",
            "resamples": 20, "rng": 0},
           arrays=("kl", "gold"), counts=("resamples",), objects=("rng", "form")),
    Target("from_trl", conversions.from_trl, {"beta": 0.5, "loss_weights": [1.0, 0.25]},
           arrays=("loss_weights",), numbers=("beta",)),
    Target("to_trl", conversions.to_trl, {"objective": OBJECTIVE, "chosen_lengths": np.array([4, 4])},
           arrays=("chosen_lengths",), objects=("objective",)),
    Target("trl_batch_weight", conversions.trl_batch_weight,
           {"objective": OBJECTIVE, "chosen_lengths": np.array([2, 4])},
           arrays=("chosen_lengths",), objects=("objective",)),
    Target("instances.coverage_skew", lambda **given: instances.coverage_skew(**given).reference,
           {"arms": 3, "prompts": 2, "skew": 1.5, "reward_bound": 2.0, "rng": 0},
           numbers=("skew", "reward_bound"), counts=("arms", "prompts"), objects=("rng",)),
    Target("instances.label_noise", lambda **given: instances.label_noise(**given).label_noise,
           {"problem": PROBLEM, "rate": 0.25}, numbers=("rate",), objects=("problem",)),
    Target("ChiSquaredPO", lambda **given: solve(PROBLEM, PAIRS, ChiSquaredPO(**given), rng=0).policy,
           {"beta": 0.5, "reward_class": BOX, "base": "chosen"}, numbers=("beta",), objects=("reward_class", "base")),
    Target("BestOfN", lambda **given: solve(PROBLEM, PAIRS, BestOfN(**given), rng=0).policy,
           {"n": 4, "reward_class": BOX, "beta": 0.5}, counts=("n",), numbers=("beta",), objects=("reward_class",)),
    Target("PessimisticMLE", PessimisticMLE, {"radius": 0.5, "delta": 0.125, "scale": 1.5, "ridge": 0.25},
           numbers=("radius", "delta", "scale", "ridge")),
    Target("RewardEnsemble", RewardEnsemble, {"beta": 0.5, "size": 3, "penalty": 0.5, "how": "mean"},
           numbers=("beta", "penalty"), counts=("size",), objects=("how",)),
    Target("advise", lambda **given: advise(**given).beta,
           {"data": PAIRS, "problem": PROBLEM, "delta": 0.125, "betas": [0.5, 1.0], "etas": [0.0, 0.25], "folds": 2,
            "rng": 0},
           arrays=("betas", "etas"), numbers=("delta",), counts=("folds",), objects=("data", "problem", "rng")),
    Target("win_rate", win_rates.win_rate,
           {"results": np.array([1.0, 0.5, 0.0, 1.0]), "level": 0.75, "resamples": 20, "rng": 0},
           arrays=("results",), numbers=("level",), counts=("resamples",), objects=("rng",)),
    Target("length_controlled_win_rate", win_rates.length_controlled_win_rate,
           {"results": np.array([1.0, 0.0, 1.0, 0.0, 1.0]), "differences": np.array([4.0, 3.0, -2.0, -1.0, 1.0])},
           arrays=("results", "differences"), loose=True),
    Target("bradley_terry", lambda **given: ranking.bradley_terry(["a", "b", "a"], ["b", "c", "c"], **given),
           {"results": np.array([1.0, 0.0, 0.5]), "level": 0.75}, arrays=("results",), numbers=("level",), loose=True),
]  # fmt: skip


class Strange:
    """An object that is nothing a function here takes."""

    def __repr__(self) -> str:
        return "Strange()"


WRONG = [None, "text", b"bytes", 3, -1.5, True, [], {}, (), set(), Strange(), Strange, RPO, Box, len, math, lambda: 0,
         np.zeros((2, 3)), np.float64(1.0), PROBLEM, PAIRS, OBJECTIVE, BOX, Unconstrained(), SADDLE, 10**400,
         float("nan"), range(3), pandas.DataFrame({"a": [1]}), torch.zeros(2), "chosen", ["chosen"]]  # fmt: skip
NUMBERS = [0, -1, 0.0, -0.0, 0.5, 1, 2, 3, 1e-320, 1e300, -1e300, float("nan"), float("inf"), -float("inf"), "0.5",
           b"1", True, False, np.True_, None, 1 + 0j, 0.5 + 1j, [0.5], (), {}, Strange(), np.float32(0.5),
           np.float16(0.5), np.int8(1), np.array(0.5), np.array([0.5]), np.array("0.5"), torch.tensor(0.5),
           Fraction(1, 2), Decimal("0.5"), 10**400, 2**53 + 1, 2**63, np.ma.masked, np.timedelta64(1, "s"),
           np.datetime64("2020-01-01"), datetime.timedelta(1), np.longdouble(0.5), len]  # fmt: skip
# Whole numbers that would cost their size in time or memory are left out here; what they cost is tested elsewhere.
COUNTS = [value for value in NUMBERS if not (isinstance(value, (int, float)) and abs(value) > 1e6)]
DTYPES = ["float32", "float16", "int64", "int8", "uint64", "bool", "complex128", "U8", "S8", "object", "m8[s]", "M8[s]",
          "longdouble", ">f8", [("x", "f8")]]  # fmt: skip
ENTRIES = [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e300, 1e-320, -1e300, 2**53 + 1, 10**400, None, "x",
           "0.5", [], [1.0, 2.0], Fraction(1, 3), Decimal("0.25"), 1j, True, Strange()]  # fmt: skip


@st.composite
def spoilt_arrays(draw: Any, given: Any) -> Any:
    array = np.asarray(given)
    how = draw(
        st.sampled_from(["dtype", "dtype", "mask", "mask", "imaginary", "entry", "entry", "entry", "shape", "container",
                         "wrong", "float"])
    )  # fmt: skip
    if how == "dtype":
        kind = draw(st.sampled_from(DTYPES))
        plain = array.astype("int64") if kind in ("m8[s]", "M8[s]") else array
        return plain.astype(np.dtype(kind))
    if how == "mask":
        mask = np.array(draw(st.lists(st.booleans(), min_size=array.size, max_size=array.size)), dtype=bool)
        return np.ma.masked_array(array, mask.reshape(array.shape))
    if how == "imaginary":
        return array + draw(st.sampled_from([0j, 1j, 1e-12j]))
    if how == "entry":
        spoilt = np.array(array, dtype=object)
        spoilt[tuple(draw(st.integers(0, size - 1)) for size in array.shape)] = chosen(draw, ENTRIES)
        return chosen(draw, [spoilt, spoilt.tolist()])
    if how == "shape":
        shapes = [array.T, array[None], array[..., None], array[:0], array[1:], array[..., 1:], array.ravel(),
                  array.sum(), np.concatenate([array, array]), np.broadcast_to(array, (2, *array.shape))]  # fmt: skip
        return chosen(draw, shapes)
    if how == "container":
        containers = [array.tolist(), tuple(array.tolist()), set(array.ravel().tolist()), iter(array.tolist()),
                      dict(enumerate(array.tolist())), np.asfortranarray(array), np.repeat(array, 2, axis=-1)[..., ::2],
                      pandas.DataFrame(array.reshape(len(array), -1)) if array.ndim <= 2 else array.data,
                      torch.tensor(array), torch.tensor(array, dtype=torch.float32),
                      torch.tensor(array, dtype=torch.bfloat16), torch.tensor(array, dtype=torch.float64).to_sparse(),
                      torch.tensor(array, dtype=torch.float64, requires_grad=True), repr(array.tolist())]  # fmt: skip
        return chosen(draw, containers)
    if how == "wrong":
        return chosen(draw, WRONG)
    with np.errstate(all="ignore"):
        return array * draw(st.floats(allow_nan=True, allow_infinity=True))


@st.composite
def calls(draw: Any) -> tuple[Target, str, str, Any]:
    """A target, one of its arguments with its kind, and what is passed for it."""
    target = draw(st.sampled_from(TARGETS))
    kinds = {"array": target.arrays, "number": target.numbers, "count": target.counts, "object": target.objects}
    kind, name = draw(st.sampled_from([(kind, name) for kind, names in kinds.items() for name in names]))
    if kind == "array":
        return target, kind, name, draw(spoilt_arrays(target.arguments[name]))
    return target, kind, name, chosen(draw, {"number": NUMBERS, "count": COUNTS, "object": WRONG}[kind])


REFUSED, UNKNOWN = object(), object()


def honest(value: Any) -> Any:
    """Return the float64 array of what is plainly real numbers, REFUSED for what is not, UNKNOWN between the two."""
    if isinstance(value, torch.Tensor):
        return UNKNOWN if value.is_sparse or value.requires_grad else honest(value.double().numpy())
    if isinstance(value, np.ma.MaskedArray):
        return REFUSED if np.ma.getmaskarray(value).any() else honest(np.asarray(value))
    if isinstance(value, np.ndarray) and value.dtype.kind in "bmMSUcV":
        complex_but_real = value.dtype.kind == "c" and not value.imag.any()
        return UNKNOWN if complex_but_real or not value.size else REFUSED
    if not isinstance(value, (np.ndarray, list, tuple)):
        return UNKNOWN
    try:
        leaves = np.array(value, dtype=object)
    except ValueError:
        return REFUSED
    if any(isinstance(leaf, (str, bytes, bool, np.bool_, complex, type(None), Strange)) for leaf in leaves.ravel()):
        return REFUSED
    if not all(isinstance(leaf, (int, float, np.integer, np.floating)) for leaf in leaves.ravel()):
        return UNKNOWN
    if any(isinstance(leaf, int) and abs(leaf) > 2**53 for leaf in leaves.ravel()):
        return UNKNOWN
    return leaves.astype(np.float64)


def honest_number(value: Any) -> Any:
    if isinstance(value, (str, bytes, bool, np.bool_, complex, np.timedelta64, datetime.timedelta, Strange)):
        return REFUSED
    if value is np.ma.masked:
        return REFUSED
    plain = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, np.timedelta64)
    return float(value) if plain and abs(value) <= 2**53 else UNKNOWN


def call_outcome(drawn: tuple[Target, str, str, Any]) -> str:
    target, kind, name, value = drawn
    arguments = dict(target.arguments) | {name: value}
    reading = {"array": honest, "number": honest_number, "count": honest_number}.get(kind, lambda value: UNKNOWN)(value)

    def check(result: Any) -> None:
        where = f"{target.name}({name}={value!r})"
        assert reading is not REFUSED, f"{where} is taken as numbers"
        if isinstance(reading, (np.ndarray, float)):
            finite = np.isfinite(np.asarray(reading)).all()
            assert target.loose or finite, f"{where} is not finite"
            held = kind == "array" and finite and ((np.rint(reading) == reading) & (np.abs(reading) <= 2**53)).all()
            whole_numbers = held and np.asarray(target.arguments[name]).dtype.kind == "i"
            plain = np.asarray(reading).astype(np.int64) if whole_numbers else reading
            coarse = any(digits in str(getattr(value, "dtype", "")) for digits in ("16", "32"))
            try:
                expected = numbers_in(target.call(**{**arguments, name: plain}))
            except RPOError:  # half precision may sum to one only to its own rounding
                assert coarse, f"{where} is taken, and plain numbers are not"
                return
            tolerance = 1e-2 if coarse else 1e-9
            assert same(numbers_in(result), expected, tolerance), f"{where} differs from plain numbers"
        else:
            unspoilt = numbers_in(target.call(**target.arguments))
            allowed = target.loose or any(map(math.isnan, unspoilt))
            assert allowed or not any(map(math.isnan, numbers_in(result))), f"{where} gives NaN"

    return outcome(lambda: target.call(**arguments), check)


@pytest.mark.parametrize("tier", TIERS)
def test_arguments(tier: int, record_property: Any) -> None:
    explore("arrays and numbers", tier, calls(), call_outcome, record_property)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_target_works_unspoilt(target: Target) -> None:
    """What is spoilt above is right before: without it every outcome would be a refusal."""
    target.call(**target.arguments)


CHECKED: dict[str, Callable[[Any], Any]] = {
    "positive": lambda value: checks.positive("x", value),
    "nonnegative": lambda value: checks.nonnegative("x", value),
    "fraction": lambda value: checks.fraction("x", value),
    "integer": lambda value: checks.integer("x", value, minimum=0),
    "one_of": lambda value: checks.one_of("x", value, ("chosen", "text")),
    "finite": lambda value: checks.finite("x", value),
    "probabilities": lambda value: checks.probabilities("x", value),
    "generator": lambda value: checks.generator("x", value),
}


def check_outcome(drawn: tuple[str, Any]) -> str:
    """A number that passes a check is that number, to the last bit, and so is a whole number of any size."""
    name, value = drawn

    def check(result: Any) -> None:
        if name in ("positive", "nonnegative", "fraction"):
            assert math.isfinite(result) and result == value and honest_number(value) is not REFUSED
        elif name == "integer":
            assert type(result) is int and result == value and honest_number(value) is not REFUSED
        elif name in ("finite", "probabilities"):
            reading = (
                honest(value) if isinstance(value, (np.ndarray, list, tuple, torch.Tensor)) else honest_number(value)
            )
            assert reading is not REFUSED and np.isfinite(result).all()
            assert not isinstance(reading, np.ndarray) or np.array_equal(result, reading)

    return outcome(lambda: CHECKED[name](value), check)


@pytest.mark.parametrize("tier", TIERS)
def test_checks(tier: int, record_property: Any) -> None:
    values = (
        st.sampled_from(NUMBERS) | st.sampled_from(WRONG) | st.integers() | st.integers(2**53, 2**70) | st.floats()
        | spoilt_arrays(POLICY)
    )  # fmt: skip
    explore("checks", tier, st.tuples(st.sampled_from(sorted(CHECKED)), values), check_outcome, record_property)


def test_a_typed_error_is_what_the_package_defines() -> None:
    assert issubclass(rpo.core.errors.InvalidArgument, RPOError)
