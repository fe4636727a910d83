"""The teacher: an exponential moving average of the student's encoder, and the targets that it sets (stages 6, 10)."""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from transformers.masking_utils import create_bidirectional_mask


class EMATeacher:
    """Float32 moving average of a model's transformer encoder, in eval mode and without gradients.

    It holds the positional convolution, the encoder's norm and the layers. It has no front end of its own: it reads
    the student's current, unmasked, projected features. It is training state, made after the weights are loaded, and
    never part of what `save_pretrained` writes.

    Args:
        model ([`Music2VecForPreTraining`] or [`Music2VecModel`]): the student, unwrapped; the teacher starts as its
            copy on the same device.

    Source: fairseq `modules/ema_module.py` and `examples/data2vec/models/data2vec_audio.py` at 3d262bb2.
    """

    checkpoint_name = "teacher.safetensors"

    def __init__(self, model):
        self.config = model.config
        self.encoder = copy.deepcopy(_encoder_of(model)).float().eval().requires_grad_(False)
        self._half = None
        self._position, self._layer = _position, _layer

    def to(self, device) -> "EMATeacher":
        """Move the teacher to `device`; returns itself."""
        self.encoder.to(device)
        self._half = None
        return self

    def compile(self) -> "EMATeacher":
        """Let torch.compile speed up its layers, targets included; returns itself."""
        self._layer = torch.compile(_layer, dynamic=False)
        self._position = torch.compile(_position, dynamic=False)
        return self

    def decay(self, step: int) -> float:
        """Decay of the averaging that follows optimiser step `step` (1, 2, ...): linear from `ema_decay` to
        `ema_end_decay` over `ema_anneal_end_step` steps, constant after."""
        start, end, anneal_end = self.config.ema_decay, self.config.ema_end_decay, self.config.ema_anneal_end_step
        return end if step >= anneal_end else end - (end - start) * (1.0 - step / anneal_end)

    @torch.no_grad()
    def update(self, model, step: int) -> float:
        """Follow the student, once after each optimiser step: `teacher <- d * teacher + (1 - d) * student` in float32.

        With `ema_layers_only` the positional convolution is copied instead of averaged; buffers are always copied.

        Args:
            model: the student, unwrapped.
            step (`int`): number of optimiser steps done so far, counted from 1.

        Returns:
            `float`: the decay that was used.

        Raises:
            ValueError: if `step` is smaller than 1.
        """
        if step < 1:
            raise ValueError(f"`step` is {step}. Steps are counted from 1: update after the optimiser's first step.")
        decay = self.decay(step)
        student = _encoder_of(model)
        averaged, towards = [], []
        for (name, ours), theirs in zip(self.encoder.named_parameters(), student.parameters(), strict=True):
            if self.config.ema_layers_only and name.startswith("pos_conv_embed."):
                ours.copy_(theirs)
            else:
                averaged.append(ours)
                towards.append(theirs.detach().to(ours.device, torch.float32))
        for ours, theirs in zip(self.encoder.buffers(), student.buffers(), strict=True):
            ours.copy_(theirs)
        torch._foreach_mul_(averaged, decay)
        torch._foreach_add_(averaged, towards, alpha=1.0 - decay)
        if self._half is not None:
            self._half.follow()
        return decay

    @torch.no_grad()
    def targets(self, features: torch.Tensor, frame_mask: torch.Tensor | None = None) -> torch.Tensor:
        """What the student has to predict at every frame.

        The feed-forward results (before the residual) of the last `average_top_k_layers` layers, each normalised per
        clip and channel over time, averaged.

        Args:
            features (`torch.Tensor` of shape `(B, T, C)`): the student's projected features, before dropout and mask.
            frame_mask (`torch.BoolTensor` of shape `(B, T)`, *optional*): True at frames that are not padding.

        Returns:
            `torch.Tensor` of shape `(B, T, C)`, float32, without gradient.
        """
        hidden_states, device = features.detach(), features.device.type
        if torch.is_autocast_enabled(device):
            encoder = self._half_encoder(torch.get_autocast_dtype(device))
        else:
            encoder = self.encoder
            # Those of a student in half or double precision.
            hidden_states = hidden_states.to(encoder.layer_norm.weight.dtype)
        if frame_mask is not None:
            hidden_states = hidden_states.masked_fill(~frame_mask[..., None], 0.0)
        attention_mask = create_bidirectional_mask(
            config=encoder.config, inputs_embeds=hidden_states, attention_mask=frame_mask
        )
        hidden_states = self._position(encoder.pos_conv_embed, encoder.layer_norm, hidden_states)
        top_k = self.config.average_top_k_layers
        for layer in encoder.layers[:-top_k]:
            hidden_states, _ = self._layer(layer, hidden_states, attention_mask)
        total = torch.zeros((), device=hidden_states.device)
        for layer in encoder.layers[-top_k:]:
            hidden_states, total = self._layer(layer, hidden_states, attention_mask, total)
        targets = (total / top_k).transpose(1, 2)  # [B, T, C]
        return F.layer_norm(targets, targets.shape[-1:]) if self.config.layer_norm_targets else targets

    def _half_encoder(self, dtype: torch.dtype):
        """The encoder with what autocast would cast for every product, cast once after each update."""
        if self._half is None or self._half.dtype != dtype:
            self._half = _HalfEncoder(self.encoder, dtype)
        return self._half.encoder

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The teacher's weights under encoder-relative names (`layers.0.attention.q_proj.weight`, ...)."""
        return self.encoder.state_dict()

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Set the weights from [`EMATeacher.state_dict`]; a missing or unknown name is an error."""
        self.encoder.load_state_dict(state_dict, strict=True)
        self._half = None


def _position(pos_conv_embed, layer_norm, hidden_states: torch.Tensor) -> torch.Tensor:
    """The first layer's input `[B, T, C]`."""
    return layer_norm(hidden_states + pos_conv_embed(hidden_states))


def _layer(layer, hidden_states: torch.Tensor, attention_mask, total: torch.Tensor | None = None):
    """One layer: hidden states `[B, T, C]`, and `total` `[B, C, T]` with its normalised feed-forward result added."""
    attended, _ = layer.attention(hidden_states, attention_mask=attention_mask)
    hidden_states = layer.layer_norm(hidden_states + attended)
    result = layer.feed_forward(hidden_states)
    if total is not None:  # padded frames enter the statistics, as in the reference
        total = total + F.instance_norm(result.float().transpose(1, 2))
    return layer.final_layer_norm(hidden_states + result), total


class _HalfEncoder:
    """An encoder whose products and convolutions have their weights in half precision; the rest is shared."""

    def __init__(self, encoder, dtype: torch.dtype):
        self.dtype, self.encoder = dtype, copy.deepcopy(encoder)
        self._ours, self._theirs = [], []
        for ours, theirs in zip(self.encoder.modules(), encoder.modules(), strict=True):
            ours._buffers = theirs._buffers
            for name, parameter in theirs.named_parameters(recurse=False):
                if isinstance(theirs, (nn.Linear, nn.Conv1d)):
                    half = nn.Parameter(parameter.to(dtype), requires_grad=False)
                    self._ours.append(half)
                    self._theirs.append(parameter)
                    ours.register_parameter(name, half)
                else:
                    ours.register_parameter(name, parameter)

    def follow(self) -> None:
        """Take the encoder's weights as they are now."""
        torch._foreach_copy_(self._ours, self._theirs)


def _encoder_of(model):
    return getattr(model, model.base_model_prefix, model).encoder


__all__ = ["EMATeacher"]
