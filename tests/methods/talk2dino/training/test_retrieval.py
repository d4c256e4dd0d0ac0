import pytest
import torch

from talk2dino.methods.talk2dino.training import retrieval as module
from talk2dino.methods.talk2dino.training.retrieval import best_rows, retrieval, summarise

# Three images on the axes; the captions' angles give the ranks by hand.
IMAGES = torch.eye(3)


def test_ranks_computed_by_hand_with_several_captions_per_image():
    captions = torch.tensor(
        [
            [3.0, 2.0, 1.0],  # of image 0: rank 1
            [2.0, 3.0, 1.0],  # of image 0: rank 2
            [3.0, 2.0, 1.0],  # of image 2: rank 3
        ]
    )
    result = retrieval(captions, IMAGES, torch.tensor([0, 0, 2]))
    assert result["text_to_image"].queries == 3
    assert result["text_to_image"].r1 == pytest.approx(100 / 3)
    assert result["text_to_image"].r5 == 100
    assert result["text_to_image"].median_rank == 2
    assert result["text_to_image"].mean_rank == 2
    # Image 1 has no caption and asks nothing. Image 0: its best caption ties with caption 2 (rank
    # 2). Image 2: all three captions have the same cosine with it (rank 3).
    assert result["image_to_text"].queries == 2
    assert result["image_to_text"].r1 == 0
    assert result["image_to_text"].median_rank == 2.5
    assert result["image_to_text"].mean_rank == 2.5


def test_the_length_of_a_vector_does_not_count():
    captions = torch.tensor([[1.0, 0.1, 0.0], [0.0, 1.0, 0.1], [0.1, 0.0, 1.0]])
    scale = torch.tensor([[1.0], [1000.0], [0.001]])
    result = retrieval(captions * scale, IMAGES / scale, torch.arange(3))
    assert result["text_to_image"].r1 == 100
    assert result["image_to_text"].r1 == 100


def test_a_second_caption_of_the_same_image_does_not_push_the_first_down():
    captions = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1.0, 0], [0, 0, 1.0]])
    result = retrieval(captions, IMAGES, torch.tensor([0, 0, 1, 2]))
    assert result["image_to_text"].mean_rank == 1


def test_a_projection_that_maps_everything_to_one_point_finds_nothing():
    result = retrieval(torch.ones(20, 4), torch.ones(20, 4), torch.arange(20))
    assert result["text_to_image"].r10 == 0
    assert result["image_to_text"].r10 == 0
    assert result["text_to_image"].mean_rank == 20


@pytest.mark.parametrize("size", [1, 50])
def test_chunks_give_the_same_ranks_as_the_whole(size, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    text, visual = (torch.randn(n, 8, generator=generator) for n in (37, 11))
    rows = torch.arange(37) % 11
    whole = retrieval(text, visual, rows)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", size)
    assert retrieval(text, visual, rows) == whole


def test_the_ranks_agree_with_a_sorted_score_matrix():
    generator = torch.Generator().manual_seed(1)
    text, visual = (torch.randn(n, 5, generator=generator) for n in (23, 9))
    rows = torch.randint(0, 9, (23,), generator=generator)
    order = (
        torch.nn.functional.normalize(text, dim=1) @ torch.nn.functional.normalize(visual, dim=1).T
    ).argsort(dim=1, descending=True)
    ranks = (order == rows[:, None]).nonzero()[:, 1] + 1
    assert retrieval(text, visual, rows)["text_to_image"] == summarise(ranks)


def test_the_median_of_an_even_number_of_ranks_lies_between_the_middle_two():
    assert summarise(torch.tensor([1, 2, 7, 100])).median_rank == 4.5


@pytest.mark.parametrize("at_once", [1 << 24, 1])
@pytest.mark.parametrize("shape", [(20, 6), (20, 3, 6)])
def test_the_best_rows_of_a_store_are_those_of_all_cosines(shape, at_once, monkeypatch):
    monkeypatch.setattr("talk2dino.methods.talk2dino.training.retrieval.SCORES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(*shape, generator=generator)
    queries = torch.randn(2, 6, generator=generator)
    unit = torch.nn.functional.normalize(stored, dim=-1).view(20, -1, 6)
    every = unit @ torch.nn.functional.normalize(queries, dim=-1).T
    expected = every.amax(dim=(1, 2)).sort(descending=True)
    cosines, rows = best_rows(queries, stored, 7)
    assert rows.tolist() == expected.indices[:7].tolist()
    torch.testing.assert_close(cosines, expected.values[:7])
    assert len(best_rows(queries, stored, 50, lambda part: part)[0]) == 20
