"""The `rpo` command: every subcommand takes --config file.yaml, then overrides, and saves what it resolved."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from jsonargparse import ArgumentParser

from rpo import __version__, commands
from rpo.core.errors import InaccurateSolution, RPOError


class _Parser(ArgumentParser):
    """An ArgumentParser that answers a mistake with one line."""

    help_command = "rpo"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(str(message).split())
        print(f"rpo: error: {text} (see {self.help_command} --help)", file=sys.stderr)
        raise SystemExit(2)


COMMANDS: dict[str, Callable[..., None]] = {
    "solve": commands.solve_command,
    "simulate": commands.simulate_command,
    "compare": commands.compare_command,
}


def build_parser() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """Return the parser of `rpo`, and each subcommand's own."""
    description = "Regularized Preference Optimization: theory, training, and the comparison of both."
    parser = _Parser(prog="rpo", description=description, version=__version__)
    subcommands = parser.add_subcommands(dest="command", required=True, metavar="COMMAND")
    subparsers = {}
    for name, function in COMMANDS.items():
        summary = (function.__doc__ or "").splitlines()[0]
        sub = _Parser(description=summary)
        sub.add_argument("--config", action="config", help="YAML file with any of the options below")
        sub.add_function_arguments(function, skip={"resolved"}, as_positional=name == "solve")
        subcommands.add_subcommand(name, sub, help=summary)
        subparsers[name] = sub
    return parser, subparsers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 after one line on stderr for anything the user can mend."""
    parser, subparsers = build_parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    _Parser.help_command = f"rpo {given[0]}" if given and given[0] in COMMANDS else "rpo"
    config = parser.parse_args(given)
    name = config.command
    options = config[name].clone()
    options.pop("config", None)
    try:
        with warnings.catch_warnings():
            # The same sentence is in the printed status.
            warnings.simplefilter("ignore", InaccurateSolution)
            resolved = subparsers[name].dump(options, skip_unset=False)
            COMMANDS[name](**vars(subparsers[name].instantiate(options)), resolved=resolved)
    except RPOError as error:
        print(f"rpo {name}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
