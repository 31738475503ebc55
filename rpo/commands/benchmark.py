"""`rpo benchmark`: what AlpacaEval, MT-Bench and lm-eval take, the commands that run them, and a table of results."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rpo.core import shown
from rpo.core.errors import InvalidArgument


def alpaca_eval_command(
    output: str,
    instructions: str | None = None,
    generations: str | None = None,
    model: str | None = None,
    generator: str | None = None,
    sample: int = 0,
    reference_outputs: str | None = None,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Write prompts for AlpacaEval 2, then the outputs it judges, and print the next command.

    Args:
        output: folder for prompts.jsonl, or (with generations) model_outputs.json.
        instructions: evaluation set, alpaca_eval.json; with generations it checks that none is missing.
        generations: JSONL file of rpo generate.
        model: whose rows of generations to take, where there are several.
        generator: name on the leaderboard; null for the model's.
        sample: which response to a prompt to take.
        reference_outputs: outputs of another baseline than GPT-4 Turbo's, in the same format.
        overwrite: replace an earlier file in that folder.
    """
    from rpo.core.records import check_output, environment, staged_output, write_json
    from rpo.eval.benchmarks import alpaca_eval

    folder = Path(output)
    if generations is None:
        if instructions is None:
            raise InvalidArgument(
                "instructions",
                expected="alpaca_eval.json, to make prompts, or generations, to export them",
                got="neither",
                remedy="The file is in the data set tatsu-lab/alpaca_eval.",
            )
        check_output(folder, overwrite=overwrite, marker="prompts.jsonl")
        rows = alpaca_eval.prompt_rows(instructions)
        with staged_output(folder, overwrite=overwrite, marker="prompts.jsonl") as stage:
            _write_jsonl(stage / "prompts.jsonl", rows)
        generate = ["rpo", "generate", "--model", "MODEL", "--prompts", str(folder / "prompts.jsonl")]
        # The authors' settings, in their eval/alpaca_eval_local/src/alpaca_eval/models_configs.
        generate += ["--max_new_tokens", "2048", "--temperature", "0.7", "--output", str(folder / "generations.jsonl")]
        export = ["rpo", "benchmark", "alpaca-eval", "--instructions", instructions, "--output", str(folder)]
        print(f"{len(rows)} prompts written to {folder / 'prompts.jsonl'}. Next, with the paper's settings:")
        _print_commands([generate, [*export, "--generations", str(folder / "generations.jsonl")]])
        return
    check_output(folder, overwrite=overwrite, marker="model_outputs.json")
    outputs, export_counts = alpaca_eval.model_outputs(
        generations, model=model, generator=generator, instructions=instructions, sample=sample
    )
    judging = alpaca_eval.command(folder / "model_outputs.json", folder, reference_outputs=reference_outputs)
    with staged_output(folder, overwrite=overwrite, marker="model_outputs.json") as stage:
        write_json(stage / "model_outputs.json", outputs)
        report = {**vars(export_counts), "command": shlex.join(judging), "environment": environment()}
        write_json(stage / "export.json", report)
        (stage / "export.yaml").write_text(resolved, encoding="utf-8")
    print(shown.line(f"{export_counts.message}, written to {folder / 'model_outputs.json'}"))
    print("Next (needs alpaca-eval, with setuptools<81, and OPENAI_API_KEY; costs money):")
    _print_commands([judging, ["rpo", "benchmark", "table", str(folder)]])


def mt_bench_command(
    model: str,
    questions: str,
    output: str,
    model_id: str | None = None,
    num_choices: int = 1,
    max_new_tokens: int = 1024,
    top_p: float = 1.0,
    top_k: int = 50,
    batch_size: int = 16,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    fastchat: str = "FastChat",
    judge: str = "gpt-4",
    parallel: int = 2,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Answer MT-Bench's questions, turn by turn, and print FastChat's judging command.

    Args:
        model: name or folder of a causal language model with a chat template.
        questions: FastChat's data/mt_bench/question.jsonl, or questions of your own in that format.
        output: folder for MODEL_ID.jsonl and its report; FastChat's data/mt_bench/model_answer, for example.
        model_id: name in FastChat's files; null for the last part of model.
        num_choices: conversations per question; the judge reads the first.
        max_new_tokens: length limit of an answer, in tokens.
        top_p: sample among the likeliest tokens of this total probability.
        top_k: sample among so many likeliest tokens, 50 as FastChat's answers do by default; 0 for all.
        batch_size: conversations at a time.
        seed: the same seed gives the same answers. The temperature is that of the question's category.
        dtype: of the weights; auto keeps the one stored.
        fastchat: checkout of FastChat, for the printed command.
        judge: model that judges, for the printed command.
        parallel: questions the judge is asked at a time, for the printed command.
        overwrite: replace earlier answers of that model_id.
    """
    from rpo.core.records import check_output, environment, staged_output, write_json
    from rpo.eval.benchmarks import mt_bench

    name = model_id or Path(model).name
    if not name or "/" in name:
        raise InvalidArgument("model_id", expected="a file name", got=repr(name), remedy="Pass --model_id NAME.")
    marker = f"{name}.jsonl"
    check_output(output, overwrite=overwrite, marker=marker)
    asked = mt_bench.read_questions(questions)
    import torch

    from rpo.llm.models import load_model, load_tokenizer

    tokenizer, network = load_tokenizer(model), load_model(model, dtype=dtype)
    if torch.cuda.is_available():
        network.to("cuda")
    rows = mt_bench.generate_answers(
        network,
        tokenizer,
        asked,
        model_id=name,
        num_choices=num_choices,
        max_new_tokens=max_new_tokens,
        top_p=top_p,
        top_k=top_k,
        batch_size=batch_size,
        seed=seed,
    )
    counts = mt_bench.count_answers(rows)
    with staged_output(output, overwrite=overwrite, marker=marker) as stage:
        _write_jsonl(stage / marker, rows)
        write_json(stage / f"{name}.report.json", {**counts, "environment": environment()})
        (stage / f"{name}.config.yaml").write_text(resolved, encoding="utf-8")
    answers = Path(output) / marker
    print(", ".join(f"{value} {key}" for key, value in counts.items()) + f", written to {answers}")
    print("Next (FastChat with its extra llm_judge and OPENAI_API_KEY; costs money):")
    steps = mt_bench.commands(answers, model_id=name, fastchat=fastchat, judge=judge, parallel=parallel)
    _print_commands([*steps, ["rpo", "benchmark", "table", f"data/mt_bench/model_judgment/{judge}_single.jsonl"]])


def lm_eval_command(
    model: str,
    output: str,
    tasks: list[str] = ["gsm8k", "arc_easy", "arc_challenge"],  # noqa: B006 (never changed)
    num_fewshot: int | None = None,
    include_path: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    seed: int = 0,
    confirm_run_unsafe_code: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Run tasks of lm-evaluation-harness on a model, and save its results as a table.

    Args:
        model: name or folder of a causal language model, or folder of an adapter.
        output: folder for results.json, results.csv, results.md; the harness's own files go to a folder inside.
        tasks: names of tasks, gsm8k for example; mbpp runs code (below).
        num_fewshot: examples in the prompt; null for each task's own number.
        include_path: folder with YAML files of your own tasks.
        batch_size: examples at a time, or auto.
        dtype: of the weights; auto keeps the one stored.
        device: cpu, cuda, cuda:1 ...; null for the harness's choice.
        limit: so many examples a task, for trying out; null for all.
        apply_chat_template: ask through the tokenizer's chat template.
        seed: of the choice of examples, and of sampling.
        confirm_run_unsafe_code: run programs that the model writes (mbpp, humaneval) on this machine, unprotected.
        dry_run: print the command only.
        overwrite: replace an earlier table in that folder.
    """
    from rpo.core.records import check_output
    from rpo.eval.benchmarks import lm_eval
    from rpo.eval.benchmarks.results import save, to_markdown, unreadable

    options = lm_eval.arguments(
        model,
        tasks,
        output,
        num_fewshot=num_fewshot,
        include_path=include_path,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        limit=limit,
        apply_chat_template=apply_chat_template,
        seed=seed,
        confirm_run_unsafe_code=confirm_run_unsafe_code,
    )
    _print_commands([["lm_eval", *options]])
    if dry_run:
        return
    check_output(output, overwrite=overwrite, marker="results.json")
    results = lm_eval.run(options, output)
    save(results, output, overwrite=overwrite, resolved=resolved)
    print(to_markdown(results))
    print(*unreadable(results), f"Written to {output}", sep="\n")


def reward_bench_command(
    data: str,
    reward: str,
    output: str | None = None,
    reference: str | None = None,
    per_token: bool = False,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    level: float = 0.95,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Score pairs in RewardBench's format: how often a reward ranks the chosen response higher, by subset.

    Args:
        data: file or hub name with prompt, chosen, rejected and, for a table by subset, subset.
        reward: model:FOLDER (a reward model), implicit:FOLDER (a policy: its log-probability less the reference's),
            sentiment, length, repetition, or package.module:function.
        output: folder for results.csv, results.md and results.json; null prints the table only.
        reference: of implicit rewards, name or folder; null for rewards without a reference, as SimPO's.
        per_token: divide implicit rewards by the tokens of the response.
        dtype: of the weights of policy and reference; auto keeps the one stored.
        level: confidence of the intervals.
        overwrite: replace an earlier table in that folder.
    """
    from rpo.core.records import check_output
    from rpo.eval.benchmarks import reward_bench
    from rpo.eval.benchmarks.results import save, to_markdown
    from rpo.eval.scorers import load_scorer

    kind, _, policy = reward.partition(":")
    if kind != "implicit" and (reference is not None or per_token):
        name = "per_token" if reference is None else "reference"
        remedy = "Leave it out, or pass --reward implicit:FOLDER."
        raise InvalidArgument(name, expected="nothing beside that reward", got=reference or per_token, remedy=remedy)
    if output is not None:
        check_output(output, overwrite=overwrite, marker="results.json")
    rows = reward_bench.read_pairs(data)
    if kind == "implicit":
        import torch

        from rpo.llm.models import load_model, load_tokenizer

        models = [None if name is None else load_model(name, dtype=dtype) for name in (policy, reference)]
        for model in models if torch.cuda.is_available() else ():
            if model is not None:
                model.to("cuda")
        found = reward_bench.implicit_results(rows, models[0], load_tokenizer(policy), models[1], per_token=per_token)
    else:
        found = reward_bench.scored_results(rows, load_scorer(reward))
    results = reward_bench.accuracies(found, [row["subset"] for row in rows], reward, source=data, level=level)
    print(to_markdown(results))
    if output is not None:
        save(results, output, overwrite=overwrite, resolved=resolved)
        print(f"Written to {output}")


def table_command(
    sources: list[str],
    models: list[str] | None = None,
    output: str | None = None,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Collect results of AlpacaEval, MT-Bench and lm-eval in one table.

    Args:
        sources: files they wrote (leaderboard.csv, annotations.json, *_single.jsonl, results_*.json), or folders.
        models: names of the models to show; null for all that were evaluated.
        output: folder for results.csv, results.md and results.json.
        overwrite: replace an earlier table in that folder.
    """
    from rpo.core.records import check_output
    from rpo.eval.benchmarks.reading import read_results
    from rpo.eval.benchmarks.results import save, to_markdown, unreadable

    if output is not None:
        check_output(output, overwrite=overwrite, marker="results.json")
    results = read_results(sources, models)
    print(to_markdown(results), *unreadable(results), sep="\n")
    if output is not None:
        save(results, output, overwrite=overwrite, resolved=resolved)
        print(f"Written to {output}")


def _print_commands(commands: Sequence[Sequence[str]]) -> None:
    for command in commands:
        print("  " + shown.line(shlex.join(command)))


def _write_jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
