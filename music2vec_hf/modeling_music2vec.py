"""Music2Vec's models: the encoder, the student that is pretrained, and the encoder with a classification head.

They are transformers' Data2VecAudio with the reference's initialisation, masks only where they are given, and our own
computation of the front end.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Data2VecAudioModel, Data2VecAudioPreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.data2vec.modeling_data2vec_audio import (
    Data2VecAudioEncoder,
    Data2VecAudioFeatureProjection,
    Data2VecAudioPositionalConvLayer,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_music2vec import Music2VecConfig
from .frontend_music2vec import Music2VecFeatureEncoder


class Music2VecPreTrainedModel(Data2VecAudioPreTrainedModel):
    """Shared by all Music2Vec models: configuration class, names and the reference's initialisation."""

    config: Music2VecConfig
    config_class = Music2VecConfig

    def _initialize_weights(self, module, is_custom_code: bool = False):
        # transformers takes classes outside its own package for custom code and then skips every module that owns no
        # parameters itself, and with it the projection's and the positional convolution's initialisation.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module):
        """fairseq's initialisation: as the parent's, but torch's default for the positional convolution and the
        prediction head (both uniform within `1 / sqrt(fan_in)`, biases too)."""
        if isinstance(module, Data2VecAudioPositionalConvLayer):
            _uniform_by_fan_in(module.conv)
        elif isinstance(module, Music2VecForPreTraining):
            _uniform_by_fan_in(module.final_proj)
        elif not (isinstance(module, nn.Conv1d) and module.groups > 1):
            super()._init_weights(module)


def _uniform_by_fan_in(module: nn.Conv1d | nn.Linear) -> None:
    bound = 1.0 / math.sqrt(module.weight[0].numel())
    init.uniform_(module.weight, a=-bound, b=bound)
    init.uniform_(module.bias, a=-bound, b=bound)


class Music2VecModel(Music2VecPreTrainedModel, Data2VecAudioModel):
    """The encoder: `input_values [B, N]` -> `last_hidden_state [B, T, C]`, `hidden_states` on request.

    `hidden_states[0]` is the encoder's input (projection + positional convolution + norm), `hidden_states[i]` the
    output of layer `i`. It masks only where it is handed `mask_time_indices` of shape `(B, T)`, in any mode.
    Plain data2vec-audio checkpoints load unchanged, and its own load in plain `Data2VecAudioModel`.
    """

    # Heads are left behind on purpose when the encoder alone is loaded.
    _keys_to_ignore_on_load_unexpected = [
        r"^(final_proj|classifier|projector|pooling_query)\.",
        r"^(feature_mean|feature_std|layer_weights)$",
    ]

    def __init__(self, config: Music2VecConfig):
        super(Data2VecAudioModel, self).__init__(config)  # the parent's constructor would build its own front end
        if config.add_adapter:
            raise ValueError("`add_adapter` is True. Music2Vec has no adapter: use False.")
        self.feature_extractor = Music2VecFeatureEncoder(config)
        self.feature_projection = Data2VecAudioFeatureProjection(config)
        self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.encoder = Data2VecAudioEncoder(config)
        self.adapter = None
        self.post_init()

    def _mask_hidden_states(self, hidden_states, mask_time_indices=None, attention_mask=None):
        if mask_time_indices is None:
            return hidden_states
        if mask_time_indices.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"`mask_time_indices` has shape {tuple(mask_time_indices.shape)} but the front end yields "
                f"{tuple(hidden_states.shape[:2])} frames. Use `config.num_frames(num_samples)` frames a row."
            )
        # Not in place: the teacher reads the unmasked features.
        masked = self.masked_spec_embed.to(hidden_states.dtype)
        return torch.where(mask_time_indices.bool()[..., None], masked, hidden_states)


@dataclass
class Music2VecForPreTrainingOutput(ModelOutput):
    """What [`Music2VecForPreTraining`] returns. `M` is the number of masked frames, row-major over `[B, T]`.

    Args:
        loss (`torch.Tensor`, scalar float32): sum over masked frames and channels, scaled, over `M`.
        predictions (`torch.Tensor` of shape `(M, C)`): the student's.
        targets (`torch.Tensor` of shape `(M, C)`): the teacher's, without gradient.
        target_std, prediction_std (`torch.Tensor`, scalars): collapse monitors: mean over channels of
            `sqrt(unbiased variance over masked frames + 1e-6)`.
        last_hidden_state (`torch.Tensor` of shape `(B, T, C)`): the student's output.
        projected_features (`torch.Tensor` of shape `(B, T, C)`): what the teacher reads: unmasked, without gradient.
    """

    loss: torch.Tensor | None = None
    predictions: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    target_std: torch.Tensor | None = None
    prediction_std: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    projected_features: torch.Tensor | None = None


class Music2VecForPreTraining(Music2VecPreTrainedModel):
    """The student with its prediction head. The teacher is not part of it: it is handed to `forward`.

    Source: fairseq `examples/data2vec/models/data2vec_audio.py` at 3d262bb2; Music2Vec section 2.
    """

    def __init__(self, config: Music2VecConfig):
        super().__init__(config)
        self.data2vec_audio = Music2VecModel(config)
        self.final_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        teacher=None,
        **kwargs,
    ) -> Music2VecForPreTrainingOutput:
        """Predict the teacher's targets at the masked frames.

        Args:
            input_values (`torch.Tensor` of shape `(B, N)`): normalised waveform at 16 kHz.
            attention_mask (`torch.Tensor` of shape `(B, N)`, *optional*): 1 at samples that are not padding.
            mask_time_indices (`torch.BoolTensor` of shape `(B, T)`, *optional*): frames hidden from the student.
            teacher ([`EMATeacher`], *optional*): without it there are no targets and no loss.

        Returns:
            [`Music2VecForPreTrainingOutput`]

        Raises:
            ValueError: for a teacher without a mask, a mask without a masked frame, or a mask of the wrong shape.
        """
        encoder = self.data2vec_audio
        features = encoder.feature_extractor(input_values).transpose(1, 2)  # [B, T, C_conv]
        features = _scale_gradient(features, self.config.feature_grad_mult)
        frame_mask = None
        if attention_mask is not None:
            frame_mask = self._get_feature_vector_attention_mask(features.shape[1], attention_mask)
        projection = encoder.feature_projection
        projected = projection.projection(projection.layer_norm(features))  # [B, T, C]: the teacher's input

        student = encoder._mask_hidden_states(projection.dropout(projected), mask_time_indices)
        if frame_mask is not None:
            student = student.masked_fill(~frame_mask[..., None], 0.0)  # the encoder does so in place
        hidden_states = encoder.encoder(student, attention_mask=frame_mask).last_hidden_state
        output = Music2VecForPreTrainingOutput(last_hidden_state=hidden_states, projected_features=projected.detach())
        if mask_time_indices is None:
            if teacher is not None:
                raise ValueError("There is a `teacher` but no `mask_time_indices`. Sample a mask for this batch.")
            return output

        masked = mask_time_indices.bool()
        output.predictions = self.final_proj(hidden_states[masked]).float()
        if teacher is not None:
            output.targets = teacher.targets(projected, frame_mask)[masked]
            output.loss = data2vec_loss(
                output.predictions, output.targets, self.config.loss_beta, self.config.loss_scale
            )
            output.target_std = channel_std(output.targets)
            output.prediction_std = channel_std(output.predictions.detach())
        return output


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


def _scale_gradient(features: torch.Tensor, factor: float) -> torch.Tensor:
    if factor == 1:
        return features
    return features.detach() if factor == 0 else features * factor + features.detach() * (1 - factor)


class Music2VecForSequenceClassification(Music2VecPreTrainedModel):
    """The encoder with a head for a whole clip, served as `AutoModelForAudioClassification`.

    `config.problem_type` is `single_label_classification`, `multi_label_classification` or `regression`. The head
    reads one layer, the raw front end (`"conv"`) or a learned softmax-weighted sum of all layers, pools over the
    valid frames, standardises with its buffers (identity until they are set) and is linear or has one hidden layer.
    For regression the logits are in the labels' own units: `config.target_mean` and `config.target_std` undo the
    standardisation that the head was trained with.
    """

    _keys_to_ignore_on_load_unexpected = [r"final_proj\..*"]

    def __init__(self, config: Music2VecConfig):
        if config.classifier_layer not in (None, config.num_hidden_layers):
            config.layerdrop = 0.0  # it leaves layers out of `hidden_states`, which then counts other layers
        super().__init__(config)
        self.data2vec_audio = Music2VecModel(config)
        self.layer = config.num_hidden_layers if config.classifier_layer is None else config.classifier_layer
        width = config.conv_dim[-1] if self.layer == "conv" else config.hidden_size
        if self.layer == "weighted":
            self.layer_weights = nn.Parameter(torch.zeros(config.num_hidden_layers + 1))
        if config.classifier_pooling == "attention":
            self.pooling_query = nn.Linear(width, 1)
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_std", torch.ones(width))
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.projector = nn.Linear(width, config.classifier_hidden_size) if config.classifier_hidden_size else None
        self.classifier = nn.Linear(config.classifier_hidden_size or width, config.num_labels)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.feature_mean)
            init.ones_(self.feature_std)
            if self.layer == "weighted":
                init.zeros_(self.layer_weights)

    def freeze_feature_encoder(self) -> None:
        """Stop training the convolutional front end."""
        self.data2vec_audio.freeze_feature_encoder()

    def freeze_base_model(self) -> None:
        """Stop training everything but the head."""
        self.data2vec_audio.requires_grad_(False)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify clips.

        Args:
            input_values (`torch.Tensor` of shape `(B, N)`): normalised waveform at 16 kHz.
            attention_mask (`torch.Tensor` of shape `(B, N)`, *optional*): 1 at samples that are not padding.
            labels (`torch.Tensor`, *optional*): `(B,)` class indices, `(B, num_labels)` 0/1 for several labels,
                `(B, num_labels)` values in their own units for regression.

        Returns:
            `SequenceClassifierOutput` with `logits [B, num_labels]` and, with labels, `loss`.

        Raises:
            ValueError: if labels do not fit the problem type.
        """
        frames, hidden_states = self._frames(input_values, attention_mask, **kwargs)
        pooled = self._pool(frames, attention_mask)
        pooled = self.dropout((pooled - self.feature_mean) / self.feature_std)
        if self.projector is not None:
            pooled = self.dropout(F.relu(self.projector(pooled)))
        logits = self.classifier(pooled)
        if self.config.target_std is not None:
            logits = logits * logits.new_tensor(self.config.target_std) + logits.new_tensor(self.config.target_mean)
        loss = None if labels is None else self._loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states)

    def _frames(self, input_values, attention_mask, **kwargs):
        """The layer that the head reads `[B, T, width]`, and all hidden states if they were asked for."""
        if self.layer == "conv":
            return self.data2vec_audio.feature_extractor(input_values).transpose(1, 2), None
        wants_all = self.layer == "weighted" or self.layer < self.config.num_hidden_layers
        output = self.data2vec_audio(
            input_values,
            attention_mask=attention_mask,
            **{**kwargs, "output_hidden_states": kwargs.get("output_hidden_states") or wants_all},
        )
        asked = output.hidden_states if kwargs.get("output_hidden_states") else None
        if self.layer == "weighted":
            weights = self.layer_weights.softmax(0)
            return sum(weight * states for weight, states in zip(weights, output.hidden_states, strict=True)), asked
        return output.hidden_states[self.layer] if wants_all else output.last_hidden_state, asked

    def _pool(self, frames, attention_mask):
        valid = None
        if attention_mask is not None:
            valid = self._get_feature_vector_attention_mask(frames.shape[1], attention_mask)[..., None]
        if self.config.classifier_pooling == "attention":
            scores = self.pooling_query(frames)
            scores = scores if valid is None else scores.masked_fill(~valid, float("-inf"))
            return (scores.softmax(1) * frames).sum(1)
        if valid is None:
            return frames.mean(1)
        return frames.masked_fill(~valid, 0.0).sum(1) / valid.sum(1)

    def _loss(self, logits, labels):
        problem = self.config.problem_type
        if problem is None:
            if labels.is_floating_point():
                raise ValueError(
                    "`config.problem_type` is not set and the labels are floats. Set it to "
                    "'multi_label_classification' or 'regression'."
                )
            problem = "single_label_classification"
        if problem == "single_label_classification":
            if labels.shape != logits.shape[:1] or labels.is_floating_point() or logits.shape[1] < 2:
                raise ValueError(
                    f"Labels of shape {tuple(labels.shape)} and type {labels.dtype} do not fit {logits.shape[1]} "
                    "exclusive classes. Give one class index per clip and at least two labels, or set `problem_type`."
                )
            return F.cross_entropy(logits, labels)
        if labels.shape != logits.shape:
            raise ValueError(f"Labels have shape {tuple(labels.shape)}. {problem} takes {tuple(logits.shape)}.")
        if problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        scale = logits.new_tensor(self.config.target_std) if self.config.target_std is not None else 1.0
        return F.mse_loss(logits / scale, labels.to(logits.dtype) / scale)


__all__ = [
    "Music2VecForPreTraining",
    "Music2VecForPreTrainingOutput",
    "Music2VecForSequenceClassification",
    "Music2VecModel",
    "Music2VecPreTrainedModel",
]
