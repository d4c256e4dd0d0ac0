"""OVSegmentor's modules against numbers recorded from the published ones (float32, CPU)."""

import math

import pytest
import torch
import torch.nn.functional as F

from talk2dino.benchmarks.scoring import Batching, Picture, Task, label_pictures
from talk2dino.inference import resize_scores, sliding_window_scores
from talk2dino.methods.ovsegmentor.losses import (
    binary_targets,
    infonce,
    joint_dice,
    least_similar_groups,
    mask_consistency,
    match_groups,
    similarity_scale,
    unit_range,
)
from talk2dino.methods.ovsegmentor.method import (
    OVSegmentorSegmenter,
    group_class_scores,
    upsample_groups,
)
from talk2dino.methods.ovsegmentor.text import Tokenizer, toy_tokenizer
from talk2dino.methods.ovsegmentor.vision import affinity
from talk2dino.segmenter import ClassQuery
from talk2dino.sizes import Protocol
from tests.methods.ovsegmentor.fill import recorded_input, recorded_model, uniform

TOLERANCE = 1e-4
GROUPING = "layers.0.downsample"

# Module -> sum, l2 norm, first four values of its output for image224.
ENCODER = {
    "patch_embed": (52.772305, 159.037617, (0.499657, -2.2408, 0.769117, -1.010331)),
    "layers.0.blocks.0": (1099.613218, 199.911745, (0.656838, -1.940555, 1.205758, -0.64034)),
    "layers.0.blocks.5": (-3044.163721, 328.622113, (-2.503704, -2.114182, 2.437591, 0.408482)),
    f"{GROUPING}.norm_tokens": (-11.490434, 78.470720, (-1.536658, 0.533902, 1.236029, 1.246396)),
    f"{GROUPING}.norm_x": (-262.143963, 136.629930, (-1.175964, -0.689401, 1.28328, 0.296235)),
    f"{GROUPING}.mlp_inter": (-39.198823, 12.054897, (-0.715784, -0.550474, -0.620648, -0.16106)),
    f"{GROUPING}.norm_post_tokens": (3.588344, 27.86144, (-1.87818, -0.83855, 0.978424, 0.381107)),
    f"{GROUPING}.pre_assign_attn": (1.058063, 27.972151, (-1.38026, -0.900625, 0.312603, 1.172585)),
    f"{GROUPING}.norm_new_x input": (
        *(46.531267, 34.041085),
        (-1.453217, -1.498311, 1.039577, 0.490648),
    ),
    GROUPING: (-2.142028, 41.507233, (-1.572059, -2.254681, 0.662326, 0.629305)),
    f"{GROUPING}.assign.q_proj": (-92.28321, 30.617401, (0.683369, 0.044261, -0.201114, -1.670967)),
    f"{GROUPING}.assign.k_proj": (
        *(-514.376082, 136.6639),
        (-0.21531, 1.270432, 0.180831, -0.946616),
    ),
    "soft": (392.0, 9.188153, (0.421382, 0.145747, 0.101491, 0.136317)),
    "layers.1": (452.227736, 91.637235, (-2.040886, -3.839656, 0.638145, 3.996871)),
    "norm": (-9.783101, 27.649572, (-0.858993, -1.304581, 0.112558, 0.95113)),
    "mean": (-1.222888, 8.973967, (-0.644116, -1.1162, 0.134395, 0.799008)),
}


@pytest.fixture(scope="module")
def model():
    return recorded_model()


def check(values, total, norm=None, first=()):
    """Compare sum, l2 norm and first values; a sum is as exact as the summed values are large."""
    values = values.detach().double()
    size = float(values.abs().sum())
    assert float(values.sum()) == pytest.approx(total, rel=TOLERANCE, abs=TOLERANCE + 1e-6 * size)
    if norm is not None:
        assert float(values.norm()) == pytest.approx(norm, rel=TOLERANCE, abs=TOLERANCE)
    start = values.flatten()[: len(first)].tolist()
    assert start == pytest.approx(list(first), rel=TOLERANCE, abs=TOLERANCE)


def histogram(labels, size=None):
    if size is not None:
        return torch.bincount(labels.flatten(), minlength=size).tolist()
    values, counts = labels.unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_the_fill_gives_the_recorded_numbers():
    expected = [-0.816408094484, -0.934559261616, -0.273261614368, -0.850984165299, 0.190297420617]
    assert uniform("image224", (5,)).tolist() == pytest.approx(expected, abs=1e-7)


@pytest.fixture(scope="module")
def encoder_outputs(model):
    """Output of every module of the image encoder for image224."""
    outputs = {}

    def keep(name):
        def hook(module, inputs, output):
            outputs[name] = output[0] if isinstance(output, tuple) else output
            outputs[f"{name} input"] = inputs[0]

        return hook

    handles = [m.register_forward_hook(keep(n)) for n, m in model.img_encoder.named_modules() if n]
    with torch.no_grad():
        features = model.img_encoder(recorded_input("image224", (2, 3, 224, 224), 2))
    for handle in handles:
        handle.remove()
    outputs["patch_embed"] = outputs["patch_embed"].flatten(2).transpose(1, 2)
    return outputs | {"mean": features.mean, "soft": features.assignment.soft, "all": features}


@pytest.mark.parametrize("name", ENCODER)
def test_the_image_encoder_agrees_inside(encoder_outputs, name):
    check(encoder_outputs[name], *ENCODER[name])


def test_patches_choose_the_recorded_groups(encoder_outputs):
    hard = encoder_outputs["all"].assignment.hard
    assert hard.sum(dim=-1).tolist() == [
        [46, 84, 13, 4, 18, 7, 4, 20],
        [16, 112, 15, 11, 15, 2, 1, 24],
    ]
    assert hard[0].argmax(dim=0)[:14].tolist() == [0, 1, 3, 4, 0, 4, 4, 0, 1, 4, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "shape", "patches", "total", "norm"),
    [
        ("image448", (2, 3, 448, 448), 784, -1.206776, 8.959221),
        ("imageR", (1, 3, 448, 560), 980, -0.729915, 6.308792),
        ("imageN", (1, 3, 230, 300), 252, -0.579008, 6.255898),
    ],
)
def test_images_of_other_sizes_agree(model, name, shape, patches, total, norm):
    with torch.no_grad():
        features = model.img_encoder(recorded_input(name, shape, 2))
    check(features.mean, total, norm)
    assert features.assignment.soft.shape[-1] == patches
    if name == "image448":
        check(features.groups, -9.654209, 27.773365)
        assert float(features.assignment.soft.norm()) == pytest.approx(17.940937, rel=TOLERANCE)
        assert features.assignment.hard.sum(dim=-1).tolist() == [
            [237, 287, 49, 53, 61, 20, 11, 66],
            [168, 320, 38, 20, 71, 16, 18, 133],
        ]


@pytest.mark.parametrize(
    ("grid", "total", "norm", "first"),
    [
        ((14, 14), -22.496639, 27.838668, ()),
        ((28, 28), -93.313301, 48.322746, (0.219841, -0.038135, 0.193915, 0.443035)),
        ((28, 35), -116.767521, 54.1067, ()),
        ((14, 18), -28.935872, 29.573032, ()),
    ],
)
def test_position_embeddings_of_other_grids_agree(model, grid, total, norm, first):
    check(model.img_encoder.positions(grid), total, norm, first)


def test_the_projector_agrees_on_groups_and_on_their_mean(model):
    features = recorded_input("feat", (2, 8, 48))
    first = (-0.077696, -0.222763, 0.291286, -0.280815)
    check(model.img_projector(features), -2.448034, 28.649173, first)
    check(model.img_projector(features.mean(dim=1)), 4.219365, 3.966722)


def test_the_entity_decoder_and_the_bridge_agree(model):
    groups, words = recorded_input("visual", (2, 8, 48)), recorded_input("text", (2, 77, 48))
    decoded = model.multimodal_groupingblock(groups, words)
    check(decoded, -0.123302, 9.687969, (-1.620136, -0.124016, -0.527364, 0.720152))
    first = (-0.219997, 0.046008, -0.727153, -0.291488)
    check(model.bridge_projector(decoded), 20.365831, 16.397067, first)
    check(model.complete(groups, words), 20.365831, 16.397067, first)


def test_infonce_agrees():
    images, texts = recorded_input("ia", (6, 256)), recorded_input("tb", (6, 256))
    assert float(infonce(images, texts, 1 / 0.07)) == pytest.approx(2.235711, abs=1e-5)
    assert float(infonce(images, images, 1 / 0.07)) == pytest.approx(6.97e-6, abs=5e-8)


@pytest.fixture(scope="module")
def masks():
    """Queries of the student, and affinities of student and teacher as 14 x 14 maps."""
    queries = recorded_input("q", (3, 8, 48)).requires_grad_()
    keys = recorded_input("k", (3, 196, 48))
    student = affinity(queries, keys).unflatten(-1, (14, 14))
    teacher = affinity(recorded_input("qc", (3, 8, 48)), keys).unflatten(-1, (14, 14))
    return queries, student, teacher


def test_the_mask_loss_and_its_gradient_agree(masks):
    queries, student, teacher = masks
    loss = mask_consistency(student, teacher, (224, 224), batch=None)
    assert float(loss.detach()) == pytest.approx(0.128876, abs=2e-6)
    (gradient,) = torch.autograd.grad(loss, queries, retain_graph=True)
    assert float(gradient.norm()) == pytest.approx(0.013434, abs=2e-6)
    first = gradient.flatten()[:4].tolist()
    assert first == pytest.approx([-0.000503, -0.000825, -0.000125, -0.00003], abs=1e-6)


def test_the_matching_the_targets_and_each_samples_dice_agree(masks):
    maps = [
        F.interpolate(m.detach(), (224, 224), mode="bilinear", align_corners=True).flatten(2)
        for m in masks[1:]
    ]
    order = match_groups(*maps)
    assert order.tolist() == [
        [2, 3, 7, 1, 6, 4, 5, 0],
        [1, 7, 0, 5, 3, 6, 2, 4],
        [5, 7, 2, 6, 0, 4, 3, 1],
    ]
    target = binary_targets(maps[1].take_along_dim(order[:, :, None], dim=1), 0.6)
    assert float(target.mean()) == pytest.approx(0.887834, abs=1e-6)
    dice = joint_dice(unit_range(maps[0]), target) / 8
    assert dice.tolist() == pytest.approx([0.041403, 0.043455, 0.044018], abs=1e-6)


def test_the_groups_least_like_the_entity_agree():
    groups, entity = recorded_input("groups", (3, 8, 256)), recorded_input("noun", (3, 256))
    chosen = least_similar_groups(groups, entity, 0.5)
    expected = [{2, 6, 5, 4}, {0, 7, 5, 3}, {4, 0, 5, 1}]
    assert [set(row) for row in chosen.tolist()] == expected


class NormalisedScorer(OVSegmentorSegmenter):
    """Takes windows that are normalised already, as the recorded ones are."""

    @torch.no_grad()
    def patch_features(self, windows):
        return self.model.encode_images(windows)


@pytest.fixture(scope="module")
def scorer(model):
    return NormalisedScorer(model, Tokenizer(toy_tokenizer(), 96))


@pytest.fixture(scope="module")
def class_rows():
    return F.normalize(recorded_input("textemb", (20, 256)), dim=-1)


@pytest.fixture
def set_scale(model):
    """Set the learned scale for one test."""
    before = model.logit_scale.data.clone()

    def change(value):
        model.logit_scale.data.fill_(value)

    yield change
    model.logit_scale.data.copy_(before)


@pytest.mark.parametrize(
    ("scale", "background", "total", "labels"),
    [
        (1 / 0.07, 0.95, 215382.7126, {0: 192239, 19: 8465}),
        (1 / 0.07, 0.35, 215382.7126, {0: 192239, 19: 8465}),
        (1 / 0.07, None, None, {14: 100413, 18: 10025, 19: 90266}),
        (100, 0.95, 305800.82, {0: 192239, 19: 8465}),
        (100, 0.35, 135195.82, {0: 21634, 15: 78779, 19: 10025, 20: 90266}),
        (100, 0.10, 113561.82, {15: 100413, 19: 10025, 20: 90266}),
        (100, None, None, {14: 100413, 18: 10025, 19: 90266}),
    ],
)
def test_window_scores_agree(scorer, class_rows, set_scale, scale, background, total, labels):
    set_scale(math.log(scale))
    window = recorded_input("image448", (2, 3, 448, 448), 2)[:1]
    scores = scorer.window_scores(window, ClassQuery.of_rows(class_rows, background))
    assert histogram(scores[0].argmax(dim=0)) == labels
    if total is not None:
        assert float(scores.double().sum()) == pytest.approx(total, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("scale", "best"),
    [
        (1 / 0.07, (0.03338, 0.03561, 0.03653, 0.03904, 0.04977, 0.05722, 0.06252, 0.09028)),
        (100, (0.1593, 0.19105, 0.23904, 0.37882, 0.38208, 0.82352, 0.88962, 0.96213)),
    ],
)
def test_scores_of_groups_agree(scorer, class_rows, scale, best):
    features = scorer.patch_features(recorded_input("image448", (2, 3, 448, 448), 2)[:1])
    scores = group_class_scores(features, class_rows, torch.tensor(float(scale)))
    sorted_best = scores[0].amax(dim=-1).sort().values.tolist()
    assert sorted_best == pytest.approx(best, abs=1e-4)
    window = F.normalize(features.embedding, dim=-1) @ class_rows.T
    assert window[0].topk(5).indices.tolist() == [18, 14, 19, 17, 2]
    cosines = F.normalize(features.groups[0], dim=-1) @ class_rows.T
    assert cosines.argmax(dim=-1).tolist() == [14, 19, 18, 14, 16, 14, 18, 14]


def test_sliding_windows_and_the_resized_result_agree(scorer, class_rows, set_scale):
    set_scale(math.log(100))
    image = recorded_input("imageR", (1, 3, 448, 560), 2)[0]
    scores = sliding_window_scores(scorer, image, ClassQuery.of_rows(class_rows, 0.35))
    check(scores, 163361.2046, 306.7848)
    expected = {0: 12050, 3: 112071, 15: 388, 19: 4513, 20: 121858}
    assert histogram(scores.argmax(dim=0)) == expected
    resized = resize_scores(scores, (375, 469))
    expected = {0: 8253, 3: 78875, 15: 260, 19: 3087, 20: 85400}
    assert histogram(resized.argmax(dim=0)) == expected


@pytest.mark.parametrize("score_bytes", [1 << 16, 1 << 28])
def test_the_evaluator_gives_the_recorded_labels(scorer, class_rows, set_scale, score_bytes):
    set_scale(math.log(100))
    image = recorded_input("imageR", (1, 3, 448, 560), 2)[0]
    picture = Picture(image, (375, 469), [Task(scorer, ClassQuery.of_rows(class_rows, 0.35))])
    batching = Batching(2, score_bytes=score_bytes)
    ((_, (labels,)),) = label_pictures([picture], Protocol(), batching, torch.device("cpu"))
    assert histogram(labels) == {0: 8253, 3: 78875, 15: 260, 19: 3087, 20: 85400}


def test_the_group_map_of_a_whole_image_agrees(scorer):
    (maps,) = scorer.group_maps(recorded_input("imageR", (1, 3, 448, 560), 2))
    expected = [89082, 122762, 4165, 1458, 7033, 1152, 2066, 23162]
    assert histogram(maps.argmax(dim=1), 8) == expected


def test_the_scale_of_the_cosines_is_at_most_100():
    assert float(similarity_scale(torch.tensor(math.log(1 / 0.07)))) == pytest.approx(1 / 0.07)
    assert float(similarity_scale(torch.tensor(20.0))) == 100


def test_upsampled_groups_still_sum_to_one(scorer):
    features = scorer.patch_features(recorded_input("imageN", (1, 3, 230, 300), 2))
    maps = upsample_groups(features.soft, features.grid_hw, (230, 300))
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(1, 230, 300))
