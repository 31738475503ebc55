"""One suite over every registered method: backends, derivatives, declared facts, records, refusals.

A method is tried as `objectives()` builds it: with its defaults, numbers for the fields that have none, and FDPO
under each divergence.
"""

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

import rpo
from rpo.cli import main
from rpo.core import divergences, numerics
from rpo.core.columns import Columns
from rpo.core.errors import InvalidArgument
from rpo.core.objectives import DPO, RPO, Objective
from rpo.core.shapes import Logistic, MarginShape, Pointwise, Shape
from rpo.methods import registry

GIVEN = {
    "RPO": {"beta": 0.3, "eta": 0.2},
    "FRPO": {"beta": 0.3, "eta": 0.2},
    "DPO": {"beta": 0.3},
    "RDPO": {"alpha": 0.05},
    "GammaDPO": {"gamma": 0.6},
}
INTERIOR = (divergences.KL(), divergences.ForwardKL(), divergences.JensenShannon(), divergences.Alpha(0.4))
N = 9


def objectives() -> dict[str, Objective]:
    """Return every registered method, ready to be called, by a name for the test's id."""
    found = {name: method.load()(**GIVEN.get(name, {})) for name, method in registry.METHODS.items()}
    return found | {f"FDPO-{type(f).__name__}": rpo.FDPO(beta=0.5, divergence=f) for f in INTERIOR}


ALL = {name: objective for name, objective in objectives().items() if objective.shape.pairs}
every_method = pytest.mark.parametrize("objective", ALL.values(), ids=ALL)


def columns(seed: int = 0, make: Any = np.asarray) -> Columns:
    """Return N pairs with log-probabilities of a few nats, ratios near one, and lengths from 2 to 9."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 10, (2, N)).astype(float)
    reference = -rng.uniform(0.2, 1.0, (2, N)) * lengths
    policy = np.minimum(reference + rng.normal(scale=0.8, size=(2, N)), -0.05)
    scores = rng.uniform(0.05, 0.5, (2, N)).cumsum(0)[::-1]  # the chosen one's is higher
    fields = {"logps": policy, "reference": reference, "lengths": lengths, "scores": scores}
    fields["likeness"] = rng.normal(-0.2, 0.6, size=(2, N))  # some weights are above one
    return Columns(**{name: tuple(map(make, value.copy())) for name, value in fields.items()}, shift=0.3)


def call(objective: Objective, given: Columns, **more: Any) -> Any:
    reference = given.reference if "reference" in objective.needs else (None, None)
    lengths = dict(zip(("chosen_lengths", "rejected_lengths"), given.lengths, strict=True))
    base = {} if objective.anchor.role == "chosen" else {"base_logps": given.logps[0]}
    shift = {"shift": given.shift} if "shift" in objective.needs else {}
    shift |= dict(zip(("chosen_scores", "rejected_scores"), given.scores, strict=True))
    shift |= dict(zip(("chosen_likeness", "rejected_likeness"), given.likeness, strict=True))
    return objective(*given.logps, *reference, **lengths, **base, **shift, **more)


# --- one formula, every backend --------------------------------------------------------------------


@every_method
def test_numpy_equals_torch(objective: Objective) -> None:
    value, terms = call(objective, columns())
    tensor, tensor_terms = call(objective, columns(make=torch.tensor))
    assert float(tensor) == pytest.approx(float(value), rel=1e-12)
    assert float(tensor_terms.sft) == pytest.approx(float(terms.sft), rel=1e-12)


@every_method
def test_loss_is_the_weighted_sum_of_its_terms(objective: Objective) -> None:
    weights = np.random.default_rng(1).dirichlet(np.ones(N))
    loss, terms = call(objective, columns(), weights=weights)
    assert float(loss) == pytest.approx(
        objective.preference_weight * terms.preference + objective.anchor.weight * terms.sft, rel=1e-14
    )
    assert terms.preference == pytest.approx(weights @ objective.per_pair(columns()), rel=1e-14)


@every_method
def test_jets_equal_autograd(objective: Objective) -> None:
    given = columns(2)
    value, gradient, hessian = objective.derivatives(given)
    leaves = torch.tensor(np.stack(given.logps), requires_grad=True)
    fixed = columns(2, torch.tensor)
    losses = objective.per_pair(fixed.with_logps((leaves[0], leaves[1])))
    (first,) = torch.autograd.grad(losses.sum(), leaves, create_graph=True)
    second = [torch.autograd.grad(first[k].sum(), leaves, retain_graph=True)[0] for k in range(2)]
    assert value == pytest.approx(losses.detach().numpy(), rel=1e-12)
    assert gradient == pytest.approx(first.detach().numpy(), rel=1e-12, abs=1e-13)
    assert hessian == pytest.approx(torch.stack(second).numpy(), rel=1e-11, abs=1e-12)


@every_method
def test_reference_and_lengths_are_asked_for_exactly_where_they_matter(objective: Objective) -> None:
    """Another reference, or other lengths, change the preference term if and only if `needs` names them."""
    given = columns()
    plain = objective.per_pair(given)
    moved = {
        "reference": dataclasses.replace(given, reference=(given.reference[0] - 0.3, given.reference[1] + 0.1)),
        "lengths": dataclasses.replace(given, lengths=(given.lengths[0] + 1, given.lengths[1] + 3)),
        "shift": dataclasses.replace(given, shift=-0.4),
        "scores": dataclasses.replace(given, scores=(given.scores[0] + 1, given.scores[1])),
        "likeness": dataclasses.replace(given, likeness=(given.likeness[0] - 0.7, given.likeness[1])),
    }
    for field, other in moved.items():
        assert (np.abs(objective.per_pair(other) - plain).max() > 1e-9) == (field in objective.needs)


@every_method
def test_what_is_needed_and_missing_is_named(objective: Objective) -> None:
    given = columns()
    if "reference" in objective.needs:
        with pytest.raises(InvalidArgument, match="reference_chosen_logps"):
            objective(*given.logps, chosen_lengths=given.lengths[0], rejected_lengths=given.lengths[1])
    if "lengths" in objective.needs:
        with pytest.raises(InvalidArgument, match="_lengths"):
            objective(*given.logps, *given.reference, chosen_lengths=given.lengths[0])
    if "scores" in objective.needs:
        lengths = {"chosen_lengths": given.lengths[0], "rejected_lengths": given.lengths[1]}
        with pytest.raises(InvalidArgument, match="^chosen_scores: expected"):
            objective(*given.logps, *given.reference, **lengths, rejected_scores=given.scores[1])
        up = {"chosen_scores": given.scores[1], "rejected_scores": given.scores[0]}
        wrong = "one above the score before it" if objective.takes_lists else "a tie, or the other way round"
        with pytest.raises(InvalidArgument, match=wrong):
            objective(*given.logps, *given.reference, **lengths, **up)
    if "shift" in objective.needs:
        with pytest.raises(InvalidArgument, match="^shift: expected"):
            objective(*given.logps, *given.reference)
    if "likeness" in objective.needs:
        with pytest.raises(InvalidArgument, match="^rejected_likeness: expected"):
            objective(*given.logps, *given.reference, chosen_likeness=given.likeness[0])
        with pytest.raises(InvalidArgument, match="^chosen_likeness: expected"):
            objective.per_pair(dataclasses.replace(given, likeness=None))


@every_method
def test_at_reference_is_the_loss_of_the_reference_itself(objective: Objective) -> None:
    given = columns()
    start = objective.at_reference(given)
    if "reference" in objective.needs:
        assert start == pytest.approx(objective.per_pair(given.with_logps(given.reference)), rel=1e-15)
    else:
        assert np.isnan(start).all()


# --- declared facts --------------------------------------------------------------------------------


def responses(shape: Shape) -> int:
    """Return how many responses a shape is tried on: three where it takes lists, of which pairs may hide a fact."""
    return 3 if shape.lists else 2


def beside(shape: Shape, n: int) -> Columns:
    """Return what a shape may read beside rewards."""
    lengths, scores = (np.full(n, 3.0), np.full(n, 5.0), np.full(n, 4.0)), (0.9, 0.4, 0.1)
    filled = tuple(np.full(n, score) for score in scores)
    likeness = tuple(np.full(n, value) for value in (-0.5, 0.1))
    return Columns(logps=(), lengths=lengths, scores=filled, shift=0.3, likeness=likeness).first(responses(shape))


def worst_midpoint(shape: Shape, seed: int = 0) -> float:
    """Return the largest excess of a midpoint over the mean of its ends, over 20,000 pairs of rewards of groups."""
    rng = np.random.default_rng(seed)
    ends = rng.normal(scale=rng.choice([0.1, 1.0, 5.0], size=20_000), size=(2, responses(shape), 20_000))
    none = beside(shape, 20_000)
    first, second = (shape(tuple(end), 1.0, none) for end in ends)
    return float((shape(tuple((ends[0] + ends[1]) / 2), 1.0, none) - (first + second) / 2).max())


@every_method
def test_convexity_is_what_is_declared(objective: Objective) -> None:
    assert (worst_midpoint(objective.shape) <= 1e-9) == objective.shape.convex


@pytest.mark.parametrize("name", [n for n, o in ALL.items() if o.shape.convex and isinstance(o.shape, MarginShape)])
def test_cvxpy_agrees_and_proves_the_convexity(name: str) -> None:
    """cvxpy's rules are a proof that does not look at numbers; its value must be NumPy's."""
    shape = ALL[name].shape
    assert isinstance(shape, MarginShape)
    z, numbers = cp.Variable(5), np.array([-3.0, -0.2, 0.0, 0.7, 4.0])
    z.value = numbers
    loss = shape.of_margin(z)
    # cvxpy takes softplus(-z) + tilt z as convex for either sign of tilt, since tilt z is affine
    assert loss.is_convex()
    assert loss.value == pytest.approx(shape.of_margin(numbers), rel=1e-12)


@every_method
def test_invariance_is_what_is_declared(objective: Objective) -> None:
    rng = np.random.default_rng(3)
    shift, none = rng.normal(size=50), beside(objective.shape, 50)
    rewards = rng.normal(size=(responses(objective.shape), 50))
    moved = np.abs(objective.shape(tuple(rewards + shift), 1.0, none) - objective.shape(tuple(rewards), 1.0, none))
    assert (moved.max() <= 1e-12) == objective.shape.invariant


def test_a_shape_that_lies_about_its_convexity_is_caught() -> None:
    """The control of the two tests above: a square root of the hinge, declared convex."""

    class Lying(Logistic):
        def of_margin(self, z: Any) -> Any:
            return np.sqrt(np.maximum(1.0 - z, 0.0))

    assert Lying().convex and worst_midpoint(Lying()) > 1e-3
    assert worst_midpoint(Pointwise(numerics.sigmoid, numerics.sigmoid)) > 1e-3


# --- records, labels, names, refusals --------------------------------------------------------------


@every_method
def test_record_holds_every_field_and_label_names_the_method(objective: Objective) -> None:
    record = objective.to_dict()
    assert record.pop("name") == type(objective).__name__
    assert set(record) == {field.name for field in dataclasses.fields(objective)}
    plain = {name: value for name, value in record.items() if not isinstance(value, dict)}
    given = {name: getattr(objective, name) for name in record if name not in plain}
    assert type(objective)(**plain, **given) == objective
    assert objective.label.startswith(type(objective).__name__)


def test_labels_and_records_tell_methods_apart() -> None:
    every = objectives()
    assert len({str(objective.to_dict()) for objective in every.values()}) == len(every)
    assert len({objective.label for name, objective in every.items() if not name.startswith("FDPO-")}) == len(
        registry.METHODS
    )


@pytest.mark.parametrize("name", registry.METHODS)
def test_registered_methods_are_names_of_the_package(name: str) -> None:
    method = registry.METHODS[name]
    kind = getattr(rpo, name)
    assert kind is method.load() is registry.get(name)
    assert kind.__module__ == method.home and dataclasses.is_dataclass(kind) and issubclass(kind, Objective)
    text = inspect.getdoc(kind)
    assert "Source: " in text
    assert method.arxiv == "none" or method.arxiv in text or kind in (DPO, RPO)
    assert name in dir(rpo)


def test_an_unknown_method_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="'IPO'"):
        registry.get("IPOO")
    with pytest.raises(AttributeError, match="IPOO"):
        _ = rpo.IPOO


def test_a_loss_that_sorts_the_batch_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidArgument, match=r"^objective: .*sorts the margins of a whole batch.*ConservativeDPO"):
        registry.get("AOT")
    with pytest.raises(AttributeError, match=r"'AOT': AOT, which sorts the margins .* rpo\.ConservativeDPO"):
        _ = rpo.AOT


@every_method
@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, "a lot", None], ids=str)
def test_numbers_that_cannot_be_are_refused_by_name(objective: Objective, bad: Any) -> None:
    for field in dataclasses.fields(objective):
        if isinstance(getattr(objective, field.name), float) and not (field.name == "alpha" and bad == -1.0):
            with pytest.raises(InvalidArgument, match=field.name):
                dataclasses.replace(objective, **{field.name: bad})


@pytest.mark.parametrize("method", [rpo.ConservativeDPO, rpo.RobustDPO])
def test_noise_of_a_half_or_more_is_refused(method: type[Objective]) -> None:
    with pytest.raises(InvalidArgument, match="epsilon"):
        method(epsilon=0.5)


def test_a_divergence_whose_link_cannot_be_inverted_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="ChiSquared"):
        rpo.FDPO(divergence=divergences.ChiSquared())
    with pytest.raises(InvalidArgument, match="JensenShannon"):
        rpo.FDPO(divergence="js")


def test_the_page_of_methods_holds_the_table_that_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out.strip()
    assert f"<!-- rpo methods -->\n{printed}\n<!-- end -->" in page
    assert all(f"| {name} |" in page for name in registry.METHODS)  # and a formula of each
