"""The convolutional front end, computed channels-last: several times faster on a CPU than transformers' layers and
equal to them within rounding. Parameters and their names are transformers'.

The clips of a batch lie one behind the other as a single sequence, each padded to a whole number of frames. So every
layer is a few matrix products over views of it, and nothing is copied. The frames in which a clip would meet the next
one belong to no clip, and are cut off at the end."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.data2vec.modeling_data2vec_audio import Data2VecAudioConvLayer, Data2VecAudioFeatureEncoder

from .configuration_music2vec import Music2VecConfig


class _StridedConvolution(torch.autograd.Function):
    """Frames `[R, C]` and taps `[kernel, C, D]` -> `[R / stride, D]`, as if zeros followed.

    One product over blocks of `stride` frames, plus one for each tap that reaches into a later block. Autograd's own
    backward would give each of these a gradient of full length, mostly zeros.
    """

    @staticmethod
    def forward(ctx, frames: torch.Tensor, taps: torch.Tensor, stride: int) -> torch.Tensor:
        ctx.save_for_backward(frames, taps)
        ctx.stride = stride
        result = None
        for used, weight in _products(frames, taps, stride):
            if result is None:
                result = used @ weight
            else:
                result[: len(used)].addmm_(used, weight)
        return result

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        frames, taps = ctx.saved_tensors
        by_frames, by_taps = frames.new_empty(frames.shape), taps.new_empty(taps.shape)
        if len(taps) < ctx.stride:
            by_frames.zero_()  # some frames are left out
        into = zip(_products(by_frames, by_taps, ctx.stride), _products(frames, taps, ctx.stride), strict=True)
        for number, ((by_used, by_weight), (used, weight)) in enumerate(into):
            by_result = gradient[: len(used)]
            torch.mm(used.mT, by_result, out=by_weight)
            if number == 0:
                torch.mm(by_result, weight.mT, out=by_used)
            else:
                by_used.addmm_(by_result, weight.mT)
        return by_frames, by_taps, None


def _products(frames: torch.Tensor, taps: torch.Tensor, stride: int):
    """The factors of the convolution's products, as views: the blocks and their taps, then each later tap's."""
    kernel, channels, _ = taps.shape
    first = min(kernel, stride)
    blocks = frames.view(-1, stride * channels)
    yield blocks[:, : first * channels], taps[:first].flatten(0, 1)
    for tap in range(first, kernel):
        later, position = divmod(tap, stride)
        yield blocks[later:, position * channels : (position + 1) * channels], taps[tap]


class Music2VecConvLayer(Data2VecAudioConvLayer):
    """One convolution of the front end, LayerNorm and GELU, on a sequence `[R, C]` instead of a batch `[B, C, T]`."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        taps = self.conv.weight.permute(2, 1, 0).contiguous()  # [kernel, C_in, C_out]
        if self.in_conv_dim == 1:
            frames = F.pad(frames.squeeze(-1), (0, kernel - stride)).unfold(0, kernel, stride) @ taps.squeeze(1)
        else:
            if torch.is_autocast_enabled(frames.device.type):
                dtype = torch.get_autocast_dtype(frames.device.type)
                frames, taps = frames.to(dtype), taps.to(dtype)
            frames = _StridedConvolution.apply(frames, taps, stride)
        if self.conv.bias is not None:
            frames = frames + self.conv.bias
        return self.activation(self.layer_norm(frames))


class Music2VecFeatureEncoder(Data2VecAudioFeatureEncoder):
    """The convolutional front end: waveform `[B, N]` -> raw features `[B, C_conv, T]` (a view of `[B, T, C_conv]`)."""

    def __init__(self, config: Music2VecConfig):
        nn.Module.__init__(self)  # the parent's constructor would build transformers' layers first
        self.conv_layers = nn.ModuleList(Music2VecConvLayer(config, i) for i in range(config.num_feat_extract_layers))
        self.receptive_field, self.num_frames = config.receptive_field, config.num_frames
        self.hop = math.prod(config.conv_stride)
        self.gradient_checkpointing = False
        self._requires_grad = True

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        if input_values.ndim != 2 or input_values.shape[1] < self.receptive_field:
            raise ValueError(
                f"`input_values` has shape {tuple(input_values.shape)}. Give `(batch_size, num_samples)` with at "
                f"least {self.receptive_field} samples a row: a shorter clip does not fill one frame."
            )
        num_clips, num_samples = input_values.shape
        frames = F.pad(input_values, (0, -num_samples % self.hop)).reshape(-1, 1)
        if self.gradient_checkpointing and self._requires_grad and self.training:
            frames = frames.detach().requires_grad_()
        for conv_layer in self.conv_layers:
            frames = conv_layer(frames)
        frames = frames.unflatten(0, (num_clips, -1))[:, : self.num_frames(num_samples)]
        return frames.transpose(1, 2)


__all__ = ["Music2VecFeatureEncoder"]
