from PIL import Image

from talk2dino.training.history import plot_losses, write_losses

LOSSES = ("train_loss", "val_loss")


def record(epoch, train, validation):
    return {"epoch": epoch, "train_loss": train, "val_loss": validation, "learning_rate": 1e-4}


def test_the_losses_are_a_table_with_one_line_per_epoch(tmp_path):
    write_losses([record(1, 0.5, None), record(2, 0.25, 0.75)], tmp_path / "l")
    assert (tmp_path / "l").read_text().splitlines() == [
        "epoch,train_loss,val_loss,learning_rate",
        "1,0.5,,0.0001",
        "2,0.25,0.75,0.0001",
    ]


def test_the_plot_is_a_picture_with_both_curves(tmp_path):
    plot_losses([record(1, 0.5, 0.6), record(2, 0.4, 0.5)], tmp_path / "l.png", LOSSES)
    with Image.open(tmp_path / "l.png") as image:
        assert image.size == (600, 400)
        assert len(image.getcolors(1 << 20)) > 10
    assert [p.name for p in tmp_path.iterdir()] == ["l.png"]


def test_a_loss_of_zero_and_no_validation_can_be_drawn(tmp_path):
    plot_losses([record(1, 0.0, None)], tmp_path / "l.png", LOSSES)
    assert (tmp_path / "l.png").stat().st_size > 0
