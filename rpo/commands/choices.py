"""Options whose value is one of several classes: which one a command line and its files name, and its fields.

`--objective SimPO --objective.gamma 1`, and in YAML `objective: {name: SimPO, gamma: 1}`, or `objective: SimPO`. The
class is found before the parser is built, so that its fields are the options, with its own defaults. Fields without a
name are those of the class in force: the command's own, or the one that an earlier file named.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

import rpo
from rpo.commands.help_page import field_words
from rpo.commands.parsing import YAML_ERRORS, option_tokens, read_config
from rpo.core.checks import imported
from rpo.core.divergences import KL, Divergence
from rpo.core.errors import InvalidArgument, RPOError, shown
from rpo.core.objectives import Objective
from rpo.core.synonyms import own_name, own_names
from rpo.methods import registry
from rpo.methods.foreign import OPTIONS, refusal


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What may be chosen. base: of all classes. classes: name -> what loads it. noun: one of them, in words."""

    base: type
    classes: Mapping[str, Callable[[], type]]
    noun: str

    @property
    def names(self) -> str:
        """What may be named, in words."""
        names = ", ".join(self.classes)
        return f"{names if len(self.classes) < 10 else self.noun}, or package.module:Name of your own"

    def find(self, key: str, name: str) -> type:
        """Return the class called `name`. Raises InvalidArgument."""
        if name in self.classes:
            return self.classes[name]()
        if self.base is Objective and name in registry.REFUSED:
            return registry.get(name)
        if ":" in name:
            found = imported(key, name)
            if isinstance(found, type) and issubclass(found, self.base) and _is_whole(found):
                return found
            expected = f"a dataclass, a whole subclass of {self.base.__module__}.{self.base.__name__}"
            raise InvalidArgument(key, expected=expected, got=name, remedy="See docs/guides/own_method.md.")
        near = difflib.get_close_matches(name.lower(), [one.lower() for one in self.classes], n=3, cutoff=0.5)
        meant = [one for one in self.classes if one.lower() in near] or list(self.classes)
        raise InvalidArgument(
            key,
            expected=f"{self.noun}, such as {', '.join(meant)}",
            got=shown(name),
            remedy="Your own is package.module:Name.",
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The class chosen for `key`, as it was named, of `names`; defaults of its fields, and the choices among those."""

    key: str
    kind: type
    name: str
    names: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[Choice, ...] = ()

    def add_options(self, parser: ArgumentParser) -> None:
        """Add the name and every field to the parser, under the key."""
        parser.add_argument(f"--{self.key}.name", type=str, default=self.name, help=self.names)
        parts = {part.key.rpartition(".")[2] for part in self.parts}
        parser.add_class_arguments(
            self.kind,
            self.key,
            instantiate=False,
            default={name: value for name, value in self.defaults.items() if name not in parts} or None,
            skip=parts,
        )
        for action in parser._actions:
            home, _, name = action.dest.rpartition(".")
            if home == self.key and name in self.kind.__dataclass_fields__:  # type: ignore[attr-defined]
                action.help = field_words(self.kind, name)
            if action.dest == self.key:
                action.metavar = "NAME"
                action.help = f"{self.names}; below are the fields of {self.name}"
            elif home == self.key and name in self.defaults:
                action.required = False
        for part in self.parts:
            part.add_options(parser)

    def make(self, options: Any) -> Any:
        """Return the instance that the options describe. Raises InvalidArgument."""
        if not isinstance(options, Namespace):  # a number or a list in a file, where a name or fields are due
            names = ", ".join(self.kind.__dataclass_fields__)  # type: ignore[attr-defined]
            raise InvalidArgument(
                self.key,
                expected="the name of one" + (f", or its fields ({names})" if names else ""),
                got=shown(options),
                remedy=f"Write {self.key}: {self.name}, or {self.key}: {{name: {self.name}, ...}}.",
            )
        given = {name: value for name, value in vars(options).items() if name != "name"}
        for part in self.parts:
            name = part.key.rpartition(".")[2]
            given[name] = part.make(given[name])
        return self.kind(**given)


@dataclass(eq=False)
class _File:
    """A config file: the tokens that name it, and what it says."""

    tokens: list[str]
    content: Any

    def __post_init__(self) -> None:
        self.path = _value(self.tokens)

    def at(self, key: str) -> Any:
        """Return the value of a dotted key; None where there is none."""
        found = self.content
        for part in key.split(".") if key else ():
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def put(self, key: str, value: Any) -> None:
        """Have the parser read another value there: it is given the whole content, quoted, in the file's place."""
        home = {"": self.content}
        *path, last = f".{key}".split(".") if key else [""]
        for part in path:
            home = home[part]
        home[last] = value
        self.content = value if not key else self.content
        quoted = yaml.safe_dump(self.content, default_style='"', sort_keys=False)
        self.tokens[:] = [f"--config={quoted}"]


class Given:
    """The options of a command line, and what its config files say; `settle` finds the choices in both."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.options: list[list[str]] = []
        for option, *values in option_tokens(arguments):
            # An option takes one value; what follows it is positional.
            self.options += [[option, *values[:1]], *([value] for value in values[1:])]
        self.mistakes: list[RPOError] = []
        self.notes: list[str] = []
        self._files: list[_File] = []
        for tokens in self.options:
            if _key(tokens) == "config" and _value(tokens):
                with contextlib.suppress(*YAML_ERRORS):  # the parser says these in words
                    self._files.append(_File(tokens, read_config(_value(tokens))))

    @property
    def arguments(self) -> list[str]:
        """The tokens, as the parser is to read them."""
        return [token for tokens in self.options for token in tokens]

    def refuse_foreign(self, *homes: str) -> None:
        """Take out options of other trainers, alone or under `homes`: a mistake each, which says what they are here."""
        for home in ("", *homes):
            prefix = f"{home}." if home else ""
            self.mistakes += [refusal(prefix + name, "this command") for name in self._drop(home, OPTIONS.__contains__)]

    def take(self, key: str) -> Any:
        """Take an option out of the line and the files, and return the last of its values, None without one."""
        value = None
        for file in self._files:
            if isinstance(file.content, dict) and key in file.content:
                value = file.content[key]
                file.put("", {one: item for one, item in file.content.items() if one != key})
        for tokens in [tokens for tokens in self.options if _key(tokens) == key]:
            value = read_config(_value(tokens))
            self.options.remove(tokens)
        return value

    def use_own_names(self, known: Collection[str]) -> None:
        """Call every option as it is among `known`, where it was given by another name of the same thing."""
        for tokens in self.options:
            if name := _key(tokens):
                tokens[0] = tokens[0].replace(name, own_name(name, known), 1)
        for file in self._files:
            try:
                renamed = _renamed(file.content, known)
            except RPOError as error:
                self.mistakes.append(error)
                continue
            if renamed != file.content:
                file.put("", renamed)

    def settle(self, key: str, kind: Kind, default: Any) -> Choice:
        """Return the choice for `key`; default: an instance, which holds where nothing is named."""
        own = type(default).__name__
        name = self._named(key, own)
        try:
            found = type(default) if name == own else kind.find(key, name)
        except RPOError as error:
            self.mistakes.append(error)
            self._drop(key, lambda field: True)
            name, found = own, type(default)
        return self._choice(key, name, found, default, kind.names)

    def _choice(self, key: str, name: str, kind: type, default: Any, names: str) -> Choice:
        known = {item.name: item for item in fields(kind) if item.init}
        for unknown in self._drop(key, lambda part: part != "name" and part not in known):
            self.mistakes.append(
                InvalidArgument(
                    f"{key}.{unknown}",
                    expected=f"a field of {kind.__name__} ({', '.join(known) or 'it has none'})",
                    got="another name",
                    remedy=OPTIONS.get(unknown, "Check the spelling."),
                )
            )
        # A method has its own defaults; of the command's it takes what it has none for.
        same = type(default) is kind
        defaults = {
            item.name: getattr(default, item.name)
            for item in known.values()
            if hasattr(default, item.name) and (same or (item.default is MISSING and item.default_factory is MISSING))
        }
        hints = get_type_hints(kind)
        parts = tuple(
            self.settle(f"{key}.{item.name}", DIVERGENCES, defaults.get(item.name, _default(item)))
            for item in known.values()
            if hints[item.name] is Divergence
        )
        return Choice(key=key, kind=kind, name=name, names=names, defaults=defaults, parts=parts)

    def _named(self, key: str, name: str) -> str:
        """Return the name in force after files and line; fields that a file gives to another class are taken out."""
        earlier: list[_File] = []
        for file in self._files:
            value = file.at(key)
            if isinstance(value, str) and _is_name(value):
                value = {"name": value}
                file.put(key, value)
            name = self._in_force(earlier, key, name, value)
            earlier.append(file)
        for tokens in self.options:
            value = _value(tokens)
            if _key(tokens) == key and _is_name(value):
                tokens[:] = [f"--{key}.name={value}"]
        on_line: Any = None
        for tokens in self.options:
            if _key(tokens) == f"{key}.name":
                on_line = {"name": _value(tokens)}
            elif _key(tokens) == key:
                with contextlib.suppress(*YAML_ERRORS):
                    on_line = read_config(_value(tokens))
        return self._in_force(earlier, key, name, on_line)

    def _in_force(self, files: Iterable[_File], key: str, before: str, value: Any) -> str:
        """Return the name that `value` gives, else the one before; under another, earlier fields are void."""
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or name == before:
            return before
        for file in files:
            given = file.at(key)
            if isinstance(given, dict) and given:
                names = ", ".join(str(one) for one in given if one != "name") or "no field"
                self.notes.append(f"{key} of {file.path} ({before}: {names}) gives way to {name}.")
                file.put(key, {})
        return name

    def _drop(self, key: str, which: Callable[[str], bool]) -> list[str]:
        """Take out the fields of `key` that `which` says, on the line and in files, and return their names."""
        found: list[str] = []
        for file in self._files:
            given = file.at(key)
            here = [one for one in given if isinstance(one, str) and which(one)] if isinstance(given, dict) else []
            if here:
                file.put(key, {one: item for one, item in given.items() if one not in here})
            found += here
        for tokens in list(self.options):
            name, prefix = _key(tokens), f"{key}." if key else ""
            if name.startswith(prefix) and which(part := name[len(prefix) :].split(".")[0]):
                found.append(part)
                self.options.remove(tokens)
        return list(dict.fromkeys(found))


DIVERGENCES = Kind(
    base=Divergence,
    classes={name: lambda kind=kind: kind for name, kind in registry.DIVERGENCES.items()},  # type: ignore[misc]
    noun="a divergence",
)


def objectives(also: Sequence[str] = ()) -> Kind:
    """Return the registered methods, of which a command takes one, and the losses `also` named, of `rpo`."""
    classes: dict[str, Callable[[], type]] = {name: method.load for name, method in registry.METHODS.items()}
    classes |= {name: lambda name=name: getattr(rpo, name) for name in also}  # type: ignore[misc]
    noun = ", ".join(["a method that `rpo methods` lists", *also])
    return Kind(base=Objective, classes=classes, noun=noun)


def _renamed(content: Any, known: Collection[str], home: str = "") -> Any:
    """Return what a file says with its keys among `known`, dotted. Raises InvalidArgument for one thing said twice."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        return content
    dotted = {f"{home}{key}": _renamed(value, known, f"{home}{key}.") for key, value in content.items()}
    return {key.removeprefix(home): value for key, value in own_names(dotted, known).items()}


def _is_whole(kind: type) -> bool:
    return is_dataclass(kind) and not inspect.isabstract(kind)


def _default(item: Any) -> Any:
    if item.default is not MISSING:
        return item.default
    return KL() if item.default_factory is MISSING else item.default_factory()


def _key(tokens: Sequence[str]) -> str:
    return tokens[0].removeprefix("--").partition("=")[0] if tokens[0].startswith("--") else ""


def _value(tokens: Sequence[str]) -> str:
    return tokens[0].partition("=")[2] or (tokens[1] if len(tokens) > 1 else "")


def _is_name(value: str) -> bool:
    """Return whether a value is a name, not fields in its place, as YAML or in a file."""
    try:
        return bool(value) and isinstance(read_config(value), str) and not Path(value).exists()
    except (*YAML_ERRORS, OSError):
        return False
