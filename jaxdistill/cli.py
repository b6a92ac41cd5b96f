"""`jaxdistill <command>`: parse, call one function, print. What the commands are: `cli_commands`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from jaxdistill import __version__, remote, signals
from jaxdistill.cli_commands import COMMANDS, FIELDS, FORMER_COMMANDS, FORMER_OPTIONS, RECIPES
from jaxdistill.errors import (
    LONGEST_LINE,
    BadInput,
    JaxDistillError,
    PreemptedNow,
    explained,
    nearest,
    shortened,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (0 done, 2 bad input, 3 stopped or not finite, 75
    preempted, 130 interrupted).

    Without `argv` it is the whole process's, and signals are its own from then on.
    """
    undo = signals.listen()
    try:
        return _main(argv)
    finally:
        if argv is not None:
            undo()


def _main(argv: Sequence[str] | None) -> int:
    given = [with_underscores(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    parser = build_parser()
    if hasattr(
        sys.stdout, "reconfigure"
    ):  # a terminal that knows ASCII alone is shown other letters as \u00e9
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if given and given[0] in FORMER_COMMANDS:
            raise BadInput(FORMER_COMMANDS[given[0]])
        try:
            options, rest = parser.parse_known_args(given)
        finally:  # --help prints and leaves
            _print()
        if options.command is None:
            _print(parser.format_help())
            return 2
        recipe = (
            options.command in ("train", "finetune")
            or bool(vars(options).get("config"))
            and options.command != "export"
        )
        options.overrides = split_overrides(options.command, rest, recipe)
        options.warnings, options.code = [], 0
        for name in (
            "absl",
            "asyncio",
            "gcsfs",
        ):  # orbax and gcsfs log with a traceback what it raises as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            result = options.run(options)
        except (
            ImportError
        ) as error:  # the package behind gs:// is only missed when a path is first touched
            if (lack := remote.lacks(error)) is not None:
                raise lack from error
            raise
        except Exception as error:
            if (said := remote.refused(error) or explained(error)) is not None:
                raise said from error
            raise
        _print(result)
        for warning in options.warnings:
            print(f"jaxdistill: warning: {warning}", file=sys.stderr, flush=True)
        return options.code
    except JaxDistillError as error:
        if error.exit_code in (75, 130) and argv is None:
            signals.ignore()
        signals.say(f"jaxdistill: {shortened(error, LONGEST_LINE)}")
        _leave_the_others(error.exit_code)
        return error.exit_code
    except (KeyboardInterrupt, Exception) as stop:
        if not isinstance(stop, KeyboardInterrupt) and signals.asked is None:
            raise
        if argv is None:
            signals.ignore()
        # Code below Python, and imports, may have made another error of what the handler raised.
        code = (
            stop.exit_code
            if isinstance(stop, PreemptedNow)
            else signals.CODES[signals.asked or signals.signal.SIGINT]
        )
        signals.say(signals.line(code))
        _leave_the_others(code)
        return code


def _print(result: str | None = None) -> None:
    """Writes the answer, and what is still in the buffer. Raises `JaxDistillError` unless standard
    output takes it."""
    try:
        if result is not None:
            print(result)
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(
            OSError, ValueError
        ):  # Python would try once more at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # `jaxdistill describe | head`
            raise JaxDistillError(
                f"the answer cannot be written to standard output: {error.strerror or error}"
            ) from error


def _leave_the_others(code: int) -> None:
    """One of several processes that fails must not wait for the others at exit, as JAX would have
    it for minutes."""
    if "jax" in sys.modules:
        import jax

        if jax.distributed.is_initialized() and jax.process_count() > 1:
            sys.stdout.flush()
            if jax.process_index() == 0:
                time.sleep(
                    3
                )  # it coordinates: without it the others could not end in their own way
            os._exit(code)
    if signals.ignoring:
        signals.leave(code)


def with_underscores(argument: str) -> str:
    """`--text-column=a-b` -> `--text_column=a-b`; fields of a recipe and values stay as they are."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or name.startswith("--config."):
        return argument
    return "--" + name[2:].replace("-", "_") + equals + value


def split_overrides(command: str, rest: Sequence[str], has_recipe: bool) -> list[str]:
    """`--config.a.b=1` -> `a.b=1`, and of a command on a task `--task.b=1` -> `feeds.task.b=1`;
    anything else left over is an error with the nearest option."""
    overrides = []
    for argument in rest:
        if command in ("finetune", "evaluate") and re.match("--task\\.[a-z_]+=", argument):
            overrides.append(f"feeds.task.{argument.removeprefix('--task.')}")
            continue
        if not argument.startswith("--config.") or "=" not in argument or not has_recipe:
            given = argument.split("=")[0]
            options = (
                [f"--{name}" for name in COMMANDS[command].options] if command in COMMANDS else []
            )
            advice = (
                "write --config.FIELD=VALUE"
                if argument.startswith("--config.") and has_recipe
                else FORMER_OPTIONS.get((command, given)) or nearest(given, options)
            )
            raise BadInput(f"argument {argument!r} of 'jaxdistill {command}' is unknown; {advice}")
        overrides.append(argument.removeprefix("--config."))
    return overrides


class OneLineParser(argparse.ArgumentParser):
    """argparse, with its complaints as `BadInput`."""

    def error(self, message: str) -> Any:
        raise BadInput(f"{message}; see '{self.prog} --help'")


class WithDefaults(argparse.HelpFormatter):
    """Help that ends in the default, where an option has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        given = action.default not in (None, "", argparse.SUPPRESS) and action.default is not False
        return f"{text} (default: %(default)s)".strip() if given else text


def program() -> str:
    """What the user typed: the usage line must work when it is copied."""
    module = os.path.basename(sys.argv[0]) == "__main__.py"
    return "python -m jaxdistill" if module else "jaxdistill"


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=program(), description="Compress BERT-type encoders with JAX.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"jaxdistill {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=OneLineParser)
    for name, command in COMMANDS.items():
        fields = FIELDS if command.options.get("config") in RECIPES else None
        sub = commands.add_parser(
            name,
            help=command.help,
            description=command.help,
            allow_abbrev=False,
            epilog=fields,
            formatter_class=WithDefaults,
        )
        if command.of:
            sub.add_argument(
                "of", choices=command.of, metavar="|".join(command.of), help="what to look for"
            )
        for option, keywords in command.options.items():
            sub.add_argument(f"--{option}", **keywords)
        sub.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
