"""`python -m talk2dino <command>`: every command of the project under one name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from talk2dino import __version__
from talk2dino.cli.entry import DONE, WRONG_ARGUMENTS, Command, run_command
from talk2dino.config import check_name

COMMANDS = {
    "extract": "talk2dino.cli.extract",
    "extract-text": "talk2dino.cli.extract_text",
    "train": "talk2dino.cli.train",
    "segment": "talk2dino.cli.segment",
    "app": "talk2dino.cli.app",
    "evaluate": "talk2dino.cli.evaluate",
    "report": "talk2dino.cli.report",
    "compare": "talk2dino.cli.compare",
    "ablate": "talk2dino.cli.ablate",
    "retrieve": "talk2dino.cli.retrieve",
    "data": "talk2dino.cli.data",
    "convert": "talk2dino.cli.convert",
    "convert-coco": "talk2dino.cli.convert_coco",
    "export": "talk2dino.cli.export",
    "prepare-captions": "talk2dino.cli.prepare_captions",
    "pretrain": "talk2dino.cli.pretrain",
    "quickstart": "talk2dino.cli.quickstart",
    "toy": "talk2dino.cli.toy",
}
"""Command -> the module that defines it; only the one that runs is imported."""


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
    if name == "--completion":
        print(_completion())
        return DONE
    try:
        command = _load(check_name("command", name, COMMANDS))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_ARGUMENTS
    return run_command(command, rest, prog=f"python -m talk2dino {name}")


def _overview() -> str:
    lines = ["usage: python -m talk2dino <command> [flags]", ""]
    lines += [f"  {name:<18}{_load(name).summary}" for name in COMMANDS]
    lines += ["", "Each command explains its flags, with an example: <command> --help"]
    lines += ["--version prints the version. Completion for bash and zsh, once installed:"]
    return "\n".join([*lines, '  eval "$(talk2dino --completion)"'])


def _completion() -> str:
    """A script for bash, and for zsh in its bash mode, made of the parsers' own flags."""
    cases = []
    for name in COMMANDS:
        known = _load(name).parser(more=False)._option_string_actions
        flags = [flag for flag in known if flag.startswith("--")]
        cases.append(f'        {name}) words="{" ".join(sorted(flags))}" ;;')
    return "\n".join(
        [
            '[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit',
            "_talk2dino() {",
            "    local words",
            '    case "${COMP_WORDS[1]}" in',
            *cases,
            f'        *) words="{" ".join(COMMANDS)} --help --version --completion" ;;',
            "    esac",
            '    [ "$COMP_CWORD" -gt 1 ] && [ "${COMP_WORDS[COMP_CWORD]:0:1}" != "-" ] && return',
            '    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))',
            "}",
            "complete -o default -F _talk2dino talk2dino",
        ]
    )


def _load(name: str) -> Command:
    command = import_module(COMMANDS[name]).COMMAND
    assert isinstance(command, Command)
    return command


if __name__ == "__main__":
    sys.exit(main())
