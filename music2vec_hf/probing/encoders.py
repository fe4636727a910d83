"""Encoders: any Hugging Face audio model as a probe hears it. Whole tracks in, mean features of their windows out.

Music2Vec and data2vec-audio models go the way of `embeddings.py`, which also gives the raw front end (`conv`). Every
other model that takes `input_values` (wav2vec2, HuBERT, WavLM, MERT, ...) goes through its own feature extractor, at
its own sampling rate, and its `hidden_states` are the layers `0` to `L`.

A track is normalised as a whole, then cut into windows (PROBING.md section 2, trap 8).
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, PreTrainedConfig

from music2vec_hf.audio.reading import read_audio
from music2vec_hf.common.hub import explain_hub_errors
from music2vec_hf.common.precision import autocast, choose_precision
from music2vec_hf.features.embedding_batches import ahead, batches_of_one_length, decoding_threads, device_of
from music2vec_hf.features.embedding_model import layer_frames, load_model, model_hash
from music2vec_hf.probing.rows import FeatureRows, cut

OWN_MODEL_TYPES = ("music2vec", "data2vec-audio")
TRUST_FLAG = "--trust-remote-code"
READ_AHEAD_SECONDS = 300.0


@dataclass(frozen=True)
class Encoder:
    """A frozen model with what is needed to let it hear a track.

    Attributes:
        model (`torch.nn.Module`): float32, eval mode.
        sampling_rate (`int`): of the audio that it hears, in Hz.
        shortest (`int`): samples that give one frame; a shorter rest of a track is left out.
        prepare: a whole track `[N]` in [-1, 1] to the model's input `[N]`.
        frames: input `[B, N]` to pairs of layer and frames `[B, T, C]`, in order.
        preprocessing (`str`): settings of model and extractor, a part of the cache's key.
    """

    model: torch.nn.Module
    sampling_rate: int
    shortest: int
    prepare: Callable[[np.ndarray], np.ndarray]
    frames: Callable[[torch.Tensor], Iterable[tuple[str, torch.Tensor]]]
    preprocessing: str


def load_encoder(
    name: str | Path, random_init: bool = False, seed: int = 0, trust_remote_code: bool = False
) -> Encoder:
    """Load an audio encoder of any type.

    Args:
        name (`str` or `Path`): folder or Hub id.
        random_init (`bool`): keep the shape but draw the weights anew.
        seed (`int`): of the random weights.
        trust_remote_code (`bool`): run the Python code of a repository that brings its own model.

    Returns:
        `Encoder`.

    Raises:
        ValueError: if nothing is there, the model needs remote code that is not trusted, or takes no raw audio.
    """
    with explain_hub_errors(name, "a model"):
        config_dict, _ = PreTrainedConfig.get_config_dict(name)
    if config_dict.get("model_type") in OWN_MODEL_TYPES:
        model, extractor = load_model(name, random_init=random_init, seed=seed)
        shortest = model.config.receptive_field

        def frames(input_values: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
            return layer_frames(model, input_values)

    else:
        model, extractor = _load_any(name, random_init, seed, trust_remote_code)
        shortest = _receptive_field(model.config, extractor.sampling_rate)

        def frames(input_values: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
            states = model(input_values, output_hidden_states=True, return_dict=True).hidden_states
            if states is None:
                raise ValueError(
                    f"{name} ({type(model).__name__}) gives no hidden states, so it has no layers to probe."
                )
            return ((str(layer), state) for layer, state in enumerate(states))

    def prepare(samples: np.ndarray) -> np.ndarray:
        values = extractor(samples, sampling_rate=extractor.sampling_rate)["input_values"][0]
        return np.asarray(values, dtype=np.float32)

    return Encoder(model, extractor.sampling_rate, shortest, prepare, frames, _preprocessing(model, extractor))


def _load_any(name: str | Path, random_init: bool, seed: int, trust_remote_code: bool):
    with explain_hub_errors(name, "a model"), _explain_remote_code(name, trust_remote_code):
        extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=trust_remote_code)
        if random_init:
            config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
        else:
            model = AutoModel.from_pretrained(name, dtype=torch.float32, trust_remote_code=trust_remote_code)
    if not _takes_raw_audio(model, extractor):
        raise ValueError(
            f"{name} ({type(model).__name__}) does not take raw audio as `input_values`; probe a model of the "
            "wav2vec2 kind, such as wav2vec2, HuBERT, WavLM, data2vec-audio or MERT."
        )
    return model.float().eval(), extractor


def _takes_raw_audio(model: torch.nn.Module, extractor) -> bool:
    """Whether audio of `N` samples becomes `input_values` of `N` values; spectrogram models have another shape."""
    if model.main_input_name != "input_values" or not hasattr(extractor, "sampling_rate"):
        return False
    second = np.sin(np.arange(extractor.sampling_rate, dtype=np.float32) / 10)
    values = extractor(second, sampling_rate=extractor.sampling_rate).get("input_values", [None])[0]
    return np.shape(values) == second.shape


@contextmanager
def _explain_remote_code(name: str | Path, trust_remote_code: bool) -> Iterator[None]:
    """transformers' own refusal is a paragraph; ours is a sentence that names the flag."""
    try:
        yield
    except ValueError as error:
        if trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{name} brings Python code of its own, which is not run unless you ask for it; read that code, then give "
            f"{TRUST_FLAG} (`trust_remote_code=True`)."
        ) from error


def _receptive_field(config, sampling_rate: int) -> int:
    """Samples of one frame of a convolutional front end; a tenth of a second where the config does not show it."""
    kernels, strides = (getattr(config, name, None) for name in ("conv_kernel", "conv_stride"))
    if not kernels or not strides:
        return sampling_rate // 10
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field


def _preprocessing(model: torch.nn.Module, extractor) -> str:
    """Everything beside the weights that decides what a model makes of audio, also code that is not transformers'."""
    config = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
    config.pop("transformers_version", None)
    code = ""
    if type(model).__module__.startswith("transformers_modules"):
        code = hashlib.sha256(Path(inspect.getsourcefile(type(model))).read_bytes()).hexdigest()
    return "\n".join([extractor.to_json_string(), json.dumps(config, sort_keys=True, default=str), code])


def encoder_identity(encoder: Encoder, window_seconds: float, precision: str) -> tuple[str, str]:
    """Hash of the weights, and the text that names all that the features of a file depend on."""
    weights = model_hash(encoder.model)
    run = f"windows of {window_seconds:g} s, {choose_precision(precision)}"
    return weights, "\n".join([weights, encoder.preprocessing, run])


@torch.no_grad()
def encoder_layers(encoder: Encoder) -> list[str]:
    """Names of its layers, in order, from a second of silence."""
    silence = torch.zeros(1, max(encoder.sampling_rate, encoder.shortest), device=device_of(encoder.model))
    return [layer for layer, _ in encoder.frames(silence)]


def prepared_tracks(encoder: Encoder, paths: Iterable[Path]) -> Iterator[np.ndarray]:
    """Read audio files at the encoder's rate and prepare each as a whole; some ahead, while a GPU computes.

    Raises:
        ValueError: for a file that cannot be read, is refused by the extractor or is shorter than one frame.
    """
    jobs = (partial(_prepared_track, encoder, path) for path in paths)
    for result in ahead(jobs, decoding_threads(encoder.model)):
        yield result()


def _prepared_track(encoder: Encoder, path: Path) -> np.ndarray:
    samples = read_audio(path, target_rate=encoder.sampling_rate)
    try:
        values = encoder.prepare(samples)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(values) < encoder.shortest:
        raise ValueError(
            f"{path}: {len(values)} samples at {encoder.sampling_rate} Hz are less than the {encoder.shortest} of "
            "one frame; leave this track out."
        )
    return values


@torch.no_grad()
def encode_windows(
    encoder: Encoder, tracks: Iterable[np.ndarray], window_seconds: float = 30.0, precision: str = "fp32"
) -> FeatureRows:
    """Mean over the frames of every window of every track, all layers, in one pass.

    Args:
        encoder (`Encoder`): from `load_encoder`.
        tracks (iterable of `np.ndarray` of shape `(N,)`): prepared for the encoder, each long enough for a frame; read
            as they are needed.
        window_seconds (`float`): length of a window, from the start of the track on; the last one is shorter.
        precision (`str`): of matrix products: `fp32`, `bf16`, or `auto` (bf16 where the hardware multiplies it).

    Returns:
        `FeatureRows`: one row per window.

    Raises:
        ValueError: if a window is shorter than one frame, or the model gives no hidden states.
    """
    window = round(window_seconds * encoder.sampling_rate)
    if window < encoder.shortest:
        one_frame = encoder.shortest / encoder.sampling_rate
        raise ValueError(f"`window_seconds` is {window_seconds}. Use at least {one_frame} s, one frame.")
    done, waiting = [], []
    for track in tracks:
        waiting.append([piece for piece in cut(track, window) if len(piece) >= encoder.shortest])
        if sum(len(piece) for pieces in waiting for piece in pieces) >= READ_AHEAD_SECONDS * encoder.sampling_rate:
            done.append(_encode_together(encoder, waiting, precision))
            waiting = []
    return FeatureRows.joined([*done, _encode_together(encoder, waiting, precision)] if waiting else done)


def _encode_together(encoder: Encoder, tracks: list[list[np.ndarray]], precision: str) -> FeatureRows:
    """Encode the windows of a few tracks, those of one length in batches."""
    windows = [piece for pieces in tracks for piece in pieces]
    device = device_of(encoder.model)
    features: dict[str, np.ndarray] = {}
    num_frames = np.zeros(len(windows), np.int64)
    for batch in batches_of_one_length([len(window) for window in windows], encoder.sampling_rate, device):
        input_values = torch.from_numpy(np.stack([windows[row] for row in batch])).to(device)
        with autocast(precision, device.type):
            means = {}
            for layer, frames in encoder.frames(input_values):
                means[layer], num_frames[batch] = frames.float().mean(1), frames.shape[1]
        # Only now: a GPU that is asked for results after every layer waits each time.
        for layer, values in means.items():
            features.setdefault(layer, np.zeros((len(windows), values.shape[1]), np.float32))[batch] = values.cpu()
    seconds = np.array([len(window) / encoder.sampling_rate for window in windows])
    return FeatureRows(features, np.cumsum([0, *map(len, tracks)]), num_frames, seconds)
