"""Every training recipe: read by the real parser, commented at each key; the paper's against docs/paper_index.md."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from rpo.cli import COMMANDS, build_parser, main
from rpo.commands.sweep import cells, taken_out
from rpo.core.conversions import from_authors_averaged, from_official

ROOT = Path(__file__).parents[1]
RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").rglob("train_*.yaml"))}
ACCELERATE = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
COLUMNS = {
    "beta series": "train_zephyr_beta_rpo",
    "gemma series": "train_zephyr_gemma_rpo",
    "averaged": "train_zephyr_gemma_rpo_averaged",
}


def parsed(name: str) -> dict[str, Any]:
    """Return every option of the recipe by its dotted name, defaults included."""
    _, parser = build_parser("train")
    options = parser.parse_args(["--config", str(RECIPES[name])])
    options.pop("config")
    return dict(options.items())


def written(name: str) -> dict[str, Any]:
    """Return the keys that stand in the file, by dotted name."""
    content = yaml.safe_load(RECIPES[name].read_text())
    flat = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat


def table() -> dict[str, dict[str, Any]]:
    """Return recipe -> key -> value, of the table in the paper index."""
    section = (ROOT / "docs" / "paper_index.md").read_text().split("## Hyper-parameter recipes")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    head, _, *body = rows
    return {
        recipe: {row[0].strip("`"): yaml.safe_load(row[place]) for row in body if row[place]}
        for column, recipe in COLUMNS.items()
        for place in [head.index(column)]
    }


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda path: path.stem)
def test_each_recipe_parses_and_comments_every_key(recipe: Path) -> None:
    options = parsed(recipe.stem)
    for key, value in written(recipe.stem).items():
        assert options[key] == value, key
    for line in recipe.read_text().splitlines():
        if not line.startswith("#") and not line.endswith(":"):
            assert "#" in line, line


@pytest.mark.parametrize("recipe", COLUMNS.values())
def test_the_papers_recipes_are_the_table_of_the_paper_index(recipe: str) -> None:
    """In both directions: no value differs, none is missing on either side."""
    found = written(recipe)
    found.pop("training.output_dir")
    assert found == table()[recipe]


def test_the_objectives_are_those_of_the_authors_code() -> None:
    for recipe, objective in {
        "train_zephyr_beta_rpo": from_official(0.01, 0.005),
        "train_zephyr_gemma_rpo": from_official(0.05, 0.005),
        "train_zephyr_gemma_rpo_averaged": from_authors_averaged(0.5, 0.2),
    }.items():
        found = {key.split(".")[1]: value for key, value in parsed(recipe).items() if key.startswith("objective.")}
        assert {"name": "RPO", **found} == objective.to_dict()


@pytest.mark.parametrize("series", ["beta", "gemma"])
def test_a_dpo_twin_differs_in_eta_and_folder_only(series: str) -> None:
    ours, twin = parsed(f"train_zephyr_{series}_rpo"), parsed(f"train_zephyr_{series}_dpo")
    assert {key for key in ours if ours[key] != twin[key]} == {"objective.eta", "training.output_dir"}
    assert twin["objective.eta"] == 0.0


@pytest.mark.parametrize("recipe", [p for p in RECIPES.values() if "smollm2" not in p.stem], ids=lambda path: path.stem)
def test_the_global_batch_is_128_on_the_processes_of_the_accelerate_file_named(recipe: Path) -> None:
    (named,) = re.findall(r"--config_file (\S+)", recipe.read_text())
    options = parsed(recipe.stem)
    processes = load_config_from_file(str(ROOT / named)).num_processes
    each = options["training.per_device_train_batch_size"] * options["training.gradient_accumulation_steps"]
    assert processes * each == 128


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda path: path.stem)
def test_the_command_in_the_first_line_is_for_this_file(recipe: Path) -> None:
    first = recipe.read_text().splitlines()[0]
    assert first.endswith(f"train --config {recipe.relative_to(ROOT)}")


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_its_files(path: Path) -> None:
    config = load_config_from_file(str(path))
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero3": "DEEPSPEED"}
    assert config.distributed_type.value == kinds[path.stem]
    assert (config.num_processes, config.mixed_precision) == (8, "bf16")
    for line in path.read_text().splitlines():
        if not line.startswith("#") and not line.endswith(":"):
            assert "#" in line or "fsdp_" in line or "zero3_init" in line, line


def test_sharded_runs_save_a_model_and_score_the_reference_on_whole_weights() -> None:
    """The Trainer saves under FSDP only with FULL_STATE_DICT; the reference pass precedes the sharding."""
    fsdp = load_config_from_file(str(ROOT / "recipes/accelerate/fsdp2.yaml")).fsdp_config
    assert fsdp["fsdp_version"] == 2
    assert fsdp["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    assert fsdp["fsdp_cpu_ram_efficient_loading"] is False
    zero = load_config_from_file(str(ROOT / "recipes/accelerate/deepspeed_zero3.yaml")).deepspeed_config
    assert (zero["zero_stage"], zero["zero3_init_flag"], zero["zero3_save_16bit_model"]) == (3, False, True)


OTHERS = [path for path in sorted((ROOT / "recipes").rglob("*.yaml")) if path.parent.name != "accelerate"]
OTHERS = [path for path in OTHERS if not path.name.startswith("train_")]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_every_other_recipe_is_taken_by_the_command_in_its_first_line(path: Path) -> None:
    words = shlex.split(path.read_text().splitlines()[0].removeprefix("# rpo "))
    name = next(name for name in COMMANDS if words[: name.count(" ") + 1] == name.split())
    rest = words[name.count(" ") + 1 :]
    assert str(path.relative_to(ROOT)) in rest
    if path.stem.startswith("sweep_"):
        grid, others = taken_out(["--config", str(path)])
        for cell in cells(grid):
            with pytest.raises(SystemExit, match="0"):  # printed, and so taken
                main([name, *others, *cell.options(), "--print_config"])
        return
    _, parser = build_parser(name)
    options = parser.parse_args([str(path) if word == str(path.relative_to(ROOT)) else word for word in rest])
    found = dict(options.items())
    for key, value in yaml.safe_load(path.read_text()).items():
        if not isinstance(value, dict | list):
            assert found[key] == value, key
