"""Encoders: any Hugging Face audio model that takes raw audio, frozen. A whole track in, frames of every layer out.

Music2Vec and data2vec-audio models also give the raw front end (`conv`). Every other model that takes `input_values`
(wav2vec2, HuBERT, WavLM, MERT, ...) goes through its own feature extractor, at its own sampling rate, and its
`hidden_states` are the layers `0` to `L`.
"""

import contextlib
import copy
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, PreTrainedConfig, PreTrainedModel

from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.computing import DEVICES, check_gpu, choose_precision
from music2vec_hf.common.hub import explain_hub_errors
from music2vec_hf.common.weights import model_source
from music2vec_hf.features.spectral import SPECTRAL_FRAMES, SpectralEncoder
from music2vec_hf.features.store import FeatureRows
from music2vec_hf.features.windows import WindowPlan, hear_tracks, window_rows
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.encoder_music2vec import Music2VecModel
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor

RANDOM_INIT = "random-init"
SPECTRAL_SOURCES = tuple(SPECTRAL_FRAMES)
CONV = "conv"
OWN_MODEL_TYPES = ("music2vec", "data2vec-audio")
TRUST_FLAG = "--trust-remote-code"

# What the front end computes at once: its first layers make 6.5 MB of a second, which a CPU had better keep in its
# cache.
_FRONT_END_SECONDS = {"cpu": 5.0, "mps": 60.0, "cuda": 60.0}


class Encoder:
    """A frozen model with what it needs to hear a track.

    Args:
        model ([`Music2VecModel`] or any `PreTrainedModel` of raw audio): in float32 and eval mode.
        extractor: its feature extractor.

    Attributes:
        front_end ([`Music2VecConfig`]): kernels and strides of its front end; where the model does not state them,
            those of a tenth of a second, the shortest rest of a track that it is given.

    Raises:
        ValueError: if the model takes no raw audio.
    """

    hears_whole_rows = False  # but windows of them, whose mean a row is

    def __init__(self, model: torch.nn.Module, extractor):
        self.model, self.extractor = model, extractor
        self.is_ours = isinstance(model, Music2VecModel)
        self.name = f"{model.config.name_or_path} ({type(model).__name__})"
        if not self.is_ours and not _takes_raw_audio(model, extractor):
            raise ValueError(
                f"{self.name} does not take raw audio as `input_values`; name a model of the wav2vec2 kind, such as "
                "wav2vec2, HuBERT, WavLM, data2vec-audio or MERT."
            )
        self.sampling_rate = extractor.sampling_rate
        sizes = {name: getattr(model.config, name, None) for name in ("conv_dim", "conv_kernel", "conv_stride")}
        if not all(sizes.values()):
            sizes = {name: [self.sampling_rate // 10] for name in sizes}
        self.front_end = model.config if self.is_ours else Music2VecConfig(**sizes)

    @property
    def device(self) -> torch.device:
        """The device that the model's weights are on; the CPU for weights that are brought when they are needed."""
        device = next(self.model.parameters()).device
        return torch.device("cpu") if device.type == "meta" else device

    @cached_property
    def layers(self) -> list[str]:
        """Names of its layers in order: `["conv", "0", ..., "L"]`, of others `["0", ..., "L"]`."""
        if self.is_ours:
            return [CONV, *(str(layer) for layer in range(self.model.config.num_hidden_layers + 1))]
        return list(self._frame_counts)

    @cached_property
    def _frame_counts(self) -> dict[str, int]:
        """Layer -> frames of a second of silence."""
        silence = torch.zeros(1, max(self.sampling_rate, self.front_end.receptive_field), device=self.device)
        with torch.no_grad():
            return {layer: frames.shape[1] for layer, frames in self.frames(silence)}

    @cached_property
    def hash(self) -> str:
        """Hash of the weights, see [`model_hash`]."""
        return model_hash(self.model)

    def identity(self, window_seconds: float, precision: str = "fp32") -> str:
        """All that the features of a file depend on beside its content: weights, settings of model and extractor, code
        that is not transformers' own, windows and precision."""
        config = {key: value for key, value in self.model.config.to_dict().items() if not key.startswith("_")}
        config.pop("transformers_version", None)
        code = ""
        if type(self.model).__module__.startswith("transformers_modules"):
            code = hashlib.sha256(Path(inspect.getsourcefile(type(self.model))).read_bytes()).hexdigest()
        run = f"windows of {window_seconds:g} s, {choose_precision(precision, self.device.type)}"
        settings = json.dumps(config, sort_keys=True, default=str)
        return "\n".join([self.hash, self.extractor.to_json_string(), settings, code, run])

    def check_layers(self, layers: Sequence[str] | None) -> list[str]:
        """The layers that were asked for, all for `None`; a ValueError names those that the model does not have."""
        chosen = self.layers if layers is None else [str(layer) for layer in layers]
        unknown = [layer for layer in chosen if layer not in self.layers]
        if unknown or not chosen:
            what = f"There is no layer {', '.join(unknown)}" if unknown else "No layer is named"
            raise ValueError(f"{what}. This model has {', '.join(self.layers)}.")
        return chosen

    def plan(self, window_seconds: float, overlap_seconds: float = 0.0, times: bool = False) -> WindowPlan:
        """How tracks are cut for this encoder, see [`WindowPlan.from_seconds`]. ValueError also for an overlap, or
        `times` of frames, where the model's configuration does not tell where its frames lie."""
        plan = WindowPlan.from_seconds(self.front_end, window_seconds, overlap_seconds, self.sampling_rate)
        if not self.is_ours and (times or overlap_seconds > 0):
            stated = self.front_end.num_frames(max(self.sampling_rate, self.front_end.receptive_field))
            if set(self._frame_counts.values()) != {stated}:
                raise ValueError(
                    f"The config.json of {self.name} does not tell where its frames lie; do without times and overlap."
                )
        return plan

    def to_samples(self, clip, sampling_rate: int | None = None) -> np.ndarray:
        """An array, tensor or list of numbers -> mono float32 `[N]` at the encoder's rate; `sampling_rate` is the
        clip's. ValueError for one that is not finite or shorter than a frame."""
        shortest = self.front_end.receptive_field
        taker = Music2VecFeatureExtractor(sampling_rate=self.sampling_rate, receptive_field=shortest)
        return taker.to_samples(clip, sampling_rate)

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        """A whole track, mono in [-1, 1] at the encoder's rate, to the model's input: `[N]` -> `[N]` float32.
        ValueError for one that is not finite or shorter than a frame."""
        samples = self.to_samples(samples)
        values = self.extractor(samples, sampling_rate=self.sampling_rate)["input_values"][0]
        return np.asarray(values, dtype=np.float32)

    def frames(self, input_values: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and frames `[B, T, C]` of every layer, in order, for windows `[B, N]` of equal length."""
        with explain_compile_errors():
            if self.is_ours:
                yield from layer_frames(self.model, input_values)
                return
            states = self.model(input_values, output_hidden_states=True, return_dict=True).hidden_states
        if states is None:
            raise ValueError(f"{self.name} gives no hidden states, so it has no layers.")
        yield from ((str(layer), state) for layer, state in enumerate(states))

    def rows(self, paths: Sequence[str | Path], window_seconds: float, precision: str = "fp32") -> FeatureRows:
        """Mean over the frames of every window of every file, all layers: one row per window. ValueError for a file
        that cannot be read or is shorter than one frame, with its name."""
        heard = hear_tracks(self, paths, self.plan(window_seconds), self.layers, precision=precision)
        return FeatureRows.joined([window_rows(track.windows, self.sampling_rate) for track in heard])


def load_encoder(
    name: str | Path,
    random_init: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Encoder:
    """Load an audio encoder of any type, in float32 and eval mode, whatever its weights are stored in.

    Args:
        name (`str` or `Path`): `"tiny"`, a folder or a Hub id.
        random_init (`bool`): keep the shape but draw the weights anew: the baseline of every probe.
        revision (`str`, *optional*): branch, tag or commit of a Hub id.

    Raises:
        ValueError: if nothing is there, the model needs remote code that is not trusted, or takes no raw audio.
    """
    name = model_source(name)
    with explain_hub_errors(name, "a model"), _explain_remote_code(name, trust_remote_code):
        # Ours by name, also for a plain data2vec-audio repository: an Auto class might ask to run a repository's code.
        if PreTrainedConfig.get_config_dict(name, revision=revision)[0].get("model_type") in OWN_MODEL_TYPES:
            classes, options = (Music2VecFeatureExtractor, Music2VecConfig, Music2VecModel), {}
            build = Music2VecModel
        else:
            classes, options = (AutoFeatureExtractor, AutoConfig, AutoModel), {"trust_remote_code": trust_remote_code}
            build = partial(AutoModel.from_config, **options)
        options["revision"] = revision
        extractor = classes[0].from_pretrained(name, **options)
        if random_init:
            config = classes[1].from_pretrained(name, **options)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = build(config)
        else:
            model = classes[2].from_pretrained(name, dtype=torch.float32, **options)
    return Encoder(model.float().eval(), extractor)


@dataclass(frozen=True)
class FeatureSource:
    """What a probe hears: a model, the same model with random weights, or spectral statistics; `name` in results.

    `kind` is `model`, `random-init`, `mfcc`, `chroma` or `mel`; `model` the folder or Hub id that weights, or for
    `random-init` only the shape, come from.
    """

    name: str
    kind: str
    model: str | None = None
    seed: int = 0


def resolve_sources(sources: Sequence[str] | Mapping[str, str], random_init_seed: int = 0) -> list[FeatureSource]:
    """Turn source names into sources.

    Args:
        sources: names, or result name to name. A name is `random-init`, `mfcc`, `chroma`, `mel`, or else a model
            folder or Hub id. `random-init` has the shape of the first model of the list.

    Raises:
        ValueError: if `random-init` stands without a model, or two sources would have one name in the results.
    """
    named = list(sources.items()) if isinstance(sources, Mapping) else [(None, name) for name in sources]
    reserved = (RANDOM_INIT, *SPECTRAL_SOURCES)
    models = [value for _, value in named if value not in reserved]
    resolved = []
    for name, value in named:
        if value == RANDOM_INIT:
            if not models:
                raise ValueError("`random-init` takes the shape of a model; name a model folder or Hub id beside it.")
            source = FeatureSource(name or value, RANDOM_INIT, str(models[0]), random_init_seed)
        elif value in SPECTRAL_SOURCES:
            source = FeatureSource(name or value, value)
        else:
            source = FeatureSource(name or Path(value).name, "model", str(value))
        resolved.append(source)
    names = [source.name for source in resolved]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Two sources are called {', '.join(twice)}; give them names as a mapping of name to source.")
    return resolved


def open_source(
    source: FeatureSource, device: str = "cpu", trust_remote_code: bool = False
) -> Encoder | SpectralEncoder:
    """Load what a source stands for, a model by [`load_encoder`] on a torch `device`."""
    if source.kind in SPECTRAL_SOURCES:
        return SpectralEncoder(source.kind)
    encoder = load_encoder(source.model, source.kind == RANDOM_INIT, source.seed, trust_remote_code)
    encoder.model.to(device)
    return encoder


def load_model(
    model: str | Path, random_init: bool = False, seed: int = 0
) -> tuple[Music2VecModel, Music2VecFeatureExtractor]:
    """Model and feature extractor of [`load_encoder`], for a Music2Vec or data2vec-audio model."""
    encoder = load_encoder(model, random_init, seed)
    return encoder.model, encoder.extractor


@contextlib.contextmanager
def borrowed_encoder(model: torch.nn.Module, extractor=None, device: str | None = None) -> Iterator[Encoder]:
    """The encoder of a model that the caller has loaded, in float32 and eval mode during the block.

    The model keeps its type, device and modes of training: where its weights would have to change, a copy computes.
    A model with a head, or within peft, is heard without the head.

    Args:
        extractor (*optional*): its feature extractor; for ours by default one with the reference's settings.
        device (`str`, *optional*): as in [`choose_device`]; by default the model's.

    Raises:
        ValueError: if it is no audio model, or a model of others comes without its extractor.
    """
    if hasattr(model, "get_base_model"):  # peft's
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"`model` is a {type(model).__name__}. Give a folder, a Hub id or a loaded audio model.")
    model = model.base_model
    if extractor is None and not isinstance(model, Music2VecModel):
        raise ValueError(f"{type(model).__name__} was given without its feature extractor. Give `feature_extractor`.")
    extractor = extractor or Music2VecFeatureExtractor(receptive_field=model.config.receptive_field)
    place = model.device if device is None else choose_device(device)
    if place != model.device or any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters()):
        model = copy.deepcopy(model).to(place, torch.float32)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield Encoder(model, extractor)
    finally:
        for module, training in modes:
            module.training = training


def _takes_raw_audio(model: torch.nn.Module, extractor) -> bool:
    """Whether audio of `N` samples becomes `input_values` of `N` values; spectrogram models have another shape."""
    if model.main_input_name != "input_values" or not hasattr(extractor, "sampling_rate"):
        return False
    second = np.sin(np.arange(extractor.sampling_rate, dtype=np.float32) / 10)
    values = extractor(second, sampling_rate=extractor.sampling_rate).get("input_values", [None])[0]
    return np.shape(values) == second.shape


@contextlib.contextmanager
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


def model_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights: equal models have equal hashes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def choose_device(device: str, among: Sequence[str] = DEVICES) -> torch.device:
    """`cpu`, `cuda`, `mps`, or `auto`: the first of `cuda`, `mps`, `cpu` that is `among` the allowed and is there.
    Raises ValueError if the one that is named is not, or a GPU is there that torch cannot use."""
    if device not in among:
        raise ValueError(f"`device` is {device!r}. Use one of {', '.join(among)}.")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device != "cpu":
        check_gpu()
    if device == "auto":
        device = next(name for name in there if there[name] and name in among)
    if not there[device]:
        raise ValueError(f"`device` is {device!r}, but torch finds none here. Use `--device cpu`, or `auto`.")
    return torch.device(device)


def compile_model(model: torch.nn.Module, dynamic: bool = True) -> torch.nn.Module:
    """Let torch.compile speed up a model, ours by its front end and layers, in place; names and weights stay.
    `dynamic` is for windows that end a track, which have lengths of their own."""
    ours = isinstance(model, Music2VecModel)
    for module in (model.feature_extractor, model.encoder.pos_conv_embed, *model.encoder.layers) if ours else (model,):
        module.compile(dynamic=dynamic)
    return model


@contextlib.contextmanager
def explain_compile_errors() -> Iterator[None]:
    """Say in one sentence that torch.compile does not work on this machine."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"torch.compile fails here ({reason}). Install a C++ compiler, or set `compile` to false."
        ) from error


@torch.no_grad()
def layer_frames(model: Music2VecModel, input_values: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and frames `[B, T, C]` of every layer of our model in eval mode, for normalised windows `[B, N]`: one pass,
    one layer in memory at a time. They are the `hidden_states` of the model's own forward, with `conv` before them."""
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
