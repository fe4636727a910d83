"""A Music2Vec model as ONNX, for runtimes without torch: exported, checked against torch, and with 8-bit weights.

The graph takes any batch size and any length. It has the normalised waveform as input, and as outputs all that the
model gives: `logits` where there is a head, `conv`, and the `hidden_states`.
"""

import logging
import os
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import jinja2
import numpy as np
import torch
from torch import nn
from transformers.models.data2vec.modeling_data2vec_audio import Data2VecAudioFeatureEncoder

from music2vec_hf.audio.reading import find_audio_files
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.files import check_new_folder
from music2vec_hf.features.encoders import CONV, load_model
from music2vec_hf.hub.onnx_int8 import INPUT, LOGITS, Int8Cost, measure_int8, quantize_int8
from music2vec_hf.model.configuration_music2vec import Music2VecConfig
from music2vec_hf.model.feature_extraction_music2vec import Music2VecFeatureExtractor
from music2vec_hf.model.heads_music2vec import (
    Music2VecForAudioFrameClassification,
    Music2VecForSequenceClassification,
    Music2VecHead,
)

MODEL_FILE, INT8_FILE = "model.onnx", "model_int8.onnx"
# Largest difference from torch that an exported file may have, relative to the largest value of an output.
TOLERANCE = 1e-3
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_HEADS = (Music2VecForSequenceClassification, Music2VecForAudioFrameClassification)
# What is compared with torch: these batch sizes, of the shortest clip, and of clips of so many seconds.
_CHECKED_BATCHES, _CHECKED_SECONDS = (1, 3), (1.0, 4.37)
_TEMPLATE = "onnx_readme.md.jinja"
_LOGITS_MEAN = {
    "single_label_classification": "the softmax over them gives probabilities; names in `id2label` of `config.json`",
    "multi_label_classification": "the sigmoid of each is a probability; names in `id2label` of `config.json`",
    "regression": "values in the labels' own units; names in `id2label` of `config.json`",
}


@dataclass(frozen=True)
class OnnxExport:
    """What [`export_onnx`] made.

    Attributes:
        folder (`Path`): of the files.
        head (`str` or `None`): class of the classification head, if the model has one.
        outputs (`tuple[str, ...]`): names, in the order of the graph.
        difference (`float`): largest one from torch, relative to the largest value of an output.
        bytes (`dict[str, int]`): size of each ONNX file.
        int8 ([`Int8Cost`] or `None`): what 8-bit weights cost in accuracy.
    """

    folder: Path
    head: str | None
    outputs: tuple[str, ...]
    difference: float
    bytes: dict[str, int]
    int8: Int8Cost | None = None


class OnnxGraph(nn.Module):
    """A model as ONNX sees it: `input_values [B, N]` -> a tuple of tensors, in the order of `output_names`.

    Args:
        model ([`Music2VecModel`] or [`Music2VecHead`]): in eval mode, in which no layer is ever dropped.
    """

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
        model (`str` or `Path`): folder or Hub id of any Music2Vec or data2vec-audio model.
        out (`str` or `Path`): new folder for `model.onnx`, the configuration, and a README that says how to use it.
        quantize (`str`, *optional*): `"int8"`: write `model_int8.onnx`, too, whose matrix products have 8-bit weights
            and round what they multiply to 8 bits, range by range as it comes (onnxruntime's dynamic quantisation).
        samples (`str` or `Path`, *optional*): folder of audio on which the cost of int8 is measured, of each file the
            first 30 s; by default on 16 synthetic clips.

    Returns:
        [`OnnxExport`].

    Raises:
        ValueError: without the `onnx` extra; if `out` exists and is not empty; if the Hub does not give the model; if
            `samples` holds no audio; if the exported file differs from torch by more than `TOLERANCE`.
    """
    _check_packages()
    if quantize not in (None, "int8"):
        raise ValueError(f"`quantize` is {quantize!r}. Use 'int8' or leave it out.")
    if samples is not None and quantize is None:
        raise ValueError(
            "`samples` is for measuring the cost of int8. Ask for it (`--quantize int8`), or leave it out."
        )
    files = None if samples is None else find_audio_files(samples)
    if files == []:
        raise ValueError(f"{samples} holds no audio files. Name a folder of clips to measure the cost of int8 on.")
    out = check_new_folder(out)
    graph, extractor = load_graph(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as aside:
        folder = Path(aside, out.name)
        folder.mkdir()
        write_onnx(graph, folder / MODEL_FILE)
        session = open_session(folder / MODEL_FILE)
        difference = largest_difference(graph, session)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The exported file differs from torch by {difference:.1e} of the largest value, more than "
                f"{TOLERANCE:.0e}, so it is not kept. Report this with the versions of torch and onnxruntime."
            )
        cost = None
        if quantize == "int8":
            quantize_int8(folder / MODEL_FILE, folder / INT8_FILE)
            exclusive = graph.model.config.problem_type in (None, "single_label_classification")
            both = (session, open_session(folder / INT8_FILE))
            cost = measure_int8(*both, extractor, files, exclusive)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        export = OnnxExport(out, graph.head, graph.output_names, difference, sizes, cost)
        graph.model.config.save_pretrained(folder)
        extractor.save_pretrained(folder)
        (folder / "README.md").write_text(describe(export, graph.model.config, extractor), encoding="utf-8")
        os.replace(folder, out)
    return export


def _check_packages() -> None:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"ONNX needs {', '.join(missing)}, which is not installed here. Install the `onnx` extra: "
            "pip install 'music2vec_hf[onnx]'"
        )


def load_graph(model: str | Path) -> tuple[OnnxGraph, Music2VecFeatureExtractor]:
    """A model with its head, if it is one of ours, as [`OnnxGraph`]; and its feature extractor.

    Raises:
        ValueError: if the name is no folder and the Hub does not give it.
    """
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
    for rows in _CHECKED_BATCHES:
        for length in lengths:
            input_values = rng.standard_normal((rows, length)).astype(np.float32)
            expected = graph(torch.from_numpy(input_values))
            for theirs, ours in zip(session.run(None, {INPUT: input_values}), expected, strict=True):
                ours = ours.numpy()
                if theirs.shape != ours.shape:
                    return float("inf")
                found.append(np.abs(theirs - ours).max() / np.abs(ours).max())
    return float(np.max(found))


def describe(export: OnnxExport, config: Music2VecConfig, extractor: Music2VecFeatureExtractor) -> str:
    """The README of an export: what its files hold, names and shapes, and how to run it."""
    template = jinja2.Template(
        Path(__file__).with_name(_TEMPLATE).read_text(encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return template.render(
        head=export.head,
        sizes=export.bytes,
        difference=export.difference,
        checked=f"batches of {' and '.join(map(str, _CHECKED_BATCHES))}, from one frame to {_CHECKED_SECONDS[-1]} s",
        cost=export.int8.sentence() if export.int8 else None,
        outputs=[(name, *_describe_output(name, export.head, config)) for name in export.outputs],
        shown=LOGITS if export.head else export.outputs[-1],
        receptive_field=config.receptive_field,
        frame_rate=f"{extractor.sampling_rate / config.inputs_to_logits_ratio:g}",
        sampling_rate=extractor.sampling_rate,
        do_normalize=extractor.do_normalize,
        norm_eps=extractor.norm_eps,
    )


def _describe_output(name: str, head: str | None, config: Music2VecConfig) -> tuple[str, str]:
    """Shape and meaning of an output."""
    frames = "batch_size, num_frames"
    if name == LOGITS:
        per_frame = head == Music2VecForAudioFrameClassification.__name__
        problem = config.problem_type or "single_label_classification"
        return f"{frames if per_frame else 'batch_size'}, {config.num_labels}", _LOGITS_MEAN[problem]
    if name == CONV:
        return f"{frames}, {config.conv_dim[-1]}", "the raw front end"
    layer = name.rpartition("_")[2]
    return f"{frames}, {config.hidden_size}", "the encoder's input" if layer == "0" else f"layer {layer}"


__all__ = [
    "INT8_FILE",
    "MODEL_FILE",
    "TOLERANCE",
    "OnnxExport",
    "OnnxGraph",
    "describe",
    "export_onnx",
    "largest_difference",
    "load_graph",
    "open_session",
    "write_onnx",
]
