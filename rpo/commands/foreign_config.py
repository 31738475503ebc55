"""Recipes of TRL, alignment-handbook and LLaMA-Factory: what their keys are called here, and what has no counterpart.

Facts of their formats, as their releases read them. `convert` makes options of `rpo train` of a recipe; every key of it
is among them, or in a note that says why not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rpo.core import checks
from rpo.core.errors import InvalidArgument, shown
from rpo.core.objectives import Objective

# Another name -> the option of `rpo train`.
RENAMED = {
    "model_name_or_path": "model",
    "model_revision": "revision",
    "torch_dtype": "dtype",
    "dtype": "dtype",
    "attn_implementation": "attn_implementation",
    "ref_model": "ref_model",
    "ref_model_name_or_path": "ref_model",
    "resume_from_checkpoint": "resume",
    "evaluation_strategy": "training.eval_strategy",
    "warmup_ratio": "training.warmup_steps",
    "cutoff_len": "training.max_length",
    "seed": "training.seed",
    "beta": "objective.beta",
    "pref_beta": "objective.beta",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "lora_target": "lora.target_modules",
    "gradient_checkpointing_use_reentrant": "training.gradient_checkpointing_kwargs.use_reentrant",
    "load_in_4bit": "quantization",
    "load_in_8bit": "quantization",
    "quantization_bit": "quantization",
    "dataset_name": "dataset.source",
    "dataset_config": "dataset.name",
    "dataset_train_split": "dataset.split",
    "dataset_test_split": "eval_dataset.split",
    "dataset_streaming": "dataset.streaming",
    "dataset_mixer": "dataset",
    "dataset_mixture": "dataset",
    "datasets": "dataset",
    "dataset_splits": "dataset.split",
    "pref_loss": "objective",
    "pref_ftx": "objective.eta",
}
# Keys that ask for what is done anyway, or change no number of the run -> why.
IDLE = {
    "do_train": "training is what the command does",
    "do_eval": "eval_dataset is evaluated at the end, and as training.eval_strategy says",
    "do_predict": "responses are sampled by rpo generate",
    "stage": "the objective says it",
    "finetuning_type": "lora is an adapter, and its absence full training",
    "use_peft": "lora is an adapter, and its absence full training",
    "lora_task_type": "the trainer knows it",
    "dataset_num_proc": "texts are tokenised in one process",
    "preprocessing_num_workers": "texts are tokenised in one process",
    "overwrite_cache": "no tokenised data are kept",
    "overwrite_output_dir": "a folder with an earlier run is refused; training goes on with --resume true",
    "plot_loss": "rpo plot draws it",
    "padding_free": "rows are packed as training.path says",
    "pad_to_multiple_of": "rows are packed, not padded",
    "packing": "rows are packed as training.path says",
    "neat_packing": "rows are packed as training.path says",
    "use_cache": "training keeps no cache",
    "bnb_4bit_quant_type": "4bit is NF4",
    "use_bnb_nested_quant": "4bit is quantised twice",
    "report_to_wandb": "training.report_to names trackers",
}
# Keys without a counterpart -> why, or what to do.
MISSING = {
    "trust_remote_code": "code from a model's repository is never run",
    "template": "the tokenizer's chat template is used, or training.chat_template (a Jinja text)",
    "dataset_dir": "name the file or hub data set itself",
    "max_samples": "cut the file, or name a split such as train[:1000] of a hub data set",
    "val_size": "give eval_dataset a file of its own",
    "test_split_size": "give eval_dataset a file of its own",
    "adapter_name_or_path": "give its folder as model: an adapter goes on training on its base",
    "lora_modules_to_save": "in Python: peft_config with modules_to_save",
    "lora_target_parameters": "in Python: peft_config with target_parameters",
    "use_rslora": "in Python: peft_config with use_rslora",
    "use_dora": "in Python: peft_config with use_dora",
    "ignore_bias_buffers": "no distributed model here has such buffers",
    "truncation_mode": "prompts lose their start first, then responses their end; drop leaves long rows out",
    "pure_bf16": "training.bf16 computes in bfloat16; dtype: bfloat16 holds weights in it, and small steps are lost",
    "max_completion_length": "training.max_length bounds prompt and response together",
    "generate_during_eval": "training.kl_steps samples responses; WinRateCallback judges them",
    "reference_free": "use a method without a reference: SimPO, CPO, CPL, ORPO, ASFT",
}
LOSS = (
    "beta", "loss_type", "loss_weights", "label_smoothing", "f_divergence_type", "f_alpha_divergence_coef",
    "discopop_tau", "ld_alpha", "use_weighting",
)  # fmt: skip
LLAMA_FACTORY_LOSS = ("pref_beta", "pref_ftx", "pref_loss", "dpo_label_smoothing", "simpo_gamma")
OF_LLAMA_FACTORY = ("stage", "finetuning_type", "cutoff_len", "dataset_dir", *LLAMA_FACTORY_LOSS)
FOREIGN = frozenset((*RENAMED, *IDLE, *MISSING, *LLAMA_FACTORY_LOSS))
ATTENTION = {"fa2": "flash_attention_2", "fa3": "flash_attention_3", "sdpa": "sdpa", "disabled": "eager", "auto": None}


@dataclass
class Converted:
    """Options of `rpo train`, nested; and what is said beside them.

    notes: on keys that are not among the options, or are though the recipe has them not: (key, value, sentence).
    blanks: options to fill in, and what their recipe says there.
    """

    options: dict[str, Any] = field(default_factory=dict)
    notes: list[tuple[str, Any, str]] = field(default_factory=list)
    blanks: dict[str, Any] = field(default_factory=dict)

    def put(self, key: str, value: Any) -> None:
        """Set the option of a dotted key."""
        *path, last = key.split(".")
        home = self.options
        for part in path:
            home = home.setdefault(part, {})
        home[last] = value


def convert(recipe: Mapping[str, Any], training: Collection[str], refused: Mapping[str, str]) -> Converted:
    """Return a recipe as options; training: the trainer's arguments, which keep their names. refused: of them -> why.

    Raises InvalidArgument for a loss that no method is, and for a recipe of another stage.
    """
    made, rest = Converted(), dict(recipe)
    factory = any(key in recipe for key in OF_LLAMA_FACTORY)
    if factory and rest.get("stage", "dpo") != "dpo":
        remedy = "rpo train --objective SFT and BradleyTerry train those stages; write them by hand."
        raise InvalidArgument("stage", expected="dpo", got=shown(rest["stage"]), remedy=remedy)
    _datasets(rest, made, factory)
    unchecked = factory and rest.pop("disable_gradient_checkpointing", False)
    loss = {key: rest.pop(key) for key in (LLAMA_FACTORY_LOSS if factory else LOSS) if key in rest}
    made.options["objective"] = (_llama_factory if factory else _trl)(loss).to_dict()
    _model(rest, made, factory)
    for key in list(rest):
        value = rest.pop(key)
        own = RENAMED.get(key)
        if own is not None:
            if value is not None:
                made.put(own, value)
        elif key in IDLE:
            made.notes.append((key, value, f"no effect: {IDLE[key]}"))
        elif key in MISSING and not (key in training and _kept(key, value)):
            made.notes.append((key, value, MISSING[key]))
        elif key in refused:
            made.notes.append((key, value, refused[key]))
        elif key in training:
            made.put(f"training.{key}", value)
        else:
            made.notes.append((key, value, "not known here, and left out"))
    for key in () if factory else ("bf16", "gradient_checkpointing"):
        if not {key, "fp16" if key == "bf16" else key} & recipe.keys():
            made.notes.append((key, None, "on in TRL where it is not set, off here"))
    if factory:
        training_options = made.options.setdefault("training", {})
        for key, theirs in (("learning_rate", 5e-5), ("max_length", 2048), ("gradient_checkpointing", not unchecked)):
            if key not in training_options:
                training_options[key] = theirs
                made.notes.append((f"training.{key}", theirs, "LLaMA-Factory's where it is not set, and so below"))
    made.options.setdefault("training", {}).setdefault("output_dir", "runs/converted")
    made.options = {key: made.options[key] for key in ("model", *made.options) if key in made.options}
    return made


def answer(key: str) -> str:
    """Return what to do about one of these keys among the options of `rpo train`; "" for another."""
    if key in RENAMED:
        return f"did you mean {RENAMED[key]}?"
    why = IDLE.get(key) or MISSING.get(key)
    return f"leave it out: {why}" if why else ""


def hint(keys: Collection[str]) -> str | None:
    """Return a sentence on a config file with several of these keys at its top; None for one of our own."""
    found = [key for key in keys if key in FOREIGN]
    if len(found) < 2:
        return None
    return f"it has keys of TRL, alignment-handbook or LLaMA-Factory ({', '.join(found[:3])} ...)"


def _kept(key: str, value: Any) -> bool:
    return key == "truncation_mode" and value in ("keep_end", "drop")


def _trl(given: Mapping[str, Any]) -> Objective:
    from rpo.methods.conversions import from_dpo_config

    return from_dpo_config(**given)


def _llama_factory(given: Mapping[str, Any]) -> Objective:
    """Return the objective of LLaMA-Factory's pref_loss; its ipo, orpo and simpo divide by the tokens of a response."""
    from rpo.core.conversions import from_authors_averaged
    from rpo.core.objectives import DPO
    from rpo.methods.pairs import IPO, ConservativeDPO, SLiC
    from rpo.methods.reference_free import ORPO, SimPO

    beta = checks.positive("pref_beta", given.get("pref_beta", 0.1))
    sft = checks.nonnegative("pref_ftx", given.get("pref_ftx", 0.0))
    epsilon = checks.nonnegative("dpo_label_smoothing", given.get("dpo_label_smoothing", 0.0))
    kind = given.get("pref_loss", "sigmoid")
    checks.one_of("pref_loss", kind, ("sigmoid", "hinge", "ipo", "orpo", "simpo"))
    if sft and (kind != "sigmoid" or epsilon):
        remedy = "No method has that loss beside an SFT term of its own weight; set pref_ftx to 0."
        raise InvalidArgument("pref_ftx", expected="0 unless pref_loss is sigmoid", got=sft, remedy=remedy)
    if sft:
        return from_authors_averaged(beta, sft)
    if epsilon:
        checks.one_of("pref_loss", kind, ("sigmoid",))
        return ConservativeDPO(beta=beta, epsilon=epsilon)
    if kind == "simpo":
        return SimPO(beta=beta, gamma=given.get("simpo_gamma", 0.5))
    if kind == "ipo":
        return IPO(tau=beta, per_token=True)
    if kind == "orpo":
        return ORPO(weight=beta)
    return SLiC(beta=beta) if kind == "hinge" else DPO(beta=beta)


def _model(rest: dict[str, Any], made: Converted, factory: bool) -> None:
    """Read what says how the model is loaded, and under which adapter, with their defaults."""
    for key, value in (rest.pop("model_init_kwargs", None) or {}).items():
        rest.setdefault(key, value)
    bits = rest.pop("quantization_bit", None)
    for key, name in (("load_in_4bit", "4bit"), ("load_in_8bit", "8bit")):
        if rest.pop(key, False) or bits == int(name[0]):
            made.put("quantization", name)
    if bits not in (None, 4, 8):
        made.notes.append(("quantization_bit", bits, "4bit and 8bit are offered"))
    flash = rest.pop("flash_attn", None)
    if rest.pop("use_flash_attention_2", False):
        flash = "fa2"
    if flash is not None and ATTENTION.get(str(flash), str(flash)):
        made.put("attn_implementation", ATTENTION.get(str(flash), str(flash)))
    adapter = rest.get("use_peft", rest.get("finetuning_type") == "lora")
    target = rest.get("lora_target_modules", rest.get("lora_target"))
    if not adapter:
        for key in [key for key in rest if key.startswith("lora_")]:
            made.notes.append((key, rest.pop(key), "no adapter is asked for (use_peft, finetuning_type)"))
    elif isinstance(target, str) and target != "all-linear":
        names = [name.strip() for name in target.split(",")]
        key = "lora_target_modules" if "lora_target_modules" in rest else "lora_target"
        rest[key] = "all-linear" if names == ["all"] else names
    if adapter:
        rank = made.options["lora"] = {"r": rest.pop("lora_rank", 8 if factory else 16)}
        rank["r"] = rest.pop("lora_r", rank["r"])
        made.options["lora"] |= {"alpha": 2 * rank["r"]} if factory else {"alpha": 32, "dropout": 0.05}
        if target is None and not factory:
            made.notes.append(("lora_target_modules", None, "there peft's choice for the model, here all-linear"))
    if rest.get("warmup_steps"):
        rest.pop("warmup_ratio", None)  # which it overrules there
    elif "warmup_ratio" in rest:
        rest.pop("warmup_steps", None)
    rows = rest.pop("precompute_ref_batch_size", None)
    if rows is not None:
        longest = rest.get("max_length") or 1024
        made.put("training.precompute_ref_batch_tokens", 2 * rows * longest)


def _datasets(rest: dict[str, Any], made: Converted, factory: bool) -> None:
    """Read which data are trained and evaluated on."""
    evaluated = rest.get("eval_strategy", rest.get("evaluation_strategy", "no")) not in ("no", False)
    evaluated = evaluated or bool(rest.get("do_eval"))
    mixture = rest.pop("dataset_mixture", None) or {}
    listed = rest.pop("datasets", None) or mixture.get("datasets")
    mixer = rest.pop("dataset_mixer", None)
    splits = rest.pop("dataset_splits", None) or ["train", "test"]
    name = rest.pop("dataset_name", mixture.get("dataset_name"))
    options = {"name": rest.pop("dataset_config", None), "streaming": rest.pop("dataset_streaming", None)}
    train = rest.pop("dataset_train_split", mixture.get("dataset_train_split", "train"))
    test = rest.pop("dataset_test_split", mixture.get("dataset_test_split", "test"))
    if factory:
        for part in ("dataset", "eval_dataset"):
            if (given := rest.pop(part, None)) is not None:
                made.blanks[part] = given
        return
    if listed:
        made.options["dataset"] = [_listed(one, made) for one in listed]
    elif mixer:
        names = dict(mixer) if isinstance(mixer, Mapping) else dict.fromkeys(mixer, 1.0)
        if any(share != 1.0 for share in names.values()):
            why = "there shares of each data set's rows, here weights by which rows are drawn"
            made.notes.append(("dataset_mixer", mixer, why))
        for part, of in (("dataset", "train"), ("eval_dataset", "test")):
            named = [split for split in splits if of in split]
            sources = [
                {"source": one, "split": split} | ({} if share == 1.0 else {"weight": share})
                for one, share in names.items()
                for split in named
            ]
            if sources and (part == "dataset" or evaluated):
                made.options[part] = sources[0] if len(sources) == 1 else sources
    elif name is not None:
        more = {key: value for key, value in options.items() if value is not None}
        made.options["dataset"] = {"source": name, "split": train, **more}
        if evaluated:
            made.options["eval_dataset"] = {"source": name, "split": test, **more}
    for key in ("test_split_size", "seed"):
        if mixture.get(key) is not None:
            made.notes.append((f"dataset_mixture.{key}", mixture[key], MISSING.get(key, "training.seed draws them")))


def _listed(one: Mapping[str, Any], made: Converted) -> dict[str, Any]:
    names: Sequence[tuple[str, str]] = (("id", "source"), ("path", "source"), ("config", "name"), ("name", "name"))
    found = {own: one[key] for key, own in (*names, ("split", "split"), ("weight", "weight")) if one.get(key)}
    for key in [key for key in one if key not in dict(names) and key not in ("split", "weight")]:
        why = "columns keep the names prompt, chosen and rejected" if key == "columns" else "not known here"
        made.notes.append((f"datasets.{key}", one[key], why))
    return found
