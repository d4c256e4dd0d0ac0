"""One reader of all tars: what it gives out, and what it says of a tar that is not whole."""

import io
import json
import os
import tarfile

import pytest
import torch

from talk2dino.features.captions import CaptionInput, read_web_samples
from talk2dino.features.store import FeatureFile
from talk2dino.features.tars import (
    list_tars,
    read_members,
    read_samples,
    read_shards,
    shard_paths,
    write_shards,
)
from talk2dino.methods.ovsegmentor.data.samples import open_rows
from talk2dino.methods.ovsegmentor.data.words import CaptionReader, dictionary_lemma

BLOCK = 512


def write_tar(path, members, kind=tarfile.GNU_FORMAT, **attributes):
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), attributes
            tar.addfile(info, io.BytesIO(data))


def samples(*names):
    return [
        (f"{name}.{suffix}", data)
        for name in names
        for suffix, data in (
            ("jpg", b"j" * 700),
            ("json", json.dumps({"caption": f"a cat {name}"}).encode()),
        )
    ]


@pytest.fixture
def tar(tmp_path):
    write_tar(tmp_path / "0.tar", samples("a", "b", "c", "d"))
    return tmp_path / "0.tar"


@pytest.fixture
def third(tar):
    """Where the third sample's image begins, with its header."""
    return list(read_members(tar))[4].offset - BLOCK


def flip_a_header(data, at):
    return data[: at + 3] + bytes([data[at + 3] ^ 4]) + data[at + 4 :]


DAMAGE = {
    "a bit of a header": flip_a_header,
    "zeros in place of a header": lambda data, at: data[:at] + bytes(BLOCK) + data[at + BLOCK :],
    "zeros to the end": lambda data, at: data[:at] + bytes(40_000),
    "cut before a member": lambda data, at: data[:at],
    "cut within a header": lambda data, at: data[: at + 100],
    "cut within a member": lambda data, at: data[: at + BLOCK + 100],
    "one block of the end mark": lambda data, at: data[:at] + bytes(BLOCK),
    "another tar behind the end": lambda data, at: data[:at] + bytes(10_240) + data,
}


@pytest.fixture(params=DAMAGE)
def damaged(request, tar, third):
    """A tar of which two samples of four can be read."""
    tar.write_bytes(DAMAGE[request.param](tar.read_bytes(), third))
    return tar


def test_the_samples_before_the_damage_are_read_and_the_tar_counts_as_a_failure(damaged):
    found = CaptionInput(damaged.parent).split(0, 1)
    assert [a["caption"] for a in found.features.annotations] == ["a cat a", "a cat b"]
    assert [image["id"] for image in found.features.images] == [0, 1, 2]
    assert "0.tar is damaged or is not an uncompressed tar" in found.sources[2].problem


def test_captions_alone_of_a_damaged_tar_are_refused(damaged):
    with pytest.raises(ValueError, match=r"0\.tar is damaged"):
        CaptionInput(damaged.parent, need_images=False).split(0, 1)


def test_the_pretraining_refuses_a_damaged_tar(damaged):
    with pytest.raises(ValueError, match=r"0\.tar is damaged"):
        open_rows(damaged, "", CaptionReader(dictionary_lemma))


def test_shards_are_refused_when_damaged(damaged):
    with pytest.raises(ValueError, match=r"(jpg|json) of .*0\.tar is damaged|0\.tar is damaged"):
        read_shards([damaged])


def test_a_damaged_tar_does_not_hide_what_the_others_hold(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"rubbish" * 200)
    write_tar(tmp_path / "1.tar", [("7.pth", b"")])
    assert CaptionInput(tmp_path).holds_features


def test_what_is_no_tar_is_a_failure_too(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"rubbish" * 200)
    _, _, [source] = read_web_samples([(0, tmp_path / "0.tar")])
    assert "0.tar is damaged or is not an uncompressed tar" in source.problem


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_gives_the_members_that_tarfile_gives(tmp_path, kind):
    long = "f" * 60 + "/" + "n" * 60
    names = ["a.jpg", "./b.c.JPG", f"{long}.jpg", "sub/d.json"]
    if kind != tarfile.USTAR_FORMAT:
        names += ["é" * 120 + ".jpg"]
    write_tar(tmp_path / "0.tar", [(name, name.encode() * 90) for name in names], kind)
    with tarfile.open(tmp_path / "0.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("folder/"))
    with tarfile.open(tmp_path / "0.tar") as tar:
        wanted = [(i.name, i.offset_data, i.size) for i in tar if i.isfile() and i.size]
    found = [m for m in read_members(tmp_path / "0.tar") if m.size]
    assert [(m.name, m.offset, m.size) for m in found] == wanted


def test_extended_attributes_may_hold_line_ends_and_sizes(tmp_path):
    attributes = {"SCHILY.xattr.note": "two\nlines 12 size=9", "size": "5"}
    write_tar(tmp_path / "0.tar", [("a.txt", b"12345")], tarfile.PAX_FORMAT, **attributes)
    assert [(m.name, m.size) for m in read_members(tmp_path / "0.tar")] == [("a.txt", 5)]


@pytest.mark.parametrize("size", [-1, 10**15])
def test_a_size_that_the_file_has_not_is_refused(tmp_path, size):
    info = tarfile.TarInfo("a.jpg")
    info.size = size
    header = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "0.tar").write_bytes(header + bytes(2 * BLOCK))
    with pytest.raises(ValueError, match=r"0\.tar is damaged or is not an uncompressed tar \("):
        list(read_members(tmp_path / "0.tar"))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [2**21, 2**40])
def test_a_name_fills_no_memory_whatever_its_header_says(tmp_path, kind, size):
    info = tarfile.TarInfo("a.jpg")
    info.type, info.size = kind, size
    header = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "0.tar").write_bytes(header + b"name" * 2**19 + bytes(2 * BLOCK))  # 2 MiB are there
    with pytest.raises(ValueError, match=r"0\.tar is damaged .*attributes of more than 1048576"):
        list(read_members(tmp_path / "0.tar"))


def test_links_are_named_and_left_out(tmp_path, caplog):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "b.jpg"
        tar.addfile(info)
    assert not list(read_members(tmp_path / "0.tar"))
    assert "a.jpg is no file" in caplog.text


@pytest.mark.parametrize("companion", ["._{}", "sub/._{}", ".DS_Store"])
def test_hidden_members_belong_to_no_sample(tmp_path, companion):
    members = [
        pair
        for name, data in samples("a", "b")
        for pair in ((companion.format(name), b"meta"), (name, data))
    ]
    write_tar(tmp_path / "0.tar", members)
    assert [name for name, _ in read_samples(tmp_path / "0.tar")] == ["a", "b"]
    assert len(open_rows(tmp_path / "0.tar", "", CaptionReader(dictionary_lemma)).usable) == 2


def test_hidden_tars_are_not_among_those_of_a_folder(tar):
    (tar.parent / "._0.tar").write_bytes(b"\0\5\x16\7metadata")
    assert list_tars(tar.parent) == [tar]
    tar.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no \.tar files"):
        list_tars(tar.parent)


def test_members_of_a_sample_that_are_apart_are_said_to_be(tmp_path):
    write_tar(tmp_path / "0.tar", sorted(samples("a", "b"), key=lambda pair: pair[0][1:]))
    problem = read_web_samples([(0, tmp_path / "0.tar")])[2][-1].problem
    assert "sample a are not next to each other" in problem
    assert "tar --sort=name" in problem
    with pytest.raises(ValueError, match="sort=name"):
        open_rows(tmp_path / "0.tar", "", CaptionReader(dictionary_lemma))


def test_a_member_that_is_there_twice_is_named(tmp_path):
    write_tar(tmp_path / "0.tar", [*samples("a"), ("a.json", b"{}")])
    with pytest.raises(ValueError, match=r"a\.json is there twice"):
        list(read_samples(tmp_path / "0.tar"))


def test_a_range_is_not_written_out_before_it_is_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such tar: .*shard0\.tar"):
        list_tars(tmp_path / "shard{0..99999999999}.tar")
    (tmp_path / "s00.tar").touch()
    with pytest.raises(FileNotFoundError, match=r"no such tar: .*s01\.tar"):
        list_tars(tmp_path / "s{0..9}{0..99999999999}.tar")
    with pytest.raises(FileNotFoundError, match="the range is empty"):
        list_tars(tmp_path / "s{09..01}.tar")


@pytest.mark.parametrize("name", ["", "0.tar", "*.tar", "{0..0}.tar"])
def test_a_named_pipe_among_the_tars_is_named(tmp_path, name):
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(ValueError, match=r"0\.tar is a named pipe or a device"):
        list_tars(tmp_path / name)


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
