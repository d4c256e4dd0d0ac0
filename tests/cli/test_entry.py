"""Exit codes and one-line errors, the same for every command."""

import argparse
import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from talk2dino.__main__ import COMMANDS, _load, main
from talk2dino.cli import train
from talk2dino.cli.entry import Command, core_share, run_command, typed_command


def command(check=lambda args: None, run=lambda args, _: 0):
    return Command(
        name="try",
        summary="Tries something.",
        example="python -m talk2dino try --number 3",
        add_arguments=lambda parser: parser.add_argument("--number", type=int, default=1),
        check=check,
        run=run,
    )


def fail(error):
    def act(*_: object) -> int:
        raise error

    return act


def test_a_message_that_repeats_a_damaged_file_is_shortened(capsys):
    assert run_command(command(run=fail(ValueError("a" * 50_000 + " Replace it."))), []) == 1
    error = capsys.readouterr().err
    assert len(error) < 5000 and " [...] aaa" in error and error.endswith(" Replace it.\n")


def test_the_exit_code_of_the_work_is_returned():
    assert run_command(command(), []) == 0
    assert run_command(command(run=lambda args, _: args.number), ["--number", "1"]) == 1


def test_help_shows_the_example_and_the_defaults_that_say_something(capsys):
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--number", type=int, default=1, help="how many")
        parser.add_argument("--roots", nargs="+", default=[Path("a"), Path("b")], help="where")
        for flag, default in (("--word", ""), ("--words", []), ("--path", None), ("--on", False)):
            parser.add_argument(flag, default=default, help="see above")

    described = dataclasses.replace(command(), add_arguments=add_arguments)
    assert run_command(described, ["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("(default:") == 2 and "how many (default: 1)" in shown
    assert "where (default: a b)" in shown
    assert "python -m talk2dino try --number 3" in shown
    assert "--debug" in shown


@pytest.mark.parametrize("argv", [["--nmber", "3"], ["--num", "3"], ["--number", "x"]])
def test_wrong_flags_give_two(argv, capsys):
    assert run_command(command(), argv) == 2
    assert "usage:" in capsys.readouterr().err


def test_a_misspelt_flag_is_named_with_what_was_probably_meant(capsys):
    assert run_command(command(), ["--nmber=3"]) == 2
    assert "unknown flag --nmber. Did you mean --number?" in capsys.readouterr().err
    assert run_command(command(), ["--zzzzzz"]) == 2
    assert "unknown flag --zzzzzz.\n" in capsys.readouterr().err


def test_a_failed_check_gives_two_and_a_failed_run_one_without_traceback(capsys):
    assert run_command(command(check=fail(ValueError("no such thing"))), []) == 2
    assert run_command(command(run=fail(OSError("disk full"))), []) == 1
    assert capsys.readouterr().err == "error: no such thing\nerror: disk full\n"


def test_debug_shows_the_traceback(capsys):
    assert run_command(command(run=fail(RuntimeError("broken"))), ["--debug"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "error: broken" in shown


def test_an_error_without_words_is_named_by_its_type(capsys):
    assert run_command(command(run=fail(MemoryError())), []) == 1
    assert capsys.readouterr().err == "error: MemoryError\n"


@pytest.mark.parametrize("stage", ["check", "run"])
def test_an_interrupt_says_how_to_go_on(capsys, stage):
    assert run_command(command(**{stage: fail(KeyboardInterrupt())}), []) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_bugs_keep_their_traceback():
    with pytest.raises(TypeError):
        run_command(command(run=fail(TypeError("a bug"))), [])


def test_all_commands_are_listed(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name}" in shown


def test_the_version_is_printed(capsys, root):
    assert main(["--version"]) == 0
    assert main(["-V"]) == 0
    project = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)
    assert capsys.readouterr().out == f"talk2dino {project[1]}\n" * 2


def test_a_misspelt_command_is_answered(capsys):
    assert main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example_whose_flags_exist(name, capsys):
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert not re.search(r"\bNone\b", shown)
    example = shown.split("example:\n")[1]
    words = shlex.split(example)
    assert words[:4] == ["python", "-m", "talk2dino", name]
    _load(name).parser().parse_args(words[4:])
    assert main(["help", name]) == 0
    assert example in capsys.readouterr().out


def test_a_script_shows_its_example_by_its_own_name(capsys):
    assert train.main(["--help"]) == 0
    assert "example:\n  python train.py --model" in capsys.readouterr().out


def test_help_and_completion_come_at_once_without_torch():
    code = (
        "import sys; from talk2dino.__main__ import main; main(['--completion']); "
        "sys.exit(' '.join(sorted({'torch', 'transformers', 'gradio'} & set(sys.modules))) or 0)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0, f"imported to declare flags: {told.stderr}"


@pytest.mark.parametrize("name", ["extract", "extract-text", "evaluate"])
def test_the_value_of_a_flag_is_called_like_the_flag(name):
    parser = _load(name).parser()
    for action in parser._actions:
        if action.dest in ("weights", "predictions", "coloured", "truth") and action.nargs is None:
            assert f"--{action.metavar.lower()}" == action.option_strings[0]


def test_a_model_is_loaded_without_the_libraries_that_only_others_need():
    code = """if True:
        import sys, torch, talk2dino.cli
        from talk2dino.methods.registry import load_segmenter
        load_segmenter("toy", device="cpu").query(["cat"])
        needless = {"transformers", "torch._dynamo", "sympy"} & set(sys.modules)
        assert not needless, needless
        import open_clip, timm, torchvision.ops, transformers
        assert open_clip.timm_model.timm is timm and transformers.AutoModel
        boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
        assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2).eq(1).all()
        assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
        assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)) == 2
    """
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("line", ["import torch._dynamo.config", "torch._dynamo.utils.counters"])
def test_what_a_stand_in_has_not_comes_from_the_library_itself(line):
    code = f"""if True:
        import sys, torch, talk2dino.cli
        run = lambda module: exec("import torch; {line}", {{}})
        talk2dino.cli.without_needless(run, None)
        assert torch._dynamo.config and "torch._dynamo" in sys.modules
    """
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


SCRIPTS = ["dino_extraction_v2.py", "text_features_extraction.py", "train.py", "demo.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run_from_a_checkout_in_any_folder(script, root, tmp_path):
    result = subprocess.run(
        [sys.executable, str(root / script), "--help"], capture_output=True, cwd=tmp_path, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "example:" in result.stdout


TYPED = [
    "--input a.png 'b c.png' --output out --textual_categories a,b",
    "--input a.png --output out --textual_categories a --no_clean_background --opacity 0.7",
    "--input a.png --output out --textual_categories a --clean_background --save_mask",
    "--input a.png --output out --textual_categories a --save_mask m.png --with_background",
]


@pytest.mark.parametrize("typed", TYPED)
def test_a_command_can_be_written_down_again(typed):
    segment = _load("segment")
    args = segment.parser().parse_args(shlex.split(typed))
    _, script, *words = shlex.split(typed_command(segment, "demo.py", args))
    assert script == "demo.py"
    assert sorted(words) == sorted(shlex.split(typed))
    assert segment.parser().parse_args(words) == args


def test_flags_that_change_no_result_are_not_written_down():
    args = _load("segment").parser().parse_args([*shlex.split(TYPED[0]), "--overwrite", "--debug"])
    assert "--overwrite" not in typed_command(_load("segment"), "demo.py", args, ("overwrite",))
    assert "--debug" not in typed_command(_load("segment"), "demo.py", args)


def test_the_overview_has_one_line_per_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        (line,) = [line for line in shown if line.split()[:1] == [name]]
        assert line.split(maxsplit=1)[1].endswith(".") and len(line) < 100


def test_bash_completes_commands_and_flags(capsys):
    assert main(["--completion"]) == 0
    script = capsys.readouterr().out
    ask = (
        "COMP_WORDS=({words}); COMP_CWORD={at}; _talk2dino; echo ${{COMPREPLY[*]}}; COMPREPLY=()\n"
    )
    questions = [ask.format(words="talk2dino ev", at=1)]
    questions += [ask.format(words="talk2dino segment --no_b", at=2)]
    questions += [ask.format(words="talk2dino segment photo", at=2)]
    result = subprocess.run(
        ["bash", "-c", script + "".join(questions)], capture_output=True, text=True
    )
    assert result.stdout.splitlines() == ["evaluate", "--no_background", ""], result.stderr


def test_processes_of_one_machine_share_its_cores_and_its_memory(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    alone = train._half_of_the_memory_gb()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert core_share() == 2
    assert train._half_of_the_memory_gb() == pytest.approx(alone / 4, abs=0.1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert core_share() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "")
    assert core_share() == 8


def test_the_module_of_a_command_has_its_name():
    for name, module in COMMANDS.items():
        assert module == f"talk2dino.cli.{name.replace('-', '_')}"
