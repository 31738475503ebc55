"""Methods on language models: the loss trained is the formula on every path, and the optimum that of the table."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import models_for_tests
import numpy as np
import pytest
import torch
from test_parity import naive_logps
from training import tiny_pairs, trainer

import rpo
from rpo.bandit import Unconstrained, solve
from rpo.bandit.metrics import total_variation
from rpo.compare.enumerable import tiny_gpt2
from rpo.compare.equivalence import connected_preferences
from rpo.compare.training import fit_language_model
from rpo.compare.with_trainer import fit_with_trainer
from rpo.core.divergences import KL, ChiSquaredKL, Divergence, ForwardKL, JensenShannon
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import Objective
from rpo.llm.data import prepare_pairs
from rpo.llm.data.collate import group_of
from rpo.llm.data.pairs import PreparedPairs
from rpo.llm.logps.scoring import PaddedPath
from rpo.methods import registry

EXAMPLES = Path(__file__).parents[2] / "examples" / "smollm2"
LENGTH = 2
# SimPO and the like divide by the length: on a table, whose responses have one token, its beta is half as large.
CASES: dict[str, tuple[Objective, Objective]] = {
    "DPO": (rpo.DPO(beta=0.5),) * 2,
    "RPO": (rpo.RPO(beta=0.5, eta=0.1, base="responses"),) * 2,
    "IPO": (rpo.IPO(tau=0.5),) * 2,
    "RobustDPO": (rpo.RobustDPO(beta=0.5, epsilon=0.1),) * 2,
    "ConservativeDPO": (rpo.ConservativeDPO(beta=0.5, epsilon=0.1),) * 2,
    "JS": (rpo.FDPO(beta=1.0, divergence=JensenShannon()),) * 2,
    "ForwardKL": (rpo.FDPO(beta=1.0, divergence=ForwardKL()),) * 2,
    "ChiPO": (rpo.ChiPO(beta=0.5),) * 2,
    "SimPO": (rpo.SimPO(beta=2.0, gamma=0.3), rpo.SimPO(beta=2.0 / LENGTH, gamma=0.3)),
    "NCA": (rpo.NCA(beta=0.5),) * 2,
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("IPO", "SimPO") else pytest.mark.slow) for n in CASES]
)
def test_transformer_reaches_the_optimum_of_the_table(name: str) -> None:
    """Total variation at most 1e-6 after 800 full-batch steps of AdamW, while the optimum moved by over 0.05."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lm = tiny_gpt2(prompts=2, vocab_size=3, length=LENGTH, rng=0)
    problem = lm.bandit(np.random.default_rng(1).uniform(0, 2, (2, 9)), reward_bound=2.0)
    data, _ = connected_preferences(problem, 1500, rng=2)
    on_model, on_table = CASES[name]
    run = fit_with_trainer(lm, data, on_model, steps=800)
    exact = rpo.fit(problem.softmax_policy(), data, on_table, tolerance=1e-9)
    torch.set_num_threads(threads)
    assert exact.status == "converged"
    assert total_variation(run.policy, exact.policy).max() <= 1e-6
    assert total_variation(exact.policy, problem.reference).max() > 0.05
    assert run.objective == on_model.to_dict()


def test_an_enumerable_model_takes_an_objective_with_a_shift() -> None:
    """Nothing on a table to hold it against: the run ends, and its last loss is the formula at the last shift."""
    lm = tiny_gpt2(prompts=2, vocab_size=3, length=LENGTH, rng=0)
    problem = lm.bandit(np.random.default_rng(1).uniform(0, 2, (2, 9)), reward_bound=2.0)
    data, _ = connected_preferences(problem, 300, rng=2)
    for objective, start in ((rpo.KTO(beta=0.5), 0.5), (rpo.BCO(beta=0.5), np.log(2.0))):
        run = fit_with_trainer(lm, data, objective, steps=20)
        losses = [row["loss"] for row in run.history]
        assert losses[0] == pytest.approx(start, abs=1e-6) and losses[-1] < losses[0]
    assert run.history[-2]["rewards/shift"] != 0


def test_wpos_weights_are_the_policys_own_and_have_no_gradient(tmp_path) -> None:
    """On the enumerable model, whose last loss is the formula on exact sums; a batch's likeness is a constant."""
    lm = tiny_gpt2(prompts=2, vocab_size=3, length=LENGTH, rng=0)
    problem = lm.bandit(np.random.default_rng(1).uniform(0, 2, (2, 9)), reward_bound=2.0)
    data, _ = connected_preferences(problem, 300, rng=2)
    run = fit_with_trainer(lm, data, rpo.WPO(beta=0.5), steps=20)
    losses = [row["loss"] for row in run.history]
    table, x = np.log(lm.policy()), data.prompt
    first = np.exp(table).reshape(2, 3, 3).sum(2)
    both = [
        (table[x, y] - np.log((first[x] ** 2).sum(1)) - np.log(_second(lm)[x, y // 3])) / LENGTH
        for y in (data.chosen, data.rejected)
    ]
    assert losses[0] == pytest.approx(np.log(2.0) * (data.weights @ np.exp(np.minimum(sum(both), 0))), rel=1e-6)
    assert losses[-1] < losses[0]
    one = trainer(tmp_path, tiny_pairs(4), objective=rpo.WPO(beta=0.5))
    one.before_training(resuming=False)
    batch = next(iter(one.get_train_dataloader()))
    assert one.scores(one.model, batch).requires_grad and not batch["likeness"].requires_grad


def _second(lm) -> np.ndarray:
    """The sum over second tokens of p^2 after each first one, (X, V)."""
    table = lm.policy().reshape(2, 3, 3)
    return ((table / table.sum(2, keepdims=True)) ** 2).sum(2)


GIVEN = {
    "RPO": {"beta": 0.3, "eta": 0.2},
    "FRPO": {"beta": 0.3, "eta": 0.2},
    "DPO": {"beta": 0.3},
    "RDPO": {"alpha": 0.05},
    "GammaDPO": {"gamma": 0.6},
}


PAIRED = [name for name, method in registry.METHODS.items() if method.load()(**GIVEN.get(name, {})).shape.pairs]


@pytest.mark.parametrize("path", ["padded", "packed", "shared"])
@pytest.mark.parametrize("name", PAIRED)
def test_first_logged_loss_is_the_formula_on_every_path(tmp_path, name: str, path: str) -> None:
    """Weighted pairs of unequal lengths; log-probabilities one sequence at a time, in float64.

    The token mean of the SFT term is over the update's global batch; its weights are those of the pairs.
    """
    objective = registry.get(name)(**GIVEN.get(name, {}))
    pairs = tiny_pairs(4, weights=True)
    scores = {"chosen_scores": np.array([0.9, 0.5, 1.0, 0.8]), "rejected_scores": np.array([0.0, 0.1, 0.5, 0.2])}
    given = scores if "scores" in objective.needs else {}
    if given:
        both = zip(*scores.values(), strict=True)
        pairs = PreparedPairs(replace(pair, scores=tuple(two)) for pair, two in zip(pairs, both, strict=True))
    one = trainer(tmp_path, pairs, objective=objective, path=path, max_steps=1)
    policy = np.array([[alone(one.model, pair, ids) for ids in (pair.chosen_ids, pair.rejected_ids)] for pair in pairs])
    lengths = np.array([[len(pair.chosen_ids), len(pair.rejected_ids)] for pair in pairs], dtype=float)
    weights = np.array([pair.weight for pair in pairs])
    if "likeness" in objective.needs:
        both = [[likeness(one.model, pair, ids) for ids in pair.own] for pair in pairs]
        given = dict(zip(("chosen_likeness", "rejected_likeness"), np.array(both).T, strict=True))
    expected, terms = objective(
        *policy.T,
        *(policy.T if "reference" in objective.needs else (None, None)),
        chosen_lengths=lengths[:, 0],
        rejected_lengths=lengths[:, 1],
        weights=weights / weights.sum(),
        **given,
        **({"shift": 0.0} if "shift" in objective.needs else {}),
    )
    one.train()
    logged = one.state.log_history[0]
    assert logged["loss"] == pytest.approx(float(expected), rel=2e-5)  # float32 inside transformers' float64 models
    assert logged["loss/preference"] == pytest.approx(float(terms.preference), rel=2e-5)
    assert logged["loss/sft"] == pytest.approx(float(terms.sft), rel=2e-5)
    assert ("displacement/share" in logged) == ("reference" in objective.needs)
    assert one.reference.kind == ("policy_as_given" if "reference" in objective.needs else "none")


def alone(model: torch.nn.Module, pair, response) -> float:
    ids = torch.tensor([[*pair.prompt_ids, *response]])
    with torch.no_grad():
        scores = model(ids).logits[0].double().log_softmax(-1)
    start = len(pair.prompt_ids) - 1
    return float(scores[range(start, start + len(response)), list(response)].sum())


def likeness(model: torch.nn.Module, pair, response) -> float:
    """The mean over the response's tokens of log p - log sum_v p_v^2."""
    with torch.no_grad():
        p = model(torch.tensor([[*pair.prompt_ids, *response]])).logits[0].double().softmax(-1)
    start = len(pair.prompt_ids) - 1
    p = p[start : start + len(response)]
    return float((p[range(len(response)), list(response)].log() - (p**2).sum(-1).log()).mean())


@pytest.mark.slow
def test_a_step_of_smollm2_on_shared_prompts_is_its_padded_value_in_float64(tmp_path, smollm2) -> None:
    """Every registered method, on three of the example's pairs cut to 32 tokens: the loss logged by one update.

    The expected value is each formula on log-probabilities that the padded path gives in float64; 2e-4 is float32's
    rounding of log-probabilities of some 50 nats.
    """
    model, tokenizer = smollm2
    rows = [json.loads(line) for line in (EXAMPLES / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = prepare_pairs(rows[::90], tokenizer, max_length=32, scores=True, progress=False)
    assert len(pairs) == 3
    path = PaddedPath(tokenizer.pad_token_id)
    with torch.no_grad():
        wide = copy.deepcopy(model).double()
        logps = path.logps(wide, path.collate([group_of(pair) for pair in pairs])).numpy()
    lengths, scores = (np.array([getattr(p, n) for p in pairs], dtype=float) for n in ("lengths", "scores"))
    shared = {"path": "shared", "max_steps": 1, "learning_rate": 0.0, "max_length": 32, "self_check": False}
    shared["ref_logps_cache"] = str(tmp_path / "reference.safetensors")
    scores = 1.0 / (1.0 + np.exp(-scores))  # within [0, 1], where LiPO asks
    pairs = PreparedPairs(replace(p, scores=tuple(s)) for p, s in zip(pairs, scores.tolist(), strict=True))
    for name in PAIRED:
        objective = registry.get(name)(**GIVEN.get(name, {}))
        given = {"chosen_scores": scores[:, 0], "rejected_scores": scores[:, 1]} if "scores" in objective.needs else {}
        given |= {"shift": 0.0} if "shift" in objective.needs else {}
        reference = logps.T if "reference" in objective.needs else (None, None)
        expected, terms = objective(
            *logps.T, *reference, chosen_lengths=lengths[:, 0], rejected_lengths=lengths[:, 1], **given
        )
        one = trainer(tmp_path / name, pairs, model=model, objective=objective, processing_class=tokenizer, **shared)
        assert one.path.name == "shared"
        one.train()
        logged = one.state.log_history[0]
        assert logged["loss"] == pytest.approx(float(expected), rel=2e-4, abs=2e-5), name
        assert logged["loss/preference"] == pytest.approx(float(terms.preference), rel=2e-4, abs=2e-5), name
        assert 0 < logged["grad_norm"] < float("inf"), name


def test_a_reference_is_refused_where_none_is_read(tmp_path) -> None:
    with pytest.raises(InvalidArgument, match=r"^ref_model: expected None with SimPO"):
        trainer(tmp_path, tiny_pairs(4), objective=rpo.SimPO(), ref_model=models_for_tests.tiny_model("llama"))


def test_displacement_is_measured_without_a_reference_where_it_stops_a_run(tmp_path) -> None:
    one = trainer(tmp_path, tiny_pairs(4), objective=rpo.SimPO(), displacement_threshold=0.9, max_steps=1)
    one.train()
    assert one.state.log_history[0]["displacement/chosen_change"] == pytest.approx(0.0, abs=1e-6)


def test_what_is_no_objective_is_refused(tmp_path) -> None:
    for other in (rpo.IPO, "IPO", {"tau": 0.1}):
        with pytest.raises(InvalidArgument, match=r"^objective: expected a preference objective"):
            trainer(tmp_path, tiny_pairs(4), objective=other)


def test_a_penalty_over_all_responses_is_not_that_of_a_batch() -> None:
    """FRPO's is a mean over responses of the reference too, which the call is not given; the KL's is, and none is."""
    pair = (np.array([-1.0]), np.array([-2.0]), np.array([-1.5]), np.array([-1.7]))
    rpo.FRPO(beta=0.3, eta=0.0, divergence=JensenShannon())(*pair)
    rpo.FRPO(beta=0.3, eta=0.1, divergence=KL())(*pair)
    with pytest.raises(InvalidArgument, match=r"^objective: .*mean over responses of the reference.*it is RPO"):
        rpo.FRPO(beta=0.3, eta=0.1, divergence=JensenShannon())(*pair)


@pytest.mark.parametrize("precompute", [True, False])
@pytest.mark.parametrize("base", ["chosen", "reference"])
def test_the_penalty_of_frpo_is_taken_on_samples(tmp_path, base: str, precompute: bool) -> None:
    """Two steps of gradient descent by hand, in float64: for Jensen-Shannon f'(u) = log 2u/(1+u) and its dual is
    log (1+u)/2, the mean of which over three samples of the reference a prompt stands for that under the reference."""
    objective = rpo.FRPO(beta=0.3, eta=0.5, divergence=JensenShannon(), base=base)
    run = trainer(
        tmp_path,
        tiny_pairs(4),
        objective=objective,
        base_num_samples=3,
        base_max_new_tokens=6,
        processing_class=models_for_tests.tiny_tokenizer(),
        precompute_ref_log_probs=precompute,
        max_steps=2,
    )
    model = copy.deepcopy(run.model)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    run.train()
    pairs = run.train_dataset.pairs
    assert all(len(pair.base_ids) == 3 for pair in pairs)

    groups = [group_of(pair) for pair in pairs]
    reference = naive_logps(model, groups).detach()
    for _ in range(2):
        u = (naive_logps(model, groups) - reference).exp()
        slope, dual = (2 * u / (1 + u)).log(), ((1 + u) / 2).log()
        under_base = slope[:, 0] if base == "chosen" else slope[:, 2:].mean(1)
        loss = torch.nn.functional.softplus(-0.3 * (slope[:, 0] - slope[:, 1])).mean()
        loss = loss + 0.15 * (dual[:, 2:].mean(1) - under_base).mean()
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    ended = [[parameter.detach() for parameter in each.parameters()] for each in (model, run.model)]
    apart, moved = (
        max(float((a - b).abs().max()) for a, b in zip(ended[0], other, strict=True)) for other in (ended[1], start)
    )
    assert apart < 1e-9 and moved > 1e-4


@pytest.mark.parametrize("divergence", [JensenShannon(), pytest.param(ChiSquaredKL(), marks=pytest.mark.slow)])
def test_transformer_reaches_the_maximin_under_a_divergence(divergence: Divergence) -> None:
    """The enumerable model, where both means of FRPO's penalty are exact, against `solve`: TV at most 1e-6."""
    lm = tiny_gpt2(prompts=2, vocab_size=3, length=LENGTH, rng=0)
    problem = lm.bandit(np.random.default_rng(1).uniform(0, 2, (2, 9)), reward_bound=2.0)
    data, _ = connected_preferences(problem, 1500, rng=2)
    objective = rpo.FRPO(beta=1.0, eta=0.2, divergence=divergence, base="reference")
    run = fit_language_model(lm, data, objective, steps=500, progress=False)
    exact = solve(problem, data, objective, reward_class=Unconstrained())
    assert exact.evidence == "certified"
    assert total_variation(run.policy, exact.policy).max() <= 1e-6
    assert total_variation(exact.policy, problem.reference).max() > 0.05
    assert run.config["table_disagreement"] < 1e-12
    with pytest.raises(InvalidArgument, match="which reads mismatched, shift"):
        fit_language_model(lm, data, rpo.KTO())
