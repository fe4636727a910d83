"""How torch computes for a while: the precision of products, by name, and the threads on a CPU; and on what."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "auto")
_GPU = Path("/dev/nvidia0")


def check_gpu() -> None:
    """Raise ValueError where the machine has an NVIDIA GPU that torch cannot use: nobody wants to find out after days
    that the CPU did the work. `CUDA_VISIBLE_DEVICES` set to nothing says that the CPU is meant."""
    import torch

    if _GPU.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "" and not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch {torch.__version__} is built for CUDA {built}" if built else "this torch is built without CUDA"
        raise ValueError(
            f"There is a GPU ({_GPU}), but torch cannot use it: {why}, so see with `nvidia-smi` whether the driver is "
            "old enough to need another build of torch. To compute on the CPU, set CUDA_VISIBLE_DEVICES= (nothing)."
        )


def choose_precision(precision: str, device_type: str) -> str:
    """`auto` -> `bf16` where the device in use (`cpu`, `cuda`, ...) multiplies it faster than float32, else `fp32`;
    others stay. Intel's CPUs do with AMX; with AVX-512's instructions alone products of bf16 take twice as long."""
    import torch  # here, so that the command line can name the precisions without it

    if precision != "auto":
        return precision
    if device_type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has = getattr(torch.cpu, "get_capabilities", dict)() if device_type == "cpu" else {}
    faster = has.get("amx_bf16") or (has.get("avx512_bf16") and not has.get("cpu_name", "").startswith("Intel"))
    return "bf16" if faster else "fp32"


@contextmanager
def autocast(precision: str, device_type: str) -> Iterator[None]:
    """A context in which matrix products run in `precision`; weights and results of other operations stay float32.

    `tf32` keeps 10 of float32's 23 bits of the factors of products on CUDA, and is float32 elsewhere.

    Raises ValueError for another name than those in `PRECISIONS`.
    """
    import torch

    if precision not in PRECISIONS:
        raise ValueError(f"`precision` is {precision!r}. Use one of {', '.join(PRECISIONS)}.")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(choose_precision(precision, device_type))
    half = contextlib.nullcontext() if dtype is None else torch.autocast(device_type, dtype)
    with float32_products(precision, device_type), half:
        yield


@contextmanager
def float32_products(precision: str, device_type: str) -> Iterator[None]:
    """On CUDA: products and convolutions of float32 factors are alike, exact or, for `tf32`, rounded; left to itself
    torch rounds those of convolutions alone. For a backward pass, which runs outside of [`autocast`]. Half-precision
    products add up in float32."""
    import torch

    if device_type != "cuda":
        yield
        return
    products = torch.backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    before = products.allow_tf32, torch.backends.cudnn.allow_tf32, [getattr(products, name) for name in names]
    products.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    for name in names:
        setattr(products, name, False)
    try:
        yield
    finally:
        products.allow_tf32, torch.backends.cudnn.allow_tf32 = before[:2]
        for name, value in zip(names, before[2], strict=True):
            setattr(products, name, value)


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


class _Calls:
    """Calls as a data set of their results, each with the error that ended it, or None."""

    def __init__(self, calls: Sequence[Callable[[], object]]):
        self.calls = calls

    def __len__(self) -> int:
        return len(self.calls)

    def __getitem__(self, number: int) -> tuple[object, Exception | None]:
        try:
            return self.calls[number](), None
        except (ValueError, OSError) as error:
            return None, error


def results_of(calls: Sequence[Callable[[], object]], num_processes: int) -> Iterator:
    """Results of calls, in their order. With more than one process, and on Linux, they are made side by side in forks
    of this one, each with one thread of torch; a ValueError or OSError of one of them is raised here."""
    import torch

    forks = {}
    if num_processes > 1 and sys.platform == "linux":
        forks = {"num_workers": num_processes, "multiprocessing_context": "fork"}
    # A loader's workers end with this process, whatever ends it.
    made = torch.utils.data.DataLoader(
        _Calls(calls), batch_size=None, collate_fn=lambda result: result, generator=torch.Generator(), **forks
    )
    for result, error in made:
        if error is not None:
            raise error
        yield result
