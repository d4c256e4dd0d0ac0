"""What `talk2dino pretrain` says while it runs."""

from talk2dino.cli.pretrain import main


def test_the_command_says_where_it_is(write_recipe, tmp_path, capsys):
    flags = ["--device", "cpu", "--workers", "0", "--out", str(tmp_path / "out")]
    assert main(["--config", str(write_recipe()), *flags]) == 0
    starts = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert [start for start in starts if start.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
