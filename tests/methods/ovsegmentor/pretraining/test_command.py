"""What `talk2dino pretrain` says while it runs."""

import io
import sys

from talk2dino.cli.pretrain import main, step_lines


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_file_gets_a_line_now_and_then(capsys):
    values = {"train/loss": 1.23456, "learning_rate": 0.000123456}
    say = step_lines(seconds=0)
    say(values, 50)
    say(values, 100)
    step_lines(seconds=3600)(values, 150)  # too early
    assert capsys.readouterr().out.splitlines() == [
        "step 50  loss 1.2346  learning rate 0.000123",
        "step 100  loss 1.2346  learning rate 0.000123",
    ]


def test_a_terminal_has_the_bar_instead(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert step_lines() is None


def test_the_command_says_where_it_is(write_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_lines, "__defaults__", (0.0,))
    flags = ["--device", "cpu", "--workers", "0", "--out", str(tmp_path / "out")]
    assert main(["--config", str(write_recipe()), *flags]) == 0
    shown = capsys.readouterr().out.splitlines()
    starts = [line.split("  ")[0] for line in shown]
    assert [start for start in starts if start.startswith("step")] == [
        f"step {number}" for number in range(1, 7)
    ]
    assert starts.index("step 3") < starts.index("epoch 1/2") < starts.index("step 4")
