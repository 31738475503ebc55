"""Fixtures of the language-model tests: tiny models, a tokenizer, one thread, a real model where there is one."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported

import models_for_tests
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny tensors: threads only wait for each other. Slow tests keep the machine's threads."""
    threads = torch.get_num_threads()
    if request.node.get_closest_marker("slow") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """Return the builder `tiny_model(family, *, dtype=torch.float32, seed=0, **config)`."""
    return models_for_tests.tiny_model


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., Any]:
    """Return the builder `tiny_tokenizer(*, chat_template=..., vocabulary=64)`."""
    return models_for_tests.tiny_tokenizer


@pytest.fixture
def smollm2() -> tuple[Any, Any]:
    """Return SmolLM2-135M-Instruct in float32 and its tokenizer, from the folder in RPO_SMOLLM2."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = os.environ.get("RPO_SMOLLM2", "")
    if not (folder and (Path(folder) / "model.safetensors").is_file()):
        pytest.skip("RPO_SMOLLM2 is not a folder with SmolLM2-135M-Instruct as model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model, AutoTokenizer.from_pretrained(folder)
