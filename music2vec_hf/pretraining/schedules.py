"""The reference's optimiser and learning-rate schedule (stage 9). Schedules are plain functions of the step."""

import math

import torch


def tri_stage_learning_rate(
    step: int,
    max_steps: int,
    peak: float,
    phase_ratio: tuple[float, float, float] = (0.03, 0.9, 0.07),
    init_lr_scale: float = 0.01,
    final_lr_scale: float = 0.01,
) -> float:
    """Learning rate of the update that takes the weights from `step` to `step + 1` (the first is 0).

    Linear warm-up from `init_lr_scale * peak`, hold at `peak`, exponential decay to `final_lr_scale * peak`.

    Args:
        step (`int`): optimiser steps done so far.
        max_steps (`int`): length of the run; `phase_ratio` gives the shares of its three phases.
        peak (`float`): highest rate.

    Raises:
        ValueError: if the shares do not add up to 1 or `max_steps` is not positive.

    Source: fairseq `optim/lr_scheduler/tri_stage_lr_scheduler.py` at 3d262bb2.
    """
    if max_steps < 1 or abs(sum(phase_ratio) - 1.0) > 1e-6:
        raise ValueError(
            f"`max_steps` is {max_steps} and `phase_ratio` {tuple(phase_ratio)}. Use at least one step, and three "
            "shares that add up to 1."
        )
    warmup, hold, decay = (int(share * max_steps) for share in phase_ratio)
    if step < warmup:
        return peak * (init_lr_scale + (1.0 - init_lr_scale) * step / warmup)
    if step < warmup + hold:
        return peak
    if step <= warmup + hold + decay and decay > 0:
        return peak * math.exp(math.log(final_lr_scale) * (step - warmup - hold) / decay)
    return peak * final_lr_scale


class ReferenceAdam(torch.optim.AdamW):
    """Adam with decoupled weight decay on all parameters and fairseq's epsilon, on torch's own kernels.

    fairseq adds epsilon to `sqrt(v)`, torch to the bias-corrected `sqrt(v / (1 - beta2^t))`. The two agree when torch
    is given `eps / sqrt(1 - beta2^t)` at step `t`.

    Source: fairseq `optim/adam.py` at 3d262bb2.
    """

    def __init__(self, params, lr: float, betas=(0.9, 0.98), eps: float = 1e-6, weight_decay: float = 0.01, **kwargs):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **kwargs)
        for group in self.param_groups:
            group["reference_eps"], group["num_steps"] = eps, 0

    def step(self, closure=None):
        """One update of all parameters."""
        for group in self.param_groups:
            group["num_steps"] += 1
            group["eps"] = group["reference_eps"] / math.sqrt(1.0 - group["betas"][1] ** group["num_steps"])
        return super().step(closure)


__all__ = ["ReferenceAdam", "tri_stage_learning_rate"]
