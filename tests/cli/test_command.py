"""Exit codes and one-line errors, the same for every command."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from talk2dino.__main__ import COMMANDS, find_command, main
from talk2dino.cli.command import Command, core_share, free_memory, memory_share
from talk2dino.cli.train import Train


def command(check=lambda self: None, run=lambda self, found: 0):
    """The `main` of a command with one flag."""

    class Try(Trial):
        pass

    Try.check, Try.run = check, run
    return Try.main


class Trial(Command):
    """Tries something."""

    script = "-m talk2dino try"
    example = "--number 3"

    number: int = 1
    """How many."""
    roots: list[Path] = [Path("a"), Path("b")]
    """Where."""
    word: str = ""
    """See above."""
    words: list[str] = []
    """See above."""
    path: Path | None = None
    """See above."""
    on: bool = False
    """See above, of {COMMANDS}."""


def fail(error):
    def act(*_: object) -> int:
        raise error

    return act


def test_a_message_that_repeats_a_damaged_file_is_shortened(capsys):
    assert command(run=fail(ValueError("a" * 50_000 + " Replace it.")))([]) == 1
    error = capsys.readouterr().err
    assert len(error) < 5000 and " [...] aaa" in error and error.endswith(" Replace it.\n")


def test_the_exit_code_of_the_work_is_returned():
    assert command()([]) == 0
    assert command(run=lambda self, found: self.number)(["--number", "1"]) == 1


def test_help_shows_the_example_and_the_defaults_that_say_something(capsys):
    assert Trial.main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("(default:") == 2 and "how many (default: 1)" in shown
    assert "where (default: a b)" in shown and "see above, of extract, extract-text" in shown
    assert "python -m talk2dino try --number 3" in shown
    assert "--debug" in shown


@pytest.mark.parametrize("argv", [["--nmber", "3"], ["--num", "3"], ["--number", "x"]])
def test_wrong_flags_give_two(argv, capsys):
    assert command()(argv) == 2
    assert "usage:" in capsys.readouterr().err


def test_a_misspelt_flag_is_named_with_what_was_probably_meant(capsys):
    assert command()(["--nmber=3"]) == 2
    assert "unknown flag --nmber. Did you mean --number?" in capsys.readouterr().err
    assert command()(["--zzzzzz"]) == 2
    assert "unknown flag --zzzzzz.\n" in capsys.readouterr().err
    assert main(["segment", "--zzzzzz"]) == 2
    assert "--pamr" in (shown := capsys.readouterr().err) and "--superpixels" not in shown


def test_a_failed_check_gives_two_and_a_failed_run_one_without_traceback(capsys):
    assert command(check=fail(ValueError("no such thing")))([]) == 2
    assert command(run=fail(OSError("disk full")))([]) == 1
    assert capsys.readouterr().err == "error: no such thing\nerror: disk full\n"


def test_debug_shows_the_traceback(capsys):
    assert command(run=fail(RuntimeError("broken")))(["--debug"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "error: broken" in shown


def test_an_error_without_words_is_named_by_its_type(capsys):
    assert command(run=fail(MemoryError()))([]) == 1
    assert capsys.readouterr().err == "error: MemoryError\n"


@pytest.mark.parametrize("stage", ["check", "run"])
def test_an_interrupt_says_how_to_go_on(capsys, stage):
    assert command(**{stage: fail(KeyboardInterrupt())})([]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_bugs_keep_their_traceback():
    with pytest.raises(TypeError):
        command(run=fail(TypeError("a bug")))([])


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
    assert not re.search(r"\bNone\b|SUPPRESS|local.rank", shown)
    example = shown.split("example:\n")[1]
    words = shlex.split(example)
    assert words[:4] == ["python", "-m", "talk2dino", name]
    find_command(name).parse(words[4:])
    assert main(["help", name]) == 0
    assert example in capsys.readouterr().out


def test_a_script_shows_its_example_by_its_own_name(capsys):
    assert Train.main(["--help"]) == 0
    assert "example:\n  python train.py --model" in capsys.readouterr().out


def test_help_comes_at_once_without_torch():
    code = (
        "import sys; from talk2dino.__main__ import main; main(['--help']); "
        "sys.exit(' '.join(sorted({'torch', 'transformers', 'gradio'} & set(sys.modules))) or 0)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == 0, f"imported to declare flags: {told.stderr}"


@pytest.mark.parametrize("name", ["extract", "extract-text", "evaluate"])
def test_the_value_of_a_flag_is_called_like_the_flag(name):
    parser = find_command(name).parser()
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


SCRIPTS = ["dino_extraction_v2.py", "demo.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run_from_a_checkout_in_any_folder(script, root, tmp_path):
    result = subprocess.run(
        [sys.executable, str(root / script), "--help"], capture_output=True, cwd=tmp_path, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "example:" in result.stdout


def test_a_record_has_the_typed_line_without_flags_that_change_no_result():
    typed = "--input a.png 'b c.png' --output out --textual_categories a,b"
    segment = find_command("segment").parse(shlex.split(f"{typed} --overwrite"))
    assert segment.line("--overwrite") == f"python demo.py {typed}"


def test_the_overview_has_one_line_per_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        (line,) = [line for line in shown if line.split()[:1] == [name]]
        assert line.split(maxsplit=1)[1].endswith(".") and len(line) < 100


def test_processes_of_one_machine_share_its_cores_and_its_memory(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setattr("talk2dino.cli.command.free_memory", lambda: 2**30)
    for count, cores in (("4", 2), ("16", 1), ("", 8)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
        assert core_share() == cores and memory_share() == 2**30 / int(count or 1)


def test_free_memory_is_what_the_system_can_still_give(monkeypatch):
    read = "talk2dino.cli.command.Path.read_text"
    lines = "MemTotal:       20 kB\nMemAvailable:   17 kB\nPages: 3\n"
    monkeypatch.setattr(read, lambda path, encoding: lines)
    assert free_memory() == 17 * 1024
    monkeypatch.setattr(read, lambda path, encoding: "MemTotal: 20 kB\n")
    assert free_memory() is None or free_memory() > 2**20
    monkeypatch.delattr("os.sysconf", raising=False)
    assert free_memory() is None


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["convert", "ovsegmentor", "w.pth", "out", "--num_heads", "12"], "edit the config.json"),
        (["prepare-captions", "filter", "--header", "yes"], "a header is recognised"),
        (["quickstart", "--epochs", "3"], "`train.py --model` takes a recipe"),
        (["app", "--config", "recipe.yaml"], "--model <recipe>=<weights>"),
        (["report", "results", "--verbose"], "--debug says it"),
    ],
)
def test_a_flag_of_an_earlier_version_says_what_takes_its_place(argv, advice, capsys):
    assert main(argv) == 2
    assert f"It went: {advice}" in capsys.readouterr().err


def test_the_module_of_a_command_says_how_commands_are_run():
    argv = [sys.executable, "-m", "talk2dino.cli.train", "--help"]
    told = subprocess.run(argv, capture_output=True, text=True)
    assert told.returncode == 1 and "run as `python -m talk2dino <command>`" in told.stderr


def test_a_flag_given_under_two_of_its_names_is_refused_by_every_command(capsys):
    argv = ["train", "--train_dataset", "x.pth", "--model", "a.yaml", "--model_config=b.yaml"]
    assert main(argv) == 2
    assert "--model and --model_config are one flag. Give one" in capsys.readouterr().err
