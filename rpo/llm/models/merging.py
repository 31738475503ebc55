"""Models made of others, as plain models that every other tool loads: an adapter in its base, weights averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.records import staged_output
from rpo.llm.models.loading import floating_dtype, is_adapter, load_model, positions_of
from rpo.llm.models.soundness import effective_configuration
from rpo.llm.models.tokenizers import load_tokenizer

PROBE_TOKENS = 32


def merge_adapter(
    source: str | Path, output: str | Path, *, dtype: torch.dtype | str = "auto", overwrite: bool = False
) -> float:
    """Write the adapter of a folder or hub name, merged into its base, as a folder that `from_pretrained` loads.

    dtype: of the weights written; "auto" keeps the base's. Returns the largest difference in log-probability, in
    nats, that merging makes on one row of tokens: rounding, of the size of the type. The tokenizer goes with it.
    Raises InvalidArgument for what is no adapter, OutputError, MissingDependency, ModelNotLoaded.
    """
    chosen = floating_dtype(dtype)
    if not is_adapter(source):
        raise InvalidArgument(
            "adapter", expected="an adapter of peft", got=f"{source}, which is none", remedy="Use it as it is."
        )
    with staged_output(output, overwrite=overwrite, marker="config.json") as stage:
        model = load_model(source, dtype=chosen)
        before = _logps(model)
        merged = model.merge_and_unload()
        difference = float((_logps(merged) - before).abs().max())
        merged.save_pretrained(stage)
        load_tokenizer(source).save_pretrained(stage)
    return difference


def average_models(
    models: Sequence[str | Path],
    output: str | Path,
    *,
    weights: Any = None,
    blocks: Mapping[str, Any] | None = None,
    dtype: torch.dtype | str = "auto",
    overwrite: bool = False,
) -> float:
    r"""Write $\sum_kw_k\theta_k$ of models of one architecture as a folder that `from_pretrained` loads.

    weights: one per model, of sum one, also beyond [0, 1]; None for equal ones. Between a reference and a policy they
    undo training in part; of two SFT models they make the reference of SALSA. blocks: other weights for the tensors
    whose name begins so, the longest beginning counting ("model.layers.0."); `block_ratios` has AMA's rule. The sum is
    taken in at least float32 and written in dtype, "auto" for the type that all have. Returns the largest difference
    in log-probability, in nats, that this rounding makes on one row of tokens. Averages logits where the models differ
    in the head alone, and only there: hold the result against what it should do. The first model's tokenizer goes with
    it. Raises InvalidArgument for adapters, other architectures, types or vocabularies, OutputError, ModelNotLoaded.
    Source: Lin et al. 2023 (arXiv 2309.06256); Chegini et al. 2024 (arXiv 2411.01798).
    """
    chosen = floating_dtype(dtype)
    sources = checks.listed("models", models)
    if len(sources) < 2 or any(is_adapter(source) for source in sources):
        raise InvalidArgument(
            "models",
            expected="two or more whole models",
            got=f"{len(sources)}"
            if len(sources) < 2
            else "adapters, whose products are not averaged with their factors",
            remedy="Merge each adapter first (rpo merge ADAPTER).",
        )
    shares = {"": _shares("weights", weights, len(sources))}
    for beginning, given in (blocks or {}).items():
        shares[beginning] = _shares(f"blocks[{beginning}]", given, len(sources))
    with staged_output(output, overwrite=overwrite, marker="config.json") as stage:
        model, tokenizer = load_model(sources[0]), load_tokenizer(sources[0])
        types = {name: tensor.dtype for name, tensor in _tensors(model).items()}
        model.to(torch.promote_types(model.dtype, torch.float32))
        total = _tensors(model)
        own = {name: shares[max((b for b in shares if name.startswith(b)), key=len)] for name in total}
        unused = [b for b in shares if b and not any(name.startswith(b) for name in total)]
        if unused:
            raise InvalidArgument(
                "blocks", expected="beginnings of names of weights", got=unused, remedy="Look at them."
            )
        with torch.no_grad():
            for name, tensor in total.items():
                tensor.mul_(own[name][0])
            for k, source in enumerate(sources[1:], start=1):
                other = load_model(source)
                _require_alike(source, model, other, types, tokenizer, any_type=chosen != "auto")
                for name, tensor in _tensors(other).items():
                    total[name].add_(tensor.to(total[name].dtype), alpha=own[name][k])
        before = _logps(model)
        for name, tensor in total.items():
            tensor.data = tensor.data.to(types[name] if chosen == "auto" else chosen)
        difference = float((_logps(model) - before).abs().max())
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
    return difference


def block_ratios(scores: Any, *, mean: float = 0.2, floor: float = 0.2) -> Array:
    r"""Return the weight of the reference in each block, $w_i\propto\sigma(a_i)+\epsilon$, of the given mean.

    scores: a, one per block, learned on data whose performance is to be kept; equal ones give the mean everywhere.
    mean: in (0, 1). floor: epsilon > 0. A block far above the others may get more than one. Raises InvalidArgument.
    Source: Lin et al. 2023 (arXiv 2309.06256) and its code, which takes .2 for both.
    """
    pulls = expit(checks.finite("scores", scores, shape=(None,))) + checks.positive("floor", floor)
    return np.asarray(checks.fraction("mean", mean) * pulls / pulls.mean())


def _shares(name: str, given: Any, count: int) -> list[float]:
    if given is None:
        return [1.0 / count] * count
    found = checks.finite(name, given, shape=(count,))
    if abs(found.sum() - 1.0) > 1e-9:
        raise InvalidArgument(name, expected="a sum of one", got=found.sum(), remedy="Divide by the sum.")
    return [float(value) for value in found]


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's floating-point weights by name, those that are tied under one name."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _require_alike(
    source: str | Path, model: Any, other: Any, types: Mapping[str, torch.dtype], tokenizer: Any, *, any_type: bool
) -> None:
    """Refuse a model whose weights, or whose tokens, mean something else than those of the first."""
    one, two = ({"class": type(m).__name__, **effective_configuration(m)} for m in (model, other))
    differing = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    shapes = [{name: tuple(tensor.shape) for name, tensor in _tensors(m).items()} for m in (model, other)]
    stored = {name: tensor.dtype for name, tensor in _tensors(other).items()}
    if differing or shapes[0] != shapes[1]:
        what, remedy = f"another {', '.join(differing) or 'set of weights'}", "Average models made of one another."
    elif load_tokenizer(source).get_vocab() != tokenizer.get_vocab():
        what, remedy = "another vocabulary", "Give both one tokenizer: the same id must be the same token."
    elif stored != dict(types) and not any_type:
        what, remedy = "weights of another type", "Say which type to write (dtype)."
    else:
        return
    raise InvalidArgument("models", expected="models like the first", got=f"{source}, with {what}", remedy=remedy)


def _logps(model: Any) -> torch.Tensor:
    """Return log-probabilities on one row of tokens, spread over the vocabulary."""
    width = min(PROBE_TOKENS, positions_of(model) or PROBE_TOKENS)
    probe = (torch.arange(width)[None] * 7919) % int(model.config.get_text_config().vocab_size)
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=probe).logits
    return logits.float().log_softmax(-1)
