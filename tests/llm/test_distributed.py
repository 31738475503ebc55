"""Two processes take the path of one at the same global batch: DDP and FSDP2 over gloo, on the CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent


def launch(folder: Path, processes: int, *options: str) -> dict[str, torch.Tensor]:
    """Run tests/llm/training.py under torchrun and return the weights it saved."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    command += [str(HERE / "training.py"), str(folder), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return load_file(folder / "final" / "model.safetensors")


def test_ddp_equals_one_process(tmp_path):
    """24 pairs, a global batch of 8: 8 x 1, and 2 processes x 2 x accumulation 2, in float64, to 1e-12 (asked: 1e-5).

    The control: a global batch of 4 ends elsewhere.
    """
    common = ("dtype=float64", "max_steps=5")
    one = launch(tmp_path / "one", 1, "per_device_train_batch_size=8", *common)
    two = launch(tmp_path / "two", 2, "per_device_train_batch_size=2", "gradient_accumulation_steps=2", *common)
    other = launch(tmp_path / "other", 1, "per_device_train_batch_size=4", *common)

    def apart(found):
        return max(float((one[name] - found[name]).abs().max()) for name in one)

    print(f"largest difference of a weight: {apart(two):.2e}")
    assert apart(two) < 1e-12
    assert apart(other) > 1e-4


def test_lists_of_several_sizes_take_one_path_too(tmp_path):
    """24 lists of 2 to 5 responses, prompts shared: 8 x 1, and 2 processes x 2 x accumulation 2, to 1e-6."""
    common = ("dtype=float64", "max_steps=4", "lists=yes", "path=shared")
    one = launch(tmp_path / "one", 1, "per_device_train_batch_size=8", *common)
    two = launch(tmp_path / "two", 2, "per_device_train_batch_size=2", "gradient_accumulation_steps=2", *common)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6


def test_data_that_two_processes_cannot_share_evenly(tmp_path):
    """22 pairs, a global batch of 4: accelerate repeats pairs to fill the last round, and they count once all the same.

    Six updates an epoch, the last of 2 pairs; 9 updates. Evaluation after the last, on 5 pairs. The two
    processes also share prompts and cut their batches by tokens: 1e-6 in place of 1e-12 (asked: 1e-5).
    """
    common = ("dtype=float64", "max_steps=9", "pairs=22", "evaluated=5")
    one = launch(tmp_path / "one", 1, "per_device_train_batch_size=4", *common)
    cut = ("per_device_train_batch_size=2", "path=shared", "max_tokens_per_batch=25")
    two = launch(tmp_path / "two", 2, *cut, *common)
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    print(f"largest difference of a weight: {apart:.2e}")
    assert apart < 1e-6
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    names = [name for name in metrics[0] if name.startswith(("eval_loss", "eval_logps", "eval_rewards"))]
    assert len(names) > 8
    assert all(metrics[0][name] == pytest.approx(metrics[1][name], rel=1e-5, abs=1e-6) for name in names)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_fsdp2_equals_one_process(tmp_path, where):
    """Two processes, or as many as there are GPUs, with sharded parameters end where one ends, in float64.

    accelerate shards on accelerators only; on the CPU the test lifts that restriction (training.py).
    """
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    processes = 2 if where == "cpu" else torch.cuda.device_count()
    common = ("dtype=float64", "max_steps=5")
    one = launch(tmp_path / "one", 1, "per_device_train_batch_size=8", *common)
    sharded = launch(
        tmp_path / "sharded", processes, f"per_device_train_batch_size={8 // processes}", f"sharded={where}", *common
    )
    apart = max(float((one[name] - sharded[name]).abs().max()) for name in one)
    print(f"largest difference of a weight: {apart:.2e}")
    # One process runs on the CPU, and transformers rounds in float32 here and there inside float64 models.
    assert apart < (1e-12 if where == "cpu" else 1e-5)
