"""Several processes that work together, started from a test."""

import os
import socket
import traceback

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def together(num, work, **environment):
    """Call `work(rank)` in `num` forks of this process, as torchrun would start them.

    Args:
        num: How many.
        work: What each does; it may raise.
        environment: More environment variables for them.

    Returns:
        What went wrong in each, a traceback or "" where nothing did.
    """
    port = free_port()
    children = []
    for rank in range(num):
        read, write = os.pipe()
        child = os.fork()
        if child:
            os.close(write)
            children.append((child, read))
            continue
        os.close(read)
        text = _work(rank, num, port, work, environment)
        with os.fdopen(write, "w") as stream:
            stream.write(text)
        os._exit(bool(text))
    problems = []
    for child, read in children:
        with os.fdopen(read) as stream:
            text = stream.read()
        _, status = os.waitpid(child, 0)
        problems.append(text or (f"ended with status {status}" if status else ""))
    return problems


def _work(rank, num, port, work, environment):
    """In a child: forget what the parent did with accelerate, and do the work."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num),
        LOCAL_WORLD_SIZE=str(num),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        **environment,
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()
    torch.set_num_threads(1)
    try:
        work(rank)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except BaseException:
        return traceback.format_exc()
    return ""
