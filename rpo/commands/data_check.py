"""`rpo data check`: preference data as a model would see it."""

from __future__ import annotations

from typing import Literal

from rpo.commands.data_source import DataSource, load
from rpo.core import shown


def data_check_command(
    source: str,
    model: str,
    split: str = "train",
    name: str | None = None,
    binarize: Literal["best_vs_worst", "best_vs_random", "all_pairs"] | None = None,
    ultrafeedback: Literal["aspects", "overall_score"] | None = None,
    ranked: bool = False,
    scores: bool = False,
    seed: int = 42,
    max_length: int | None = 1024,
    max_prompt_length: int | None = None,
    truncation_mode: Literal["keep_end", "drop"] = "keep_end",
    base_column: str | None = None,
    weight_column: str | None = None,
    samples: int = 3,
    output: str | None = None,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Report on preference data as a model would see it: lengths, truncation, duplicates, ends, samples.

    Args:
        source: JSONL, JSON, CSV or Parquet file, or a hub name.
        model: name or folder of the model whose tokenizer and chat template to use.
        split: of a hub data set.
        name: its configuration, if it has several.
        binarize: make pairs of scored completions: the best against the worst, or a random lower one; or all.
        ultrafeedback: rows are UltraFeedback's or CodeUltraFeedback's: score responses by their ratings, or overall.
        ranked: lists of responses without scores or ranks stand best first.
        scores: read scores, as methods of scores do: of pairs, of lists and of responses alone.
        seed: of best_vs_random.
        max_length: limit of prompt + response, in tokens; null for none.
        max_prompt_length: a prompt is cut from the left, no shorter than this; null for half of max_length.
        truncation_mode: keep_end cuts, drop leaves the row out.
        base_column: column with the response (or several) under pi_base.
        weight_column: column with the weight of each pair.
        samples: how many pairs to show.
        output: folder for report.txt, report.json and the resolved config.yaml.
        overwrite: replace an earlier report in that folder.
    """
    from rpo.core.records import check_output, staged_output, write_json

    if output is not None:
        check_output(output, overwrite=overwrite, marker="report.json")
    from rpo.llm.data import check_pairs, prepare_pairs
    from rpo.llm.models import load_tokenizer

    tokenizer = load_tokenizer(model)
    pairs = prepare_pairs(
        load(
            DataSource(source=source, split=split, name=name, binarize=binarize, ultrafeedback=ultrafeedback),
            seed,
            on_refused="drop",
        ),
        tokenizer,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        truncation_mode=truncation_mode,
        on_refused="drop",  # a report counts them
        base_column=base_column,
        weight_column=weight_column,
        unpaired=True,
        lists=True,
        ranked=ranked,
        scores=scores,
    )
    check = check_pairs(pairs, tokenizer, samples=samples)
    text = shown.text(check.render())
    print(text)
    if output is not None:
        with staged_output(output, overwrite=overwrite, marker="report.json") as stage:
            (stage / "report.txt").write_text(text.rstrip("\n") + "\n", encoding="utf-8")
            (stage / "config.yaml").write_text(resolved, encoding="utf-8")
            write_json(stage / "report.json", {"source": source, **check.to_dict()})
        print(f"Written to {output}")
