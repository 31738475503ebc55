"""`rpo diagnose`: what preference data say of a model, trained or not."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, Literal

from rpo.commands.data_source import DataSource
from rpo.core import shown
from rpo.core.errors import InvalidArgument

RUN = "run.json"


def diagnose_command(
    model: str,
    data: str | DataSource,
    ref_model: str | None = None,
    reward_model: str | None = None,
    shifted_data: str | DataSource | None = None,
    beta: float | None = None,
    eta: float | None = None,
    chosen_rate: float = 0.999,
    max_pairs: int = 1000,
    max_length: int | None = 1024,
    gradient_pairs: int = 32,
    kl_prompts: int = 32,
    max_new_tokens: int = 64,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    output: str | None = None,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Say how a model ranks preference pairs, what training moved, and how their gradients stand.

    Args:
        model: name or folder of a causal language model or an adapter.
        data: preference data, as of rpo train.
        ref_model: the reference; null for the base under an adapter, and for what run.json says training began with.
            Where there is neither, the model counts as not trained.
        reward_model: an explicit reward, to hold the implicit one against.
        shifted_data: pairs of another distribution, on which both are compared again.
        beta: of the loss; null for that of run.json, else 0.1.
        eta: of RPO's loss, to say which pairs it lifts; null for that of run.json.
        chosen_rate: how often the chosen response would win if asked again, for the idealised accuracy.
        max_pairs: more are thinned out at random.
        max_length: limit of prompt + response, in tokens; null for none.
        gradient_pairs: pairs whose gradients are compared (two backward passes each); 0 for none.
        kl_prompts: prompts sampled for the KL; 0 for none.
        max_new_tokens: length limit of these samples.
        seed: of everything drawn.
        dtype: of the weights; auto keeps the one stored.
        output: folder for diagnosis.json, diagnosis.html, the figure and config.yaml.
        overwrite: replace an earlier report in that folder.
    """
    from rpo.core.records import check_output, staged_output

    if output is not None:
        check_output(output, overwrite=overwrite, marker="diagnosis.json")
    import torch

    from rpo.llm.diagnostics.diagnosis import diagnose
    from rpo.llm.diagnostics.diagnosis_page import write_diagnosis
    from rpo.llm.models import load_model, load_tokenizer
    from rpo.llm.reference import AsGiven, DisabledAdapter, Reference, is_peft_model, resolve_reference

    record = _record(model)
    told = record.get("objective", {})
    beta = told.get("beta", 0.1) if beta is None else beta
    eta = told.get("eta") if eta is None else eta
    name, whose = _reference_name(model, ref_model, record)
    tokenizer = load_tokenizer(model)
    pairs, rewards = _pairs("data", data, tokenizer, reward_model, max_length, max_pairs, seed)
    others: dict[str, Any] = {}
    if shifted_data is not None:
        found = _pairs("shifted_data", shifted_data, tokenizer, reward_model, max_length, max_pairs, seed)
        others = dict(zip(("shifted", "shifted_rewards"), found, strict=True))
    network = load_model(model, dtype=dtype, is_trainable=True)
    if torch.cuda.is_available():
        network.to("cuda")
    if name is not None:
        reference: Reference = resolve_reference(network, name)
    else:
        reference = DisabledAdapter(network) if is_peft_model(network) else AsGiven(network)
    result = diagnose(
        network,
        pairs,
        reference=reference,
        tokenizer=tokenizer,
        beta=beta,
        eta=eta,
        chosen_rate=chosen_rate,
        rewards=rewards,
        gradient_pairs=gradient_pairs,
        kl_prompts=kl_prompts,
        max_new_tokens=max_new_tokens,
        seed=seed,
        **others,
    )
    print(shown.line(f"{model} on {result.pairs} pairs, beta {result.beta:g}; reference: {whose}"))
    for name, number, meaning in result.rows():
        print(textwrap.fill(f"{name:20} {number:18} {meaning}", 120, subsequent_indent=" " * 40))
    if output is not None:
        with staged_output(output, overwrite=overwrite, marker="diagnosis.json") as stage:
            write_diagnosis(result, stage, model=model, reference=whose)
            (stage / "config.yaml").write_text(resolved, encoding="utf-8")
        print(f"Written to {output}")


def _record(model: str) -> dict[str, Any]:
    """Return what a folder of `rpo train` says of its run; nothing of another model."""
    from rpo.core.records import read_json

    path = Path(model) / RUN
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            "model", expected=f"a {RUN} that can be read", got=f"{path} ({error})", remedy="Remove it, or mend it."
        ) from error
    return {name: value for name, value in found.items() if isinstance(value, dict)}


def _reference_name(model: str, ref_model: str | None, record: dict[str, Any]) -> tuple[str | None, str]:
    """Return the reference's name or folder, None where it needs no model of its own; and who it is in words."""
    from rpo.llm.models import is_adapter

    if ref_model is not None:
        return ref_model, ref_model
    trained = record.get("config", {})
    known = trained.get("reference", {})
    # A fingerprint of two parts is that of a base under an adapter, such as SFT leaves: the base alone is not it.
    if known.get("kind") in ("frozen_model", "named_adapter") or "+" in str(known.get("fingerprint")):
        raise InvalidArgument(
            "ref_model",
            expected=f"the reference, which {RUN} says was a model or adapter of its own",
            got=None,
            remedy="Name it with --ref_model.",
        )
    if is_adapter(model):
        return None, "the base under the adapter"
    if known.get("kind") == "policy_as_given":
        return trained["model"], f"{trained['model']}, with which training began"
    return None, "the model itself, as not trained"


def _pairs(
    name: str,
    given: str | DataSource,
    tokenizer: Any,
    reward_model: str | None,
    max_length: int | None,
    max_pairs: int,
    seed: int,
) -> tuple[Any, Any]:
    """Return the pairs, at most so many, and their explicit rewards (N, 2) where there is a reward model."""
    import numpy as np

    from rpo.commands.data_source import load
    from rpo.core import checks
    from rpo.llm.data import prepare_pairs

    source = DataSource(source=given) if isinstance(given, str) else given
    if source.streaming:
        raise InvalidArgument(
            f"{name}.streaming", expected="false", got=True, remedy="The pairs are read twice: leave it out."
        )
    rows = load(source, seed, on_refused="drop")
    prepared = prepare_pairs(rows, tokenizer, max_length=max_length, on_refused="drop")
    most = checks.integer("max_pairs", max_pairs, minimum=1)
    places = np.sort(np.random.default_rng(seed).permutation(len(prepared))[:most])
    pairs = [prepared[k] for k in places]
    lost = prepared.report.rows - len(prepared)
    scores = None
    if reward_model is not None:
        scored = _rewards(reward_model, rows, max_length, {pair.row for pair in pairs})
        kept = [pair for pair in pairs if pair.row in scored]
        lost += len(pairs) - len(kept)
        pairs, scores = kept, np.array([scored[pair.row] for pair in kept])
    if lost or len(prepared) > most:
        print(f"{name}: {len(pairs)} pairs of {prepared.report.rows} rows, {lost} of which could not be used")
    return pairs, scores


def _rewards(reward_model: str, rows: Any, max_length: int | None, wanted: set[int]) -> dict[int, Any]:
    """Return the rewards of chosen and rejected by row, tokenised as the reward model reads them."""
    import torch

    from rpo.llm.data import prepare_pairs
    from rpo.llm.data.collate import group_of
    from rpo.llm.models import load_tokenizer
    from rpo.llm.training.reward_model import load_reward_model, score_tokens, share_pad_token

    judge, tokenizer = load_reward_model(reward_model), load_tokenizer(reward_model)
    if torch.cuda.is_available():
        judge.to("cuda")
    prepared = prepare_pairs(rows, tokenizer, max_length=max_length, on_refused="drop", progress=False)
    pairs = [pair for pair in prepared if pair.row in wanted]
    found = score_tokens(judge, [group_of(pair) for pair in pairs], pad_token_id=share_pad_token(judge, None))
    return {pair.row: row for pair, row in zip(pairs, found, strict=True)}
