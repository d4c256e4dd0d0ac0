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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from huggingface_hub.utils import logging as hub_logging

from talk2dino.cli.flags import add_flags
from talk2dino.config import environment_number
from talk2dino.progress import Progress

DONE, FAILED, WRONG_ARGUMENTS, INTERRUPTED = 0, 1, 2, 130

# What a user's files and arguments can cause. Anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, RuntimeError, ImportError, MemoryError)

C = TypeVar("C", bound="Command")
_LONGEST = 4000  # characters of a message


class Command:
    """One command: its fields are its flags, its docstring says what it does.

    A line of the command is an object of the class: `argparse` fills in the fields.
    """

    script: ClassVar[str]
    """What is run: a script of the checkout, else `-m talk2dino <command>`."""
    example: ClassVar[str]
    """Flags that work, shown by --help."""
    positional: ClassVar[Sequence[str]] = ()
    """Fields that are given without a flag."""
    details: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Field -> what `add_flags` does not see in its type."""
    gone: ClassVar[Mapping[str, str]] = {}
    """Flag of earlier versions -> what takes its place."""
    after_interrupt: ClassVar[str] = "run the same command again to go on"
    """What a user can do after Ctrl-C."""

    debug: bool = False
    """Show the traceback of an error."""
    verbose: bool = False
    """Print what is going on inside."""
    typed: Sequence[str] = ()  # the words of the line

    def __init_subclass__(cls) -> None:
        name = cls.__module__.rpartition(".")[2].replace("_", "-")
        cls.script = vars(cls).get("script", f"-m talk2dino {name}")

    def check(self) -> Any:
        """Raise ValueError or OSError for wrong arguments, before anything expensive starts.

        Returns:
            What `run` needs to know.
        """

    def run(self, found: Any) -> int:
        """Do the work with what `check` found; returns the exit code."""
        raise NotImplementedError

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the flags: one for each field, unless the command says otherwise."""
        cls.own_flags(parser)

    @classmethod
    def own_flags(cls, parser: argparse._ActionsContainer, *names: str, **changes: Any) -> None:
        """Declare flags of the command's fields; see `add_flags`."""
        changes = {**cls.details, **changes}
        for name in cls.positional:
            changes[name] = {"flags": (), **changes.get(name, {})}
        add_flags(parser, cls, *names, **changes)

    @classmethod
    def add_more(cls, parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
        """Declare the flags that depend on the command line."""

    @classmethod
    def parser(cls, prog: str | None = None, argv: Sequence[str] = ()) -> argparse.ArgumentParser:
        """The command's parser; long flags are never abbreviated.

        Args:
            prog: what the command is called.
            argv: the command line, on which some flags depend.
        """
        parser = _Parser(
            prog=prog,
            description=cls.summary(),
            epilog=f"example:\n  {prog or f'python {cls.script}'} {cls.example}",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        parser.given, parser.gone = argv, cls.gone
        cls.add_arguments(parser)
        cls.add_more(parser, argv)
        add_flags(parser, "cli.entry:Command", "debug", "verbose")
        return parser

    @classmethod
    def summary(cls) -> str:
        """One line for the list of commands."""
        return (cls.__doc__ or "").partition("\n")[0]

    @classmethod
    def parse(cls: type[C], argv: Sequence[str], prog: str | None = None) -> C:
        """The command with the flags of a command line; argparse exits if they are wrong."""
        command, parser = cls(), cls.parser(prog, argv)
        command.typed = argv
        parser.parse_args(argv, command)
        typed = {word.partition("=")[0] for word in argv}
        for action in parser._actions:  # argparse would take the last one in silence
            names = sorted(typed.intersection(action.option_strings))
            if len(names) > 1:
                raise ValueError(f"{' and '.join(names)} are one flag. Give one of them.")
        return command

    def line(self, *without: str) -> str:
        """The command line for the record, without flags that do not change the result."""
        words = [word for word in self.typed if word not in without]
        return f"python {self.script} {shlex.join(words)}"

    @classmethod
    def main(cls, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
        """Parse, check and run; turns errors into one line on stderr and an exit code."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # names of files need not be UTF-8
                stream.reconfigure(errors="backslashreplace")
        argv = sys.argv[1:] if argv is None else list(argv)
        code = WRONG_ARGUMENTS
        try:
            command = cls.parse(argv, prog)
            _set_up_logging(command.verbose)
            found = command.check()
            code = FAILED
            return command.run(found)
        except SystemExit as stop:  # argparse: 0 after --help, 2 after a wrong flag
            return stop.code if isinstance(stop.code, int) else WRONG_ARGUMENTS
        except KeyboardInterrupt:
            print(f"interrupted; {cls.after_interrupt}", file=sys.stderr)
            return INTERRUPTED
        except USER_ERRORS as error:
            if "--debug" in argv:
                traceback.print_exception(error)
            message = str(error) or type(error).__name__
            if len(message) > _LONGEST:  # of something damaged that it repeats
                message = f"{message[: _LONGEST // 2]} [...] {message[-_LONGEST // 2 :]}"
            print(f"error: {message}", file=sys.stderr)
            return code


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s: %(message)s",
    )
    if not verbose:  # a download that fails is reported once, not at every attempt
        hub_logging.set_verbosity_error()


class _Parser(argparse.ArgumentParser):
    """Adds to a complaint what a misspelt flag was probably meant to be."""

    given: Sequence[str] = ()
    gone: Mapping[str, str] = {}

    def error(self, message: str) -> NoReturn:
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for word in (word.partition("=")[0] for word in self.given):
            if word.startswith("--") and word not in known:
                close = difflib.get_close_matches(word, known, n=1)
                message += f"\nunknown flag {word}."
                if word in self.gone:
                    message += f" It went: {self.gone[word]}."
                else:
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


def free_memory() -> int | None:
    """Bytes that this machine can still give; all it has, or None, where the system says less."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = dict(line.split(":") for line in lines)["MemAvailable"]
        return int(found.removesuffix("kB")) * 1024
    except (OSError, LookupError, ValueError):  # not Linux
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def memory_share() -> float:
    """This process's share of the memory that is free; of 16 GB where nothing says it."""
    return (free_memory() or 16e9) / local_processes()


def bar_of(unit: str, shown: bool = True, **more: Any) -> Progress:
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
            **more,
        )

    return make


def step_bar(steps: Iterable[int], epoch: int, total: int) -> Iterable[int]:
    """A bar for one epoch; in a log from its first half minute on."""
    remaining, delay = list(steps), 0 if sys.stderr.isatty() else 30
    bars = bar_of("steps", desc=f"epoch {epoch}", leave=False, delay=delay)
    with bars(total, total - len(remaining)) as bar:
        for step in remaining:
            yield step
            bar.update(1)
