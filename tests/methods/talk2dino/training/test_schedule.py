import pytest

from talk2dino.methods.talk2dino.training.loop import Schedule


def test_warmup_rises_linearly_from_a_share_of_the_learning_rate():
    schedule = Schedule("linear", base_lr=1.0, warmup=4, total_steps=8)
    assert [schedule.learning_rate(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_without_warmup_the_first_step_has_the_full_learning_rate():
    assert Schedule("linear", base_lr=0.5).learning_rate(0) == 0.5
    assert Schedule("cosine", base_lr=0.5, total_steps=3).learning_rate(0) == 0.5


def test_the_cosine_is_at_half_in_the_middle_of_what_the_warmup_leaves():
    schedule = Schedule("cosine", base_lr=1.0, warmup=2, total_steps=12)
    assert schedule.learning_rate(7) == pytest.approx(0.5)
    assert 0 < schedule.learning_rate(11) < 0.03


def test_an_unknown_scheduler_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown scheduler 'cosin'.*linear, cosine.*'cosine'"):
        Schedule("cosin")


def test_a_warmup_longer_than_the_training_is_refused_for_the_cosine():
    with pytest.raises(ValueError, match="--warmup 10 leaves nothing"):
        Schedule("cosine", warmup=10, total_steps=10)


def test_a_negative_warmup_is_refused():
    with pytest.raises(ValueError, match="warmup must be at least 0"):
        Schedule(warmup=-1)
