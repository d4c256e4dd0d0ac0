"""What every command shares: one parser style, exit codes, and errors without tracebacks.

Exit codes: 0 done, 1 failed, 2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from huggingface_hub.utils import logging as hub_logging

from talk2dino.config import environment_number
from talk2dino.progress import Progress

DONE, FAILED, WRONG_ARGUMENTS, INTERRUPTED = 0, 1, 2, 130

# What a user's files and arguments can cause. Anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, RuntimeError, ImportError, MemoryError)

_LONGEST = 4000  # characters of a message


@dataclass(frozen=True)
class Command:
    """One command of the project."""

    name: str
    """The word after `python -m talk2dino`."""
    summary: str
    """One line for the list of commands."""
    example: str
    """A command line that works, shown by --help."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Declares the flags."""
    check: Callable[[argparse.Namespace], Any]
    """Raises ValueError or OSError for wrong arguments, before anything expensive starts; returns
    what `run` needs to know."""
    run: Callable[[argparse.Namespace, Any], int]
    """Does the work with what `check` found; returns the exit code."""
    add_more: Callable[[argparse.ArgumentParser, Sequence[str] | None], None] | None = None
    """Declares the flags that depend on the command line."""
    after_interrupt: str = "run the same command again to go on"
    """What a user can do after Ctrl-C."""

    def parser(
        self, prog: str | None = None, argv: Sequence[str] | None = None, more: bool = True
    ) -> argparse.ArgumentParser:
        """The command's parser; long flags are never abbreviated.

        Args:
            prog: what the command is called.
            argv: the command line, on which some flags depend.
            more: declare those too, which takes a second.
        """
        parser = _Parser(
            prog=prog,
            description=self.summary,
            epilog=f"example:\n  {self._example(prog)}",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self.add_arguments(parser)
        if more and self.add_more is not None:
            self.add_more(parser, argv)
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parser.add_argument("--verbose", action="store_true", help="print what is going on inside")
        return parser

    def main(self, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
        """Run the command; returns its exit code."""
        return run_command(self, argv, prog)

    def _example(self, prog: str | None) -> str:
        """The example by the name that the command was called by: a script's, or the module's."""
        words = self.example.split(" ", 2)
        if prog is None or words[1] == "-m":
            return self.example
        return " ".join([prog, *words[2:]])


def typed_command(
    command: Command, script: str, args: argparse.Namespace, but: Sequence[str] = ()
) -> str:
    """A command line that does the same: every flag that is not at its default.

    Args:
        command: whose flags they are.
        script: the root script, for example `train.py`.
        args: the parsed flags; attributes that are no flags do not count.
        but: flags that do not change the result, and are left out.
    """
    words = ["python", script]
    for action in command.parser(argv=getattr(args, "typed", None))._actions:
        value = getattr(args, action.dest, None)
        if value == action.default or action.dest in ("help", "debug", "verbose", *but):
            continue
        if action.nargs == 0 and value != action.const:
            continue  # the other one of a pair like --x and --no_x
        off = [flag for flag in action.option_strings if flag.startswith("--no_")]
        if value is False and off:
            words.append(off[0])
            continue
        words.append(action.option_strings[0])
        if value != action.const:
            words += [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return shlex.join(words)


def run_command(
    command: Command, argv: Sequence[str] | None = None, prog: str | None = None
) -> int:
    """Parse, check and run; turns errors into one line on stderr and an exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        parser = command.parser(prog, argv)
        args = parser.parse_args(argv, argparse.Namespace(typed=argv))
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a wrong flag
        return stop.code if isinstance(stop.code, int) else WRONG_ARGUMENTS
    except ValueError as error:  # of a default that depends on the environment
        return _report(error, WRONG_ARGUMENTS, debug=False)
    _set_up_logging(args.verbose)
    code = WRONG_ARGUMENTS
    try:
        found = command.check(args)
        code = FAILED
        return command.run(args, found)
    except KeyboardInterrupt:
        print(f"interrupted; {command.after_interrupt}", file=sys.stderr)
        return INTERRUPTED
    except USER_ERRORS as error:
        return _report(error, code, args.debug)


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s: %(message)s",
    )
    if not verbose:  # a download that fails is reported once, not at every attempt
        hub_logging.set_verbosity_error()


def _report(error: BaseException, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    message = str(error) or type(error).__name__
    if len(message) > _LONGEST:  # of something damaged that it repeats
        message = f"{message[: _LONGEST // 2]} [...] {message[-_LONGEST // 2 :]}"
    print(f"error: {message}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Adds to a complaint what a misspelt flag was probably meant to be."""

    given: Sequence[str] = ()

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def,override]
        self.given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for word in (word.partition("=")[0] for word in self.given):
            if word.startswith("--") and word not in known:
                close = difflib.get_close_matches(word, known, n=1)
                message += f"\nunknown flag {word}."
                message += f" Did you mean {close[0]}?" if close else ""
        super().error(message)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the example's line breaks and shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action.default, bool) or action.default in (None, "", []):
            return action.help
        if isinstance(action.default, list):  # as it would be typed
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def local_processes() -> int:
    """How many processes of this job share the machine; `torch.distributed.run` says it."""
    return environment_number("LOCAL_WORLD_SIZE", 1, least=1)


def core_share() -> int:
    """This process's share of the cores that it may use, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // local_processes())


def bar_of(unit: str, shown: bool = True) -> Progress:
    """Makes bars that count something: at once on a terminal, twice a minute in a log."""
    from tqdm import tqdm

    def make(total: int, done: int) -> tqdm[Any]:
        return tqdm(
            total=total,
            initial=done,
            unit=f" {unit}",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30,
            disable=not shown,
        )

    return make


def step_bar(steps: Iterable[int], epoch: int, total: int) -> Iterable[int]:
    """A bar for one epoch, if someone is looking."""
    from tqdm import tqdm

    remaining = list(steps)
    return tqdm(
        remaining,
        desc=f"epoch {epoch}",
        total=total,
        initial=total - len(remaining),
        unit="step",
        leave=False,
        disable=None,
    )
