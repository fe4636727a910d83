"""What `music2vec app` hears in a song: with a head labels over time, with a library similar tracks, without a head
the mean frames of short pieces, which tell where the song changes and which parts sound alike.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import PreTrainedConfig, pipeline

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.reading import AudioReader
from music2vec_hf.common.files import printable
from music2vec_hf.common.hub import explain_hub_errors
from music2vec_hf.features.encoders import Encoder, choose_device, load_encoder
from music2vec_hf.features.store import column_of
from music2vec_hf.features.tables import load_library_encoder, nearest, read_library
from music2vec_hf.features.windows import hear_tracks
from music2vec_hf.model.pipeline_music2vec import TASK

_HEAD = "Music2VecForSequenceClassification"
_NUM_SIMILAR = 5
_MIN_CELL_SECONDS, _MAX_CELLS = 0.5, 240

Report = Callable[[float, str], object]


@dataclass(frozen=True)
class Limits:
    """What one person may ask for: size and length of a song, and how many songs may wait to be heard."""

    max_megabytes: float = 200.0
    max_minutes: float = 20.0
    max_waiting: int = 20

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"`{name}` is {value}. Use a value above 0.")


@dataclass
class Answer:
    """What a model makes of a song.

    Attributes:
        seconds (`float`): length of the song.
        notes (`list[str]`): sentences about damage and the like.
        heard_by (`list[str]`): which layer and head answered, and how.
        labels (`list[tuple[str, float]]`): label and score of the whole song, the highest first; empty without a head.
        timeline (`list[dict]`): `start`, `end` (seconds) and `scores`, label -> score, of each window.
        similar (`list[tuple[str, float]]`, *optional*): path and cosine, the nearest first; None without a library.
        is_share (`bool`): scores lie between 0 and 1; False for regression.
        is_exclusive (`bool`): one label excludes the others, as a genre does and a tag does not.
        cells (`list[tuple[float, np.ndarray]]`): start (seconds) and mean frame `[C]` of short pieces of the song.
    """

    seconds: float
    notes: list[str]
    heard_by: list[str] = field(default_factory=list)
    labels: list[tuple[str, float]] = field(default_factory=list)
    timeline: list[dict] = field(default_factory=list)
    similar: list[tuple[str, float]] | None = None
    is_share: bool = True
    is_exclusive: bool = True
    cells: list[tuple[float, np.ndarray]] = field(default_factory=list)


class Listener:
    """A model, and perhaps a library of embeddings, that hears songs one at a time.

    Args:
        model: folder or Hub id of an audio model. Labels come from a Music2Vec head for clips.
        library (*optional*): Parquet file of `music2vec embed`, with a row per track. If it was made by other weights
            than the model's, the model that it names is loaded beside it.
        limits ([`Limits`]): of a song.
        layer (`str`, *optional*): of similarity and changes; by default the last that library or model have.
        window_seconds (`float`, *optional*): of the head, in place of the model's own; shorter windows give a finer
            time line, and other scores.
        device (`str`): `cpu`, `cuda`, `mps` or `auto`.
        trust_remote_code (`bool`): run the Python code of a repository that brings its own model.

    Raises:
        ValueError: if there is no such model, library or layer.
    """

    def __init__(
        self,
        model: str | Path,
        library: str | Path | None = None,
        limits: Limits = Limits(),
        layer: str | None = None,
        window_seconds: float | None = None,
        device: str = "auto",
        trust_remote_code: bool = False,
    ):
        self.model, self.limits = os.fspath(model), limits
        self.name = Path(model).name if os.path.isdir(model) else self.model
        self.library = None if library is None else Path(library)
        with explain_hub_errors(model, "a model"):
            architectures = PreTrainedConfig.get_config_dict(model)[0].get("architectures")
        settings = {}
        if self.library is not None:
            if not self.library.is_file():
                raise ValueError(
                    f"There is no library {library}. Make it: music2vec embed {model} FOLDER --output {library}"
                )
            settings, layer = read_library(self.library, layer)
        self.head, place, self.encoder_name = None, choose_device(device), self.name
        if architectures == [_HEAD]:
            self.head = pipeline(TASK, model=self.model, device=place, dtype="float32")
            self.encoder = Encoder(self.head.model.base_model, self.head.feature_extractor)
            self.window_seconds = self.head.model.config.window_seconds if window_seconds is None else window_seconds
            self.encoder.plan(self.window_seconds)  # refuses what is no length of a window
        else:
            self.encoder = load_encoder(model, trust_remote_code=trust_remote_code)
        if settings.get("model_hash", self.encoder.hash) != self.encoder.hash:
            self.encoder = load_library_encoder(self.library, settings, trust_remote_code=trust_remote_code)
            self.encoder_name = Path(settings["model"]).name
        self.encoder.model.to(place)
        self.layer = self.encoder.check_layers([self.encoder.layers[-1] if layer is None else layer])[0]
        self._plan = self.encoder.plan(settings.get("window_seconds", 30.0), settings.get("overlap_seconds", 0.0))
        self._precision = settings.get("precision", "fp32")

    def listen(self, path: str | Path, report: Report = lambda fraction, sentence: None) -> Answer:
        """Hear a song.

        Args:
            report: called with how much is done, from 0 to 1, and a sentence.

        Raises:
            ValueError: if the song is beyond the limits; AudioError if it cannot be read.
        """
        report(0.0, "reading the file")
        samples, answer = self._read(path)
        halves = [self._label] if self.head else []
        halves += [self._compare] if self.library is not None or not self.head else []
        for number, hear in enumerate(halves):
            hear(samples, answer, lambda share, n=number: report((n + share) / len(halves), "hearing"))
        return answer

    def _read(self, path: str | Path) -> tuple[np.ndarray, Answer]:
        """Mono samples at the encoder's rate, and the answer to be filled in."""
        name, rate, limits = printable(Path(path).name), self.encoder.sampling_rate, self.limits
        megabytes = os.path.getsize(path) / 1e6
        if megabytes > limits.max_megabytes:
            raise ValueError(f"{name} has {megabytes:.1f} MB; this page takes {limits.max_megabytes:g} MB at most.")
        blocks, seconds = [], 0.0
        with AudioReader(path, name, rate) as reader:
            for block in reader.blocks():
                blocks.append(block)
                seconds += len(block) / rate
                if seconds > 60 * limits.max_minutes:
                    raise ValueError(
                        f"{name} lasts longer than the {limits.max_minutes:g} minutes that this page takes; give a "
                        "part of it, or use `music2vec embed`."
                    )
            notes = [f"{name}: {problem}" for problem in (reader.shortfall, reader.cancellation) if problem]
        if not seconds:
            raise AudioError(name, "empty", "it holds no samples.")
        return np.concatenate(blocks), Answer(seconds, notes)

    def _label(self, samples: np.ndarray, answer: Answer, report: Callable[[float], object]) -> None:
        """Labels of the song and of its windows, by the head."""
        config, heard = self.head.model.config, 0

        def count(module, inputs) -> None:
            nonlocal heard
            heard += inputs[0].numel() if inputs else 0
            report(min(1.0, heard / len(samples)))

        song = {"array": samples, "sampling_rate": self.encoder.sampling_rate}
        with self.head.model.register_forward_pre_hook(count):
            found = self.head(song, top_k=None, return_timeline=True, window_seconds=self.window_seconds)
        answer.is_share = config.problem_type != "regression"
        answer.is_exclusive = answer.is_share and config.problem_type != "multi_label_classification"
        answer.labels = [(each["label"], each["score"]) for each in found["labels"]]
        for window in found["timeline"]:
            scores = {each["label"]: each["score"] for each in window["labels"]}
            answer.timeline.append({"start": window["start"], "end": window["end"], "scores": scores})
        layer = config.num_hidden_layers if config.classifier_layer is None else config.classifier_layer
        read = "a weighted sum of its layers" if layer == "weighted" else f"its layer {layer}"
        hidden = f"with {config.classifier_hidden_size} hidden units" if config.classifier_hidden_size else "linear"
        answer.heard_by.append(
            f"Labels: {self.name}, from {read} ({config.classifier_pooling} over the frames of "
            f"{self.window_seconds:g} s windows) by its head ({hidden}, {config.num_labels} labels)."
        )

    def _compare(self, samples: np.ndarray, answer: Answer, report: Callable[[float], object]) -> None:
        """Mean frames of pieces of the song and, from all of them, similar tracks."""
        rate, total, num_frames = self.encoder.sampling_rate, 0.0, 0
        cell = max(_MIN_CELL_SECONDS, answer.seconds / _MAX_CELLS)
        track = next(hear_tracks(self.encoder, [samples], self._plan, [self.layer], "none", self._precision))
        for window in track.windows:
            frames, start = window.features[self.layer].astype(np.float64), window.start / rate
            seconds = (window.stop - window.start) / rate
            total, num_frames = total + frames.sum(0), num_frames + len(frames)
            parts = np.array_split(frames, min(len(frames), max(1, round(seconds / cell))))
            answer.cells += [(start + i * seconds / len(parts), part.mean(0)) for i, part in enumerate(parts)]
            report(window.stop / len(samples))
        answer.heard_by.append(
            f"{'Sound' if self.library is None else 'Similar tracks'}: {self.encoder_name}, layer {self.layer} (mean "
            f"over the frames of {self._plan.window / rate:g} s windows), compared by cosine."
        )
        if self.library is not None:
            answer.similar = nearest(self.library, column_of(self.layer), total / num_frames, _NUM_SIMILAR)
