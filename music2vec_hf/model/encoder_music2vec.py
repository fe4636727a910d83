"""Music2Vec's encoder: transformers' Data2VecAudio with the reference's initialisation, masks only where they are
given, and our own computation of the front end."""

import math

import torch
from torch import nn
from transformers import Data2VecAudioModel, Data2VecAudioPreTrainedModel
from transformers import initialization as init
from transformers.models.data2vec.modeling_data2vec_audio import (
    Data2VecAudioEncoder,
    Data2VecAudioFeatureProjection,
    Data2VecAudioPositionalConvLayer,
)

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
        """fairseq's initialisation: as the parent's, but torch's default for the positional convolution."""
        if isinstance(module, Data2VecAudioPositionalConvLayer):
            uniform_by_fan_in(module.conv)
        elif not (isinstance(module, nn.Conv1d) and module.groups > 1):
            super()._init_weights(module)


def uniform_by_fan_in(module: nn.Conv1d | nn.Linear) -> None:
    """torch's default initialisation: weight and bias uniform within `1 / sqrt(fan_in)`."""
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


__all__ = ["Music2VecModel", "Music2VecPreTrainedModel", "uniform_by_fan_in"]
