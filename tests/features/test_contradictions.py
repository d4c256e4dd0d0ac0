"""Feature files and shards that contradict themselves are refused, with file and column."""

import io
import tarfile

import pytest
import torch

from talk2dino.features.captions import CaptionInput
from talk2dino.features.store import json_bytes, read_features, write_features
from talk2dino.features.tars import read_shards
from talk2dino.methods.talk2dino.projection import ProjectionConfig
from talk2dino.methods.talk2dino.recipe import Recipe
from talk2dino.methods.talk2dino.training.dataset import LAST_LAYER_TEXT, FeatureChoice, StoredPairs
from talk2dino.methods.talk2dino.training.job import TrainJob, open_datasets
from tests.features.test_store import published, small


@pytest.fixture
def stored(tmp_path):
    """Changes a feature file's content and writes it again."""
    path = tmp_path / "features.pth"
    write_features(small(), path)

    def change(**changes):
        content = torch.load(path, weights_only=True)
        for name, value in changes.items():
            if isinstance(content[name], dict) and isinstance(value, dict):
                content[name] |= value
            else:
                content[name] = value
        torch.save(content, path)
        return path

    return change


SPARSE = torch.eye(2, 4).to_sparse()
COLUMNS = {
    "is a list, not a tensor": [[1.0], [2.0]],
    "no plain tensor of real numbers but complex64": torch.ones(2, 4, dtype=torch.complex64),
    "no plain tensor of real numbers but float32, torch.sparse_coo": SPARSE,
    "repeats its data": torch.ones(1).expand(2, 10**12),
    "not stored row by row": torch.ones(4, 2).T,
    "does not fit 2 images": torch.ones(3, 4),
}


@pytest.mark.parametrize("message", COLUMNS)
def test_a_column_that_is_none_is_named_when_the_file_is_opened(stored, message):
    path = stored(image_features={"dino_features": COLUMNS[message]})
    with pytest.raises(ValueError, match=rf"features\.pth.*'dino_features'.*{message}"):
        read_features(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named_before_they_are_used(stored, value):
    path = stored(caption_features={"ann_feats": torch.full((3, 5), value)})
    message = r"features\.pth: 'ann_feats' holds numbers that are not finite"
    with pytest.raises(ValueError, match=message):
        CaptionInput(path, need_images=False).split(0, 1)
    for memory in (0, 1 << 30):
        with pytest.raises(ValueError, match=message):
            pairs = StoredPairs(
                read_features(path), FeatureChoice("dino_features"), path, memory_bytes=memory
            )
            list(pairs.batches([torch.arange(3)]))


CONTENT = {
    "contradict the records": {"caption_rows": torch.tensor([0, 1, 0])},
    "'caption_rows' are torch.float32": {"caption_rows": torch.tensor([1.0, 0, 1])},
    "images beyond the 2 listed": {"caption_rows": torch.tensor([1, 0, 2])},
    "contradict": {"images": json_bytes([{"id": 7}, {"id": 9}, {"id": 8}])},
    "is not JSON": {"annotations": torch.tensor(list(b"[{")).to(torch.uint8)},
    "no list but a dict": {"annotations": json_bytes({})},
    "'images' is torch.float32": {"images": torch.ones(9)},
    "'images' says to have the shape": {"images": torch.ones(1, dtype=torch.uint8).expand(10**13)},
}


@pytest.mark.parametrize("message", CONTENT)
def test_records_and_rows_that_differ_are_named_by_extraction_and_training(stored, message):
    path = stored(**CONTENT[message])
    with pytest.raises(ValueError, match=rf"features\.pth.*{message}"):
        CaptionInput(path, need_images=False).split(0, 1)
    with pytest.raises(ValueError, match=rf"features\.pth.*{message}"):
        recipe = Recipe(ProjectionConfig())
        open_datasets(TrainJob(recipe=recipe, out=path, train_dataset=str(path)), "cpu")


@pytest.mark.parametrize(
    ("column", "message"),
    [("text", "is a str"), (torch.ones(1).expand(10**13), "repeats its data")],
)
def test_the_published_layout_is_checked_likewise(tmp_path, column, message):
    path = published(tmp_path, images=[{"id": 9, "dino_features": column}])
    with pytest.raises(ValueError, match=rf"published\.pth: image 9: 'dino_features' {message}|sa"):
        read_features(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": [1]}, "no 'image' record"),
        ({"image_id": {}}, "'image_id' {}, not a number or text"),
        ({"ann_feats": torch.ones(1).expand(10**13)}, "repeats its data"),
        ({"ann_feats": torch.ones(2, dtype=torch.complex64)}, "complex64"),
    ],
)
def test_members_of_shards_are_checked_likewise(tmp_path, change, message):
    record = {"id": 7, "image_id": 1, "caption": "", "image": {"id": 1}, "ann_feats": torch.ones(2)}
    buffer = io.BytesIO()
    torch.save({**record, **change}, buffer)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("7.pth")
        info.size = buffer.tell()
        tar.addfile(info, io.BytesIO(buffer.getvalue()))
    with pytest.raises(ValueError, match=rf"a\.tar.*{message}"):
        read_shards([tmp_path / "a.tar"])


@pytest.mark.parametrize(
    ("column", "message"),
    [(torch.ones(3), r"\(3,\) of float32"), (torch.ones(3, 5, dtype=torch.int64), "of int64")],
)
def test_a_column_of_other_axes_or_numbers_cannot_be_trained_on(stored, column, message):
    path = stored(caption_features={"ann_feats": column})
    with pytest.raises(ValueError, match=rf"'ann_feats' has the shape .*{message}"):
        StoredPairs(read_features(path), FeatureChoice("dino_features"), path)


def test_the_end_of_a_text_lies_within_it(stored):
    path = stored(caption_features={LAST_LAYER_TEXT: torch.ones(3, 6, 8)})
    with pytest.raises(ValueError, match="'text_argmax' is 4 to 6, of 6 positions"):
        choice = FeatureChoice(
            "dino_features", config=ProjectionConfig(model_class="CLIPLastLayer")
        )
        StoredPairs(read_features(path), choice, path)
