"""`rpo convert-config`: another trainer's recipe as one of `rpo train`."""

from __future__ import annotations

from pathlib import Path

import yaml

from rpo.commands.foreign_config import convert
from rpo.commands.parsing import YAML_ERRORS, read_config
from rpo.core.errors import InvalidArgument, shown


def convert_config_command(recipe: str, resolved: str = "") -> None:
    """Print a DPO recipe of TRL, alignment-handbook or LLaMA-Factory as the YAML of rpo train.

    Args:
        recipe: their YAML file; write the output into one of yours (> train.yaml).
    """
    from rpo.llm.training.arguments import REFUSED
    from rpo.llm.training.config import RPOConfig

    if not Path(recipe).is_file():
        raise InvalidArgument("recipe", expected="a YAML file", got=recipe, remedy="Check the path.")
    try:
        given = read_config(recipe)
    except YAML_ERRORS as error:
        raise InvalidArgument("recipe", expected="YAML", got=shown(str(error)), remedy="Correct it.") from error
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise InvalidArgument("recipe", expected="keys and values", got=shown(given), remedy="Pass a recipe's file.")
    made = convert(given, RPOConfig.__dataclass_fields__, {name: why for name, (_, why) in REFUSED.items()})
    print(f"# Converted from {Path(recipe).name}.")
    if made.notes:
        print("# What is not below, or only below, and why:")
    for key, value, why in made.notes:
        print(f"#   {key}: {shown(value)} ({why})")
    if made.blanks:
        print("# Fill in a file or hub data set, with prompt, chosen and rejected, for each name of dataset_info.json:")
        print("# " + yaml.safe_dump(made.blanks, sort_keys=False, allow_unicode=True).strip().replace("\n", "\n# "))
    print(yaml.safe_dump(made.options, sort_keys=False, allow_unicode=True), end="")
