"""A whole study on a tiny model: stages, resuming, report, command."""

import json
from pathlib import Path
from typing import Any

import models_for_tests
import numpy as np
import pandas
import pytest

from rpo.cli import main
from rpo.core.errors import InvalidArgument
from rpo.eval.gold import report
from rpo.eval.gold import study as study_module
from rpo.eval.gold.report import best_of_n_ends, read_study, write_gold_report
from rpo.eval.gold.settings import GoldStudy
from rpo.eval.gold.study import MARKER, read_stage, run_study

SMALL: dict[str, Any] = {
    "gold": {"length": 1.0, "repetition": -1.0},
    "train_prompts": 8,
    "eval_prompts": 6,
    "max_new_tokens": 5,
    "etas": (0.0, 0.5),
    "epochs": 2,
    "batch_size": 4,
    "checkpoints": 3,
    "best_of": 4,
    "proxy_epochs": 1,
    "learning_rate": 1e-3,
    "seeds": (0, 1),
    "bf16": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a file of prompts."""
    home = tmp_path_factory.mktemp("gold")
    models_for_tests.tiny_model("llama").save_pretrained(home / "model")
    models_for_tests.tiny_tokenizer().save_pretrained(home / "model")
    (home / "prompts.txt").write_text("\n".join(f"w{k} w{k % 5}" for k in range(30)) + "\n\n")
    return home


@pytest.fixture(scope="module")
def settings(folder: Path) -> GoldStudy:
    return GoldStudy(model=str(folder / "model"), prompts=str(folder / "prompts.txt"), **SMALL)


@pytest.fixture(scope="module")
def finished(folder: Path, settings: GoldStudy) -> Path:
    return run_study(settings, folder / "finished", progress=False)


def results(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(f"seed-*/*/{MARKER}"))}


def without_times(data: bytes) -> Any:
    """Run times differ between runs; nothing else may."""
    found = json.loads(data)
    for row in found.get("log", []):
        for name in [name for name in row if "runtime" in name or "per_second" in name]:
            del row[name]
    return found


def test_every_stage_leaves_its_evidence(settings: GoldStudy, finished: Path) -> None:
    pairs = read_stage(finished, 0, "pairs")
    assert pairs["pairs"] == 8 and pairs["gold"] == "+1 length -1 repetition"
    reference = read_stage(finished, 0, "reference")
    assert np.array(reference["gold"]).shape == (6, 4)
    assert [row["n"] for row in reference["best_of_n"]] == [1, 2, 4]
    assert reference["best_of_n"][0]["reward/gold"] == pytest.approx(np.mean(reference["gold"]))
    run = read_stage(finished, 1, "RPO-eta=0.5")
    assert [row["step"] for row in run["snapshots"]] == [1, 2, 4]
    assert all(row["kl/reference"] > 0 for row in run["snapshots"])
    assert run["objective"]["eta"] == 0.5 and read_stage(finished, 1, "DPO")["objective"]["eta"] == 0.0


def test_a_study_that_was_cut_off_continues_to_the_same_numbers(
    folder: Path, settings: GoldStudy, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut in the fourth stage, with rubbish of a killed stage left behind; then continued."""
    train, done = study_module._Laboratory.train_policy, []

    def interrupted(self: Any, *arguments: Any) -> Any:
        done.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(study_module._Laboratory, "train_policy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(settings, folder / "cut", progress=False)
    assert len(results(folder / "cut")) == 3
    (folder / "cut" / "seed-0" / "DPO" / ".stage-abc").mkdir(parents=True)
    (folder / "cut" / "seed-0" / "DPO" / "half").write_text("x")
    monkeypatch.setattr(study_module._Laboratory, "train_policy", train)
    run_study(settings, folder / "cut", progress=False)
    first, second = results(folder / "cut"), results(finished)
    assert first.keys() == second.keys() and len(first) == 2 * 5
    assert {name: without_times(data) for name, data in first.items()} == {
        name: without_times(data) for name, data in second.items()
    }
    assert not list((folder / "cut").rglob(".*"))


def test_another_study_is_refused_and_more_seeds_join(
    settings: GoldStudy, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = results(finished)
    other = GoldStudy(**{**settings.to_dict(), "etas": (0.0,), "seeds": (0,), "noise": 0.0})
    with pytest.raises(InvalidArgument, match="where noise differ"):
        run_study(other, finished)
    monkeypatch.setattr(study_module, "_Laboratory", lambda study: None)  # nothing is left to do
    run_study(GoldStudy(**{**settings.to_dict(), "etas": (0.5,), "seeds": (1,)}), finished, progress=False)
    assert results(finished) == before
    run_study(settings, finished, progress=False)


def test_the_report_counts_rewards_in_standard_deviations(settings: GoldStudy, finished: Path, tmp_path: Path) -> None:
    result = read_study(settings, finished, resamples=20)
    stored, run = read_stage(finished, 0, "reference"), read_stage(finished, 0, "DPO")
    gold = np.array(stored["gold"])
    row = result.frame.query("method == 'DPO' and seed == 0 and step == 4").iloc[0]
    expected = (run["snapshots"][-1]["reward/gold"] - gold.mean()) / gold.std()
    assert row["reward/gold"] == pytest.approx(expected)
    assert row["raw/reward/gold"] == run["snapshots"][-1]["reward/gold"]
    table = result.finals.set_index("method")
    finals = result.frame.query("step == 4").pivot(index="seed", columns="method", values="reward/gold")
    assert table.loc["DPO", "final"] == pytest.approx(finals["DPO"].mean())
    difference = finals["RPO eta=0.5"] - finals["DPO"]
    half = 12.7062 * difference.std(ddof=1) / np.sqrt(2)  # Student's t, one degree of freedom
    assert table.loc["RPO eta=0.5", "over_dpo"] == pytest.approx(difference.mean())
    assert table.loc["RPO eta=0.5", "over_dpo_low"] == pytest.approx(difference.mean() - half, rel=1e-4)
    page = write_gold_report(result, finished).read_text()
    assert page.count("<img") == 3 and "RPO eta=0.5" in page
    record = json.loads((finished / "report.json").read_text())
    assert set(record["fits"]) == {"DPO", "RPO eta=0.5"} and "DPO ends at" in record["verdict"]
    assert (finished / "snapshots.csv").exists()


def test_further_proxies_are_other_seeds_and_choose_together(folder: Path, finished: Path) -> None:
    """The first proxy is the one a study with one has; best-of-n under the three is that of their stored scores."""
    more = {"etas": (0.0,), "best_of": 8, "proxies": 3, "variance_penalty": 0.25}
    study = GoldStudy(model=str(folder / "model"), prompts=str(folder / "prompts.txt"), **{**SMALL, **more})
    home = run_study(study, folder / "three", progress=False)
    names = ("proxy", "proxy-1", "proxy-2")
    weights = [(home / "seed-0" / name / "model" / "model.safetensors").read_bytes() for name in names]
    assert weights[0] == (finished / "seed-0" / "proxy" / "model" / "model.safetensors").read_bytes()
    assert len(set(weights)) == 3
    stored = read_stage(home, 0, "reference")
    assert [row["n"] for row in stored["ensembles"]["worst"]] == [1, 2, 4, 8]
    firsts = {how: rows[0]["reward/gold"] for how, rows in stored["ensembles"].items()}
    assert firsts == pytest.approx(dict.fromkeys(("mean", "worst", "variance"), stored["best_of_n"][0]["reward/gold"]))
    last = {how: rows[-1] for how, rows in stored["ensembles"].items()}
    assert last["worst"]["reward/proxy"] < last["variance"]["reward/proxy"] < last["mean"]["reward/proxy"]
    result = read_study(study, home, resamples=20)
    ends = best_of_n_ends(result.best_of_n).set_index("method")
    worst = [read_stage(home, seed, "reference")["ensembles"]["worst"][-1]["reward/gold"] for seed in study.seeds]
    golds = [np.array(read_stage(home, seed, "reference")["gold"]) for seed in study.seeds]
    scaled = [(value - gold.mean()) / gold.std() for value, gold in zip(worst, golds, strict=True)]
    assert ends.loc["best-of-n, worst of 3 proxies", "gold"] == pytest.approx(np.mean(scaled))
    assert np.isnan(ends.loc["best-of-n", "over_one_proxy"])
    assert "worst of 3 proxies" in write_gold_report(result, home).read_text()


def test_a_missing_stage_is_an_error(settings: GoldStudy, finished: Path) -> None:
    with pytest.raises(OSError, match="finished stage"):
        read_study(GoldStudy(**{**settings.to_dict(), "seeds": (0, 7)}), finished)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    options = ["--model", "./model", "--output", "told", "--prompts", "prompts.txt", "--gold", '{"length": 1}']
    small = ["--train_prompts", "4", "--eval_prompts", "3", "--max_new_tokens", "3", "--epochs", "1", "--best_of", "2"]
    more = ["--etas", "[0, 1]", "--seeds", "[3]", "--checkpoints", "1", "--proxy_epochs", "1"]
    assert main(["experiment", "sentiment", *options, *small, *more]) == 0
    out = capsys.readouterr().out
    assert "DPO ends at" in out and "Written to told/report.html" in out
    assert "train_prompts: 4" in (folder / "told" / "config.yaml").read_text()
    assert main(["experiment", "sentiment", *options, "--noise", "3"]) == 2
    assert "noise" in capsys.readouterr().err


def test_few_seeds_are_shown_one_by_one_from_the_start_of_training() -> None:
    """Three seeds: a thin line each from (0, 0), no band; win rate from one half, KL from zero; more seeds: a band."""
    for seeds in (3, 8):
        rows = [
            {"method": method, "seed": seed, "step": step, "kl/reference": 1.0 * step, "reward/gold": 0.1 * seed + step,
             "reward/proxy": float("nan"), "win_rate/gold": 0.6, "text/repetition": 0.1}
            for method in ("DPO", "RPO") for seed in range(seeds) for step in (1, 10)
        ]  # fmt: skip
        anchor = {"method": "reference", "step": 0, "kl/reference": 0.0, "reward/gold": 5.0}
        frame = pandas.DataFrame([*rows, *({**anchor, "seed": seed} for seed in range(seeds))])
        axis = report.draw_gold(frame, unit="points").axes[0]
        thin = [line for line in axis.lines if line.get_linewidth() == 0.8 and len(line.get_xdata()) == 3]
        assert len(thin) == (6 if seeds == 3 else 0) and bool(axis.collections) == (seeds == 8)
        assert all(line.get_xydata()[0].tolist() == [0.0, 0.0] for line in thin)
        assert axis.get_title(loc="left") == "DPO: gold does not fall; RPO: gold does not fall"
        panels = {
            panel.get_title(loc="left"): panel for panel in report.draw_steps(frame, unit="points").axes if panel.lines
        }
        assert set(panels) == {"gold over pi_ref's, points", *(report.PANELS[n] for n in list(report.PANELS)[1:4])}
        starts = {name: panel.lines[0].get_xydata()[0].tolist() for name, panel in panels.items()}
        assert starts["win rate against pi_ref, by gold"] == [0.0, 0.5] and starts["KL to pi_ref, nats"] == [0.0, 0.0]
        assert starts["share of repeated bigrams"][0] == 1.0  # nothing is known of it at step 0
