"""Feature shards: nothing lost, readable by webdataset, the same bytes every time."""

import io
import tarfile

import pytest
import torch

from talk2dino.features.captions import CaptionInput
from talk2dino.features.shards import read_shards, shard_paths, write_shards
from talk2dino.features.store import FeatureFile


def collection(captions=11, images=4):
    random = torch.Generator().manual_seed(0)
    return FeatureFile(
        [{"id": 50 + n, "file_name": f"{n}.jpg"} for n in range(images)],
        [{"id": n, "image_id": 50 + n % images, "caption": f"no {n}"} for n in range(captions)],
        {"disentangled_self_attn": torch.randn(images, 3, 4, generator=random)},
        {"ann_feats": torch.randn(captions, 5, generator=random)},
        {"vision": {"model": "toy"}},
    )


def test_every_caption_is_in_exactly_one_shard(tmp_path):
    paths = shard_paths(tmp_path, 3)
    write_shards(collection(), paths)
    names = []
    for path in paths:
        with tarfile.open(path) as tar:
            names.append(tar.getnames())
    assert [len(part) for part in names] == [3, 4, 4]
    assert [name for part in names for name in part] == [f"{n}.pth" for n in range(11)]


def test_shards_come_back_as_they_were_written(tmp_path):
    paths = shard_paths(tmp_path, 3)
    write_shards(collection(), paths)
    back = read_shards(paths)
    assert back.images == collection().images
    assert back.annotations == collection().annotations
    assert back.settings == {"vision": {"model": "toy"}}
    torch.testing.assert_close(back.image_features, collection().image_features)
    torch.testing.assert_close(back.caption_features, collection().caption_features)


def test_the_webdataset_library_reads_them(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    write_shards(collection(), shard_paths(tmp_path, 2))
    urls = str(tmp_path / "shard{00000..00001}.tar")
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [str(n) for n in range(11)]
    member = torch.load(io.BytesIO(samples[6]["pth"]), weights_only=True)
    assert member["caption"] == "no 6"
    assert member["image"]["file_name"] == "2.jpg"
    features = collection().image_features["disentangled_self_attn"]
    torch.testing.assert_close(member["disentangled_self_attn"], features[2])


def test_ids_with_dots_stay_one_sample_per_caption(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    dotted = collection()
    ids = [f"a.{n}%2E" for n in range(11)]
    for annotation, name in zip(dotted.annotations, ids, strict=True):
        annotation["id"] = name
    (path,) = shard_paths(tmp_path, 1)
    write_shards(dotted, [path])
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [sample["pth"]["id"] for sample in samples] == ids
    back = CaptionInput(tmp_path, need_images=False).split(0, 1).features
    assert [annotation["id"] for annotation in back.annotations] == ids


def test_more_shards_than_captions_are_read_back(tmp_path):
    write_shards(collection(captions=2), shard_paths(tmp_path, 5))  # the first ones are empty
    back = CaptionInput(tmp_path, need_images=False).split(0, 1).features
    assert [annotation["caption"] for annotation in back.annotations] == ["no 0", "no 1"]


def test_the_webdataset_library_decodes_them_unaided(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    write_shards(collection(), shard_paths(tmp_path, 1))
    dataset = webdataset.WebDataset(str(tmp_path / "shard00000.tar"), shardshuffle=False).decode()
    member = next(iter(dataset))["pth"]
    assert member["ann_feats"].shape == (5,)


def test_a_member_holds_its_own_rows_only(tmp_path):
    wide = collection()
    wide.image_features["patch_tokens"] = torch.zeros(4, 100, 50)
    write_shards(wide, shard_paths(tmp_path, 1))
    with tarfile.open(tmp_path / "shard00000.tar") as tar:
        assert max(info.size for info in tar) < 1.2 * 100 * 50 * 4


def test_equal_contents_give_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        write_shards(collection(), shard_paths(tmp_path / folder, 2))
    for name in ("shard00000.tar", "shard00001.tar"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_failure_leaves_no_half_shard(tmp_path):
    broken = collection()
    broken.annotations[5]["strange"] = lambda: None
    with pytest.raises(Exception, match="pickle"):
        write_shards(broken, shard_paths(tmp_path, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["shard00000.tar"]


def test_shards_are_an_input_and_can_be_split_by_tar(tmp_path):
    write_shards(collection(), shard_paths(tmp_path, 3))
    data = CaptionInput(tmp_path / "shard{00000..00002}.tar", need_images=False)
    parts = [data.split(number, 3).features for number in range(3)]
    assert [len(part.annotations) for part in parts] == [3, 4, 4]
    assert len(data.split(0, 1).features.images) == 4


def write_member(path, value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_bytes(path, buffer.getvalue())


def write_bytes(path, data):
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("7.pth")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


class Evil:
    def __reduce__(self):
        return print, ("this code must not run",)


def test_pickled_code_in_a_shard_is_refused(tmp_path, capsys):
    write_member(tmp_path / "a.tar", {"id": Evil()})
    with pytest.raises(ValueError, match=r"7\.pth of .*a\.tar is damaged or holds more than"):
        read_shards([tmp_path / "a.tar"])
    assert "must not run" not in capsys.readouterr().out


def test_other_members_are_refused(tmp_path):
    write_bytes(tmp_path / "a.tar", b"rubbish")
    with pytest.raises(ValueError, match=r"7\.pth of .* is damaged"):
        read_shards([tmp_path / "a.tar"])
    write_member(tmp_path / "a.tar", {"id": 7, "caption": "", "image_id": 1})
    with pytest.raises(ValueError, match="no 'image'"):
        read_shards([tmp_path / "a.tar"])
    (tmp_path / "a.tar").write_bytes(b"rubbish" * 200)
    with pytest.raises(ValueError, match="not an uncompressed tar"):
        read_shards([tmp_path / "a.tar"])


def test_shards_that_do_not_fit_together_are_refused(tmp_path):
    record = {"id": 7, "image_id": 1, "caption": "", "image": {"id": 1}}
    write_member(tmp_path / "a.tar", {**record, "ann_feats": torch.ones(3)})
    write_member(tmp_path / "b.tar", {**record, "id": 8, "ann_feats": torch.ones(4)})
    write_member(tmp_path / "c.tar", {**record, "id": 9})
    with pytest.raises(ValueError, match="differ in the shape of 'ann_feats'"):
        read_shards([tmp_path / "a.tar", tmp_path / "b.tar"])
    with pytest.raises(ValueError, match="differ in their features"):
        read_shards([tmp_path / "a.tar", tmp_path / "c.tar"])


def test_empty_shards_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    with pytest.raises(ValueError, match="hold no captions"):
        read_shards([tmp_path / "a.tar"])
