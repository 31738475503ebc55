"""The property of every fuzz test, its budget of inputs in two tiers, and what is counted.

Whatever comes in, the outcome is a right result or one of `rpo.core.errors`; of the command line, exit 0 or 2, and with
2 one line an error on stderr, nothing on stdout, and no file that was not there before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import signal
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import SearchStrategy

from rpo.cli import main
from rpo.core.errors import RPOError

# Inputs a test, (default tier, slow tier); held to their sums by test_controls.py.
BUDGET = {
    "arrays and numbers": (170, 1100),
    "checks": (120, 600),
    "preference files": (60, 450),
    "preference tables": (70, 450),
    "training rows": (120, 700),
    "training files": (50, 300),
    "solve options": (50, 250),
    "simulate options": (40, 200),
    "train options": (20, 150),
    "verdict texts": (150, 800),
    "judge files": (30, 200),
    "benchmark files": (60, 350),
    "records": (40, 300),
    "simulation folders": (20, 120),
    "caches and checkpoints": (50, 300),
}
TIERS = [pytest.param(0, id="default"), pytest.param(1, id="slow", marks=pytest.mark.slow)]
SUMMARY = "fuzz_outcomes"
SECONDS = 30.0

# What a careless program, disk or hand leaves in a file.
INSERTED = [b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b'"', b"\n", b"\r", b"{"]
SWAPPED = [b"0", b"1", b":", b",", b"[", b"]", b"{", b"}", b'"', b".", b"e"]
VALUES = [b"NaN", b"null", b"-", b"1e999", b"[[", b"{}", b'"x"', b"9" * 5000, b"[" * 3000, b""]

# Strategies that ignore an input without trying it would make the counts untrue.
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


def explore(
    name: str,
    tier: int,
    inputs: SearchStrategy[Any],
    outcome_of: Callable[[Any], str],
    record_property: Callable[[str, object], None],
) -> Counter[str]:
    """Try the budget's number of inputs; `outcome_of` returns the kind of an outcome or raises.

    The draw is a function of the test's name and tier. Outcomes by kind go to pytest's summary.
    """
    wanted, outcomes = BUDGET[name][tier], Counter[str]()

    @seed(zlib.crc32(f"{name}, tier {tier}".encode()))
    @settings(
        max_examples=wanted, deadline=None, database=None, suppress_health_check=CHECKS,
        phases=(Phase.generate, Phase.shrink), print_blob=False,
    )  # fmt: skip
    @given(inputs)
    def every_outcome_is_allowed(value: Any) -> None:
        with warnings.catch_warnings():
            # What is said beside a result is no outcome; results are checked.
            warnings.simplefilter("ignore")
            with limited(SECONDS):
                outcomes[outcome_of(value)] += 1

    with without_the_code_s_constants():
        every_outcome_is_allowed()
    assert outcomes.total() == wanted, f"{name}: {outcomes.total()} inputs in place of {wanted}"
    record_property(SUMMARY, dict(outcomes))
    return outcomes


@contextlib.contextmanager
def without_the_code_s_constants() -> Iterator[None]:
    """Keep hypothesis from drawing the constants of whichever modules are loaded, where its version does.

    With them the inputs would change with every edit, and with the tests that ran before.
    """
    if not hasattr(providers, "_get_local_constants"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers, "_get_local_constants", lambda: type(providers._local_constants)())
        providers.CONSTANTS_CACHE.cache.clear()
        yield
    providers.CONSTANTS_CACHE.cache.clear()


class Hang(BaseException):
    """No outcome in time, which is none that is allowed; not an Exception, so that nothing takes it for its own."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Hang in what takes longer, where the system has alarms."""

    def ring(*_: object) -> None:
        raise Hang(f"no outcome within {seconds:g} seconds")

    if not hasattr(signal, "setitimer"):
        yield
        return
    earlier = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # rings on, should something catch it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, earlier)


def outcome(call: Callable[[], Any], check: Callable[[Any], None] = lambda result: None) -> str:
    """Return "result" after `check` of what `call` returns, or the class of the typed error; all else rises."""
    try:
        result = call()
    except RPOError as error:
        return type(error).__name__ if str(error).strip() else pytest.fail("an error without a message")
    check(result)
    return "result"


def command(arguments: list[str], folder: Path, check: Callable[[str], None] = lambda printed: None) -> str:
    """Run `rpo` and return "exit 0" after `check` of what it printed, or "exit 2"; `folder` is all it may write to."""
    before = files_in(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    printed, lines = out.getvalue(), err.getvalue().splitlines()
    assert code in (0, 2), code
    if code == 0:
        check(printed)
        return "exit 0"
    assert lines and all(line.startswith("rpo") and ": error: " in line for line in lines), lines
    assert len(err.getvalue().split("\n")) == len(lines) + 1, err.getvalue()
    assert not any(mark in err.getvalue() for mark in ("Traceback", "object at 0x")), lines
    assert files_in(folder) == before, sorted(set(files_in(folder)) ^ set(before))
    return "exit 2"


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the contents of every file below `folder`, and its folders as empty ones."""
    return {
        path.relative_to(folder).as_posix() + "/" * path.is_dir(): b"" if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def numbers_in(result: Any) -> list[float]:
    """Return every number of a result, in order, through arrays, tensors, tuples, mappings and dataclasses."""
    if hasattr(result, "detach"):
        result = result.detach().numpy()
    if isinstance(result, np.ndarray):
        return [float(value) for value in result.ravel()] if result.dtype.kind in "fiub" else []
    if isinstance(result, (bool, int, float, np.number)):
        return [float(result)]
    if isinstance(result, Mapping):
        return [number for value in result.values() for number in numbers_in(value)]
    if isinstance(result, (list, tuple)):
        return [number for value in result for number in numbers_in(value)]
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        fields = dataclasses.fields(result)
        return [number for one in fields if one.compare for number in numbers_in(getattr(result, one.name))]
    return []


def same(first: list[float], second: list[float], tolerance: float) -> bool:
    """Whether two results hold the same numbers, NaN and infinity included."""
    return len(first) == len(second) and all(
        a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
        for a, b in zip(first, second, strict=True)
    )


def chosen(draw: Any, options: Sequence[Any]) -> Any:
    """Return one of `options`, which need not be hashable as those of `sampled_from`."""
    return options[draw(st.integers(0, len(options) - 1))]


def damaged(content: bytes, seed: int) -> bytes:
    """Return `content` cut short, with bytes changed, inserted or repeated, a value in it swapped, or replaced."""
    random = Random(seed)
    place = random.randrange(max(1, len(content)))
    changes = {
        "cut": lambda: content[:place],
        "flip": lambda: content[:place] + bytes([random.randrange(256)]) + content[place + 1 :],
        "insert": lambda: content[:place] + random.choice(INSERTED) + content[place:],
        "repeat": lambda: content[:place] + content,
        "swap": lambda: content.replace(random.choice(SWAPPED), random.choice(VALUES), 1),
        "other": lambda: random.randbytes(random.randrange(40)),
    }
    return changes[random.choice(sorted(changes))]()
