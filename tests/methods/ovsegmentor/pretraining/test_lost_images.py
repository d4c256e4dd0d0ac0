"""Images that cannot be read: counted and named across an interruption."""

from talk2dino.methods.ovsegmentor.data.samples import EpochBatches
from talk2dino.methods.ovsegmentor.pretraining.job import PretrainingJob, pretrain
from talk2dino.methods.ovsegmentor.pretraining.run import KIND
from talk2dino.training.run import load_state

from .conftest import IMAGES, interrupted, write_captions


def test_lost_images_are_counted_and_named_across_an_interruption(tmp_path, make_recipe):
    batches = EpochBatches(IMAGES, 4)
    batches.start_at(1)  # the second epoch, of which only the last step is left to the resumed run
    _, lost = next(iter(batches))[0]
    data = write_captions(tmp_path / "data")
    (data.parent / f"{lost}.png").write_bytes(b"broken")
    recipe = make_recipe(data={"metafile": str(data), "images": str(data.parent)})
    interrupted(recipe, tmp_path / "out", 2)
    (progress,) = load_state(tmp_path / "out" / "unfinished.pth", KIND)["progress"]
    assert list(progress["named"]) == [f"{lost}.png"]
    result = pretrain(PretrainingJob(recipe, tmp_path / "out", "cpu", resume=True))
    whole = pretrain(PretrainingJob(recipe, tmp_path / "whole", "cpu"))
    said = f"2 images of 24 samples could not be read ({lost}.png)"
    assert (result.lost, whole.lost) == (said, said)
