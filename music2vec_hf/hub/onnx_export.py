"""A Music2Vec model as ONNX, for runtimes without torch: exported, checked against torch, and with 8-bit weights.

The graph takes any batch size and any length. It has the normalised waveform as input, and as outputs all that the
model gives: `logits` where there is a head, `conv`, and the `hidden_states`.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers.models.data2vec.modeling_data2vec_audio import Data2VecAudioFeatureEncoder

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.reading import find_audio_files, read_audio
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.files import check_new_folder, write_text, written_aside
from music2vec_hf.common.render import render
from music2vec_hf.features.encoders import CONV, load_model
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor
from music2vec_hf.model.heads_music2vec import (
    Music2VecForAudioFrameClassification,
    Music2VecForSequenceClassification,
    Music2VecHead,
)
from music2vec_hf.synthetic.generator import synthesize_clip

MODEL_FILE, INT8_FILE = "model.onnx", "model_int8.onnx"
INPUT, LOGITS = "input_values", "logits"
# Largest difference from torch that an exported file may have, relative to the largest value of an output.
TOLERANCE = 1e-3
_TEMPLATE = Path(__file__).with_name("onnx_readme.md.jinja")
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_HEADS = (Music2VecForSequenceClassification, Music2VecForAudioFrameClassification)
# What is compared with torch: these batch sizes, of the shortest clip, and of clips of so many seconds.
_CHECKED_BATCHES, _CHECKED_SECONDS = (1, 3), (1.0, 4.37)
_SYNTHETIC_CLIPS, _SYNTHETIC_SEED, _LONGEST_CLIP_SECONDS = 16, 0, 30.0


@dataclass(frozen=True)
class Int8Cost:
    """How the answers with 8-bit weights differ from those in float32, over some clips.

    Attributes:
        errors (`dict[str, float]`): output to the relative error of embeddings (means over frames): the norm of the
            difference over the norm, as a mean over clips.
        agreement (`float` or `None`): share of clips, or of frames, whose first label is the same; None without a
            head and where labels do not exclude each other.
        logit_difference (`float` or `None`): the largest one, in the units of the logits; None without a head.
    """

    clips: str
    errors: dict[str, float]
    agreement: float | None
    logit_difference: float | None
    rejects: list[tuple[str, str]]

    def sentence(self) -> str:
        """All of it but the rejects, in words."""
        worst, last = max(self.errors, key=self.errors.get), list(self.errors)[-1]
        text = f"Over {self.clips}, embeddings (means over frames) of `{last}` are off by {self.errors[last]:.1%} of "
        text += f"their norm, those of the worst output, `{worst}`, by {self.errors[worst]:.1%}"
        if self.agreement is not None:
            text += f"; the first label is the same for {self.agreement:.1%}"
        if self.logit_difference is not None:
            text += f"; the largest difference of a logit is {self.logit_difference:.3g}"
        return f"{text}."


@dataclass(frozen=True)
class OnnxExport:
    """What [`export_onnx`] made.

    Attributes:
        head (`str` or `None`): class of the classification head, if the model has one.
        outputs (`tuple[str, ...]`): names, in the order of the graph.
        difference (`float`): largest one from torch, relative to the largest value of an output.
        int8 ([`Int8Cost`] or `None`): what 8-bit weights cost in accuracy.
    """

    folder: Path
    head: str | None
    outputs: tuple[str, ...]
    difference: float
    bytes: dict[str, int]
    int8: Int8Cost | None = None


class OnnxGraph(nn.Module):
    """A model as ONNX sees it: `input_values [B, N]` -> a tuple of tensors, in the order of `output_names`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.encoder = model.data2vec_audio if isinstance(model, Music2VecHead) else model
        names = [CONV, *(f"hidden_states_{layer}" for layer in range(model.config.num_hidden_layers + 1))]
        self.head = type(model).__name__ if isinstance(model, Music2VecHead) else None
        if self.head and model.layer == CONV:
            names = [CONV]  # such a head does not run the encoder
        self.output_names = (LOGITS, *names) if self.head else tuple(names)

    def forward(self, input_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the model's own forward and take the front end's features on their way."""
        features = []
        hook = self.encoder.feature_extractor.register_forward_hook(
            lambda module, inputs, output: features.append(output.transpose(1, 2))
        )
        output = self.model(input_values, output_hidden_states=True)
        hook.remove()
        logits = (output.logits,) if self.head else ()
        return *logits, *features, *(output.hidden_states or ())


def export_onnx(
    model: str | Path, out: str | Path, quantize: str | None = None, samples: str | Path | None = None
) -> OnnxExport:
    """Write a model as ONNX: the encoder with all hidden states, or the classifier with these.

    A folder is only left behind if the file gives what torch gives, for several lengths and batch sizes.

    Args:
        quantize (`str`, *optional*): `"int8"`: write `model_int8.onnx`, too, whose matrix products have 8-bit weights
            and round what they multiply to 8 bits, range by range as it comes (onnxruntime's dynamic quantisation).
        samples (`str` or `Path`, *optional*): folder of audio on which the cost of int8 is measured, of each file the
            first 30 s; by default on 16 synthetic clips.

    Raises:
        ValueError: without the `onnx` extra; if `out` exists and is not empty; if the Hub does not give the model; if
            `samples` holds no audio; if the exported file differs from torch by more than `TOLERANCE`.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"ONNX needs {', '.join(missing)}, which is not installed here. Install the `onnx` extra: "
            "pip install 'music2vec_hf[onnx]'"
        )
    if quantize not in (None, "int8"):
        raise ValueError(f"`quantize` is {quantize!r}. Use 'int8' or leave it out.")
    if samples is not None and quantize is None:
        raise ValueError(
            "`samples` is for measuring the cost of int8. Ask for it (`--quantize int8`), or leave it out."
        )
    files = None if samples is None else find_audio_files(samples)
    if files == []:
        raise ValueError(f"{samples} holds no audio files. Name a folder of clips to measure the cost of int8 on.")
    out = check_new_folder(out, "the exported model")
    graph, extractor = load_graph(model)
    config, cost = graph.model.config, None
    with written_aside(out) as folder:
        folder.mkdir()
        write_onnx(graph, folder / MODEL_FILE)
        session = open_session(folder / MODEL_FILE)
        difference = largest_difference(graph, session)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The exported file differs from torch by {difference:.1e} of the largest value, more than "
                f"{TOLERANCE:.0e}, so it is not kept. Report this with the versions of torch and onnxruntime."
            )
        if quantize == "int8":
            quantize_int8(folder / MODEL_FILE, folder / INT8_FILE)
            exclusive = config.problem_type in (None, "single_label_classification")
            cost = measure_int8(session, open_session(folder / INT8_FILE), extractor, files, exclusive)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        export = OnnxExport(out, graph.head, graph.output_names, difference, sizes, cost)
        config.save_pretrained(folder)
        extractor.save_pretrained(folder)
        write_text(folder / "README.md", _readme(export, config, extractor))
    return export


def load_graph(model: str | Path) -> tuple[OnnxGraph, Music2VecFeatureExtractor]:
    """A model, with its head if it is ours, as [`OnnxGraph`], and its extractor; ValueError if there is none."""
    encoder, extractor = load_model(model)
    for head in _HEADS:
        if head.__name__ in (encoder.config.architectures or ()):
            encoder = head.from_pretrained(model, dtype=torch.float32).eval()
    return OnnxGraph(encoder).eval(), extractor


def write_onnx(graph: OnnxGraph, path: Path) -> None:
    """Trace a model and write it as one ONNX file, with a batch size and a length that are free.

    The trace's notes on every node, among them paths of this machine, are left out.
    """
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    # It warns of a torchvision that nothing here needs.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    encoder, free = graph.encoder, torch.export.Dim.DYNAMIC
    # transformers' front end becomes nodes that say Conv, ours slices and products, which take twice as long to trace.
    plain = Data2VecAudioFeatureEncoder(encoder.config).eval()
    plain.load_state_dict(encoder.feature_extractor.state_dict())
    ours, encoder.feature_extractor = encoder.feature_extractor, plain
    try:
        program = torch.onnx.export(
            graph,
            (torch.zeros(2, 20 * encoder.config.receptive_field + 1),),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=list(graph.output_names),
            dynamic_shapes=({0: free, 1: free},),
        )
    finally:
        encoder.feature_extractor = ours
    exported = program.model
    exported.graph.inputs[0].shape = onnx_ir.Shape(["batch_size", "num_samples"])
    for value in exported.graph.outputs:
        middle = ["num_frames"] if len(value.shape) == 3 else []
        value.shape = onnx_ir.Shape(["batch_size", *middle, value.shape[-1]])
    ClearMetadataAndDocStringPass()(exported)
    program.save(path, external_data=False)


def open_session(path: Path, threads: int = 0):
    """An `onnxruntime.InferenceSession` on the CPU, of so many threads (0: one per core)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def largest_difference(graph: OnnxGraph, session) -> float:
    """The largest difference of any output from torch's, relative to the largest value of that output, for noise of
    several batch sizes and lengths; the shortest makes one frame."""
    rng, found = np.random.default_rng(0), []
    lengths = [graph.model.config.receptive_field, *(round(seconds * SAMPLING_RATE) for seconds in _CHECKED_SECONDS)]
    for shape in ((rows, length) for rows in _CHECKED_BATCHES for length in lengths):
        input_values = rng.standard_normal(shape).astype(np.float32)
        expected = graph(torch.from_numpy(input_values))
        for theirs, ours in zip(session.run(None, {INPUT: input_values}), expected, strict=True):
            if theirs.shape != tuple(ours.shape):
                return float("inf")
            found.append(np.abs(theirs - ours.numpy()).max() / np.abs(ours.numpy()).max())
    return float(np.max(found))


def quantize_int8(source: Path, target: Path) -> None:
    """onnxruntime's dynamic quantisation of the products of activations and weights; all else stays in float32."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Weights without a sign: x86 processors without VNNI add signed ones in 16 bits, which overflows.
    how = {"op_types_to_quantize": ["MatMul", "Gemm"], "per_channel": True, "weight_type": QuantType.QUInt8}
    with tempfile.TemporaryDirectory(dir=target.parent) as aside:
        prepared = Path(aside, source.name)
        quant_pre_process(source, prepared, skip_symbolic_shape=True, skip_optimization=True)
        quantize_dynamic(prepared, target, **how)


def measure_int8(
    exact, rough, extractor: Music2VecFeatureExtractor, files: Sequence[Path] | None = None, exclusive: bool = True
) -> Int8Cost:
    """Compare two sessions clip by clip.

    Args:
        exact, rough (`onnxruntime.InferenceSession`): of the file in float32, and of that with 8-bit weights.
        files (`Sequence[Path]`, *optional*): audio, of which the first 30 s are heard; by default synthetic clips.
        exclusive (`bool`): whether a clip has exactly one label.

    Raises:
        ValueError: if none of the files can be heard.
    """
    names = [output.name for output in exact.get_outputs()]
    errors: dict[str, list[float]] = {name: [] for name in names if name != LOGITS}
    agreements, differences, rejects = [], [], []
    for inputs in _inputs(extractor, files, rejects):
        reference, values = (dict(zip(names, session.run(names, inputs), strict=True)) for session in (exact, rough))
        for name, found in errors.items():
            mean = reference[name].mean(1)
            found.append(np.linalg.norm(values[name].mean(1) - mean) / np.linalg.norm(mean))
        if LOGITS in names:
            agreements.append(np.mean(reference[LOGITS].argmax(-1) == values[LOGITS].argmax(-1)))
            differences.append(np.abs(reference[LOGITS] - values[LOGITS]).max())
    num_clips = len(errors[names[-1]])
    if num_clips == 0:
        raise ValueError(f"None of the {len(rejects)} files can be heard; the first: {': '.join(rejects[0])}")
    return Int8Cost(
        f"{num_clips} {'synthetic clips of 10 s' if files is None else 'clips'}",
        {name: float(np.mean(found)) for name, found in errors.items()},
        float(np.mean(agreements)) if agreements and exclusive else None,
        float(np.max(differences)) if differences else None,
        rejects,
    )


def _inputs(
    extractor: Music2VecFeatureExtractor, files: Sequence[Path] | None, rejects: list[tuple[str, str]]
) -> Iterator[dict[str, np.ndarray]]:
    """The graph's input, clip by clip; a file that cannot be heard is added to `rejects`."""
    for clip in tqdm(range(_SYNTHETIC_CLIPS) if files is None else files, desc="int8 beside float32", unit="clip"):
        try:
            if files is None:
                samples = synthesize_clip(_SYNTHETIC_SEED, clip)[0]
            else:
                samples = read_audio(clip, seconds=_LONGEST_CLIP_SECONDS)
            yield {INPUT: extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="np").input_values}
        except (AudioError, ValueError) as error:  # unreadable, or shorter than a frame
            rejects.append((str(clip), " ".join(str(error).split())))


def _readme(export: OnnxExport, config: Music2VecConfig, extractor: Music2VecFeatureExtractor) -> str:
    """The README of an export: what its files hold, names and shapes, and how to run it."""
    return render(
        _TEMPLATE,
        export=export,
        config=config,
        extractor=extractor,
        checked=f"batches of {' and '.join(map(str, _CHECKED_BATCHES))}, from one frame to {_CHECKED_SECONDS[-1]} s",
        per_frame=export.head == Music2VecForAudioFrameClassification.__name__,
        frame_rate=f"{extractor.sampling_rate / config.inputs_to_logits_ratio:g}",
    )
