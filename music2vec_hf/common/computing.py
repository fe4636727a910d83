"""How torch computes for a while: the precision of forward passes, by name, and the threads on a CPU."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

PRECISIONS = ("fp32", "bf16", "fp16", "auto")


def choose_precision(precision: str, device_type: str | None = None) -> str:
    """`auto` -> `bf16` where the device multiplies bf16 itself, else `fp32`; anything else is returned unchanged.

    `device_type` is `cpu`, `cuda` or another of torch's; by default `cuda` where there is a GPU.
    """
    import torch  # here, so that the command line can name the precisions without it

    if precision != "auto":
        return precision
    if device_type is None:
        device_type = "cuda" if torch.cuda.is_available() else "cpu"
    if device_type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)() if device_type == "cpu" else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def autocast(precision: str, device_type: str):
    """A context in which matrix products run in `precision`; weights and results of other operations stay float32.

    Raises ValueError for another name than those in `PRECISIONS`.
    """
    import torch

    if precision not in PRECISIONS:
        raise ValueError(f"`precision` is {precision!r}. Use one of {', '.join(PRECISIONS)}.")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(choose_precision(precision, device_type))
    return contextlib.nullcontext() if dtype is None else torch.autocast(device_type, dtype)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads inside the block; the caller's number comes back after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
