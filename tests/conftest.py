"""No test reaches for the network (read when huggingface_hub is first imported, by whichever test does), and what the
fuzz tests counted is shown at the end."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the outcomes of the fuzz tests by kind; reports carry them here from every worker."""
    kinds: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "fuzz_outcomes":
                kinds.update(value)
    if kinds:
        terminalreporter.section("fuzz")
        counted = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
        terminalreporter.write_line(f"{kinds.total()} inputs, no other outcome: {counted}")


@pytest.fixture
def smollm2() -> tuple[Any, Any]:
    """Return SmolLM2-135M-Instruct in float32 and its tokenizer, from the folder in RPO_SMOLLM2."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = os.environ.get("RPO_SMOLLM2", "")
    if not (folder and (Path(folder) / "model.safetensors").is_file()):
        pytest.skip("RPO_SMOLLM2 is not a folder with SmolLM2-135M-Instruct as model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model, AutoTokenizer.from_pretrained(folder)
