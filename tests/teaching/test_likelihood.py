"""Displacement on the enumerable model: forces by finite differences, quadrants and mass by counting."""

import copy
import math
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import rpo
from rpo.compare import EnumerableLM
from rpo.core.errors import InvalidArgument
from rpo.teaching import exercises
from rpo.teaching.lessons import likelihood


@pytest.fixture(scope="module")
def setting():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: threads only wait for each other
    yield likelihood.near_pairs(num_preferences=6, seed=4)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(setting):
    lm, problem, data = setting
    return rpo.fit(
        lm,
        data,
        rpo.RPO(beta=0.1, eta=0.1),
        problem=problem,
        steps=6,
        log_every=3,
        learning_rate=1e-2,
        extra_metrics=likelihood.watch(problem, data),
        proxy_reward=None,
        label="RPO",
    )


def test_pairs_differ_in_one_token(setting) -> None:
    lm, problem, data = setting
    assert data.n == 6 and problem.reference.shape == (3, 125)
    np.testing.assert_allclose(problem.reference, lm.policy(), atol=1e-12)
    for w, lost in zip(data.chosen, data.rejected, strict=True):
        first, second = problem.response_labels[w], problem.response_labels[lost]
        assert sum(a != b for a, b in zip(first, second, strict=True)) == 1
    again = likelihood.near_pairs(num_preferences=6, seed=4)[2]
    assert again.chosen.tolist() == data.chosen.tolist()


def test_what_is_watched_is_counted(setting, trained) -> None:
    lm, _, data = setting
    first, last = trained.history[0], trained.history[-1]
    assert first["displacement/unchanged"] == 1.0 and first["displacement/share"] == 0.0
    change = np.log(trained.policy) - np.log(lm.policy())
    fell = [change[x, w] < 0 for x, w in zip(data.prompt, data.chosen, strict=True)]
    assert last["displacement/share"] == pytest.approx(np.mean(fell))
    won = [set(data.chosen[data.prompt == x]) for x in range(3)]
    lost = [set(data.rejected[data.prompt == x]) for x in range(3)]
    chosen = np.mean([sum(trained.policy[x, a] for a in won[x]) for x in range(3)])
    only = np.mean([sum(trained.policy[x, a] for a in lost[x] - won[x]) for x in range(3)])
    assert last["mass/chosen"] == pytest.approx(chosen)
    assert last["mass/rejected"] == pytest.approx(only)
    assert last["mass/unseen"] == pytest.approx(1 - chosen - only)


def test_changes_and_quadrants(setting, trained) -> None:
    _, problem, data = setting
    frame = likelihood.changes(trained, problem, data)
    k = 2
    before = problem.reference[data.prompt[k], data.chosen[k]]
    after = trained.policy[data.prompt[k], data.chosen[k]]
    assert frame["chosen_change"][k] == pytest.approx(math.log(after / before))
    assert frame["chosen"][k] == problem.response_labels[data.chosen[k]]
    made = pandas.DataFrame({"quadrant": ["both down", "both down", "chosen up, rejected down", "both up"]})
    assert likelihood.quadrants({"a": made})["a"].tolist() == [0.25, 0.25, 0.0, 0.5]
    for row in frame.itertuples():
        expected = {(True, True): "both up", (True, False): "chosen up, rejected down"}
        up = (row.chosen_change > 0, row.rejected_change > 0)
        assert row.quadrant == expected.get(up, "both down" if not up[1] else "chosen down, rejected up")


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_forces_are_what_a_small_step_does(setting, trained, eta: float) -> None:
    """One plain gradient step on the objective, on copies of the weights, away from the reference."""
    lm, _, data = setting
    objective, rate, here = rpo.RPO(beta=0.3, eta=eta), 1e-6, trained.artifact
    frame = likelihood.forces(here, data, objective, reference=lm)
    x, w, lost = (torch.as_tensor(index) for index in (data.prompt, data.chosen, data.rejected))
    old, anchor = here.logps().detach(), lm.logps().detach()

    def step(weights: torch.Tensor, sft: float) -> np.ndarray:
        """Change of the chosen log-probabilities by a step on a weighted loss, per unit of rate."""
        moved = EnumerableLM(copy.deepcopy(here.model), here.prompts, here.length)
        logps = moved.logps()
        margins = logps[x, w] - anchor[x, w] - logps[x, lost] + anchor[x, lost]
        loss = -(weights * torch.nn.functional.logsigmoid(0.3 * margins)).sum() - sft * (full * logps[x, w]).sum()
        loss.backward()
        with torch.no_grad():
            for parameter in moved.model.parameters():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
            return ((moved.logps() - old)[x, w] / rate).numpy()

    full = torch.as_tensor(data.weights)
    np.testing.assert_allclose(frame["total"], step(full, 0.3 * eta), rtol=2e-3, atol=2e-4)
    for k in (0, len(x) - 1):
        alone = torch.zeros_like(full)
        alone[k] = full[k]
        assert frame["own"][k] == pytest.approx(step(alone, 0.0)[k], rel=2e-3, abs=2e-4)
        assert frame["others"][k] == pytest.approx(step(full - alone, 0.0)[k], rel=2e-3, abs=2e-4)
    assert (frame["sft"] == 0).all() == (eta == 0)


def test_forces_need_the_chosen_base(setting) -> None:
    lm, _, data = setting
    with pytest.raises(InvalidArgument, match="objective.base: expected 'chosen'"):
        likelihood.forces(lm, data, rpo.RPO(beta=0.1, eta=0.1, base="reference"))


def test_a_table_of_ends_begins_with_the_start(trained) -> None:
    frame = likelihood.ends({0.1: trained})
    assert frame.index.tolist() == ["start", "eta = 0.1"]
    assert frame["chosen"].tolist() == [trained.history[0]["logps/chosen"], trained.history[-1]["logps/chosen"]]
    assert frame["gold"].iloc[1] == trained.history[-1]["reward/gold"]


def test_figures_show_the_numbers(setting, trained) -> None:
    lm, problem, data = setting
    frame = likelihood.changes(trained, problem, data)
    axis = likelihood.changes_figure({"RPO, eta = 0.1": frame}).axes[0]
    np.testing.assert_allclose(axis.lines[2].get_xdata(), frame["rejected_change"])
    np.testing.assert_allclose(axis.lines[2].get_ydata(), frame["chosen_change"])
    texts = [text.get_text() for text in axis.texts]
    assert texts[3] == f"{(frame['quadrant'] == 'both down').mean():.0%}"
    figure = likelihood.outcome_figure(trained, problem, data)
    assert figure.axes[0].get_title(loc="left") == "RPO, eta = 0.1"
    assert len(likelihood.mass_figure([trained, trained]).axes) == 2
    forces = likelihood.forces(lm, data, rpo.RPO(beta=0.1, eta=0.5))
    drawn = likelihood.forces_figure({"start": forces}).axes[0]
    np.testing.assert_allclose(drawn.lines[0].get_ydata(), forces["total"].sort_values())
    heights = sum(np.array([bar.get_height() for bar in group]) for group in drawn.containers)
    np.testing.assert_allclose(heights, forces["total"].sort_values(), atol=1e-12)


def test_the_recorded_runs_are_read_as_they_stand() -> None:
    path = Path(__file__).resolve().parents[2] / "docs" / "figures" / "smollm2.csv"
    frame = likelihood.recorded(path)
    lines = [line for line in path.read_text().splitlines() if line.startswith('"DPO') and ",68," in line]
    value = next(float(line.rsplit(",", 1)[1]) for line in lines if "eval_displacement/share" in line)
    assert frame.loc["DPO (beta = 0.1, eta = 0)", "fell"] == value
    assert frame["updates"].tolist() == [68, 68] and len(frame) == 2


def test_the_exercises_by_hand() -> None:
    book = exercises("06")
    assert book["06.1"].solve() == "falls"  # the notebook prints -4.33 to -13.26
    # beta (Delta log pi(w) - Delta log pi(l)), from probabilities.
    margin = 0.1 * math.log((math.exp(-13) / math.exp(-4)) / (math.exp(-38) / math.exp(-5)))
    assert book["06.2"].accepts(margin)
    assert book["06.3"].accepts(math.log(math.sqrt(5.0 * 0.01)))
    assert book["06.4"].solve() == "the other pairs"
    # The smallest eta of a grid at which (s + eta) |g_w|^2 >= s <g_w, g_l>, with vectors of these products.
    g_w, g_l = np.array([math.sqrt(2.0), 0.0]), np.array([3.0 / math.sqrt(2.0), 1.0])
    grid = np.linspace(0.0, 1.0, 1001)
    rising = (0.5 + grid) * (g_w @ g_w) >= 0.5 * (g_w @ g_l) - 1e-12
    assert book["06.5"].accepts(grid[np.argmax(rising)])
