"""Fixtures of the language-model tests: tiny models, a tokenizer, one thread, a real model where there is one."""

import os
from collections.abc import Callable, Iterator
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
