"""`SFTTrainer`: supervised fine-tuning, the stage that makes pi_ref."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from rpo.core import checks
from rpo.core.columns import Columns
from rpo.core.errors import InvalidArgument
from rpo.core.likelihoods import SFT
from rpo.core.reduction import over_tokens
from rpo.llm.data import PreparedPairs, TokenizedGroup, load_preferences
from rpo.llm.data.collate import PairCollator
from rpo.llm.data.responses import RESPONSES, response_rows
from rpo.llm.logps.scoring import PromptGroup, ScoringPath
from rpo.llm.models.adapters import with_adapter
from rpo.llm.models.soundness import require_causal
from rpo.llm.training.arguments import check_objects, own_config
from rpo.llm.training.config import TrainerConfig
from rpo.llm.training.pair_trainer import PairTrainer, default_path
from rpo.llm.training.starting_model import starting_model


@dataclass
class SFTConfig(TrainerConfig):
    """Arguments of `SFTTrainer`. Raises InvalidArgument."""

    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate of AdamW."})
    response: str = field(default="chosen", metadata={"help": "Which response of preference rows: chosen, rejected."})

    def _check(self) -> None:
        super()._check()
        checks.one_of("response", self.response, RESPONSES)


class SFTTrainer(PairTrainer):
    """Trains `model` on responses by minus their log-probability.

    model: a causal language model, its folder or its name. train_dataset, eval_dataset: prompt-completion
    rows or preference rows (of which args.response is learnt), from wherever `load_preferences` reads;
    what `prepare_pairs` returns is taken for its chosen or rejected responses likewise. objective: an
    SFT. peft_config: trains an adapter. Raises InvalidArgument and the errors of the data; `train` raises
    SelfCheckFailed and NonFiniteLoss too.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: SFTConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        objective: SFT | None = None,
        peft_config: Any = None,
        path: ScoringPath | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = own_config(args, SFTConfig, "sft-output")
        check_objects(model, processing_class, peft_config, callbacks)
        objective = require_objective(objective, SFT)
        model, processing_class = starting_model(model, processing_class, args.model_init_kwargs, peft_config)
        self.response = args.response
        require_causal(model)
        model = with_adapter(model, peft_config, seed=args.seed)
        path = default_path(model, args, processing_class) if path is None else path
        super().__init__(
            model,
            args,
            objective,
            PairCollator(
                path,
                group_of=lambda pair: learnt(pair, args.response),
                tokens_of=lambda pair: pair.lengths[RESPONSES.index(args.response)],
            ),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )

    def load_rows(self, data: Any) -> Iterable[Any]:
        """Return the rows as preferences of one response over itself."""
        return response_rows(load_preferences(data), self.response)

    def _prepare(self, name: str, data: Any, args: TrainerConfig) -> Any:
        prepared = super()._prepare(name, data, args)
        if name in self.data_reports and not isinstance(data, PreparedPairs):
            for count in ("identical", "rejected_truncated"):  # of a response and itself
                self.data_reports[name].pop(count, None)
        return prepared

    def check_data(self, pairs: Sequence[TokenizedGroup], counts: dict[str, Any]) -> dict[str, Any]:
        """Return what was found about truncation and ends of turn. Raises SelfCheckFailed."""
        alone = [replace(pair, own=(pair.responses[RESPONSES.index(self.response)],), scored=()) for pair in pairs]
        return super().check_data(alone, counts)

    def scores(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the responses' summed log-probabilities, (B, 1), in nats."""
        return self.path.logps(model, inputs)

    def batch_loss(
        self, scores: torch.Tensor, inputs: dict[str, torch.Tensor], weights: torch.Tensor, totals: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss, its one term, and log-probabilities, summed and a token."""
        logps, lengths = scores[:, 0], inputs["lengths"][:, 0]
        # The mean length of the whole batch makes the tokens of every part of it count alike.
        values = over_tokens(logps, lengths, self.objective.reduction, totals[1] / totals[0])
        loss, terms = self.objective.loss(Columns(logps=(logps,)), values, weights)
        metrics = {"loss/sft": terms.sft, "logps/response": logps, "logps/response_per_token": logps / lengths}
        return loss, metrics

    def run_identity(self) -> dict[str, Any]:
        """Return objective, data, and which response of it is learnt."""
        return super().run_identity() | {"response": self.response}


def learnt(pair: TokenizedGroup, response: str) -> PromptGroup:
    """Return the prompt with the chosen or the rejected response alone."""
    k = RESPONSES.index(response)
    return PromptGroup(pair.prompt_ids, (pair.responses[k],), pair.scored[k : k + 1])


def require_objective(objective: Any, kind: Any) -> Any:
    """Return the objective, or the default of its kind for None; refuse another kind. Raises InvalidArgument."""
    if objective is None or isinstance(objective, kind):
        return kind() if objective is None else objective
    raise InvalidArgument(
        "objective",
        expected=f"an {kind.__name__}" if kind is SFT else f"a {kind.__name__}",
        got=type(objective).__name__,
        remedy="SFT is for SFTTrainer, BradleyTerry for RewardTrainer, preference objectives for PreferenceTrainer.",
    )
