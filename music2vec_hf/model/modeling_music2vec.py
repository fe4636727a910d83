"""Music2Vec's models: the student that is pretrained, and by name the encoder and the heads, which have own files."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .acoustic_music2vec import NUM_ACOUSTIC_BINS, acoustic_targets
from .configuration_music2vec import Music2VecConfig
from .encoder_music2vec import Music2VecModel, Music2VecPreTrainedModel, uniform_by_fan_in


@dataclass
class Music2VecForPreTrainingOutput(ModelOutput):
    """What [`Music2VecForPreTraining`] returns. `M` is the number of masked frames, row-major over `[B, T]`.

    Args:
        loss (`torch.Tensor`, scalar float32): sum over masked frames and channels, scaled, over `M`; and
            `acoustic_weight` times the acoustic loss.
        acoustic_loss (`torch.Tensor`, scalar float32): the same of the spectra, which are predicted at all frames, so
            the sum is over these.
        predictions (`torch.Tensor` of shape `(M, C)`): the student's.
        targets (`torch.Tensor` of shape `(M, C)`): the teacher's, without gradient.
        target_std, prediction_std (`torch.Tensor`, scalars): collapse monitors: mean over channels of
            `sqrt(unbiased variance over masked frames + 1e-6)`.
        last_hidden_state (`torch.Tensor` of shape `(B, T, C)`): the student's output.
        projected_features (`torch.Tensor` of shape `(B, T, C)`): what the teacher reads: unmasked, without gradient.
        hidden_states, attentions (`tuple` of `torch.Tensor`): the student's, on request, as transformers has them.
    """

    loss: torch.Tensor | None = None
    predictions: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    acoustic_loss: torch.Tensor | None = None
    target_std: torch.Tensor | None = None
    prediction_std: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    projected_features: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class Music2VecForPreTraining(Music2VecPreTrainedModel):
    """The student with its prediction head. The teacher is not part of it: it is handed to `forward`.

    Source: fairseq `examples/data2vec/models/data2vec_audio.py` at 3d262bb2; Music2Vec section 2.
    """

    def __init__(self, config: Music2VecConfig):
        super().__init__(config)
        self.data2vec_audio = Music2VecModel(config)
        self.final_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.acoustic_head = nn.Linear(config.hidden_size, NUM_ACOUSTIC_BINS) if config.acoustic_weight else None
        self.post_init()
        if config.feature_grad_mult == 0:  # under DDP a weight that waits for a gradient must get one
            self.data2vec_audio.freeze_feature_encoder()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self.final_proj:
            uniform_by_fan_in(module)  # the reference's

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        teacher=None,
        masked_positions: torch.Tensor | None = None,
        **kwargs,
    ) -> Music2VecForPreTrainingOutput:
        """Predict the teacher's targets at the masked frames.

        Args:
            input_values (`torch.Tensor` of shape `(B, N)`): normalised waveform at 16 kHz.
            attention_mask (`torch.Tensor` of shape `(B, N)`, *optional*): 1 at samples that are not padding.
            mask_time_indices (`torch.BoolTensor` of shape `(B, T)` or `(B, V, T)`, *optional*): frames hidden from the
                student. With `V` masks a crop the student sees `V` views of it, which share the front end's and the
                teacher's pass (data2vec 2.0's multi-mask training); `B` is then `B * V` in all that is the student's.
            teacher ([`EMATeacher`], *optional*): without it there are no targets and no loss.
            masked_positions (`torch.LongTensor` of shape `(M,)`, *optional*): where the flat mask is True. Without
                it they are looked up, for which the program waits for a GPU.

        Returns:
            [`Music2VecForPreTrainingOutput`]

        Raises:
            ValueError: for a teacher without a mask, a mask without a masked frame, or a mask of the wrong shape.
        """
        if teacher is not None and mask_time_indices is None:
            raise ValueError("There is a `teacher` but no `mask_time_indices`. Sample a mask for this batch.")
        encoded = self.data2vec_audio(
            input_values,
            attention_mask=attention_mask,
            mask_time_indices=mask_time_indices,
            output_projected_features=True,
            feature_grad_mult=self.config.feature_grad_mult,
            return_dict=True,
            **kwargs,
        )
        hidden_states, projected = encoded.last_hidden_state, encoded.projected_features
        output = Music2VecForPreTrainingOutput(
            last_hidden_state=hidden_states,
            projected_features=projected.detach(),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        if mask_time_indices is None:
            return output

        if masked_positions is None:
            masked_positions = mask_time_indices.flatten().nonzero(as_tuple=True)[0]
        output.predictions = self.final_proj(hidden_states.flatten(0, 1).index_select(0, masked_positions)).float()
        if teacher is not None:
            frame_mask = self._frame_mask(projected.shape[1], attention_mask)
            num_frames, views = projected.shape[1], len(hidden_states) // len(projected)
            clips, frames = masked_positions // (views * num_frames), masked_positions % num_frames
            output.targets = teacher.targets(projected, frame_mask)[clips, frames]
            output.loss = data2vec_loss(
                output.predictions, output.targets, self.config.loss_beta, self.config.loss_scale
            )
            if self.acoustic_head is not None:
                output.acoustic_loss = self._acoustic_loss(input_values, hidden_states, len(masked_positions))
                output.loss = output.loss + self.config.acoustic_weight * output.acoustic_loss
            output.target_std = channel_std(output.targets)
            output.prediction_std = channel_std(output.predictions.detach())
        return output

    def _acoustic_loss(self, input_values, hidden_states, num_masked: int) -> torch.Tensor:
        config = self.config
        spectra = acoustic_targets(
            input_values, hidden_states.shape[1], config.inputs_to_logits_ratio, config.receptive_field
        )
        spectra = spectra.repeat_interleave(len(hidden_states) // len(spectra), 0)
        predictions = self.acoustic_head(hidden_states)
        loss = data2vec_loss(predictions.flatten(0, 1), spectra.flatten(0, 1), config.loss_beta)
        return loss * (spectra.shape[0] * spectra.shape[1] / num_masked)


def data2vec_loss(
    predictions: torch.Tensor, targets: torch.Tensor, loss_beta: float = 0.0, loss_scale: float | None = None
) -> torch.Tensor:
    """Regression loss per masked frame, in float32.

    Args:
        predictions, targets (`torch.Tensor` of shape `(M, C)`).
        loss_beta (`float`): 0 for the squared error, else smooth L1 with that beta.
        loss_scale (`float`, *optional*): `None` means `1 / sqrt(C)`.

    Returns:
        `torch.Tensor`: scalar, summed over channels and frames, times the scale, over `M`.

    Raises:
        ValueError: if there is no masked frame.

    Source: fairseq `examples/data2vec/models/data2vec_audio.py`, `criterions/model_criterion.py`.
    """
    num_masked, channels = predictions.shape
    if num_masked == 0:
        raise ValueError("`mask_time_indices` masks no frame, so there is nothing to predict. Mask at least one.")
    predictions, targets = predictions.float(), targets.float()
    if loss_beta == 0:
        total = F.mse_loss(predictions, targets, reduction="sum")
    else:
        total = F.smooth_l1_loss(predictions, targets, reduction="sum", beta=loss_beta)
    return total * (1.0 / math.sqrt(channels) if loss_scale is None else loss_scale) / num_masked


def channel_std(values: torch.Tensor) -> torch.Tensor:
    """Mean over channels of `sqrt(unbiased variance + 1e-6)` of `values [M, C]`: near 0 when they are all alike."""
    return torch.sqrt(values.float().var(dim=0) + 1e-6).mean()


__all__ = ["Music2VecForPreTraining", "Music2VecForPreTrainingOutput"]
