"""What every public function of bandit, core and compare does with an argument of the wrong kind: one typed refusal.

`CALLS` holds one call that succeeds for each of them. Each of its arguments is replaced, one at a time, by objects of
other kinds; what comes back must be one of `rpo.core.errors`, never an answer and never a raw exception.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import pandas
import pytest
from wrong_arguments import answered, call

import rpo
from rpo import bandit, compare
from rpo.bandit import (
    Box,
    ContextualBandit,
    LinearBall,
    LinearSoftmaxPolicy,
    PreferenceCounts,
    RankedLists,
    TabularSoftmaxPolicy,
    baselines,
    bounds,
    coverage,
    instances,
    plots,
)
from rpo.bandit.plots import policies as plotted
from rpo.bandit.plots.animation import run_frame
from rpo.bandit.simulation import Maximin
from rpo.core import conversions, divergences, gao
from rpo.core.errors import InvalidArgument
from rpo.core.likelihoods import SFT, BradleyTerry
from rpo.core.objectives import DPO, RPO

PROBLEM = instances.random(prompts=2, arms=3, features=2, rng=0)
DATA = PROBLEM.sample_preferences(60, rng=1)
LISTS = PROBLEM.sample_rankings(60, size=3, rng=1)
OBJECTIVE = RPO(beta=0.5, eta=0.2)
UNIFORM = np.full((2, 3), 1 / 3)
SEQUENCES = np.array([[0, 0], [0, 1], [1, 1]])
REWARD = np.asarray(PROBLEM.reward)
SOLUTION = bandit.solve(PROBLEM, DATA, OBJECTIVE, prompt_weights="population", method="newton")
SADDLE = SOLUTION.saddle
ARGUMENTS = bounds.bound_arguments(PROBLEM, 60, base=SADDLE.base, reward_class=Box(2.0))
FREE = bandit.solve(PROBLEM, DATA, OBJECTIVE, reward_class=bandit.Unconstrained(), method="newton")
RUN = bandit.fit(PROBLEM.softmax_policy(), DATA, OBJECTIVE)
LM = compare.tiny_gpt2(prompts=2, vocab_size=2, length=1, hidden_size=8, layers=1, rng=0)
LM_BANDIT = LM.bandit(np.array([[1.0, 0.0], [0.0, 1.0]]))
LM_DATA = LM_BANDIT.sample_preferences(20, rng=0)
LEDGER = bounds.slack_ledger(PROBLEM, DATA, SOLUTION, comparator=UNIFORM, coverage=1.0)
MASS = plotted.mass_frame(PROBLEM, DATA, {"uniform": UNIFORM})
PATHS = plotted.simplex_frame(PROBLEM, DATA, etas=[0.1], betas=[0.5, 0.25])
GAPS = pandas.DataFrame({"series": ["a", "a"], "n": [10, 100], "mean": [0.5, 0.2], "standard_error": [0.01, 0.01]})
COVERED = pandas.DataFrame({"coverage": [0.5, 1.0, 2.0, 4.0], "gap": [0.1, 0.2, 0.3, 0.4], "method": ["RPO"] * 4})
AXES = [(beta, eta, seed) for beta in (0.1, 0.2) for eta in (0.1, 0.2) for seed in (0, 1)]
CELLS = pandas.DataFrame(AXES, columns=["beta", "eta", "seed"]).assign(n=10, gap=np.linspace(0.1, 0.8, 8))
LOGPS = np.log([0.5, 0.25])
LENGTHS, EQUAL = np.array([3.0, 5.0]), np.array([3.0, 3.0])
KL, GOLD = np.array([0.1, 0.5, 1.0, 2.0]), np.array([0.3, 0.5, 0.55, 0.4])


DATA_PAIR = {"problem": PROBLEM, "data": DATA}
CALLS = {
    "solve": call(
        bandit.solve, "problem", "data", "objective", **DATA_PAIR, objective=OBJECTIVE, reward_class=Box(2.0),
        prompt_weights="data", method="newton", start=np.zeros((2, 3)),
    ),
    "solve custom": call(
        bandit.solve, **DATA_PAIR, objective=RPO(beta=0.5, eta=0.2, base="custom"), base_policy=UNIFORM, method="newton"
    ),
    "solve baseline": call(bandit.solve, "problem", "data", **DATA_PAIR, objective=baselines.PlugIn(beta=0.5)),
    "solve reference": call(
        bandit.solve, "problem", "data", **DATA_PAIR, objective=baselines.ReferencePolicy()
    ),
    "solve_batch": call(
        bandit.solve_batch, "wins", "objective", "reference", "reward_class", wins=DATA.wins()[None],
        objective=OBJECTIVE, reference=PROBLEM.reference, reward_class=Box(2.0), d0=PROBLEM.d0,
        start=np.zeros((1, 2, 3)),
    ),
    "sample_wins": call(bandit.sample_wins, "problem", "n", "draws", "rng", problem=PROBLEM, n=9, draws=2, rng=0),
    "fit": call(
        bandit.fit, "policy", "data", "objective", policy=PROBLEM.softmax_policy(), data=DATA, objective=OBJECTIVE,
        optimizer="newton", learning_rate=1.0, max_steps=9, tolerance=1e-6, prompt_weights="data", log_every=1,
        proxy_reward=REWARD, starts=2, rng=0,
    ),
    "preference_strength": call(bandit.preference_strength, "data", "rewards", data=DATA, rewards=REWARD[None]),
    "flip_weakest": call(
        bandit.flip_weakest, "data", "strength", "share", data=DATA, strength=np.ones(len(DATA.count)), share=0.5
    ),
    "soft_labels": call(bandit.soft_labels, "data", "right", data=DATA, right=0.5),
    "rpo.fit": call(
        rpo.fit, "policy", "data", "objective", policy=PROBLEM.softmax_policy(), data=DATA, objective=OBJECTIVE
    ),
    "maximum_likelihood_reward": call(
        bandit.maximum_likelihood_reward, "problem", "data", "objective", **DATA_PAIR, objective=OBJECTIVE
    ),
    "build_saddle": call(
        bandit.build_saddle, "problem", "data", "objective", "reward_class", **DATA_PAIR, objective=OBJECTIVE,
        reward_class=Box(2.0), prompt_weights="data",
    ),
    "training_path": call(
        bandit.training_path, "policy", "data", "objective", "steps", "rate", policy=PROBLEM.softmax_policy(),
        data=DATA, objective=DPO(beta=0.5), labels=REWARD, steps=2, rate=0.01,
    ),
    "gradient_entanglement": call(
        bandit.diagnostics.gradient_entanglement, "policy", "data", policy=PROBLEM.softmax_policy(), data=DATA
    ),
    "ranking_accuracy": call(
        bandit.diagnostics.ranking_accuracy, "logps", "data", logps=np.log(UNIFORM), data=DATA
    ),
    "idealised_ranking_accuracy": call(
        bandit.diagnostics.idealised_ranking_accuracy, "log_reference", "data", "beta", "chosen_rate",
        log_reference=np.log(UNIFORM), data=DATA, beta=0.5, chosen_rate=0.75,
    ),
    "ranking_loss": call(
        bandit.diagnostics.ranking_loss, "log_reference", "data", "beta", log_reference=np.log(UNIFORM), data=DATA,
        beta=0.5,
    ),
    "gold_slope": call(
        bandit.diagnostics.gold_slope, "policy", "gold", "proxy", policy=UNIFORM, gold=REWARD, proxy=REWARD
    ),
    "policy_answer": call(
        bandit.bilevel.policy_answer, "problem", "reward", "slope", "beta", problem=PROBLEM, reward=REWARD,
        slope=REWARD, beta=0.5, divergence=divergences.KL(),
    ),
    "label_loss": call(
        bandit.bilevel.label_loss, "problem", "reward", "beta", problem=PROBLEM, reward=REWARD, beta=0.5,
        divergence=divergences.KL(),
    ),
    "kept_weights": call(bandit.filters.kept_weights, "scores", "keep", scores=REWARD, keep="best"),
    "kept_policy": call(
        bandit.filters.kept_policy, "reference", "scores", "keep", "n", reference=UNIFORM, scores=REWARD, keep="best",
        n=2,
    ),
    "proxy_agreement": call(
        bandit.filters.proxy_agreement, "proxy", "gold", "weights", proxy=REWARD, gold=REWARD, weights=UNIFORM
    ),
    "token_logps": call(bandit.tree.token_logps, "policy", "sequences", policy=UNIFORM, sequences=SEQUENCES),
    "token_advantages": call(
        bandit.tree.token_advantages, "policy", "reference", "sequences", "beta", policy=UNIFORM, reference=UNIFORM,
        sequences=SEQUENCES, beta=0.5,
    ),
    "beam_search": call(
        bandit.tree.beam_search, "scores", "sequences", "width", scores=np.zeros((2, 3, 2)), sequences=SEQUENCES,
        width=1,
    ),
    "geometric_mean": call(bandit.diagnostics.geometric_mean, "policies", policies=UNIFORM[None], weights=np.ones(1)),
    "bhattacharyya": call(bandit.diagnostics.bhattacharyya, "first", "second", first=UNIFORM, second=UNIFORM),
    "robust_policy": call(
        bandit.robust_policy, "problem", "reward_class", "beta", "base", problem=PROBLEM, reward_class=Box(2.0),
        beta=0.5, base="reference",
    ),
    "Hull": call(bandit.Hull, "rewards", rewards=REWARD[None]),
    "Intervals": call(bandit.Intervals, "lower", "upper", lower=REWARD, upper=REWARD),
    "certify": call(bandit.certify, "saddle", "reward", saddle=SADDLE, reward=SOLUTION.reward, policy=UNIFORM),
    "minimizer_exists": call(bandit.minimizer_exists, "saddle", saddle=SADDLE),
    "policy_metrics": call(
        bandit.policy_metrics, "logps", "saddle", "problem", logps=np.log(UNIFORM), saddle=SADDLE, problem=PROBLEM,
        proxy_reward=REWARD,
    ),
    "policy_outcome": call(
        bandit.policy_outcome, "policy", "problem", "base", policy=UNIFORM, problem=PROBLEM, base=UNIFORM,
        proxy_reward=REWARD,
    ),
    "advise": call(
        bandit.advise, "data", "rng", data=DATA, problem=PROBLEM, reward_class=Box(2.0), delta=0.05, betas=[0.5],
        etas=[0.1], base="chosen", split="folds", folds=2, rng=0,
    ),
    "simulate": call(
        bandit.simulate, "instance", "methods", "grid", "seeds", "rng", instance="coverage_skew",
        methods=[DPO(beta=0.5)], grid={"n": [9]}, seeds=2, rng=0, table_format="csv", jobs=1, backend="loky",
    ),
    "bandit_from_preferences": call(
        bandit.bandit_from_preferences, "counts", counts=DATA, reward_bound=1.0
    ),
    "read_preferences": call(
        bandit.read_preferences, "path", "ties", path=bandit.datasets.citations_path(), ties="drop"
    ),
    "ContextualBandit": call(
        ContextualBandit, "d0", "reference", d0=PROBLEM.d0, reference=UNIFORM, reward=REWARD, reward_bound=2.0,
        features=np.ones((2, 3, 1)), behavior=UNIFORM, label_noise=0.1, prompt_labels=("a", "b"),
        response_labels=("a", "b", "c"),
    ),
    "sample_preferences": call(PROBLEM.sample_preferences, "n", "rng", n=9, labels=REWARD, rng=0),
    "expected_reward": call(PROBLEM.expected_reward, "policy", policy=UNIFORM),
    "suboptimality": call(PROBLEM.suboptimality, "policy", policy=UNIFORM, comparator=UNIFORM),
    "sample_rankings": call(PROBLEM.sample_rankings, "n", "size", "rng", n=9, size=3, score_noise=0.5, rng=0),
    "from_lists": call(
        RankedLists.from_lists, "prompt", "responses", "num_prompts", "num_responses", prompt=np.array([0]),
        responses=np.array([[0, 1]]), num_prompts=2, num_responses=2, count=np.array([2.0]),
        scores=np.array([[1.0, 0.5]]), prompt_labels=("x", "y"), response_labels=("a", "b"),
    ),
    "to_pairs": call(LISTS.to_pairs, "rule", rule="adjacent"),
    "from_pairs": call(
        PreferenceCounts.from_pairs, "prompt", "chosen", "rejected", "num_prompts", "num_responses",
        prompt=np.array([0, 1]), chosen=np.array([0, 1]), rejected=np.array([1, 2]), num_prompts=2, num_responses=3,
        count=np.array([2.0, 1.0]), prompt_labels=("a", "b"), response_labels=("a", "b", "c"),
    ),
    "from_wins": call(PreferenceCounts.from_wins, "wins", wins=DATA.wins()),
    "Box": call(Box, "bound", bound=2.0),
    "LinearBall": call(LinearBall, "features", "radius", features=np.ones((2, 3, 1)), radius=1.0),
    "TabularSoftmaxPolicy": call(TabularSoftmaxPolicy, "problem", problem=PROBLEM, parameters=np.zeros((2, 3))),
    "LinearSoftmaxPolicy": call(LinearSoftmaxPolicy, "problem", problem=PROBLEM, parameters=np.zeros(2)),
    "with_parameters": call(PROBLEM.softmax_policy().with_parameters, "parameters", parameters=np.zeros((2, 3))),
    "Maximin": call(Maximin, objective=OBJECTIVE, reward_class="ball", bound=1.0, prompt_weights="data"),
    "coverage_coefficient": call(
        coverage.coverage_coefficient, "problem", problem=PROBLEM, comparator=UNIFORM, base=UNIFORM,
        reward_class=Box(2.0), data_distribution=DATA, data_prompt_distribution=DATA.prompt_frequencies, tolerance=1e-9,
    ),
    "chosen_distribution": call(
        coverage.chosen_distribution, "problem", problem=PROBLEM, pair_distribution=PROBLEM.pair_distribution()
    ),
    "empirical_pair_distribution": call(coverage.empirical_pair_distribution, "counts", counts=DATA),
    "effective_resistance": call(
        coverage.effective_resistance, "weights", "p", "q", weights=np.ones((2, 2)), p=np.array([1.0, 0.0]),
        q=np.array([0.0, 1.0]), tolerance=1e-9,
    ),
    "bound_arguments": call(
        bounds.bound_arguments, "problem", "base", "reward_class", problem=PROBLEM, data=DATA, base=UNIFORM,
        reward_class=Box(2.0), comparator=UNIFORM, coverage=1.0,
    ),
    "suboptimality_bound": call(bounds.suboptimality_bound, "route", *ARGUMENTS, route="paper", **ARGUMENTS, delta=0.1),
    "paper_bound": call(bounds.paper_bound, *ARGUMENTS, **ARGUMENTS),
    "sharper_bound": call(bounds.sharper_bound, *ARGUMENTS, **ARGUMENTS),
    "hellinger_bound": call(bounds.hellinger_bound, *ARGUMENTS, **ARGUMENTS),
    "log_covering": call(
        bounds.log_covering, "reward_class", "prompts", "arms", "radius", reward_class=Box(2.0), prompts=2, arms=3,
        radius=0.1,
    ),
    "slack_ledger": call(
        bounds.slack_ledger, "problem", "data", "solution", **DATA_PAIR, solution=SOLUTION, comparator=UNIFORM,
        coverage=1.0, delta=0.1, chain="paper",
    ),
    "clopper_pearson": call(bounds.clopper_pearson, "successes", "trials", "level", successes=3, trials=9, level=0.9),
    "loglog_slope": call(
        bounds.loglog_slope, "n", "means", "standard_errors", n=np.array([1.0, 2.0, 4.0]),
        means=np.array([4.0, 2.0, 1.0]), standard_errors=np.full(3, 0.1), level=0.9, min_ratio=3.0,
    ),
    "PlugIn": call(baselines.PlugIn, "beta", "base", beta=0.5, reward_class=Box(1.0), base="chosen"),
    "Greedy": call(baselines.Greedy, "base", "beta", reward_class=Box(1.0), base="chosen", beta=1.0),
    "BestOfN": call(baselines.BestOfN, "n", "base", "beta", n=2, reward_class=Box(1.0), base="chosen", beta=1.0),
    "BasePolicy": call(baselines.BasePolicy, "base", base="chosen"),
    "ChiSquaredPO": call(
        baselines.ChiSquaredPO, "beta", "base", beta=0.5, reward_class=Box(1.0), clip=2.0, base="chosen"
    ),
    "RewardEnsemble": call(
        baselines.RewardEnsemble, "beta", "size", "how", "penalty", "base", "members", "ridge", "scale", beta=0.5,
        size=2, how="mean", penalty=1.0, reward_class=Box(1.0), base="chosen", members="bootstrap", ridge=0.3,
        scale=1.0,
    ),
    "ensemble_rewards": call(
        baselines.ensemble_rewards, "problem", "data", "size", "members", "ridge", "scale", "base", "rng", **DATA_PAIR,
        size=2, members="prior", ridge=0.3, scale=1.0, base="reference", rng=0,
    ),
    "entropic": call(baselines.entropic, "rewards", "penalty", rewards=REWARD[None], penalty=0.5),
    "annotator_groups": call(
        bandit.annotator_groups, "problem", "annotators", "groups", "restarts", "rounds", "tolerance", "rng",
        problem=PROBLEM, annotators=[DATA, DATA], groups=2, restarts=1, rounds=3, tolerance=1e-8, rng=0,
    ),
    "PessimisticMLE": call(
        baselines.PessimisticMLE, "delta", "scale", "base", reward_class=Box(1.0), radius=0.5, delta=0.1, scale=1.0,
        ridge=0.1, base="chosen", prompt_weights="data",
    ),
    "coverage_skew": call(
        instances.coverage_skew, "arms", "prompts", "skew", "reward_bound", "rng", arms=3, prompts=1, skew=1.0,
        reward_bound=2.0, rng=0,
    ),
    "random": call(
        instances.random, "prompts", "arms", "reward_bound", "rng", prompts=1, arms=3, features=2, reward_bound=2.0,
        rng=0,
    ),
    "disconnected": call(
        instances.disconnected, "arms", "bridge", "rng", arms=4, prompts=1, bridge=0.1, reward_bound=2.0, rng=0
    ),
    "linear_outside_span": call(
        instances.linear_outside_span, "arms", "dimension", "outside", "leak", "rng", arms=5, dimension=2, outside=1,
        prompts=1, leak=0.1, reward_bound=2.0, rng=0,
    ),
    "zhu_four_arms": call(instances.zhu_four_arms, "n", "radius", n=9, radius=2.0),
    "label_noise": call(instances.label_noise, "problem", "rate", problem=PROBLEM, rate=0.2),
    "simplex_frame": call(
        plotted.simplex_frame, "problem", "data", "etas", "betas", **DATA_PAIR, etas=[0.1], betas=[0.5], prompt=0,
        reward_class=Box(2.0),
    ),
    "mass_frame": call(
        plotted.mass_frame, "problem", "data", "policies", **DATA_PAIR, policies={"a": UNIFORM}, prompt=0
    ),
    "mass": call(plots.mass, "frame", frame=MASS),
    "simplex": call(plots.simplex, "frame", "problem", "data", frame=PATHS, **DATA_PAIR),
    "slack_waterfall": call(plots.slack_waterfall, "frame", frame=LEDGER.to_frame()),
    "gap_against_n": call(plots.gap_against_n, "gaps", gaps=GAPS),
    "gap_against_coverage": call(plots.gap_against_coverage, "frame", "bins", frame=COVERED, bins=2),
    "heatmap": call(plots.heatmap, "frame", frame=CELLS),
    "comparison_network": call(
        plots.comparison_network, "source", "prompt", source=PROBLEM, prompt=0, p=UNIFORM, q=UNIFORM
    ),
    "run_frame": call(
        run_frame, "problem", "data", "beta", "eta", **DATA_PAIR, beta=0.5, eta=0.2, along="step", points=[1.0]
    ),
    "RPO": call(RPO, "beta", "eta", beta=0.5, eta=0.2, sft_reduction="sequence_sum", base="chosen"),
    "DPO": call(DPO, "beta", beta=0.5, base="chosen"),
    "RPO()": call(
        OBJECTIVE, "policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps",
        policy_chosen_logps=LOGPS, policy_rejected_logps=LOGPS, reference_chosen_logps=LOGPS,
        reference_rejected_logps=LOGPS, base_logps=LOGPS, weights=np.array([0.5, 0.5]),
    ),
    "RPO() by length": call(
        RPO(beta=0.5, eta=0.2, sft_reduction="sequence_mean"), "chosen_lengths", policy_chosen_logps=LOGPS,
        policy_rejected_logps=LOGPS, reference_chosen_logps=LOGPS, reference_rejected_logps=LOGPS,
        chosen_lengths=LENGTHS,
    ),
    "SFT": call(SFT, "reduction", reduction="sequence_sum"),
    "SFT()": call(
        SFT(), "policy_chosen_logps", "chosen_lengths", policy_chosen_logps=LOGPS, chosen_lengths=LENGTHS
    ),
    "BradleyTerry": call(BradleyTerry, "center_rewards_coefficient", center_rewards_coefficient=0.1),
    "BradleyTerry()": call(
        BradleyTerry(),
        "policy_chosen_logps",
        "policy_rejected_logps",
        policy_chosen_logps=LOGPS,
        policy_rejected_logps=LOGPS,
    ),
    "from_official": call(conversions.from_official, "beta", "eta", beta=0.5, eta=0.2),
    "from_authors_averaged": call(
        conversions.from_authors_averaged, "beta", "nll_loss_coef", beta=0.5, nll_loss_coef=0.2
    ),
    "from_trl": call(conversions.from_trl, "beta", "loss_weights", beta=0.5, loss_weights=[1.0, 0.1]),
    "to_official": call(conversions.to_official, "objective", objective=OBJECTIVE),
    "to_authors_averaged": call(
        conversions.to_authors_averaged, "objective", "chosen_lengths", objective=OBJECTIVE, chosen_lengths=EQUAL
    ),
    "to_trl": call(conversions.to_trl, "objective", "chosen_lengths", objective=OBJECTIVE, chosen_lengths=EQUAL),
    "trl_batch_weight": call(
        conversions.trl_batch_weight, "objective", "chosen_lengths", objective=OBJECTIVE, chosen_lengths=LENGTHS
    ),
    "fit_gao": call(
        gao.fit_gao, "kl", "gold", "form", kl=KL, gold=GOLD, form="best_of_n", reference_gold=0.0,
        standard_error=np.full(4, 0.1), level=0.9,
    ),
    "tiny_gpt2": call(
        compare.tiny_gpt2, "prompts", "vocab_size", "length", "hidden_size", "layers", "spread", "rng", prompts=2,
        vocab_size=2, length=1, hidden_size=8, layers=1, spread=0.5, rng=0,
    ),
    "EnumerableLM": call(
        compare.EnumerableLM, "model", "prompts", "length", model=LM.model, prompts=LM.prompts, length=1
    ),
    "fit_language_model": call(
        compare.fit_language_model, "lm", "data", "objective", lm=LM, data=LM_DATA, objective=OBJECTIVE,
        problem=LM_BANDIT, start=LM, steps=1, learning_rate=0.01, log_every=1, proxy_reward=np.ones((2, 2)),
    ),
    "kl_coverage": call(
        compare.kl_coverage, "policy", "reference", "draws", "repetitions", "level", "rng", policy=LM, reference=LM,
        draws=2, repetitions=1, level=0.9, exact=0.1, rng=0,
    ),
    "measure": call(compare.measure, "run", "theory", run=RUN, theory=SOLUTION),
    "distance": call(compare.distance, "logps", "theory", logps=np.log(UNIFORM), theory=FREE),
    "plot": call(compare.plot, "results", results=(SOLUTION, RUN), labels=("a", "b")),
    "total_variation": call(compare.total_variation, "first", "second", first=UNIFORM, second=UNIFORM),
    "bootstrap_gao": call(
        gao.bootstrap_gao, "kl", "gold", "form", "rng", kl=np.stack([KL, KL]), gold=np.stack([GOLD, GOLD]),
        form="best_of_n", reference_gold=0.0, level=0.9, resamples=20, rng=0,
    ),
}  # fmt: skip

# For these a text, a callable or another number is as good as what the call has.
OPEN = {
    ("simulate", "seeds"): (list,),
    ("Maximin", "reward_class"): (str, type, Callable),
    ("Maximin", "objective"): (object,),  # a class or a partial is completed by the grid, and judged by `simulate`
    ("read_preferences", "path"): (str,),
    ("fit", "proxy_reward"): (str,),
    ("rpo.fit", "policy"): (str,),  # the name of a model
    **{(name, "reward_class"): (FunctionType,) for name in dir(baselines)},  # `simulate` calls it with each problem
}


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_another_kind_is_refused_by_a_typed_error(name: str) -> None:
    found = answered(CALLS[name], {argument: kinds for (of, argument), kinds in OPEN.items() if of == name})
    assert not found, f"{name}\n" + "\n".join(found)


def test_every_public_function_is_among_the_calls() -> None:
    """Records and what takes no argument aside; a new function must be added above, or here with a reason."""
    aside = {
        "Advice", "AnnotatorGroups", "Baseline", "BatchSolution", "Certificate", "Existence", "PolicyResult",
        "PreferenceTable", "Saddle", "TrainingPath",
        "Solution", "Bound", "Ledger", "LedgerEntry", "Proportion", "Slope", "Coverage",  # records
        "PreferenceCounts", "RankedLists",  # by their constructors `from_pairs`, `from_wins` and `from_lists`
        "Comparison", "GoldExperiment", "NonFiniteLoss",  # records and an error
        "Unconstrained", "ReferencePolicy", "list_baselines",  # take nothing
        "compare", "gold_experiment", "draw_problem", "fit_with_trainer", "write_report", "save_gold",  # below
    }  # fmt: skip
    called = {name.split("(")[0].split(" ")[0] for name in CALLS}
    public = {
        name
        for module in (bandit, bounds, coverage, baselines, compare)
        for name in module.__all__
        if callable(getattr(module, name))
    }
    missing = (public | {*instances.list_instances()}) - aside - called
    assert not missing, missing


@pytest.mark.parametrize(
    ("function", "arguments", "wrong"),
    [
        (compare.compare, {}, {"objective": "RPO", "steps": "many", "skew_draws": 1.5, "seed": True}),
        (compare.gold_experiment, {}, {"betas": 3.0, "etas": "text", "ns": 4, "draws": None, "seed": -1}),
        (
            compare.draw_problem,
            {"prompts": 1, "vocab_size": 2, "length": 1, "num_preferences": 9, "reward_bound": 1.0, "rng": 0},
            {"prompts": None, "vocab_size": 1, "length": "a", "num_preferences": 0.5, "reward_bound": -1, "rng": None},
        ),
        (
            compare.fit_with_trainer,
            {"lm": LM, "data": LM_DATA, "objective": OBJECTIVE},
            {"lm": LM.model, "data": LM_BANDIT, "objective": RPO, "steps": 0, "learning_rate": "fast"},
        ),
        (compare.write_report, {"directory": "nowhere"}, {"comparison": SOLUTION}),
        (compare.save_gold, {"directory": "nowhere"}, {"result": SOLUTION}),
    ],
)
def test_long_calls_refuse_before_they_start(
    function: Callable[..., Any], arguments: dict[str, Any], wrong: dict[str, Any]
) -> None:
    for name, item in wrong.items():
        with pytest.raises(InvalidArgument, match=f"^({name}|n): expected"):
            function(**{**arguments, name: item})
