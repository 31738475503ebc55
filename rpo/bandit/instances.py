"""Named problems, each a `ContextualBandit` drawn from `rng`; `list_instances` lists them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.bandit.problem import ContextualBandit
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.numerics import log_softmax


def coverage_skew(
    *,
    arms: int = 10,
    prompts: int = 1,
    skew: float = 1.0,
    reward_bound: float = 3.0,
    reference: str = "uniform",
    rng: Any,
) -> ContextualBandit:
    """Return a bandit whose data favour some arms: r* uniform on [0, R], uniform pi_ref, skewed behaviour.

    The behaviour is softmax(skew * normal + r* / 2) a prompt: one knob, 0 for even coverage. reference: "behavior"
    takes it for pi_ref too, as in practice, where a model's own responses are compared.
    """
    checks.one_of("reference", reference, ("uniform", "behavior"))
    a = checks.integer("arms", arms, minimum=2)
    x = checks.integer("prompts", prompts, minimum=1)
    width = checks.nonnegative("skew", skew)
    bound = checks.positive("reward_bound", reward_bound)
    generator = checks.generator("rng", rng)
    reward = generator.uniform(0.0, bound, size=(x, a))
    behavior = np.exp(log_softmax(width * generator.normal(size=(x, a)) + 0.5 * reward))
    return ContextualBandit(
        d0=np.full(x, 1.0 / x),
        reference=behavior if reference == "behavior" else np.full((x, a), 1.0 / a),
        reward=reward,
        reward_bound=bound,
        behavior=behavior,
        name=f"coverage_skew(arms={a}, prompts={x}, skew={width:g}"
        + (", reference=behavior)" if reference == "behavior" else ")"),
    )


def random(
    *, prompts: int = 3, arms: int = 6, features: int | None = None, reward_bound: float = 2.0, rng: Any
) -> ContextualBandit:
    """Return a bandit with Dirichlet d0 and pi_ref, and behaviour equal to pi_ref.

    r* is uniform on [0, R]; with `features` D it is linear in standard normal features (X, A, D),
    shifted and scaled to [0, R], so only its differences within a prompt are linear.
    """
    x = checks.integer("prompts", prompts, minimum=1)
    a = checks.integer("arms", arms, minimum=2)
    bound = checks.positive("reward_bound", reward_bound)
    generator = checks.generator("rng", rng)
    phi = None
    if features is None:
        reward = generator.uniform(0.0, bound, size=(x, a))
    else:
        d = checks.integer("features", features, minimum=1)
        phi = generator.normal(size=(x, a, d))
        reward = phi @ generator.normal(size=d)
        reward = reward - reward.min(axis=1, keepdims=True)
        reward = np.minimum(reward * (bound / reward.max()), bound)  # rounding may exceed the bound
    return ContextualBandit(
        d0=generator.dirichlet(np.ones(x)),
        reference=generator.dirichlet(np.ones(a), size=x),
        reward=reward,
        reward_bound=bound,
        features=phi,
        name=f"random(prompts={x}, arms={a}, features={features})",
    )


def disconnected(
    *, arms: int = 6, prompts: int = 1, bridge: float = 0.0, reward_bound: float = 3.0, rng: Any
) -> ContextualBandit:
    """Return a bandit whose arms are compared within two halves, and across them in a fraction `bridge` of the pairs.

    r* uniform on [0, R], uniform pi_ref; pairs are uniform within the halves, and uniform across. At
    bridge = 0 no amount of data orders the halves. arms >= 4: each half needs a pair. bridge: in [0, 1).
    """
    a = checks.integer("arms", arms, minimum=4)
    x = checks.integer("prompts", prompts, minimum=1)
    across = checks.nonnegative("bridge", bridge)
    if across >= 1:
        raise InvalidArgument("bridge", expected="a fraction in [0, 1)", got=bridge, remedy="Leave pairs within.")
    bound = checks.positive("reward_bound", reward_bound)
    generator = checks.generator("rng", rng)
    half = np.arange(a) < (a + 1) // 2
    same = (half[:, None] == half[None, :]) & ~np.eye(a, dtype=bool)
    other = half[:, None] != half[None, :]
    pairs = (1.0 - across) * same / same.sum() + across * other / other.sum()
    return ContextualBandit(
        d0=np.full(x, 1.0 / x),
        reference=np.full((x, a), 1.0 / a),
        reward=generator.uniform(0.0, bound, size=(x, a)),
        reward_bound=bound,
        behavior=np.broadcast_to(pairs, (x, a, a)).copy(),
        name=f"disconnected(arms={a}, prompts={x}, bridge={across:g})",
    )


def linear_outside_span(
    *,
    arms: int = 8,
    dimension: int = 3,
    outside: int = 2,
    prompts: int = 1,
    leak: float = 0.0,
    reward_bound: float = 2.0,
    rng: Any,
) -> ContextualBandit:
    """Return a linear bandit whose best arm has a feature that no comparison sees.

    The last `outside` arms have a last feature; the others have zero there, and get all but a fraction
    `leak` of the behaviour's mass (0: the feature is never observed). r* = <features, theta> minus a constant
    a prompt, in [0, R], with ||theta|| = 1: `LinearBall(problem.features, 1.0)` holds it. The best arm of
    every prompt is an outside one. Uniform d0 and pi_ref. leak: in [0, 1).
    """
    extra = checks.integer("outside", outside, minimum=1)
    a = checks.integer("arms", arms, minimum=extra + 2)
    d = checks.integer("dimension", dimension, minimum=2)
    x = checks.integer("prompts", prompts, minimum=1)
    seen = checks.nonnegative("leak", leak)
    if seen >= 1:
        raise InvalidArgument("leak", expected="a fraction in [0, 1)", got=leak, remedy="Leave mass to the other arms.")
    bound = checks.positive("reward_bound", reward_bound)
    generator = checks.generator("rng", rng)
    theta = generator.normal(size=d)
    theta[-1] = generator.uniform(0.5, 1.0) * np.linalg.norm(theta[:-1])  # small would need huge features
    theta /= np.linalg.norm(theta)
    phi = generator.normal(size=(x, a, d))
    phi[:, : a - extra, -1] = 0.0
    # The hidden feature is what makes the first outside arm best: by a tenth of the spread, or more.
    reward = phi @ theta
    lead = reward.max(axis=1) + 0.1 * np.ptp(reward, axis=1) - reward[:, a - extra]
    phi[:, a - extra, -1] += lead / theta[-1]
    reward = phi @ theta
    scale = bound / np.ptp(reward, axis=1).max()
    reward = scale * (reward - reward.min(axis=1, keepdims=True))
    behavior = np.full(a, (1.0 - seen) / (a - extra))
    behavior[a - extra :] = seen / extra
    return ContextualBandit(
        d0=np.full(x, 1.0 / x),
        reference=np.full((x, a), 1.0 / a),
        reward=np.clip(reward, 0.0, bound),
        reward_bound=bound,
        features=scale * phi,
        behavior=np.tile(behavior, (x, 1)),
        name=f"linear_outside_span(arms={a}, dimension={d}, outside={extra}, prompts={x}, leak={seen:g})",
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class FixedDesign(ContextualBandit):
    """A bandit whose comparisons are planned: only the winners are drawn.

    design: (X, A, A), whole numbers >= 0, how often a1 is compared with a0 (either order, the two are
    added). `behavior` is its shares. Raises InvalidArgument.
    """

    design: Array | None = None

    def __post_init__(self) -> None:
        x, a = np.shape(self.reference)
        design = checks.finite("design", self.design, shape=(x, a, a))
        if (design < 0).any() or (design % 1 != 0).any() or np.einsum("xaa->", design) > 0:
            raise InvalidArgument(
                "design", expected="whole numbers >= 0 with a zero diagonal", got="others", remedy="Count comparisons."
            )
        object.__setattr__(self, "design", design)
        object.__setattr__(self, "behavior", design / np.maximum(design.sum(axis=(1, 2), keepdims=True), 1.0))
        super().__post_init__()

    def draw_pairs(self, n: int, generator: np.random.Generator) -> Any:
        """Return the planned comparisons; refuse an n other than their number."""
        design = np.asarray(self.design)
        counts = (design + design.transpose(0, 2, 1)).astype(np.int64)
        first, second = np.triu_indices(self.num_responses, k=1)
        planned = counts[:, first, second]
        if planned.sum() != n:
            raise InvalidArgument(
                "n",
                expected=f"the design's {planned.sum()} comparisons",
                got=n,
                remedy="Build the instance for that n.",
            )
        return planned


def zhu_four_arms(*, n: int, radius: float = 2.0, rng: Any = None) -> FixedDesign:
    """Return the four arms on which greedy maximum likelihood stays 0.1 suboptimal at every n.

    phi = (1,1,0), (1,0,0), (0,0,0), (0,1,0), theta* = (-1, 0.1, 0.9), so r* = (-0.9, -1, 0, 0.1) (stored
    1 higher). Design: n - 1 comparisons of the first two arms and one of the second with the third, which
    arm 2 wins with probability sigmoid(-1) = 0.27; the likelihood then sends theta_1 to the boundary and
    arm 1, worth 1 less than arm 4, looks best. Class: ||theta|| <= radius and sum(theta) = 0;
    `features` (1, 4, 2) are phi in an orthonormal basis of that plane, so it is
    `LinearBall(problem.features, radius)`. Coverage holds against arm 3 (`zhu_base()`), not against the
    chosen responses. rng is not used. Source: Zhu, Jordan, Jiao 2023, Theorem 3.9.
    """
    total = checks.integer("n", n, minimum=2)
    # What the construction needs of the ball: theta* in it, and room for theta_1 > 0.
    if checks.positive("radius", radius) < np.sqrt(1.82):
        raise InvalidArgument("radius", expected="at least ||theta*|| = 1.35", got=radius, remedy="The paper has 2.")
    phi = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    plane = np.array([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]) / np.sqrt([[2.0], [6.0]])
    design = np.zeros((1, 4, 4))
    design[0, 0, 1], design[0, 1, 2] = total - 1, 1
    return FixedDesign(
        d0=np.ones(1),
        reference=np.full((1, 4), 0.25),
        reward=np.array([[0.1, 0.0, 1.0, 1.1]]),
        features=(phi @ plane.T)[None],
        design=design,
        name=f"zhu_four_arms(n={total})",
    )


def zhu_base() -> Array:
    """Return the base policy (1, 4) of `zhu_four_arms` against which the best arm is covered: arm 3."""
    return np.array([[0.0, 0.0, 1.0, 0.0]])


def label_noise(problem: ContextualBandit, rate: float = 0.25) -> ContextualBandit:
    """Return the same problem with every label flipped with probability `rate`, in [0, 1/2]; r* is unchanged."""
    checks.instance("problem", problem, ContextualBandit)
    rate = checks.nonnegative("rate", rate)
    return dataclasses.replace(problem, label_noise=rate, name=f"label_noise({problem.name}, rate={rate:g})")


@dataclass(frozen=True)
class InstanceInfo:
    """One line of `list_instances`: what makes the instance, in one sentence, and with which arguments."""

    make: Callable[..., ContextualBandit]
    sentence: str
    signature: str


def list_instances() -> dict[str, InstanceInfo]:
    """Return name -> InstanceInfo of every instance; `label_noise` turns any of them into a noisy one."""
    makers = (coverage_skew, disconnected, label_noise, linear_outside_span, random, zhu_four_arms)
    listed = {}
    for make in makers:
        sentence = (inspect.getdoc(make) or "").splitlines()[0]
        plain = [p.replace(annotation=p.empty) for p in inspect.signature(make).parameters.values()]
        listed[make.__name__] = InstanceInfo(make, sentence, f"{make.__name__}{inspect.Signature(plain)}")
    return listed
