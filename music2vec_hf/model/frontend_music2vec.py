"""The convolutional front end: transformers' layers, computed channels-last, several times faster on a CPU and equal
to them within rounding.

The clips of a batch lie one behind the other as a single sequence, each padded to a whole number of frames. So every
layer is a few matrix products over views of it, and nothing is copied. The frames in which a clip would meet the next
one belong to no clip, and are cut off at the end.

This reads weights past their modules. So it is done only where nobody can tell: on layers as they were built, without
hooks, wrappers, parametrisations or weights elsewhere, and outside of tracing, export and function transforms.
Everywhere else the layers are called as transformers calls them.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as module_internals
from transformers.models.data2vec.modeling_data2vec_audio import Data2VecAudioConvLayer, Data2VecAudioFeatureEncoder

from .configuration_music2vec import Music2VecConfig

_MAX_ELEMENTS = 2**31
"""Kernels of some releases of torch count the elements of a tensor in 32 bits: larger batches are cut by rows."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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
        if torch.is_grad_enabled():  # gradients of gradients are asked for: by operations that have them
            needed = [tensor for tensor, asked in zip((frames, taps), ctx.needs_input_grad, strict=False) if asked]
            blocks = (used @ weight for used, weight in _products(frames, taps, ctx.stride))
            result = sum(F.pad(block, (0, 0, 0, len(gradient) - len(block))) for block in blocks)
            found = iter(torch.autograd.grad(result, needed, gradient, create_graph=True))
            return *(next(found) if asked else None for asked in ctx.needs_input_grad[:2]), None
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


def _fast_layer(layer: Data2VecAudioConvLayer, finish, frames: torch.Tensor) -> torch.Tensor:
    """What `layer` does, on a sequence `[R, C]` instead of a batch `[B, C, T]`; `finish` is [`_norm_and_activation`],
    maybe compiled."""
    conv, norm = layer.conv, layer.layer_norm
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    device = frames.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    taps = conv.weight.permute(2, 1, 0).contiguous()  # [kernel, C_in, C_out]
    if dtype is not None:
        frames, taps = frames.to(dtype), taps.to(dtype)
    if conv.in_channels == 1:
        taps = taps.squeeze(1)
        frames = F.pad(frames.squeeze(-1), (0, kernel - stride)).unfold(0, kernel, stride)
        if device == "cuda" and dtype is not None and kernel % 8:  # tensor cores take factors in eights
            frames, taps = F.pad(frames, (0, -kernel % 8)), F.pad(taps, (0, 0, 0, -kernel % 8))
        frames = frames @ taps
    else:
        frames = _StridedConvolution.apply(frames, taps, stride)
    if conv.bias is not None:
        frames = frames + conv.bias
    return finish(frames, norm.weight, norm.bias, norm.eps, layer.activation, dtype)


def _norm_and_activation(frames, weight, bias, eps: float, activation, dtype: torch.dtype | None) -> torch.Tensor:
    """What follows a convolution, on `[R, C]`. Compiled it is one pass over the frames: read and written in `dtype`,
    that of products, computed in float32."""
    frames = activation(F.layer_norm(frames, weight.shape, weight, bias, eps))
    return frames if dtype is None else frames.to(dtype)


class Music2VecFeatureEncoder(Data2VecAudioFeatureEncoder):
    """The convolutional front end: waveform `[B, N]` -> raw features `[B, C_conv, T]` (a view of `[B, T, C_conv]`)."""

    def __init__(self, config: Music2VecConfig):
        super().__init__(config)
        self.receptive_field = config.receptive_field
        self._built = self._structure()
        self._finish = _norm_and_activation

    def compile(self, dynamic: bool | None = None) -> None:
        """Let torch.compile speed up what follows the products, for batches of any size by one graph."""
        # Its backward pass, too, shall keep nothing but what it is given: the activation's slope is computed again.
        options = {"realize_reads_threshold": 12, "realize_opcount_threshold": 200}
        self._finish = torch.compile(_norm_and_activation, dynamic=True, options=options)

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        if input_values.ndim != 2 or input_values.shape[1] < self.receptive_field:
            raise ValueError(
                f"`input_values` has shape {tuple(input_values.shape)}. Give `(batch_size, num_samples)` with at "
                f"least {self.receptive_field} samples a row: a shorter clip does not fill one frame."
            )
        if input_values.device.type == "cuda" and self._parts(input_values) > 1:
            return torch.cat([self(rows) for rows in input_values.chunk(self._parts(input_values))])
        if not (is_plain_call(input_values) and self._is_as_built()):
            hidden_states = self._with_gradient(input_values[:, None])
            for conv_layer in self.conv_layers:
                hidden_states = conv_layer(hidden_states)
            return hidden_states

        num_clips, num_frames = input_values.shape
        hop = math.prod([layer.conv.stride[0] for layer in self.conv_layers])
        frames = self._with_gradient(F.pad(input_values, (0, -num_frames % hop)).reshape(-1, 1))
        for layer in self.conv_layers:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                frames = self._gradient_checkpointing_func(partial(_fast_layer, layer, self._finish), frames)
            else:
                frames = _fast_layer(layer, self._finish, frames)
            num_frames = (num_frames - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
        return frames.unflatten(0, (num_clips, -1))[:, :num_frames].transpose(1, 2)

    def _parts(self, input_values: torch.Tensor) -> int:
        """How many parts of a batch have a first layer, the largest, of fewer than `_MAX_ELEMENTS` each."""
        first = self.conv_layers[0].conv
        most_rows = _MAX_ELEMENTS * first.stride[0] // (input_values.shape[1] * first.out_channels) - 1
        return math.ceil(len(input_values) / max(1, most_rows))

    def _with_gradient(self, frames: torch.Tensor) -> torch.Tensor:
        """What enters the first layer: reentrant checkpointing trains only where its input requires a gradient."""
        if self.gradient_checkpointing and self.training and self._requires_grad and not frames.requires_grad:
            return frames.detach().requires_grad_()
        return frames

    def _structure(self) -> list:
        """What shows that a module was replaced or wrapped, or that a convolution was set otherwise."""
        settings = ("stride", "padding", "dilation", "groups")
        return [
            (type(module), *(getattr(module, name, None) for name in settings))
            for module in self.conv_layers.modules()
        ]

    @torch.compiler.assume_constant_result
    def _is_as_built(self) -> bool:
        """Whether nothing but the layers themselves takes part: no hook, no wrapper, no weight that is elsewhere."""
        if self._structure() != self._built or module_internals._has_any_global_hook():
            return False
        for module in self.conv_layers.modules():
            if "forward" in vars(module) or any(getattr(module, name) for name in _HOOKS):
                return False
            if not {type(parameter) for parameter in module._parameters.values()} <= {nn.Parameter, type(None)}:
                return False
        return True


def is_plain_call(input_values: torch.Tensor) -> bool:
    """Whether this is ordinary computation: no tracing, export, function transform or forward-mode gradient."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return False
    if torch.compiler.is_compiling():
        return True
    if torch._C._are_functorch_transforms_active() or type(input_values) is not torch.Tensor or input_values.is_meta:
        return False
    return forward_ad.unpack_dual(input_values).tangent is None


__all__ = ["Music2VecFeatureEncoder", "is_plain_call"]
