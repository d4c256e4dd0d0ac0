"""Processes of one job, as seen by one of them."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from talk2dino.cli.command import core_share
from talk2dino.cli.train import Train
from talk2dino.processes import is_first_process, joined_processes


@pytest.fixture
def second_of_two(monkeypatch):
    """The environment of a process with another one beside it, which is never there."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: None)
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


@pytest.mark.parametrize(
    ("device", "gpus", "backend"),
    [
        ("cuda", 2, "cpu:gloo,cuda:nccl"),
        ("cuda", 1, "gloo"),
        ("cuda:0", 2, "gloo"),
        ("cpu", 2, "gloo"),
    ],
)
def test_tensors_go_by_nccl_where_each_process_has_its_own_gpu(
    second_of_two, monkeypatch, device, gpus, backend
):
    asked = []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(
        dist, "init_process_group", lambda *what, **more: asked.append((what, more))
    )
    with joined_processes(device):
        pass
    # A process that died is not seen by the others: they wait half an hour for it.
    assert asked == [((backend,), {"timeout": timedelta(minutes=30)})]


def test_variables_that_are_empty_count_as_unset(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    with joined_processes() as processes:
        assert (processes.rank, processes.count) == (0, 1)
    assert is_first_process()
    assert core_share() >= 1


@pytest.mark.parametrize("value", ["two", "-1", "1.5", "9" * 5000])
@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"])
def test_a_variable_that_is_no_number_is_named(second_of_two, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    message = f"the environment variable {name} is '{value[:9]}.*not a whole number"
    with pytest.raises(ValueError, match=message), joined_processes():
        pass


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", "", "WORLD_SIZE is 2, but RANK is not set"),
        ("MASTER_ADDR", "", "WORLD_SIZE is 2, but MASTER_ADDR is not set"),
        ("RANK", "2", "WORLD_SIZE is 2, but RANK is 2"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is '0', not a whole number from 1 on"),
    ],
)
def test_variables_that_contradict_each_other_are_named(
    second_of_two, monkeypatch, name, value, message
):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message), joined_processes():
        pass


def test_a_default_that_depends_on_the_environment_ends_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "two")
    assert Train.main(["--model", "x.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: the environment variable LOCAL_WORLD_SIZE is")
