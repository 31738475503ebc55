"""The sections of `rpo train --help`: what a first run is set by. The rest is under `rpo train --help all`."""

from __future__ import annotations

from rpo.commands.help_page import Sections

SECTIONS: Sections = {
    "model and data": {
        "model": None,
        "dataset": None,
        "eval_dataset": "as dataset; evaluated at the end, or as training.eval_strategy says",
        "training.output_dir": "folder for the model, checkpoints, run.json and config.yaml (required)",
        "ref_model": "another model as reference; null for the model as it is before training",
        "lora": "adapter: {r: 16, alpha: 32, dropout: 0, target_modules: all-linear}; null trains every weight",
        "resume": "true: the newest checkpoint; auto: it, if there is one; or a checkpoint",
        "label": None,
    },
    "method (beta, eta and the like are set here, never under training)": {"objective": None, "objective.": None},
    "length and learning rate": {
        "training.num_train_epochs": "passes over the data",
        "training.max_steps": "updates, in place of passes; -1: num_train_epochs holds",
        "training.learning_rate": None,
        "training.lr_scheduler_type": "linear, cosine, constant, constant_with_warmup ...",
        "training.warmup_steps": "updates until the peak, or a share of all below 1",
        "training.seed": "of the order of the data, the adapter and dropout",
    },
    "batches and memory": {
        "training.per_device_train_batch_size": "pairs in a micro-batch, on each device",
        "training.gradient_accumulation_steps": "micro-batches in an update",
        "training.max_tokens_per_batch": None,
        "training.gradient_checkpointing": "recompute activations: less memory, a quarter slower",
        "training.bf16": "compute in bfloat16; the weights keep their type",
        "dtype": "of the weights; null: float32, under lora the one stored",
        "quantization": "4bit or 8bit weights under lora (CUDA, bitsandbytes)",
    },
    "texts": {
        "training.max_length": None,
        "training.truncation_mode": "keep_end: cut prompts from the left, then responses; drop: leave the row out",
        "training.on_refused": "a row that cannot be used: error, or drop (counted)",
    },
    "log, evaluation, checkpoints": {
        "log": "what is printed: short (five numbers a log), full, or none",
        "training.logging_steps": None,
        "training.report_to": "none, or trackers: wandb, tensorboard, trackio ...",
        "training.eval_strategy": "when to evaluate besides the end: no, steps, epoch",
        "training.eval_steps": "with steps: every so many updates",
        "training.save_strategy": "when to save checkpoints: steps, epoch, no",
        "training.save_steps": "with steps: every so many updates",
        "training.save_total_limit": "checkpoints kept; null keeps all",
    },
    "reference and diagnostics": {
        "training.precompute_ref_log_probs": "score the data under the reference once, before training",
        "training.ref_logps_cache": "file of those values, to share between runs",
        "training.kl_steps": "sample responses and log the KL to the reference every so many updates; 0: never",
        "training.displacement_threshold": "stop when more than this share of chosen responses lost probability",
    },
}
EPILOGUE = (
    "rpo train --help all lists every option; docs/methods.md the methods. In YAML: training: {max_steps: 30}, "
    "objective: {name: SimPO, gamma: 1}."
)
