"""Commands as `torch.distributed.run` starts them, but from the fork server."""

import os
import socket
import sys

import torch


def rank_of(main, arguments, environment, log, disturb):
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    torch.set_num_threads(1)
    if disturb:
        disturb[0](disturb[1])
    sys.exit(main(arguments))


def run_ranks(fork_server, main, arguments, count, logs, disturbed=None):
    """Run a command as several processes, connected by gloo.

    Args:
        fork_server: the fixture.
        main: a command's `main`.
        arguments: its flags.
        count: number of processes.
        logs: an empty folder for what they say.
        disturbed: function and argument that the second one calls first.

    Returns:
        Exit codes, and what was printed, by rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(count):
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
        disturb = disturbed if rank == 1 else None
        target = (main, arguments, environment, logs / f"rank{rank}.txt", disturb)
        started.append(fork_server.Process(target=rank_of, args=target))
        started[-1].start()
    for process in started:
        process.join()
    said = [(logs / f"rank{rank}.txt").read_text() for rank in range(count)]
    return [process.exitcode for process in started], said
