"""FSDP2: weights, gradients and optimiser state of the student in shards over the devices, by torch's `fully_shard`.

A run in shards trains as one without them, and their checkpoints are the same: each goes on from the other's.
"""

import os

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from music2vec_hf.pretraining.arguments import Recipe


def sharding_is_asked(recipe: Recipe) -> bool:
    """Whether the launcher's configuration asks for FSDP (`distributed_type: FSDP`).

    Raises:
        ValueError: if it asks for version 1, or the recipe for something that a student in shards cannot do.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("The launcher asks for FSDP version 1. Set `fsdp_version: 2` in its configuration.")
    if recipe.probe_corpus:
        raise ValueError("`probe_corpus` needs the whole student on one process: leave it out, or leave FSDP out.")
    if recipe.gradient_compression != "none":
        raise ValueError("`gradient_compression` is for whole copies, not for shards: use none, or leave FSDP out.")
    return True


def shard_student(state, device: torch.device) -> None:
    """Replace the student's weights and the optimiser's state by this process' shards.

    All weights are one unit: they are gathered for the forward pass and given back after the backward pass. A unit for
    each layer would hang where LayerDrop skips different layers on different processes.

    Args:
        state ([`TrainingState`]): whole, the same on all processes.
        device (`torch.device`): of this process.
    """
    before = list(state.student.parameters())
    fully_shard(
        state.student,
        mesh=init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        reshard_after_forward=False,
    )
    state.student.base_model.encoder._is_fsdp_managed_module = False  # else transformers leaves out LayerDrop
    optimizer = state.optimizer
    shards = dict(zip(before, state.student.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["params"] = [shards[parameter] for parameter in group["params"]]
    for parameter in list(optimizer.state):
        shard = shards[parameter]
        optimizer.state[shard] = {
            name: distribute_tensor(value, shard.device_mesh, shard.placements) if value.dim() else value
            for name, value in optimizer.state.pop(parameter).items()
        }


def touch_all(student) -> torch.Tensor | float:
    """Zero, with a gradient of zero for every weight of a student in shards, so that all processes reduce the same
    gradients where LayerDrop skipped different layers."""
    if not isinstance(student, FSDPModule):
        return 0.0
    return sum(parameter.sum() for parameter in student.parameters()) * 0.0


def whole(state_dict):
    """A state dict, nested or not, with whole tensors in place of shards. All processes have to take part."""
    if isinstance(state_dict, dict):
        return {key: whole(value) for key, value in state_dict.items()}
    return state_dict.full_tensor() if isinstance(state_dict, DTensor) else state_dict


__all__ = ["shard_student", "sharding_is_asked", "touch_all", "whole"]
