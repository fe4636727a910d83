"""Floating-point precision of forward passes, chosen by name."""

import contextlib

import torch

PRECISIONS = ("fp32", "bf16", "fp16", "auto")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(precision: str) -> str:
    """`auto` -> `bf16` where the hardware multiplies bf16 itself, else `fp32`; anything else is returned unchanged."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def autocast(precision: str, device_type: str):
    """A context in which matrix products run in `precision`; weights and results of other operations stay float32.

    Raises:
        ValueError: for another name than those in `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"`precision` is {precision!r}. Use one of {', '.join(PRECISIONS)}.")
    dtype = _DTYPES.get(choose_precision(precision))
    return contextlib.nullcontext() if dtype is None else torch.autocast(device_type, dtype)


__all__ = ["PRECISIONS", "autocast", "choose_precision"]
