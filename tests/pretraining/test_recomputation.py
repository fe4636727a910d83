"""`gradient_checkpointing`: activations that are computed twice give the very loss and gradients of those kept."""

import pytest
import torch
from accelerate import Accelerator
from toy_run import toy

from music2vec_hf.common.computing import autocast
from music2vec_hf.pretraining.starting import prepare_training


def one_pass(recipe):
    """Loss, gradients, bytes kept for the backward pass beside the weights, and the next random number."""
    state, kept = prepare_training(recipe, Accelerator(cpu=True), None), {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in state.student.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    generator = torch.Generator().manual_seed(1)
    input_values = torch.randn(4, recipe.num_samples, generator=generator)
    masks = torch.rand(4, recipe.masks_per_crop, recipe.num_frames, generator=generator) < 0.4
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(recipe.precision, "cpu"):
        loss = state.student(input_values, None, masks, state.teacher).loss
    size = sum(kept.values())
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in state.student.named_parameters()}
    return loss, gradients, size, torch.rand(1)


@pytest.mark.parametrize(
    "precision, masks_per_crop, layerdrop", [("fp32", 1, 0.0), ("fp32", 2, 0.5), ("bf16", 1, 0.5), ("bf16", 2, 0.0)]
)
def test_recomputing_changes_memory_and_nothing_else(precision, masks_per_crop, layerdrop):
    """To the bit, with dropout of all kinds at work and layers left out."""
    recipe = dict(precision=precision, masks_per_crop=masks_per_crop, layerdrop=layerdrop)
    recipe |= dict(hidden_dropout=0.3, attention_dropout=0.3, activation_dropout=0.1, num_hidden_layers=6)
    loss, gradients, size, after = one_pass(toy(**recipe))
    again = one_pass(toy(**recipe, gradient_checkpointing=True))
    assert torch.equal(again[0], loss) and torch.equal(again[3], after)
    assert again[2] < 0.5 * size
    for name, gradient in gradients.items():
        assert (again[1][name] is None and gradient is None) or torch.equal(again[1][name], gradient), name
    assert layerdrop == 0 or any(gradient is None for gradient in gradients.values())  # a layer was left out
