"""How a command's --help reads: sections in words, types as metavars, true defaults; and names that were meant."""

from __future__ import annotations

import difflib
import inspect
import re
from argparse import SUPPRESS, Action
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

# Title of a section -> option -> what it says there; None for what it says of itself. An option that ends in a dot
# stands for all that begin with it.
Sections = Mapping[str, Mapping[str, str | None]]
EVERYTHING = ["--help", "all"]
REQUIRED = "(required)"
PATH = "Path to a configuration file"  # jsonargparse's of a group as a whole
HIDDEN = "hidden_from_help"
METAVARS = {"int": "N", "float": "X", "str": "TEXT"}
# What the fields of methods are, where a docstring has their range alone or leaves them to its formula.
COMMON = {
    "alpha": "of the formula above",
    "beta": "scale of log-probabilities, with a reference the KL temperature",
    "clip": "the ratio stays within [1 - clip, 1 + clip]",
    "delta": "margin that is asked for",
    "desirable_weight": "of desirable responses",
    "undesirable_weight": "of undesirable responses",
    "divergence": "its name, or name and fields",
    "epsilon": "share of labels taken to be flipped",
    "eta": "weight of the reward penalty",
    "gamma": "margin that is asked for",
    "sft_reduction": "sequence_sum, sequence_mean or batch_token_mean",
    "sft_weight": "of the SFT term",
    "base": "whose log-probabilities the SFT term takes: chosen, rejected, responses, reference or custom",
}
UNRECOGNISED = re.compile(r"^(?:unrecognized arguments: --|Option '|Group '(?P<group>[\w.]+)' .* option ')([\w.-]+)")


class HelpPage(DefaultHelpFormatter):
    """An option and its type on one line, then what it is and its default; in the usage only what must be given."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36)

    def add_usage(self, usage: str | None, actions: Iterable[Action], *args: Any, **kwargs: Any) -> None:
        """Name what is required, and that there are options."""
        needed = [one for one in actions if one.required or not one.option_strings or REQUIRED in (one.help or "")]
        super().add_usage(usage, [*needed, Action(["OPTION"], "options", metavar="...")], *args, **kwargs)

    def add_argument(self, action: Action) -> None:
        """Leave out what is hidden: argparse's own SUPPRESS would keep it out of config.yaml too."""
        if not getattr(action, HIDDEN, False):
            super().add_argument(action)

    def _get_help_string(self, action: Action) -> str:
        said = (action.help or "").rstrip(".")
        if not action.option_strings or action.nargs == 0 or "%(default)" in said:
            return said
        if action.required:
            return f"{said} {REQUIRED}"
        if action.default is None or action.default == SUPPRESS:
            return said
        return f"{said} (default: %(default)s)"

    def _format_action_invocation(self, action: Action) -> str:
        several, action.option_strings = action.option_strings, [o for o in action.option_strings if o[-1] != "+"]
        try:
            return super()._format_action_invocation(action)
        finally:
            action.option_strings = several

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        kind = self._get_type_str(action) or ""
        first = re.match(r"\w*", kind.removeprefix("Union[").removeprefix("Optional["))
        named = "str" in kind or "Literal" in kind
        return METAVARS.get(first[0] if first else "", "NAME" if named else "FIELDS")


def describe(parser: ArgumentParser, key: str, kind: type) -> None:
    """Have the options below `key` say what the metadata of the dataclass's fields do, the first sentence of it."""
    words = {item.name: item.metadata.get("help") for item in fields(kind)}  # type: ignore[arg-type]
    for action in parser._actions:
        home, _, name = action.dest.rpartition(".")
        if home == key and (said := words.get(name)):
            action.help = re.split(r"(?<=[^.][.])\s", said)[0].replace("`", "").replace("%%", "%")


def field_words(kind: type, name: str) -> str:
    """Return what a field of a method is: in general, and as the class's docstring says it, "name: words."."""
    text = " ".join((inspect.getdoc(kind) or "").partition("\n")[2].split())
    found = re.search(rf"(?:^|[.;] |, )(?:\w+, )*{name}(?:, \w+)*: (.*?)(?:[.;](?: |$))", text)
    said = "" if found is None else found[1].replace("`", "")
    in_general = COMMON.get(name, "") if not said or re.match(r">|in [\[(]|as ", said) else ""
    return "; ".join(part for part in (in_general, said) if part) or "see docs/methods.md"


def shorten(parser: ArgumentParser, hidden: Collection[str]) -> None:
    """Leave out what repeats the command's description, and options that are hidden or show the help of a part."""
    for group in parser._action_groups:
        if group.title == str(parser.description).removesuffix("."):
            group.title = "what it takes"
    for action in parser._actions:
        if action.dest == "print_config":
            action.help = "print the options as they are resolved, and exit"
        elif action.dest.endswith((".help", ".name")) or action.dest in hidden or (action.help or "").startswith(PATH):
            setattr(action, HIDDEN, True)


def arrange(parser: ArgumentParser, sections: Sections, *, everything: bool) -> None:
    """Put the options under the titles of `sections`; the others below, or nowhere unless `everything` is asked for."""
    placed = {}
    for title, options in sections.items():
        group = parser.add_argument_group(title)
        for name, words in options.items():
            for action in parser._actions:
                if action.dest == name or (name.endswith(".") and action.dest.startswith(name)):
                    placed[id(action)] = group
                    group._group_actions.append(action)
                    action.help = words or action.help
    own = set(map(id, parser._optionals._group_actions))  # --help and --config
    added = parser._action_groups[-len(sections) :]
    older = [group for group in parser._action_groups if group not in added]
    for group in older:
        group._group_actions[:] = [action for action in group._group_actions if id(action) not in placed]
        for action in group._group_actions:
            if not everything and id(action) not in own:
                setattr(action, HIDDEN, True)
    parser._action_groups[:] = [*older[:2], *added, *older[2:]]


def meant(given: str, known: Iterable[str]) -> list[str]:
    """Return the names that `given` is close to, nearest first; of dotted names also those it is the end of."""
    names = list(known)
    ends = [name for name in names if name.rpartition(".")[2] == given.rpartition(".")[2]]
    return ends[:3] or difflib.get_close_matches(given, names, n=3, cutoff=0.7)


def with_suggestion(line: str, parser: ArgumentParser, foreign: Callable[[str], str]) -> str:
    """Return what the parser says of an option that it does not know, with those that may be meant.

    foreign: says what to do about the name of another program's option, "" of what is none.
    """
    found = UNRECOGNISED.match(line)
    if found is None:
        return line
    given = ".".join(part for part in found.groups() if part)
    if said := foreign(given.partition(".")[0]):
        return f"{line}; {said}"
    near = meant(given, (action.dest for action in parser._actions if action.option_strings))
    return f"{line}; did you mean {' or '.join(near)}?" if near else line
