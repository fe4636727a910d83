"""Frozen model, any length of audio -> layer-wise embeddings (stage 12).

A track is normalised as a whole, cut into windows of the model's limit, and windows of equal length share a batch:
there is no padding anywhere, so a track's embedding does not depend on what it was batched with.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoFeatureExtractor

from music2vec_hf.configuration_music2vec import Music2VecConfig
from music2vec_hf.data.audio import SAMPLING_RATE, read_audio
from music2vec_hf.data.hub_files import explain_hub_errors
from music2vec_hf.feature_extraction_music2vec import Music2VecFeatureExtractor
from music2vec_hf.modeling_music2vec import Music2VecModel
from music2vec_hf.precision import autocast

CONV = "conv"
_BATCH_SECONDS = 60.0
_READ_AHEAD_SECONDS = 300.0


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
        feature_extractor = AutoFeatureExtractor.from_pretrained(model)
        if not isinstance(feature_extractor, Music2VecFeatureExtractor):  # a plain data2vec-audio repository
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


@torch.no_grad()
def layer_frames(model: Music2VecModel, input_values: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Frames of every layer, in order, for clips of equal length: one pass, one layer in memory at a time.

    Args:
        model ([`Music2VecModel`]): in eval mode.
        input_values (`torch.Tensor` of shape `(B, N)`): normalised, without padding.

    Yields:
        `(name, frames [B, T, C])`: as `hidden_states` of the model's own forward, with `conv` before them.
    """
    frames = model.feature_extractor(input_values).transpose(1, 2)
    yield CONV, frames
    hidden_states, _ = model.feature_projection(frames)
    encoder = model.encoder
    hidden_states = encoder.layer_norm(hidden_states + encoder.pos_conv_embed(hidden_states))
    yield "0", hidden_states
    for index, layer in enumerate(encoder.layers, start=1):
        hidden_states = layer(hidden_states)
        yield str(index), hidden_states


def embed_tracks(
    model: Music2VecModel,
    feature_extractor: Music2VecFeatureExtractor,
    tracks: Iterable[np.ndarray],
    layers: Sequence[str] | None = None,
    pool: str = "mean",
    window_seconds: float = 30.0,
    precision: str = "fp32",
) -> Iterator[dict[str, np.ndarray]]:
    """Embed tracks in order.

    Args:
        model, feature_extractor: from [`load_model`].
        tracks (iterable of `np.ndarray` of shape `(num_samples,)`): mono at 16 kHz.
        layers (`Sequence[str]`, *optional*): names as in [`layer_names`]; all by default.
        pool (`str`): `"mean"` over all frames of the track (so a short last window weighs by its length) or `"none"`.
        window_seconds (`float`): longest piece that the model hears at once. A rest too short for one frame is left
            out.
        precision (`str`): of matrix products: `fp32`, `bf16`, or `auto` (bf16 where the hardware multiplies it).

    Yields:
        `dict`: layer -> `[C]`, or `[T, C]` without pooling; float32.

    Raises:
        ValueError: for an unknown layer, pooling or precision, or audio that the extractor refuses.
    """
    chosen = check_layers(model, layers)
    if pool not in ("mean", "none"):
        raise ValueError(f"`pool` is {pool!r}. Use 'mean' or 'none'.")
    shortest = model.config.receptive_field
    window = round(window_seconds * SAMPLING_RATE)
    if window < shortest:
        raise ValueError(
            f"`window_seconds` is {window_seconds}. Use at least {shortest / SAMPLING_RATE} s, one frame."
        )
    waiting: list[np.ndarray] = []
    for track in tracks:
        waiting.append(feature_extractor(track, sampling_rate=SAMPLING_RATE)["input_values"][0])
        if sum(map(len, waiting)) >= _READ_AHEAD_SECONDS * SAMPLING_RATE:
            yield from _embed_together(model, waiting, chosen, pool, window, precision)
            waiting = []
    yield from _embed_together(model, waiting, chosen, pool, window, precision)


def _embed_together(model, tracks, layers, pool, window, precision):
    """Embed a few tracks: all their windows, in batches of equal length."""
    shortest = model.config.receptive_field
    by_length = defaultdict(list)
    for index, samples in enumerate(tracks):
        for start in range(0, len(samples), window):
            piece = samples[start : start + window]
            if len(piece) >= shortest:
                by_length[len(piece)].append((index, start, piece))
    device = next(model.parameters()).device
    parts = [{layer: {} for layer in layers} for _ in tracks]
    for length, pieces in by_length.items():
        rows = max(1, int(_BATCH_SECONDS * SAMPLING_RATE / length))
        for first in range(0, len(pieces), rows):
            batch = pieces[first : first + rows]
            input_values = torch.from_numpy(np.stack([piece for _, _, piece in batch])).to(device)
            with autocast(precision, device.type):
                for layer, frames in layer_frames(model, input_values):
                    if layer in layers:
                        frames = frames.float()
                        kept = (frames.sum(1, keepdim=True) if pool == "mean" else frames).cpu().numpy()
                        for (index, start, _), values in zip(batch, kept, strict=True):
                            parts[index][layer][start] = (values, frames.shape[1])
    for track in parts:
        yield {layer: _join(pieces, pool) for layer, pieces in track.items()}


def _join(pieces, pool):
    values = [pieces[start] for start in sorted(pieces)]
    joined = np.concatenate([frames for frames, _ in values])
    return joined if pool == "none" else (joined.sum(0) / sum(count for _, count in values)).astype(np.float32)


def check_layers(model: Music2VecModel, layers: Sequence[str] | None) -> list[str]:
    """The layers that were asked for, all for `None`; a ValueError names those that the model does not have."""
    known = layer_names(model)
    chosen = known if layers is None else [str(layer) for layer in layers]
    unknown = [layer for layer in chosen if layer not in known]
    if unknown:
        raise ValueError(f"There is no layer {', '.join(unknown)}. This model has {', '.join(known)}.")
    return chosen


def embed_files(
    model: Music2VecModel,
    feature_extractor: Music2VecFeatureExtractor,
    paths: Sequence[str | Path],
    window_seconds: float = 30.0,
    precision: str = "fp32",
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Mean-pooled embeddings of audio files, all layers.

    Returns:
        `dict`: layer -> `[num_files, C]` float32, rows as `paths`.

    Raises:
        AudioError: for a file that cannot be read, naming it.
    """
    tracks = (read_audio(path) for path in tqdm(paths, desc="embedding", unit="file", disable=not progress))
    rows = list(embed_tracks(model, feature_extractor, tracks, window_seconds=window_seconds, precision=precision))
    return {layer: np.stack([row[layer] for row in rows]) for layer in layer_names(model)}


def embed(
    model: str | Path | Music2VecModel,
    audio,
    layers: str | int | Sequence[str | int] = "all",
    pool: str = "mean",
    window_seconds: float = 30.0,
    sampling_rate: int | None = None,
    feature_extractor: Music2VecFeatureExtractor | None = None,
    precision: str = "fp32",
) -> np.ndarray | list[np.ndarray]:
    """Embeddings of one track or of several.

    Args:
        model: folder, Hub id, or a loaded [`Music2VecModel`].
        audio: a path, an array `(num_samples,)`, or a list of either.
        layers: `"all"` (0 to the last), one layer, or several; `"conv"` is the raw front end, whose width may differ
            from the others', so it is asked for alone.
        pool (`str`): `"mean"` over the track, or `"none"` for every frame (50 a second within a window).
        window_seconds (`float`): longest piece that the model hears at once.
        sampling_rate (`int`, *optional*): of arrays, in Hz; `None` means 16 kHz. Files know theirs.
        feature_extractor: for a loaded model; by default one with the reference's normalisation.
        precision (`str`): of matrix products: `fp32`, `bf16`, or `auto` (bf16 where the hardware multiplies it).

    Returns:
        `np.ndarray`, float32: `[C]` for one layer, `[L, C]` for several, with `T` before `C` where `pool` is
        `"none"`; with one more dimension in front for a list of tracks (a list where their lengths differ).

    Raises:
        ValueError: for an unknown layer, or `conv` among others; AudioError for a file that cannot be read.
    """
    if isinstance(model, (str, Path)):
        model, feature_extractor = load_model(model)
    feature_extractor = feature_extractor or Music2VecFeatureExtractor(receptive_field=model.config.receptive_field)
    one_track = isinstance(audio, (str, Path)) or hasattr(audio, "shape")
    one_layer = isinstance(layers, (str, int)) and layers != "all"
    if layers == "all":
        layers = [name for name in layer_names(model) if name != CONV]
    names = [str(layer) for layer in ([layers] if one_layer else layers)]
    if CONV in names and len(names) > 1:
        raise ValueError("`conv` was asked for beside other layers, but its width differs. Ask for it alone.")
    tracks = (_load_track(item, sampling_rate, feature_extractor) for item in ([audio] if one_track else audio))
    results = [
        np.stack([row[name] for name in names]) if not one_layer else row[names[0]]
        for row in embed_tracks(model, feature_extractor, tracks, names, pool, window_seconds, precision)
    ]
    if one_track:
        return results[0]
    return np.stack(results) if len({result.shape for result in results}) == 1 else results


def _load_track(item, sampling_rate, feature_extractor) -> np.ndarray:
    if isinstance(item, (str, Path)):
        return read_audio(item)
    return feature_extractor.to_samples(item, sampling_rate or SAMPLING_RATE)


__all__ = ["embed", "embed_files", "embed_tracks", "layer_frames", "layer_names", "load_model", "model_hash"]
