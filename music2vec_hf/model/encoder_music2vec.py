"""Music2Vec's encoder: transformers' Data2VecAudio with the reference's initialisation, masks only where they are
given, and our own computation of the front end."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Data2VecAudioModel, Data2VecAudioPreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import Wav2Vec2BaseModelOutput
from transformers.models.data2vec.modeling_data2vec_audio import (
    Data2VecAudioEncoder,
    Data2VecAudioFeatureProjection,
    Data2VecAudioPositionalConvLayer,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .acoustic_music2vec import log_frequency_filters
from .configuration_music2vec import Music2VecConfig
from .frontend_music2vec import Music2VecFeatureEncoder, is_plain_call


class Music2VecPreTrainedModel(Data2VecAudioPreTrainedModel):
    """Shared by all Music2Vec models: configuration class, names and the reference's initialisation."""

    config: Music2VecConfig
    config_class = Music2VecConfig

    def _initialize_weights(self, module, is_custom_code: bool = False):
        # transformers takes classes outside its own package for custom code and then skips every module that owns no
        # parameters itself, and with it the initialisation of these two, which set those of their children.
        if isinstance(module, (Data2VecAudioFeatureProjection, Data2VecAudioPositionalConvLayer)):
            is_custom_code &= all(getattr(weight, "_is_hf_initialized", False) for weight in module.parameters())
        super()._initialize_weights(module, is_custom_code)

    @torch.no_grad()
    def _init_weights(self, module):
        """fairseq's initialisation: as the parent's, but torch's default for the positional convolution."""
        if isinstance(module, Data2VecAudioPositionalConvLayer):
            uniform_by_fan_in(module.conv)
        elif getattr(module, "in_channels", 0) == 1 and self.config.frontend_init == "log_frequency":
            init.copy_(module.weight, log_frequency_filters(module.out_channels, module.kernel_size[0]))
        elif not (isinstance(module, nn.Conv1d) and module.groups > 1):
            super()._init_weights(module)

    def _frame_mask(self, num_frames: int, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """`[B, T]` bool: frames that are not padding, `None` without an `attention_mask`."""
        if attention_mask is None:
            return None
        return self._get_feature_vector_attention_mask(num_frames, attention_mask)


def uniform_by_fan_in(module: nn.Conv1d | nn.Linear) -> None:
    """torch's default initialisation: weight and bias uniform within `1 / sqrt(fan_in)`."""
    bound = 1.0 / math.sqrt(module.weight[0].numel())
    init.uniform_(module.weight, a=-bound, b=bound)
    init.uniform_(module.bias, a=-bound, b=bound)


class _HalfLayerNorm(nn.LayerNorm):
    """Under autocast its result has the type of products, as the reference's in half precision: CUDA's autocast would
    give float32, and so would all that is added to it."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        normalised, device = super().forward(values), values.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return normalised.to(torch.get_autocast_dtype(device))
        return normalised


class _PositionalConvLayer(Data2VecAudioPositionalConvLayer):
    """The parent with a quicker backward pass on a CPU: the next layer's gradient lies otherwise in memory than the
    values here, which makes that of the activation slow."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = super().forward(hidden_states)
        trained = hidden_states.requires_grad and hidden_states.device.type == "cpu"
        if trained and not torch.compiler.is_compiling() and is_plain_call(hidden_states):
            hidden_states.register_hook(lambda gradient: gradient.mT.contiguous().mT)
        return hidden_states


class Music2VecFeatureProjection(Data2VecAudioFeatureProjection):
    """Front-end features `[B, T, C_conv]` -> the encoder's width, with LayerNorm before and dropout after."""

    def forward(self, features: torch.Tensor, views: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """As the parent's. With `views` the result `[B * views, T, C]`, each view with a dropout of its own, and what
        the teacher reads: the projection `[B, T, C]` before dropout."""
        if views is None:
            return super().forward(features)
        projected = self.projection(self.layer_norm(features))
        return self.dropout(projected if views == 1 else projected.repeat_interleave(views, 0)), projected


@dataclass
class Music2VecModelOutput(Wav2Vec2BaseModelOutput):
    """transformers' output of an encoder and, on request, `projected_features` `[B, T, C]`: what the teacher reads."""

    projected_features: torch.Tensor | None = None


class Music2VecModel(Music2VecPreTrainedModel, Data2VecAudioModel):
    """The encoder: `input_values [B, N]` -> `last_hidden_state [B, T, C]`, `hidden_states` on request.

    `hidden_states[0]` is the encoder's input (projection + positional convolution + norm), `hidden_states[i]` the
    output of layer `i`. It masks only where it is handed `mask_time_indices` of shape `(B, T)`, in any mode.
    Plain data2vec-audio checkpoints load unchanged, and its own load in plain `Data2VecAudioModel`.
    """

    # Heads are left behind on purpose when the encoder alone is loaded.
    _keys_to_ignore_on_load_unexpected = [
        r"^(final_proj|acoustic_head|distillation_heads|classifier|projector|pooling_query)\.",
        r"^(feature_mean|feature_std|layer_weights)$",
    ]

    def __init__(self, config: Music2VecConfig):
        super(Data2VecAudioModel, self).__init__(config)  # the parent's constructor would build its own front end
        if config.add_adapter:
            raise ValueError("`add_adapter` is True. Music2Vec has no adapter: use False.")
        self.feature_extractor = Music2VecFeatureEncoder(config)
        self.feature_projection = Music2VecFeatureProjection(config)
        self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.encoder = Data2VecAudioEncoder(config)
        ours = {nn.LayerNorm: _HalfLayerNorm, Data2VecAudioPositionalConvLayer: _PositionalConvLayer}
        for module in self.encoder.modules():
            module.__class__ = ours.get(type(module), type(module))
        self.adapter = None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask_time_indices: torch.Tensor | None = None,
        output_projected_features: bool = False,
        feature_grad_mult: float = 1.0,
        **kwargs,
    ) -> Music2VecModelOutput:
        """Encode clips.

        Args:
            input_values (`torch.Tensor` of shape `(B, N)`): normalised waveform at 16 kHz.
            attention_mask (`torch.Tensor` of shape `(B, N)`, *optional*): 1 at samples that are not padding.
            mask_time_indices (`torch.BoolTensor` of shape `(B, T)`, *optional*): frames to hide. With
                `output_projected_features` also `(B, V, T)`: `V` views of a crop, `B * V` rows of the output.
            output_projected_features (`bool`): return `projected_features` in place of `extract_features`.
            feature_grad_mult (`float`): factor of the gradient that reaches the front end.

        Returns:
            [`Music2VecModelOutput`]
        """
        features = _scale_gradient(self.feature_extractor(input_values).transpose(1, 2), feature_grad_mult)
        frame_mask, views = self._frame_mask(features.shape[1], attention_mask), None
        if output_projected_features:
            views = 1
            if mask_time_indices is not None and mask_time_indices.ndim == 3:
                views = mask_time_indices.shape[1]
                mask_time_indices = mask_time_indices.flatten(0, 1)
                frame_mask = None if frame_mask is None else frame_mask.repeat_interleave(views, 0)
        hidden_states, normalised_or_projected = self.feature_projection(features, views)
        hidden_states = self._mask_hidden_states(hidden_states, mask_time_indices)
        if frame_mask is not None:  # the encoder does so in place
            hidden_states = hidden_states.masked_fill(~frame_mask[..., None], 0.0)
        hidden_states = self.encoder(hidden_states, attention_mask=frame_mask, **kwargs).last_hidden_state
        name = "extract_features" if views is None else "projected_features"
        return Music2VecModelOutput(last_hidden_state=hidden_states, **{name: normalised_or_projected})

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


def _scale_gradient(features: torch.Tensor, factor: float) -> torch.Tensor:
    if factor == 1:
        return features
    return features.detach() if factor == 0 else features * factor + features.detach() * (1 - factor)


__all__ = ["Music2VecModel", "Music2VecPreTrainedModel", "uniform_by_fan_in"]
