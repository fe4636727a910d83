"""The number of threads that torch computes with on a CPU, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads inside the block; the caller's number comes back after it.

    Args:
        number (`int`): threads of an operation on a CPU, 1 or more.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
