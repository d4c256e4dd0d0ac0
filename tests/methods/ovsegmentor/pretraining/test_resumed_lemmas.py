"""What `lemmas: auto` stands for is a setting of the run: resuming with another is refused."""

import pytest

from talk2dino.methods.ovsegmentor.data import words
from talk2dino.methods.ovsegmentor.pretraining.job import PretrainingJob, pretrain

from .conftest import interrupted


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (False, True, "data.lemmas was 'lemminflect', now 'wordnet'"),
        (True, False, "data.lemmas was 'wordnet', now 'lemminflect'"),
    ],
    ids=["appeared", "vanished"],
)
def test_resuming_is_refused_after_the_data_of_wordnet_appeared_or_vanished(
    make_recipe, tmp_path, monkeypatch, before, after, message
):
    recipe = make_recipe(data={"lemmas": "auto"})
    monkeypatch.setattr(words, "wordnet_lemma", words.dictionary_lemma)  # its data is not there
    monkeypatch.setattr(words, "_has_wordnet", lambda: before)
    interrupted(recipe, tmp_path / "out", 0, epoch=1)
    monkeypatch.setattr(words, "_has_wordnet", lambda: after)
    with pytest.raises(ValueError, match=message):
        pretrain(PretrainingJob(recipe, tmp_path / "out", "cpu", resume=True))
