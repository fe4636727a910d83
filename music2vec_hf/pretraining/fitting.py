"""How much audio fits one device: `max_seconds_per_device: auto`."""

import math

import torch
from accelerate.utils import find_executable_batch_size

from music2vec_hf.common.precision import autocast

_WITHOUT_TRYING = 237.5  # the reference's forward pass of 3.8 M samples


def fitting_seconds(recipe, accelerator, student, teacher) -> float:
    """Seconds of audio that one forward and backward pass can hold on every device.

    On a GPU passes of decreasing size are tried, from a device's whole share of the update down, with the optimiser's
    memory set aside. Weights, gradients and random state are left as they were. On a CPU, which runs into swap instead
    of an error, it is the reference's 237.5 s.

    Args:
        recipe ([`Recipe`]).
        accelerator (`accelerate.Accelerator`).
        student, teacher: on the device, not wrapped.

    Raises:
        RuntimeError: if not even one crop fits.
    """
    device = accelerator.device
    if device.type == "cpu":
        return _WITHOUT_TRYING
    rows = largest_pass(
        recipe, device, student, teacher, math.ceil(recipe.rows_per_update / accelerator.num_processes)
    )
    fewest = accelerator.gather(torch.tensor([rows], device=device)).min()
    return float(fewest) * recipe.crop_seconds


def largest_pass(recipe, device: torch.device, student, teacher, rows: int) -> int:
    """Most crops, at most `rows`, whose forward and backward pass the device can hold beside the optimiser's state.

    Raises:
        RuntimeError: if not even one crop fits.
    """
    reserved = [torch.empty_like(p) for p in student.parameters() for _ in range(3)]  # Adam's two, one bucket copy

    @find_executable_batch_size(starting_batch_size=rows)
    def passes(rows):
        mask = torch.zeros(rows, recipe.masks_per_crop, recipe.num_frames, dtype=torch.bool, device=device)
        mask[..., : recipe.num_frames // 2] = True
        with autocast(recipe.precision, device.type):
            output = student(torch.randn(rows, recipe.num_samples, device=device), None, mask, teacher)
        output.loss.backward()
        return rows

    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return passes()
    finally:
        student.zero_grad()
        del reserved


__all__ = ["fitting_seconds", "largest_pass"]
