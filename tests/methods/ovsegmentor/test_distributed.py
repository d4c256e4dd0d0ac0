"""Two processes train like one with the batches of both: loss, gradients, running statistics."""

import torch

from talk2dino.methods.ovsegmentor.text import Tokenizer, Tokens, toy_tokenizer
from tests.methods.ovsegmentor.conftest import make_batch, seeded_toy
from tests.ranks import run_ranks


def prepared_model():
    """Projectors in training mode; no dropout, noise or per-process statistics elsewhere."""
    model = seeded_toy("stage2")
    model.img_projector.train()
    model.text_projector.train()
    return model


def rows(batch, part):
    """Some of a batch's samples."""
    fields = batch._asdict()
    for name, value in fields.items():
        if isinstance(value, Tokens):
            fields[name] = Tokens(value.ids[part], value.mask[part])
        else:
            fields[name] = value[part]
    return type(batch)(**fields)


def whole_batch():
    return make_batch(Tokenizer(toy_tokenizer(), 96), 6)


def results(model, losses):
    """What is compared: losses, gradients, running statistics."""
    values = {f"loss {name}": loss for name, loss in losses._asdict().items()}
    values |= {f"gradient {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return values | {f"buffer {n}": b for n, b in model.named_buffers() if "running" in n}


def train_one_part(folder):
    """What each process does; rank 0 writes the losses' mean and the averaged gradients."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = prepared_model()
    parallel = DistributedDataParallel(model, find_unused_parameters=True, broadcast_buffers=False)
    losses = parallel(rows(whole_batch(), slice(3 * rank, 3 * rank + 3)))
    losses.total.backward()
    values = results(model, losses)
    for name, value in values.items():
        if name.startswith("loss"):
            value = value.detach().clone()
            dist.all_reduce(value)
            values[name] = value / 2
    if rank == 0:
        torch.save({name: v.detach() for name, v in values.items()}, folder / "two.pth")
    dist.destroy_process_group()


def test_two_processes_equal_one_with_both_batches(fork_server, tmp_path):
    codes, said = run_ranks(fork_server, train_one_part, tmp_path, 2, tmp_path)
    assert codes == [0, 0], said
    together = torch.load(tmp_path / "two.pth", weights_only=True)

    model = prepared_model()
    losses = model(whole_batch())
    losses.total.backward()
    alone = results(model, losses)
    assert together.keys() == alone.keys()
    assert sum(name.startswith("gradient") for name in alone) > 100
    largest = max(float(v.abs().max()) for name, v in alone.items() if name.startswith("grad"))
    for name, value in alone.items():
        atol = 1e-5 * largest if name.startswith("gradient") else 1e-6
        torch.testing.assert_close(
            together[name], value.detach(), rtol=1e-3, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_one_process_needs_no_group():
    from talk2dino.methods.ovsegmentor.projection import gather_rows, num_processes, process_rank

    rows = torch.randn(3, 2)
    assert (num_processes(), process_rank()) == (1, 0)
    assert gather_rows(rows) is rows
