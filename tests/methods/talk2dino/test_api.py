"""The Python API on the toy pair."""

import ast
import copy
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import talk2dino
from talk2dino import Segmentation, Talk2DINO, read_rgb
from talk2dino.inference import picture_scores
from talk2dino.methods.talk2dino.projection import build_projection
from talk2dino.pictures.images import rgb_tensor
from talk2dino.pictures.vocabularies import find_vocabulary
from talk2dino.segmenter import ClassQuery
from talk2dino.sizes import WHOLE

NAMES = ["cup", "table", "silver spoon"]


@pytest.fixture(scope="module")
def model():
    return Talk2DINO.from_pretrained("toy", device="cpu")


@pytest.fixture(scope="module")
def coffee(photos):
    return read_rgb(photos / "coffee.png").resize((150, 100))


@pytest.fixture(scope="module")
def result(model, coffee):
    return model.segment(coffee, NAMES)


def test_texts_become_rows_in_the_space_of_the_patches(model):
    one, two = model.encode_text("a cup"), model.encode_text(["a cup", "a spoon"])
    assert one.shape == (1, 192) and two.shape == (2, 192)
    torch.testing.assert_close(one[0], two[0], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="no texts given"):
        model.encode_text([])
    with pytest.raises(ValueError, match="texts are given as .*found 7"):
        model.encode_text(["a cup", 7])


@pytest.mark.parametrize("kind", ["path", "pil", "array", "tensor"])
def test_every_form_of_a_picture_gives_the_same_patches(model, photos, kind):
    path = photos / "chelsea.png"
    picture = read_rgb(path)
    forms = {
        "path": str(path),
        "pil": picture,
        "array": np.asarray(picture),
        "tensor": rgb_tensor(picture),
    }
    patches = model.encode_image(forms[kind])
    assert patches.shape == (1, 1024, 192)
    torch.testing.assert_close(patches, model.encode_image([picture]))


def test_a_batch_tensor_counts_as_several_pictures(model, coffee):
    batch = torch.stack([rgb_tensor(coffee), rgb_tensor(coffee.rotate(180))])
    assert model.encode_image(batch).shape == (2, 1024, 192)
    assert [type(r) for r in model.segment(batch, NAMES, refine=False)] == [Segmentation] * 2


def test_segmenting_gives_what_the_segmenter_gives(model, coffee, result):
    method = model.segmenter.variant(pamr=True)
    query = ClassQuery.of_rows(method.embed_classes(NAMES))
    expected = picture_scores(method, rgb_tensor(coffee), query, WHOLE)
    torch.testing.assert_close(result.scores, expected)
    assert result.labels.shape == (100, 150) and result.labels.dtype == torch.int64
    assert torch.equal(result.labels, expected.argmax(0))
    assert result.names == tuple(NAMES) and result.background is None


def test_pictures_of_different_sizes_are_segmented_together_as_alone(model, coffee, result):
    small = coffee.resize((40, 60))
    pictures = [small] * 8 + [coffee]  # more than one batch of the backbone
    together = model.segment(pictures, NAMES)
    assert [tuple(r.labels.shape) for r in together] == [(60, 40)] * 8 + [(100, 150)]
    torch.testing.assert_close(together[-1].scores, result.scores, rtol=1e-4, atol=1e-5)


def test_a_background_comes_first_and_its_score_is_the_threshold(model, coffee):
    own = model.segment(coffee, NAMES, background=True, refine=False)
    assert own.names == ("background", *NAMES) and own.scores.shape == (4, 100, 150)
    assert own.background == 0.52 and torch.all(own.scores[0] == 0.52)
    everything = model.segment(coffee, NAMES, background=1.0, refine=False)
    assert everything.areas()["background"] == 100
    nothing = model.segment(coffee, NAMES, background=0, refine=False)
    assert nothing.areas()["background"] == 0
    assert model.segment(coffee, NAMES, background=np.False_, refine=False).background is None


def test_a_large_picture_can_be_scored_smaller_and_keeps_its_size(model, coffee):
    scored = model.segment(coffee, NAMES, max_side=50)
    assert scored.labels.shape == (100, 150)
    with pytest.raises(ValueError, match="max_side is a number of pixels from 1, found 0"):
        model.segment(coffee, NAMES, max_side=0)


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ([], {}, "no class names"),
        (["cup", " "], {}, "number 2 is empty"),
        (["cup", None], {}, "texts are given as .*found None"),
        (["Cup", "cup "], {}, "is there twice"),
        (["background"], {"background": True}, "added by itself"),
        (None, {}, "texts are given as .*found None"),
        (["cup"], {"background": 1.5}, "between 0 and 1"),
        (["cup"], {"background": "0.5"}, "between 0 and 1, found '0.5'"),
        (["cup"], {"background": None}, "between 0 and 1, found None"),
        (["cup"], {"background": float("nan")}, "between 0 and 1"),
    ],
)
def test_wrong_questions_are_refused(model, coffee, names, settings, message):
    with pytest.raises(ValueError, match=message):
        model.segment(coffee, names, **settings)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"\(H, W, 3\) uint8 RGB, found \(4, 4, 3\) float32"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"\(3, H, W\) uint8 RGB, found \(4, 4, 3\)"),
        (np.zeros((4, 4), np.uint8), "found \\(4, 4\\) uint8"),
        ([], "no images given"),
        ([7], "found int"),
        (None, "found NoneType"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), r"found \(0, 3, 4, 4\)"),
    ],
)
def test_what_is_no_picture_is_refused(model, image, message):
    with pytest.raises(ValueError, match=message):
        model.segment(image, NAMES)


def test_a_missing_picture_is_named(model):
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        model.segment("nowhere.png", NAMES)


def test_a_picture_with_transparency_is_laid_on_white(model):
    clear = model.encode_image(Image.new("RGBA", (20, 20), (255, 0, 0, 0)))
    torch.testing.assert_close(clear, model.encode_image(Image.new("RGB", (20, 20), "white")))


def test_the_toy_model_says_that_it_is_untrained(model):
    assert not model.is_trained
    assert model.to("cpu") is model and model.device == torch.device("cpu")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="Did you mean 'vitb'"):
        Talk2DINO.from_pretrained("vitbb", device="cpu")


def test_published_methods_keep_their_meaning(model, coffee):
    tokens = model.build_dataset_class_tokens("sub_imagenet_template", NAMES)
    assert tokens.shape == (3, 7, 77)
    classes = model.build_text_embedding(tokens)
    torch.testing.assert_close(classes, model.segmenter.embed_classes(NAMES))
    rgb = rgb_tensor(coffee)[None].float()
    masks, cosines = model.generate_masks(rgb.flip(1), None, classes, NAMES, apply_pamr=True)
    assert cosines.shape == (1, 3, 32, 32)
    method = model.segmenter.variant(pamr=True)
    torch.testing.assert_close(masks, method.window_scores(rgb, ClassQuery.of_rows(classes)))


def test_the_options_of_a_call_are_those_of_the_segmenter(model, coffee):
    plain = model.segment(coffee, NAMES, refine=False)
    smaller = model.segment(coffee, NAMES, refine=False, max_side=60)
    assert smaller.labels.shape == plain.labels.shape
    assert not torch.equal(smaller.scores, plain.scores)
    # With a background the scores are cleaned, unless that is refused.
    cleaned, raw = (
        model.segment(coffee, NAMES, 0.5, refine=False, clean_background=clean).scores[1:]
        for clean in (None, False)
    )
    torch.testing.assert_close(raw, plain.scores)
    assert not torch.allclose(cleaned, raw, atol=1e-4)
    assert plain.settings == {"model": "toy", "refine": False, "clean_background": False}


def test_nothing_is_remembered_for_gradients(model, coffee):
    assert not model.encode_image(coffee).requires_grad
    assert not model.segment(coffee, NAMES).scores.requires_grad


def test_an_error_says_which_of_several_pictures_it_is(model, coffee):
    with pytest.raises(ValueError, match=r"images\[1\]: .*found \(4, 4\) uint8"):
        model.encode_image([coffee, np.zeros((4, 4), np.uint8)])
    many = [coffee] * 9 + [Image.new("RGB", (0, 5))]
    with pytest.raises(ValueError, match=r"images\[9\]: the image has no pixels: 0 x 5"):
        model.encode_image(many)
    with pytest.raises(ValueError, match=r"^the image has no pixels"):
        model.encode_image(Image.new("I;16", (3, 0)))


def test_models_and_results_describe_themselves_in_a_line(model, result):
    assert repr(model) == "<Talk2DINO toy: toy, on cpu>"
    assert repr(result).startswith("<Segmentation of 150 x 100 pixels: cup ")
    assert "tensor" not in repr(result)


@pytest.mark.parametrize("autocast", [False, True])
def test_one_text_is_never_taken_for_its_letters(model, autocast):
    text, segmenter = model.text, model.segmenter
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for embed in (text.encode, segmenter.embed_texts, segmenter.embed_classes):
            assert torch.equal(embed("a cup"), embed(["a cup"])), embed
    assert torch.equal(text.tokenize("a cup"), text.tokenize(["a cup"]))
    with pytest.raises(ValueError, match="found b'cup'"):
        text.encode(b"cup")
    with pytest.raises(ValueError, match="found 7 in it"):
        text.tokenize(["cup", 7])


def test_one_name_is_one_class_for_whoever_takes_several():
    assert find_vocabulary("cat").names == ("cat",)
    one = Segmentation(Image.new("RGB", (2, 1)), torch.zeros(1, 2).long(), torch.ones(1, 1, 2), "a")
    assert one.names == ("a",)


def test_numbers_are_float32_within_the_caller_s_autocast(model, coffee):
    expected = model.segment(coffee, NAMES, background=True)
    rgb, classes = rgb_tensor(coffee)[None].float(), model.segmenter.embed_classes(NAMES)
    masks, _ = model.generate_masks(rgb, None, classes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.segment(coffee, NAMES, background=True)
        assert torch.equal(model.generate_masks(rgb, None, classes)[0], masks)
        assert torch.equal(model.encode_text(NAMES), model.encode_text(NAMES).float())
    assert torch.equal(found.scores, expected.scores)
    assert found.heat_map("cup").size == coffee.size


def test_a_program_that_computes_in_float64_gets_the_same_numbers(model, coffee):
    expected = model.segment(coffee, NAMES, refine=True)
    torch.set_default_dtype(torch.float64)
    try:
        found = Talk2DINO.from_pretrained("toy", device="cpu").segment(coffee, NAMES, refine=True)
        layer = build_projection(model.projection.config)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.scores, expected.scores)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}


@pytest.mark.parametrize("part", ["vision", "text", "projection", "segmenter"])
def test_no_part_takes_another_number_type(part, model):
    for change in ("double", "half", "bfloat16"):
        with pytest.raises(ValueError, match="is not supported: weights are float32"):
            getattr(getattr(model, part), change)()
    assert {p.dtype for p in getattr(model, part).parameters()} == {torch.float32}


def test_results_can_be_compared_and_kept_in_sets(result, coffee, model):
    other = copy.deepcopy(result)
    assert (result == other) is False and result in [other, result]
    assert [other, result].index(result) == 1 and len({result, other, result}) == 2
    query = ClassQuery.of_rows(torch.zeros(2, 3))
    assert query == query and query != ClassQuery.of_rows(torch.zeros(2, 3)) and hash(query)


def test_every_class_that_holds_arrays_is_compared_by_identity():
    package = Path(talk2dino.__file__).parent
    names = [p.relative_to(package).with_suffix("").parts for p in package.rglob("*.py")]
    held = re.compile(r"\b(Tensor|ndarray|Image\.Image)\b")
    for parts in names:
        source = (package.joinpath(*parts)).with_suffix(".py").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                made = [d for d in map(ast.unparse, node.decorator_list) if "dataclass" in d]
                kinds = [
                    ast.unparse(n.annotation) for n in node.body if isinstance(n, ast.AnnAssign)
                ]
                if made and any(held.search(k) and "Callable" not in k for k in kinds):
                    assert "eq=False" in made[0], f"{parts}: {node.name}"


def test_encoded_pictures_are_read_in_habitual_forms(model, photos):
    path = photos / "chelsea.png"
    data, expected = path.read_bytes(), model.encode_image(path)
    with path.open("rb") as file:
        for picture in (
            *(data, bytearray(data), memoryview(data), io.BytesIO(data), file),
            *({"bytes": data, "path": None}, {"bytes": None, "path": str(path)}),
        ):
            assert torch.equal(model.encode_image(picture), expected), type(picture)


@pytest.mark.parametrize(
    ("picture", "kind", "message"),
    [
        ("https://example.org/a.png", ValueError, "is an address. Download the picture"),
        (b"", ValueError, r"empty \(0 bytes\)"),
        (io.StringIO("x"), ValueError, "opened as text. Open it with mode 'rb'"),
        ({"image": 1}, ValueError, r"'bytes' or 'path', found \['image'\]"),
        (None, ValueError, "found NoneType"),
        ("nowhere.png", FileNotFoundError, "nowhere.png"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_position(model, coffee, picture, kind, message):
    with pytest.raises(kind, match=message):
        model.encode_image(picture)
    with pytest.raises(kind, match=rf"images\[1\]: .*{message}"):
        model.segment([coffee, picture], NAMES, refine=False)


def test_a_damaged_picture_that_was_opened_is_named_by_its_position(model, coffee):
    data = io.BytesIO()
    coffee.save(data, "JPEG")
    broken = Image.open(io.BytesIO(data.getvalue()[:900]))  # fails when it is decoded
    with pytest.raises(ValueError, match=r"images\[1\]: the image is truncated or damaged"):
        model.segment([coffee, broken], NAMES)


def test_a_picture_has_one_vector_by_attention_mean_or_its_cls_token(model, coffee):
    features = model.segmenter.patch_features(
        model.segmenter.resize_windows(rgb_tensor(coffee)[None].float())
    )
    weights = features.attention_logits.mean(dim=1).softmax(dim=-1)
    expected = {
        "attention": (weights[..., None] * features.patches).mean(dim=1),
        "mean": features.patches.mean(dim=1),
        "cls": features.cls,
    }
    for pool, vector in expected.items():
        torch.testing.assert_close(model.encode_image(coffee, pool=pool), vector)
    with pytest.raises(ValueError, match="unknown pool 'max'"):
        model.encode_image(coffee, pool="max")


IMAGE = torch.zeros(1, 3, 28, 28)


@pytest.fixture(scope="module")
def small(model):
    """The toy pair with a small input."""
    return Talk2DINO(model.segmenter.variant(input_size=56), model.loaded)


@pytest.fixture(scope="module")
def tokens(small):
    return small.build_dataset_class_tokens("simple", NAMES)


@pytest.fixture(scope="module")
def classes(small, tokens):
    return small.build_text_embedding(tokens)


def test_class_names_may_be_an_array(small, tokens):
    assert torch.equal(small.build_dataset_class_tokens("simple", np.array(NAMES)), tokens)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint16])
def test_tokens_may_be_whole_numbers_of_any_size(small, tokens, classes, kind):
    torch.testing.assert_close(small.build_text_embedding(tokens.to(kind)), classes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t, c: m.build_dataset_class_tokens("subset", [1]), "found 1 in it"),
        (lambda m, t, c: m.build_dataset_class_tokens("subset", ["cup", " "]), "an empty class"),
        (lambda m, t, c: m.build_text_embedding(t.numpy()), r"a tensor \(C, T, 77\).* ndarray"),
        (lambda m, t, c: m.build_text_embedding(t[0]), r"\(C, T, 77\).*found \(1, 77\)"),
        (lambda m, t, c: m.build_text_embedding(t.float()), "whole numbers, found .*float32"),
        (lambda m, t, c: m.generate_masks(IMAGE[0], None, c), r"BGR, found \(3, 28, 28\)"),
        (lambda m, t, c: m.generate_masks(IMAGE, None, c[0]), r"text_emb must be .*\(192,\)"),
        (lambda m, t, c: m.generate_masks(IMAGE, None, c, text_is_token=True), "only False"),
    ],
)
def test_what_does_not_fit_is_told(small, tokens, classes, call, message):
    with pytest.raises(ValueError, match=message):
        call(small, tokens, classes)


def test_embeddings_of_half_precision_are_compared_in_single(small, classes):
    masks, _ = small.generate_masks(IMAGE, None, classes.half())
    assert masks.dtype == torch.float32
