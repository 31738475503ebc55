"""Paths without padding: a whole batch in one row, with attention by segments; `choose_path` takes the best that fits.

Shapes: G prompts of at most m responses each; T tokens in the row, S segments of attention; K scored response tokens
in all.
The last token of a response is never fed: nothing is predicted from it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from rpo.core import checks
from rpo.llm.logps.attention import Segments, forward_arguments, route
from rpo.llm.logps.head import causal_model, plain_token_logps, token_logps_of
from rpo.llm.logps.router import router_weight, without_router
from rpo.llm.logps.scoring import PATHS, PaddedPath, PromptGroup, ScoringPath, check_groups, lengths_of
from rpo.llm.reference import is_peft_model, unchanged

logger = logging.getLogger(__name__)

# Nats a token by which the test batch may differ, on average: rounding is below, and what a layer leaves out above.
TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 2e-2}
TOLERANCE_ELSE = 1e-4


class _Row:
    """The one row of a batch as it is laid out: lists of what `PackedPath.collate` returns."""

    def __init__(self) -> None:
        self.input_ids: list[int] = []
        self.position_ids: list[int] = []
        self.segment_lengths: list[int] = []
        self.segment_prefixes: list[int] = []
        self.predicting: list[int] = []

    def append(self, tokens: Sequence[int], after: int = -1) -> int:
        """Add a segment that goes on after segment `after` (-1: after none); return its index."""
        offset = 0 if after < 0 else self.segment_lengths[after]
        self.input_ids.extend(tokens)
        self.position_ids.extend(range(offset, offset + len(tokens)))
        self.segment_lengths.append(len(tokens))
        self.segment_prefixes.append(after)
        return len(self.segment_lengths) - 1


class PackedPath:
    """Prompt and response of all sequences, one sequence after another in one row.

    pad_token_id: not used; every path takes one. fused_head: log-probabilities straight from the hidden
    states (`rpo.llm.logps.head`); without it, from logits at the positions that predict a response token.
    """

    name = "packed"

    def __init__(self, pad_token_id: int | None = None, *, fused_head: bool = True) -> None:
        self._token_logps = token_logps_of if fused_head else plain_token_logps
        self.kernel: str | None = None  # of attention, as in `Segments`

    def fed_tokens(self, group: PromptGroup) -> int:
        """Return how many tokens the model is fed for a group."""
        return sum(len(group.prompt_ids) + len(response) - 1 for response in group.responses)

    def collate(self, groups: Sequence[PromptGroup]) -> dict[str, torch.Tensor]:
        """Return the batch, responses in the order of groups.

        "input_ids", "position_ids": (1, T). "segment_lengths", "segment_prefixes": (S,), as `Segments`.
        "predicting", "targets": (K,), places in the row and the scored tokens they predict. "lengths": (G, m).
        Raises InvalidArgument for no groups, an empty prompt or an empty response.
        """
        check_groups(groups)
        row = _Row()
        for group in groups:
            self._append(row, group)
        inputs = {name: torch.tensor(values) for name, values in vars(row).items()}
        inputs |= {name: inputs[name][None] for name in ("input_ids", "position_ids")}
        responses = [each for group in groups for each in zip(group.responses, group.masks, strict=True)]
        inputs["targets"] = torch.tensor([token for ids, mask in responses for token in compress(ids, mask)])
        return inputs | {"lengths": lengths_of(groups)}

    def _append(self, row: _Row, group: PromptGroup) -> None:
        for response, mask in zip(group.responses, group.masks, strict=True):
            row.append([*group.prompt_ids, *response[:-1]])
            row.predicting.extend(compress(range(len(row.input_ids) - len(response), len(row.input_ids)), mask))

    def segments(self, inputs: Mapping[str, torch.Tensor]) -> Segments:
        """Return the segments of a batch."""
        return Segments(inputs["segment_lengths"].tolist(), inputs["segment_prefixes"].tolist(), self.kernel)

    def token_logps_by(
        self,
        segments: Segments,
        model: Any,
        inputs: Mapping[str, torch.Tensor],
        collisions: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return the log-probability of every response token, (K,), attending by the given segments."""
        route(model)
        fed = {name: inputs[name] for name in ("input_ids", "position_ids")}
        fed |= forward_arguments(segments, inputs["input_ids"].device) | without_router(model)
        return self._token_logps(model, inputs["predicting"], inputs["targets"], collisions, **fed)

    def logps(
        self, model: Any, inputs: Mapping[str, torch.Tensor], collisions: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return summed log-probabilities, (G, m), nats; the model may be wrapped by DDP, accelerate or peft."""
        summed = _by_response(self.token_logps_by(self.segments(inputs), model, inputs, collisions), inputs["lengths"])
        if collisions is not None:
            collisions.append(_by_response(collisions.pop(), inputs["lengths"]))
        return summed


def _by_response(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the sums over each response, (G, m), of values of every token, (K,)."""
    # To rows by position: index_add would add in any order on a GPU.
    flat = lengths.flatten()
    mask = torch.arange(int(flat.max()), device=flat.device) < flat[:, None]
    return values.new_zeros(mask.shape).masked_scatter(mask, values).sum(-1).view(lengths.shape)


class SharedPrefixPath(PackedPath):
    """Every prompt once, then its m responses: each goes on at the prompt's end and does not see the others."""

    name = "shared"

    def fed_tokens(self, group: PromptGroup) -> int:
        """Return how many tokens the model is fed for a group."""
        return len(group.prompt_ids) + sum(len(response) - 1 for response in group.responses)

    def _append(self, row: _Row, group: PromptGroup) -> None:
        prompt = row.append(group.prompt_ids)
        last = len(row.input_ids) - 1  # predicts the first token of all of them
        for response, mask in zip(group.responses, group.masks, strict=True):
            start = len(row.input_ids)
            if len(response) > 1:
                row.append(response[:-1], after=prompt)
            row.predicting.extend(compress([last, *range(start, len(row.input_ids))], mask))


PATHS.update({PackedPath.name: PackedPath, SharedPrefixPath.name: SharedPrefixPath})


# --- which path fits a model -----------------------------------------------------------------------


def choose_path(
    model: Any, pad_token_id: int, name: str = "auto", *, autocast_dtype: torch.dtype | None = None
) -> ScoringPath:
    """Return the path of that name; "auto" is the cheapest, "shared". PaddedPath, with a message, if it does not fit.

    model: before it is sharded, and best on its device, for the kernels are tried there, under autocast to
    `autocast_dtype` if there is one. Nothing of it changes but the name of its attention. Raises InvalidArgument.
    """
    checks.one_of("path", name, ("auto", *PATHS))
    kind: Any = PATHS["shared" if name == "auto" else name]
    path: ScoringPath = kind(pad_token_id)
    if not isinstance(path, PackedPath):
        return path
    place = next(model.parameters()).device.type
    with torch.autocast(place, autocast_dtype, enabled=autocast_dtype is not None):
        why = misfit(path, model, pad_token_id)
        if why is None:
            return path
        path.kernel = "segment"  # what fails may be the kernel of this device
        if misfit(path, model, pad_token_id) is None:
            logger.warning(
                "Attention is computed sequence by sequence, since its kernel for whole rows fails here: %s.", why
            )
            return path
    logger.warning("%s is scored with padding instead of path %r: %s.", type(causal_model(model)).__name__, name, why)
    return PaddedPath(pad_token_id)


def misfit(path: PackedPath, model: Any, pad_token_id: int = 0) -> str | None:
    """Return why the model cannot take the path, None if it can; told from its configuration and a small batch."""
    base = causal_model(model)
    config: Any = getattr(base, "config", None)
    if not getattr(base, "_supports_attention_backend", False) or not hasattr(config, "get_text_config"):
        return "its attention does not go through transformers' attention interface"
    if router_weight(model):
        return "its configuration asks for the router loss of padded rows (output_router_logits)"
    if is_peft_model(model) and model.active_peft_config.is_prompt_learning:
        return "its adapter puts tokens of its own before every row"
    config = config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of another kind ({', '.join(sorted(kinds))})"
    if any(parameter.is_meta or isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None  # sharded, or not loaded yet: nothing can be tried
    return _misfit_in_a_test(path, model, config, pad_token_id)


def _misfit_in_a_test(path: PackedPath, model: Any, config: Any, pad_token_id: int) -> str | None:
    """Compare with the padded path on two prompts; look at what every layer's attention is told on the way."""

    def words(n: int, start: int) -> list[int]:
        return [(7919 * k) % config.vocab_size for k in range(start, start + n)]

    groups = [
        PromptGroup(words(5, 1), [words(3, 6), words(4, 9)]),
        PromptGroup(words(3, 13), [words(1, 16), words(2, 17)]),
    ]
    place = next(model.parameters()).device

    def on_device(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(place) for name, tensor in inputs.items()}

    plain = type(path)(fused_head=False)
    inputs = on_device(plain.collate(groups))
    segments = path.segments(inputs)
    name = causal_model(model).config._attn_implementation
    with unchanged(model), torch.no_grad():
        model.eval()
        padded = PaddedPath(pad_token_id, fused_head=False)
        try:
            expected = padded.token_logps(model, on_device(padded.collate(groups)))
            logps = plain.token_logps_by(segments, model, inputs)
        except Exception as error:  # whatever goes wrong in a model that was not made for it
            causal_model(model).config._attn_implementation = name
            return f"it fails in a test ({type(error).__name__}: {error})"
    why = None
    off = float((logps - expected).abs().mean())
    if segments.windows != windows_of(config):
        why = f"its layers attend over windows {segments.windows}, and by its configuration over {windows_of(config)}"
    elif not off <= TOLERANCE.get(_computed_in(model, place.type), TOLERANCE_ELSE):
        why = f"log-probabilities differ by {off:.1e} nats a token in a test"
    if why is not None:
        causal_model(model).config._attn_implementation = name
    return why


def _computed_in(model: Any, device: str) -> torch.dtype:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else causal_model(model).dtype


def windows_of(config: Any) -> list[int | None]:
    """Return how many tokens back each layer sees by the configuration, None for all."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if kinds is None:
        return [window] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
