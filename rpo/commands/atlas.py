"""`rpo atlas`: who overoptimizes, where and why."""

from __future__ import annotations


def atlas_command(
    output: str,
    seeds: int = 400,
    methods: list[str] | None = None,
    instances: list[str] | None = None,
    seed: int = 0,
    jobs: int = -1,
    overwrite: bool = False,
    resolved: str = "",
) -> None:
    """Run every method along its own knob on fixed instances; the same command continues a killed run.

    Args:
        output: folder for atlas.csv, atlas.md, atlas.png, atlas.html and the finished blocks.
        seeds: draws per instance; all methods share them.
        methods: names of those that enter beside DPO, null for all; `rpo methods` lists them.
        instances: names of those to run on, null for all.
        seed: every random draw descends from it.
        jobs: processes; -1 for one a core. The table does not depend on it.
        overwrite: drop an earlier atlas in that folder instead of continuing it.
    """
    from pathlib import Path

    from rpo.compare.atlas import INSTANCES, atlas, entrants
    from rpo.compare.atlas.report import verdict, write_atlas
    from rpo.core import checks
    from rpo.core.errors import InvalidArgument
    from rpo.core.records import write_file

    known = entrants()
    names = {one.method.__name__ for one in known} | {one.name for one in known}
    for name in methods or ():
        if ":" in name:
            raise InvalidArgument(
                "methods",
                expected="names of registered methods",
                got=name,
                remedy="A class of your own enters from Python, as an Entrant with its knob: docs/atlas.md.",
            )
        checks.one_of("methods", name, tuple(sorted(names)))
    for name in instances or ():
        checks.one_of("instances", name, tuple(one.name for one in INSTANCES))
    chosen = [one for one in known if methods is None or {one.name, one.method.__name__} & {*methods, "DPO"}]
    places = [one for one in INSTANCES if instances is None or one.name in instances]
    made = atlas(output, seeds=seeds, methods=chosen, instances=places, rng=seed, jobs=jobs, overwrite=overwrite)
    frame = write_atlas(made, output)
    write_file(Path(output) / "config.yaml", resolved)
    print(verdict(frame))
    page = Path(output) / "atlas.html"
    print(f"{len(chosen)} methods on {len(places)} instances, {seeds} seeds each: the page is {page}")
