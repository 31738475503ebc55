"""What TRL's DPOConfig and DPOTrainer take and ours do not: taken where it asks for what is done here, else refused.

Every one is answered: a no-op, a conversion to fields and objectives of ours, or InvalidArgument with what to do.
docs/coming_from.md lists them all.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from rpo.core import checks
from rpo.core.errors import InvalidArgument, shown
from rpo.methods.foreign import OPTIONS

logger = logging.getLogger(__name__)

# Those that say which loss: read together by `rpo.methods.conversions.from_dpo_config`.
LOSS = (
    "loss_type", "loss_weights", "label_smoothing", "f_divergence_type", "f_alpha_divergence_coef", "discopop_tau",
    "ld_alpha", "use_weighting",
)  # fmt: skip
# Field -> (values that ask for what is done here, what to do about others).
SAME: dict[str, tuple[tuple[Any, ...], str]] = {
    "trust_remote_code": ((False,), "Code from a model's repository is never run; load the model yourself."),
    "router_aux_loss_coef": ((None,), "Set router_aux_loss_coef of the model's configuration."),
    "padding_free": ((False, True), "Rows are packed without padding as `path` says."),
    "activation_offloading": ((False,), "Set activation_checkpointing_kwargs={'offload': True}, or leave it out."),
    "sync_ref_model": ((False,), "The reference stays as it is; train in stages, each with the last model as model."),
    "pad_token": ((None,), "Set pad_token of the tokenizer and pass it as processing_class."),
}
# They change how the work is done, or nothing without sync_ref_model, and no number of the run.
WITHOUT_EFFECT = {
    "dataset_num_proc": "texts are tokenised in one process",
    "pad_to_multiple_of": "rows are packed, not padded",
    "ref_model_mixup_alpha": "the reference stays as it is",
    "ref_model_sync_steps": "the reference stays as it is",
}
UNUSED_DEFAULTS = {
    "dataset_num_proc": (None, 1),
    "pad_to_multiple_of": (None, "auto"),
    "ref_model_mixup_alpha": (0.6,),
    "ref_model_sync_steps": (512,),
}
NAMES = frozenset((*LOSS, *SAME, *WITHOUT_EFFECT, "precompute_ref_batch_size"))
# Options of other trainers, earlier releases of TRL among them, whose None asks for nothing.
UNSET = frozenset(OPTIONS) - NAMES


# Arguments of DPOTrainer that may only be None -> what there is instead.
ARGUMENTS = {
    "data_collator": "Rows are made into batches as `path` says; for tokens of your own pass rows of prompt_ids, "
    "chosen_ids and rejected_ids, for weights set weight_column.",
    "compute_metrics": "Evaluation keeps means, not predictions: read eval_rewards/* and eval_logps/*, or score the "
    "data yourself in on_evaluate of a callback.",
}


def refuse_arguments(**given: Any) -> None:
    """Refuse what of ARGUMENTS is not None. Raises InvalidArgument."""
    for name, value in given.items():
        if value is not None:
            raise InvalidArgument(name, expected="None", got=type(value).__name__, remedy=ARGUMENTS[name])


def takes_trl_fields(kind: Any) -> Any:
    """Have a dataclass of arguments take the fields of DPOConfig as keywords; its own signature stays."""
    made = kind.__init__

    @functools.wraps(made)
    def __init__(self: Any, *args: Any, **fields: Any) -> None:
        fields = {name: value for name, value in fields.items() if value is not None or name not in UNSET}
        if NAMES & fields.keys():
            fields, objective = translated(fields)
            self.__dict__["given_objective"] = objective
        made(self, *args, **fields)

    kind.__init__ = __init__
    return kind


def translated(fields: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return the fields as RPOConfig has them, and the objective where they name one that is no RPO.

    `loss_type="sigmoid"` is DPO: eta is 0 then, unless it is given. Raises InvalidArgument.
    """
    rest = {name: value for name, value in fields.items() if name not in NAMES}
    for name, (same, remedy) in SAME.items():
        if name in fields and not any(fields[name] is one or fields[name] == one for one in same):
            expected = " or ".join(map(repr, same))
            raise InvalidArgument(name, expected=expected, got=shown(fields[name]), remedy=remedy)
    for name, why in WITHOUT_EFFECT.items():
        if name in fields and fields[name] not in UNUSED_DEFAULTS[name]:
            logger.warning("%s = %s has no effect: %s.", name, shown(fields[name]), why)
    rows = fields.get("precompute_ref_batch_size")
    if rows is not None and "precompute_ref_batch_tokens" not in rest:
        # So many pairs have no more tokens than this.
        longest = rest.get("max_length", 1024) or 1024
        rest["precompute_ref_batch_tokens"] = 2 * checks.integer("precompute_ref_batch_size", rows, minimum=1) * longest
    loss = {name: fields[name] for name in LOSS if name in fields}
    return _with_loss(rest, loss) if loss else (rest, None)


def _with_loss(rest: dict[str, Any], loss: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    from rpo.core.objectives import DPO, RPO
    from rpo.methods.conversions import from_dpo_config

    beta = rest.get("beta")
    objective = from_dpo_config(**({} if beta is None else {"beta": beta}), **loss)
    own = [name for name in ("eta", "sft_reduction", "base") if rest.get(name) is not None]
    if type(objective) is DPO:
        return {**rest, "eta": 0.0 if rest.get("eta") is None else rest["eta"]}, None
    if own:
        raise InvalidArgument(
            ", ".join(own),
            expected=f"None beside loss_type={shown(loss.get('loss_type', 'sigmoid'))}",
            got="a value",
            remedy="The loss has its own; leave one of them out.",
        )
    if type(objective) is RPO:
        return {**rest, "eta": objective.eta, "sft_reduction": objective.sft_reduction}, None
    return {**rest, "beta": None}, objective
