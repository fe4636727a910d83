"""Dropout of the student on a CPU, for a third of the price of torch's, and its attention in half precision.

torch draws a float for every value and stores it. Here 16 random bits decide on a value, and a byte is stored. On a
GPU dropout costs next to nothing and flash attention has its own: nothing is replaced there. Draws are those of
torch's default generator, so a run is as reproducible as with torch's.

torch's attention without dropout has a slow backward pass in bf16: written out, both passes take two thirds.
"""

import math

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "sdpa_with_cheap_dropout"
"""Name of the attention in transformers' registry."""
_MOST_FRAMES = 512  # of crops without dropout: torch's own attention is as quick for longer ones, and keeps less


def draw_kept(shape: torch.Size, probability: float) -> tuple[torch.Tensor, float]:
    """Which values dropout keeps, and what those are multiplied with so that the mean stays.

    Args:
        shape (`torch.Size`): of the values.
        probability (`float`): of dropping one, in (0, 1); it is kept to 1 / 65,536.

    Returns:
        `tuple[torch.Tensor, float]`: bool of `shape`, and a factor.
    """
    count = math.prod(shape)
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    dropped = min(max(round(probability * 65_536), 1), 65_535)
    return bits[:count].view(shape) >= dropped - 32_768, 65_536 / (65_536 - dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: torch.Tensor, probability: float) -> torch.Tensor:
        kept, ctx.scale = draw_kept(values.shape, probability)
        ctx.save_for_backward(kept)
        return (values * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return (gradient * ctx.saved_tensors[0]).mul_(ctx.scale), None


class CheapDropout(nn.Dropout):
    """`torch.nn.Dropout` with draws of 16 bits."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return _Dropout.apply(values, self.p) if self.training and 0 < self.p < 1 else super().forward(values)


class _Attention(torch.autograd.Function):
    """Queries, keys and values `[B, H, T, D]` -> attended values `[B, H, T, D]`, with dropout of the weights."""

    @staticmethod
    def forward(ctx, query, key, value, probability: float, scaling: float) -> torch.Tensor:
        shape = query.shape
        query, key, value = (states.flatten(0, 1) for states in (query, key, value))  # [B * H, T, D]
        weights = _scaled_product(query, key.mT, scaling).softmax(dim=-1)
        kept, scale = draw_kept(weights.shape, probability) if probability else (None, 1.0)
        ctx.save_for_backward(query, key, value, weights, kept)
        ctx.scaling, ctx.scale, ctx.shape = scaling, scale, shape
        return _scaled_product(_masked(weights, kept), value, scale).view(shape)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        query, key, value, weights, kept = ctx.saved_tensors
        gradient = gradient.flatten(0, 1)
        by_value = _scaled_product(_masked(weights, kept).mT, gradient, ctx.scale)
        by_weights = torch.bmm(gradient, value.mT)
        by_weights = by_weights if kept is None else by_weights.mul_(kept)  # `scale` comes with the last products
        by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        by_query = _scaled_product(by_scores, key, ctx.scale * ctx.scaling)
        by_key = _scaled_product(by_scores.mT, query, ctx.scale * ctx.scaling)
        return by_query.view(ctx.shape), by_key.view(ctx.shape), by_value.view(ctx.shape), None, None


def _masked(weights: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    return weights if kept is None else weights * kept


def _scaled_product(left: torch.Tensor, right: torch.Tensor, factor: float) -> torch.Tensor:
    return torch.baddbmm(left.new_empty(1), left, right, beta=0, alpha=factor)


def cheap_attention(
    module, query, key, value, attention_mask, dropout: float = 0.0, scaling: float | None = None, **kwargs
):
    """transformers' `sdpa`, but for equal crops with dropout, and short ones trained in half precision."""
    written_out = 0 < dropout < 1
    if dropout == 0 and query.requires_grad and query.dtype in (torch.bfloat16, torch.float16):
        written_out = query.shape[-2] <= _MOST_FRAMES
    if attention_mask is not None or not written_out:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _Attention.apply(query, key, value, dropout, scaling).transpose(1, 2), None


def make_dropout_cheap(model) -> None:
    """Replace a model's dropout, that of `sdpa` attention too, in place. Weights and configuration stay as they are.

    Args:
        model (`transformers.PreTrainedModel`): on a CPU.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, CheapDropout(child.p).train(child.training))
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, cheap_attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)


__all__ = ["CheapDropout", "cheap_attention", "draw_kept", "make_dropout_cheap"]
