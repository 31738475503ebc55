"""Openings of film reviews, for a model to continue: the controlled-sentiment task without a data set."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from rpo.core import checks
from rpo.core.errors import InvalidArgument
from rpo.core.lines import read_lines

OPENINGS = (
    "I watched {} last night and",
    "The acting in {}",
    "If you ask me, {}",
    "My honest opinion of {} is that",
    "After two hours, {}",
    "The ending of {}",
    "What surprised me about {}",
    "My sister and I saw {} and",
    "Everyone was talking about {}, but",
    "There is one scene in {} where",
    "I had waited a year for {}, and",
    "The script of {}",
    "Halfway through {}",
    "The music in {}",
    "Nobody told me that {}",
    "I would describe {} as",
)
SUBJECTS = (
    "this thriller",
    "the new space drama",
    "this low-budget comedy",
    "the documentary about whales",
    "the remake",
    "this courtroom drama",
    "the animated musical",
    "that western",
    "this ghost story",
    "the sequel",
    "the film about the chess player",
    "this silent film",
    "the war epic",
    "this romantic comedy",
    "the heist movie",
    "the film everyone walked out of",
    "this detective story",
    "the opening film of the festival",
    "that three-hour biography",
    "the children's film",
    "this black-and-white drama",
    "the film my teacher chose",
    "the science fiction series",
    "this road movie",
)


def review_openings() -> list[str]:
    """Return the 384 openings shipped, in a fixed order."""
    return [opening.format(subject) for opening, subject in product(OPENINGS, SUBJECTS)]


def split_prompts(prompts: list[str], *, train: int, evaluation: int, seed: int) -> tuple[list[str], list[str]]:
    """Return `train` and `evaluation` different prompts, drawn without replacement. Raises InvalidArgument."""
    distinct = list(dict.fromkeys(checks.instances("prompts", prompts, str)))
    needed = checks.integer("train", train, minimum=1) + checks.integer("evaluation", evaluation, minimum=2)
    if needed > len(distinct):
        raise InvalidArgument(
            "train_prompts + eval_prompts",
            expected=f"at most {len(distinct)}, the different prompts there are",
            got=needed,
            remedy="Ask for fewer, or pass a file with more prompts.",
        )
    drawn = checks.generator("seed", seed).permutation(len(distinct))[:needed].tolist()
    return [distinct[k] for k in drawn[:train]], [distinct[k] for k in drawn[train:]]


def read_prompts(path: str | Path) -> list[str]:
    """Return the lines of a text file that are not blank. Raises InvalidArgument."""
    expected = "a readable UTF-8 text file, a prompt a line"
    return [line for line in read_lines("prompts", path, expected=expected) if line.strip()]
