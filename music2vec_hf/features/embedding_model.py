"""The encoder that makes embeddings: loading it, its layers by name, and its frames layer by layer in one pass."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.hub import explain_hub_errors
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.encoder_music2vec import Music2VecModel
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor

CONV = "conv"
DEVICES = ("auto", "cpu", "cuda", "mps")

# What the front end computes at once: its first layers make 6.5 MB of a second, which a CPU had better keep in its
# cache.
_FRONT_END_SECONDS = {"cpu": 5.0, "mps": 60.0, "cuda": 60.0}


def load_model(
    model: str | Path, random_init: bool = False, seed: int = 0
) -> tuple[Music2VecModel, Music2VecFeatureExtractor]:
    """Load an encoder and its feature extractor.

    Args:
        model (`str` or `Path`): folder or Hub id of a Music2Vec or data2vec-audio model.
        random_init (`bool`): keep the shape but draw the weights anew: the baseline of every probe.
        seed (`int`): of the random weights.

    Returns:
        `tuple`: model in float32 and eval mode, extractor.

    Raises:
        ValueError: if the name is no folder and the Hub does not give it.
    """
    with explain_hub_errors(model, "a model"):
        # Ours by name, also for a plain data2vec-audio repository: an Auto class might ask to run a repository's code.
        feature_extractor = Music2VecFeatureExtractor.from_pretrained(model)
        if random_init:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                encoder = Music2VecModel(Music2VecConfig.from_pretrained(model))
        else:
            encoder = Music2VecModel.from_pretrained(model, dtype=torch.float32)
    return encoder.eval(), feature_extractor


def model_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights: equal models have equal hashes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def layer_names(model: Music2VecModel) -> list[str]:
    """`["conv", "0", "1", ..., "L"]`: raw front end, encoder input, and the transformer layers."""
    return [CONV, *(str(index) for index in range(model.config.num_hidden_layers + 1))]


def choose_device(device: str) -> torch.device:
    """`cpu`, `cuda`, `mps`, or `auto`: the first of `cuda`, `mps`, `cpu` that is there. Raises ValueError if the one
    that is named is not."""
    if device not in DEVICES:
        raise ValueError(f"`device` is {device!r}. Use one of {', '.join(DEVICES)}.")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name in there if there[name])
    if not there[device]:
        raise ValueError(f"`device` is {device!r}, but torch finds none here. Use 'cpu'.")
    return torch.device(device)


def compile_model(model: Music2VecModel, dynamic: bool = True) -> Music2VecModel:
    """Let torch.compile speed up the front end and the layers, in place; names and weights stay. `dynamic` is for
    windows that end a track, which have lengths of their own."""
    for module in (model.feature_extractor, model.encoder.pos_conv_embed, *model.encoder.layers):
        module.compile(dynamic=dynamic)
    return model


@contextlib.contextmanager
def explain_compile_errors() -> Iterator[None]:
    """Say in one sentence that torch.compile does not work on this machine."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"torch.compile fails here ({reason}). Install a C++ compiler, or do without.") from error


def check_layers(model: Music2VecModel, layers: Sequence[str] | None) -> list[str]:
    """The layers that were asked for, all for `None`; a ValueError names those that the model does not have."""
    known = layer_names(model)
    chosen = known if layers is None else [str(layer) for layer in layers]
    unknown = [layer for layer in chosen if layer not in known]
    if unknown:
        raise ValueError(f"There is no layer {', '.join(unknown)}. This model has {', '.join(known)}.")
    return chosen


@torch.no_grad()
def layer_frames(model: Music2VecModel, input_values: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Frames of every layer, in order, for clips of equal length: one pass, one layer in memory at a time.

    Args:
        model ([`Music2VecModel`]): in eval mode.
        input_values (`torch.Tensor` of shape `(B, N)`): normalised, without padding.

    Yields:
        `(name, frames [B, T, C])`: as `hidden_states` of the model's own forward, with `conv` before them.
    """
    frames = _front_end(model, input_values)
    yield CONV, frames
    hidden_states, _ = model.feature_projection(frames)
    encoder = model.encoder
    hidden_states = encoder.layer_norm(hidden_states + encoder.pos_conv_embed(hidden_states))
    yield "0", hidden_states
    for index, layer in enumerate(encoder.layers, start=1):
        hidden_states = layer(hidden_states)
        yield str(index), hidden_states


def _front_end(model: Music2VecModel, input_values: torch.Tensor) -> torch.Tensor:
    """Raw features `[B, T, C]`, a few seconds at a time: a frame depends on nothing but its own samples."""
    stride, num_frames = model.config.inputs_to_logits_ratio, int(model.config.num_frames(input_values.shape[1]))
    seconds = _FRONT_END_SECONDS.get(input_values.device.type, 60.0) / len(input_values)
    step = max(1, round(seconds * SAMPLING_RATE / stride))
    starts = range(0, max(1, num_frames), step)
    pieces = [
        input_values[:, start * stride : (start + step - 1) * stride + model.config.receptive_field]
        for start in starts
    ]
    features = [model.feature_extractor(piece).transpose(1, 2) for piece in pieces]
    return torch.cat(features, dim=1) if len(features) > 1 else features[0]


__all__ = [
    "CONV",
    "DEVICES",
    "check_layers",
    "choose_device",
    "compile_model",
    "explain_compile_errors",
    "layer_frames",
    "layer_names",
    "load_model",
    "model_hash",
]
