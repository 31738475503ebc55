"""The README.md of a trained model: the objective as it was resolved, what became of the data, the last metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rpo.core import likelihoods, shown
from rpo.core.objectives import RPO
from rpo.methods import registry

# Of the hundred training arguments those that decide the result; run.json has them all.
SHOWN = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "optim", "weight_decay", "max_grad_norm",
    "bf16", "fp16", "seed", "max_length", "max_prompt_length", "truncation_mode",
)  # fmt: skip
TIMINGS = ("_runtime", "_per_second")
TAGS = ("rpo", "dpo", "preference-optimization")
WHAT = """\
Regularized Preference Optimization minimises the DPO loss plus η·β times an SFT loss. With h = log(π/π_ref), and
averages over the pairs,

    L(π) = mean softplus(-β (h(chosen) - h(rejected))) + η·β · mean(-log π(response of π_base)).

The SFT term is what pessimism about the reward amounts to: it keeps the probability of covered responses from falling.
At η = 0 this is DPO."""
OWN = ("RPO", "DPO")  # what WHAT and the citation are about
CITATION = """\
@inproceedings{liu2024provably,
  title     = {Provably Mitigating Overoptimization in {RLHF}: Your {SFT} Loss is Implicitly an Adversarial
               Regularizer},
  author    = {Liu, Zhihan and Lu, Miao and Zhang, Shenao and Liu, Boyi and Guo, Hongyi and Yang, Yingxiang and
               Blanchet, Jose and Wang, Zhaoran},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2405.16436}
}"""


def write_model_card(
    folder: str | Path,
    *,
    base_model: str,
    dataset: str,
    objective: Mapping[str, Any],
    config: Mapping[str, Any],
    data_report: Mapping[str, Any],
    metrics: Mapping[str, Any],
    environment: Mapping[str, str],
) -> Path:
    """Write README.md into `folder` and return its path; equal arguments give equal bytes.

    base_model, dataset: names as they were given; of a path only the last part is written, and only hub
    names enter the front matter. objective: `to_dict()` of it. config: training arguments.
    data_report: counts. metrics: the last ones logged.
    """
    adapter = (Path(folder) / "adapter_config.json").is_file()
    front: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "tags": list(TAGS)}
    if _is_hub_name(base_model):
        front["base_model"] = base_model
        # Else the hub guesses, and calls a fully trained model an adapter or the reverse.
        front["base_model_relation"] = "adapter" if adapter else "finetune"
    if _is_hub_name(dataset):
        front["datasets"] = [dataset]
    name = str(objective.get("name", "RPO"))
    name = "DPO" if name == "RPO" and objective.get("eta") == 0 else name
    source, data = _last_part(base_model) or "a model without a name", _last_part(dataset)
    # One of the two decides the length, the other is not used.
    unused = "num_train_epochs" if (config.get("max_steps") or -1) > 0 else "max_steps"
    settings = {key: config[key] for key in SHOWN if config.get(key) is not None and key != unused}
    sections = [
        f"# {shown.markdown(source)}, trained by {shown.markdown(name)}",
        f"{'An adapter for' if adapter else 'Trained from'} {shown.markdown_code(source)} on preference pairs of "
        f"{shown.markdown_code(data)} with `rpo-lab`.",
        "## Objective",
        WHAT if name in OWN else _described(name),
        _table(_objective_rows(objective), "field", "value"),
        "## Training data",
        _table(_flat(data_report), "count of", "value"),
        "## Training",
        _table(settings.items(), "argument", "value"),
        "All arguments, and every metric logged, are in `run.json`.",
        "## Last metrics logged",
        _table(sorted(item for item in metrics.items() if not item[0].endswith(TIMINGS)), "metric", "value"),
        "## Versions",
        _table(sorted(environment.items()), "package", "version"),
        *(["## Citation", f"```bibtex\n{CITATION}\n```"] if name in OWN else []),
    ]
    # JSON is YAML: strings with colons or hashes need no care.
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---"]
    path = Path(folder) / "README.md"
    path.write_text("\n".join(lines) + "\n\n" + "\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def _described(name: str) -> str:
    """Return what a method is and where it is from, as it says itself; of a caller's own class its name."""
    found = registry.METHODS.get(name)
    kind = getattr(likelihoods, name, None) if found is None else found.load()
    said = (kind.__doc__ or "").partition("\n")[0] if kind is not None else f"`{name}`, a class of the author's own."
    if found is None:
        return said
    return f"{said} Source: {found.paper}" + ("." if found.arxiv == "none" else f", arXiv {found.arxiv}.")


def _objective_rows(objective: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    yield from objective.items()
    if objective.get("name") in OWN:
        weight = RPO(beta=objective["beta"], eta=objective.get("eta", 0.0)).sft_weight
        yield "eta * beta, the weight of the SFT term", weight


def _flat(counts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield counts, those within counts by joined names; messages in words, and zeros, are left to run.json."""
    for name, value in counts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and (value or name in ("rows", "pairs")):
            yield f"{prefix}{name}", value


def _table(rows: Iterable[tuple[str, Any]], *heads: str) -> str:
    lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows]
    if not lines:
        return "Not recorded."
    return "\n".join([f"| {' | '.join(heads)} |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return shown.markdown(" ".join(text.split()))


def _is_hub_name(name: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def _last_part(name: str) -> str:
    """Return a hub name whole, and of a path of this machine its last part only."""
    return name if _is_hub_name(name) else Path(name).name
