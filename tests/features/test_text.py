"""`text_features_extraction.py` from captions to features, and what it says when it cannot."""

import errno
import functools
import tarfile

import pytest
import torch

from talk2dino.backbones.text import load_text
from talk2dino.cli.extract import Extract, ExtractText
from talk2dino.features import text
from talk2dino.features.captions import CaptionInput
from talk2dino.features.store import FeatureFile, read_features, write_features
from talk2dino.features.tars import read_shards
from talk2dino.features.text import (
    TextExtraction,
    token_features,
)


@pytest.fixture(autouse=True)
def _load_once(monkeypatch):
    """Drawing the toy encoder's 25 million token weights takes a second."""
    monkeypatch.setattr(text, "load_text", cached_load)


cached_load = functools.cache(load_text)


def arguments(path, *more):
    return ["--ann_path", str(path), "--model", "toy", "--device", "cpu", *more]


@pytest.fixture
def features(tmp_path, coco):
    """A feature file with image features only."""
    path = tmp_path / "val.pth"
    columns = {"dino_features": torch.randn(6, 8)}
    write_features(FeatureFile(coco.images, coco.annotations, columns), path)
    return path


def expected(coco):
    return cached_load("toy", None, torch.device("cpu")).encode(
        [annotation["caption"] for annotation in coco.annotations]
    )


def assert_close(found, wanted):
    assert (found.float() - wanted).norm() / wanted.norm() < 1e-4


def test_captions_are_added_to_the_feature_file(features, coco):
    before = read_features(features)
    assert ExtractText.main(arguments(features, "--batch_size", "4")) == 0
    after = read_features(features)
    assert_close(after.caption_features["ann_feats"], expected(coco))
    assert after.images == before.images
    assert after.annotations == before.annotations
    torch.testing.assert_close(after.image_features, before.image_features)
    assert after.settings["text"] == {"model": "toy", "weights": "seeded:0", "dtype": "float32"}
    assert sorted(p.name for p in features.parent.iterdir()) == ["coco", "val.pth"]


def test_a_coco_file_becomes_a_file_of_text_features(coco):
    assert ExtractText.main(arguments(coco.path)) == 0
    stored = read_features(coco.path.with_suffix(".pth"))
    assert_close(stored.caption_features["ann_feats"], expected(coco))
    assert stored.extra == {"info": {"year": 2014}, "licenses": []}


def test_a_published_file_stays_published(tmp_path, coco):
    write_features(FeatureFile(coco.images, coco.annotations), tmp_path / "a.pth", "coco")
    assert ExtractText.main(arguments(tmp_path / "a.pth")) == 0
    stored = torch.load(tmp_path / "a.pth", weights_only=True)
    assert_close(stored["annotations"][3]["ann_feats"], expected(coco)[3])


def test_dense_outputs_are_those_of_the_encoder(features, coco):
    flags = ["--extract_dense_out", "--extract_second_last_dense_out", "--batch_size", "4"]
    assert ExtractText.main(arguments(features, *flags)) == 0
    stored = read_features(features).caption_features
    model = cached_load("toy", None, torch.device("cpu"))
    captions = [annotation["caption"] for annotation in coco.annotations]
    found = model(model.tokenize(captions), dense=True, penultimate=True)
    assert_close(stored["ann_feats"], found.pooled)
    assert_close(stored["clip_txt_out_tokens"], found.tokens)
    assert_close(stored["clip_second_last_out"], found.penultimate)
    assert torch.equal(stored["text_input_mask"], found.mask)
    assert torch.equal(stored["text_argmax"], found.end_positions)
    assert stored["clip_txt_out_tokens"].shape == (11, 77, 512)
    rows = torch.arange(11)
    assert_close(stored["clip_txt_out_tokens"][rows, stored["text_argmax"]], found.pooled)


def test_only_floating_point_tensors_are_stored_in_half(features):
    assert ExtractText.main(arguments(features, "--extract_dense_out", "--dtype", "bfloat16")) == 0
    kinds = {key: c.dtype for key, c in read_features(features).caption_features.items()}
    assert kinds["ann_feats"] == kinds["clip_txt_out_tokens"] == torch.bfloat16
    assert kinds["text_input_mask"] == torch.bool


def encoded(monkeypatch, captions, **settings):
    """What the encoder is given, batch by batch, and the vectors."""
    given = []

    def encode(model, tokens, *rest):
        given.append(tokens)
        return token_features(model, tokens, *rest)

    monkeypatch.setattr(text, "token_features", encode)
    extraction = TextExtraction(model="toy", device="cpu", **settings)
    made = extraction._encoded(extraction.models.tokenize(captions))
    return given, made.columns["ann_feats"]


def test_captions_with_many_tokens_come_first_and_a_batch_ends_with_its_longest(monkeypatch):
    captions = ["a b", "a b c", "a", "d e f", "antidisestablishmentarianism?"]
    batches, vectors = encoded(monkeypatch, captions, batch_size=2)
    assert [tuple(batch.shape) for batch in batches] == [(2, 9), (2, 5), (1, 3)]
    model = cached_load("toy", None, torch.device("cpu"))
    wanted = model.tokenize(captions)[[4, 1, 3, 0, 2]]
    assert torch.equal(batches[0], wanted[:2, :9])
    assert torch.equal(batches[2], wanted[4:, :3])
    assert_close(vectors, model.encode(captions))


def test_where_every_position_is_stored_the_order_stays(monkeypatch):
    (tokens,), _ = encoded(monkeypatch, ["a b", "a b c"], dense=True)
    assert tokens.shape == (2, 77)
    assert tokens[0].argmax() == 3


def test_captions_are_tokenised_and_sorted_some_at_a_time(features, coco, monkeypatch):
    """However many there are, the ids of a few batches are in memory; no row changes its place."""
    seen, real = [], TextExtraction._encoded

    def watched(self, tokens):
        seen.append(len(tokens))
        return real(self, tokens)

    monkeypatch.setattr(TextExtraction, "_encoded", watched)
    monkeypatch.setattr(text, "SORTED_BATCHES", 2)
    assert ExtractText.main(arguments(features, "--batch_size", "2")) == 0
    assert seen == [4, 4, 3]
    assert_close(read_features(features).caption_features["ann_feats"], expected(coco))


def test_mixed_precision_is_recorded_and_close(features, coco):
    assert ExtractText.main(arguments(features, "--amp", "bfloat16")) == 0
    stored = read_features(features)
    found = stored.caption_features["ann_feats"]
    assert found.dtype == torch.float32
    assert 0 < (found - expected(coco)).norm() / expected(coco).norm() < 3e-2
    assert stored.settings["text"]["amp"] == "bfloat16"


def test_a_smaller_batch_after_running_out_of_memory_gives_the_same_vectors(
    features, coco, caplog, monkeypatch
):
    sizes = []

    def encode(model, tokens, *rest):
        sizes.append(len(tokens))
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return token_features(model, tokens, *rest)

    monkeypatch.setattr(text, "token_features", encode)
    assert ExtractText.main(arguments(features, "--batch_size", "8")) == 0
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    assert_close(read_features(features).caption_features["ann_feats"], expected(coco))
    assert [r.getMessage() for r in caplog.records] == [
        "8 captions at a time do not fit in the memory of cpu; going on with 4",
        "4 captions at a time do not fit in the memory of cpu; going on with 2",
    ]


def test_the_other_keys_are_added_later(features, coco):
    assert ExtractText.main(arguments(features)) == 0
    first = read_features(features).caption_features["ann_feats"]
    assert ExtractText.main(arguments(features, "--extract_second_last_dense_out")) == 0
    stored = read_features(features).caption_features
    assert sorted(stored) == ["ann_feats", "clip_second_last_out", "text_argmax"]
    torch.testing.assert_close(stored["ann_feats"], first, rtol=0, atol=0)


def test_features_that_are_there_are_kept(features, capsys):
    assert ExtractText.main(arguments(features)) == 0
    before = features.read_bytes()
    assert ExtractText.main(arguments(features)) == 1
    assert "already holds ann_feats, made with the same settings" in capsys.readouterr().err
    assert ExtractText.main(arguments(features, "--text_weights", "seeded:5")) == 1
    assert "ann_feats, made with other or unknown settings" in capsys.readouterr().err
    assert features.read_bytes() == before
    assert sorted(p.name for p in features.parent.iterdir()) == ["coco", "val.pth"]


def test_overwrite_replaces_features_and_drops_what_no_longer_fits(features, coco, caplog):
    assert ExtractText.main(arguments(features, "--extract_dense_out")) == 0
    assert ExtractText.main(arguments(features, "--text_weights", "seeded:5", "--overwrite")) == 0
    stored = read_features(features)
    assert list(stored.caption_features) == ["ann_feats"]
    assert stored.settings["text"]["weights"] == "seeded:5"
    assert (stored.caption_features["ann_feats"] - expected(coco)).abs().max() > 0.1
    assert "clip_txt_out_tokens, text_input_mask of the input" in caplog.text


def test_a_disk_that_fills_up_harms_nothing(features, capsys, monkeypatch):
    before = features.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("talk2dino.features.job.write_features", full)
        assert ExtractText.main(arguments(features)) == 1
    message = capsys.readouterr().err
    assert "could not write (No space left on device)" in message
    assert "is kept there" in message
    assert features.read_bytes() == before
    assert ExtractText.main(arguments(features)) == 0
    assert "ann_feats" in read_features(features).caption_features


def test_another_output_leaves_the_input_alone(features, tmp_path):
    before = features.read_bytes()
    assert ExtractText.main(arguments(features, "--out_path", str(tmp_path / "b.pth"))) == 0
    assert features.read_bytes() == before
    assert "ann_feats" in read_features(tmp_path / "b.pth").caption_features


def test_shards_go_in_and_out(tmp_path, coco):
    flags = ["--write_as_wds", "--n_shards", "2"]
    assert Extract.main(coco.arguments(tmp_path / "a", *flags)) == 0
    pattern = tmp_path / "a" / "shard{00000..00001}.tar"
    assert ExtractText.main(arguments(pattern, "--out_path", str(tmp_path / "b"), *flags)) == 0
    stored = read_shards(sorted((tmp_path / "b").iterdir()))
    assert [a["id"] for a in stored.annotations] == [a["id"] for a in coco.annotations]
    assert_close(stored.caption_features["ann_feats"], expected(coco))
    assert stored.image_features["dino_features"].shape == (6, 192)
    assert set(stored.settings) == {"vision", "text"}


def test_splits_are_written_side_by_side(features, tmp_path, coco):
    flags = ["--n_in_splits", "2", "--out_path", str(tmp_path / "b.pth")]
    assert ExtractText.main(arguments(features, *flags)) == 0
    rows = [read_features(tmp_path / f"b_{n}.pth").caption_features["ann_feats"] for n in (0, 1)]
    assert_close(torch.cat(rows), expected(coco))


def test_bert_stores_its_pooler_output(features, tmp_path, coco):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "tiny-bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "word"]))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(folder)
    assert ExtractText.main(arguments(features)) == 0
    assert ExtractText.main(arguments(features, "--model", str(folder))) == 0
    stored = read_features(features)
    assert sorted(stored.caption_features) == ["ann_feats", "bert-base_features"]
    bert = load_text(str(folder)).encode([a["caption"] for a in coco.annotations])
    assert_close(stored.caption_features["bert-base_features"], bert)
    assert set(stored.settings) == {"text", "bert"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "ViT-B-16"], "Did you mean 'ViT-B/16'"),
        (["--text_weights", "nowhere.pt"], "nowhere.pt"),
        (["--batch_size", "0"], "batch_size must be at least 1"),
        (["--amp", "float64"], "invalid choice: 'float64'"),
        (["--model", "bert-base-uncased", "--extract_dense_out"], "work with CLIP, not with bert"),
        (["--ann_path", "nothing.pth"], "nothing.pth: no such file"),
        (["--device", "tpu"], "unknown device"),
        (["--extract_dense"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments_are_refused(features, capsys, more, message):
    assert ExtractText.main(arguments(features, *more)) == 2
    assert message in capsys.readouterr().err


def test_tars_need_an_output_path(tmp_path, coco, capsys):
    assert Extract.main(coco.arguments(tmp_path / "a", "--write_as_wds")) == 0
    assert ExtractText.main(arguments(tmp_path / "a" / "*.tar")) == 2
    assert "--out_path is needed" in capsys.readouterr().err


def test_tars_without_a_single_caption_are_refused(tmp_path, coco, capsys):
    path = tmp_path / "web.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(coco.folder / "000.jpg", "0.jpg")
    assert ExtractText.main(arguments(path, "--out_path", str(tmp_path / "o.pth"))) == 1
    assert "web.tar holds no captions" in capsys.readouterr().err
    assert not (tmp_path / "o.pth").exists()


def test_shards_are_not_written_among_the_input(tmp_path, coco, capsys):
    assert Extract.main(coco.arguments(tmp_path / "a", "--write_as_wds")) == 0
    assert ExtractText.main(arguments(tmp_path / "a", "--write_as_wds", "--overwrite")) == 2
    assert "among the tars of the input" in capsys.readouterr().err
    pattern = tmp_path / "a" / "*.tar"
    out = ["--out_path", str(tmp_path / "a")]
    assert ExtractText.main(arguments(pattern, "--write_as_wds", *out)) == 2


def test_the_flags_are_as_published():
    published = (
        "--ann_path a --batch_size 8 --model m --out_path o --extract_dense_out "
        "--extract_second_last_dense_out --write_as_wds --n_shards 3 --n_in_splits 2 "
        "--in_batch_offset 1 --out_offset 1"
    )
    ExtractText.parse(published.split())
    defaults = ExtractText.parse(["--ann_path", "a"])
    assert (defaults.model, defaults.batch_size, defaults.n_shards) == ("ViT-B/16", 256, 10)


def test_captions_are_read_without_looking_for_images(features, coco):
    for image in coco.images:
        (coco.folder / image["file_name"]).unlink()
    assert len(CaptionInput(features, need_images=False).split(0, 1).features.annotations) == 11
    assert ExtractText.main(arguments(features)) == 0
