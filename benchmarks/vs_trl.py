"""A step of RPO against TRL's DPOTrainer: `python benchmarks/vs_trl.py [--dtype bfloat16] [--model ...]`.

Same weights, tokens, batches and optimizer (AdamW, fused, float32 state) on both sides, losses asserted
equal in float32: TRL's SFT term gets the weight that makes it RPO's on each batch. A step is everything from the
pairs' tokens to the update: collate, forward, backward, AdamW. The learning rate is 0, so that every
variant and batch starts from the same weights, and the reference is the policy with its last norm
moved by 2 %, so that the preference term is not ln 2 for everyone. Variants take turns on every batch in
one process; a ratio is of two variants' times on one batch. Peak memory is of one process a variant. Gradient
checkpointing, TRL's default, is off on both sides unless asked for.

TRL: default; cached (reference precomputed); cached, grouped (batches of similar lengths, from the
same pairs: totals are compared); patched head (its fused head scores completion positions only, as it
does on CUDA; on a CPU it scores every position). Ours: the paths of `choose_path`.

The floor is the matrix products a step needs with every prompt once (linear layers, attention, head at
response tokens; forward and backward) over the rate of the machine in the same run: on square
matrices, and on the model's own shapes. Writes results/vs_trl_<device>_<dtype>.json.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers

from rpo.core.conversions import trl_batch_weight
from rpo.core.objectives import RPO
from rpo.core.records import environment, jsonable
from rpo.llm.collate import group_of
from rpo.llm.data import TokenizedPair, load_preferences, prepare_pairs
from rpo.llm.packing import choose_path
from rpo.llm.scoring import Path as ScoringPath
from rpo.llm.scoring import PromptGroup

HERE = Path(__file__).parent
PAIRS = HERE.parent / "examples" / "smollm2" / "pairs.jsonl"
OBJECTIVE = RPO(beta=0.1, eta=0.05)
# Relative. bfloat16 rounds differently in every layout, TRL's and ours alike about 1e-2 from float32; there a batch is
# first held against TRL in float32, and what it comes to in bfloat16 is reported.
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
LLAMA: dict[str, dict[str, int]] = {  # random weights, the shapes of Llama 3.2 1B and 3.1 8B, and one for tests
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 128},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 128_256},
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 128_256},
}  # fmt: skip
TIED = {"llama-1b"}
# Tokens of prompts and responses as in UltraFeedback: log-normal, (median, sigma, most).
PROMPT_LENGTHS, RESPONSE_LENGTHS = (110, 0.9, 1024), (250, 0.7, 1024)
DENSE_BF16_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}

Batch = Sequence[TokenizedPair]


# --- model and pairs -------------------------------------------------------------------------------


def make_model(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Return the policy in training mode and its tokenizer."""
    if arguments.model in LLAMA:
        fields: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
        fields |= LLAMA[arguments.model] | {"tie_word_embeddings": arguments.model in TIED}
        torch.manual_seed(0)
        with torch.device(arguments.device):
            model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
        tokenizer = word_tokenizer()
    else:
        options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
        model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    model = model.to(arguments.device).train()
    if arguments.lora:
        import peft

        model.to(getattr(torch, arguments.dtype))
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=arguments.lora, target_modules="all-linear")
        model = peft.get_peft_model(model, config)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if arguments.lora:
            model.enable_input_require_grads()
    return model, tokenizer


def word_tokenizer() -> Any:
    """Return a tokenizer of a few words: TRL's trainer asks for one, though the tokens are given."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "w": 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_reference(policy: Any) -> Any:
    """Return a frozen copy of the policy, its last norm moved by 2 %."""
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    norms = [module for name, module in reference.named_modules() if name.endswith("model.norm")]
    norms[-1].weight.mul_(1.02)
    return reference


def twin(model: Any) -> Any:
    """Return a second model over the same parameters: neither side sees what the other does to modules or settings."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def make_batches(arguments: argparse.Namespace, tokenizer: Any) -> list[Batch]:
    """Return the batches: of the example's pairs, or random tokens of UltraFeedback-like lengths."""
    count = (arguments.batches + 1) * arguments.pairs  # the first batch warms up
    if arguments.model in LLAMA:
        vocabulary = LLAMA[arguments.model]["vocab_size"]
        scale = 0.05 if arguments.model == "tiny" else 1.0
        pairs = random_pairs(count, vocabulary, scale)
    else:
        rows = prepare_pairs(load_preferences(arguments.data), tokenizer, max_length=arguments.max_length)
        pairs = [pair for pair in rows if len(pair.prompt_ids + pair.chosen_ids) >= arguments.min_tokens]
        if len(pairs) < count:
            raise SystemExit(f"{len(pairs)} pairs of {arguments.min_tokens} tokens or more, {count} needed.")
        order = np.random.default_rng(0).permutation(len(pairs))
        pairs = [pairs[k] for k in order[:count]]
    return [pairs[k : k + arguments.pairs] for k in range(0, count, arguments.pairs)]


def random_pairs(count: int, vocabulary: int, scale: float = 1.0) -> list[TokenizedPair]:
    """Return pairs of random tokens; scale: of the lengths."""
    rng = np.random.default_rng(0)

    def draw(lengths: tuple[int, float, int]) -> tuple[int, ...]:
        middle, sigma, most = lengths
        size = int(np.clip(scale * rng.lognormal(np.log(middle), sigma), 2, most))
        return tuple(rng.integers(4, vocabulary, size=size).tolist())

    return [
        TokenizedPair(draw(PROMPT_LENGTHS), draw(RESPONSE_LENGTHS), draw(RESPONSE_LENGTHS), row=row)
        for row in range(count)
    ]


def grouped(batches: Sequence[Batch], size: int) -> list[Batch]:
    """Return the pairs of the batches, the first kept as it is, cut anew by length."""
    pairs = sorted((pair for batch in batches[1:] for pair in batch), key=padded_length)
    return [batches[0], *(pairs[k : k + size] for k in range(0, len(pairs), size))]


def padded_length(pair: TokenizedPair) -> int:
    """Return the tokens of the longer of a pair's two sequences."""
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


# --- what a step needs --------------------------------------------------------------------------------


def needed_flops(model: Any, groups: Sequence[PromptGroup], *, shared: bool, reference: bool) -> float:
    """Return the floating-point operations of the matrix products of one step, two a multiply-add.

    shared: every prompt is fed once. reference: with a forward pass of the reference. Linear layers and the head
    forward, for inputs and, where they are trained, for weights; attention over visible pairs; no padding,
    nothing computed twice.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, head = base.config.get_text_config(), base.get_output_embeddings()
    fed = attended = predicted = 0
    for prompt, responses in groups:
        p = len(prompt)
        predicted += sum(map(len, responses))
        sizes = [len(response) - 1 for response in responses]
        fed += sum(sizes) + (p if shared else p * len(sizes))
        prompts = p * (p + 1) // 2
        attended += sum(n * p + n * (n + 1) // 2 for n in sizes) + (prompts if shared else prompts * len(sizes))
    total = 0.0
    for module in base.modules():
        if isinstance(module, torch.nn.Linear):
            passes = 2 + module.weight.requires_grad + reference
            total += 2 * module.weight.numel() * passes * (predicted if module is head else fed)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    products = 2 * (3 + reference)  # queries by keys, weights by values; twice as many backward
    return total + 2 * products * attended * config.num_attention_heads * width * config.num_hidden_layers


def gemm_rate(shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype, device: str) -> float:
    """Return floating-point operations a second of products (M, K) x (K, N), best of three each."""
    operations = seconds = 0.0
    for m, k, n in shapes:
        left, right = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
        times = []
        for _ in range(3):
            start = clock(device)
            left @ right
            times.append(clock(device) - start)
        operations, seconds = operations + 2.0 * m * k * n, seconds + min(times)
    return operations / seconds


def own_shapes(model: Any, groups: Sequence[PromptGroup]) -> list[tuple[int, int, int]]:
    """Return the products of one layer and the head for a batch: forward, for inputs, for weights."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head, layer = base.get_output_embeddings(), base.get_decoder().layers[0]
    predicted = sum(len(response) for group in groups for response in group.responses)
    fed = sum(len(group.prompt_ids) - len(group.responses) for group in groups) + predicted
    weights = [(fed, module.weight.shape) for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    found = []
    for m, (outputs, inputs) in [*weights, (predicted, head.weight.shape)]:
        found += [(m, inputs, outputs), (m, outputs, inputs), (outputs, m, inputs)]
    return found


# --- the two sides --------------------------------------------------------------------------------------


class Side:
    """A policy, its reference and one optimizer, and the step every variant takes with them."""

    def __init__(self, arguments: argparse.Namespace, model: Any, reference: Any, optimizer: Any) -> None:
        self.device, self.model, self.reference, self.optimizer = arguments.device, model, reference, optimizer
        self.dtype = getattr(torch, arguments.dtype)

    def autocast(self) -> Any:
        """Return the context both sides compute in."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def step(self, loss: Callable[[], torch.Tensor]) -> tuple[float, float]:
        """Return the seconds and the loss of one step: `loss()` collates and runs forward."""
        self.optimizer.zero_grad(set_to_none=True)
        start = clock(self.device)
        value = loss()
        value.backward()
        self.optimizer.step()
        return clock(self.device) - start, value.item()


class Ours(Side):
    """The paths of rpo.llm, reference live or cached."""

    def __init__(self, path: str, *rest: Any, cached: bool, pad_token_id: int) -> None:
        super().__init__(*rest)
        self.path: ScoringPath = choose_path(self.model, pad_token_id, path)
        self.cached = cached
        self.known: dict[int, torch.Tensor] = {}

    def reference_logps(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return log-probabilities under the reference, (B, 2)."""
        with torch.no_grad(), self.autocast():
            return self.path.logps(self.reference, inputs)

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the batch on the device."""
        return {name: t.to(self.device) for name, t in self.path.collate([group_of(pair) for pair in batch]).items()}

    def prepare(self, batches: Sequence[Batch]) -> None:
        """Score the reference before anything is timed, if it is cached."""
        if self.cached:
            for batch in batches:
                for pair, logps in zip(batch, self.reference_logps(self.inputs(batch)), strict=True):
                    self.known[pair.row] = logps

    def __call__(self, batch: Batch) -> tuple[float, float]:
        """Take one step."""

        def loss() -> torch.Tensor:
            inputs = self.inputs(batch)
            fixed = torch.stack([self.known[p.row] for p in batch]) if self.cached else self.reference_logps(inputs)
            with self.autocast():
                logps = self.path.logps(self.model, inputs)
            return OBJECTIVE(*logps.unbind(1), *fixed.unbind(1))[0]

        return self.step(loss)

    def fed(self, batch: Batch) -> int:
        """Return the tokens the policy is fed, padding included."""
        return self.inputs(batch)["input_ids"].numel()


class TRL(Side):
    """TRL's DPOTrainer, sigmoid and sft losses; patched: its head scores completion positions on a CPU too."""

    def __init__(self, trainer: Any, *rest: Any, cached: bool, patched: bool) -> None:
        super().__init__(*rest)
        self.trainer, self.cached, self.patched = trainer, cached, patched
        self.known: dict[int, tuple[float, float]] = {}

    @contextlib.contextmanager
    def as_configured(self) -> Iterator[None]:
        """Set the trainer, shared by the variants, for this one."""
        self.trainer.precompute_ref_logps = self.cached
        with contextlib.ExitStack() as stack:
            if self.patched:
                stack.enter_context(mock.patch("trl.trainer.utils._use_triton", return_value=True))
            stack.enter_context(self.autocast())
            yield

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the batch as TRL's collator makes it, on the device."""
        rows: list[dict[str, Any]] = [
            {"prompt_ids": [*p.prompt_ids], "chosen_ids": [*p.chosen_ids], "rejected_ids": [*p.rejected_ids]}
            for p in batch
        ]
        for row, pair in zip(rows, batch, strict=True):
            if pair.row in self.known:
                row["ref_chosen_logps"], row["ref_rejected_logps"] = self.known[pair.row]
        return {name: tensor.to(self.device) for name, tensor in self.trainer.data_collator(rows).items()}

    def prepare(self, batches: Sequence[Batch]) -> None:
        """Score the reference before anything is timed, if it is cached."""
        if self.cached:
            for batch in batches:
                with self.as_configured():
                    logps = self.trainer.compute_ref_log_probs(self.trainer.ref_model, self.inputs(batch))
                pairs = zip(*(side.tolist() for side in logps), strict=True)
                self.known |= dict(zip((pair.row for pair in batch), pairs, strict=True))

    def __call__(self, batch: Batch) -> tuple[float, float]:
        """Take one step."""
        weight = trl_batch_weight(OBJECTIVE, [len(pair.chosen_ids) for pair in batch])
        self.trainer.loss_weights = [1.0, weight]

        def loss() -> torch.Tensor:
            inputs = self.inputs(batch)
            with self.as_configured():
                return self.trainer.compute_loss(self.model, inputs)

        return self.step(loss)

    def fed(self, batch: Batch) -> int:
        """Return the tokens the policy is fed, padding included."""
        return self.inputs(batch)["input_ids"].numel()


def make_trl(arguments: argparse.Namespace, model: Any, reference: Any, tokenizer: Any, folder: str) -> Any:
    """Return a DPOTrainer around the models, made with one row of text: batches are given as tokens."""
    import datasets
    import trl

    datasets.disable_progress_bars()
    config = trl.DPOConfig(
        output_dir=folder,
        beta=OBJECTIVE.beta,
        loss_type=["sigmoid", "sft"],
        max_length=None,
        gradient_checkpointing=arguments.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=arguments.device == "cpu",
        bf16=False,  # autocast is ours, the same on both sides
        report_to=[],
    )
    row = {"prompt": "w ", "chosen": "w w", "rejected": "w"}
    return trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=config,
        train_dataset=datasets.Dataset.from_list([row]),
        processing_class=tokenizer,
    )


OURS = {  # path, cached
    f"ours, {path}, {kind}": (path, kind == "cached")
    for kind in ("live", "cached")
    for path in ("padded", "packed", "shared")
}
THEIRS = {  # cached, patched, batches grouped by length
    "TRL default": (False, False, False),
    "TRL cached": (True, False, False),
    "TRL cached, grouped": (True, False, True),
    "TRL default, patched head": (False, True, False),
    "TRL cached, patched head": (True, True, False),
}


def names(arguments: argparse.Namespace) -> list[str]:
    """Return the variants; on CUDA TRL's head needs no patch."""
    possible = [name for name in (*THEIRS, *OURS) if arguments.device == "cpu" or "patched" not in name]
    return [name for name in possible if name in arguments.variants] if arguments.variants else possible


def make_variants(arguments: argparse.Namespace, wanted: Sequence[str], folder: str) -> tuple[dict[str, Side], Any]:
    """Return the variants by name, over one set of weights; and the policy with its tokenizer."""
    policy, tokenizer = make_model(arguments)
    reference = make_reference(policy)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
    made: dict[str, Side] = {}
    if any(name in OURS for name in wanted):
        models = (twin(policy), twin(reference)) if len(wanted) > 1 else (policy, reference)
        for name, (path, cached) in OURS.items():
            if name in wanted:
                pad = tokenizer.pad_token_id or 0
                made[name] = Ours(path, arguments, *models, optimizer, cached=cached, pad_token_id=pad)
    if any(name in THEIRS for name in wanted):
        trainer = make_trl(arguments, policy, reference, tokenizer, folder)
        for name, (cached, patched, _) in THEIRS.items():
            if name in wanted:
                made[name] = TRL(
                    trainer, arguments, trainer.model, trainer.ref_model, optimizer, cached=cached, patched=patched
                )
    return {name: made[name] for name in wanted}, (policy, tokenizer)


# --- measuring ---------------------------------------------------------------------------------------------


def clock(device: str) -> float:
    """Return seconds, after all that was asked of the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mib(device: str) -> float:
    """Return this process's peak memory in MiB, of the GPU where there is one."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")  # getrusage would count the parent's pages, inherited when it forked
    if status.is_file():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return times, losses and counts of every variant on every batch, and the machine's rates."""
    wanted = names(arguments)
    with tempfile.TemporaryDirectory() as folder:
        variants, (policy, tokenizer) = make_variants(arguments, wanted, folder)
    batches = make_batches(arguments, tokenizer)
    by_length = grouped(batches, arguments.pairs)
    exact = None if arguments.lora else float32_error(variants, batches[0])
    for variant in variants.values():
        variant.prepare(batches)
    rows: dict[str, dict[str, Any]] = {name: {"seconds": [], "fed": [], "loss": []} for name in wanted}
    rates: dict[str, list[float]] = {"square": [], "own_shapes": []}
    floors: dict[str, list[float]] = {"cached": [], "live": []}
    side, dtype = (8192 if arguments.device == "cuda" else 2048), getattr(torch, arguments.dtype)
    if arguments.model == "tiny":
        side = 64
    for turn, (batch, similar) in enumerate(zip(batches, by_length, strict=True)):
        groups = [group_of(pair) for pair in batch]
        if turn:
            rates["square"].append(gemm_rate([(side, side, side)], dtype, arguments.device))
            rates["own_shapes"].append(gemm_rate(own_shapes(policy, groups), dtype, arguments.device))
            for kind, times in floors.items():
                times.append(needed_flops(policy, groups, shared=True, reference=kind == "live"))
        order = wanted[turn % len(wanted) :] + wanted[: turn % len(wanted)]
        for name in order:
            regrouped = name in THEIRS and THEIRS[name][2]
            seconds, loss = variants[name](similar if regrouped else batch)
            if turn:  # the first batch warms up
                row = rows[name]
                row["seconds"].append(seconds)
                row["loss"].append(loss)
                row["fed"].append(variants[name].fed(similar if regrouped else batch))
                print(f"batch {turn} {name}: {seconds:.3f} s, loss {loss:.6f}", file=sys.stderr, flush=True)
    tokens = [sum(2 * len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in b) for b in batches[1:]]
    for variant in variants.values():
        if isinstance(variant, Ours):
            rows[next(n for n, v in variants.items() if v is variant)]["path"] = variant.path.name
    return {"variants": rows, "rates": rates, "flops": floors, "tokens": tokens, "loss_error_float32": exact}


def float32_error(variants: dict[str, Any], batch: Batch) -> float:
    """Return the largest relative difference of a loss from TRL's default, all in float32; stop at one too large."""
    found = {}
    for name, variant in variants.items():
        dtype, variant.dtype = variant.dtype, torch.float32
        variant.prepare([batch])
        found[name] = {"loss": [variant(batch)[1]]}
        variant.dtype = dtype
    return check_losses({"variants": found}, "float32")


def check_losses(found: dict[str, Any], dtype: str) -> float:
    """Return the largest relative difference of a loss from TRL's default; stop at one beyond the tolerance."""
    expected = found["variants"]["TRL default"]["loss"]
    worst = 0.0
    for name, row in found["variants"].items():
        if name in THEIRS and THEIRS[name][2]:
            continue  # other batches
        off = max(abs(a - b) / abs(b) for a, b in zip(row["loss"], expected, strict=True))
        if not off <= LOSS_TOLERANCE[dtype]:
            raise SystemExit(
                f"{name}: its loss is not TRL's, off by {off:.1e} (tolerance {LOSS_TOLERANCE[dtype]:.0e})."
            )
        worst = max(worst, off)
    return worst


def ratio(found: dict[str, Any], baseline: str, name: str) -> list[float]:
    """Return median, least and largest quotient of the times on one batch; of totals only, where batches differ."""
    slow, fast = (found["variants"][which]["seconds"] for which in (baseline, name))
    if any(which in THEIRS and THEIRS[which][2] for which in (baseline, name)) and baseline != name:
        return [sum(slow) / sum(fast)]
    quotients = [a / b for a, b in zip(slow, fast, strict=True)]
    return [median(quotients), min(quotients), max(quotients)]


def summarise(found: dict[str, Any], memory: dict[str, float], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return one record a variant: times, ratios, share of the floor, memory, tokens a second."""
    rates = {name: median(values) for name, values in found["rates"].items()}
    baselines = [name for name in THEIRS if name in found["variants"]]
    records = {}
    for name, row in found["variants"].items():
        cached = OURS[name][1] if name in OURS else THEIRS[name][0]
        flops = found["flops"]["cached" if cached else "live"]
        record: dict[str, Any] = {
            "seconds": median(row["seconds"]),
            "fed_tokens": int(sum(row["fed"])),
            "tokens_per_second": sum(found["tokens"]) / sum(row["seconds"]),
            "peak_mib": memory.get(name),
            "ratios": {baseline: ratio(found, baseline, name) for baseline in baselines},
            "of_floor": {kind: sum(flops) / rate / sum(row["seconds"]) for kind, rate in rates.items()},
        }
        if "path" in row:
            record["path"] = row["path"]
        peak = next((f for kind, f in DENSE_BF16_FLOPS.items() if kind in device_name(arguments.device)), None)
        if peak is not None:
            record["model_flops_utilisation"] = sum(flops) / sum(row["seconds"]) / peak
        records[name] = record
    return {"rates": rates, "variants": records}


def device_name(device: str) -> str:
    """Return the GPU's name, or how many threads the CPU was given."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def markdown(record: dict[str, Any]) -> str:
    """Return the table of a record as written by `main`."""
    baselines = [name for name in ("TRL default", "TRL cached", "TRL cached, grouped", "TRL cached, patched head")
                 if name in record["variants"]]  # fmt: skip
    heads = ["variant", "s a step", "tokens fed", *(f"x {name}" for name in baselines), "peak MiB", "% of floor"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, row in record["variants"].items():
        ratios = []
        for baseline in baselines:
            middle, *ends = row["ratios"][baseline]
            ratios.append(f"{middle:.2f}" + (f" ({ends[0]:.2f}-{ends[1]:.2f})" if ends else ""))
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}"
        floor = f"{100 * row['of_floor']['square']:.0f} ({100 * row['of_floor']['own_shapes']:.0f})"
        cells = [name, f"{row['seconds']:.3f}", f"{row['fed_tokens']:,}", *ratios, peak, floor]
        lines.append("| " + " | ".join(cells) + " |")
    rates = {name: rate / 1e9 for name, rate in record["rates"].items()}
    exact = record["measured"]["loss_error_float32"]
    exact = "" if exact is None or record["dtype"] == "float32" else f" ({exact:.0e} in float32)"
    lines.append("")
    lines.append(
        f"{record['device']}, {record['dtype']}, {record['model']}, {record['batches']} batches of {record['pairs']} "
        f"pairs, {record['tokens']:,} tokens. x: the baseline's time over the variant's on the same batch, median "
        f"(range). Floor: products needed at {rates['square']:,.0f} GFLOP/s (square matrices; in parentheses at "
        f"{rates['own_shapes']:,.0f}, the model's shapes); {record['tflop_cached']:.2f} TFLOP with the reference "
        f"cached, {record['tflop_live']:.2f} live. Losses equal to {record['loss_error']:.0e}{exact}."
    )
    return "\n".join(lines)


def memory_of(name: str, arguments: argparse.Namespace) -> float:
    """Return the peak of a process of its own that takes two steps with the batch of most tokens as one variant."""
    given = [item for item in sys.argv[1:] if item != "--smoke"] if arguments.argv is None else arguments.argv
    command = [sys.executable, __file__, *given, "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def only(name: str, arguments: argparse.Namespace) -> None:
    """Take steps as one variant and print the peak memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        variants, (_, tokenizer) = make_variants(arguments, [name], folder)
    batches = make_batches(arguments, tokenizer)
    if name in THEIRS and THEIRS[name][2]:
        batches = grouped(batches, arguments.pairs)
    largest = max(batches, key=lambda batch: sum(map(padded_length, batch)))
    variant: Any = variants[name]
    variant.prepare([largest])
    if variant.cached:  # the policy alone
        variant.reference = None
        if isinstance(variant, TRL):
            variant.trainer.ref_model = None
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        variant(largest)
    print(peak_mib(arguments.device))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments, those given kept for processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("RPO_SMOLLM2", ""), help=f"a folder, or one of {[*LLAMA]}")
    parser.add_argument("--data", default=str(PAIRS), help="preference pairs, for a model with a tokenizer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of matrix products")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=4, help="pairs a batch")
    parser.add_argument("--min-tokens", type=int, default=0, help="of prompt and chosen response together")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--lora", type=int, default=0, help="train an adapter of this rank on weights of --dtype")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--variants", nargs="+", choices=[*THEIRS, *OURS], metavar="NAME", help="these only")
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure peak memory")
    parser.add_argument("--output", default=None, help="the JSON file; by default in results/, none with --smoke")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one batch; nothing is written")
    parser.add_argument("--only", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.argv = None if argv is None else list(argv)
    if arguments.smoke:
        arguments.model, arguments.batches = "tiny", 1
    if not arguments.model:
        parser.error("--model: expected a folder (or set RPO_SMOLLM2: rpo convert-gguf makes one) or a name")
    torch.set_num_threads(arguments.threads)
    return arguments


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, check, print, write; return the record."""
    arguments = parse(argv)
    transformers.logging.set_verbosity_error()
    if arguments.only is not None:
        only(arguments.only, arguments)
        return {}
    memory = {} if arguments.no_memory else {name: memory_of(name, arguments) for name in names(arguments)}
    found = measure(arguments)
    flops = found["flops"]
    record = {
        "environment": environment(),
        "load_average": os.getloadavg(),
        "device": device_name(arguments.device),
        "dtype": arguments.dtype,
        "model": Path(arguments.model).name,
        "lora": arguments.lora,
        "gradient_checkpointing": arguments.gradient_checkpointing,
        "batches": arguments.batches,
        "pairs": arguments.pairs,
        "tokens": sum(found["tokens"]),
        "tflop_cached": sum(flops["cached"]) / 1e12,
        "tflop_live": sum(flops["live"]) / 1e12,
        "loss_error": check_losses(found, arguments.dtype),
        **summarise(found, memory, arguments),
        "measured": found,
    }
    print(markdown(record))
    if not arguments.smoke or arguments.output:
        kind = f"vs_trl_{arguments.device}_{arguments.dtype}"
        if arguments.model in LLAMA:
            kind += f"_{arguments.model}"
        if arguments.pairs != 4:
            kind += f"_{arguments.pairs}pairs"
        path = Path(arguments.output or HERE / "results" / f"{kind}.json")
        path.write_text(json.dumps(jsonable(record), indent=2) + "\n")
        print(f"written to {path}")
    return record


if __name__ == "__main__":
    main()
