"""The pass over the data before training: what the reference, and the policy as given, say of every response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray

from rpo.core.errors import InvalidArgument
from rpo.llm.data.collate import group_of
from rpo.llm.data.pairs import TokenizedGroup
from rpo.llm.logps.scoring import PromptGroup, ScoringPath
from rpo.llm.reference.cache import CacheKey, CacheMismatch, LogpCache, precompute
from rpo.llm.reference.sources import Reference, rng_kept
from rpo.llm.sampling import sample_ids

CACHE_NAME = "reference_logps.safetensors"
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class ReferencePass:
    """Scores pairs under references with the trainer's path, device and autocast.

    file: where values are kept, None for nowhere. strict: a file of other weights, type or template is
    an error (CacheMismatch); otherwise it is computed anew. say: as of
    `precompute`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        path: ScoringPath,
        tokenizer: Any,
        *,
        batch_tokens: int,
        show: bool | None,
        say: Callable[[str], object] = len,
    ) -> None:
        self.accelerator, self.path, self.tokenizer = accelerator, path, tokenizer
        self.batch_tokens, self.show, self.say = batch_tokens, show, say

    def logps(
        self,
        reference: Reference,
        pairs: Sequence[TokenizedGroup],
        *,
        file: Path | None = None,
        strict: bool = True,
        mismatched: bool = False,
        whole: bool = False,
    ) -> NDArray[Any]:
        """Return the log-probabilities of the pairs' own responses, (N, K), nats; random states stay as they are.

        mismatched: with that of the last response, which is to another prompt, to their right. whole: of all
        responses, (N, m).
        """
        self._same_on_every_process(reference)
        autocast = AUTOCAST_DTYPES.get(self.accelerator.mixed_precision)
        cache = LogpCache(CacheKey.of(reference, self.path, self.tokenizer, autocast_dtype=autocast))
        if file is not None and file.is_file():
            try:
                cache = LogpCache.load(file, cache.key)
            except CacheMismatch:
                if strict:
                    raise
        groups = [group_of(pair) if whole else compared(pair, mismatched) for pair in pairs]
        with rng_kept(reference.model), on_device(reference.model, self.accelerator.device):
            precompute(
                reference,
                self.path,
                groups,
                cache=cache,
                file=file,
                batch_tokens=self.batch_tokens,
                device=self.accelerator.device,
                autocast=self.accelerator.autocast,
                show=self.show,
                say=self.say,
            )
        return cache.lookup(groups)

    def samples(
        self, reference: Reference, pairs: Sequence[TokenizedGroup], *, num_samples: int, max_new_tokens: int, seed: int
    ) -> list[Any]:
        """Return `num_samples` responses (token ids) of the reference to each pair's prompt."""
        if self.tokenizer is None:
            raise InvalidArgument(
                "processing_class",
                expected="a tokenizer, to know where a sampled response ends",
                got=None,
                remedy="Pass it, or use another base.",
            )
        with on_device(reference.model, self.accelerator.device), reference.active() as model:
            # The tokens a pair's responses end with, by the same rule as for data.
            ends = sorted({pair.chosen_ids[-1] for pair in pairs} & set(self.tokenizer.all_special_ids))
            return sample_ids(
                model,
                [pair.prompt_ids for pair in pairs],
                num_samples=num_samples,
                max_new_tokens=max_new_tokens,
                seed=seed,
                eos_token_id=ends or [self.tokenizer.eos_token_id],
                pad_token_id=self.tokenizer.pad_token_id or 0,
            )

    def _same_on_every_process(self, reference: Reference) -> None:
        found = set(gather_object([reference.fingerprint()]))
        if len(found) > 1:
            raise InvalidArgument(
                "model",
                expected="the same weights on every process before training",
                got=f"{len(found)} different ones",
                remedy="With FSDP set fsdp_cpu_ram_efficient_loading to false.",
            )


def compared(pair: TokenizedGroup, mismatched: bool) -> PromptGroup:
    """Return a pair's prompt with its own responses, and the last of the further ones where it is asked for."""
    own, last = len(pair.own), -1 if mismatched else len(pair.responses)
    return PromptGroup(pair.prompt_ids, (*pair.own, *pair.responses[last:]), (*pair.scored[:own], *pair.scored[last:]))


class on_device(AbstractContextManager[None]):
    """Hold a model on the device for a while: FSDP keeps it on the CPU until it is sharded."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device = model, device
        self.home = next(model.parameters()).device

    def __enter__(self) -> None:
        if self.home != self.device:
            self.model.to(self.device)

    def __exit__(self, *_: object) -> None:
        if self.home != self.device:
            self.model.to(self.home)
