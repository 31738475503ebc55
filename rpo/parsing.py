"""The command line's parser, and every mistake of a command at once, one line each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader

from rpo.core.errors import RPOError

MISSING = "the following arguments are required: "


def one_line(error: BaseException) -> str:
    """Return the message in one line; of a value that fits none of several types, the first reason."""
    text = " ".join(str(error).split())
    reason = re.search(r"^(Parser key \"[\w.]+\":).*Errors: - (.*?) - (?:Expected|Problem)", text)
    return text if reason is None else f"{reason[1]} {reason[2]}"


def parse_mistakes(parser: ArgumentParser, arguments: Sequence[str], first: ArgumentError) -> list[str]:
    """Return what is wrong with each option of `arguments` and of its config files; `first` if all parse alone."""
    found: list[str] = []
    given: set[str] = set()
    required: set[str] = set()
    for key, option in _options(parser, arguments):
        given.add(key)
        try:
            parser.parse_object(option) if isinstance(option, dict) else parser.parse_args(option)
        except ArgumentError as error:
            text = one_line(error)
            if text.startswith(MISSING):
                required |= set(text.removeprefix(MISSING).split(", "))
            else:
                found.append(text)
    absent = [name for name in sorted(required) if not any(key.split(".")[0] == name for key in given)]
    if found and absent:
        found.append(MISSING + ", ".join(absent))
    return list(dict.fromkeys(found)) or [one_line(first)]


def instantiate(parser: ArgumentParser, options: Namespace) -> tuple[dict[str, Any], list[RPOError]]:
    """Return the options as the objects they describe, and what is wrong with each that cannot be built."""
    try:
        return vars(parser.instantiate(options)), []
    except (RPOError, ValueError, TypeError, ImportError) as error:
        first = error if isinstance(error, RPOError) else RPOError(one_line(error))
    errors: list[RPOError] = []
    for key, value in vars(options).items():
        alone = parser.get_defaults()
        alone[key] = value
        try:
            parser.instantiate(alone)
        except RPOError as error:
            errors.append(error)
        except (ValueError, TypeError, ImportError) as error:
            errors.append(RPOError(f"{key}: {one_line(error)}"))
    return {}, errors or [first]


def _options(parser: ArgumentParser, arguments: Sequence[str]) -> Iterator[tuple[str, list[str] | dict[str, Any]]]:
    """Yield (key, tokens) of each option on the line and (key, nested dict) of each leaf of a config file."""
    tokens = list(arguments)
    while tokens:
        option = [tokens.pop(0)]
        while option[0].startswith("--") and "=" not in option[0] and tokens and not tokens[0].startswith("--"):
            option.append(tokens.pop(0))
        key, _, value = option[0].removeprefix("--").partition("=")
        path = value or (option[1] if len(option) > 1 else "")
        if key != "config" or not path:
            yield (key, option) if option[0].startswith("--") else _positional(parser, option)
            continue
        try:
            with open(path, encoding="utf-8") as file:
                loaded = get_loader("yaml")(file.read())
        except Exception:  # the loader's own errors: parsing the option alone says the same in words
            loaded = None
        if isinstance(loaded, dict):
            yield from _leaves(parser, loaded)
        else:
            yield key, option


def _positional(parser: ArgumentParser, option: list[str]) -> tuple[str, list[str]]:
    names = [action.dest for action in parser._get_positional_actions()]
    return (names[0] if names else option[0]), option


def _leaves(
    parser: ArgumentParser, config: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Descend as far as the parser knows options below a key, so that a dict that is a value stays whole."""
    for name, value in config.items():
        here = (*path, str(name))
        key = ".".join(here)
        if isinstance(value, dict) and any(action.dest.startswith(f"{key}.") for action in parser._actions):
            yield from _leaves(parser, value, here)
        else:
            for part in reversed(here):
                value = {part: value}
            yield key, value
