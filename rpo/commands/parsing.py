"""The command line's parser, and every mistake of a command at once, one line each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader

from rpo.core.errors import InvalidArgument, RPOError
from rpo.core.records import NOT_KEPT, without_secrets

MISSING = "the following arguments are required: "
YAML_ERRORS = (yaml.YAMLError, ValueError)  # ValueError: a number of thousands of digits
MOST_YAML_NODES = 1_000_000
MOST_YAML_LEVELS = 100
# Beside its own error: what a number of hundreds of digits, or a value of thousands of levels, ends in.
PARSE_ERRORS = (ArgumentError, OverflowError, RecursionError)
LARGEST_INTEGER = 2**63 - 1


def settle_parsing() -> None:
    """Refuse YAML that grows without measure, by aliases of aliases or by depth."""
    load = get_loader("yaml")
    if getattr(load, "bounded", False):
        return

    def bounded(stream: Any) -> Any:
        try:
            value = load(stream)
            nodes = _count(value, {}, 0)
        except RecursionError:
            raise yaml.YAMLError(f"nested more than {MOST_YAML_LEVELS} levels deep") from None
        if nodes > MOST_YAML_NODES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_YAML_NODES:,} values")
        return value

    bounded.bounded = True  # type: ignore[attr-defined]
    set_loader("yaml", bounded, YAML_ERRORS)


def _count(value: Any, known: dict[int, int], level: int) -> int:
    """Return how many values there are with every alias written out; what an alias repeats is looked at once."""
    if level > MOST_YAML_LEVELS:
        raise RecursionError
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = MOST_YAML_NODES + 1  # for one that holds itself
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(part, known, level + 1) for part in parts)
    return known[id(value)]


def impossible_values(options: Namespace) -> list[RPOError]:
    """Return what is wrong with texts and numbers that no option can use: a NUL, an integer beyond 64 bits."""
    errors: list[RPOError] = []
    for key, value in options.items():
        for one in _flat(value):
            if isinstance(one, str) and "\0" in one:
                remedy = "Remove it."
                errors.append(InvalidArgument(key, expected="text without a NUL", got=repr(one[:40]), remedy=remedy))
            elif isinstance(one, int) and abs(one) > LARGEST_INTEGER:
                got = f"one of {one.bit_length()} bits"
                errors.append(InvalidArgument(key, expected="an integer of 64 bits", got=got, remedy="Pass another."))
    return errors


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list, tuple)):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _flat(part)
    else:
        yield value


def resolved_text(parser: ArgumentParser, options: Namespace) -> str:
    """Return the text of config.yaml: every option as it was resolved, without secrets, which it names."""
    copy, secrets = options.clone(), []
    for key, value in options.items():
        home, _, name = key.rpartition(".")
        kept, found = without_secrets({name: value}, home)
        secrets += found
        copy[key] = kept[name]
    text: str = parser.dump(copy, skip_unset=False)
    note = f"# {NOT_KEPT}: {', '.join(secrets)}. Give it again where it is needed.\n"
    return note + text if secrets else text


def one_line(error: BaseException) -> str:
    """Return the message in one line; of a value that fits none of several types, the first reason."""
    text = " ".join(str(error).split())
    reason = re.search(r"^(Parser key \"[\w.]+\":).*Errors: - (.*?) - (?:Expected|Problem)", text)
    return text if reason is None else f"{reason[1]} {reason[2]}"


def config_mistakes(arguments: Sequence[str]) -> list[str]:
    """Return what is wrong with config files that the parser itself would fail at: other encodings, nesting."""
    found = []
    for path in config_paths(arguments):
        try:
            loaded = read_config(path)
        except UnicodeDecodeError as error:
            found.append(f"config: expected text in UTF-8, got {path} ({error.reason} at byte {error.start})")
        except YAML_ERRORS:
            continue  # the parser says these in words
        else:
            if isinstance(loaded, dict) and "config" in loaded:
                found.append(f"config: expected options in {path}, got another config. Pass --config twice instead")
    return found


def read_config(given: str) -> Any:
    """Return what a config file says, or YAML in its place. Raises one of YAML_ERRORS."""
    try:
        text = Path(given).read_text(encoding="utf-8")
    except OSError:
        text = given
    return get_loader("yaml")(text)


def option_tokens(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yield each option with its values, and each positional, as the tokens they came in."""
    tokens = list(arguments)
    while tokens:
        option = [tokens.pop(0)]
        while option[0].startswith("--") and "=" not in option[0] and tokens and not tokens[0].startswith("--"):
            option.append(tokens.pop(0))
        yield option


def config_paths(arguments: Sequence[str]) -> list[str]:
    """Return the config files that a command line names."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)
    return [one.partition("=")[2] or after for one, after in pairs if one.partition("=")[0] == "--config"]


def parse_mistakes(parser: ArgumentParser, arguments: Sequence[str], first: Exception) -> list[str]:
    """Return what is wrong with each option of `arguments` and of its config files; `first` if all parse alone."""
    found: list[str] = []
    given: set[str] = set()
    required: set[str] = set()
    for key, option in _options(parser, arguments):
        given.add(key)
        try:
            parser.parse_object(option) if isinstance(option, dict) else parser.parse_args(option)
        except PARSE_ERRORS as error:
            text = one_line(error) if isinstance(error, ArgumentError) else f"{key}: {one_line(error)}"
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
    for option in option_tokens(arguments):
        key, _, value = option[0].removeprefix("--").partition("=")
        path = value or (option[1] if len(option) > 1 else "")
        if key != "config" or not path:
            yield (key, option) if option[0].startswith("--") else _positional(parser, option)
            continue
        try:
            loaded = read_config(path)
        except YAML_ERRORS:  # parsing the option alone says the same in words
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
