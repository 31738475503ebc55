"""A Bradley-Terry reward model on AutoModelForSequenceClassification: loaded, trained, and asked for scores.

Shapes: B pairs of a micro-batch; N prompts with one response each.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rpo.core import checks, numerics
from rpo.core.columns import Columns
from rpo.core.errors import InvalidArgument
from rpo.core.likelihoods import BradleyTerry
from rpo.core.progress import track
from rpo.core.shapes import CenteredLogistic
from rpo.llm.data import prepare_pairs
from rpo.llm.data.collate import CHOSEN, REJECTED, PairCollator
from rpo.llm.logps.scoring import PaddedPath, PromptGroup
from rpo.llm.models import adapter_config, is_adapter, load_model, with_stored_adapter
from rpo.llm.models.adapters import with_adapter
from rpo.llm.models.gguf import is_gguf
from rpo.llm.models.loading import floating_dtype, require_safetensors
from rpo.llm.models.soundness import REPORTED, ModelNotLoaded, reading, require_finite, require_whole
from rpo.llm.sampling import evaluation_mode
from rpo.llm.training.arguments import check_objects, own_config
from rpo.llm.training.config import TrainerConfig
from rpo.llm.training.pair_trainer import PairTrainer
from rpo.llm.training.sft import require_objective
from rpo.llm.training.starting_model import starting_model

logger = logging.getLogger(__name__)


@dataclass
class RewardConfig(TrainerConfig):
    """Arguments of `RewardTrainer`. Raises InvalidArgument."""

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    center_rewards_coefficient: float | None = field(
        default=None, metadata={"help": "Weight of (r_chosen + r_rejected)^2; leave out when an objective is given."}
    )

    def resolve_bradley_terry(self, objective: BradleyTerry | None) -> BradleyTerry:
        """Return `objective`, or the one these arguments build; refuse both. Raises InvalidArgument."""
        if self.center_rewards_coefficient is None:
            resolved: BradleyTerry = require_objective(objective, BradleyTerry)
            return resolved
        if objective is not None:
            raise InvalidArgument(
                "objective",
                expected="either an objective or center_rewards_coefficient",
                got="both",
                remedy="Leave one of them out.",
            )
        return BradleyTerry(center_rewards_coefficient=self.center_rewards_coefficient)


class RewardTrainer(PairTrainer):
    """Trains a reward model on preference pairs; the arguments are those of TRL's RewardTrainer.

    model: a sequence classifier with one label, or a causal language model (which is copied and gets a new
    head), or the folder or name of either. train_dataset, eval_dataset: as of `RPOTrainer`. objective: a
    BradleyTerry. peft_config: trains an adapter and the head. The model's config gets the tokenizer's pad
    token, by which it finds the last token of a row. Raises InvalidArgument and the errors of the data.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: RewardConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        objective: BradleyTerry | None = None,
        peft_config: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = own_config(args, RewardConfig, "reward-output")
        check_objects(model, processing_class, peft_config, callbacks)
        objective = args.resolve_bradley_terry(objective)
        named = isinstance(model, (str, Path))
        model, processing_class = starting_model(
            model,
            processing_class,
            args.model_init_kwargs,
            peft_config,
            load=load_reward_model,
            new_head_seed=args.seed,
        )
        model = model if named else as_reward_model(model, new_head_seed=args.seed)
        pad = share_pad_token(model, processing_class)
        if pad == getattr(processing_class, "eos_token_id", None):
            logger.warning("The pad token also ends every response, so rewards are read at the token before it.")
        super().__init__(
            with_adapter(model, classification_adapter(peft_config), seed=args.seed),
            args,
            objective,
            PairCollator(PaddedPath(pad)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )

    def scores(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the rewards of chosen and rejected, (B, 2)."""
        return rewards(model, inputs)

    def batch_loss(
        self, scores: torch.Tensor, inputs: dict[str, torch.Tensor], weights: torch.Tensor, totals: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss, its terms, and the rewards with their margins and accuracies."""
        chosen, rejected = scores[:, CHOSEN], scores[:, REJECTED]
        loss, _ = self.objective.loss(Columns(logps=(chosen, rejected)), weights=weights)
        centering = numerics.weighted_mean(CenteredLogistic.centering(chosen, rejected), weights).detach()
        coefficient = self.objective.center_rewards_coefficient
        metrics = {
            "loss/preference": loss - coefficient * centering if coefficient else loss,
            "loss/centering": centering,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).double(),
        }
        return loss, metrics


def rewards(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the reward of every row of a right-padded batch, in the shape of its "lengths", float32 or more."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
    values: torch.Tensor = numerics.promote(logits).view(inputs["lengths"].shape)
    return values


def score(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[Mapping[str, Any]]],
    responses: Sequence[str],
    batch_size: int = 16,
    *,
    max_length: int | None = None,
    progress: bool | None = None,
) -> NDArray[np.float64]:
    """Return the reward of each response to its prompt, (N,), tokenised as in training, template and end of turn.

    prompts: texts, or messages for the chat template. responses: texts. max_length: tokens; None for no
    limit. The model runs in evaluation mode, which is restored. Raises InvalidArgument, RefusedRow.
    """
    batch_size = checks.integer("batch_size", batch_size, minimum=1)
    if len(prompts) != len(responses):
        raise InvalidArgument(
            "responses", expected=f"{len(prompts)}, one a prompt", got=len(responses), remedy="Pass one a prompt."
        )
    rows = [{"prompt": p, "chosen": r, "rejected": r} for p, r in zip(prompts, responses, strict=True)]
    pairs = prepare_pairs(rows, tokenizer, max_length=max_length, progress=False)
    # What the model was trained with, where it was: another tokenizer's choice must not change its scores.
    known = model.config.get_text_config().pad_token_id is not None
    pad = share_pad_token(model, None if known else tokenizer)
    groups = [PromptGroup(pair.prompt_ids, (pair.chosen_ids,)) for pair in pairs]
    return score_tokens(model, groups, pad_token_id=pad, batch_size=batch_size, progress=progress)[:, 0]


def score_tokens(
    model: Any,
    groups: Sequence[PromptGroup],
    *,
    pad_token_id: int,
    batch_size: int = 16,
    progress: bool | None = None,
) -> NDArray[np.float64]:
    """Return the reward of the m responses of each of G prompts, (G, m), token ids as they stand.

    pad_token_id: the model's own, `share_pad_token`. batch_size: prompts at a time. The model runs in
    evaluation mode, which is restored.
    """
    path, device = PaddedPath(pad_token_id), next(model.parameters()).device
    # Rows of like length share a batch.
    order = sorted(range(len(groups)), key=lambda k: len(groups[k].prompt_ids) + max(map(len, groups[k].responses)))
    found = np.empty((len(groups), len(groups[0].responses)))
    with evaluation_mode(model), torch.no_grad():
        for start in track(range(0, len(order), batch_size), "Scoring", show=progress):
            places = order[start : start + batch_size]
            batch = path.collate([groups[k] for k in places])
            values = rewards(model, {name: value.to(device) for name, value in batch.items()})
            found[places] = values.double().cpu().numpy()
    return found


def load_reward_model(
    name_or_path: str | Path,
    *,
    new_head_seed: int | None = None,
    dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    is_trainable: bool = False,
) -> Any:
    """Return the reward model of a hub name or folder, in evaluation mode; other arguments as of `load_model`.

    new_head_seed: for a model without a trained head, the seed of a new one; None refuses such a model.
    The global random state stays. Raises InvalidArgument, ModelNotLoaded.
    """
    if is_gguf(name_or_path):
        model = load_model(name_or_path, dtype=dtype, attn_implementation=attn_implementation, revision=revision)
        return as_reward_model(model, new_head_seed=new_head_seed)
    if Path(name_or_path).is_dir():
        require_safetensors(Path(name_or_path))
    if is_adapter(name_or_path, revision=revision):
        options = {"dtype": dtype, "attn_implementation": attn_implementation}
        return _with_stored_adapter(name_or_path, revision=revision, is_trainable=is_trainable, **options)
    more = {"attn_implementation": attn_implementation} if attn_implementation else {}
    with _seeded(new_head_seed or 0), reading(name_or_path):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            name_or_path,
            num_labels=1,
            dtype=floating_dtype(dtype),
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            **REPORTED,
            **more,
        )
    missing = sorted(found["missing_keys"])
    if missing and new_head_seed is None:
        raise ModelNotLoaded(
            f"name_or_path: expected a trained reward model, got {name_or_path} without {', '.join(missing[:4])}. "
            "Train one with RewardTrainer and pass its folder."
        )

    def counted(names: Iterable[str]) -> set[str]:
        """Without a language model's head, which gives way to the new one."""
        return {name for name in names if not missing or name.startswith(f"{model.base_model_prefix}.")}

    require_whole(name_or_path, counted(missing), counted(found["unexpected_keys"]), found["mismatched_keys"])
    require_finite(name_or_path, model)
    if missing:
        logger.warning("%s has no reward head: %s is new, from seed %s.", name_or_path, missing[0], new_head_seed)
    return model


def _with_stored_adapter(source: str | Path, *, revision: str | None, is_trainable: bool, **options: Any) -> Any:
    """Return the base model of an adapter under it, by peft: transformers 5.17 leaves the adapter's own head out."""
    stored = adapter_config(source, revision=revision)
    if stored.task_type != "SEQ_CLS":
        raise ModelNotLoaded(
            f"name_or_path: expected an adapter with a reward head (task_type SEQ_CLS), got {source} of "
            f"{stored.task_type}. Merge a language model's adapter first: "
            "load_model(source).merge_and_unload().save_pretrained(new_folder)."
        )
    base = load_reward_model(stored.base_model_name_or_path, new_head_seed=0, revision=stored.revision, **options)
    return with_stored_adapter(base, source, revision=revision, is_trainable=is_trainable)


def as_reward_model(model: Any, *, new_head_seed: int | None = None) -> Any:
    """Return a sequence classifier as it is, and a causal language model as a copy with a new head of one label.

    new_head_seed: as of `load_reward_model`. Raises InvalidArgument.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if type(inner).__name__.endswith("ForSequenceClassification"):
        if inner.config.num_labels != 1:
            raise InvalidArgument(
                "model",
                expected="a sequence classifier with one label, the reward",
                got=f"{inner.config.num_labels} labels",
                remedy="Load it with num_labels=1.",
            )
        return model
    if inner is not model or not isinstance(model, PreTrainedModel) or new_head_seed is None:
        raise InvalidArgument(
            "model",
            expected="a sequence classifier"
            + ("" if new_head_seed is None else ", or a causal language model without adapter"),
            got=type(inner).__name__ + ("" if inner is model else " with an adapter"),
            remedy="Merge adapters first (merge_and_unload); train a language model with RewardTrainer first.",
        )
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    with _seeded(new_head_seed):
        reward_model = AutoModelForSequenceClassification.from_config(config, dtype=model.dtype)
    reward_model.base_model.load_state_dict(model.base_model.state_dict())
    return reward_model.to(model.device).eval()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Initialise what is made inside, on the CPU, from `seed`, and put the global random state back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(checks.integer("new_head_seed", seed, minimum=0))
        yield


def share_pad_token(model: Any, tokenizer: Any) -> int:
    """Write the tokenizer's pad token into the model's config, which finds the last token by it, and return it.

    The tokenizer stays as it is; without one the config's own is taken. Raises InvalidArgument.
    """
    config = model.config.get_text_config()
    if tokenizer is None and config.pad_token_id is not None:
        return int(config.pad_token_id)
    if tokenizer is None or tokenizer.pad_token_id is None:
        raise InvalidArgument(
            "processing_class",
            expected="a tokenizer with a pad token, by which the model finds the last token of a row",
            got=None if tokenizer is None else "one without",
            remedy="Pass rpo.llm.models.load_tokenizer(name), which chooses one, or set tokenizer.pad_token.",
        )
    pad = int(tokenizer.pad_token_id)
    if config.pad_token_id != pad:
        logger.warning("model.config.pad_token_id: %s becomes %s, the tokenizer's.", config.pad_token_id, pad)
        config.pad_token_id = pad
    return pad


def classification_adapter(peft_config: Any) -> Any:
    """Return the adapter's configuration for a sequence classifier, whose new head must be trained and saved too.

    peft_config: None, keywords, or a configuration whose task_type is SEQ_CLS. Raises InvalidArgument.
    """
    if peft_config is None:
        return None
    if isinstance(peft_config, Mapping):
        peft_config = {"task_type": "SEQ_CLS", **peft_config}
    task = peft_config["task_type"] if isinstance(peft_config, dict) else peft_config.task_type
    if task != "SEQ_CLS":
        raise InvalidArgument(
            "peft_config",
            expected="task_type SEQ_CLS",
            got=task,
            remedy="With another one the reward head would stay as it began, at random.",
        )
    return peft_config
