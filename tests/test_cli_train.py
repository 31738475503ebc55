"""The commands for language models, as their user meets them: a tiny model in a folder, pairs in a file."""

import contextlib
import io
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported
sys.path.insert(0, str(Path(__file__).parent / "llm"))

from models_for_tests import tiny_model, tiny_tokenizer

from rpo.cli import main

ROOT = Path(__file__).parents[1]
QUIET = ["--training.disable_tqdm", "true", "--training.report_to", "none", "--training.dataloader_pin_memory", "false"]
SMALL = [
    "--training.max_steps", "3", "--training.per_device_train_batch_size", "4", "--training.logging_steps", "1",
    "--training.learning_rate", "1e-3", "--training.save_strategy", "no",
]  # fmt: skip


def rpo(*arguments: object) -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(item) for item in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess([], code, out.getvalue(), err.getvalue())


def refusals(*arguments: object) -> list[str]:
    """Exit code 2, nothing on stdout; return the lines on stderr."""
    result = rpo(*arguments)
    assert (result.returncode, result.stdout) == (2, ""), result
    return result.stderr.splitlines()


def pair(k: int) -> dict[str, Any]:
    words = {"prompt": ("user", f"w{k} w{k + 1}"), "chosen": ("assistant", f"w{k + 2} w{k + 3}")}
    words["rejected"] = ("assistant", f"w{k + 4} w{k + 1} w{k}")
    return {column: [{"role": role, "content": text}] for column, (role, text) in words.items()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Path:
    """Return the current folder, with ./model and pairs.jsonl."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair(k)) + "\n" for k in range(12)))
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def train(*arguments: object) -> subprocess.CompletedProcess[str]:
    result = rpo("train", "--model", "./model", "--dataset", "pairs.jsonl", *SMALL, *QUIET, *arguments)
    assert result.returncode == 0, result.stderr
    return result


def test_train_saves_a_model_that_loads_and_a_configuration_that_repeats_the_run(here: Path) -> None:
    from transformers import AutoModelForCausalLM

    result = train("--training.output_dir", "a", "--objective.eta", "0.02", "--eval_dataset", "pairs.jsonl")
    assert "Trained 3 of 3 updates" in result.stdout
    assert re.search(r"^ +eval 3 ", result.stdout, flags=re.MULTILINE)
    config = yaml.safe_load((here / "a" / "config.yaml").read_text())
    assert config["objective"] == {
        "name": "RPO", "beta": 0.1, "eta": 0.02, "sft_reduction": "sequence_sum", "base": "chosen",
    }  # fmt: skip
    assert config["training"]["learning_rate"] == 1e-3
    record = json.loads((here / "a" / "run.json").read_text())
    assert record["objective"]["eta"] == 0.02
    assert "| eta | 0.02 |" in (here / "a" / "README.md").read_text()
    trained = AutoModelForCausalLM.from_pretrained(here / "a").state_dict()
    given = AutoModelForCausalLM.from_pretrained(here / "model").state_dict()
    assert any((trained[name] != given[name]).any() for name in given)

    assert rpo("train", "--config", "a/config.yaml", "--training.output_dir", "b").returncode == 0
    changed = ["--training.output_dir", "c", "--objective.eta", "0"]
    assert "DPO: Trained 3" in rpo("train", "--config", "a/config.yaml", *changed).stdout
    weights = [(here / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_a_folder_with_what_another_command_wrote_is_refused(here: Path) -> None:
    (here / "solved").mkdir()
    (here / "solved" / "solution.json").write_text("{}")
    (line,) = refusals("train", "--model", "./model", "--dataset", "pairs.jsonl", "--training.output_dir", "solved")
    assert "expected a folder without an earlier run, got solved/solution.json" in line


def test_an_earlier_run_is_kept_or_continued(here: Path) -> None:
    options = ["--training.save_strategy", "steps", "--training.save_steps", "2", "--training.output_dir", "a"]
    train(*options)
    before = (here / "a" / "model.safetensors").read_bytes()
    (line,) = refusals("train", "--model", "./model", "--dataset", "pairs.jsonl", "--training.output_dir", "a")
    assert "expected a folder without an earlier run" in line and "--resume true" in line
    assert (here / "a" / "model.safetensors").read_bytes() == before
    for name in ("model.safetensors", "run.json"):
        (here / "a" / name).unlink()
    train(*options, "--resume", "a/checkpoint-2")
    assert (here / "a" / "model.safetensors").read_bytes() == before
    (line,) = refusals("train", "--config", "a/config.yaml", "--resume", "a/checkpoint-9")
    assert "resume: expected true, false, auto or a checkpoint's folder" in line


# peft reads a property that transformers renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_trained_and_saved(here: Path) -> None:
    pytest.importorskip("peft")
    train("--training.output_dir", "a", "--lora.r", "2", "--lora.target_modules", "[q_proj]")
    saved = json.loads((here / "a" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["lora_dropout"], saved["target_modules"]) == (2, 32, 0.0, ["q_proj"])
    assert not (here / "a" / "model.safetensors").exists()


def test_data_are_mixed_binarised_and_counted(here: Path) -> None:
    """Scores 1 and 0 give a pair, equal scores a tie, one completion none: of 3 rows 1 pair."""
    answers = [[("w1", 1), ("w2", 0)], [("w1", 1), ("w2", 1)], [("w1", 1)]]
    rows = [{"prompt": "w5 ", "completions": [{"response": a, "score": s} for a, s in row]} for row in answers]
    (here / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "mix.yaml").write_text(
        "dataset:\n- {source: pairs.jsonl, weight: 3}\n- {source: scored.jsonl, binarize: best_vs_worst}\n"
    )
    result = rpo("train", "--model", "./model", "--config", "mix.yaml", *SMALL, *QUIET, "--training.output_dir", "a")
    assert result.returncode == 0, result.stderr
    assert "scored.jsonl: 3 scored rows gave 1 pairs; dropped 1 ties and 1 with fewer than two scores" in result.stdout
    report = json.loads((here / "a" / "run.json").read_text())["config"]["data"]["train"]
    assert report["formats"].keys() == {"chat", "text"}
    assert report["formats"]["chat"] >= 12


def test_two_runs_in_one_folder_are_one_run_and_one_refusal(here: Path) -> None:
    """The second is refused while the first trains, in one line that names it; the first ends as if alone."""
    options = ["train", "--model", "./model", "--dataset", "pairs.jsonl", *SMALL, *QUIET, "--training.output_dir", "a"]
    slow = [*options, "--training.max_steps", "150"]
    command = [sys.executable, "-m", "rpo.cli", *slow]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        deadline = time.monotonic() + 120
        while not (here / "a" / "config.yaml").exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        second = rpo(*options)
        output = first.communicate(timeout=300)
    assert second.returncode == 2 and "is in use by another run" in second.stderr, second
    assert f"process {first.pid} on" in second.stderr.splitlines()[-1]
    assert first.returncode == 0 and "Trained 150 of 150" in output[0], output
    assert json.loads((here / "a" / "run.json").read_text())["config"]["training"]["max_steps"] == 150
    assert not list((here / "a").glob("_rpo*")) and not list((here / "a").glob(".stage*"))


def test_a_token_of_the_hub_is_used_and_never_written(here: Path) -> None:
    saving = ["--training.save_strategy", "steps", "--training.save_steps", "2", "--training.output_dir", "a"]
    train(*saving, "--training.hub_token", "hf_secret")
    written = [path for path in (here / "a").rglob("*") if path.is_file()]
    assert len(written) > 5 and not any(b"hf_secret" in path.read_bytes() for path in written)
    text = (here / "a" / "config.yaml").read_text()
    assert text.startswith("# Not kept here, for it is secret: training.hub_token.")
    for name in ("model.safetensors", "run.json"):
        (here / "a" / name).unlink()
    result = rpo("train", "--config", "a/config.yaml", "--resume", "a/checkpoint-2")
    assert result.returncode == 0, result.stderr


def test_ctrl_c_says_which_checkpoint_is_kept_and_the_command_it_prints_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rpo.llm.training.base_trainer import SafeTrainer

    saving = ["--training.save_strategy", "steps", "--training.save_steps", "1"]
    train("--training.output_dir", "whole", *saving)
    command = ["train", "--model", "./model", "--dataset", "pairs.jsonl", *SMALL, *QUIET, *saving]
    act = SafeTrainer._maybe_log_save_evaluate
    for stop, words in (
        ("data", "Training had not begun; the same command starts again."),
        (1, "No checkpoint was saved yet"),
        (3, "The last checkpoint is a/checkpoint-2; continue with: rpo train --config a/config.yaml --resume true"),
    ):

        def interrupted(self: Any, *arguments: Any, stop: Any = stop, **keywords: Any) -> None:
            if self.state.global_step == stop:
                raise KeyboardInterrupt
            act(self, *arguments, **keywords)

        def before(self: Any, *, resuming: bool) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(SafeTrainer, "_maybe_log_save_evaluate", interrupted)
            if stop == "data":
                patched.setattr("rpo.llm.training.trainer.PreferenceTrainer.before_training", before)
            result = rpo(*command, "--training.output_dir", "a")
        assert result.returncode == 130 and "Traceback" not in result.stderr
        assert result.stderr.splitlines()[-1] == f"rpo train: interrupted. {words}" or words in result.stderr
    again = result.stderr.strip().rpartition("continue with: rpo ")[2]
    assert rpo(*shlex.split(again)).returncode == 0
    weights = [(here / name / "model.safetensors").read_bytes() for name in ("whole", "a")]
    assert weights[0] == weights[1]


def test_every_option_that_does_not_parse_is_named_at_once(here: Path) -> None:
    (here / "bad.yaml").write_text(
        "datset: x\nobjective: {beta: much}\nlora: {rank: 3}\ntraining: {max_steps: few, learning_rate: 1e-3}\n"
    )
    lines = refusals("train", "--config", "bad.yaml", "--objective.et", "1", "--training.bf16", "perhaps", "--typo=1")
    found = [
        "datset",
        "objective.beta",
        "rank",
        "training.max_steps",
        "training.bf16",
        "--typo",
        "required: dataset, model",
    ]
    assert len(lines) == len(found) + 1, lines
    for word in found:
        assert sum(word in line for line in lines) == 1, (word, lines)
    assert {path.name for path in here.iterdir()} == {"model", "pairs.jsonl", "bad.yaml"}


def test_every_value_that_cannot_be_used_is_named_at_once(here: Path) -> None:
    before = sorted(here.rglob("*"))
    lines = refusals(
        "train", "--model", "./nowhere", "--dataset", "missing.jsonl", "--objective.beta", "-1",
        "--training.eval_strategy", "sometimes", "--training.beta", "0.2", "--quantization", "4bit",
        "--training.output_dir", "out",
    )  # fmt: skip
    words = [
        "model: expected",
        "missing.jsonl",
        "beta: expected a finite number > 0",
        "sometimes",
        "objective.beta",
        "lora",
    ]
    assert len(lines) == len(words), lines
    for word in words:
        assert any(word in line for line in lines), (word, lines)
    assert sorted(here.rglob("*")) == before
    (line,) = refusals("train", "--model", "./model", "--dataset", "pairs.jsonl")
    assert "training.output_dir: expected a folder, got None" in line


def test_a_refused_dataset_leaves_nothing(here: Path) -> None:
    (here / "wrong.jsonl").write_text('{"question": "w1", "chosen": "w2"}\n')
    before = sorted(here.rglob("*"))
    options = ["--training.output_dir", "out", *QUIET]
    (line,) = [
        text
        for text in rpo("train", "--model", "./model", "--dataset", "wrong.jsonl", *options).stderr.splitlines()
        if "error" in text
    ]
    assert "row 0" in line
    assert sorted(here.rglob("*")) == before


def test_data_check_prints_and_writes_its_report(here: Path) -> None:
    result = rpo("data", "check", "pairs.jsonl", "--model", "./model", "--max_length", "8", "--output", "out")
    assert result.returncode == 0, result.stderr
    assert "12 rows, 12 pairs" in result.stdout
    assert (here / "out" / "report.txt").read_text().splitlines()[0] == "12 rows, 12 pairs"
    assert json.loads((here / "out" / "report.json").read_text())["truncated"] == 12  # 5 + 4 tokens into 8
    assert "max_length: 8" in (here / "out" / "config.yaml").read_text()
    (line,) = refusals("data", "check", "pairs.jsonl", "--model", "./model", "--output", "out")
    assert "overwrite" in line
    rows = [pair(0) | {"question": "w9"}, pair(1) | {"images": [[0]]}, pair(2) | {"chosen": float("nan")}]
    (here / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = rpo("data", "check", "odd.jsonl", "--model", "./model").stdout
    assert "3 rows, 1 pairs\n  refused: 1 (images, audio or video)\n  refused: 1 (an empty cell)" in shown
    assert "columns that nothing reads: question (1)" in shown and "nothing reads 'question'" in shown
    assert "row 1 (odd.jsonl, line 2), images" in shown
    assert "source: expected an existing file" in refusals("data", "check", "none.jsonl", "--model", "./model")[-1]
    pairs = map(pair, range(3))
    alone = [{"prompt": p["prompt"], "completion": p["chosen"], "label": k < 1} for k, p in enumerate(pairs)]
    (here / "alone.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alone))
    shown = rpo("data", "check", "alone.jsonl", "--model", "./model").stdout
    assert "3 rows, 3 responses alone, 1 of them desirable" in shown and "length: chosen" not in shown
    lists = [
        {"prompt": p["prompt"], "responses": [" w7", " w8", " w9"], "scores": [1, 2, "N/A"]} for p in map(pair, (0, 1))
    ]
    (here / "lists.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*lists, lists[0] | {"scores": [1, 1, 2]}])
    )
    shown = rpo("data", "check", "lists.jsonl", "--model", "./model", "--scores", "true").stdout
    assert "3 rows, 3 lists of 7 responses (2 of 2, 1 of 3)" in shown
    assert (
        "tied, in the order of the row        1  33.3%" in shown and "left out without a score             2" in shown
    )


def test_generate_prints_or_writes_samples(here: Path) -> None:
    options = ["--model", "./model", "--num_samples", "2", "--max_new_tokens", "4"]
    printed = rpo("generate", *options, "--prompts", "w1 w2").stdout.splitlines()
    assert printed[0] == "> w1 w2" and len(printed) == 3
    said = rpo("generate", *options, "--prompts", "w1 \x1b[2J").stdout
    assert "\x1b" not in said and "> w1 \\x1b[2J" in said
    (here / "prompts.jsonl").write_text(json.dumps({"prompt": "w1 w2"}) + "\n" + json.dumps(pair(3)) + "\n")
    assert rpo("generate", *options, "--prompts", "prompts.jsonl", "--output", "samples.jsonl").returncode == 0
    rows = [json.loads(line) for line in (here / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"][0]["content"] for row in rows] == ["w1 w2", "w3 w4"]
    assert {len(row["responses"]) for row in rows} == {2}
    assert set(rows[0]["finish_reasons"]) <= {"stop", "length"}
    assert "num_samples: 2" in (here / "samples.config.yaml").read_text()
    (line,) = refusals("generate", *options, "--prompts", "w1", "--output", "samples.jsonl")
    assert "output: expected a new file" in line
    os.mkfifo(here / "pipe.jsonl")
    (line,) = refusals("generate", *options, "--prompts", "w1", "--output", "pipe.jsonl", "--overwrite", "true")
    assert "a device or another special file" in line and stat.S_ISFIFO((here / "pipe.jsonl").stat().st_mode)
    # JSON can say half a surrogate pair, a tokenizer cannot read it.
    (here / "half.jsonl").write_text(json.dumps({"prompt": "w1 \ud83d"}) + "\n")
    (line,) = refusals("generate", *options, "--prompts", "half.jsonl")
    assert "prompts, line 1: expected a row" in line and "surrogate" in line


def test_prompts_are_cut_at_line_feeds_alone(here: Path) -> None:
    """What `rpo generate` writes, it and the judge read: one row, whatever separators the text holds."""
    text = "w1\u2028w2\x85w3"
    (here / "p.txt").write_text(f"{text}\r\n\nw4\n", encoding="utf-8")
    (here / "p.jsonl").write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    from rpo.commands.generate import _read_prompts, _write_lines
    from rpo.eval.gold.prompts import read_prompts
    from rpo.eval.matchups import read_responses

    assert _read_prompts("p.txt") == read_prompts("p.txt") == [text, "w4"]
    assert _read_prompts("p.jsonl") == [text]
    _write_lines(here / "r.jsonl", [{"model": "m", "prompt": text, "responses": [text], "finish_reasons": ["stop"]}])
    (answers,) = read_responses([here / "r.jsonl"])
    assert list(answers.texts.values()) == [[text]]


def test_prompts_that_cannot_be_read_are_refused_before_the_model_is_loaded(here: Path) -> None:
    (here / "bad.jsonl").write_text('{"prompt": "w1"}\n{"question": "w2"}\n')
    (here / "empty.txt").write_text("\n")
    (here / "latin.txt").write_bytes(b"\xff\n")
    (here / "deep.jsonl").write_text("[" * 100_000)
    for name, words in {
        "bad.jsonl": "prompts, line 2",
        "latin.txt": "readable UTF-8 file",
        "deep.jsonl": "prompts, line 1",
        "none.txt": "readable UTF-8 file",
        "empty.txt": "at least one",
    }.items():
        (line,) = refusals("generate", "--model", "./nowhere", "--prompts", name)
        assert words in line


def test_the_log_is_short_unless_more_is_asked_for(here: Path) -> None:
    """Three updates: a row each, and all numbers of the last log with `--log none`, which prints no rows."""
    short = train("--training.output_dir", "a").stdout
    assert len(short.splitlines()) < 15 and len(re.findall(r"^ +\d+ ", short, flags=re.MULTILINE)) == 3
    none = train("--training.output_dir", "b", "--log", "none").stdout
    assert not re.findall(r"^ +\d+ ", none, flags=re.MULTILINE) and "logps/chosen" in none
    full = train("--training.output_dir", "c", "--log", "full").stdout
    assert full.count("'logps/chosen_per_token'") == 3
    (line,) = refusals(
        "train",
        "--model",
        "./model",
        "--dataset",
        "pairs.jsonl",
        "--training.output_dir",
        "d",
        "--training.log",
        "full",
    )
    assert "Set log instead." in line


def test_an_adapter_is_merged_into_a_plain_model(here: Path) -> None:
    """Log-probabilities of the merged model are the adapter's up to float32, and not the base's."""
    import torch
    from transformers import AutoModelForCausalLM

    from rpo.llm.models import load_model

    train("--training.output_dir", "a", "--lora", "{r: 2}", "--training.learning_rate", "0.1")
    result = rpo("merge", "a", "--output", "merged")
    assert result.returncode == 0, result.stderr
    merged, info = AutoModelForCausalLM.from_pretrained(here / "merged", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not hasattr(merged, "peft_config")
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        logps = [m.eval()(input_ids=ids).logits.log_softmax(-1) for m in (merged, load_model("a"), load_model("model"))]
    assert (logps[0] - logps[1]).abs().max() < 1e-4 < 1e-3 < (logps[0] - logps[2]).abs().max()
    assert "at most" in result.stdout
    assert rpo("generate", "--model", "merged", "--prompts", "w1 w2", "--max_new_tokens", "2").returncode == 0
    (line,) = refusals("merge", "model", "--output", "other")
    assert "adapter: expected an adapter of peft" in line and not (here / "other").exists()
    assert "output" in refusals("merge", "a", "--output", "merged")[0]
    result = rpo("merge", "merged", "model", "--output", "soup", "--weights", "[1.5, -0.5]")
    assert result.returncode == 0 and "rounding moved" in result.stdout, result.stderr
    sums = [load_model(name).state_dict()["lm_head.weight"] for name in ("soup", "merged", "model")]
    assert (sums[0] - 1.5 * sums[1] + 0.5 * sums[2]).abs().max() < 1e-6
    (line,) = refusals("merge", "a", "--output", "other", "--weights", "[1.0]")
    assert "weights: expected null with one model" in line


def test_a_trained_model_is_diagnosed_against_what_it_began_with(here: Path) -> None:
    """run.json names the start, beta and eta; the numbers are those of `diagnose` on the same pairs and rewards."""
    from rpo.llm import diagnose, load_model, load_tokenizer, prepare_pairs
    from rpo.llm.reference import FrozenModel

    train("--training.output_dir", "a", "--objective.beta", "0.3", "--objective.eta", "0.02")
    train("--training.output_dir", "judge", "--objective", "BradleyTerry", "--training.max_length", "32")
    (here / "others.jsonl").write_text("".join(json.dumps(pair(k)) + "\n" for k in range(20, 25)))
    options = ["--gradient_pairs", "3", "--kl_prompts", "2", "--max_new_tokens", "4"]
    result = rpo(
        "diagnose", "a", "--data", "pairs.jsonl", "--shifted_data.source", "others.jsonl", "--reward_model", "judge",
        *options, "--output", "report",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "a on 12 pairs, beta 0.3; reference: ./model, with which training began" in result.stdout
    assert "eta 0.02 lifts" in result.stdout or "both fall in 0" in result.stdout
    found = json.loads((here / "report" / "diagnosis.json").read_text())
    tokenizer = load_tokenizer("a")
    pairs = prepare_pairs([pair(k) for k in range(12)], tokenizer)
    reference = FrozenModel(load_model("model"))
    same = diagnose(
        load_model("a", is_trainable=True), pairs, reference=reference, tokenizer=tokenizer, beta=0.3, eta=0.02,
        gradient_pairs=3, kl_prompts=2, max_new_tokens=4,
    )  # fmt: skip
    assert {name: found["numbers"][name] for name in same.numbers} == pytest.approx(same.numbers, abs=1e-6)
    assert found["numbers"]["rewards/margins"] != 0
    expected = {
        f"{prefix}explicit/{name}" for prefix in ("", "shifted/") for name in ("accuracies", "lead", "agreement")
    }
    assert expected <= found["numbers"].keys()
    assert (here / "report" / "config.yaml").is_file() and "data:image/png" in (
        here / "report/diagnosis.html"
    ).read_text()
    plain = rpo("diagnose", "model", "--data", "pairs.jsonl", "--max_pairs", "5", *options).stdout
    assert "data: 5 pairs of 12 rows, 0 of which could not be used" in plain
    assert "the model itself, as not trained" in plain and "displacement" not in plain


def test_a_reference_that_is_kept_nowhere_must_be_named(here: Path) -> None:
    train("--training.output_dir", "a", "--ref_model", "model")
    few = ["--data", "pairs.jsonl", "--gradient_pairs", "0", "--kl_prompts", "0"]
    (line,) = refusals("diagnose", "a", *few)
    assert "ref_model: expected the reference, which run.json says was a model or adapter of its own" in line
    assert "reference: model\n" in rpo("diagnose", "a", *few, "--ref_model", "model").stdout
    (line,) = refusals("diagnose", "a", "--data", "{source: pairs.jsonl, streaming: true}", "--ref_model", "model")
    assert "data.streaming" in line


# peft reads a property that transformers renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_diagnosed_against_its_base(here: Path) -> None:
    """Its own gradients, and the displacement that the two models have as two models."""
    pytest.importorskip("peft")
    train("--training.output_dir", "a", "--lora", "{r: 2}", "--training.learning_rate", "0.1")
    few = ["--data", "pairs.jsonl", "--gradient_pairs", "2", "--kl_prompts", "0"]
    result = rpo("diagnose", "a", *few, "--output", "one")
    assert "reference: the base under the adapter" in result.stdout, result.stderr
    assert rpo("diagnose", "a", *few, "--ref_model", "model", "--output", "two").returncode == 0
    one, two = (json.loads((here / name / "diagnosis.json").read_text())["numbers"] for name in ("one", "two"))
    assert one == pytest.approx(two, abs=1e-5)
    assert abs(one["displacement/chosen_change"]) > 1e-3 and one["gradients/pairs"] == 2


def test_a_chat_answers_each_line_with_what_was_said_before(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second answer is that of `generate` to the whole conversation; after /new to the line alone."""
    from rpo.llm.models import load_model, load_tokenizer
    from rpo.llm.sampling import generate

    monkeypatch.setattr(sys, "stdin", io.StringIO("w1 w2\nw3\n/new\nw3\n"))
    result = rpo("chat", "model", "--max_new_tokens", "4", "--temperature", "0")
    assert result.returncode == 0, result.stderr
    answers = result.stdout.splitlines()
    assert len(answers) == 3
    first = answers[0].removesuffix(" [...]")
    asked = [
        {"role": "user", "content": "w1 w2"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "w3"},
    ]
    model, tokenizer = load_model("model"), load_tokenizer("model")
    for answer, conversation in zip(answers, (asked[:1], asked, asked[2:]), strict=True):
        ((sample,),) = generate(
            model, tokenizer, [conversation], num_samples=1, max_new_tokens=4, temperature=0.0, seed=0
        )
        assert answer.removesuffix(" [...]") == sample.text


def test_plot_overlays_runs(here: Path) -> None:
    for name, eta in {"rpo": 0.02, "dpo": 0.0}.items():
        train("--training.output_dir", f"runs/{name}", "--objective.eta", eta)
    result = rpo("plot", "runs/rpo", "runs/dpo", "--output", "figure.png")
    assert result.returncode == 0, result.stderr
    assert (here / "figure.png").read_bytes()[:4] == b"\x89PNG"
    (line,) = refusals("plot", "runs", "--output", "other.png")
    assert "runs: expected a run's folder" in line
    assert "required: runs" in refusals("plot")[0]


def test_convert_gguf_refuses_what_is_none(here: Path) -> None:
    (line,) = refusals("convert-gguf", "pairs.jsonl", "--output", "out")
    assert "rpo convert-gguf: error" in line
    assert not (here / "out").exists()


def test_commands_of_other_worlds_load_no_torch() -> None:
    """Listing `train` needs its summary alone; the control is its own help, which needs transformers."""
    code = (
        "import sys; from rpo.cli import main\ntry: main({!r})\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    answers = []
    for arguments in (["--help"], ["solve", "--help"], ["train", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments)], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert "Train a language model" in done.stdout or arguments[0] == "solve"
        answers.append(done.stdout.splitlines()[-1])
    assert answers == ["False", "False", "True"]


def test_any_method_is_trained_from_the_command_line(here: Path) -> None:
    """SimPO has no reference: no pass over the data, no cache."""
    result = train("--training.output_dir", "a", "--objective", "SimPO", "--objective.gamma", "1")
    assert "SimPO: Trained 3 of 3 updates" in result.stdout
    expected = {"name": "SimPO", "beta": 2.0, "gamma": 1.0}
    assert yaml.safe_load((here / "a" / "config.yaml").read_text())["objective"] == expected
    record = json.loads((here / "a" / "run.json").read_text())
    assert record["objective"] == expected
    assert not list((here / "a").glob("reference_logps*"))
    again = rpo("train", "--config", "a/config.yaml", "--training.output_dir", "b")
    assert again.returncode == 0, again.stderr
    weights = [(here / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_the_stage_before_and_a_reward_model_are_trained_by_the_same_command(here: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    train("--training.output_dir", "sft", "--objective", "SFT", "--objective.reduction", "sequence_mean")
    AutoModelForCausalLM.from_pretrained(here / "sft")
    train("--training.output_dir", "reward", "--objective", "BradleyTerry", "--training.max_length", "32")
    assert AutoModelForSequenceClassification.from_pretrained(here / "reward").config.num_labels == 1
    for name, objective in (("sft", "SFT"), ("reward", "BradleyTerry")):
        assert json.loads((here / name / "run.json").read_text())["objective"]["name"] == objective
        assert yaml.safe_load((here / name / "config.yaml").read_text())["objective"]["name"] == objective
    lines = refusals(
        "train", "--model", "./model", "--dataset", "pairs.jsonl", "--objective", "SFT", "--ref_model", "./model",
        "--training.output_dir", "other",
    )  # fmt: skip
    assert "ref_model: expected None with SFT, which has no reference" in lines[-1]
    lines = refusals(
        "train", "--model", "./model", "--dataset", "pairs.jsonl", "--objective", "BradleyTerry",
        "--training.center_rewards_coefficient", "0.1", "--training.output_dir", "other",
    )  # fmt: skip
    assert "Set objective.center_rewards_coefficient instead." in lines[-1]
