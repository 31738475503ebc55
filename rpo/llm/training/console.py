"""What a training run prints: a line of a few numbers for each log. Every number is in the run's history."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from transformers import PrinterCallback
from transformers.trainer_callback import ProgressCallback

LOGS = ("short", "full", "none")
# Logged name -> its column; of those that a log has not, there is none.
COLUMNS = {
    "loss/preference": "preference",
    "loss/sft": "sft",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "displacement/share": "fell",
}
WORDS = {
    "preference": "preference: its loss",
    "sft": "sft: the SFT term, before its weight",
    "margin": "margin: mean reward of chosen less rejected",
    "accuracy": "accuracy: share of pairs with a margin above 0",
    "fell": "fell: share of pairs whose chosen response lost probability",
}
WIDTH, PLACE = 11, 12


class LogLines(ProgressCallback):
    """Prints a table of the loss's terms, margin, accuracy and displacement, a row a log; on a terminal above a bar."""

    def __init__(self, *, bar: bool) -> None:
        super().__init__()
        self.bar, self.columns = bar, {}  # type: ignore[var-annotated]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the bar; the header waits for the first log, which shows what there is."""
        self.columns = {}
        if self.bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Print the log: as a row of the table, or the few numbers it has besides."""
        if not state.is_world_process_zero or not logs:
            return
        if "train_runtime" in logs:
            self.say(f"{state.global_step} updates in {duration(logs['train_runtime'])}")
            return
        ends = [name for name in logs if name == "loss" or name.endswith("_loss")]
        if not ends:
            found = (f"{name} {value:.4g}" for name, value in logs.items() if isinstance(value, float | int))
            self.say(f"{state.global_step:>{PLACE}}  " + ", ".join(one for one in found if not one.startswith("epoch")))
            return
        prefix = ends[0].removesuffix("loss")
        if not self.columns:
            self._begin(prefix, logs)
        values = (logs.get(prefix + name) for name in self.columns)
        place = f"{prefix.rstrip('_')} {state.global_step}".strip()
        self.say(f"{place:>{PLACE}}" + "".join(" " * WIDTH if v is None else f"{v:>{WIDTH}.4g}" for v in values))

    def _begin(self, prefix: str, logs: Mapping[str, Any]) -> None:
        self.columns = {name: column for name, column in COLUMNS.items() if prefix + name in logs}
        if prefix + "loss/preference" not in logs:
            self.columns = {"loss": "loss", **self.columns}
        words = "; ".join(WORDS[column] for column in self.columns.values() if column in WORDS)
        for line in textwrap.wrap(words, width=PLACE + WIDTH * len(COLUMNS)):
            self.say(f"  {line}")
        self.say(f"{'step':>{PLACE}}" + "".join(f"{column:>{WIDTH}}" for column in self.columns.values()))

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if self.training_bar is None:
            print(line, flush=True)
        else:
            self.training_bar.write(line)


def settle_console(trainer: Any, log: str, *, bar: bool) -> None:
    """Have `trainer` print what `log` asks for, in place of transformers' dictionaries; a notebook keeps its table."""
    if log == "full":
        return
    for one in reversed(trainer.callback_handler.callbacks):
        if type(one) in (PrinterCallback, ProgressCallback):
            trainer.callback_handler.callbacks.remove(one)
            if log == "short":
                trainer.add_callback(LogLines(bar=bar))
            return


def duration(seconds: float) -> str:
    """Return a time as 1:05 or 2:01:05, hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
