"""`pipeline("audio-classification")`: the same answer from every kind of source, for songs of any length."""

import io
import re
import sys
import tempfile
import threading
import urllib.request
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets
import numpy as np
import pytest
import torch
import toy_model
from awkward import encoded
from transformers import (
    AudioClassificationPipeline,
    Data2VecAudioConfig,
    Data2VecAudioForSequenceClassification,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

import music2vec_hf as m2v
from music2vec_hf.audio.reading import read_audio
from music2vec_hf.model import pipeline_music2vec
from music2vec_hf.model.events_music2vec import frame_events

TASK = "audio-classification"
LABELS = ["arousal", "brass", "calm", "drums", "energy", "flute"]


@pytest.fixture
def save_model(tiny_config, tmp_path):
    """`save_model(**fields)`: folder of a tiny head with six labels, and the head itself."""

    def save(labels=LABELS, **fields):
        tiny_config.id2label = dict(enumerate(labels))
        for name, value in fields.items():
            setattr(tiny_config, name, value)
        model = head(tiny_config)
        return str(toy_model.save_model(model, tmp_path / "model")), model

    return save


def head(config):
    torch.manual_seed(0)
    model = m2v.Music2VecForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight)  # clearly different labels
    return model


@pytest.fixture(scope="module")
def pipe():
    """The pipeline of such a head, for tests of what it takes."""
    model = head(m2v.Music2VecConfig(**toy_model.SIZES, id2label=dict(enumerate(LABELS))))
    return pipeline(TASK, model=model, feature_extractor=m2v.Music2VecFeatureExtractor())


def song(seconds=1.5, rate=16_000, seed=0):
    """Noise below 2 kHz whose loudness drifts, so that windows differ: float32 `[num_samples]`."""
    times = np.arange(int(seconds * rate)) / rate
    rng = np.random.default_rng(seed)
    frequencies, phases = rng.uniform(100, 2_000, (20, 1)), rng.uniform(0, 6, (20, 1))
    tones = np.sin(2 * np.pi * frequencies * (times + 0.02 * times**2) + phases).mean(0)
    return (tones * (0.2 + 0.1 * times / seconds)).astype(np.float32)


def scores(answer):
    return {row["label"]: row["score"] for row in answer}


def assert_same(answer, other, tolerance=1e-4):
    one, two = scores(answer), scores(other)
    assert one.keys() == two.keys()
    assert [one[label] for label in one] == pytest.approx([two[label] for label in one], abs=tolerance)


def test_the_answer_is_the_models_own(save_model):
    folder, model = save_model()
    pipe = pipeline(TASK, model=folder)
    assert type(pipe) is m2v.Music2VecAudioClassificationPipeline
    inputs = m2v.Music2VecFeatureExtractor()(song(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits[0].softmax(-1)
    answer = pipe(song(), top_k=None)
    assert [row["label"] for row in answer] == [LABELS[i] for i in expected.argsort(descending=True)]
    assert scores(answer) == pytest.approx({label: expected[i].item() for i, label in enumerate(LABELS)}, abs=1e-6)


@pytest.mark.parametrize("kind, subtype", [("WAV", "FLOAT"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", None)])
@pytest.mark.parametrize("rate, channels", [(16_000, 1), (44_100, 2), (22_050, 1), (8_000, 2)])
def test_every_format_rate_and_channel_count(pipe, monkeypatch, kind, subtype, rate, channels):
    monkeypatch.setenv("PATH", "")  # no ffmpeg program
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    audio = encoded(np.stack([song(rate=rate, seed=seed) for seed in range(channels)], axis=1), rate, kind, subtype)
    assert_same(pipe(audio), pipe(read_audio(audio)))
    monkeypatch.setattr(pipe, "decode", pipeline_music2vec._decode)  # without the library
    assert_same(pipe(audio), pipe(read_audio(audio)))


@pytest.mark.parametrize("damage", ["joined mp3", "cut FLAC", "wav without a length", "wav with a name as suffix"])
def test_it_hears_what_the_library_reads(pipe, tmp_path, damage):
    flac, wav, mp3 = encoded(song(6), format="FLAC"), encoded(song(3)), encoded(song(3, 44_100), 44_100, "MP3")
    audio = {
        "joined mp3": mp3 + mp3,
        "cut FLAC": flac[: len(flac) // 2],
        "wav without a length": wav[:4] + b"\xff" * 4 + wav[8:40] + bytes(4) + wav[44:],
        "wav with a name as suffix": wav,
    }[damage]
    path = tmp_path / ("song.mp3" if "suffix" in damage else "song")
    path.write_bytes(audio)
    with warnings.catch_warnings(action="ignore"):
        heard = len(read_audio(audio)) / 16_000
        for source in (audio, path, str(path), path.open("rb"), {"path": str(path)}, {"bytes": audio}):
            assert pipe(source, return_timeline=True)["timeline"][-1]["end"] == pytest.approx(heard, abs=0.026)


def test_every_kind_of_source_gives_the_same_answer(pipe, tmp_path):
    wav = encoded(song(), subtype="FLOAT")
    path = tmp_path / "song.wav"
    path.write_bytes(wav)
    stereo = np.stack([song(), song()])
    sources = [
        str(path), path, wav, torch.tensor(song()), song().astype(np.float64), stereo, stereo.T, bytearray(wav),
        memoryview(wav), {"bytes": memoryview(wav)}, {"bytes": wav, "path": "song.wav"},
        {"bytes": None, "path": str(path)}, {"array": song(), "sampling_rate": 16_000},
        {"raw": song(), "sampling_rate": 16_000}, {"array": torch.tensor(stereo), "sampling_rate": 16_000},
        {"array": song().tolist(), "sampling_rate": 16_000, "path": None},
    ]  # fmt: skip
    expected = pipe(song())
    for source in sources:
        assert_same(pipe(source), expected)
    for answer in [*pipe(sources), *pipe(source for source in sources)]:
        assert_same(answer, expected)
    data = datasets.Dataset.from_dict({"audio": [{"bytes": wav, "path": "a"}] * 2, "title": ["a", "b"]})
    for given in (data, data["audio"], data.to_iterable_dataset()):
        answers = list(pipe(given))
        assert len(answers) == 2
        assert_same(answers[1], expected)
    assert pipe([]) == []
    for file in (path.open("rb"), io.BytesIO(wav), tempfile.SpooledTemporaryFile()):
        with file:
            if isinstance(file, tempfile.SpooledTemporaryFile):
                file.write(wav)
                file.seek(0)
            assert_same(pipe(file), expected)
            assert not file.closed and file.read() == b""
            file.seek(0)
            assert file.read() == wav


class Server(BaseHTTPRequestHandler):
    """Serves one song under any path that is asked for, which it notes, but for some."""

    def do_GET(self):
        self.server.asked.append(self.path)
        kind = next((kind for kind in ("absent", "moved", "short", "mute") if kind in self.path), "song")
        if kind == "mute":
            return
        self.send_response({"absent": 404, "moved": 302}.get(kind, 200))
        if kind == "moved":
            self.send_header("Location", "/t\xfcr und tor.wav")
        self.send_header("Content-Length", str(len(self.server.song) + 9 * (kind == "short")))
        self.end_headers()
        self.wfile.write(self.server.song)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        server.asked, server.song = [], encoded(song(), subtype="FLOAT")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    "given, asked",
    [
        ("song.wav", "song.wav"),
        ("my song.wav", "my%20song.wav"),
        ("caf\u00e9/\u97f3\u697d.wav", "caf%C3%A9/%E9%9F%B3%E6%A5%BD.wav"),
        ("my%20song.wav", "my%20song.wav"),  # quoted already
        ("100%.wav", "100%25.wav"),
        ("a%2Fb.wav?key=x y&sign=a%3D%3D", "a%2Fb.wav?key=x%20y&sign=a%3D%3D"),
        ("a+b,c;d=(1)[2].wav?v=1#t=10", "a+b,c;d=(1)%5B2%5D.wav?v=1"),
        ("moved.wav", "moved.wav"),
    ],
)
def test_a_url_may_have_any_characters(pipe, server, given, asked):
    for scheme in ("http", "HTTP"):
        assert_same(pipe(f"{scheme}://127.0.0.1:{server.server_port}/{given}"), pipe(song()))
    assert server.asked[0] == f"/{asked}"


@pytest.mark.parametrize(
    "url, reason",
    [
        ("http://127.0.0.1:PORT/absent.wav", "404"),
        ("http://127.0.0.1:PORT/short.wav", "9 more"),
        ("http://127.0.0.1:PORT/mute.wav", "closed"),
        ("http://[::1/song.wav", ""),
        ("http://127.0.0.1:port/song.wav", ""),
        ("http:///song.wav", ""),
    ],
)
def test_a_url_that_gives_no_song_is_named_in_one_sentence(pipe, server, url, reason):
    url = url.replace("PORT", str(server.server_port))
    with pytest.raises(OSError, match=rf"^{re.escape(url)} cannot be read \(.*{reason}.*\). Check the"):
        pipe(url)


def test_a_host_may_have_any_letters(pipe, monkeypatch):
    asked = []

    def stop(request, timeout):
        asked.append(request.full_url)
        raise TimeoutError("no answer")

    monkeypatch.setattr(urllib.request, "urlopen", stop)
    with pytest.raises(OSError, match="no answer"):
        pipe("https://me@m\u00fcsik.example:8080/a b.wav")
    assert asked == ["https://me@xn--msik-0ra.example:8080/a%20b.wav"]


def test_a_bare_array_may_have_its_rate(pipe):
    fast = song(rate=44_100)
    assert_same(pipe(fast, sampling_rate=44_100), pipe({"array": fast, "sampling_rate": 44_100}))
    assert scores(pipe(fast, sampling_rate=44_100)) != scores(pipe(fast))


@pytest.mark.parametrize("hidden", [0, 8])
@pytest.mark.parametrize("average", ["logits", "features"])
def test_a_song_longer_than_the_window(save_model, hidden, average):
    folder, model = save_model(window_seconds=0.5, window_average=average, classifier_hidden_size=hidden)
    samples = song(1.33)  # two windows of 24 frames and a rest of 16
    values = torch.tensor(m2v.Music2VecFeatureExtractor().normalize(samples))
    with torch.no_grad():
        windows = [values[None, start : start + 8_000] for start in (0, 8_000, 16_000)]
        logits = torch.cat([model(window).logits for window in windows])
        features = torch.cat([model.pool(window)[0] for window in windows])
        weights = torch.tensor([24, 24, 16.0])[:, None] / 64
        by_logits, by_features = (weights * logits).sum(0), model.classify((weights * features).sum(0))
    assert torch.allclose(by_logits, by_features, atol=1e-5) == (hidden == 0)
    expected = by_logits if average == "logits" else by_features
    answer = pipeline(TASK, model=folder)(samples, function_to_apply="none", top_k=None, return_timeline=True)
    assert scores(answer["labels"]) == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-4)
    assert [(row["start"], row["end"]) for row in answer["timeline"]] == [(0, 0.5), (0.5, 1.0), (1.0, 1.33)]
    for row, window in zip(answer["timeline"], logits, strict=True):
        assert scores(row["labels"]) == pytest.approx(dict(zip(LABELS, window.tolist(), strict=True)), abs=1e-4)


def test_a_rest_too_short_for_a_frame_is_left_out_and_batches_change_nothing(save_model):
    pipe = pipeline(TASK, model=save_model(window_seconds=0.5)[0])
    timeline = pipe(song(1.0 + 399 / 16_000), return_timeline=True)["timeline"]
    assert [row["end"] for row in timeline] == [0.5, 1.0]
    assert len(pipe(song(1.0 + 400 / 16_000), return_timeline=True)["timeline"]) == 3
    assert len(pipe(song(1.0), return_timeline=True, window_seconds=0.25)["timeline"]) == 4
    for batch_size in (1, 2, 100):
        assert_same(pipe(song(3.0), batch_size=batch_size), pipe(song(3.0)), 1e-6)
        assert_same(pipe([song(3.0), song(0.7)], batch_size=batch_size)[1], pipe(song(0.7)), 1e-6)


def test_each_problem_type_has_its_activation(save_model):
    raw = scores(pipeline(TASK, model=save_model()[0])(song(), function_to_apply="none", top_k=None))
    logits = torch.tensor([raw[label] for label in LABELS])
    functions = {"single_label_classification": logits.softmax(-1), "multi_label_classification": logits.sigmoid()}
    for problem, function in functions.items():
        pipe = pipeline(TASK, model=save_model(problem_type=problem)[0])
        answer = pipe(song(), top_k=None)
        assert scores(answer) == pytest.approx(dict(zip(LABELS, function.tolist(), strict=True)), abs=1e-5)
        assert pipe(song()) == answer[:5]  # the default
        assert pipe(song(), top_k=2) == answer[:2] and pipe(song(), top_k=99) == answer
    assert pipeline(TASK, model=save_model()[0], top_k=3)(song(), function_to_apply="none")[2]["score"] < max(logits)


def test_emotion_is_answered_on_its_own_scale(save_model):
    folder, model = save_model(LABELS[:2], problem_type="regression", target_mean=[5.2, 4.8], target_std=[1.5, 1.1])
    answer = pipeline(TASK, model=folder)(song())
    inputs = m2v.Music2VecFeatureExtractor()(song(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        z_scores = model.classifier(model.pool(**inputs)[0])[0]
    assert [row["label"] for row in answer] == LABELS[:2]  # in the model's order, not by value
    assert answer[0]["score"] == pytest.approx(5.2 + 1.5 * z_scores[0].item(), abs=1e-4)
    assert answer[1]["score"] == pytest.approx(4.8 + 1.1 * z_scores[1].item(), abs=1e-4)


def test_half_precision_answers_in_full(save_model):
    folder, _ = save_model()
    half = pipeline(TASK, model=folder, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert_same(half(song(), top_k=None), pipeline(TASK, model=folder)(song(), top_k=None), 0.1)


def test_models_of_others_keep_the_stock_pipeline(tiny_config, tmp_path):
    known = Data2VecAudioConfig().to_dict()
    fields = {k: v for k, v in tiny_config.to_dict().items() if k in known and k != "model_type"}
    stock = Data2VecAudioForSequenceClassification(Data2VecAudioConfig(**fields))
    stock.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    for model, extractor in ((str(tmp_path), None), (stock, Wav2Vec2FeatureExtractor())):
        pipe = pipeline(TASK, model=model, feature_extractor=extractor)
        assert type(pipe) is AudioClassificationPipeline
        assert len(pipe(song())) == 2


@pytest.mark.parametrize(
    "source, settings, sentence",
    [
        (b"not audio at all", {}, "16 bytes in memory"),
        (np.zeros(399, np.float32), {}, "one frame needs 400"),
        (np.zeros(0, np.float32), {}, "The audio is empty"),
        (encoded(np.zeros(0, np.float32)), {}, "it holds no samples"),
        (np.full(16_000, np.nan, np.float32), {}, "NaN or infinite"),
        ({"array": np.zeros(16_000)}, {}, "has no `sampling_rate` beside it"),
        ({"audio": np.zeros(16_000)}, {}, "a dict with 'audio'. It needs 'array'"),
        (None, {}, "Give real numbers"),
        (io.StringIO("text"), {}, "Reading the file gives str, not bytes"),
        (song(), {"top_k": 0}, "`top_k` is 0. Use at least 1"),
        (song(), {"function_to_apply": "relu"}, "Use 'softmax', 'sigmoid' or 'none'"),
        (song(), {"window_seconds": 0.02}, "Use at least 0.025 s, one frame"),
    ],
)
def test_what_cannot_be_classified_is_refused_in_a_sentence(pipe, source, settings, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        pipe(source, **settings)
    with pytest.raises(FileNotFoundError):
        pipe("absent.wav")


def test_a_model_without_a_head_is_refused(tiny_config):
    with pytest.raises(ValueError, match="Music2VecModel has no head for clips"):
        pipeline(TASK, model=m2v.Music2VecModel(tiny_config), feature_extractor=m2v.Music2VecFeatureExtractor())


@pytest.mark.parametrize("kind, settings", [("beats", [0.5, 0.5]), ("chords", [0.1])])
def test_a_head_for_frames_gives_times(kind, settings, tiny_config):
    torch.manual_seed(0)
    about = {"num_labels": 2, "frame_events": kind, "frame_event_settings": settings, "window_seconds": 0.5}
    model = m2v.Music2VecForAudioFrameClassification(m2v.Music2VecConfig.from_dict(tiny_config.to_dict() | about))
    answer = pipeline(TASK, model=model.eval(), feature_extractor=m2v.Music2VecFeatureExtractor())(song(1.2))
    # By hand: windows of 0.5, 0.5 and 0.2 s of the song, normalised as a whole.
    values = torch.from_numpy(m2v.Music2VecFeatureExtractor().normalize(song(1.2)))
    logits, times = [], []
    with torch.no_grad():
        for start in (0, 8_000, 16_000):
            logits.append(model(values[None, start : start + 8_000]).logits[0].numpy())
            times.append(start / 16_000 + model.config.frame_times(len(logits[-1])))
    events = frame_events(np.concatenate(logits), np.concatenate(times), kind, settings)
    labels = model.config.id2label
    assert len(answer) == len(events) > 0
    for one, (start, end, label) in zip(answer, events, strict=True):
        assert one == {"start": pytest.approx(start), "end": pytest.approx(end), "label": labels[int(label)]}
