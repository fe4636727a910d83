"""The convolutional front end, computed channels-last: several times faster on a CPU than transformers' layers and
equal to them within rounding. Parameters and their names are transformers'."""

import torch
from torch import nn
from transformers.models.data2vec.modeling_data2vec_audio import Data2VecAudioConvLayer, Data2VecAudioFeatureEncoder

from .configuration_music2vec import Music2VecConfig


class Music2VecConvLayer(Data2VecAudioConvLayer):
    """One convolution of the front end, LayerNorm and GELU, on `[B, T, C]` instead of `[B, C, T]`.

    A strided convolution is a matrix product over blocks of `stride` frames plus one product for each tap beyond the
    block; with the channels last, none of it needs a transpose.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        num_frames = (hidden_states.shape[1] - kernel) // stride + 1
        taps = self.conv.weight.permute(2, 1, 0)  # [kernel, C_in, C_out]
        if self.in_conv_dim == 1:
            windows = hidden_states.squeeze(-1).unfold(1, kernel, stride)  # [B, T, kernel]
            hidden_states = windows @ taps.squeeze(1)
        else:
            blocks = hidden_states[:, : num_frames * stride].unflatten(1, (num_frames, stride)).flatten(2)
            result = blocks @ taps[:stride].flatten(0, 1)
            for tap in range(stride, kernel):
                result = result + hidden_states[:, tap::stride][:, :num_frames] @ taps[tap]
            hidden_states = result
        if self.conv.bias is not None:
            hidden_states = hidden_states + self.conv.bias
        return self.activation(self.layer_norm(hidden_states))


class Music2VecFeatureEncoder(Data2VecAudioFeatureEncoder):
    """The convolutional front end: waveform `[B, N]` -> raw features `[B, C_conv, T]` (a view of `[B, T, C_conv]`)."""

    def __init__(self, config: Music2VecConfig):
        nn.Module.__init__(self)  # the parent's constructor would build transformers' layers first
        self.conv_layers = nn.ModuleList(Music2VecConvLayer(config, i) for i in range(config.num_feat_extract_layers))
        self.receptive_field = config.receptive_field
        self.gradient_checkpointing = False
        self._requires_grad = True

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        if input_values.ndim != 2 or input_values.shape[1] < self.receptive_field:
            raise ValueError(
                f"`input_values` has shape {tuple(input_values.shape)}. Give `(batch_size, num_samples)` with at "
                f"least {self.receptive_field} samples a row: a shorter clip does not fill one frame."
            )
        hidden_states = input_values[:, :, None]
        if self.gradient_checkpointing and self._requires_grad and self.training:
            hidden_states = hidden_states.detach().requires_grad_()
        for conv_layer in self.conv_layers:
            hidden_states = conv_layer(hidden_states)
        return hidden_states.transpose(1, 2)


__all__ = ["Music2VecFeatureEncoder"]
