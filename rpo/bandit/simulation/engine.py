"""`simulate`: methods on many drawn problems, one row per draw and method, resumable and in parallel."""

from __future__ import annotations

import contextlib
import io
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rpo.bandit.simulation.cell import OUTCOMES, Cell, retried
from rpo.bandit.simulation.code import code_digest
from rpo.bandit.simulation.draws import BLOCK_ENTRIES, BLOCK_SEEDS
from rpo.bandit.simulation.grid import Source, axes, product, root_seed, seed_list, source
from rpo.bandit.simulation.methods import Template, describe, template
from rpo.bandit.simulation.store import MANIFEST, TABLES, TIMINGS, GridStore
from rpo.core import checks
from rpo.core.errors import InaccurateSolution, InvalidArgument, MissingDependency, RPOError
from rpo.core.locks import alone
from rpo.core.progress import track
from rpo.core.records import check_output

if TYPE_CHECKING:
    import pandas

CHUNK_SEEDS = 10 * BLOCK_SEEDS  # whole blocks, and enough that the solver's last rounds are shared
CHUNK_ENTRIES = BLOCK_ENTRIES


class FailedRows(UserWarning):
    """Rows without a policy: how many, of which methods, and what the first of them says."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """A simulation, resolved. units: one dict of instance parameters and n each; settings: of beta and eta."""

    source: Source
    templates: tuple[Template, ...]
    table: dict[str, list[Any]]
    units: list[dict[str, Any]]
    settings: list[dict[str, float]]
    seeds: list[int]
    root: int
    proxy: bool
    chunks: list[tuple[int, list[int]]]

    def solve(self, index: int) -> dict[str, list[Any]]:
        """Return the rows of one chunk as columns: settings, then seeds, then methods, the last fastest."""
        unit, seeds = self.chunks[index]
        cell = Cell(self.source, self.units[unit], seeds, self.root)
        columns = cell.rows(self.settings, self.templates, self.proxy)
        return {name: column.tolist() for name, column in columns.items()}

    def part(self, index: int) -> Plan:
        """Return a plan of one chunk, numbered 0: what a worker is sent."""
        unit, seeds = self.chunks[index]
        return replace(self, table={}, units=[self.units[unit]], seeds=[], chunks=[(0, seeds)])

    def config(self) -> dict[str, Any]:
        """Return what determines the table, for the manifest."""
        methods = {
            item.name: [describe(item.resolve(setting)) for setting in self.settings][: 1 if not item.takes else None]
            for item in self.templates
        }
        config = {
            "instance": self.source.name,
            "methods": methods,
            "grid": self.table,
            "seeds": self.seeds,
            "root": self.root,
            "proxy": self.proxy,
            "chunks": [CHUNK_SEEDS, CHUNK_ENTRIES],
        }
        if self.source.at_once:
            config["draws"] = f"at once, {BLOCK_SEEDS} seeds"  # how they were made: rows of other draws are not these
        own: dict[str, Any] = {"instance": self.source.make}
        own |= {f"methods.{item.name}": item.resolve(self.settings[0]) for item in self.templates}
        code = {name: found for name, value in own.items() if (found := code_digest(name, value)) is not None}
        return {**config, "code": code} if code else config


def simulate(
    instance: Any,
    methods: Any,
    grid: Mapping[str, Iterable[Any]],
    seeds: Any,
    *,
    rng: Any,
    output: str | Path | None = None,
    overwrite: bool = False,
    table_format: str = "parquet",
    jobs: int = 1,
    backend: str = "loky",
    proxy: bool = True,
    progress: bool | None = None,
) -> pandas.DataFrame:
    """Run methods on every combination of a grid and every seed; return one row per cell, seed and method.

    instance: a name in `rpo.bandit.instances`, "package.module:name", a function of grid parameters and `rng` (and
    `n`, if it takes it) that returns a `ContextualBandit`, or one fixed bandit. methods: objectives, your own among
    them, `Maximin` (one with its reward class) or `Baseline`, in a list or a dict of names. An instance of one is
    taken as it is; a class, or functools.partial of it, takes beta and eta from the grid. An objective that `solve`
    does not take is minimised by `fit` over all policies, with its evidence. A baseline's reward_class may be a
    function of the problem, as `Maximin`'s. grid: lists over n, beta, eta, instance parameters and, for any
    instance, label_noise. seeds: a number or a list.

    Columns: the grid's, seed, method, gap (comparator greedy on r*; reward units), reward/gold,
    reward/proxy (NaN with proxy=False or without a certified maximum-likelihood reward in the method's class),
    kl/reference, then the evidence: duality_gap, relative_gap, tv_bound, status ("certified", "exact",
    "stationary", "infimum approached", "inaccurate" or "failed"), message (empty where certified), and the objective's
    fields. What fails is a row, and all that failed is one warning.

    Draws: the problems of a block of 100 seeds, seed // 100 being its number, come from SeedSequence([root, 3, hash of
    instance and parameters, block]), their data from [root, 4, hash with n too, block], a method's own randomness from
    [root, 2, hash with the method, seed]; root is `rng` where that is an int, else drawn from it. A block is always
    drawn whole (a smaller one where X A^2 is above 1e4), so draws depend on neither order, jobs, the other seeds nor
    the rest of the grid; every method, beta and eta sees the same data (compare them in pairs), and every n the same
    problems, unless the instance takes n. An instance of your own is drawn seed by seed, from [root, 0, ..., seed] and
    [root, 1, ..., seed].

    The numbers of a cell, unlike its draws, may differ in the last digits where the seeds run beside it or the
    kind of processor differ.

    output: folder for the table, its timings and the finished chunks; the same call continues a killed one, and
    the table's bytes are those of an uninterrupted run. Finished rows are taken only while the code of your own
    instance and methods is what it was (`rpo.bandit.simulation.code`); rows that failed for another reason than
    data without a minimiser are computed again, with their chunk. attrs["rows_reused"] counts those taken. Memory
    is that of a chunk a job, and of the table.
    table_format: "parquet" or "csv". jobs, backend: joblib's, -1 for all cores; "dask" and "ray" use the
    cluster that is connected. progress: None draws a bar on terminals only.

    Raises InvalidArgument, GridMismatch, OutputError, MissingDependency; warns CorruptShard, FailedRows, MixedCode.
    """
    checks.one_of("table_format", table_format, tuple(TABLES))
    workers = checks.integer("jobs", jobs, minimum=-1)
    if workers == 0:
        raise InvalidArgument("jobs", expected="an integer >= 1, or -1 for all cores", got=0, remedy="Pass jobs=1.")
    with joblib_context(workers, backend):
        pass  # a backend that is not there is refused now
    plan = make_plan(instance, methods, grid, seeds, rng=rng, proxy=proxy)
    if output is None:
        kept: dict[int, dict[str, list[Any]]] = {}
        for index, columns, _ in _solved(plan, range(len(plan.chunks)), workers, backend, progress):
            kept[index] = columns
        frame = _frame(plan, (kept.pop(index) for index in range(len(plan.chunks))))
        _warn_of_failures(frame)
        return frame

    if table_format == "parquet":
        _need_pyarrow()
    with alone(check_output(output, overwrite=overwrite, marker=MANIFEST, goes_on=True)):
        frame = _written(plan, output, overwrite, table_format, workers, backend, progress)
    _warn_of_failures(frame)
    return frame


def _written(
    plan: Plan, output: str | Path, overwrite: bool, table_format: str, jobs: int, backend: str, progress: bool | None
) -> pandas.DataFrame:
    """Solve what `output` lacks, write the table there, and return it."""
    store = GridStore(output, plan.config(), overwrite=overwrite)
    pending, reused = [], 0
    for index in range(len(plan.chunks)):
        found = store.load(index)
        if found is None or retried(found[0]):
            pending.append(index)
        else:
            reused += len(found[0]["gap"])
    for index, columns, seconds in _solved(plan, pending, jobs, backend, progress):
        store.save(index, columns, seconds)
    timings = ["chunk,rows,seconds"]
    frame = _frame(plan, _stored(plan, store, timings))
    buffer = io.BytesIO()
    if table_format == "parquet":
        frame.to_parquet(buffer, index=False, engine="pyarrow")
    else:
        frame.to_csv(buffer, index=False, lineterminator="\n")
    store.write(TABLES[table_format], buffer.getvalue())
    store.write(TIMINGS, "\n".join(timings) + "\n")
    frame.attrs["rows_reused"] = reused  # not before the table is written: it is the same however it was computed
    return frame


def _warn_of_failures(frame: pandas.DataFrame) -> None:
    failed = frame[frame["status"] == "failed"]
    if failed.empty:
        return
    counts = ", ".join(f"{number} of {name}" for name, number in failed["method"].value_counts().sort_index().items())
    first = failed.iloc[0]
    message = (
        f"{len(failed)} of {len(frame)} rows failed and have no numbers ({counts}). "
        f"The first, {first['method']} at seed {first['seed']}: {first['message']}"
    )
    warnings.warn(FailedRows(message), stacklevel=3)


def make_plan(instance: Any, methods: Any, grid: Any, seeds: Any, *, rng: Any, proxy: bool = True) -> Plan:
    """Check every argument of `simulate` and lay out its chunks, which depend on nothing else."""
    origin = source(instance)
    table = axes(grid, origin)
    settings = product({key: table[key] for key in ("beta", "eta") if key in table})
    units = product({key: values for key, values in table.items() if key not in ("beta", "eta")})
    templates = _templates(methods, settings)
    listed, root = seed_list(seeds), root_seed(rng)
    chunks = []
    for number, unit in enumerate(units):
        # One draw of each kind of problem is built here, so that a mistake is one error and not a table of failures.
        cell = Cell(origin, unit, listed[:1], root)
        cell.check(item.resolve(settings[0]) for item in templates)
        size = max(1, min(CHUNK_SEEDS, CHUNK_ENTRIES // cell.entries))
        chunks += [(number, listed[at : at + size]) for at in range(0, len(listed), size)]
    return Plan(
        source=origin,
        templates=templates,
        table=table,
        units=units,
        settings=settings,
        seeds=listed,
        root=root,
        proxy=bool(proxy),
        chunks=chunks,
    )


def _templates(methods: Any, settings: list[dict[str, float]]) -> tuple[Template, ...]:
    if isinstance(methods, Mapping):
        pairs = [(str(name), method) for name, method in methods.items()]
    elif checks.is_listed(methods):
        pairs = [(None, method) for method in methods]  # type: ignore[misc]
    else:
        pairs = [(None, methods)]  # type: ignore[list-item]
    found = [template(name, method, settings[0]) for name, method in pairs]
    names = [item.name for item in found]
    if not names or len(set(names)) < len(names):
        raise InvalidArgument(
            "methods",
            expected="one or more methods with different names",
            got=", ".join(names) or "none",
            remedy="Pass a dict of names, such as {'box': RPO, 'free': Maximin(RPO, 'unconstrained')}.",
        )
    for item in found:
        for setting in settings:
            describe(item.resolve(setting))
    return tuple(sorted(found, key=lambda item: item.name))


def _solved(
    plan: Plan, pending: Iterable[int], jobs: int, backend: str, progress: bool | None
) -> Iterator[tuple[int, dict[str, list[Any]], float]]:
    """Yield (index, columns, seconds) of the chunks as they are done, in any order."""
    todo = list(pending)
    with steady():
        results = (_task(plan.part(index), index, os.getpid()) for index in todo)
        if (jobs != 1 or backend in ("dask", "ray")) and todo:
            results = _parallel(plan, todo, jobs, backend)
        # zip asks the bar first: it moves when a chunk is done
        try:
            for _, result in zip(track(range(len(todo)), "simulate", show=progress), results, strict=False):
                yield result
        except BrokenExecutor as error:
            raise RPOError(
                "jobs: a worker process was killed, by the system for want of memory or by hand. What is finished is "
                "kept in the output folder, if one was given; the same call continues. Pass fewer jobs."
            ) from error


def _parallel(plan: Plan, todo: list[int], jobs: int, backend: str) -> Any:
    import joblib
    from joblib.parallel import get_active_backend

    with joblib_context(jobs, backend):
        streams = get_active_backend()[0].supports_return_generator
        call = joblib.delayed(_task)
        if streams:
            work = (call(plan.part(index), index, os.getpid()) for index in todo)
            yield from joblib.Parallel(return_as="generator_unordered")(work)
            return
        wave = 8 * max(1, joblib.effective_n_jobs())
        for at in range(0, len(todo), wave):
            yield from joblib.Parallel()(call(plan.part(i), i, os.getpid()) for i in todo[at : at + wave])


def joblib_context(jobs: int, backend: str) -> Any:
    """Return joblib's context for this backend, or refuse a backend that is not there."""
    import joblib

    # Batches of 10 x 10 matrices gain nothing from threads below; two jobs would fight for the cores.
    inner = {"inner_max_num_threads": 1} if backend == "loky" else {}
    try:
        if backend == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        return joblib.parallel_config(backend=backend, n_jobs=jobs, **inner)
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise InvalidArgument(
            "backend",
            expected="a joblib backend that is installed, and connected if it is a cluster",
            got=f"{backend!r} ({' '.join(str(error).split())})",
            remedy="Use 'loky' on one machine; for 'dask', create a distributed.Client first.",
        ) from error


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Hold what is the process's, not a thread's: one BLAS thread, and silence where a row's status speaks.

    The last bits of a matrix product depend on the number of threads, and tables are compared as bytes.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", InaccurateSolution)
        yield


def _task(part: Plan, index: int, parent: int) -> tuple[int, dict[str, list[Any]], float]:
    began = time.perf_counter()
    with contextlib.nullcontext() if os.getpid() == parent else steady():
        columns = part.solve(0)
    return index, columns, time.perf_counter() - began


def _stored(plan: Plan, store: GridStore, timings: list[str]) -> Iterator[dict[str, list[Any]]]:
    for index in range(len(plan.chunks)):
        found = store.load(index)
        if found is None:
            raise RPOError(f"output: chunk {index} in {store.folder} vanished while it was read. Run again to mend it.")
        timings.append(f"{index},{len(found[0]['gap'])},{found[1]:.6f}")
        yield found[0]


def _frame(plan: Plan, parts: Iterable[dict[str, list[Any]]]) -> pandas.DataFrame:
    """Return the rows of all chunks, sorted by cell, seed and method."""
    import pandas

    names = [item.name for item in plan.templates]
    frames, rank, seed = [], [], []
    for (unit, seeds), columns in zip(plan.chunks, parts, strict=True):
        frames.append(pandas.DataFrame({key: np.asarray(columns[key], dtype=kind) for key, kind in OUTCOMES.items()}))
        settings = np.arange(len(plan.settings)) + unit * len(plan.settings)
        rank.append(np.repeat(settings, len(seeds) * len(names)))
        seed.append(np.tile(np.repeat(np.asarray(seeds, dtype=np.int64), len(names)), len(plan.settings)))
    cell = np.concatenate(rank)
    order = np.argsort(cell, kind="stable")  # within a cell, chunks came by seed and method
    cell = cell[order]
    cells = [{**unit, **setting} for unit in plan.units for setting in plan.settings]
    head: dict[str, Any] = {key: pandas.Series([item[key] for item in cells]).take(cell).array for key in plan.table}
    label = np.tile(np.asarray(names, dtype=object), cell.size // len(names))
    head |= {"seed": np.concatenate(seed)[order], "method": label}
    outcome = pandas.concat(frames, ignore_index=True).take(order)
    return pandas.concat([pandas.DataFrame(head), outcome.reset_index(drop=True)], axis=1)


def _need_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            "table_format: 'parquet' needs pyarrow. Run: pip install 'rpo-lab[parquet]', or pass table_format='csv'."
        ) from error
