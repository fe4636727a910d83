"""Frozen model, any length of audio -> layer-wise embeddings (stage 12).

A track is normalised as a whole, cut into windows of the model's limit, and windows of equal length share a batch:
there is no padding anywhere, so a track's embedding does not depend on what it was batched with.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from tqdm import tqdm

from music2vec_hf.audio.containers import encoded_audio, name_audio_column
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.precision import autocast
from music2vec_hf.features.embedding_batches import batches_of_one_length, decoding_threads, device_of
from music2vec_hf.features.embedding_inputs import is_one_file, list_inputs
from music2vec_hf.features.embedding_model import (
    CONV,
    check_layers,
    choose_device,
    compile_model,
    explain_compile_errors,
    layer_frames,
    layer_names,
    load_model,
)
from music2vec_hf.features.embedding_windows import LoadedTrack, Window, WindowPlan, load_tracks
from music2vec_hf.model.encoder_music2vec import Music2VecModel
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor

POOLS = ("mean", "none")

# Audio among which windows of equal length are looked for; frames that nobody pools are many, so less of it.
_READ_AHEAD_SECONDS = {"mean": 300.0, "none": 60.0}


def embed_windows(
    model: Music2VecModel,
    tracks: Iterable[LoadedTrack],
    layers: Sequence[str],
    pool: str,
    plan: WindowPlan,
    precision: str = "fp32",
) -> Iterator[tuple[LoadedTrack, Window, dict[str, np.ndarray]]]:
    """Embed tracks window by window, in order; of any track only a few windows are in memory.

    Args:
        model ([`Music2VecModel`]): in eval mode.
        tracks (iterable of [`LoadedTrack`]): read as they are needed.
        layers (`Sequence[str]`): names as in [`layer_names`].
        pool (`str`): `"mean"` or `"none"`.
        plan ([`WindowPlan`]): how tracks are cut.
        precision (`str`): of matrix products.

    Yields:
        track, window, and layer -> float32: `[C]`, the mean over the frames that the window gives, or these, `[T, C]`.
    Raises:
        ValueError: for an unknown pooling or precision, or where torch.compile fails.
    """
    if pool not in POOLS:
        raise ValueError(f"`pool` is {pool!r}. Use 'mean' or 'none'.")
    waiting: list[tuple[LoadedTrack, Window, np.ndarray]] = []
    num_samples = 0
    for track in tracks:
        for window, samples in track.windows(plan):
            waiting.append((track, window, samples))
            num_samples += len(samples)
            if num_samples >= _READ_AHEAD_SECONDS[pool] * SAMPLING_RATE:
                yield from _embed_together(model, waiting, layers, pool, precision)
                waiting, num_samples = [], 0
    yield from _embed_together(model, waiting, layers, pool, precision)


def _embed_together(model, waiting, layers, pool, precision):
    """Embed some windows, in batches of equal length."""
    device = device_of(model)
    values: list[dict[str, np.ndarray]] = [{} for _ in waiting]
    for batch in batches_of_one_length([len(samples) for _, _, samples in waiting], SAMPLING_RATE, device):
        input_values = torch.from_numpy(np.stack([waiting[place][2] for place in batch])).to(device)
        windows = [waiting[place][1] for place in batch]
        with autocast(precision, device.type), explain_compile_errors():
            kept = {
                layer: _keep(frames.float(), windows, pool)
                for layer, frames in layer_frames(model, input_values)
                if layer in layers
            }
        # Only now: a GPU that is asked for results after every layer waits each time.
        for layer, frames in kept.items():
            for place, window, row in zip(batch, windows, frames.cpu().numpy(), strict=True):
                given = slice(window.skip, window.skip + window.num_frames)
                values[place][layer] = row if pool == "mean" else row[given]
    for (track, window, _), layer_values in zip(waiting, values, strict=True):
        yield track, window, layer_values


def _keep(frames: torch.Tensor, windows: Sequence[Window], pool: str) -> torch.Tensor:
    """Frames `[B, T, C]`, or the mean of those that each window gives, `[B, C]`."""
    if pool == "none":
        return frames
    given = [row[window.skip : window.skip + window.num_frames] for row, window in zip(frames, windows, strict=True)]
    return torch.stack([row.mean(0) for row in given])


class MeanPool:
    """The mean over all frames of a track, of the means of its windows: each weighs by its frames."""

    def __init__(self):
        self._sums: dict[str, np.ndarray] = {}
        self._num_frames = 0

    def add(self, window: Window, values: Mapping[str, np.ndarray]) -> None:
        """Take in the means of a window, layer -> `[C]`."""
        self._num_frames += window.num_frames
        for layer, mean in values.items():
            self._sums[layer] = self._sums.get(layer, 0.0) + mean.astype(np.float64) * window.num_frames

    def result(self) -> dict[str, np.ndarray]:
        """Layer -> `[C]`, float32."""
        return {layer: (total / self._num_frames).astype(np.float32) for layer, total in self._sums.items()}


def embed_tracks(
    model: Music2VecModel,
    feature_extractor: Music2VecFeatureExtractor,
    tracks: Iterable,
    layers: Sequence[str] | None = None,
    pool: str = "mean",
    window_seconds: float = 30.0,
    precision: str = "fp32",
    overlap_seconds: float = 0.0,
) -> Iterator[dict[str, np.ndarray]]:
    """Embed tracks in order.

    Args:
        model, feature_extractor: from [`load_model`].
        tracks (iterable): arrays `(num_samples,)`, mono at 16 kHz, or paths or bytes of audio files.
        layers (`Sequence[str]`, *optional*): names as in [`layer_names`]; all by default.
        pool (`str`): `"mean"` over all frames of the track (so a short last window weighs by its length) or `"none"`.
        window_seconds (`float`): longest piece that the model hears at once. A rest too short for one frame is left
            out.
        precision (`str`): of matrix products: `fp32`, `bf16`, or `auto` (bf16 where the hardware multiplies it).
        overlap_seconds (`float`): what a window shares with the next one; see [`WindowPlan`].

    Yields:
        `dict`: layer -> `[C]`, or `[T, C]` without pooling; float32.

    Raises:
        ValueError: for an unknown layer, pooling or precision, or audio that cannot be read or the extractor refuses.
    """
    chosen = check_layers(model, layers)
    plan = WindowPlan.from_seconds(model.config, window_seconds, overlap_seconds)
    loaded = load_tracks(tracks, feature_extractor, decoding_threads(model))
    for _, values in _embed_loaded(model, loaded, chosen, pool, plan, precision):
        yield values


def _embed_loaded(model, tracks, layers, pool, plan, precision) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Of every track the times of its frames, and its layers."""
    windows = embed_windows(model, tracks, layers, pool, plan, precision)
    for _, group in groupby(windows, key=lambda found: found[0]):
        times, frames, mean = [], defaultdict(list), MeanPool()
        for _, window, values in group:
            times.append(window.frame_times(model.config))
            if pool == "mean":
                mean.add(window, values)
            for layer, value in values.items() if pool == "none" else ():
                frames[layer].append(value)
        joined = {layer: np.concatenate(parts) for layer, parts in frames.items()}
        yield np.concatenate(times), mean.result() if pool == "mean" else joined


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
    tracks = tqdm(paths, desc="embedding", unit="file", disable=not progress)
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
    overlap_seconds: float = 0.0,
    device: str | None = None,
    compile: bool = False,
    return_times: bool = False,
) -> np.ndarray | list[np.ndarray] | tuple:
    """Embeddings of one track or of several.

    Args:
        model: folder, Hub id, or a loaded [`Music2VecModel`].
        audio: one track: the path of an audio file, its bytes, an array `(num_samples,)`, or a row of a data set,
            `{"array", "sampling_rate"}` or `{"bytes", "path"}`. Or several: a list of these, a `datasets.Dataset` with
            a column of audio, a folder, a prepared corpus, Parquet files, or the Hub id of a data set.
        layers: `"all"` (0 to the last), one layer, or several; `"conv"` is the raw front end, whose width may differ
            from the others', so it is asked for alone.
        pool (`str`): `"mean"` over the track, or `"none"` for every frame (50 a second within a window).
        window_seconds (`float`): longest piece that the model hears at once.
        sampling_rate (`int`, *optional*): of arrays, in Hz; `None` means 16 kHz. Files and rows know theirs.
        feature_extractor: for a loaded model; by default one with the reference's normalisation.
        precision (`str`): of matrix products: `fp32`, `bf16`, or `auto` (bf16 where the hardware multiplies it).
        overlap_seconds (`float`): what a window shares with the next one, at most half; see [`WindowPlan`].
        device (`str`, *optional*): `cpu`, `cuda`, `mps` or `auto`, to which the model is moved; by default it stays.
        compile (`bool`): let torch.compile speed up the model: worth its minute for hours of audio.
        return_times (`bool`): give the time of every frame, too.

    Returns:
        `np.ndarray`, float32: `[C]` for one layer, `[L, C]` for several, with `T` before `C` where `pool` is
        `"none"`; with one more dimension in front for several tracks (a list where their lengths differ).
        With `return_times` a tuple of this and the centre of each frame in seconds, `[T]`, or a list of these.

    Raises:
        ValueError: for an unknown layer, or `conv` among others; AudioError for a file that cannot be read.
    """
    if isinstance(model, (str, Path)):
        model, feature_extractor = load_model(model)
    if device is not None:
        model = model.to(choose_device(device))
    if compile:
        compile_model(model)
    feature_extractor = feature_extractor or Music2VecFeatureExtractor(receptive_field=model.config.receptive_field)
    one_layer = isinstance(layers, (str, int)) and layers != "all"
    if layers == "all":
        layers = [name for name in layer_names(model) if name != CONV]
    names = [str(layer) for layer in ([layers] if one_layer else layers)]
    if CONV in names and len(names) > 1:
        raise ValueError("`conv` was asked for beside other layers, but its width differs. Ask for it alone.")
    items, one_track = _items(audio)
    sources = (_source(item, sampling_rate, feature_extractor) for item in items)
    plan = WindowPlan.from_seconds(model.config, window_seconds, overlap_seconds)
    tracks = load_tracks(sources, feature_extractor, decoding_threads(model))
    results, times = [], []
    for track_times, row in _embed_loaded(model, tracks, check_layers(model, names), pool, plan, precision):
        results.append(row[names[0]] if one_layer else np.stack([row[name] for name in names]))
        times.append(track_times)
    if one_track:
        return (results[0], times[0]) if return_times else results[0]
    found = np.stack(results) if len({result.shape for result in results}) == 1 else results
    return (found, times) if return_times else found


def _items(audio) -> tuple[Iterable, bool]:
    """The tracks in what was handed to [`embed`], and whether it is a single one."""
    if isinstance(audio, (Dataset, IterableDataset)):
        return (row["audio"] for row in name_audio_column("The data set", audio)), False
    if isinstance(audio, (str, Path)) and not is_one_file(audio):
        listing = list_inputs([audio])
        if listing.rejects:
            raise ValueError(f"{audio}: {listing.rejects[0][1]}")
        return [track.source for track in listing.tracks], False
    if isinstance(audio, (str, Path, bytes, Mapping)) or hasattr(audio, "shape"):
        return [audio], True
    return audio, False


def _source(item, sampling_rate, feature_extractor):
    """What [`LoadedTrack`] takes."""
    if isinstance(item, Mapping):
        if "array" not in item:
            return encoded_audio(item)
        item, sampling_rate = item["array"], item["sampling_rate"]
    if isinstance(item, (str, Path, bytes)) or hasattr(item, "read"):
        return item
    return feature_extractor.to_samples(item, sampling_rate or SAMPLING_RATE)


__all__ = ["MeanPool", "embed", "embed_files", "embed_tracks", "embed_windows"]
