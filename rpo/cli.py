"""The `rpo` command: every subcommand takes --config file.yaml, then overrides, and saves what it resolved."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from rpo import __version__
from rpo.commands import (
    atlas,
    benchmark,
    chat,
    compare,
    convert_config,
    convert_gguf,
    data_check,
    diagnose,
    enumerable,
    explore,
    foreign_config,
    generate,
    judge,
    merge,
    methods,
    plot,
    sentiment,
    simulate,
    solve,
    sweep,
    train,
    train_page,
)
from rpo.commands.choices import Choice, Given, objectives
from rpo.commands.help_page import EVERYTHING, HelpPage, Sections, arrange, describe, meant, shorten, with_suggestion
from rpo.commands.parsing import (
    PARSE_ERRORS,
    config_mistakes,
    impossible_values,
    instantiate,
    parse_mistakes,
    resolved_text,
    settle_parsing,
)
from rpo.core import shown
from rpo.core.errors import InaccurateSolution, LookAlikeLabels, RPOError
from rpo.core.locks import alone

NOTHING = "Nothing was written; the same command starts again."


class Command(NamedTuple):
    """A function whose signature makes the options; `positional` names the one given without its name.

    several: whether it may be given several times. preflight: looks over the parsed options before
    anything runs. hints: what to do about mistakes of parsing, beside each; foreign: about other programs' options.
    folder: the option with the folder that a run has alone. kept: what an interrupted run leaves
    and how to go on, in words ({output} stands for that option). sections: of its --help, where not every option is
    shown at first; epilogue: what stands below them; hidden: options that only say where their value belongs.
    sweeps: whether its files may have a grid.
    """

    function: Callable[..., None]
    positional: str | None = None
    several: bool = False
    preflight: Callable[[Namespace], list[RPOError]] | None = None
    hints: Callable[[Sequence[str]], list[str]] | None = None
    foreign: Callable[[str], str] = lambda _: ""
    also: tuple[str, ...] = ()
    depends: Callable[[type], dict[str, type]] | None = None
    folder: str | None = "output"
    kept: str | Callable[[Namespace], str] = NOTHING
    sections: Sections | None = None
    epilogue: str | None = None
    hidden: tuple[str, ...] = ()
    sweeps: bool = False

    @property
    def summary(self) -> str:
        return (self.function.__doc__ or "").splitlines()[0]

    def settle(self, given: Given) -> Choice | None:
        """Return the objective that the options name, of a command that takes one."""
        parameter = inspect.signature(self.function).parameters.get(OBJECTIVE)
        if parameter is None:
            return None
        given.refuse_foreign("training")
        return given.settle(OBJECTIVE, objectives(self.also), parameter.default)


OBJECTIVE = "objective"
LONGEST_WORD = 400  # of a message: a value that is thousands of characters long is shown in part
CHUNKS = "The finished chunks are kept in {output}; the same command continues."
VERDICTS = "The verdicts so far are kept in {output}; the same command asks the rest."
STAGES = "The finished stages are kept in {output}; the same command continues."
COMMANDS: dict[str, Command] = {
    "solve": Command(solve.solve_command, "pairs"),
    "methods": Command(methods.methods_command, folder=None),
    "simulate": Command(simulate.simulate_command, kept=CHUNKS),
    "atlas": Command(atlas.atlas_command, kept=CHUNKS),
    "compare": Command(compare.compare_command),
    # Of several processes one alone has the folder: `fit` sees to it.
    "train": Command(
        train.train_command,
        preflight=train.preflight,
        hints=train.hints,
        foreign=foreign_config.answer,
        also=("SFT", "BradleyTerry"),
        depends=train.depends,
        folder=None,
        kept=train.kept,
        sections=train_page.SECTIONS,
        epilogue=train_page.EPILOGUE,
        hidden=tuple(f"training.{name}" for name in train.OWN_OPTIONS),
        sweeps=True,
    ),
    "data check": Command(data_check.data_check_command, "source"),
    "diagnose": Command(diagnose.diagnose_command, "model"),
    "generate": Command(generate.generate_command, folder=None),
    "chat": Command(chat.chat_command, "model", folder=None, kept="Nothing is kept of what was said."),
    "merge": Command(merge.merge_command, "models", several=True),
    "plot": Command(plot.plot_command, "runs", several=True, folder=None),
    "explore": Command(explore.explore_command, folder=None),
    "judge": Command(judge.judge_command, "responses", several=True, kept=VERDICTS),
    "experiment enumerable": Command(enumerable.gold_command),
    "experiment sentiment": Command(sentiment.sentiment_command, kept=STAGES),
    "benchmark alpaca-eval": Command(benchmark.alpaca_eval_command),
    "benchmark mt-bench": Command(benchmark.mt_bench_command),
    "benchmark lm-eval": Command(benchmark.lm_eval_command),
    "benchmark reward-bench": Command(benchmark.reward_bench_command, "data"),
    "benchmark table": Command(benchmark.table_command, "sources", several=True),
    "convert-config": Command(convert_config.convert_config_command, "recipe", folder=None),
    "convert-gguf": Command(convert_gguf.convert_gguf_command, "path"),
}
GROUPS = {
    "data": "Look at preference data.",
    "experiment": "Overoptimization where the gold reward is known.",
    "benchmark": "Run or export to the benchmarks people use, and read their results.",
}


def build_parser(
    asked: str | None, objective: Choice | None = None, *, everything: bool = False
) -> tuple[ArgumentParser, ArgumentParser | None]:
    """Return the parser of `rpo` and that of the command asked for, with the options of the objective chosen.

    objective: None for the command's own. everything: whether its help shows what no section has. The others are
    listed with their summaries only: reading the options of `train` imports transformers.
    """
    settle_parsing()
    description = "Regularized Preference Optimization: theory, training, and the comparison of both."
    parser = ArgumentParser(
        prog="rpo",
        description=description,
        version=__version__,
        formatter_class=HelpPage,  # of the commands too
        exit_on_error=False,
        allow_abbrev=False,
    )
    listed = parser.add_subcommands(dest="command", required=True, metavar="COMMAND")
    groups = {"": listed}
    for name, summary in GROUPS.items():
        group = ArgumentParser(description=summary, exit_on_error=False, allow_abbrev=False)
        listed.add_subcommand(name, group, help=summary)
        group.prog = f"rpo {name}"
        groups[name] = group.add_subcommands(dest="command", required=True, metavar="COMMAND")
    chosen = None
    for name, command in COMMANDS.items():
        group_name, _, last = name.rpartition(" ")
        sub = ArgumentParser(
            description=command.summary,
            epilog=command.epilogue,
            exit_on_error=False,
            allow_abbrev=False,
        )
        if name == asked:
            _add_options(sub, command, objective or command.settle(Given([])))
            if command.sections is not None:
                arrange(sub, command.sections, everything=everything)
            chosen = sub
        groups[group_name].add_subcommand(last, sub, help=command.summary)
        sub.prog = f"rpo {name}"
    return parser, chosen


def _add_options(sub: ArgumentParser, command: Command, objective: Choice | None) -> None:
    sub.add_argument("--config", action="config", help="YAML file with any of the options below", metavar="FILE")
    depending = {} if objective is None or command.depends is None else command.depends(objective.kind)
    skip = {"resolved", OBJECTIVE, *depending}
    if command.several:
        sub.add_argument(command.positional, nargs="+", metavar=str(command.positional).upper())
        skip.add(str(command.positional))
    one = command.positional is not None and not command.several
    if one:
        sub.add_function_arguments(command.function, skip=skip | _others(command), as_positional=True, as_group=False)
        skip.add(str(command.positional))
    sub.add_function_arguments(command.function, skip=skip)
    if objective is not None:
        objective.add_options(sub)
    for key, kind in depending.items():
        sub.add_class_arguments(kind, key)
        describe(sub, key, kind)
    shorten(sub, command.hidden)


def _others(command: Command) -> set[str]:
    return set(command.function.__annotations__) - {command.positional, "return"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 2 after one line on stderr for each thing the user can mend, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = next((name for name in COMMANDS if given[: name.count(" ") + 1] == name.split()), None)
    kept = COMMANDS[name].kept if name is not None else NOTHING
    options = Namespace()
    try:
        return _main(given, name, options)
    except KeyboardInterrupt:
        if isinstance(kept, str) and not vars(options):  # not parsed yet
            kept = NOTHING
        said = kept.format(**vars(options)) if isinstance(kept, str) else kept(options)
        print(f"rpo{'' if name is None else f' {name}'}: interrupted. {said}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough (`rpo ... | head`); what is left unsaid must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"rpo {name}", [error])  # a path the command was given, or the disk under it


class Prepared(NamedTuple):
    """A command line that was read and can be run: options, the objects they describe, and what config.yaml says."""

    options: Namespace
    values: dict[str, Any]
    resolved: str


class Mistakes(Exception):
    """What is wrong with a command line: who says it, and each mistake."""

    def __init__(self, who: str, errors: Sequence[object]) -> None:
        super().__init__(who)
        self.who, self.errors = who, errors


def _main(given: list[str], name: str | None, options: Namespace) -> int:
    """Do the work of `main`; `options` is filled with what was parsed."""
    if name is None:
        return _without_command(build_parser(None)[0], given)
    settle_parsing()
    rest = given[name.count(" ") + 1 :]
    try:
        grid, rest = sweep.taken_out(rest) if COMMANDS[name].sweeps and not config_mistakes(rest) else (None, rest)
        if grid is None:
            return _execute(name, _prepare(name, rest, options))

        def execute(one: Prepared) -> int:
            options.update(one.options)  # of the run under way, for what Ctrl-C says
            return _execute(name, one)

        return sweep.run_sweep(grid, rest, lambda one: _prepare(name, one, Namespace()), execute)
    except Mistakes as mistakes:
        return _refuse(mistakes.who, mistakes.errors)
    except RPOError as error:
        return _refuse(f"rpo {name}", [error])


def _prepare(name: str, rest: Sequence[str], options: Namespace) -> Prepared:
    """Read a command line; `options` is filled with what was parsed. Raises Mistakes."""
    lines = config_mistakes(rest)
    read = Given([] if lines else rest)
    command = COMMANDS[name]
    objective = command.settle(read)
    parser, sub = build_parser(name, objective, everything=list(rest[:2]) == EVERYTHING)
    if sub is None:
        raise Mistakes("rpo", [f"COMMAND: got {name!r}, which is none (see rpo --help)"])
    known = {action.dest for action in sub._actions}
    if "lora" in known:  # whose fields are options without an action of their own
        known |= {f"lora.{field}" for field in train.Lora.__dataclass_fields__}
    read.use_own_names(known)
    lines += map(str, read.mistakes)
    try:
        config: Any = None if lines and not read.mistakes else parser.parse_args([*name.split(), *read.arguments])
    except PARSE_ERRORS as error:
        found = parse_mistakes(sub, read.arguments, error)
        plain = [line.replace(f"{name.replace(' ', '.')}.", "") for line in found]
        lines += [with_suggestion(line, sub, command.foreign) for line in plain]
    if lines:
        lines = (command.hints or (lambda _: []))(rest) or lines  # of a foreign recipe every key would be one
        raise Mistakes("rpo", [f"{line} (see rpo {name} --help)" for line in lines])
    for part in name.split():
        config = config[part]
    options.update(config.clone())
    options.pop("config", None)
    errors: list[RPOError] = impossible_values(options)
    if errors:
        raise Mistakes(f"rpo {name}", errors)
    for note in read.notes:
        print(f"rpo {name}: note: {shown.line(note)}", file=sys.stderr)
    values, errors = instantiate(sub, options)
    if objective is not None:
        try:
            values[OBJECTIVE] = objective.make(options[OBJECTIVE])
        except RPOError as error:
            errors.append(error)
    if command.preflight is not None:
        errors += command.preflight(options)
    if errors:
        raise Mistakes(f"rpo {name}", errors)
    return Prepared(options, values, resolved_text(sub, options))


def _execute(name: str, ready: Prepared) -> int:
    """Run a command that was read; 2 after a line on stderr if it fails."""
    command = COMMANDS[name]
    folder = None if command.folder is None else ready.options[command.folder]
    try:
        with warnings.catch_warnings(), contextlib.nullcontext() if folder is None else alone(folder):
            # The commands print the same sentences themselves.
            for kind in (InaccurateSolution, LookAlikeLabels):
                warnings.simplefilter("ignore", kind)
            command.function(**ready.values, resolved=ready.resolved)
    except RPOError as error:
        return _refuse(f"rpo {name}", [error])
    return 0


def _without_command(parser: ArgumentParser, given: list[str]) -> int:
    """Answer --help, --version and whatever names no command."""
    words = list(itertools.takewhile(lambda one: not one.startswith("-"), given))
    if words and words not in ([group] for group in GROUPS):
        near = meant(" ".join(words[:2]), COMMANDS) or meant(words[0], [*COMMANDS, *GROUPS])
        said = f"; did you mean {' or '.join(near)}?" if near else ", which is none"
        group = words[0] if words[0] in GROUPS else ""
        return _refuse("rpo", [f"COMMAND: got {' '.join(words[:2] if group else words[:1])!r}{said} (see rpo --help)"])
    try:
        parser.parse_args(given)
    except ArgumentError as error:
        return _refuse("rpo", [f"{' '.join(str(error).split())} (see rpo --help)"])
    return 0


def _refuse(who: str, errors: Sequence[object]) -> int:
    for error in errors:
        words = (word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD]}..." for word in str(error).split())
        print(f"{who}: error: {shown.line(' '.join(words))}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
