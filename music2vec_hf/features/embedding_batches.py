"""How audio comes to a frozen model, for embeddings and probes alike: decoded ahead, windows of one length in batches.

Nothing is padded: with a group-norm front end padding would change the features of whatever is padded.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

# Seconds of audio in a batch.
_BATCH_SECONDS = {"cpu": 60.0, "mps": 60.0, "cuda": 480.0}
_DECODING_THREADS = 4


def device_of(model: torch.nn.Module) -> torch.device:
    """The device that a model's weights are on."""
    return next(model.parameters()).device


def decoding_threads(model: torch.nn.Module) -> int:
    """Threads that decode while a GPU computes; on a CPU none, for the model needs all cores itself."""
    return 0 if device_of(model).type == "cpu" else _DECODING_THREADS


def ahead(jobs: Iterable[Callable], num_threads: int) -> Iterator[Callable]:
    """Work on jobs in threads, a few ahead of the one that is asked for.

    Args:
        jobs (iterable of functions): without arguments.
        num_threads (`int`): 0 does each job when its result is asked for.

    Yields:
        functions, one for each job and in their order, that give the job's result or raise its error.
    """
    if num_threads == 0:
        yield from jobs
        return
    pool = ThreadPoolExecutor(num_threads)
    waiting: deque = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job).result)
            if len(waiting) > num_threads:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def batches_of_one_length(lengths: Sequence[int], sampling_rate: int, device: torch.device) -> Iterator[list[int]]:
    """Places of windows that a device takes at once: of one length each, in the order in which lengths appear.

    Args:
        lengths (`Sequence[int]`): samples of each window.
        sampling_rate (`int`): in Hz.
        device (`torch.device`): it decides on the size.
    """
    by_length = defaultdict(list)
    for place, length in enumerate(lengths):
        by_length[length].append(place)
    for length, places in by_length.items():
        size = max(1, int(_BATCH_SECONDS.get(device.type, 60.0) * sampling_rate / length))
        yield from (places[start : start + size] for start in range(0, len(places), size))


__all__ = ["ahead", "batches_of_one_length", "decoding_threads", "device_of"]
