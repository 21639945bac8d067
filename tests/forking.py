"""Several processes of one machine that do the same test's work."""

import os
import traceback
from collections.abc import Callable

import torch

from llarva.training.launch import free_port


def fork_each(count: int, work: Callable[[int], None]) -> list[int]:
    """Exit codes of `count` forked processes, each of which does its `work`."""
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def fork_group(count: int, work: Callable[[int], None]) -> list[int]:
    """Exit codes of `count` forked processes of one gloo group, each of which does its `work`."""
    port = free_port()

    def join(rank: int) -> None:
        torch.set_num_threads(1)
        address = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=count)
        work(rank)

    return fork_each(count, join)
