"""`python -m talk2dino <command>`: every command of the project under one name."""

import sys
from collections.abc import Sequence
from importlib import import_module

from talk2dino import __version__
from talk2dino.cli.command import DONE, WRONG_ARGUMENTS, Command
from talk2dino.config import check_name

COMMANDS = (
    *("extract", "extract-text", "train", "segment", "app", "evaluate", "report", "compare"),
    *("ablate", "retrieve", "data", "convert", "convert-coco", "export", "prepare-captions"),
    *("pretrain", "quickstart", "toy"),
)
"""`some-command` is the class `SomeCommand` of `cli/some_command.py`; what runs is imported."""
_FILES = {"extract-text": "extract", "compare": "report", "convert-coco": "data"}
"""The commands that share the file of another."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, or list them."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in ("-h", "--help", "help"):
        print(_overview())
        return DONE
    if name in ("-V", "--version"):
        print(f"talk2dino {__version__}")
        return DONE
    try:
        command = find_command(check_name("command", name, COMMANDS))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_ARGUMENTS
    return command.main(rest, prog=f"python -m talk2dino {name}")


def _overview() -> str:
    lines = ["usage: python -m talk2dino <command> [flags]", ""]
    lines += [f"  {name:<18}{find_command(name).summary()}" for name in COMMANDS]
    lines += ["", "Each command explains its flags, with an example: <command> --help"]
    return "\n".join([*lines, "--version prints the version."])


def find_command(name: str) -> type[Command]:
    """The class of a command."""
    module = import_module(f"talk2dino.cli.{_FILES.get(name, name).replace('-', '_')}")
    command: type[Command] = getattr(module, name.title().replace("-", ""))
    return command


if __name__ == "__main__":
    sys.exit(main())
