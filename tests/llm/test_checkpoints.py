"""Checkpoints are whole or absent; what is damaged, or another run's, is refused by name; SIGKILL costs nothing."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import models_for_tests
import pytest
import torch
from safetensors.torch import load_file
from training import OBJECTIVE, tiny_pairs, trainer, weights_of

from rpo.core.errors import NonFiniteLoss, OutputError
from rpo.core.objectives import RPO
from rpo.llm.training.checkpoints import CheckpointError, complete_checkpoints, read_manifest

HERE = Path(__file__).parent
SAVING = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch", "learning_rate": 1e-2}


def start(folder: Path, *options: str, **keywords) -> subprocess.Popen:
    """Start tests/llm/training.py as a program."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(HERE / "training.py"), str(folder), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **keywords)


def finished(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, output
    return output


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def test_killed_and_resumed_is_the_same_bit_for_bit(tmp_path):
    """24 pairs in micro-batches of 2, accumulated twice: 6 updates an epoch, 40 in all; SIGKILL after 4 checkpoints.

    The control: the weights at the checkpoint it went on from are others.
    """
    options = ("per_device_train_batch_size=2", "gradient_accumulation_steps=2", "max_steps=40")
    whole = start(tmp_path / "whole", *options)
    killed = start(tmp_path / "killed", *options)
    deadline = time.monotonic() + 200
    while len(complete_checkpoints(tmp_path / "killed")) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = complete_checkpoints(tmp_path / "killed")
    assert len(kept) >= 4 and not (tmp_path / "killed" / "final").exists()
    middle = load_file(kept[-1] / "model.safetensors")
    finished(start(tmp_path / "killed", *options, "resume=auto"))
    finished(whole)
    expected, found = final(tmp_path / "whole"), final(tmp_path / "killed")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert any(not torch.equal(expected[name], middle[name]) for name in expected)


def test_resume_in_process_equals_uninterrupted(tmp_path):
    """Two of four updates, then a new trainer from the checkpoint: the same weights, the self-check of step 0."""
    whole = trainer(tmp_path / "whole", tiny_pairs(12), max_steps=4, **SAVING)
    whole.train()
    again = trainer(tmp_path / "whole", tiny_pairs(12), max_steps=4, **SAVING)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected, found = weights_of(whole.model), weights_of(again.model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert again.self_check_results == whole.self_check_results != {}


@pytest.mark.parametrize("damage", ["flip", "shorten", "remove", "no manifest", "bad manifest"])
def test_a_damaged_checkpoint_is_refused_by_file(tmp_path, damage):
    run = trainer(tmp_path, tiny_pairs(4), max_steps=2, **SAVING)
    run.train()
    folder = tmp_path / "checkpoint-2"
    read_manifest(folder)
    weights, manifest = folder / "model.safetensors", folder / "manifest.json"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[-100] ^= 1
        weights.write_bytes(content)
    elif damage == "shorten":
        weights.write_bytes(content[:-1])
    elif damage == "remove":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{")
    again = trainer(tmp_path, tiny_pairs(4), max_steps=2, **SAVING)
    pattern = "manifest.json" if "manifest" in damage else "model.safetensors (was altered|has|is missing)"
    with pytest.raises(CheckpointError, match=f"(?s){pattern}.*The last complete checkpoint is .*checkpoint-1"):
        again.train(resume_from_checkpoint=str(folder))


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    """A kill between files leaves a folder without manifest: "auto" goes on from the one before."""
    trainer(tmp_path, tiny_pairs(4), max_steps=2, **SAVING).train()
    (tmp_path / "checkpoint-2" / "manifest.json").unlink()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-1"]
    again = trainer(tmp_path, tiny_pairs(4), max_steps=2, **SAVING)
    again.train(resume_from_checkpoint="auto")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


def test_resume_without_any(tmp_path):
    with pytest.raises(CheckpointError, match='expected a complete checkpoint in .*got none.*"auto"'):
        trainer(tmp_path, tiny_pairs(4)).train(resume_from_checkpoint=True)
    run = trainer(tmp_path, tiny_pairs(4), max_steps=1)
    run.train(resume_from_checkpoint="auto")
    assert run.state.global_step == 1


@pytest.mark.parametrize("change", ["objective", "data", "reference", "seed"])
def test_another_run_is_not_continued(tmp_path, change):
    """Another eta, other pairs or another starting model: each is named, none is silently mixed in."""
    trainer(tmp_path, tiny_pairs(8), max_steps=1, **SAVING).train()
    again = trainer(
        tmp_path,
        tiny_pairs(8, seed=int(change == "data")),
        objective=RPO(beta=OBJECTIVE.beta, eta=0.5) if change == "objective" else OBJECTIVE,
        model=models_for_tests.tiny_model("llama", dtype=torch.float64, seed=int(change == "reference")),
        precompute_ref_log_probs=change != "reference",
        seed=4 if change == "seed" else 3,
        **SAVING,
    )
    with pytest.raises(CheckpointError, match=f"expected {change} "):
        again.train(resume_from_checkpoint=True)


def test_a_fresh_run_does_not_mix_with_an_earlier_one(tmp_path):
    trainer(tmp_path, tiny_pairs(4), max_steps=2, **SAVING).train()
    with pytest.raises(CheckpointError, match="without checkpoints of an earlier run, got .*checkpoint-2"):
        trainer(tmp_path, tiny_pairs(4), max_steps=2, **SAVING).train()


def test_a_finished_run_resumed_is_left_as_it_ended(tmp_path):
    first = trainer(tmp_path, tiny_pairs(4), max_steps=2, **SAVING)
    first.train()
    again = trainer(tmp_path, tiny_pairs(4), max_steps=2, **SAVING)
    again.train(resume_from_checkpoint="auto")
    assert again.state.global_step == 2 and len(complete_checkpoints(tmp_path)) == 2
    found = weights_of(again.model)
    assert all(torch.equal(value, found[name]) for name, value in weights_of(first.model).items())


def test_a_run_killed_before_its_last_removal_removes_when_resumed(tmp_path):
    """Three checkpoints where two are wanted: what a kill between the last checkpoint and the removal leaves."""
    trainer(tmp_path, tiny_pairs(8), save_strategy="steps", save_steps=1).train()
    assert len(complete_checkpoints(tmp_path)) == 3
    trainer(tmp_path, tiny_pairs(8), save_strategy="steps", save_steps=1, save_total_limit=2).train(True)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]


def test_weights_alone_are_not_resumed(tmp_path):
    trainer(tmp_path, tiny_pairs(4), max_steps=1, save_only_model=True, **SAVING).train()
    with pytest.raises(CheckpointError, match="saved with save_only_model=True"):
        trainer(tmp_path, tiny_pairs(4), max_steps=2, **SAVING).train(resume_from_checkpoint=True)


def test_what_a_killed_run_left_is_cleared(tmp_path):
    """A half-written checkpoint's files do not survive beside those of the checkpoint that takes its name."""
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "adapter_model.safetensors").write_bytes(b"left")
    trainer(tmp_path, tiny_pairs(4), max_steps=1, **SAVING).train()
    assert not (tmp_path / "checkpoint-1" / "adapter_model.safetensors").exists()


def test_rotation_keeps_the_newest(tmp_path):
    trainer(tmp_path, tiny_pairs(4), max_steps=5, save_total_limit=2, **SAVING).train()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-5"]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    """With files limited to 100 kB after the first checkpoint the second cannot be written, by the system itself."""
    run = trainer(tmp_path, tiny_pairs(4), max_steps=3, save_total_limit=1, **SAVING)
    save = run.save_model
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limited(*arguments, **keywords):
        if run.state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        save(*arguments, **keywords)

    run.save_model = limited
    try:
        with pytest.raises(
            OutputError, match="(?s)checkpoint-2 failed.*The last complete checkpoint is .*checkpoint-1"
        ):
            run.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1"]
    read_manifest(tmp_path / "checkpoint-1")
    again = trainer(tmp_path, tiny_pairs(4), max_steps=3, **SAVING)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3


def test_a_non_finite_loss_names_its_rows_and_keeps_the_last_good_checkpoint(tmp_path):
    """One token of row 5 alone has an infinite embedding: the update that meets it is not made."""
    pairs = tiny_pairs(8)
    model = models_for_tests.tiny_model("llama", dtype=torch.float64)
    only = next(
        token
        for token in pairs[5].chosen_ids[:-1]
        if all(token not in (*p.prompt_ids, *p.chosen_ids, *p.rejected_ids) for p in pairs if p.row != 5)
    )
    run = trainer(tmp_path, pairs, model=model, per_device_train_batch_size=1, max_steps=8, **SAVING)
    poison = run.compute_loss

    def compute_loss(*arguments, **keywords):
        if run.state.global_step == 1:
            with torch.no_grad():
                model.get_input_embeddings().weight[only] = float("inf")
        return poison(*arguments, **keywords)

    run.compute_loss = compute_loss
    with pytest.raises(NonFiniteLoss, match=r"in row\(s\) 5 of the data.*last good checkpoint is .*checkpoint-\d"):
        run.train()
    kept = complete_checkpoints(tmp_path)[-1]
    assert kept.name == f"checkpoint-{run.state.global_step}"
    # The poison is this test's own; what was saved before it took effect is finite where it was finite.
    assert torch.isfinite(load_file(kept / "model.safetensors")["lm_head.weight"]).all()


def test_a_non_finite_gradient_stops_before_the_update(tmp_path):
    run = trainer(tmp_path, tiny_pairs(4), max_steps=2)
    head = run.model.lm_head.weight
    head.register_hook(lambda gradient: gradient * float("nan"))
    before = weights_of(run.model)
    run.args.self_check = False
    run._checked = True
    with pytest.raises(NonFiniteLoss, match=r"expected finite a gradient|a gradient"):
        run.train()
    assert all(torch.equal(before[name], value) for name, value in weights_of(run.model).items())


def test_only_safetensors_and_nothing_unpickled(tmp_path):
    """The model is saved as safetensors; with torch.load limited to weights_only, resuming works all the same."""
    trainer(tmp_path, tiny_pairs(4), max_steps=1, **SAVING).train()
    names = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    assert "model.safetensors" in names and not any(name.endswith(".bin") and "model" in name for name in names)
    load = torch.load
    calls = []

    def guarded(*arguments, **keywords):
        calls.append(keywords.get("weights_only", True))
        return load(*arguments, **keywords)

    torch.load = guarded
    try:
        again = trainer(tmp_path, tiny_pairs(4), max_steps=2, **SAVING)
        again.train(resume_from_checkpoint=True)
    finally:
        torch.load = load
    assert calls and all(calls)
