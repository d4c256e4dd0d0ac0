"""Processes of one job, as seen by one of them."""

import pytest
import torch.distributed as dist

from talk2dino.processes import joined_processes


@pytest.fixture
def second_of_two(monkeypatch):
    """The environment of a process with another one beside it, which is never there."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(dist, "init_process_group", lambda backend: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "new_group", lambda **settings: None)


def test_a_lost_connection_is_blamed_on_the_other_process_in_its_own_words(second_of_two):
    with (
        pytest.raises(RuntimeError, match="another process of this job ended.* Here: .*gloo/tcp"),
        joined_processes(),
    ):
        raise RuntimeError("[/x/gloo/tcp/pair.cc:553] Connection closed by peer\nmore")


def test_an_error_of_its_own_stays_as_it_is(second_of_two):
    with pytest.raises(RuntimeError, match="^the loss is nan$"), joined_processes():
        raise RuntimeError("the loss is nan")
