"""FreeDA beside the recordings: its bank, superpixels and options."""

import sys

import faiss
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from talk2dino.__main__ import main
from talk2dino.benchmarks.table import BENCHMARKS
from talk2dino.files import save_safetensors
from talk2dino.methods.freeda.bank import Bank, load_bank, read_folder
from talk2dino.methods.freeda.method import pool_regions, region_weights
from talk2dino.methods.registry import find_method, load_segmenter
from talk2dino.segmenter import PatchScoring

WIDTHS = (8, 6)


@pytest.fixture
def published(tmp_path):
    """A bank in the published layout: 12 pairs, each archive in a folder of its own."""
    write_bank(tmp_path / "bank")
    return tmp_path / "bank"


def write_bank(folder, kind=np.float32, index=None):
    random = np.random.default_rng(0)
    keys = random.standard_normal((12, WIDTHS[0]), dtype=np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    (folder / "prototypes").mkdir(parents=True)
    for number in range(12):
        np.save(folder / "prototypes" / f"{number:02}.npy", np.full(WIDTHS[1], number, kind))
    index = faiss.IndexFlatIP(WIDTHS[0]) if index is None else index
    index.train(keys)
    index.add(keys)
    faiss.write_index(index, str(folder / "knn.index"))
    return keys


@pytest.fixture(scope="module")
def toy():
    return load_segmenter("freeda_toy", "seeded:0")


def random_windows(*shape):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(shape[0], 3, 6, 6, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, shape[1:], mode="nearest").round()


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_key_i_belongs_to_the_ith_file(tmp_path, kind):
    quantiser = faiss.IndexFlatL2(WIDTHS[0])
    index = {
        "flat": faiss.IndexFlatL2(WIDTHS[0]),
        "hnsw": faiss.IndexHNSWFlat(WIDTHS[0], 4),
        "ivf": faiss.IndexIVFFlat(quantiser, WIDTHS[0], 2),
    }[kind]
    keys = write_bank(tmp_path, index=index)
    bank = load_bank(str(tmp_path), *WIDTHS)
    assert bank.metric == "l2"
    np.testing.assert_allclose(bank.keys, keys)
    found = bank.class_prototypes(torch.from_numpy(keys), 1, [str(n) for n in range(12)])
    assert found[:, 0].tolist() == list(range(12))


def test_both_metrics_find_what_faiss_finds():
    random = np.random.default_rng(1)
    keys, texts = (random.standard_normal((n, 8), dtype=np.float32) for n in (40, 20))
    for metric, index in (("inner_product", faiss.IndexFlatIP(8)), ("l2", faiss.IndexFlatL2(8))):
        index.add(keys)
        bank = Bank(torch.from_numpy(keys), torch.zeros(40, 6), metric)
        expected = index.search(texts, 5)[1]
        assert (bank.nearest(torch.from_numpy(texts), 5).numpy() == expected).all()


def test_a_converted_bank_is_the_same_without_faiss(tmp_path, published, monkeypatch, capsys):
    out = tmp_path / "bank.safetensors"
    command = ["convert", "freeda", str(published), str(out)]
    assert main(command) == 0
    assert "12 prototypes (inner_product)" in capsys.readouterr().out
    original = read_folder(published)
    monkeypatch.setitem(sys.modules, "faiss", None)
    again = load_bank(str(out), *WIDTHS)
    assert torch.equal(again.keys, original.keys) and again.metric == original.metric
    assert torch.equal(again.prototypes, original.prototypes)
    assert main(command) == 2
    assert "pip install faiss-cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bank}", "{bank}.bin"], "name it <name>.safetensors"),
        (["{bank}/knn.index", "a.safetensors"], "the published bank is a folder"),
        (["absent", "a.safetensors"], "absent: no such bank"),
    ],
)
def test_wrong_conversions_are_named(published, capsys, arguments, message):
    words = [word.replace("{bank}", str(published)) for word in arguments]
    assert main(["convert", "freeda", *words]) == 2
    assert message in capsys.readouterr().err


def test_half_precision_never_reaches_a_mean(tmp_path):
    write_bank(tmp_path, np.float16)
    bank = load_bank(str(tmp_path), *WIDTHS)
    assert bank.prototypes.dtype == torch.float16
    bank.prototypes.fill_(60000)  # whose sum is no half any more
    found = bank.class_prototypes(bank.keys[:1], 12, ["cat"])
    assert found.dtype == torch.float32 and found.eq(60000 - 60000 % 32).all()


def remove(folder):
    (folder / "prototypes" / "03.npy").unlink()


def stray(folder):
    (folder / "prototypes" / "names.txt").touch()


def whole_numbers(folder):
    np.save(folder / "prototypes" / "03.npy", np.ones(WIDTHS[1], np.int64))


def another_width(folder):
    np.save(folder / "prototypes" / "03.npy", np.ones(5, np.float32))


def damaged(folder):
    (folder / "prototypes" / "03.npy").write_bytes(b"")


def damaged_index(folder):
    (folder / "knn.index").write_bytes(b"no index")


def no_index(folder):
    (folder / "knn.index").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove, "has 12 keys, and .* 11 .npy files: they do not belong together"),
        (stray, "1 files that are no .npy, as names.txt"),
        (whole_numbers, "03.npy: a prototype is floating point, found int64"),
        (another_width, "03.npy: a vector of shape .5,., and not .6,."),
        (damaged, "03.npy is damaged"),
        (damaged_index, "knn.index is damaged or no faiss index"),
        (no_index, "has knn.index in one place, found nowhere"),
    ],
)
def test_a_wrong_folder_is_refused_by_what_is_wrong(published, spoil, message):
    spoil(published)
    with pytest.raises(ValueError, match=message):
        load_bank(str(published), *WIDTHS)


def test_banks_of_other_models_are_refused(published):
    with pytest.raises(ValueError, match="keys have 8 numbers, and the model's 512"):
        load_bank(str(published), 512, WIDTHS[1])
    with pytest.raises(ValueError, match="vectors have 6 numbers, and the model's 1024"):
        load_bank(str(published), WIDTHS[0], 1024)


def test_other_files_are_refused_as_banks(tmp_path):
    path, keys = tmp_path / "bank.safetensors", torch.zeros(3, 8)
    for tensors, metric, message in (
        ({"weight": keys}, "l2", "a bank holds keys and prototypes, found weight"),
        ({"keys": keys, "prototypes": torch.zeros(2, 6)}, "l2", r"found \(3, 8\) and \(2, 6\)"),
        ({"keys": keys, "prototypes": torch.zeros(3, 6)}, "cosine", "unknown metric"),
    ):
        save_safetensors(tensors, path, {"metric": metric})
        with pytest.raises(ValueError, match=message):
            load_bank(str(path), *WIDTHS)
    save_file({"keys": keys, "prototypes": torch.zeros(3, 6)}, path)
    with pytest.raises(ValueError, match="unknown metric in .*'none'"):
        load_bank(str(path), *WIDTHS)


def test_a_class_without_a_vector_is_named():
    prototypes = torch.tensor([[torch.nan], [1.0]])
    bank = Bank(torch.eye(2), prototypes, "inner_product")
    assert bank.class_prototypes(torch.eye(2), 2, ["cat", "dog"]).tolist() == [[1.0], [1.0]]
    with pytest.raises(ValueError, match="no prototype for 'cat'.*--neighbours"):
        bank.class_prototypes(torch.eye(2), 1, ["cat", "dog"])


def test_regions_are_pooled_as_their_interpolated_masks():
    labels = torch.arange(30).view(5, 6).repeat_interleave(3, 0).repeat_interleave(3, 1)
    labels[1, 1] = 30  # a pixel between the points
    masks = torch.nn.functional.one_hot(labels).permute(2, 0, 1).float()
    expected = torch.nn.functional.interpolate(
        masks[None], (4, 7), mode="bilinear", align_corners=True
    )[0]
    weights = region_weights(labels, (4, 7))
    torch.testing.assert_close(weights, expected.flatten(1))
    pooled = pool_regions(weights, torch.ones(28, 3))
    assert pooled[30].eq(0).all() and pooled[0].sub(1).abs().max() < 1e-5


def test_windows_do_not_depend_on_their_batch(toy):
    windows = random_windows(2, 70, 90)
    query = toy.query(["cat", "dog"], 0.5)
    together = toy.window_scores(windows, query)
    assert together.shape == (2, 3, 70, 90) and together[:, 0].eq(0.5).all()
    alone = torch.cat([toy.window_scores(window[None], query) for window in windows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_without_superpixels_patches_are_spread(toy):
    plain = load_segmenter("freeda_toy", "seeded:0", superpixels=False)
    windows = random_windows(1, 60, 60)
    query = plain.query(["cat"])
    features = plain.patch_features(windows)
    assert features.regions == [] and not isinstance(plain, PatchScoring)
    expected = torch.nn.functional.interpolate(
        plain.dense_scores(features, query), (60, 60), mode="bilinear", align_corners=True
    )
    assert torch.equal(plain.local_scores(features, windows, query), expected)
    assert not torch.equal(toy.window_scores(windows, query), plain.window_scores(windows, query))
    assert not plain.shares_features(toy) and toy.shares_features(toy)


def test_options_and_rules_are_the_published_ones():
    method = find_method("freeda_vitl", {"bank": "bank.safetensors"})
    assert [row.key for row in method.published_on] == [
        *("voc20", "context59", "coco_stuff", "cityscapes", "ade20k")
    ]
    assert method.on(BENCHMARKS["cityscapes"]).settings()["superpixels"] == {
        **{"scale": 20, "sigma": 0.5, "min_size": 50}
    }
    voc = method.on(BENCHMARKS["voc"])
    assert voc.superpixels == method.on(BENCHMARKS["voc20"]).superpixels
    superpixels = "freeda_vitl has no superpixels for voc: those of voc20"
    assert method.remarks(BENCHMARKS["voc"]) == [superpixels]
    assert method.remarks(BENCHMARKS["voc20"]) == []
    assert (
        find_method("freeda_toy", {"weights": "clip.pt"}).settings()["vision_weights"] == "seeded:0"
    )
    toy = find_method("freeda_toy", {"superpixels": False})
    assert toy.remarks(BENCHMARKS["voc"]) == ["nothing is published of freeda_toy on voc"]
    assert voc.threshold(BENCHMARKS["voc"]) is None
    assert method.published_miou(BENCHMARKS["ade20k"]) == 21.4
    with pytest.raises(ValueError, match="freeda_vitl needs a bank.*Google Drive"):
        find_method("freeda_vitl").check()
    with pytest.raises(FileNotFoundError, match="bank.safetensors: no such bank"):
        method.check()
    with pytest.raises(ValueError, match="neighbours"):
        find_method("freeda_toy", {"neighbours": 0})
