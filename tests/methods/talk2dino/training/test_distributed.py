"""Two processes that share every batch end with the weights of one process."""

import os
import socket
import traceback

import pytest
import torch

from talk2dino.methods.talk2dino.alignment import strategies
from talk2dino.methods.talk2dino.projection import ProjectionConfig, build_projection
from talk2dino.methods.talk2dino.recipe import TrainConfig
from talk2dino.methods.talk2dino.training.dataset import FeatureChoice, StoredPairs
from talk2dino.methods.talk2dino.training.loop import LoopSettings, TrainingRun
from talk2dino.processes import joined_processes
from talk2dino.training.run import Hooks

SIZES = {"dino_embed_dim": 6, "clip_embed_dim": 64, "num_attn_head": 3, "hidden_layer": True}
# 24 captions: batches of 7, 7, 7 and 3; of 23 and a last one of 1, fewer than there are processes.
CASES = [
    *(({"alignment_strategy": name}, None, "infonce", 7) for name in strategies()),
    ({}, None, "infonce", 23),
    ({}, None, "triplet", 7),
    ({"model_class": "DoubleMLP"}, None, "infonce", 7),
    ({"model_class": "CLIPLastLayer"}, None, "infonce", 23),
    ({"weight_attn_heads": "conditioned"}, None, "infonce", 7),
    ({"alignment_strategy": "nucleus-sampling"}, "clip_txt_out_tokens", "infonce", 7),
]


def trained(features, case, processes=None):
    """Weights, losses and chosen heads after two epochs."""
    model, text, loss, batch = case
    config = ProjectionConfig(**{**SIZES, **model})
    choice = FeatureChoice(config=config, text=text)
    torch.manual_seed(0)
    projection = build_projection(config)
    train = TrainConfig(lr=0.01, ltype=loss, num_epochs=2, batch_size=batch, save_best_model=False)
    pairs = StoredPairs(features, choice, "f.pth")
    validation = StoredPairs(features, choice.for_validation(), "f.pth")
    run = TrainingRun(projection, pairs, validation, LoopSettings(train), processes)
    with_heads = config.alignment_strategy == "max_score" and choice.visual == (
        "disentangled_self_attn"
    )
    run.records_heads = with_heads
    weights = run.run(Hooks())
    losses = [(record["train_loss"], record["val_loss"]) for record in run.state.records]
    return weights, losses, run.heads


def one_of_two(rank, port, features, path):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with joined_processes() as processes:
            found = [trained(features, case, processes) for case in CASES]
            facts = (processes.broadcast(f"from {rank}"), processes.gather(rank))
            torch.save((found, facts), path / f"{rank}.pt")
    except BaseException:
        (path / f"{rank}.txt").write_text(traceback.format_exc())
        raise


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, fork_server):
    from tests.methods.talk2dino.training.conftest import make_tiny_features

    features, path = make_tiny_features(), tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        fork_server.Process(target=one_of_two, args=(rank, port, features, path)) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    said = "\n".join(file.read_text() for file in path.glob("*.txt"))
    assert [worker.exitcode for worker in workers] == [0, 0], said
    return features, [torch.load(path / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_processes_train_to_the_weights_of_one(two_processes, number):
    features, (first, second) = two_processes
    weights, losses, heads = trained(features, CASES[number])
    for found, _ in (first, second):
        their_weights, their_losses, their_heads = found[number]
        for name, value in weights.items():
            torch.testing.assert_close(their_weights[name], value, rtol=1e-3, atol=2e-5)
        for ours, theirs in zip(losses, their_losses, strict=True):
            assert theirs == pytest.approx(ours, rel=1e-4)
        assert heads is None or torch.equal(their_heads, heads)
    for name, value in first[0][number][0].items():  # they never drift apart
        assert torch.equal(second[0][number][0][name], value)


def test_values_travel_between_the_processes(two_processes):
    for _, facts in two_processes[1]:
        assert facts == ("from 0", [0, 1])
