"""`pipeline("audio-classification")` for music: any file, bytes, URL or array, any rate and length, without FFmpeg.

Importing `music2vec_hf` puts it behind transformers' task name; models that are not Music2Vec keep the stock pipeline.
Files are then read by the library's own reader, as by `embed`. In a repository that carries this file, `config.json`
names it under `custom_pipelines`, so that `pipeline(..., trust_remote_code=True)` finds it without the package; files
are then read by soundfile alone, which refuses some damaged ones.
"""

import http.client
import io
import os
import re
import urllib.parse
import urllib.request

import numpy as np
import torch
from transformers import AudioClassificationPipeline, Pipeline

from .events_music2vec import frame_events
from .feature_extraction_music2vec import Music2VecFeatureExtractor, cut_windows, window_samples

TASK = "audio-classification"
_BATCH_SECONDS = 60.0
_BLOCK_SAMPLES = 1 << 20
_URL_TIMEOUT_SECONDS = 60.0
_TOP_K = 5
_FUNCTIONS = {"regression": "none", "multi_label_classification": "sigmoid"}


def _load_url(url: str) -> bytes:
    """What lies behind a URL, which may have spaces, accents and other characters that a request must not hold."""

    def quoted(text: str, safe: str) -> str:
        return re.sub("%(?![0-9A-Fa-f]{2})", "%25", urllib.parse.quote(text, safe=f"{safe}%!$&'()*+,;=:@~"))

    try:
        parts = urllib.parse.urlsplit(url)
        user, at, place = parts.netloc.rpartition("@")
        if not place.isascii():
            host, colon, port = place.partition(":")
            place = f"{host.encode('idna').decode()}{colon}{port}"
        address = (parts.scheme, f"{user}{at}{place}", quoted(parts.path, "/"), quoted(parts.query, "/?"), "")
        request = urllib.request.Request(urllib.parse.urlunsplit(address), headers={"User-Agent": "music2vec_hf"})
        with urllib.request.urlopen(request, timeout=_URL_TIMEOUT_SECONDS) as response:
            return response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise OSError(
            f"{url} cannot be read ({error or type(error).__name__}). Check the address, or download the file."
        ) from error


def _decode(source: str | bytes, name: str, sampling_rate: int) -> tuple[np.ndarray, int]:
    """A file or its bytes, of any format that soundfile reads -> mono float32 `[N]` at its own rate, and that rate."""
    try:
        import soundfile
    except ImportError as error:
        raise ValueError(
            f"Decoding {name} needs soundfile: pip install soundfile. Or give the samples as an array."
        ) from error
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            blocks = file.blocks(blocksize=_BLOCK_SAMPLES, dtype="float32", always_2d=True)
            parts = [block.mean(1) for block in blocks]  # the average of the channels
            return np.concatenate(parts) if parts else np.zeros(0, np.float32), file.samplerate
    except soundfile.SoundFileError as error:
        raise ValueError(
            f"{name} cannot be decoded ({error}). soundfile reads wav, flac, ogg, opus, mp3 and aiff: convert the "
            "file, or give its samples as an array."
        ) from error


class Music2VecAudioClassificationPipeline(AudioClassificationPipeline):
    """Tags, genre, key or emotion of songs of any length; or their beats, chords or melody.

    A song is normalised as a whole, cut into windows of `config.window_seconds` (a rest too short for one frame is
    left out), and the windows' logits are averaged, each weighted by its frames. Where `config.window_average` is
    `"features"`, as in exported probes, the pooled features are averaged so and the head answers once. A model whose
    `config.frame_events` is set answers for every frame, and the pipeline gives the times of what it finds.

    Args:
        model ([`Music2VecForSequenceClassification`], or [`Music2VecForAudioFrameClassification`] with
            `config.frame_events`): a model of another type gets transformers' own pipeline.
        feature_extractor ([`Music2VecFeatureExtractor`], *optional*): by default one with the reference's settings.
        kwargs: those of transformers' `Pipeline`, and those of a call.

    Raises:
        ValueError: for a Music2Vec model without a head for clips.
    """

    # `decode(path or bytes, name, sampling rate wanted)` -> mono float32 `[N]` and its rate. Importing `music2vec_hf`
    # puts the library's reader here.
    decode = staticmethod(_decode)

    def __new__(cls, model=None, **kwargs):
        if model is not None and model.config.model_type != "music2vec":
            return AudioClassificationPipeline(model=model, **kwargs)
        return super().__new__(cls)

    def __init__(self, model, feature_extractor=None, **kwargs):
        if not hasattr(model, "pool") and not (hasattr(model, "frame_logits") and model.config.frame_events):
            raise ValueError(
                f"{type(model).__name__} has no head for clips. Load the model with AutoModelForAudioClassification."
            )
        if not hasattr(feature_extractor, "to_samples"):  # none, or that of a plain data2vec-audio repository
            feature_extractor = Music2VecFeatureExtractor(receptive_field=model.config.receptive_field)
        # Not the stock constructor: it sets a `top_k` and checks the model against transformers' own ones.
        Pipeline.__init__(self, model=model, feature_extractor=feature_extractor, **kwargs)

    def __call__(self, inputs, batch_size: int | None = None, **kwargs):
        """Classify one song, or each of a list, data set or generator of songs.

        Args:
            inputs: a path, an `http(s)://` URL, the bytes of an audio file (`bytes`, `bytearray`, `memoryview`, or a
                binary file object, which is read from where it stands to its end), an array or tensor
                (`[num_samples]`, or with its channels on the shorter axis), or a `dict` with `array` or `raw` and
                `sampling_rate`, or with `bytes` or `path`.
            batch_size (`int`, *optional*): windows of a song that the model hears at once; by default a minute's.
            sampling_rate (`int`, *optional*): of a bare array, in Hz; by default that of the model, 16 kHz.
            window_seconds (`float`, *optional*): in place of `config.window_seconds`.
            top_k (`int`, *optional*): how many labels, the highest first; `None` means all. By default 5, and for
                regression all of them in the model's order.
            function_to_apply (`str`, *optional*): `"softmax"`, `"sigmoid"` or `"none"`. By default what
                `config.problem_type` asks for: probabilities of exclusive labels, of each label, or, for regression,
                the values themselves in the labels' own units.
            return_timeline (`bool`): also return the answer for each window.

        Returns:
            `list[dict]` with `label` and `score`; with `return_timeline` a `dict` with that list under `labels` and
            under `timeline` a list of `dict` with `start` and `end` (seconds) and `labels`. For several songs a list
            (an iterator for data sets and generators) of those. With `config.frame_events` the answer is a
            `list[dict]` of `start`, `end` (seconds; of a beat the same) and `label`, in the order of time.

        Raises:
            ValueError: for audio or settings that cannot be used, in one sentence; OSError for a path or URL that
                cannot be read.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        if "audio" in (getattr(inputs, "column_names", None) or ()):  # a data set of `datasets`
            inputs = (row["audio"] for row in inputs)
        elif hasattr(inputs, "column_name"):  # or its column of audio
            inputs = iter(inputs)
        windows_per_batch = batch_size or self._batch_size
        # One song at a time: transformers would pad several to one length, which changes answers.
        return super().__call__(inputs, batch_size=1, windows_per_batch=windows_per_batch, **kwargs)

    def _sanitize_parameters(self, **parameters):
        steps = (
            ("sampling_rate", "window_seconds"),
            ("windows_per_batch",),
            ("top_k", "function_to_apply", "return_timeline"),
        )
        top_k, function = parameters.get("top_k"), parameters.get("function_to_apply")
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k` is {top_k}. Use at least 1, or None for all labels.")
        if function not in (None, "softmax", "sigmoid", "none"):
            raise ValueError(f"`function_to_apply` is {function!r}. Use 'softmax', 'sigmoid' or 'none'.")
        return tuple({name: parameters[name] for name in names if name in parameters} for names in steps)

    def preprocess(self, inputs, sampling_rate=None, window_seconds=None):
        samples = self._read(inputs, sampling_rate)
        if self.feature_extractor.do_normalize:
            samples = self.feature_extractor.normalize(samples)
        window_seconds = self.model.config.window_seconds if window_seconds is None else window_seconds
        shortest = self.model.config.receptive_field
        window = window_samples(window_seconds, self.feature_extractor.sampling_rate, shortest)
        parts = [samples[None, start:stop] for start, stop in cut_windows(len(samples), window, shortest)]
        whole = [part for part in parts if part.shape[1] == window]
        parts = [np.concatenate(whole), *parts[len(whole) :]] if whole else parts
        return {"windows": [torch.from_numpy(part) for part in parts]}

    def _read(self, source, sampling_rate) -> np.ndarray:
        """Mono float32 `[N]` at the model's rate."""
        if hasattr(source, "get_all_samples"):  # torchcodec's decoder, which `datasets` hands out
            decoded = source.get_all_samples()
            return self.feature_extractor.to_samples(decoded.data, decoded.sample_rate)
        if isinstance(source, dict):
            for key in ("array", "raw"):
                if source.get(key) is not None:
                    rate = source.get("sampling_rate", sampling_rate)
                    if rate is None:
                        raise ValueError(f"The audio under {key!r} has no `sampling_rate` beside it. Give it in Hz.")
                    return self.feature_extractor.to_samples(source[key], rate)
            encoded = next((source[key] for key in ("bytes", "path") if source.get(key) is not None), None)
            if encoded is None:
                raise ValueError(
                    f"The audio is a dict with {', '.join(map(repr, source)) or 'nothing'}. It needs 'array' and "
                    "'sampling_rate', or 'bytes', or 'path'."
                )
            source = encoded
        if hasattr(source, "read"):
            source = source.read()
            if not isinstance(source, bytes):
                raise ValueError(f"Reading the file gives {type(source).__name__}, not bytes. Open it in binary mode.")
        if isinstance(source, (bytes, bytearray, memoryview)):
            source = bytes(source)
            name = f"{len(source)} bytes in memory"
        elif isinstance(source, (str, os.PathLike)):
            name = source = os.fspath(source)
            if re.match("https?://", name, re.IGNORECASE):
                source = _load_url(name)
            else:
                with open(name, "rb"):  # an OSError of its own
                    pass
        else:
            return self.feature_extractor.to_samples(source, sampling_rate)
        return self.feature_extractor.to_samples(*self.decode(source, name, self.feature_extractor.sampling_rate))

    def _forward(self, model_inputs, windows_per_batch=None):
        config, rate = self.model.config, self.feature_extractor.sampling_rate
        if config.frame_events:
            return self._frame_answers(model_inputs["windows"], windows_per_batch)
        logits, features, num_frames, times = [], [], [], []
        for windows in model_inputs["windows"]:
            length = windows.shape[1]
            rows = windows_per_batch or max(1, int(_BATCH_SECONDS * rate / length))
            for batch in windows.to(self.model.dtype).split(rows):
                output = self.model(batch, output_pooled_features=True)
                logits.append(output.logits.float())
                features.append(output.pooled_features.float())
            num_frames += [config.num_frames(length)] * len(windows)
            start = times[-1][1] if times else 0.0
            times += [(start + i * length / rate, start + (i + 1) * length / rate) for i in range(len(windows))]
        logits, features = torch.cat(logits), torch.cat(features)  # [windows, num_labels], [windows, width]
        weights = torch.tensor(num_frames, device=logits.device, dtype=torch.float32)[:, None]
        weights = weights / weights.sum()
        if config.window_average == "features":
            average = (weights * features).sum(0, keepdim=True).to(self.model.dtype)
            average = self.model(pooled_features=average).logits[0].float()
        else:
            average = (weights * logits).sum(0)
        return {"logits": average, "window_logits": logits, "times": times}

    def _frame_answers(self, groups, windows_per_batch) -> dict:
        """Logits `[T, num_labels]` of all frames of a song, and their times `[T]`."""
        config, rate = self.model.config, self.feature_extractor.sampling_rate
        logits, times, start = [], [], 0
        for windows in groups:
            length = windows.shape[1]
            rows = windows_per_batch or max(1, int(_BATCH_SECONDS * rate / length))
            for batch in windows.to(self.model.dtype).split(rows):
                logits += self.model.frame_logits(batch).float().cpu().unbind()
            inside = config.frame_times(config.num_frames(length), rate)
            times += [inside + (start + number * length) / rate for number in range(len(windows))]
            start += len(windows) * length
        return {"frames": torch.cat(logits), "frame_times": torch.from_numpy(np.concatenate(times))}

    def postprocess(self, model_outputs, top_k="default", function_to_apply=None, return_timeline=False):
        if "frames" in model_outputs:
            config, (frames, times) = self.model.config, (model_outputs[key] for key in ("frames", "frame_times"))
            events = frame_events(frames.numpy(), times.numpy(), config.frame_events, config.frame_event_settings)
            return [{"start": a, "end": b, "label": config.id2label[int(label)]} for a, b, label in events.tolist()]
        regression = self.model.config.problem_type == "regression"
        function = function_to_apply or _FUNCTIONS.get(self.model.config.problem_type, "softmax")
        in_order = regression and top_k == "default"
        top_k = None if in_order else _TOP_K if top_k == "default" else top_k

        def labels(logits: torch.Tensor) -> list[dict]:
            scores = {"softmax": logits.softmax(-1), "sigmoid": logits.sigmoid(), "none": logits}[function]
            chosen = range(len(scores)) if in_order else scores.argsort(descending=True)[:top_k].tolist()
            return [{"score": scores[i].item(), "label": self.model.config.id2label[i]} for i in chosen]

        answer = labels(model_outputs["logits"])
        if not return_timeline:
            return answer
        windows = zip(model_outputs["times"], model_outputs["window_logits"], strict=True)
        timeline = [{"start": start, "end": end, "labels": labels(logits)} for (start, end), logits in windows]
        return {"labels": answer, "timeline": timeline}


__all__ = ["TASK", "Music2VecAudioClassificationPipeline"]
