"""How the equality of the maximin and DPO + eta beta SFT breaks: smaller reward classes, smaller policy families.

Distances are total variations to the unconstrained maximin policy, the largest over prompts. Shapes: X prompts,
A responses, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.numerics import sigmoid, softplus

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from rpo.bandit import ContextualBandit, PreferenceCounts, Solution
    from rpo.compare import EnumerableLM
    from rpo.core.objectives import RPO

__all__ = [
    "ball_radii",
    "box_distances",
    "box_figure",
    "box_policies",
    "feature_dimensions",
    "features_figure",
    "free_maximin",
    "reward_spread",
    "tiny_llama",
    "transformer_distances",
    "transformer_figure",
    "two_rewards",
    "two_rewards_figure",
    "weight_distances",
]

LARGE = 1e3  # a radius that never binds here
ZERO = 1e-12  # drawn in place of a distance of zero on a logarithmic axis


def free_maximin(problem: ContextualBandit, data: PreferenceCounts, objective: RPO) -> Solution:
    """Return the maximin over all reward tables, which equals DPO + eta beta SFT over all policies."""
    from rpo.bandit import Unconstrained, solve

    return solve(problem, data, objective, reward_class=Unconstrained(), method="newton")


def reward_spread(solution: Solution) -> float:
    """Return the largest over prompts of max r - min r of a solved reward, log-odds."""
    return float(np.ptp(solution.reward, axis=1).max())


def box_distances(
    problem: ContextualBandit, data: PreferenceCounts, objective: RPO, *, shares: Sequence[float]
) -> pandas.DataFrame:
    """Return one row a bound R = share times the spread of the free maximin's reward: what Box(R) changes.

    Columns: share, bound, active, tv, loss/excess (RPO loss of the box's policy over the least of all policies).
    """
    import pandas

    from rpo.bandit import Box, solve

    free = free_maximin(problem, data, objective)
    rows = []
    for share in shares:
        bound = checks.positive("shares", share) * reward_spread(free)
        boxed = solve(problem, data, objective, reward_class=Box(bound), method="newton")
        rows.append({"share": share, "bound": bound, "active": boxed.active, **_apart(boxed.policy, boxed.logps, free)})
    return pandas.DataFrame(rows)


def feature_dimensions(
    problem: ContextualBandit, data: PreferenceCounts, objective: RPO, *, dimensions: Sequence[int], rng: Any
) -> pandas.DataFrame:
    """Return one row a number of features D: the maximin over r = Phi theta, and a linear softmax trained by RPO.

    Phi: the first D columns of one random orthogonal matrix (X A, X A), so that classes are nested and the largest
    holds every table. Columns: dimension, tv and loss/excess of the maximin, tv/softmax of the trained policy,
    tv/between the two, active.
    """
    import pandas

    from rpo.bandit import LinearBall, fit, solve

    free = free_maximin(problem, data, objective)
    features = _features(problem, rng)
    rows = []
    for dimension in dimensions:
        size = checks.integer("dimensions", dimension, minimum=1, maximum=features.shape[2])
        phi = features[:, :, :size]
        ball = solve(problem, data, objective, reward_class=LinearBall(phi, LARGE), method="newton")
        policy = dataclasses.replace(problem, features=phi).linear_softmax_policy()
        trained = fit(policy, data, objective, proxy_reward=None, log_every=1000)
        rows.append(
            {
                "dimension": size,
                **_apart(ball.policy, ball.logps, free),
                "tv/softmax": _largest_tv(trained.policy, free.policy),
                "tv/between": _largest_tv(trained.policy, ball.policy),
                "active": ball.active,
            }
        )
    return pandas.DataFrame(rows)


def ball_radii(
    problem: ContextualBandit, data: PreferenceCounts, objective: RPO, *, shares: Sequence[float], rng: Any
) -> pandas.DataFrame:
    """Return one row a radius: what LinearBall changes when its features hold every table and only the norm binds.

    The radius is share times the least norm of a theta that gives the free maximin's policy. Columns: share, radius,
    active, tv, loss/excess.
    """
    import pandas

    from rpo.bandit import LinearBall, solve

    free = free_maximin(problem, data, objective)
    features = _features(problem, rng)
    # Constants a prompt cost norm and change nothing; Phi is orthogonal, so norms of theta and r agree.
    centred = free.reward - free.reward.mean(axis=1, keepdims=True)
    norm = float(np.linalg.norm(LinearBall(features, LARGE).parameters(centred)))
    rows = []
    for share in shares:
        radius = checks.positive("shares", share) * norm
        ball = solve(problem, data, objective, reward_class=LinearBall(features, radius), method="newton")
        rows.append({"share": share, "radius": radius, "active": ball.active, **_apart(ball.policy, ball.logps, free)})
    return pandas.DataFrame(rows)


def weight_distances(
    problem: ContextualBandit, objective: RPO, *, ns: Sequence[int], draws: int, rng: Any
) -> pandas.DataFrame:
    """Return one row an N: distance of the maximins with prompt weights "data" and "population", mean over draws.

    Columns: n, tv, tv/se.
    """
    import pandas

    from rpo.bandit import Unconstrained, solve

    generator = checks.generator("rng", rng)
    rows = []
    for n in ns:
        found = []
        for child in generator.spawn(checks.integer("draws", draws, minimum=2)):
            data = problem.sample_preferences(n, rng=child)
            both = [
                solve(
                    problem, data, objective, reward_class=Unconstrained(), prompt_weights=weights, method="newton"
                ).policy
                for weights in ("data", "population")
            ]
            found.append(_largest_tv(*both))
        rows.append({"n": n, "tv": np.mean(found), "tv/se": np.std(found, ddof=1) / np.sqrt(len(found))})
    return pandas.DataFrame(rows)


def tiny_llama(*, vocab_size: int, length: int, hidden_size: int = 48, layers: int = 2, rng: Any) -> EnumerableLM:
    """Return a randomly initialised Llama in float64 over V^L responses to V one-token prompts.

    Its positions are rotary only: attention over equal tokens averages equal values, so after the prompt p and after p
    followed by the response token p the next token has the same distribution, whatever the weights. The global torch
    random state is left as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rpo.compare import EnumerableLM

    v = checks.integer("vocab_size", vocab_size, minimum=2)
    config = LlamaConfig(
        vocab_size=v,
        hidden_size=checks.integer("hidden_size", hidden_size, minimum=8),
        intermediate_size=4 * hidden_size,
        num_hidden_layers=checks.integer("layers", layers, minimum=1),
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=length + 1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(checks.generator("rng", rng).integers(2**31)))
        model = LlamaForCausalLM(config).double()
        with torch.no_grad():
            model.model.embed_tokens.weight.normal_(std=1.0)
            model.lm_head.weight.normal_(std=0.5 / hidden_size**0.5)
    model.eval()
    return EnumerableLM(model=model, prompts=torch.arange(v)[:, None], length=length)


def transformer_distances(
    objective: RPO,
    *,
    vocab_size: int = 16,
    length: int = 1,
    widths: Sequence[int] = (8, 12, 16, 24, 48),
    family: str = "gpt2",
    num_preferences: int = 4000,
    steps: int = 300,
    learning_rate: float = 3e-3,
    rng: int = 0,
) -> pandas.DataFrame:
    """Return one row a width: how far a transformer trained by RPO ends from the free maximin of its own problem.

    Every width has V prompts of one token and the same r* (uniform on [0, 2]); its reference is the model as drawn, and
    pairs are drawn from it. objective.base must have full support, so "reference". Columns: family, width, parameters,
    tv, loss/excess, converged (whether every gradient entry is at most 1e-6).

    Raises:
        InvalidArgument: another family than "gpt2" and "llama".
    """
    import pandas

    from rpo.compare import fit_language_model, tiny_gpt2

    checks.one_of("family", family, ("gpt2", "llama"))
    checks.one_of("objective.base", objective.base, ("reference",))
    v = checks.integer("vocab_size", vocab_size, minimum=2)
    reward = np.random.default_rng(rng).uniform(0.0, 2.0, size=(v, v**length))
    rows = []
    for width in widths:
        if width % 4:
            raise InvalidArgument("widths", expected="multiples of 4, one a head", got=width, remedy="Round it.")
        if family == "llama":
            lm = tiny_llama(vocab_size=v, length=length, hidden_size=width, rng=rng)
        else:
            lm = tiny_gpt2(prompts=v, vocab_size=v, length=length, hidden_size=width, rng=rng)
        problem = lm.bandit(reward, reward_bound=2.0)
        data = problem.sample_preferences(num_preferences, rng=rng + 1)
        free = free_maximin(problem, data, objective)
        run = fit_language_model(
            lm,
            data,
            objective,
            problem=problem,
            steps=steps,
            learning_rate=learning_rate,
            proxy_reward=None,
            log_every=steps,
            progress=False,
        )
        rows.append(
            {
                "family": family,
                "width": width,
                "parameters": run.config["parameters"],
                "tv": _largest_tv(run.policy, free.policy),
                "loss/excess": run.loss - free.loss,
                "converged": run.status == "converged",
            }
        )
    return pandas.DataFrame(rows)


def two_rewards(*, margin: float, beta: float, eta: float) -> dict[str, float]:
    r"""Return maximin and minimax over the class $\lbrace(t,0),(0,t)\rbrace$, which is not convex.

    One prompt, two responses, one win each way, uniform reference and base (docs/theory.md, section 5). "maximin" and
    "minimax": the two values. "policy": the larger probability of the minimax's Gibbs policy, 1/2 for the maximin's.
    "convex": the value both have once mixtures of the two rewards are allowed.
    """
    t, b, weight = (checks.positive(*pair) for pair in (("margin", margin), ("beta", beta), ("eta", eta)))
    likelihood = 0.5 * float(softplus(-t) + softplus(t))
    minimax = likelihood + weight * (b * (float(softplus(t / b)) - np.log(2.0)) - t / 2.0)
    return {
        "maximin": float(likelihood),
        "minimax": float(minimax),
        "policy": float(sigmoid(t / b)),
        "convex": float(np.log(2.0)),
    }


def box_figure(frame: pandas.DataFrame) -> Figure:
    """Draw, from `box_distances`, the distance to the free maximin and the loss that the box costs, against R."""
    return _share_figure(
        {"Box(R)": frame}, "R over the spread of the free reward", "equal for R at least the spread: section 5, item 1"
    )


def box_policies(
    problem: ContextualBandit, data: PreferenceCounts, objective: RPO, *, share: float, prompt: int = 0
) -> Figure:
    """Draw one prompt's free maximin and that of Box(R), R being share times the largest spread of the free reward."""
    from rpo.bandit import Box, plots, solve
    from rpo.bandit.plots.policies import mass_frame

    free = free_maximin(problem, data, objective)
    bound = checks.positive("share", share) * reward_spread(free)
    boxed = solve(problem, data, objective, reward_class=Box(bound), method="newton")
    policies = {"every reward": free.policy, f"Box({bound:.2f})": boxed.policy, "reference": problem.reference}
    state = "binds" if boxed.active else "does not bind"
    return plots.mass(mass_frame(problem, data, policies, prompt=prompt), title=f"Box({bound:.2f}) {state}")


def features_figure(dimensions: pandas.DataFrame, radii: pandas.DataFrame) -> Figure:
    """Draw distances to the free maximin against the number of features, and against the radius of the ball."""
    from rpo.plotting import COLORS, new_figure, style

    with style():
        figure, axes = new_figure(1, 2, width=9.2, height=3.9, sharey=True)
        left, right = axes[0]
        left.plot(
            dimensions["dimension"], dimensions["tv"], "-o", color=COLORS["theory"], label="maximin over r = Phi theta"
        )
        left.plot(
            dimensions["dimension"],
            dimensions["tv/softmax"],
            "x",
            color=COLORS["table"],
            markersize=9,
            markeredgewidth=2,
            label="linear softmax, trained by RPO",
        )
        left.set_xlabel(f"number of features D (of {int(dimensions['dimension'].max())})")
        left.set_ylabel("total variation to the free maximin")
        left.set_title("Fewer features")
        left.legend(fontsize=9)
        right.plot(radii["share"], radii["tv"], "-o", color=COLORS["RPO"])
        right.axvline(1.0, color="#777777", linewidth=1, linestyle="--")
        right.annotate(
            "the free reward's norm",
            (1.0, 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(-5, 0),
            textcoords="offset points",
            va="top",
            ha="right",
            fontsize=9,
        )
        right.set_xlabel("radius B over the free reward's norm")
        right.set_title("All features, smaller ball")
    return figure


def transformer_figure(*frames: pandas.DataFrame, rank: int | None = None, title: str = "") -> Figure:
    """Draw, from calls of `transformer_distances`, the distance to the free maximin against the width, a line a call.

    rank: the width at which the logits may take any value, marked.
    """
    from rpo.plotting import COLORS, new_figure, style

    names = {"gpt2": ("GPT-2", COLORS["transformer"], "o"), "llama": ("Llama, rotary positions", COLORS["DPO"], "s")}
    with style():
        figure, axes = new_figure(1, 1, width=5.8, height=3.9)
        axis = axes[0, 0]
        for rows in frames:
            label, color, marker = names[rows["family"].iloc[0]]
            axis.plot(rows["width"], np.maximum(rows["tv"], ZERO), "-" + marker, color=color, label=label)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        widths = sorted({int(width) for rows in frames for width in rows["width"]})
        axis.set_xticks(widths, [f"{width}" for width in widths])
        axis.minorticks_off()
        if rank is not None:
            axis.axvline(rank, color="#777777", linewidth=1, linestyle="--")
            axis.annotate(
                "rank of all tables",
                (rank, 0.03),
                xycoords=("data", "axes fraction"),
                xytext=(5, 0),
                textcoords="offset points",
                fontsize=9,
            )
        axis.set_xlabel("hidden width")
        axis.set_ylabel("total variation to the free maximin")
        axis.set_title(title)
        axis.legend(fontsize=9)
    return figure


def two_rewards_figure(*, margin: float, beta: float, eta: float) -> Figure:
    """Draw the worst case over two rewards as the policy moves, and the same for all their mixtures."""
    from rpo.plotting import COLORS, new_figure, style

    found = two_rewards(margin=margin, beta=beta, eta=eta)
    p = np.linspace(0.001, 0.999, 401)
    divergence = p * np.log(2.0 * p) + (1.0 - p) * np.log(2.0 * (1.0 - p))
    worst = found["maximin"] - eta * (margin * np.abs(p - 0.5) + beta * divergence)
    # A mixture (s, t - s) enters through its difference, 2 s - t in [-t, t].
    tilt = np.linspace(-margin, margin, 401)
    likelihood = 0.5 * (softplus(-tilt) + softplus(tilt))
    mixed = (likelihood + eta * np.outer(p - 0.5, tilt)).min(axis=1) - eta * beta * divergence
    with style():
        figure, axes = new_figure(1, 1, width=6.2, height=4.0)
        axis = axes[0, 0]
        axis.plot(p, worst, color=COLORS["theory"], label="worst of the two rewards (t, 0), (0, t)")
        axis.plot(p, mixed, color=COLORS["gold"], label="worst of all their mixtures")
        axis.plot(0.5, found["maximin"], "o", color=COLORS["theory"], markersize=8)
        axis.plot(0.5, found["convex"], "o", color=COLORS["gold"], markersize=8)
        axis.axhline(found["minimax"], color=COLORS["DPO"], linewidth=1.2, linestyle="--", label="minimax value")
        for place in (found["policy"], 1.0 - found["policy"]):
            axis.plot(place, found["minimax"], "D", color=COLORS["DPO"], markersize=7)
        axis.set_xlabel("probability of the first response")
        axis.set_ylabel("value of phi, nats per pair")
        axis.set_title(f"Two rewards are not convex: t = {margin:g}, beta = {beta:g}, eta = {eta:g}")
        figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _share_figure(frames: dict[str, pandas.DataFrame], x_label: str, note: str) -> Figure:
    from rpo.plotting import COLORS, new_figure, style

    with style():
        figure, axes = new_figure(1, 2, width=9.2, height=3.7)
        for axis, column, label in zip(
            axes[0],
            ("tv", "loss/excess"),
            ("total variation to the free maximin", "RPO loss above its minimum, nats per pair"),
            strict=True,
        ):
            for name, frame in frames.items():
                axis.plot(frame["share"], frame[column], "-", color=COLORS["RPO"], label=name)
                for active, marker in ((True, "o"), (False, "s")):
                    rows = frame[frame["active"] == active]
                    fill = COLORS["RPO"] if active else "white"
                    label_of = "class binds" if active else "does not bind"
                    axis.plot(rows["share"], rows[column], marker, color=COLORS["RPO"], mfc=fill, label=label_of)
            axis.axvline(1.0, color="#777777", linewidth=1, linestyle="--")
            axis.set_xlabel(x_label)
            axis.set_ylabel(label)
        axes[0, 0].legend(fontsize=9)
        figure.suptitle(note, x=0.01, ha="left", fontsize=10)
    return figure


def _apart(policy: Array, logps: Array, free: Solution) -> dict[str, float]:
    """Return the distance to the free maximin, and the RPO loss over its minimum."""
    return {"tv": _largest_tv(policy, free.policy), "loss/excess": float(free.saddle.loss(logps)[0]) - free.loss}


def _largest_tv(first: Array, second: Array) -> float:
    from rpo.bandit.metrics import total_variation

    return float(total_variation(first, second).max())


def _features(problem: ContextualBandit, rng: Any) -> Array:
    """Return (X, A, X A): the columns of a random orthogonal matrix, as features."""
    x, a = problem.reference.shape
    square = checks.generator("rng", rng).normal(size=(x * a, x * a))
    return np.asarray(np.linalg.qr(square)[0].reshape(x, a, x * a))
