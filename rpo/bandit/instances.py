"""Named problems, each a `ContextualBandit` drawn from `rng`; `list_instances` lists them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rpo.bandit.problem import ContextualBandit
from rpo.bandit.problems import Problems
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
    given: dict[str, Any] = {
        "arms": arms,
        "prompts": prompts,
        "skew": skew,
        "reward_bound": reward_bound,
        "reference": reference,
    }
    return _coverage_skew(1, **given, rng=rng)[0]


def _coverage_skew(
    size: int, *, arms: int, prompts: int, skew: float, reward_bound: float, reference: str, rng: Any
) -> Problems:
    checks.one_of("reference", reference, ("uniform", "behavior"))
    a = checks.integer("arms", arms, minimum=2)
    x = checks.integer("prompts", prompts, minimum=1)
    width = checks.nonnegative("skew", skew)
    bound = checks.positive("reward_bound", reward_bound)
    generator = checks.generator("rng", rng)
    reward = generator.uniform(0.0, bound, size=(size, x, a))
    behavior = np.exp(log_softmax(width * generator.normal(size=(size, x, a)) + 0.5 * reward))
    return Problems(
        d0=np.full((size, x), 1.0 / x),
        reference=behavior if reference == "behavior" else np.full((size, x, a), 1.0 / a),
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
    return _random(1, prompts=prompts, arms=arms, features=features, reward_bound=reward_bound, rng=rng)[0]


def _random(size: int, *, prompts: int, arms: int, features: int | None, reward_bound: float, rng: Any) -> Problems:
    x = checks.integer("prompts", prompts, minimum=1)
    a = checks.integer("arms", arms, minimum=2)
    bound = checks.positive("reward_bound", reward_bound)
    generator = checks.generator("rng", rng)
    phi = None
    if features is None:
        reward = generator.uniform(0.0, bound, size=(size, x, a))
    else:
        d = checks.integer("features", features, minimum=1)
        phi = generator.normal(size=(size, x, a, d))
        reward = (phi @ generator.normal(size=(size, 1, d, 1)))[..., 0]
        reward = reward - reward.min(axis=2, keepdims=True)
        # rounding may exceed the bound
        reward = np.minimum(reward * (bound / reward.max(axis=(1, 2), keepdims=True)), bound)
    return Problems(
        d0=generator.dirichlet(np.ones(x), size=size),
        reference=generator.dirichlet(np.ones(a), size=(size, x)),
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
    return _disconnected(1, arms=arms, prompts=prompts, bridge=bridge, reward_bound=reward_bound, rng=rng)[0]


def _disconnected(size: int, *, arms: int, prompts: int, bridge: float, reward_bound: float, rng: Any) -> Problems:
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
    return Problems(
        d0=np.full((size, x), 1.0 / x),
        reference=np.full((size, x, a), 1.0 / a),
        reward=generator.uniform(0.0, bound, size=(size, x, a)),
        reward_bound=bound,
        behavior=np.broadcast_to(pairs, (size, x, a, a)).copy(),
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
    given: dict[str, Any] = {"arms": arms, "dimension": dimension, "outside": outside, "prompts": prompts}
    return _linear_outside_span(1, **given, leak=leak, reward_bound=reward_bound, rng=rng)[0]


def _linear_outside_span(
    size: int, *, arms: int, dimension: int, outside: int, prompts: int, leak: float, reward_bound: float, rng: Any
) -> Problems:
    extra = checks.integer("outside", outside, minimum=1)
    a = checks.integer("arms", arms, minimum=extra + 2)
    d = checks.integer("dimension", dimension, minimum=2)
    x = checks.integer("prompts", prompts, minimum=1)
    seen = checks.nonnegative("leak", leak)
    if seen >= 1:
        raise InvalidArgument("leak", expected="a fraction in [0, 1)", got=leak, remedy="Leave mass to the other arms.")
    bound = checks.positive("reward_bound", reward_bound)
    generator = checks.generator("rng", rng)
    theta = generator.normal(size=(size, d))
    # small would need huge features
    theta[:, -1] = generator.uniform(0.5, 1.0, size=size) * np.linalg.norm(theta[:, :-1], axis=1)
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    phi = generator.normal(size=(size, x, a, d))
    phi[:, :, : a - extra, -1] = 0.0
    # The hidden feature is what makes the first outside arm best: by a tenth of the spread, or more.
    reward = (phi @ theta[:, None, :, None])[..., 0]
    lead = reward.max(axis=2) + 0.1 * np.ptp(reward, axis=2) - reward[:, :, a - extra]
    phi[:, :, a - extra, -1] += lead / theta[:, -1:]
    reward = (phi @ theta[:, None, :, None])[..., 0]
    scale = bound / np.ptp(reward, axis=2).max(axis=1)[:, None, None]
    reward = scale * (reward - reward.min(axis=2, keepdims=True))
    behavior = np.full(a, (1.0 - seen) / (a - extra))
    behavior[a - extra :] = seen / extra
    return Problems(
        d0=np.full((size, x), 1.0 / x),
        reference=np.full((size, x, a), 1.0 / a),
        reward=np.clip(reward, 0.0, bound),
        reward_bound=bound,
        features=scale[..., None] * phi,
        behavior=np.tile(behavior, (size, x, 1)),
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


# Instances of which many are drawn at once: the first argument is how many, the others are the function's own.
DRAWN_AT_ONCE: dict[Callable[..., ContextualBandit], Callable[..., Problems]] = {
    coverage_skew: _coverage_skew,
    disconnected: _disconnected,
    linear_outside_span: _linear_outside_span,
    random: _random,
    zhu_four_arms: lambda size, **given: Problems.repeated(zhu_four_arms(**given), size),
}


def many(make: Callable[..., ContextualBandit], size: int, **given: Any) -> Problems:
    """Return `size` problems of one instance, drawn at once from given["rng"]: of one, the instance itself."""
    signature = inspect.signature(make).bind(**given)
    signature.apply_defaults()
    return DRAWN_AT_ONCE[make](size, **signature.kwargs)


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
