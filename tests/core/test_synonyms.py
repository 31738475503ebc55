"""One thing by each of its names, in Python, in a file and on the line; twice is refused; the page lists them all."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_cli_objective import lines, resolved

import rpo
from rpo.core.errors import InvalidArgument
from rpo.core.synonyms import GROUPS, own_name, own_names, with_synonyms

PAGE = (Path(__file__).parents[2] / "docs" / "notation.md").read_text(encoding="utf-8")


def test_the_page_lists_every_group() -> None:
    section = PAGE.partition("## One thing, one name")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \| `(\w+)`", section, flags=re.MULTILINE)) == GROUPS


def test_names_are_those_that_are_known() -> None:
    assert own_name("steps", {"max_steps"}) == "max_steps" and own_name("steps", {"steps", "max_steps"}) == "steps"
    assert own_name("training.steps", {"training.max_steps"}) == "training.max_steps"
    assert own_name("other.steps", {"training.max_steps"}) == "other.steps" and own_name("x", {"max_steps"}) == "x"
    assert own_names({"steps": 3, "x": 1}, {"max_steps"}) == {"max_steps": 3, "x": 1}
    with pytest.raises(InvalidArgument, match="steps: expected nothing beside max_steps, got 3"):
        own_names({"max_steps": 2, "steps": 3}, {"max_steps"})


def test_a_function_takes_both_and_keeps_its_signature() -> None:
    @with_synonyms
    def drawn(n: int, *, rng: int = 0) -> tuple[int, int]:
        """Its words."""
        return n, rng

    assert drawn(num_preferences=3, seed=4) == drawn(3, rng=4) == drawn(n=3, rng=4) == (3, 4)
    assert drawn.__doc__ == "Its words."
    with pytest.raises(TypeError):
        drawn(1, count=2)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("one", "other"),
    [({"n": 50, "rng": 1}, {"num_preferences": 50, "seed": 1})],
)
def test_preferences_and_fits_in_python(one: dict[str, Any], other: dict[str, Any]) -> None:
    problem = rpo.bandit.instances.coverage_skew(arms=3, skew=1.0, rng=0)
    pairs = [problem.sample_preferences(**given) for given in (one, other)]
    assert np.array_equal(pairs[0].count, pairs[1].count)
    runs = [
        rpo.fit(problem.softmax_policy(), pairs[0], rpo.DPO(beta=0.5), optimizer="gradient_descent", **{name: 4})
        for name in ("steps", "max_steps")
    ]
    assert len(runs[0].history) == len(runs[1].history) and np.array_equal(runs[0].policy, runs[1].policy)


TRAIN = ["train", "--model", "m", "--dataset", "d", "--training.output_dir", "o"]


@pytest.mark.parametrize(
    ("command", "given", "where", "value"),
    [
        (["compare", "--output", "o"], {"max_steps": 7}, "steps", 7),
        (["compare", "--output", "o"], {"n": 70}, "num_preferences", 70),
        (["compare", "--output", "o"], {"rng": 5}, "seed", 5),
        (["generate", "--model", "m", "--prompts", "p"], {"samples": 3}, "num_samples", 3),
        (["judge", "r.jsonl", "--judge", "scorer:length", "--output", "o"], {"num_samples": 2}, "samples", 2),
        (TRAIN, {"training.steps": 9}, "training.max_steps", 9),
        (TRAIN, {"lora.lora_alpha": 8}, "lora.alpha", 8),
        (TRAIN, {"lora.alpha": 8}, "lora.alpha", 8),
    ],
)
def test_both_names_on_the_line_and_in_a_file(
    command: list[str], given: dict[str, int], where: str, value: int, tmp_path: Path
) -> None:
    def at(options: Any) -> Any:
        for part in where.split("."):
            options = options[part]
        return options

    ((name, number),) = given.items()
    assert at(resolved(*command, f"--{name}", str(number))) == value
    home, _, end = name.rpartition(".")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({home: {end: number}} if home else {end: number}))
    assert at(resolved(command[0], "--config", str(tmp_path / "c.yaml"), *command[1:])) == value


def test_one_thing_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("steps: 3\nmax_steps: 4\n")
    assert any(
        "nothing beside steps" in line for line in lines("compare", "--config", tmp_path / "c.yaml", "--output", "o")
    )


def test_an_adapters_keywords_by_either_name() -> None:
    pytest.importorskip("peft")
    import models_for_tests

    from rpo.llm.models.adapters import with_adapter

    made = [
        with_adapter(models_for_tests.tiny_model("llama"), {"r": 2, "target_modules": ["q_proj"], name: 6}, seed=0)
        for name in ("alpha", "lora_alpha")
    ]
    assert [model.peft_config["default"].lora_alpha for model in made] == [6, 6]


def test_a_trainers_arguments_name_the_one_that_is_meant() -> None:
    from rpo.llm import RPOConfig

    with pytest.raises(InvalidArgument, match="steps: expected a field of RPOConfig, such as max_steps"):
        RPOConfig(output_dir="unused", use_cpu=True, steps=3)
