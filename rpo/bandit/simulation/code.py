"""What a row depends on beside the package's own code: a digest of a user's functions and classes.

It is taken from the compiled code that runs, not from a file, which may have changed since it was read: so it works
in notebooks, and an edit elsewhere in the file changes nothing. It follows what the code names and closes over:
helper functions, classes with their bases, modules of the user's, constants. What it cannot see is found by name at
run time only (getattr, a registry filled elsewhere) or read from files. A module that is imported within a function
is imported to be seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from rpo.core.errors import InvalidArgument, shown

LIBRARIES = tuple({Path(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib", "purelib", "platlib")})
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), np.generic)
# Written by Python or by dataclasses, from what is digested anyway.
MADE = ("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__abstractmethods__", "_abc_impl",
        "__dataclass_fields__", "__dataclass_params__", "__slots__", "__firstlineno__", "__static_attributes__",
        "__builtins__", "__spec__", "__loader__", "__file__", "__cached__", "__path__", "__package__")  # fmt: skip


def code_digest(argument: str, value: Any) -> str | None:
    """Return 128 bits, in hexadecimal, of the user's code in a function, class or instance; None where it has none.

    Raises InvalidArgument for what holds no Python code to compare, such as a compiled function.
    """
    walk = _Walk(argument)
    walk.add(value, strict=True)
    return walk.state.hexdigest()[:32] if walk.foreign else None


class _Walk:
    def __init__(self, argument: str) -> None:
        self.argument, self.foreign = argument, False
        self.state = hashlib.sha256()
        self.seen: dict[int, tuple[int, Any]] = {}  # kept alive, so that no id is used twice

    def write(self, *words: object) -> None:
        for word in words:
            self.state.update(f"{word}\0".encode(errors="surrogatepass"))

    def add(self, value: Any, *, strict: bool) -> None:
        """Digest `value`. strict: refuse what cannot be told apart; otherwise, its type stands for it."""
        if isinstance(value, PLAIN):
            return self.write(type(value).__name__, repr(value))
        # Equal constants may be one object or several, as Python compiled or loaded them: they are written out.
        if not isinstance(value, (tuple, frozenset, CodeType)):
            if id(value) in self.seen:
                return self.write("again", self.seen[id(value)][0])
            self.seen[id(value)] = (len(self.seen), value)
        if isinstance(value, CodeType):
            self.write(value.co_code.hex(), value.co_names, value.co_varnames, value.co_freevars, value.co_flags)
            return self.add(value.co_consts, strict=False)
        self.write(type(value).__qualname__)
        if isinstance(value, np.ndarray) and value.dtype != object:
            self.write(value.dtype, value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest())
        elif isinstance(value, (list, tuple)):
            self.several(value, strict)
        elif isinstance(value, Mapping):
            self.several((part for pair in value.items() for part in pair), strict)
        elif isinstance(value, (set, frozenset)):
            self.several(sorted(value, key=repr), strict)
        elif isinstance(value, MethodType):
            self.several((value.__func__, value.__self__), strict)
        elif isinstance(value, functools.partial):
            self.several((value.func, value.args, value.keywords), strict)
        elif isinstance(value, (staticmethod, classmethod)):
            self.add(value.__func__, strict=strict)
        elif isinstance(value, property):
            self.several((value.fget, value.fset), strict)
        elif isinstance(value, functools.cached_property):
            self.add(value.func, strict=strict)
        elif isinstance(value, (FunctionType, type, ModuleType)):
            self.definition(value, strict)
        elif isinstance(value, np.ufunc) or (
            isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, ModuleType)
        ):
            self.write(value.__name__)
        elif hasattr(value, "__wrapped__"):  # functools.cache, numba and their like
            self.add(value.__wrapped__, strict=strict)
        else:
            self.instance(value, strict)

    def several(self, values: Any, strict: bool) -> None:
        for value in values:
            self.add(value, strict=strict)
        self.write("end")

    def definition(self, value: Any, strict: bool) -> None:
        """Digest a function, class or module: a library's by its name and version, the user's by what it says."""
        name = value.__name__ if isinstance(value, ModuleType) else str(value.__module__)
        self.write(name, getattr(value, "__qualname__", ""))
        if _of_a_library(name):
            self.write(getattr(sys.modules.get(name.partition(".")[0]), "__version__", ""))
            return
        self.foreign = True
        if isinstance(value, FunctionType):
            self.add(value.__code__, strict=False)
            self.several((value.__defaults__, value.__kwdefaults__), strict)
            for cell in value.__closure__ or ():
                self.add(_content(cell), strict=strict)
            for word in sorted(set(_names(value.__code__)) & set(value.__globals__)):
                self.write(word)
                self.add(value.__globals__[word], strict=False)
            for module in _imported(value.__code__, value.__globals__.get("__package__") or ""):
                self.write(module.__name__)
                self.add(module, strict=False)
            return
        for key, item in sorted(vars(value).items()):
            if key not in MADE:
                self.write(key)
                self.add(item, strict=False)
        if isinstance(value, type):
            self.several(value.__bases__, False)

    def instance(self, value: Any, strict: bool) -> None:
        kind = type(value)
        self.add(kind, strict=False)
        if dataclasses.is_dataclass(value):
            self.several((getattr(value, item.name) for item in dataclasses.fields(value) if item.init), strict)
        elif not _of_a_library(kind.__module__):
            self.add(getattr(value, "__dict__", {}), strict=strict)
        elif strict and isinstance(value, Path):
            self.write(value)
        elif strict:
            raise InvalidArgument(
                f"{self.argument} with output",
                expected="Python code, and constants, arrays, functions or dataclasses in it: what tells later "
                "whether finished rows are still its own",
                got=shown(value),
                remedy="Wrap it in a function written as a def, or run without output.",
            )


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that code looks up, those of the functions within it among them."""
    yield from code.co_names
    for item in code.co_consts:
        if isinstance(item, CodeType):
            yield from _names(item)


def _imported(code: CodeType, package: str) -> Iterator[ModuleType]:
    """Yield the modules that code imports when it runs, but for those of libraries and those that are not there."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for k, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":  # after its level, the number of leading dots, and what is asked of it
            level, items = steps[k - 2].argval, steps[k - 1].argval
            with contextlib.suppress(Exception):  # raised again where it matters, when the function runs
                name = importlib.util.resolve_name("." * level + step.argval, package)
                if _is_users(name.partition(".")[0]):
                    module = importlib.import_module(name)
                    for item in items or ():
                        if not hasattr(module, item):
                            importlib.import_module(f"{name}.{item}")
                    yield module
    for item in code.co_consts:
        if isinstance(item, CodeType):
            yield from _imported(item, package)


def _is_users(module: str) -> bool:
    """Return whether a module, loaded or not, is there and of no library."""
    if module in sys.modules:
        return not _of_a_library(module)
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin not in ("built-in", "frozen") and not _installed(spec.origin or "")


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _of_a_library(module: str) -> bool:
    """Return whether a module is the package's, Python's, or installed: versions tell those apart."""
    if module.partition(".")[0] in ("rpo", "builtins"):
        return True
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    if file is None:
        return loaded is not None and module != "__main__" and getattr(loaded, "__spec__", None) is not None
    return _installed(file)


def _installed(file: str) -> bool:
    return any(Path(file).is_relative_to(folder) for folder in LIBRARIES) or "dist-packages" in Path(file).parts
