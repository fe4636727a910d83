"""The teacher: an exponential moving average of the student's encoder, and the targets that it sets (stages 6, 10)."""

import copy

import torch
import torch.nn.functional as F
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

    def __init__(self, model):
        self.config = model.config
        self.encoder = copy.deepcopy(_encoder_of(model)).float().eval().requires_grad_(False)

    def to(self, device) -> "EMATeacher":
        """Move the teacher to `device`; returns itself."""
        self.encoder.to(device)
        return self

    def compile(self) -> "EMATeacher":
        """Let torch.compile speed up its layers, in place; returns itself."""
        for layer in self.encoder.layers:
            layer.attention.compile()
            layer.feed_forward.compile()
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
        total = None
        for result in self._feed_forward_results(features.detach(), frame_mask):
            # Padded frames enter the statistics, as in the reference.
            normalised = F.instance_norm(result.float().transpose(1, 2))
            total = normalised if total is None else total.add_(normalised)
        targets = (total / self.config.average_top_k_layers).transpose(1, 2)  # [B, T, C]
        return F.layer_norm(targets, targets.shape[-1:]) if self.config.layer_norm_targets else targets

    def _feed_forward_results(self, hidden_states, frame_mask):
        """Yield the feed-forward result `[B, T, C]` of each of the last `average_top_k_layers` layers."""
        encoder = self.encoder
        if not torch.is_autocast_enabled(hidden_states.device.type):  # of a student in half or double precision
            hidden_states = hidden_states.to(encoder.layer_norm.weight.dtype)
        if frame_mask is not None:
            hidden_states = hidden_states.masked_fill(~frame_mask[..., None], 0.0)
        attention_mask = create_bidirectional_mask(
            config=encoder.config, inputs_embeds=hidden_states, attention_mask=frame_mask
        )
        hidden_states = encoder.layer_norm(hidden_states + encoder.pos_conv_embed(hidden_states))
        first_target_layer = len(encoder.layers) - self.config.average_top_k_layers
        for index, layer in enumerate(encoder.layers):
            attended, _ = layer.attention(hidden_states, attention_mask=attention_mask)
            hidden_states = layer.layer_norm(hidden_states + attended)
            result = layer.feed_forward(hidden_states)
            if index >= first_target_layer:
                yield result
            hidden_states = layer.final_layer_norm(hidden_states + result)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The teacher's weights under encoder-relative names (`layers.0.attention.q_proj.weight`, ...)."""
        return self.encoder.state_dict()

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Set the weights from [`EMATeacher.state_dict`]; a missing or unknown name is an error."""
        self.encoder.load_state_dict(state_dict, strict=True)


def _encoder_of(model):
    return getattr(model, model.base_model_prefix, model).encoder


__all__ = ["EMATeacher"]
