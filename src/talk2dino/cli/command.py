"""What every command shares: flags from fields, exit codes, and errors without tracebacks.

Exit codes: 0 done, 1 failed, 2 wrong arguments, 130 interrupted. A flag's type, default and help
come from the field of a class: the command's own, or one that is read from its source, so that
--help needs no PyTorch.
"""

import argparse
import ast
import dataclasses
import difflib
import io
import itertools
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from huggingface_hub.utils import logging as hub_logging

import talk2dino
from talk2dino.config import environment_number
from talk2dino.progress import Progress

DONE, FAILED, WRONG_ARGUMENTS, INTERRUPTED = 0, 1, 2, 130

# What a user's files and arguments can cause. Anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, RuntimeError, ImportError, MemoryError)

C = TypeVar("C", bound="Command")
T = TypeVar("T")
_LONGEST = 4000  # characters of a message
_KINDS = {"bool": bool, "int": int, "float": float, "Path": Path, "str": str}
_KIND = re.compile(r"(list\[)?\b(bool|int|float|Path|str)\b")
_REQUIRED = object()


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
    """Show the traceback of an error, and what libraries do."""
    typed: Sequence[str] = ()  # the words of the line

    def __init_subclass__(cls) -> None:
        name = re.sub(r"\B([A-Z])", r"-\1", cls.__name__).lower()
        cls.script = vars(cls).get("script", f"-m talk2dino {name}")

    def check(self) -> Any:
        """Raise ValueError or OSError for wrong arguments, before anything expensive starts.

        Returns:
            What `run` needs to know.
        """

    def run(self, found: Any) -> int | None:
        """Do the work with what `check` found; returns the exit code if that is not DONE."""
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
        parser.given = argv
        parser.gone = {"--verbose": "--debug says it", **cls.gone}
        cls.add_arguments(parser)
        cls.add_more(parser, argv)
        add_flags(parser, "cli.command:Command", "debug")
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
            level = logging.INFO if command.debug else logging.WARNING
            logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
            if not command.debug:  # a download that fails is reported once, not at every attempt
                hub_logging.set_verbosity_error()
            found = command.check()
            code = FAILED
            return command.run(found) or DONE
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


def add_flags(
    parser: argparse._ActionsContainer, place: str | type, *names: str, **changes: Any
) -> None:
    """Declare a flag for fields of a class, called like them, with the strings under them.

    Args:
        parser: or a group of it.
        place: module below talk2dino and class, as in `features.job:Job`; or the
            class itself, with the fields of its bases.
        names: its fields; none for all. `field=flag` for another spelling of the flag, or for
            several: `field=flag|alias`.
        changes: field -> the command's own default, where the class has another or computes it, or
            a dictionary: other settings of `add_argument`, and `flags` in its own spelling, none
            for an argument without a flag.
    """
    if isinstance(place, type):
        known = _fields(place.__module__, place.__name__)
    else:
        module, _, kind = place.partition(":")
        known = _fields(f"talk2dino.{module}", kind)
    for name in names or known:
        name, _, spelt = name.partition("=")
        annotation, default, text = known[name]
        change = changes.get(name, {})
        change = dict(change) if isinstance(change, Mapping) else {"default": change}
        flags = change.pop("flags", [f"--{flag}" for flag in (spelt or name).split("|")])
        settings: dict[str, Any] = {"help": text}
        if annotation == "bool" and "type" not in change:
            settings["action"] = "store_true"
        else:
            kinds = _KIND.search(annotation)
            assert kinds is not None, f"no flag can hold {place} {name}: {annotation}"
            several, kind = kinds.groups()
            settings |= {"type": _KINDS[kind], "nargs": "+" if several else None}
            settings |= {} if default is _REQUIRED else {"default": default}
            settings["metavar"] = flags[0].lstrip("-").upper() if flags else name.upper()
        settings |= change
        if "choices" in change:
            del settings["metavar"]
        computed = settings.get("default") is argparse.SUPPRESS and isinstance(default, str | int)
        if computed and settings["help"] is not argparse.SUPPRESS:
            shown = "on" if default is True else default
            settings["help"] += "" if default is False else f" (default: {shown})"
        if flags:
            required = "action" not in settings and "default" not in settings
            settings = {"dest": name, "required": required, **settings}
        parser.add_argument(*(flags or [name]), **settings)


def from_flags(kind: type[T], args: object, **values: Any) -> T:
    """A dataclass from the flags of its fields.

    Args:
        kind: the dataclass.
        args: what holds the parsed flags.
        values: fields that are no flags, or that are other than the flags say.
    """
    names = [entry.name for entry in dataclasses.fields(kind)]  # type: ignore[arg-type]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return kind(**{**given, **values})


def _fields(module: str, name: str) -> dict[str, tuple[str, Any, str]]:
    """Name of a field -> its type, its default, and the string under it as a help text."""
    values = vars(sys.modules.get(module, argparse.Namespace()))
    below = Path(talk2dino.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    classes, imported = _classes(Path(values.get("__file__", below)))
    node = classes.get(name)
    found: dict[str, tuple[str, Any, str]] = {}
    for base in map(ast.unparse, [] if node is None else reversed(node.bases)):
        if base != "Command":  # what every command has
            found |= _fields(imported.get(base, module), base)
    for entry, text in () if node is None else itertools.pairwise(node.body):
        string = text.value if isinstance(text, ast.Expr) else None
        if not isinstance(entry, ast.AnnAssign) or not isinstance(string, ast.Constant):
            continue
        field, default, words = ast.unparse(entry.target), _REQUIRED, str(string.value)
        words = " ".join(words.split())
        if entry.value is not None:
            default = getattr(values.get(name), field, None)
            with suppress(ValueError):
                default = ast.literal_eval(entry.value)
        first = words.partition(" ")[0]
        if first[1:].islower():
            words = first.lower() + words[len(first) :]
        help_text = words.rstrip(".").replace("%", "%%").replace("`", "")
        help_text = re.sub(r"\{(\w+)\}", lambda m: _listed(values[m[1]]), help_text)
        found[field] = (ast.unparse(entry.annotation), default, help_text)
    return found


@cache
def _classes(source: Path) -> tuple[dict[str, ast.ClassDef], dict[str, str]]:
    """The classes of a file by name, and where it imports what the package has."""
    nodes = list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    ours = [(node, str(node.module)) for node in imports if "talk2dino" in str(node.module)]
    return classes, {entry.name: module for node, module in ours for entry in node.names}


def _listed(value: Any) -> str:
    """How a help text shows a value of its module that stands in it in braces."""
    return str(value) if isinstance(value, str | int) else ", ".join(value)


def few_lines(lines: Sequence[str], shown: int) -> str:
    """The first lines, indented, and how many more there are."""
    more = [f"... and {len(lines) - shown} more"] if len(lines) > shown else []
    return "\n".join(f"  {line}" for line in [*lines[:shown], *more])


def local_processes() -> int:
    """How many processes of this job share the machine; `torch.distributed.run` says it."""
    return environment_number("LOCAL_WORLD_SIZE", 1, least=1)


def core_share() -> int:
    """This process's share of the cores that it may use, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // local_processes())


def free_memory() -> int | None:
    """Bytes that this machine can still give; all it has, or None, where the system says less."""
    with suppress(OSError, LookupError, ValueError):  # not Linux
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = dict(line.split(":") for line in lines)["MemAvailable"]
        return int(found.removesuffix("kB")) * 1024
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def memory_share() -> float:
    """This process's share of the memory that is free; of 16 GB where nothing says it."""
    return (free_memory() or 16e9) / local_processes()


def bar_of(unit: str, shown: bool = True, **more: Any) -> Progress:
    """Makes bars that count something: at once on a terminal, twice a minute in a log."""
    from tqdm import tqdm

    def make(total: int, done: int) -> "tqdm[Any]":
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
