"""Embeddings of any audio, of any length, by any audio model: `embed`."""

import array
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from datasets import Dataset, IterableDataset

from music2vec_hf.audio.containers import PackedFile, name_audio_column
from music2vec_hf.audio.decoding import AUDIO_SUFFIXES, AudioSource
from music2vec_hf.audio.listing import Track, list_source
from music2vec_hf.audio.metadata import TABLE_SUFFIXES
from music2vec_hf.common.files import printable
from music2vec_hf.features.encoders import CONV, Encoder, borrowed_encoder, choose_device, compile_model, load_encoder
from music2vec_hf.features.windows import hear_tracks, window_rows

_ONE_TRACK = ("shape", "read", "get_all_samples")  # what arrays, files and decoders have
_FILE_BEGINS = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM")


@dataclass(frozen=True)
class HearingSettings:
    """How a model hears tracks.

    Args:
        precision (`str`): of matrix products: `fp32`, `bf16`, `fp16`, or `auto` (bf16 where that is faster). Weights
            are taken in float32, whatever they are stored in.
        overlap_seconds (`float`): what a window shares with the next one, at most half; see [`WindowPlan`].
        device (`str`, *optional*): `cpu`, `cuda`, `mps` or `auto`, to compute on; by default the model's.
        compile (`bool`): let torch.compile speed up the model: worth its minute for hours of audio.
        trust_remote_code (`bool`): run the Python code of a repository that brings its own model.
    """

    precision: str = "fp32"
    overlap_seconds: float = 0.0
    device: str | None = None
    compile: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class EmbedSettings(HearingSettings):
    """The settings of [`embed`] beside its own arguments: those of [`HearingSettings`], and two more.

    `feature_extractor` goes with a loaded model (for ours by default one with the reference's normalisation);
    `return_times` gives the time of every frame, too.
    """

    feature_extractor: object | None = None
    return_times: bool = False


def embed(
    model: str | Path | torch.nn.Module,
    audio,
    layers: str | int | Sequence[str | int] = "all",
    pool: str = "mean",
    window_seconds: float = 30.0,
    sampling_rate: int | None = None,
    **settings,
) -> np.ndarray | list[np.ndarray] | tuple:
    """Embeddings of one track or of several.

    Args:
        model: `"tiny"`, folder or Hub id of an audio model; or a loaded one, which keeps its type, device and mode.
        audio: one track: the path of an audio file, its bytes or an open binary file, an array, tensor or list of
            numbers (`(num_samples,)`, or with its channels on the shorter axis; uint8 has 128 as zero), a decoder of
            torchcodec, or a row of a data set, `{"array", "sampling_rate"}` or `{"bytes", "path"}`. Or several: a list
            of these, a `datasets.Dataset` with a column of audio, a folder, a prepared corpus, Parquet files, or the
            Hub id of a data set.
        layers: `"all"` (0 to the last), one layer, or several; `"conv"` is the raw front end, whose width may differ
            from the others', so it is asked for alone.
        pool (`str`): `"mean"` over the track, or `"none"` for every frame (50 a second within a window).
        window_seconds (`float`): longest piece that the model hears at once.
        sampling_rate (`int`, *optional*): of arrays, in Hz; `None` means the model's, 16 kHz for ours. Files and rows
            know theirs.
        settings: see [`EmbedSettings`].

    Returns:
        `np.ndarray`, float32: `[C]` for one layer, `[L, C]` for several, with `T` before `C` where `pool` is
        `"none"`; with one more dimension in front for several tracks (a list where their lengths differ).
        With `return_times` a tuple of this and the centre of each frame in seconds, `[T]`, or a list of these.

    Raises:
        ValueError: for an unknown layer, or `conv` among others, or something that is no audio; AudioError for a file
            that cannot be read.
    """
    settings = EmbedSettings(**settings)
    items, one_track = _tracks_of(audio)
    results, times = [], []
    with _open(model, settings) as encoder:
        one_layer = isinstance(layers, (str, int)) and layers != "all"
        if layers == "all":
            layers = [name for name in encoder.layers if name != CONV]
        names = encoder.check_layers([layers] if one_layer else layers)
        if CONV in names and len(names) > 1:
            raise ValueError("`conv` was asked for beside other layers, but its width differs. Ask for it alone.")
        sources = (_source(item, sampling_rate, encoder) for item in items)
        for track_times, row in _embed(encoder, sources, names, pool, window_seconds, settings):
            results.append(row[names[0]] if one_layer else np.stack([row[name] for name in names]))
            times.append(track_times)
    if one_track:
        return (results[0], times[0]) if settings.return_times else results[0]
    found = np.stack(results) if len({result.shape for result in results}) == 1 else results
    return (found, times) if settings.return_times else found


@contextmanager
def _open(model, settings: EmbedSettings) -> Iterator[Encoder]:
    """The encoder of a name or of a loaded model."""
    if isinstance(model, (str, os.PathLike)):
        loaded = load_encoder(model, trust_remote_code=settings.trust_remote_code)
        loaded.model.to(choose_device(settings.device or str(loaded.device)))
        model, settings = loaded.model, replace(settings, feature_extractor=loaded.extractor)
    with borrowed_encoder(model, settings.feature_extractor, settings.device) as encoder:
        if settings.compile:
            compile_model(encoder.model)
        yield encoder


def _embed(encoder, sources, layers, pool, window_seconds, settings):
    """Of every track the times of its frames, where they are asked for, and layer -> `[C]` or `[T, C]`."""
    plan = encoder.plan(window_seconds, settings.overlap_seconds, settings.return_times)
    for heard in hear_tracks(encoder, sources, plan, layers, pool, settings.precision):
        windows = list(heard.windows)
        times = np.concatenate([plan.frame_times(window) for window in windows]) if settings.return_times else None
        if pool == "none":
            yield times, {layer: np.concatenate([window.features[layer] for window in windows]) for layer in layers}
        else:
            row = window_rows(windows, plan.sampling_rate).merged(None)
            yield times, {layer: values[0] for layer, values in row.features.items()}


def _tracks_of(audio) -> tuple[Iterable, bool]:
    """The tracks in what was handed to [`embed`], and whether it is a single one."""
    if isinstance(audio, (Dataset, IterableDataset)):
        return (row["audio"] for row in name_audio_column("The data set", audio)), False
    if isinstance(audio, (str, os.PathLike)) and not _is_one_file(audio):
        listing = list_inputs([audio])
        if listing.rejects:
            raise ValueError(f"{audio}: {listing.rejects[0][1]}")
        return [track.source for track in listing.tracks], False
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, array.array, Mapping)
    numbers = isinstance(audio, (list, tuple)) and len(audio) > 0 and isinstance(audio[0], Real)
    if numbers or isinstance(audio, kinds) or any(hasattr(audio, name) for name in _ONE_TRACK):
        return [audio], True
    if isinstance(audio, Iterable):
        return audio, False
    raise ValueError(
        f"`audio` is a {type(audio).__name__}. Give the path, bytes or open file of a track, an array or a row of a "
        "data set, or a list of these."
    )


def _source(item, sampling_rate: int | None, encoder: Encoder):
    """One track as [`LoadedTrack`] takes it: what a decoder opens, or samples at the encoder's rate."""
    if isinstance(item, Mapping):
        given = {name: item[name] for name in ("audio", "array", "raw", "bytes", "path") if item.get(name) is not None}
        if not given:
            raise ValueError(
                f"A track is a row with {', '.join(map(repr, item)) or 'nothing'}. It needs 'array' and "
                "'sampling_rate', or 'bytes', or 'path'."
            )
        name, value = next(iter(given.items()))
        if name in ("array", "raw"):
            sampling_rate = item.get("sampling_rate", sampling_rate)
            if sampling_rate is None:
                raise ValueError(f"The audio under {name!r} has no `sampling_rate` beside it. Give it in Hz.")
        return _source(value, sampling_rate, encoder)
    if hasattr(item, "get_all_samples"):  # torchcodec's decoder, which `datasets` hands out
        decoded = item.get_all_samples()
        return encoder.to_samples(decoded.data, decoded.sample_rate)
    if hasattr(item, "read") and not isinstance(item, PackedFile):
        item = item.read()
        if not isinstance(item, (bytes, bytearray, memoryview)):
            raise ValueError("The audio is a file opened as text. Open it with 'rb'.")
    if isinstance(item, bytearray) or (isinstance(item, memoryview) and item.format in "Bbc"):
        return bytes(item)
    if isinstance(item, (str, os.PathLike, bytes, PackedFile)):
        return item
    if isinstance(item, (memoryview, array.array)):
        item = np.asarray(item)
    if getattr(item, "itemsize", 0) == 1 and bytes(item[:4]).startswith(_FILE_BEGINS):
        raise ValueError("The audio is an array with the bytes of a file. Give them as `bytes(array)`.")
    return encoder.to_samples(item, sampling_rate)


@dataclass(frozen=True)
class InputTrack:
    """A track to embed.

    Args:
        path (`str`): what a table calls it: the file's path, or its name in the data set.
        name (`str`): its path below the folder or data set that was named; never leaves it.
        source (`AudioSource`): to be opened.
        stamp (`str`): changes where the file does.
    """

    path: str
    name: str
    source: AudioSource | PackedFile
    stamp: str


@dataclass
class Inputs:
    """Tracks, and (path, reason) of files that a manifest names but that are not there."""

    tracks: list[InputTrack]
    rejects: list[tuple[str, str]]


def _is_one_file(item: str | os.PathLike) -> bool:
    """Whether this names one audio file, there or not, and no folder, manifest or data set."""
    path = Path(item)
    known = path.suffix.lower() in (".parquet", ".tar", *TABLE_SUFFIXES)
    return not path.is_dir() and (path.suffix.lower() in AUDIO_SUFFIXES or (path.is_file() and not known))


def list_inputs(inputs: Sequence[str | os.PathLike]) -> Inputs:
    """List all tracks of some inputs.

    Args:
        inputs: audio files; or what [`music2vec_hf.audio.listing.list_source`] takes: folders, manifests, Parquet
            files, archives, Hub ids; or corpora that `music2vec prepare` made, of which every clip is a track.

    Raises:
        ValueError: if there is nothing of a name, or no audio in it.
    """
    found = Inputs([], [])
    for item in map(os.fspath, inputs):
        if _is_one_file(item):
            name = _inside(printable(os.path.basename(item)))
            found.tracks.append(InputTrack(printable(item), name, Path(item), _stamp(item)))
            continue
        listing = list_source(item)
        found.rejects += listing.rejects
        for track in sorted(listing.tracks, key=_place):
            packed = isinstance(track.path, PackedFile)
            path = track.source if packed else os.fspath(track.path)
            stamp = f"{_stamp(track.path.container)} {track.path}" if packed else _stamp(path)
            found.tracks.append(InputTrack(printable(path), _inside(track.source), track.path, stamp))
    return found


def _place(track: Track) -> tuple:
    """The order of rows in a data set; files stay in theirs."""
    file = track.path
    return (file.container, file.start, file.length) if isinstance(file, PackedFile) else ()


def _inside(name: str) -> str:
    """A relative path that leads nowhere but down."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part.strip("/") not in ("", ".", "..")]
    return "/".join(parts)


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "not there"
    return f"{status.st_size} {status.st_mtime_ns}"
