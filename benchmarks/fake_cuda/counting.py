"""The GPU that is not there, and what a program does to it: [`Gpu`], inside of a process of [`fake_cuda.environment`].

What torch.compile makes is counted by its own scheduler: each kernel's inputs and outputs. Compiled functions are
traced as they are called, so breaks of the graph, which make more kernels, are not seen.
"""

import copy
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import nn
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import config as inductor
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.replace_random import replace_random_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.stateless import _reparametrize_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from music2vec_hf.model import frontend_music2vec

MASKED_SHARE = 0.39  # of the frames, where tensors have no data to count them in
_FREE = ("detach", "empty", "_unsafe_view", "_local_scalar", "prim", "lift_fresh")  # operations that move nothing


@dataclass
class Operation:
    """One kernel, or call of a library: its name, bytes read and written, devices and types of its tensors."""

    name: str
    bytes: int
    devices: set[str]
    dtypes: set[torch.dtype]


class _Asked(TorchFunctionMode):
    """Answers what would need data, and counts the answers of a GPU."""

    def __init__(self, gpu: "Gpu"):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Replace what would look at values, and do everything else."""
        kwargs, tensor = kwargs or {}, torch.Tensor
        if func in (tensor.nonzero, torch.nonzero):
            return self._nonzero(args[0], kwargs.get("as_tuple", False))
        if func is tensor.__getitem__ and getattr(args[1], "dtype", None) == torch.bool:
            return args[0][self._nonzero(args[1], True)]
        if func is tensor.pin_memory:
            return args[0]
        if func in (tensor.item, tensor.__bool__, tensor.__float__, tensor.__int__, tensor.tolist):
            return self.gpu.answer(func.__name__, args[0])
        if func is tensor.numpy:
            return np.zeros(args[0].shape, str(args[0].dtype).removeprefix("torch."))
        if func is tensor.cpu and args[0].device.type == "cuda":
            self.gpu.waits["cpu"] += 1
        return func(*args, **kwargs)

    def _nonzero(self, mask: torch.Tensor, as_tuple: bool):
        if mask.device.type == "cuda":
            self.gpu.waits["nonzero"] += 1
        count = int(MASKED_SHARE * mask.numel())
        found = torch.zeros(count, mask.ndim, dtype=torch.long, device=mask.device)
        return found.unbind(1) if as_tuple else found


class _Logged(TorchDispatchMode):
    def __init__(self, gpu: "Gpu"):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Do it, and note it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = str(func).removeprefix("aten.")
        if self.gpu.muted or func.is_view or any(part in name for part in _FREE):
            return result
        inputs = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        outputs = [value for value in pytree.tree_leaves(result) if isinstance(value, torch.Tensor)]
        devices = {tensor.device.type for tensor in (*inputs, *outputs)}
        copied = name.startswith(("_to_copy", "copy_")) and devices == {"cpu", "cuda"}
        to_gpu = copied and inputs[-1].device.type == "cpu" and inputs[-1].numel() > 1
        if to_gpu and not (kwargs.get("non_blocking") or True in args[2:]):
            self.gpu.waits["copy from pageable memory"] += 1
        if copied or devices != {"cpu"}:
            written = [] if name.endswith(".out") else outputs  # an `out` is among the inputs
            size = sum(map(_touched, (*inputs, *written)))
            several = [tensor for tensor in (*inputs, *outputs) if tensor.numel() > 1]
            mixed = {"cuda"} if copied else {tensor.device.type for tensor in several} or devices
            self.gpu.operations.append(Operation(name, size, mixed, {tensor.dtype for tensor in several}))
        return result


def _touched(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's different elements."""
    count = tensor.numel()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride == 0 and size > 1:
            count //= size
    return count * tensor.element_size()


class Gpu:
    """A context in which modules that are moved to `cuda` have weights without data, and all is counted.

    Attributes:
        operations (`list[Operation]`): those on the GPU.
        waits (`Counter`): of the program for the GPU, by their cause.
    """

    def __init__(self):
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.operations, self.waits, self.muted = [], Counter(), False
        self._stack = None

    def __enter__(self) -> "Gpu":
        encoder = frontend_music2vec.Music2VecFeatureEncoder
        with ExitStack() as stack:
            move, gpu = nn.Module.to, self
            stack.enter_context(patch.object(nn.Module, "to", lambda *to, **how: gpu._move(move, *to, **how)))
            stack.enter_context(patch.object(torch, "compile", self._compile))
            stack.enter_context(patch.object(FakeTensor, "tolist", lambda tensor: gpu.answer("tolist", tensor)))
            # Copies of tensors belong to the same GPU; copied weak references would be freed twice.
            share = patch.object(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, create=True)
            stack.enter_context(share)
            # Tensors without data are no plain ones; the GPU's will be.
            stack.enter_context(patch.object(frontend_music2vec, "is_plain_call", lambda values: True))
            stack.enter_context(patch.object(encoder, "_is_as_built", lambda module: True))
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()

    def count(self):
        """A context in which tensors have no data; what went before is forgotten."""
        self.operations.clear()
        self.waits.clear()
        stack = ExitStack()
        for context in (self.mode, _Logged(self), _Asked(self)):
            stack.enter_context(context)
        return stack

    def answer(self, what: str, tensor: torch.Tensor):
        """A value, ones, for which the program waits if it is the GPU's."""
        if tensor.device.type == "cuda" and not self.muted:
            self.waits[what] += 1
        ones = np.ones(tensor.shape).tolist() if what == "tolist" else 1
        return {"__bool__": True, "__float__": 1.0, "item": 1.0}.get(what, ones)

    def _move(self, move, module, *args, **kwargs):
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is None or device.type != "cuda":
            return move(module, *args, **kwargs)
        with self.mode:
            for part in module.modules():
                for name, weight in part._parameters.items():
                    if weight is not None and weight.device.type != "cuda":
                        empty = torch.empty(weight.shape, dtype=weight.dtype, device="cuda")
                        part._parameters[name] = nn.Parameter(empty, weight.requires_grad)
                for name, values in part._buffers.items():
                    if values is not None and values.device.type != "cuda":
                        part._buffers[name] = torch.empty(values.shape, dtype=values.dtype, device="cuda")
        return module

    def _compile(self, function, options: dict | None = None, **_):
        """In place of `torch.compile`: the function traced, and its kernels counted each time it is called."""
        traced, owner = {}, getattr(function, "__self__", None)
        name = type(owner).__name__ if owner is not None else function.__name__

        def call(*args, **kwargs):
            flat, spec = pytree.tree_flatten((args, kwargs))
            modules = [value for value in (*flat, owner) if isinstance(value, nn.Module)]
            weights = [dict(module.named_parameters()) for module in modules]
            given = [weight for named in weights for weight in named.values()]
            number = len(given)
            given += [value for value in flat if isinstance(value, torch.Tensor)]
            state = torch.is_grad_enabled(), torch.is_autocast_enabled("cuda"), *(each.training for each in modules)
            key = (*((value.shape, value.dtype, value.requires_grad) for value in given), state)

            def pure(*values):
                tensors, start = iter(values[number:]), 0
                again = [next(tensors) if isinstance(value, torch.Tensor) else value for value in flat]
                args, kwargs = pytree.tree_unflatten(again, spec)
                with ExitStack() as stack:
                    for module, named in zip(modules, weights, strict=True):
                        ours = dict(zip(named, values[start : start + len(named)], strict=True))
                        stack.enter_context(_reparametrize_module(module, ours))
                        start += len(named)
                    return function(*args, **kwargs)

            if key not in traced:
                before, self.muted = self.muted, True
                traced[key] = aot_function(
                    pure,
                    fw_compiler=self._compiler(f"{name}, forward", False, options),
                    bw_compiler=self._compiler(f"{name}, backward", True, options),
                    partition_fn=self._partition,
                    decompositions=select_decomp_table(),
                )
                traced[key](*given)
                self.muted = before
            return traced[key](*given)

        return call

    def _partition(self, graph, inputs, **settings):
        with V.set_fake_mode(self.mode):
            replace_random_passes(graph)
        return min_cut_rematerialization_partition(graph, inputs, compiler="inductor", **settings)

    def _compiler(self, name: str, backward: bool, options: dict | None):
        def compile_graph(graph, inputs):
            kernels = self._kernels(graph, inputs, backward, options)

            def run(values):
                if not self.muted:
                    for size in kernels:
                        self.operations.append(Operation(name, size, {"cuda"}, set()))
                before, self.muted = self.muted, True
                try:
                    return graph(*values)
                finally:
                    self.muted = before

            run._boxed_call = True
            return run

        return compile_graph

    def _kernels(self, graph, inputs, backward: bool, options: dict | None) -> list[int]:
        """Bytes of the kernels that torch.compile makes of a graph."""
        lowering = GraphLowering(copy.deepcopy(graph), example_inputs=inputs, is_backward=backward)
        handlers = V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()), V.set_fake_mode(self.mode)
        with ExitStack() as stack:
            for handler in handlers:
                stack.enter_context(handler)
            stack.enter_context(inductor.patch(options or {}))
            lowering.run(*inputs)
            lowering.init_wrapper_code()
            lowering._update_scheduler()
            sizes = [node.get_read_write_buffers_sizes() for node in lowering.scheduler.nodes]
        return [size for size in sizes if size]


__all__ = ["Gpu", "Operation"]
