"""`atlas`: all entrants on all instances, block by block, resumable; its numbers are one array.

Shapes: I instances, E entrants, K values of a knob, S seeds, M measures.
"""

from __future__ import annotations

import base64
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rpo.bandit.simulation.code import code_digest
from rpo.bandit.simulation.engine import joblib_context, steady
from rpo.bandit.simulation.grid import source
from rpo.bandit.simulation.store import MANIFEST, GridStore
from rpo.compare.atlas.block import MEASURES, solve_block
from rpo.compare.atlas.entrants import Entrant, entrants
from rpo.compare.atlas.instances import INSTANCES, AtlasInstance
from rpo.core import checks
from rpo.core.checks import Array
from rpo.core.errors import InvalidArgument
from rpo.core.locks import alone
from rpo.core.progress import track
from rpo.core.records import check_output

BLOCK = 50  # seeds solved at once
Task = tuple[int, int, list[int]]  # a block's number, its instance's, its seeds


@dataclass(frozen=True, eq=False, kw_only=True)
class Atlas:
    """The measured atlas: table (I, E, K, S, M), NaN beyond a path's end; the measures are `block.MEASURES`."""

    instances: tuple[AtlasInstance, ...]
    entrants: tuple[Entrant, ...]
    seeds: int
    table: Array

    def measure(self, instance: int, entrant: int, name: str) -> Array:
        """Return one measure along an entrant's path, (K, S)."""
        length = len(self.entrants[entrant].values)
        return np.asarray(self.table[instance, entrant, :length, :, MEASURES.index(name)])


def atlas(
    output: str | Path | None = None,
    *,
    seeds: int = 400,
    methods: Sequence[Entrant] | None = None,
    instances: Sequence[AtlasInstance] = INSTANCES,
    rng: int = 0,
    jobs: int = 1,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Atlas:
    """Run every entrant along its knob on every instance and seed, and return what the policies are worth.

    methods: by default every registered method that a table has; add an `Entrant` of your own. A seed's problem and
    data are the same for all methods: compare them in pairs. output: a folder of finished blocks, from which a killed
    run continues. rng: an int from which every draw descends. jobs: processes, -1 for all cores; the numbers do not
    depend on it. Raises InvalidArgument, GridMismatch, OutputError.
    """
    draws = checks.integer("seeds", seeds, minimum=2)
    root = checks.integer("rng", rng, minimum=0)
    chosen = tuple(entrants() if methods is None else methods)
    _check("methods", chosen, Entrant)
    _check("instances", instances, AtlasInstance)
    shape = (len(instances), len(chosen), max(len(one.values) for one in chosen), draws, len(MEASURES))
    made = Atlas(instances=tuple(instances), entrants=chosen, seeds=draws, table=np.full(shape, np.nan))
    blocks = [list(range(first, min(first + BLOCK, draws))) for first in range(0, draws, BLOCK)]
    plan: list[Task] = [
        (index * len(blocks) + number, index, mine)
        for index in range(len(instances))
        for number, mine in enumerate(blocks)
    ]
    if output is None:
        for (_, index, mine), part, _ in _solved(made, plan, root, jobs, progress):
            made.table[index, :, :, mine[0] : mine[-1] + 1] = part
        return made
    with alone(check_output(output, overwrite=True, marker=MANIFEST)):
        store = GridStore(output, _described(made, root), overwrite=overwrite)
        pending = []
        for task in plan:
            found = store.load(task[0])
            if found is None:
                pending.append(task)
            else:
                made.table[task[1], :, :, task[2][0] : task[2][-1] + 1] = _read(found[0], shape, task)
        for task, part, seconds in _solved(made, pending, root, jobs, progress):
            store.save(task[0], {"table": [base64.b64encode(part.tobytes()).decode()]}, seconds)
            made.table[task[1], :, :, task[2][0] : task[2][-1] + 1] = part
    return made


def _check(name: str, given: Sequence[Any], kind: type) -> None:
    for one in given:
        checks.instance(name, one, kind)
    names = [one.name for one in given]
    if not names or len(set(names)) < len(names):
        raise InvalidArgument(
            name, expected="one or more, with different names", got=", ".join(names) or "none", remedy="Name each once."
        )


def _solved(made: Atlas, tasks: list[Task], root: int, jobs: int, progress: bool | None) -> Iterator[Any]:
    """Yield (task, its measures (E, K, S, M), seconds) as blocks are done, in any order."""
    workers = checks.integer("jobs", jobs, minimum=-1)
    parent = os.getpid()
    calls = ((made.instances[task[1]], made.entrants, task, root, parent) for task in tasks)
    with steady():
        if workers in (0, 1) or len(tasks) < 2:
            results: Any = (_block(*call) for call in calls)
        else:
            results = _parallel(calls, workers)
        yield from (result for _, result in zip(track(tasks, "atlas", show=progress), results, strict=False))


def _parallel(calls: Any, jobs: int) -> Any:
    import joblib

    with joblib_context(jobs, "loky"):
        yield from joblib.Parallel(return_as="generator_unordered")(joblib.delayed(_block)(*call) for call in calls)


def _block(
    instance: AtlasInstance, chosen: tuple[Entrant, ...], task: Task, root: int, parent: int
) -> tuple[Task, Array, float]:
    began = time.perf_counter()
    with contextlib.nullcontext() if os.getpid() == parent else steady():
        return task, solve_block(instance, chosen, task[2], root), time.perf_counter() - began


def _read(columns: dict[str, list[Any]], shape: tuple[int, ...], task: Task) -> Array:
    values = np.frombuffer(base64.b64decode(columns["table"][0]), dtype=np.float64)
    return values.reshape(shape[1], shape[2], len(task[2]), shape[4])


def _described(made: Atlas, root: int) -> dict[str, Any]:
    """Return what determines the numbers, for the manifest."""
    methods = {one.name: [one.at(value).to_dict() for value in one.values] for one in made.entrants}
    origins = {one.name: source(one.source).name for one in made.instances}
    own = {
        one.name: code for one in made.entrants if (code := code_digest(one.name, one.at(one.values[0]))) is not None
    }
    return {
        "instances": {
            one.name: {"source": origins[one.name], "unit": one.unit, "bound": one.bound, "ball": one.ball}
            for one in made.instances
        },
        "methods": methods,
        "seeds": made.seeds,
        "root": root,
        "block": BLOCK,
        "measures": list(MEASURES),
        **({"code": own} if own else {}),
    }
