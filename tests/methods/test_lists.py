"""Objectives on lists: K = 2 is the pair's loss, derivatives, weights, ties, fixed points, ragged lists, refusals."""

import itertools
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax

import rpo
from rpo.core.columns import Columns
from rpo.core.errors import InvalidArgument
from rpo.core.group_shapes import LambdaPairs, ranks
from rpo.core.jets import AT_ONCE
from rpo.core.objectives import Objective
from rpo.methods import registry
from rpo.methods.lists import LIPO_LOSSES

LISTS: dict[str, Objective] = {
    name: method.load()()
    for name, method in registry.METHODS.items()
    if method.home == "rpo.methods.lists" and name not in ("LiPO", "ALoL")
} | {f"LiPO-{variant}": rpo.LiPO(beta=0.4, variant=variant) for variant in LIPO_LOSSES}
every_list = pytest.mark.parametrize("objective", LISTS.values(), ids=LISTS)
N, K = 7, 4


def given(seed: int = 0, n: int = N, k: int = K) -> dict[str, Any]:
    """Return n lists of k: log-probabilities of a few nats, lengths, and scores in (0, 1) that fall along each list."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 10, (n, k)).astype(float)
    reference = -rng.uniform(0.2, 1.0, (n, k)) * lengths
    return {
        "policy_logps": np.minimum(reference + rng.normal(scale=0.8, size=(n, k)), -0.05),
        "reference_logps": reference,
        "lengths": lengths,
        "scores": -np.sort(-rng.uniform(0.05, 0.95, (n, k)), axis=1),
    }


def columns(table: dict[str, Any], make: Any = np.asarray) -> Columns:
    names = {"policy_logps": "logps", "reference_logps": "reference", "lengths": "lengths", "scores": "scores"}
    return Columns(**{names[name]: tuple(make(column) for column in value.T.copy()) for name, value in table.items()})


# --- one formula -----------------------------------------------------------------------------------


@every_list
def test_jets_equal_autograd_and_torch_equals_numpy(objective: Objective) -> None:
    table = given(2)
    value, gradient, hessian = objective.derivatives(columns(table))
    fixed = columns(table, torch.tensor)
    leaves = [column.clone().requires_grad_() for column in fixed.logps]
    losses = objective.per_pair(fixed.with_logps(tuple(leaves)))
    grad = torch.autograd.grad
    first = grad(losses.sum(), leaves, create_graph=True)
    second = [torch.stack(grad(one.sum(), leaves, retain_graph=True, materialize_grads=True)) for one in first]
    assert value == pytest.approx(losses.detach().numpy(), rel=1e-12)
    assert gradient == pytest.approx(torch.stack(first).detach().numpy(), rel=1e-12, abs=1e-13)
    assert hessian == pytest.approx(torch.stack(second).numpy(), rel=1e-11, abs=1e-12)


@every_list
def test_many_lists_are_differentiated_piece_by_piece(objective: Objective) -> None:
    """5,000 lists in pieces of AT_ONCE: of each the numbers that it has alone with its neighbours."""
    table = given(1, n=5_000)
    assert AT_ONCE < 2_500
    whole = objective.derivatives(columns(table))
    for rows in (slice(0, 7), slice(AT_ONCE - 3, AT_ONCE + 3), slice(4_990, 5_000)):
        few = objective.derivatives(columns({name: value[rows] for name, value in table.items()}))
        for all_, some in zip(whole, few, strict=True):
            assert all_[..., rows] == pytest.approx(some, rel=1e-14, abs=1e-15)


@pytest.mark.parametrize("objective", [o for o in LISTS.values() if o.shape.convex], ids=lambda o: o.label)
def test_cvxpy_finds_convex_ones_convex_and_gives_their_value(objective: Objective) -> None:
    """Rewards of the K responses are variables; the score columns are numbers."""
    table = given(3)
    variables = [cp.Variable(N) for _ in range(K)]
    loss = objective.shape(tuple(variables), 0.7, columns(table))
    assert loss.is_convex()
    for k, variable in enumerate(variables):
        variable.value = table["policy_logps"][:, k]
    expected = objective.shape(tuple(table["policy_logps"].T), 0.7, columns(table))
    assert loss.value == pytest.approx(expected, rel=1e-10)


@every_list
def test_ragged_lists_are_each_their_own(objective: Objective) -> None:
    """What lies beyond a list's end is never read, NaN included, and the mean is that of lists asked one by one."""
    table, sizes = given(4), np.array([4, 2, 3, 4, 2, 3, 3])
    weights = np.random.default_rng(0).dirichlet(np.ones(N))
    alone = [
        objective.of_lists(**{name: value[n : n + 1, :size] for name, value in table.items()})[0]
        for n, size in enumerate(sizes)
    ]
    for value in table.values():
        value[np.arange(K) >= sizes[:, None]] = np.nan
    loss, terms = objective.of_lists(**table, sizes=sizes, weights=weights)
    assert loss == pytest.approx(weights @ np.array(alone), rel=1e-13)
    tensors = {name: torch.tensor(value) for name, value in table.items()}
    assert float(objective.of_lists(**tensors, sizes=sizes, weights=weights)[0]) == pytest.approx(loss, rel=1e-12)
    assert objective.anchor.weight * terms.sft + terms.preference == pytest.approx(loss, rel=1e-13)


# --- K = 2 is the pair's loss ----------------------------------------------------------------------


def margin_loss(table: dict[str, Any], weight: Any = 1.0, target: float = 0.0) -> Any:
    h = 0.4 * (table["policy_logps"] - table["reference_logps"])
    return np.mean(weight * np.logaddexp(0.0, -(h[:, 0] - h[:, 1]) + target))


def test_lists_of_two_collapse_to_pairs() -> None:
    """Each against a loss that was there before it, or written here by hand; 1e-12."""
    table = given(5, k=2)
    logps, reference, scores = (table[name].T for name in ("policy_logps", "reference_logps", "scores"))
    pair = {"policy_chosen_logps": logps[0], "policy_rejected_logps": logps[1]}
    against = {"reference_chosen_logps": reference[0], "reference_rejected_logps": reference[1]}
    dpo, gap = rpo.DPO(beta=0.4)(**pair, **against)[0], scores[0] - scores[1]
    swap = (2.0 ** scores[0] - 2.0 ** scores[1]) * (1 / np.log(2) - 1 / np.log(3))
    mean = table["policy_logps"] / table["lengths"]
    found = {
        "Plackett-Luce": (rpo.PlackettLuceDPO(beta=0.4), dpo),
        "pairs": (rpo.LiPO(beta=0.4, variant="pair_logistic"), dpo),
        "hinge": (rpo.LiPO(beta=0.4, variant="pair_hinge"), rpo.SLiC(beta=0.4, delta=1.0)(**pair, **against)[0]),
        "order": (rpo.LiPO(beta=0.4, variant="list_mle"), dpo),
        "lambda": (rpo.LiPO(beta=0.4), margin_loss(table, swap)),
        "PRO": (
            rpo.PRO(sft_weight=0.3),
            np.mean(np.logaddexp(0.0, -gap * (mean[:, 0] - mean[:, 1]))) - 0.3 * logps[0].mean(),
        ),
    }
    # IPO asks the log-ratios to differ by 1 / (2 tau); CoPG by the scores' difference over beta: here 1 / (2 * 0.4).
    half = table | {"scores": np.tile([0.75, 0.25], (N, 1))}
    ipo = rpo.IPO(tau=0.4)(**pair, **against)[0]
    for name, (objective, expected) in found.items():
        assert objective.of_lists(**table)[0] == pytest.approx(expected, rel=1e-12), name
    assert rpo.CoPG(beta=0.4).of_lists(**half)[0] == pytest.approx(0.4 / 2 * ipo, rel=1e-12)
    # A clear preference: targets (1, 0).
    clear = table | {"scores": np.tile([1.0, 0.0], (N, 1))}
    assert rpo.InfoNCA(beta=0.4, alpha=1e-3).of_lists(**clear)[0] == pytest.approx(dpo, rel=1e-12)
    nca = rpo.NCA(beta=0.4)(**pair, **against)[0]
    assert rpo.ListNCA(beta=0.4, alpha=1e-3).of_lists(**clear)[0] == pytest.approx(nca, rel=1e-12)
    # EXO's labels (1 - eps, eps) are the softmax of scores log((1 - eps) / eps) apart.
    labels = table | {"scores": np.tile([np.log(0.9 / 0.1), 0.0], (N, 1))}
    exo = rpo.EXO(beta=0.4, epsilon=0.1)(**pair, **against)[0]
    assert rpo.ListEXO(beta=0.4).of_lists(**labels)[0] == pytest.approx(exo, rel=1e-12)


# --- by hand, by enumeration -----------------------------------------------------------------------


def test_plackett_luce_is_the_likelihood_of_an_order() -> None:
    """exp(-loss) of all orders of four rewards sum to one, and the first choice is the softmax's."""
    rewards = np.random.default_rng(6).normal(size=4)
    shape = rpo.PlackettLuceDPO(beta=1.0).shape
    chances = {
        order: float(np.exp(-shape(tuple(rewards[[k]] for k in order), 1.0, Columns(logps=()))[0]))
        for order in itertools.permutations(range(4))
    }
    assert sum(chances.values()) == pytest.approx(1.0, rel=1e-12)
    for first, share in enumerate(softmax(rewards)):
        assert sum(p for order, p in chances.items() if order[0] == first) == pytest.approx(share, rel=1e-12)


def test_pro_is_its_chain_and_moves_with_a_constant() -> None:
    """Against a loop; a constant added to all mean log-probabilities changes it for K > 2, and not for K = 2."""
    table = given(7)
    mean, scores = table["policy_logps"] / table["lengths"], table["scores"]

    def chain(s: Any, r: Any) -> float:
        total = 0.0
        for k in range(len(s) - 1):
            gaps = r[k] - r[k + 1 :]
            best = s[k] * gaps.max()
            total += logsumexp(np.r_[best, s[k + 1 :] * gaps]) - best
        return total

    expected = np.mean([chain(s, r) for s, r in zip(mean, scores, strict=True)])
    assert rpo.PRO(sft_weight=0.0).of_lists(**table)[0] == pytest.approx(expected, rel=1e-12)
    shape, given_scores = rpo.PRO().shape, Columns(logps=(), scores=(np.array([3.0]), np.array([2.0]), np.array([1.0])))
    values = [np.array([v]) for v in (0.1, 0.2, 0.3)]
    moved = shape(tuple(v + 5.0 for v in values), 1.0, given_scores) - shape(tuple(values), 1.0, given_scores)
    assert abs(moved[0]) == pytest.approx(0.335, abs=5e-4)  # the fact sheet's number
    pair = [shape(tuple(v + c for v in values[:2]), 1.0, given_scores.first(2))[0] for c in (0.0, 5.0)]
    assert pair[0] == pytest.approx(pair[1], rel=1e-12)


def test_lambda_weights_are_what_a_swap_changes_of_the_gain() -> None:
    """Against the discounted cumulative gain of the list with two responses exchanged."""
    rng = np.random.default_rng(8)
    rewards, scores = rng.normal(size=5), -np.sort(-rng.uniform(size=5))
    weights = LambdaPairs().pair_weights(tuple(rewards[:, None]), tuple(scores[:, None]))
    rank = np.argsort(np.argsort(-rewards)) + 1

    def gain(rank: Any) -> float:
        return float(((2.0**scores - 1.0) / np.log(1.0 + rank)).sum())

    for (i, j), weight in weights.items():
        swapped = rank.copy()
        swapped[[i, j]] = rank[[j, i]]
        assert weight[0] == pytest.approx(abs(gain(swapped) - gain(rank)), abs=1e-14)
    assert len(weights) == 10


def test_at_the_reference_all_rewards_are_equal_and_the_better_score_ranks_higher() -> None:
    """The first gradient of LambdaRank is that of the ranks 1 ... K by score."""
    zeros = tuple(np.zeros(2) for _ in range(4))
    assert [r.tolist() for r in ranks(zeros)] == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]]
    assert [float(r[0]) for r in ranks(tuple(torch.tensor([v]) for v in (0.0, 2.0, 0.0, 2.0)))] == [3.0, 1.0, 4.0, 2.0]
    table = given(9, n=1)
    start = table | {"policy_logps": table["reference_logps"]}
    gradient = rpo.LiPO(beta=1.0).derivatives(columns(start))[1][:, 0]
    discount, gains = 1.0 / np.log(2.0 + np.arange(4)), 2.0 ** table["scores"][0]
    expected = np.zeros(4)
    for i, j in itertools.combinations(range(4), 2):
        push = 0.5 * (gains[i] - gains[j]) * abs(discount[i] - discount[j])
        expected[i], expected[j] = expected[i] - push, expected[j] + push
    assert gradient == pytest.approx(expected, rel=1e-12)


def test_tied_scores_weigh_nothing_where_scores_are_compared() -> None:
    table = given(10)
    tied = table | {"scores": np.full((N, K), 0.5)}
    for variant in ("lambda", "pair_logistic", "pair_hinge"):
        assert rpo.LiPO(variant=variant).of_lists(**tied)[0] == 0.0
    exchanged = {name: value[:, [1, 0, 2, 3]] for name, value in tied.items()}
    for objective in (rpo.InfoNCA(), rpo.ListNCA(), rpo.ListEXO(), rpo.CoPG()):  # no order is read
        assert objective.of_lists(**exchanged)[0] == pytest.approx(objective.of_lists(**tied)[0], rel=1e-12)


# --- fixed points ----------------------------------------------------------------------------------


def minimised(objective: Objective, scores: Any, counts: Any = None) -> Any:
    """Return the rewards beta h that minimise the loss of the lists of all responses, by an optimiser of SciPy."""
    size = len(scores)
    shape, table = objective.shape, Columns(logps=(), scores=tuple(np.array([s]) for s in scores))

    def loss(r: Any) -> float:
        return float(shape(tuple(r[:, None] / objective.link.beta), objective.link.beta, table)[0])

    return minimize(loss, np.zeros(size), method="BFGS", options={"gtol": 1e-10}).x


def test_fixed_points_of_scored_lists() -> None:
    """InfoNCA and EXO: beta h = score / alpha + c. NCA: beta h = log(K q), absolute. CoPG: beta h = score + c."""
    scores = -np.sort(-np.random.default_rng(11).normal(size=5))
    for objective in (rpo.InfoNCA(beta=0.5, alpha=0.8), rpo.ListEXO(beta=0.5, alpha=0.8)):
        assert np.ptp(minimised(objective, scores) - scores / 0.8) < 1e-5
    absolute = minimised(rpo.ListNCA(beta=0.5, alpha=0.8), scores)
    assert absolute == pytest.approx(np.log(5 * softmax(scores / 0.8)), abs=1e-5)
    assert np.ptp(minimised(rpo.CoPG(beta=0.5), scores) - scores) < 1e-5
    sigmoid = minimised(rpo.LiPO(variant="point_sigmoid"), np.array([0.9, 0.6, 0.2]))
    assert expit(sigmoid) == pytest.approx([0.9, 0.6, 0.2], abs=1e-6)
    assert minimised(rpo.LiPO(variant="point_mse"), scores) == pytest.approx(scores, abs=1e-6)
    shares = softmax(minimised(rpo.LiPO(variant="softmax"), np.array([0.5, 0.3, 0.2])))
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=1e-6)


def test_a_lol_without_a_ratio_ends_at_the_data_weighed_by_its_advantage() -> None:
    """On a table, pi = mu max(A, 0) / Z, by gradient descent on the loss itself; A has both signs."""
    rng = np.random.default_rng(12)
    mu, advantage = rng.dirichlet(np.ones(6)), rng.normal(size=6)
    objective = rpo.ALoL(ratio=False)
    assert objective.needs == {"scores"} and objective.convex_in_logits
    logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, history_size=20)

    def closure() -> Any:
        descent.zero_grad()
        loss = objective.of_lists(logits.log_softmax(0)[:, None], scores=advantage[:, None], weights=mu)[0]
        loss.backward()
        return loss

    descent.step(closure)
    kept = mu * np.maximum(advantage, 0.0)
    assert logits.softmax(0).detach().numpy() == pytest.approx(kept / kept.sum(), abs=1e-5)


def test_a_lol_ratio_is_held_within_its_clip_and_has_no_gradient() -> None:
    """d loss / d log pi = -A+ * clip(pi / pi_ref, 0.5, 1.5) + kl: at ratios e^-2, 1.2 and e, by hand."""
    h = torch.tensor([-2.0, np.log(1.2), 1.0], dtype=torch.float64)
    policy = (-3.0 + h).clone().requires_grad_()
    loss = rpo.ALoL(clip=0.5, kl_weight=0.1).of_lists(
        policy[:, None], torch.full((3, 1), -3.0, dtype=torch.float64), scores=np.array([[2.0], [1.0], [-4.0]])
    )[0]
    loss.backward()
    assert 3 * policy.grad.numpy() == pytest.approx([-2.0 * 0.5 + 0.1, -1.2 + 0.1, 0.1], rel=1e-12)


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "change", "message"),
    [
        (rpo.DPO(beta=0.1), {}, r"^policy_logps: expected pairs, got lists of 4 responses, .*best against worst"),
        (rpo.KTO(), {}, "lists of 4 responses"),
        (rpo.ALoL(), {}, r"expected single responses, got lists of 4"),
        (rpo.LiPO(), {"scores": 3.0 * given()["scores"]}, r"scores in \[0, 1\] for LiPO lambda"),
        (rpo.InfoNCA(), {"scores": given()["scores"][:, ::-1]}, "expected scores that fall along each list"),
        (rpo.InfoNCA(), {"scores": None}, "^scores: "),
        (rpo.CoPG(), {"scores": np.full((N, K), np.nan)}, "^scores: "),
        (rpo.PlackettLuceDPO(), {"reference_logps": None}, "^reference_logps: "),
        (rpo.PRO(), {"lengths": None}, "^lengths: expected token counts for PRO"),
        (rpo.PRO(), {"lengths": np.zeros((N, K))}, "^lengths: expected lengths > 0"),
        (rpo.PlackettLuceDPO(), {"sizes": np.array([4, 2, 3, 4, 2, 3, 1])}, "^sizes: .*single responses, of which"),
        (rpo.PlackettLuceDPO(), {"sizes": np.array([4, 2, 3, 4, 2, 3, 5])}, "^sizes: expected whole numbers from 1 to"),
        (rpo.PlackettLuceDPO(), {"policy_logps": np.zeros(4)}, r"expected shape \(N, K\)"),
        (rpo.PlackettLuceDPO(), {"weights": np.ones(N)}, "^weights: "),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(objective: Objective, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        objective.of_lists(**(given() | change))


def test_a_loss_of_single_responses_takes_no_pairs() -> None:
    with pytest.raises(InvalidArgument, match=r"expected a loss of pairs, got ALoL .*of_lists"):
        rpo.ALoL()(np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3))


def test_reward_aware_preference_optimization_is_info_nca_on_scored_pairs() -> None:
    """Its loss is KL(sigma(b) || sigma(a)) of a = beta times the difference of log-ratios and b = eta times that of
    scores; docs/faq.md says that InfoNCA at alpha = 1 / eta adds the entropy of sigma(b), which no policy changes."""
    rng = np.random.default_rng(0)
    policy, reference = rng.normal(size=(2, 2, 5))
    scores = np.sort(rng.normal(size=(2, 5)), axis=0)[::-1]
    a = 0.3 * ((policy[0] - reference[0]) - (policy[1] - reference[1]))
    b = 2.0 * (scores[0] - scores[1])
    p, q = 1 / (1 + np.exp(-b)), 1 / (1 + np.exp(-a))
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    columns = Columns(logps=tuple(policy), reference=tuple(reference), scores=tuple(scores))
    loss, _ = rpo.InfoNCA(beta=0.3, alpha=0.5).loss(columns)
    assert loss == pytest.approx(float((divergence + entropy).mean()), rel=1e-12)
