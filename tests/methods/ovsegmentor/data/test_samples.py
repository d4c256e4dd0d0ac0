"""Samples and batches: reproducible, complete, and loud about images that cannot be read."""

import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory

from talk2dino.methods.ovsegmentor.config import (
    PretrainingData,
    PretrainingRecipe,
    StartConfig,
    TrainConfig,
)
from talk2dino.methods.ovsegmentor.data import samples as samples_module
from talk2dino.methods.ovsegmentor.data.samples import (
    EpochBatches,
    FailureLog,
    PretrainingSamples,
    crop_and_flip,
    deit_transform,
    seeded_globals,
)
from talk2dino.processes import Processes
from tests.methods.ovsegmentor.data.conftest import ROWS, write_rows

SMALL = crop_and_flip(16, 0.4)
FOUR = [(0, number) for number in range(4)]


@pytest.fixture
def open_samples(tokenizer):
    def open_them(metafile, images, seed=0, pairs=True, compat=False):
        data = PretrainingData(str(metafile), str(images), lemmas="lemminflect")
        stage, start = (2, StartConfig(stage1="a folder")) if pairs else (1, StartConfig())
        train = TrainConfig(seed=seed)
        recipe = PretrainingRecipe(
            "ovsegmentor_toy", stage, data, train=train, start=start, compat=compat
        )
        samples = PretrainingSamples(recipe, tokenizer)
        samples.transform = SMALL
        return samples

    return open_them


@pytest.fixture
def samples(open_samples, metafile, images):
    return open_samples(metafile, images)


def assert_equal(first, second):
    assert tuple(first.failures) == tuple(second.failures)
    for name in ("images", "paired_images"):
        assert torch.equal(getattr(first.inputs, name), getattr(second.inputs, name))
    for name in ("captions", "questions", "answers", "paired_entities"):
        assert torch.equal(getattr(first.inputs, name).ids, getattr(second.inputs, name).ids)


def test_a_sample_holds_two_images_and_four_texts(samples):
    assert len(samples) == 4
    sample = samples.sample(0, 0)
    assert sample.image.shape == sample.paired_image.shape == (3, 16, 16)
    assert (sample.row, sample.caption) == (0, "A dog, on a sofa.")
    assert sample.question == "A [MASK], on a [MASK]."
    assert "dog and sofa" in sample.answer and "{}" not in sample.answer
    assert sample.paired_prompt in ("A photo of dog", "A photo of sofa")
    assert sample.failures == ()


def test_a_sample_depends_on_seed_epoch_and_number_only(samples, open_samples, metafile, images):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = samples.sample(3, 1)
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    again = samples.sample(3, 1)
    assert torch.equal(first.image, again.image) and first.answer == again.answer
    assert torch.equal(first.paired_image, again.paired_image)
    other = open_samples(metafile, images, seed=1)
    for changed in (samples.sample(4, 1), samples.sample(3, 0), other.sample(3, 1)):
        assert not torch.equal(first.image, changed.image)
    assert len({samples.sample(epoch, 0).answer for epoch in range(20)}) > 10


def test_the_global_generators_are_left_alone(samples):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    samples.sample(0, 0)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after


def test_stage_1_has_one_image_and_no_need_of_pairs(open_samples, metafile, images):
    samples = open_samples(metafile, images, pairs=False)
    batch = samples[[(0, 0), (0, 1)]]
    assert samples.sample(0, 0).paired_image is None
    assert batch.inputs.paired_images is None and batch.inputs.paired_entities is None


def test_a_batch_is_what_the_model_takes(samples, tokenizer):
    batch = samples[FOUR]
    inputs = batch.inputs.to("cpu")
    assert inputs.images.shape == inputs.paired_images.shape == (4, 3, 16, 16)
    for tokens in (inputs.captions, inputs.questions, inputs.answers, inputs.paired_entities):
        assert tokens.ids.shape == tokens.mask.shape == (4, 77)
    mask = tokenizer.tokenizer.mask_token_id
    assert (inputs.questions.ids == mask).sum(1).tolist() == [2, 1, 1, 1]


def test_as_published_the_answer_ends_with_the_names(open_samples, metafile, images):
    samples = open_samples(metafile, images, pairs=False, compat=True)
    assert samples.sample(0, 0).question == "A dog, on a ofa."
    second = samples.sample(0, 1)
    assert second.question == "Two [MASK]" and second.answer.endswith(" dog")


def test_an_image_that_cannot_be_read_is_replaced_and_named(samples, images, monkeypatch):
    (images / "b.png").write_bytes(b"no image")
    (images / "sub" / "e.png").unlink()
    monkeypatch.setattr(samples_module, "ATTEMPTS", 40)
    made = [samples.sample(0, number) for number in range(4)]
    batch = samples[FOUR]
    assert {sample.row for sample in made} <= {0, 2}
    reasons = dict(batch.failures)
    assert reasons.keys() == {"b.png", "sub/e.png"}
    assert "not an image" in reasons["b.png"] and "not found" in reasons["sub/e.png"]
    again = samples[FOUR]
    assert_equal(batch, again)


def test_attempts_are_bounded_and_all_failures_named(samples, images):
    for name in ("a.png", "b.png", "c.png", "sub/e.png"):
        (images / name).unlink()
    with pytest.raises(RuntimeError, match=r"8 images in a row(.|\n)*  a\.png: not found"):
        samples.sample(0, 0)


def test_a_partner_that_cannot_be_read_replaces_the_sample(samples, images):
    (images / "a.png").unlink()
    made = [samples.sample(epoch, 1) for epoch in range(12)]  # row 1: partners 0 and 1
    failed = [sample for sample in made if sample.failures]
    assert failed and len(failed) < len(made)
    assert all(name == "a.png" for sample in failed for name, _ in sample.failures)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_resumes_exactly_with_any_number_of_workers(samples, workers):
    batches = EpochBatches(samples, 1, workers=workers)
    state = torch.get_rng_state()
    whole = []
    for epoch in (0, 1):
        whole += batches.loaded(epoch)
    assert torch.equal(state, torch.get_rng_state())
    resumed = list(EpochBatches(samples, 1).loaded(1, 2))
    assert len(resumed) == 2
    for first, second in zip(whole[6:], resumed, strict=True):
        assert_equal(first, second)
    captions = [batch.inputs.captions.ids[0] for batch in whole]
    assert len({tuple(ids.tolist()) for ids in captions[:4]}) == 4
    assert not torch.equal(torch.stack(captions[:4]), torch.stack(captions[4:]))


def test_processes_together_see_the_large_batches_of_one():
    one = list(EpochBatches(range(23), 6, seed=5))
    parts = [
        list(EpochBatches(range(23), 2, seed=5, processes=Processes(rank, 3))) for rank in range(3)
    ]
    assert [[*itertools.chain(*step)] for step in zip(*parts, strict=True)] == one and len(one) == 3
    assert len({key for batch in one for key in batch}) == 18


def test_many_lost_images_end_the_run(caplog, monkeypatch):
    monkeypatch.setattr(samples_module, "LOST", 0.1)
    monkeypatch.setattr(samples_module, "LOST_FREELY", 2)
    log = FailureLog()
    log.add([], 8)
    assert log.summary() == ""
    log.add([("a.png", "not found")] * 2, 8)
    assert log.summary() == "2 images of 16 samples could not be read (a.png)"
    assert caplog.text.count("a.png: not found; another sample stands in") == 1
    log.add([], 8)
    with pytest.raises(RuntimeError, match=r"3 images of 26 samples .*More than 10\.0% are too"):
        log.add([("b.png", "not found")], 2)


def test_deit_augmentation_is_the_papers():
    transform = deit_transform(224, 0.08)
    names = [type(step).__name__ for step in transform.transforms]
    assert names[:3] == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"]
    assert names[-2:] == ["Normalize", "RandomErasing"]
    crop, _, rand, *_, erase = transform.transforms
    assert (crop.scale, crop.ratio, crop.size) == ((0.08, 1.0), (3 / 4, 4 / 3), (224, 224))
    assert rand.num_layers == 2 and {op.magnitude for op in rand.ops} == {9}
    parameters = rand.ops[0].hparams
    assert parameters["translate_const"] == 100 and parameters["img_mean"] == (124, 116, 104)
    assert (erase.probability, erase.min_count, erase.rand_color) == (0.25, 1, False)


@pytest.mark.parametrize("deit", [True, False])
def test_augmentation_follows_its_seed(deit):
    transform = (deit_transform if deit else crop_and_flip)(32, 0.08)
    noise = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    image = Image.fromarray(noise)

    def made(seed):
        random.random(), np.random.random(), torch.rand(1)  # whatever was drawn before
        with seeded_globals(seed):
            return transform(image)

    results = [made(seed) for seed in range(6)]
    assert all(torch.equal(result, made(seed)) for seed, result in enumerate(results))
    assert all(not torch.equal(results[0], other) for other in results[1:])
    assert results[0].shape == (3, 32, 32) and results[0].dtype == torch.float32


def test_samples_can_be_sent_to_worker_processes(samples):
    copy = pickle.loads(pickle.dumps(samples))
    assert torch.equal(copy.sample(0, 0).image, samples.sample(0, 0).image)


def test_pinned_batches_keep_everything(samples, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor.clone())
    for pairs in (False, True):
        samples.pairs = pairs
        batch = samples[[(0, 0)]]
        pinned = pin_memory(batch)
        assert torch.equal(pinned.inputs.questions.ids, batch.inputs.questions.ids)
        assert (pinned.inputs.paired_images is None) == (not pairs)


@pytest.mark.parametrize("word", ["couch", "kid's"])
def test_raw_entity_words_name_the_pair(open_samples, tmp_path, images, word):
    path = write_rows(tmp_path / "one.csv", [(*ROWS[0][:3], [0], [word])])
    assert open_samples(path, images).sample(0, 0).paired_prompt == f"A photo of {word}"
