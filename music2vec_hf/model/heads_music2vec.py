"""The encoder with a head on top: one answer for a clip, or one for every frame of it (50 a second)."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_music2vec import Music2VecConfig
from .encoder_music2vec import Music2VecModel, Music2VecPreTrainedModel

IGNORED_LABEL = -100


class Music2VecHead(Music2VecPreTrainedModel):
    """What both heads share: the layer that they read, standardisation, one or two linear layers, the losses.

    A head that reads another layer than the last switches LayerDrop off in its configuration: it leaves layers out of
    `hidden_states`, which then counts other layers.
    """

    _keys_to_ignore_on_load_unexpected = [r"(final_proj|acoustic_head)\..*"]
    # The losses are means over their own batch: without this Trainer takes them for sums over accumulated batches.
    accepts_loss_kwargs = False

    def __init__(self, config: Music2VecConfig):
        if config.classifier_layer not in (None, config.num_hidden_layers):
            config.layerdrop = 0.0
        super().__init__(config)
        self.data2vec_audio = Music2VecModel(config)
        self.layer = config.num_hidden_layers if config.classifier_layer is None else config.classifier_layer
        self.width = width = config.conv_dim[-1] if self.layer == "conv" else config.hidden_size
        if self.layer == "weighted":
            self.layer_weights = nn.Parameter(torch.zeros(config.num_hidden_layers + 1))
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_std", torch.ones(width))
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.projector = nn.Linear(width, config.classifier_hidden_size) if config.classifier_hidden_size else None
        self.classifier = nn.Linear(config.classifier_hidden_size or width, config.num_labels)

    @torch.no_grad()
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

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Features `[..., width]` of frames or pooled clips -> logits `[..., num_labels]`, for regression in the
        labels' own units and in float32: bfloat16 knows 126 and 126.5, but nothing between them."""
        own_units = self.config.problem_type == "regression" or self.config.target_std is not None
        with _no_autocast(features.device.type) if own_units else nullcontext():
            features = features.to(self.feature_mean.dtype) if own_units else features
            features = self.dropout((features - self.feature_mean) / self.feature_std)
            if self.projector is not None:
                features = self.dropout(F.relu(self.projector(features)))
            logits = self.classifier(features)
        if own_units:
            logits = _at_least_float32(logits)
        if self.config.target_std is not None:
            logits = logits * logits.new_tensor(self.config.target_std) + logits.new_tensor(self.config.target_mean)
        return logits

    def _frames(self, input_values, attention_mask, output_hidden_states=None, **kwargs):
        """The layer that the head reads `[B, T, width]`, and the encoder's further outputs that were asked for."""
        if self.layer == "conv":  # the encoder is not run at all
            return self.data2vec_audio.feature_extractor(input_values).transpose(1, 2), {}
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        num_layers = self.config.num_hidden_layers
        needs_all = self.layer == "weighted" or self.layer < num_layers
        output = self.data2vec_audio(
            input_values,
            attention_mask=attention_mask,
            output_hidden_states=needs_all or output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        states = output.hidden_states
        if needs_all and len(states) != num_layers + 1:
            raise ValueError(
                f"LayerDrop left out {num_layers + 1 - len(states)} of the layers that this head reads. Leave "
                "`config.layerdrop` at 0, to which the head has set it."
            )
        if self.layer == "weighted":
            weights = self.layer_weights.softmax(0)
            frames = sum(weight * layer for weight, layer in zip(weights, states, strict=True))
        else:
            frames = states[self.layer] if needs_all else output.last_hidden_state
        return frames, {"hidden_states": states if output_hidden_states else None, "attentions": output.attentions}

    def frame_logits(self, input_values: torch.Tensor) -> torch.Tensor:
        """Answers for every frame of clips without padding, `[B, N]` -> `[B, T, num_labels]`."""
        return self.classify(self._frames(input_values, None)[0])


@dataclass
class Music2VecClassifierOutput(SequenceClassifierOutput):
    """transformers' output of a classifier and, on request, `pooled_features` `[B, width]`: what the head read."""

    pooled_features: torch.Tensor | None = None


class Music2VecForSequenceClassification(Music2VecHead):
    """The encoder with a head for a whole clip, served as `AutoModelForAudioClassification`.

    `config.problem_type` is `single_label_classification`, `multi_label_classification` or `regression`. The head
    reads one layer, the raw front end (`"conv"`, without the encoder's `hidden_states`) or a learned softmax-weighted
    sum of all layers, pools over the valid frames, standardises with its buffers (identity until they are set) and is
    linear or has one hidden layer. For regression the logits are in the labels' own units: `config.target_mean` and
    `config.target_std` undo the standardisation that the head was trained with.
    """

    def __init__(self, config: Music2VecConfig):
        super().__init__(config)
        if config.classifier_pooling == "attention":
            self.pooling_query = nn.Linear(self.width, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        pooled_features: torch.Tensor | None = None,
        output_pooled_features: bool = False,
        **kwargs,
    ) -> Music2VecClassifierOutput:
        """Classify clips.

        Args:
            input_values (`torch.Tensor` of shape `(B, N)`): normalised waveform at 16 kHz.
            attention_mask (`torch.Tensor` of shape `(B, N)`, *optional*): 1 at samples that are not padding.
            labels (`torch.Tensor`, *optional*): `(B,)` class indices, `(B, num_labels)` 0/1 for several labels,
                `(B, num_labels)` values in their own units for regression (`(B,)` where there is one).
            pooled_features (`torch.Tensor` of shape `(B, width)`, *optional*): in place of `input_values`, for example
                averaged over a song.
            output_pooled_features (`bool`): return the pooled features too.

        Returns:
            [`Music2VecClassifierOutput`] with `logits [B, num_labels]` and, with labels, `loss`.

        Raises:
            ValueError: if labels do not fit the problem type.
        """
        outputs = {}
        if pooled_features is None:
            pooled_features, outputs = self.pool(input_values, attention_mask, **kwargs)
        logits = self.classify(pooled_features)
        outputs["loss"] = None if labels is None else classification_loss(logits, labels, self.config)
        outputs["pooled_features"] = pooled_features if output_pooled_features else None
        return Music2VecClassifierOutput(logits=logits, **outputs)

    def pool(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, dict]:
        """Clips `[B, N]` -> the features that [`classify`] takes, `[B, width]`, and the encoder's further outputs."""
        frames, outputs = self._frames(input_values, attention_mask, **kwargs)
        valid = self._frame_mask(frames.shape[1], attention_mask)
        if self.config.classifier_pooling == "attention":
            scores = self.pooling_query(frames)
            scores = scores if valid is None else scores.masked_fill(~valid[..., None], float("-inf"))
            return (scores.softmax(1) * frames).sum(1), outputs
        if valid is None:
            return frames.mean(1), outputs
        return frames.masked_fill(~valid[..., None], 0.0).sum(1) / valid.sum(1, keepdim=True), outputs


class Music2VecForAudioFrameClassification(Music2VecHead):
    """The encoder with a head for every frame, 50 a second: beats, chords, melody. Served as
    `AutoModelForAudioFrameClassification`.

    Frame `t` sees 25 ms around `config.frame_times(num_frames)[t]`. Layer, standardisation, hidden layer, problem
    types and units are those of [`Music2VecForSequenceClassification`]; `classifier_pooling` has no meaning here.
    """

    def __init__(self, config: Music2VecConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """Classify frames.

        Args:
            input_values (`torch.Tensor` of shape `(B, N)`): normalised waveform at 16 kHz.
            attention_mask (`torch.Tensor` of shape `(B, N)`, *optional*): 1 at samples that are not padding.
            labels (`torch.Tensor`, *optional*): `(B, T)` class indices, `(B, T, num_labels)` 0/1 for several labels,
                `(B, T, num_labels)` values for regression. A frame with a label of -100 and a frame of padding do
                not count.

        Returns:
            `TokenClassifierOutput` with `logits [B, T, num_labels]` and, with labels, `loss`: a mean over the frames
            that count.

        Raises:
            ValueError: if labels do not fit the problem type or the frames, or no frame counts.
        """
        frames, outputs = self._frames(input_values, attention_mask, **kwargs)
        logits = self.classify(frames)
        loss = None
        if labels is not None:
            if labels.shape[:2] != logits.shape[:2]:
                raise ValueError(
                    f"Labels have shape {tuple(labels.shape)} but there are {logits.shape[0]} clips of "
                    f"{logits.shape[1]} frames. Give one label per frame: `config.num_frames(num_samples)` a clip."
                )
            counts = labels != IGNORED_LABEL
            counts = counts if counts.ndim == 2 else counts.all(-1)
            valid = self._frame_mask(logits.shape[1], attention_mask)
            counts = counts if valid is None else counts & valid
            if not counts.any():
                raise ValueError("No frame has a label: all are -100 or padding. Leave this batch out.")
            loss = classification_loss(logits[counts], labels[counts], self.config)
        return TokenClassifierOutput(loss=loss, logits=logits, **outputs)


def _no_autocast(device_type: str):
    """Of devices without autocast, such as `meta`, torch refuses even the question."""
    enabled = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if enabled else nullcontext()


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, config: Music2VecConfig) -> torch.Tensor:
    """Mean loss of clips or frames, by `config.problem_type`.

    Args:
        logits (`torch.Tensor` of shape `(M, num_labels)`): of `M` clips or frames.
        labels (`torch.Tensor`): `(M,)` class indices (cross-entropy), `(M, num_labels)` 0/1 (binary cross-entropy) or
            values in their own units (squared error, in units of `config.target_std` where that is set).
        config ([`Music2VecConfig`]): without a `problem_type` integer labels are class indices.

    Returns:
        `torch.Tensor`: scalar, float32 (float64 for such logits).

    Raises:
        ValueError: if labels do not fit the problem type.
    """
    problem = config.problem_type
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
                "exclusive classes. Give one class index per clip or frame and at least two labels, or set "
                "`problem_type`."
            )
        return F.cross_entropy(_at_least_float32(logits), labels.long())
    if labels.ndim == 1 and logits.shape[1] == 1:
        labels = labels[:, None]
    if labels.shape != logits.shape:
        raise ValueError(f"Labels have shape {tuple(labels.shape)}. {problem} takes {tuple(logits.shape)}.")
    logits = _at_least_float32(logits)
    labels = labels.to(logits.dtype)
    if problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels)
    scale = logits.new_tensor(config.target_std) if config.target_std is not None else 1.0
    with _no_autocast(logits.device.type):
        return F.mse_loss(logits / scale, labels / scale)


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


__all__ = [
    "Music2VecForAudioFrameClassification",
    "Music2VecForSequenceClassification",
    "Music2VecHead",
    "classification_loss",
]
