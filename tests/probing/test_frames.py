"""Tasks of beats, chords and melody: official layouts, exact events of synthetic clips, from audio to results."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from toy_datasets import BALLROOM, BEATS, gtzan_subset, write_tone
from toy_model import SIZES
from transformers import (
    AutoModelForAudioFrameClassification,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from music2vec_hf.common.events import stack_events
from music2vec_hf.common.files import read_results
from music2vec_hf.features.encoders import load_encoder
from music2vec_hf.features.frames import FrameEncoder
from music2vec_hf.features.spectral import SpectralEncoder
from music2vec_hf.model.events_music2vec import frame_events
from music2vec_hf.probing import frame_probes
from music2vec_hf.probing.frame_probes import chance_events, frame_targets
from music2vec_hf.probing.report import write_report
from music2vec_hf.probing.scores import Predictions, paired_difference
from music2vec_hf.probing.suite import run_suite
from music2vec_hf.probing.tasks.classes import split_stems
from music2vec_hf.probing.tasks.frames import BALLROOM_COPIES, hashed_split
from music2vec_hf.probing.tasks.loading import load_task
from music2vec_hf.synthetic.events import events_of
from music2vec_hf.synthetic.generator import synthesize_corpus, synthesize_score

CHORDS = "0.0 1.0 N\n1.0 2.5 C:maj\n2.6 3.0 A:min7/b3\n"
MELODY = "0.00\t0.0\n0.01\t220.0\n0.02\t225.0\n0.03\t-220.0\n0.04\t3000.0\n"
BEAT_ROWS = [(0.5, 0), (0.5, 1), (1.0, 0), (1.5, 0), (2.0, 0), (2.0, 1)]


def events(data, track):
    """Start, end, label of the events of a track."""
    for split in data.splits.values():
        if track in split.track_ids:
            rows = split.targets[split.track_ids.index(track)]
            return [tuple(row) for row in rows[rows[:, 2] >= 0].tolist()]
    raise KeyError(track)


def test_synthetic_events_are_those_of_the_score():
    """What is struck in a chord are its notes; drums of straight music lie on a grid of the beat."""
    struck = 0
    for index in range(10):
        score = synthesize_score(3, index, 6.0)
        found, spec = events_of(score), score.spec
        chords, beats = found["chords"], found["beats"]
        assert chords[0][0] == 0 and chords[-1][1] == 6.0
        assert all(a[1] == b[0] and a[2] != b[2] for a, b in pairwise(chords))
        np.testing.assert_allclose(np.diff(beats), 60 / spec.bpm, atol=1e-5)
        assert set(found["downbeats"]) <= set(beats)
        np.testing.assert_allclose(np.diff(found["downbeats"]), spec.style.bar_beats * 60 / spec.bpm, atol=1e-5)
        names = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
        triads = {"maj": (0, 4, 7), "min": (0, 3, 7), "dim": (0, 3, 6), "hdi": (0, 3, 6), "7": (0, 4, 7)}
        for note in score.notes:
            inside = [one for one in chords if one[0] + 0.03 < note.onset < one[1] - 0.03]
            if note.role in ("chords", "pad") and inside:
                root, quality = inside[0][2].split(":")
                above = (note.pitch - names.index(root)) % 12
                assert above in (*triads[quality[:3]], *((10, 11) if "7" in quality else ()))
                struck += 1
        if score.hits and spec.swing == 0.5:
            near = [min(abs(hit.onset - beat) for hit in score.hits) for beat in beats]
            assert np.median(near) < 0.02
    assert struck > 100


def test_a_synthetic_melody_is_what_its_voice_plays():
    lengths, silent = [], 0
    for index in range(20):
        score = synthesize_score(3, index, 6.0)
        segments = events_of(score)["melody"]
        assert segments[0][0] == 0 and segments[-1][1] == 6.0
        assert all(a[0] < a[1] == b[0] for a, b in pairwise(segments))
        played = [note for note in score.notes if note.role == "melody"]
        assert [note.pitch for note in sorted(played)] == [pitch for _, _, pitch in segments if pitch is not None]
        for start, end, pitch in segments:
            middle = (start + end) / 2
            sounding = [note for note in sorted(played) if note.onset <= middle < note.onset + note.seconds]
            assert pitch == (sounding[-1].pitch if sounding else None)  # the one that started last
            lengths += [end - start] if pitch is not None else []
        silent += not played
    assert len(lengths) > 100 and 0 < silent < 10 and 0.05 < np.median(lengths) < 1.0


def test_a_corpus_of_an_earlier_version_gets_its_events_from_synth(tmp_path):
    synthesize_corpus(tmp_path / "corpus", 12, seed=3, clip_seconds=2.0)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir() if path.is_file()}
    (tmp_path / "corpus" / "events.json").unlink()
    assert load_task("synthetic-genre", tmp_path / "corpus").comparable
    with pytest.raises(FileNotFoundError, match=r"has no events.json, .* Run `music2vec synth` on this folder again"):
        load_task("synthetic-beats", tmp_path / "corpus")
    synthesize_corpus(tmp_path / "corpus", 12, seed=3, clip_seconds=2.0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir() if path.is_file()} == kept
    clips = json.loads(kept["events.json"])
    older = {clip: {name: of[name] for name in of if name != "melody"} for clip, of in clips.items()}
    (tmp_path / "corpus" / "events.json").write_text(json.dumps(older))
    assert load_task("synthetic-chords", tmp_path / "corpus").comparable
    with pytest.raises(ValueError, match=r"no notes of the melody, which .* Run `music2vec synth` on this folder"):
        load_task("synthetic-melody", tmp_path / "corpus")
    synthesize_corpus(tmp_path / "corpus", 12, seed=3, clip_seconds=2.0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "corpus").iterdir() if path.is_file()} == kept
    lacking = dict(list(clips.items())[1:])
    (tmp_path / "corpus" / "events.json").write_text(json.dumps(lacking))
    with pytest.raises(ValueError, match=r"events.json' lacks 1 clips: synth-3-000000; delete it and run"):
        load_task("synthetic-chords", tmp_path / "corpus")


def test_ballroom_is_read_without_copies_and_albums_stay_together(toy):
    data = load_task("ballroom-beats", toy)
    used = {track: name for name, split in data.splits.items() for track in split.track_ids}
    assert set(used) == {*BALLROOM} - {*BALLROOM_COPIES} and len(BALLROOM_COPIES) == 13
    assert used["Albums-Fire-01"] == used["Albums-Fire-13"] == hashed_split("Albums-Fire")
    assert [(a, label) for a, _, label in events(data, "Media-103401")] == BEAT_ROWS
    assert "BallroomData/Waltz/alone.wav" in data.extra and "BallroomData/Waltz/Media-103415.wav" in data.extra
    assert data.affected["1 annotations have no audio file of their name: Media-1.beats."] == ("Media-1.beats",)
    assert not data.comparable and "train: 12 tracks, the benchmark has 449." in data.differences


def test_gtzan_rhythm_is_read_from_jams(tmp_path):
    root = gtzan_subset(tmp_path / "gtzan", per_split=1)
    with pytest.raises(FileNotFoundError, match=r"lacks 930 of 930 annotations: .*jams.*anasynth"):
        load_task("gtzan-beats", tmp_path, allow_missing=True)
    known = load_task("gtzan", root, allow_missing=True)
    dense = {"time": [0.5, 1.0, 1.5, 2.0]}
    sparse = [{"time": 0.5, "value": 1}, {"time": 2.0, "value": 1}]
    kinds = (("beat", dense), ("downbeat", sparse))
    content = {"annotations": [{"sandbox": {"annotation_type": kind}, "data": data} for kind, data in kinds]}
    (root / "rhythm" / "jams").mkdir(parents=True)
    for stem in [stem for stems in split_stems().values() for stem in stems]:
        (root / "rhythm" / "jams" / f"{stem}.wav.jams").write_text(json.dumps(content))
    data = load_task("gtzan-beats", tmp_path, allow_missing=True)
    assert data.split_sizes == known.split_sizes and data.paths == known.paths
    assert [(a, label) for a, _, label in events(data, data.splits["test"].track_ids[0])] == BEAT_ROWS
    (root / "rhythm" / "jams" / "blues.00029.wav.jams").write_text('{"annotations": []}')
    with pytest.raises(ValueError, match=r"blues.00029.wav.jams' has no annotation of the annotation_type beat"):
        load_task("gtzan-beats", tmp_path, allow_missing=True)


def test_own_folders_of_beats_and_of_chords(tmp_path):
    for split in ("train", "val", "test"):
        write_tone(tmp_path / "beats" / split / "a.wav", seconds=0.3)
        (tmp_path / "beats" / split / "a.beats").write_text(BEATS)
    data = load_task("beats", tmp_path / "beats")
    assert data.splits["validation"].track_ids == ("val/a.wav",)
    for album in range(30):
        for song in ("01_-_Intro", "02_-_Song"):  # names that every album has
            write_tone(tmp_path / "songs" / "audio" / f"album{album}" / f"{song}.flac", seconds=0.3)
            lab = tmp_path / "songs" / "chordlab" / f"album{album}" / f"{song}.lab"
            lab.parent.mkdir(parents=True, exist_ok=True)
            lab.write_text(CHORDS if song == "02_-_Song" else "0 3 N\n")
    lab = tmp_path / "songs" / "chordlab" / "album0" / "02_-_Song.lab"
    lab.write_text("0 3 C:aug\n")
    data = load_task("chords", tmp_path / "songs")
    assert sum(data.split_sizes.values()) == 59 and min(data.split_sizes.values()) > 0
    sentence = "1 tracks have no chords that can be scored, left out: audio/album0/02_-_Song.flac."
    assert data.affected[sentence] == ("audio/album0/02_-_Song.flac",)
    found = events(data, "audio/album7/02_-_Song.flac")
    assert found == [(0, 1, 24), (1, 2.5, 0), (2.5, 2.6, 25), (2.6, 3, 21)]  # the gap is not scored
    for split in data.splits.values():
        albums = [track.split("/")[1] for track in split.track_ids]
        assert all(albums.count(album) == 2 or album == "album0" for album in albums)


@pytest.mark.parametrize(
    "audio, annotation", [("a", "a.csv"), ("train01", "train01REF.txt"), ("Song_MIX", "Song_MELODY2.csv")]
)
def test_a_melody_is_read_from_a_series_of_frequencies(audio, annotation, tmp_path):
    text = MELODY.replace("\t", ",") if annotation.endswith("csv") else MELODY
    for split in ("train", "val", "test"):
        write_tone(tmp_path / split / f"{audio}.wav", seconds=0.3)
        (tmp_path / split / annotation).write_text(text)
    (tmp_path / "readme.txt").write_text("no series")
    data = load_task("melody", tmp_path)
    assert "1 annotations have no audio file of their name: readme.txt." in data.differences
    rows = events(data, f"test/{audio}.wav")  # A3 until past the middle of its two frames; 3 kHz is out of range
    assert [label for *_, label in rows] == [60, 21, 60, 61] and len(data.task.labels) == 61
    np.testing.assert_allclose([row[:2] for row in rows], [(0, 0.005), (0.005, 0.025), (0.025, 0.035), (0.035, 0.045)])
    (tmp_path / "val" / annotation).write_text("0 3000\n")
    with pytest.raises(ValueError, match="validation"):
        load_task("melody", tmp_path)


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("a.beats", "0.5\n1.0\n", r"Line 1 of '.*a.beats' is '0.5'; it needs a time in seconds and a place in the"),
        ("a.beats", "0.5 1\nx 2\n", r"Line 2 of '.*a.beats' is 'x 2'"),
        ("a.beats", "-0.5 1\n", r"has a beat at a time that is no number of seconds from 0 on"),
        ("a.beats", "nan 1\n", r"has a beat at a time that is no number of seconds from 0 on"),
        ("a.lab", "0 1\n", r"Line 1 of '.*a.lab' is '0 1'; it needs start, end and a chord"),
        ("a.lab", "0 1 H\n", r"'.*a.lab': 'H' is no chord such as A:min7/b3 or N"),
        ("a.lab", "0 2 C\n1 3 G\n", r"has a chord from 1 to 3 s after one that ends at 2 s"),
        ("a.lab", "2 1 C\n", r"has a chord from 2 to 1 s"),
        ("a.csv", "0,220\n1\n", r"Line 2 of '.*a.csv' is '1'; it needs a time in seconds and a frequency in Hz"),
        ("a.csv", "time,f0\n0,220\n", r"Line 1 of '.*a.csv' is 'time,f0'"),
        ("a.csv", "0,220\n0,221\n", r"'.*a.csv' has times that do not rise from 0 on"),
        ("a.csv", "0,220\n1,inf\n", r"'.*a.csv' has .* a frequency that is no number"),
    ],
)
def test_damaged_annotations_are_named(name, text, sentence, tmp_path):
    write_tone(tmp_path / "a.wav", seconds=0.3)
    (tmp_path / name).write_text(text)
    task = {"a.beats": "beats", "a.lab": "chords", "a.csv": "melody"}[name]
    with pytest.raises(ValueError, match=sentence):
        load_task(task, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"has no \.{name[2:]}.* file with the name of an audio file"):
        load_task(task, tmp_path)


def test_targets_of_frames():
    times = np.arange(100) * 0.02 + 0.0125
    rows = np.array([(0.5, 0.5, 0), (1.0, 1.0, 0), (1.0, 1.0, 1)])
    targets = frame_targets(rows, times, "beats", 0.02)
    for label, places in ((0, (0.5, 1.0)), (1, (1.0,))):
        near = np.any([np.abs(times - place) <= 0.03 for place in places], axis=0)
        np.testing.assert_array_equal(targets[:, label], near)
    assert frame_targets(rows[:0], times, "beats", 0.02).sum() == 0
    coarse = frame_targets(rows, np.arange(15) * 0.128, "beats", 0.128)  # chroma: each beat has a frame
    assert coarse[:, 0].sum() == 2
    melody = frame_targets(np.array([(0.1, 0.5, 3), (0.6, 1.0, 60)]), np.array([0.05, 0.1, 0.5, 0.6]), "melody", 0.02)
    assert melody.tolist() == [61, 3, 61, 60]
    chords = np.array([(0.1, 0.5, 3), (0.5, 1.0, 25), (1.0, 1.5, 24)])
    classes = frame_targets(chords, np.array([0.05, 0.1, 0.49, 0.5, 1.49, 1.5]), "chords", 0.02)
    assert classes.tolist() == [25, 3, 3, 25, 24, 25]


def test_targets_as_outputs_score_like_the_truth(corpus):
    """The way back: what a perfect probe says of every frame becomes the events themselves."""
    times = np.arange(99) * 0.02 + 0.0125
    for name, settings in (("synthetic-beats", [0.5, 0.5]), ("synthetic-chords", [0.0]), ("synthetic-melody", [0.0])):
        data = load_task(name, corpus)
        split = data.splits["test"]
        found = []
        for rows in split.targets:
            targets = frame_targets(rows[rows[:, 2] >= 0], times, data.task.events, 0.02)
            perfect = targets if data.task.events == "beats" else np.eye(62)[targets][:, : len(data.task.labels)]
            logits = 8.0 * perfect - 4
            found.append(frame_events(logits, times, data.task.events, settings))
        for metric in data.task.metrics:
            result = frame_probes.scored(data, "quick", frame_probes.stack_events(found)[None])
            # Some clips of 2 s have no downbeat, or no melody: they count as 0, as in mir_eval.
            label = {"beat_f_measure": [0], "downbeat_f_measure": [1], "melody_accuracy": range(60)}.get(metric)
            best = np.mean([label is None or bool(np.isin(rows[:, 2], label).any()) for rows in split.targets])
            assert result.scores[metric]["value"] == pytest.approx(best, abs=0.03)


def test_chance_is_a_grid_or_the_commonest_chord(corpus):
    data = load_task("synthetic-beats", corpus)
    rows = chance_events(data, "quick").predictions.outputs[0, 0]
    beats, down = (rows[rows[:, 2] == label, 0] for label in (0, 1))
    train = [of[of[:, 2] == 0, 0] for of in data.splits["train"].targets]
    np.testing.assert_allclose(np.diff(beats), np.median(np.concatenate([np.diff(times) for times in train])))
    assert beats[0] == down[0] == 0 and 1.5 < beats[-1] < 2.0 and set(down) <= set(beats)
    beats_alone = [of[of[:, 2] != 1] for of in data.splits["train"].targets]  # no track tells two downbeats
    train = replace(data.splits["train"], targets=stack_events(beats_alone))
    rows = chance_events(replace(data, splits=data.splits | {"train": train}), "quick").predictions.outputs[0, 0]
    assert np.array_equal(rows[rows[:, 2] == 0, 0][::4], rows[rows[:, 2] == 1, 0])
    for name, classes in (("synthetic-chords", range(25)), ("synthetic-melody", range(23, 54))):  # B3 to F6
        outputs = chance_events(load_task(name, corpus), "quick").predictions.outputs
        assert outputs.shape[2:] == (1, 3) and len(set(outputs[..., 2].flatten())) == 1
        assert outputs[0, 0, 0, 2] in classes
        np.testing.assert_allclose(outputs[..., :2], np.broadcast_to([0.0, 2.0], outputs[..., :2].shape))


def test_kept_frames_are_frames_of_the_track(corpus):
    path = load_task("synthetic-beats", corpus).splits["test"].paths[0]
    encoder = FrameEncoder(SpectralEncoder("mel"), 20)
    (times, frames), rows = next(encoder.hear([path])), encoder.rows([path])
    assert frames["mel"].shape == (63, 256) and rows.features["mel"].dtype == np.float16
    places = np.searchsorted(times, rows.seconds)
    assert len(set(places)) == 20 and np.array_equal(times[places], rows.seconds)
    np.testing.assert_allclose(rows.features["mel"], frames["mel"][places], rtol=1e-3, atol=1e-3)
    onset = np.zeros(16_000, np.float32)
    onset[8_000:] = 0.1 * np.random.default_rng(0).standard_normal(8_000)
    soundfile.write(path.parent.parent / "onset.wav", onset, 16_000)
    times, frames = next(encoder.hear([path.parent.parent / "onset.wav"]))
    assert abs(times[frames["mel"][:, 128:].sum(axis=1).argmax()] - 0.5) < 0.07  # in the middle of the rise


def test_models_of_others_give_frames_at_their_own_rate(corpus, tmp_path):
    sizes = SIZES | {"conv_dim": [8] * 3, "conv_kernel": [400, 3, 3], "conv_stride": [80, 2, 2]}
    HubertModel(HubertConfig(**sizes, feat_extract_norm="group")).save_pretrained(tmp_path / "hubert")
    Wav2Vec2FeatureExtractor(sampling_rate=8_000, do_normalize=True).save_pretrained(tmp_path / "hubert")
    encoder = FrameEncoder(load_encoder(tmp_path / "hubert"), 30)
    times, frames = next(encoder.hear(load_task("synthetic-beats", corpus).splits["test"].paths[:1], ["1"]))
    assert encoder.period == 0.04 and np.allclose(np.diff(times), 0.04) and 1.8 < times[-1] < 2.0
    assert frames["1"].shape == (len(times), SIZES["hidden_size"])


def test_of_a_long_track_every_window_keeps_its_share(corpus, encoder_folder):
    paths = load_task("synthetic-beats", corpus).splits["test"].paths[:2]
    encoder = FrameEncoder(load_encoder(encoder_folder), 40, window_seconds=0.5)
    rows, heard = encoder.rows(paths), list(encoder.hear(paths))
    assert rows.rows_per_track.tolist() == [40, 40] and list(rows.features) == ["conv", "0", "1", "2", "3"]
    for track, (times, frames) in enumerate(heard):
        kept = slice(*rows.offsets[track : track + 2])
        assert np.histogram(rows.seconds[kept], np.arange(0, 2.1, 0.5))[0].tolist() == [10] * 4
        places = np.searchsorted(times, rows.seconds[kept])
        np.testing.assert_allclose(rows.features["2"][kept], frames["2"][places], rtol=2e-3, atol=2e-3)


@pytest.fixture
def few_steps(monkeypatch):
    search = frame_probes.FRAME_SEARCH
    short = replace(search, settings=search.settings[:1], max_steps=40, eval_every=20)
    monkeypatch.setattr(frame_probes, "FRAME_SEARCH", short)
    monkeypatch.setattr(frame_probes, "THRESHOLDS", (0.2, 0.5))
    monkeypatch.setattr(frame_probes, "SMOOTHING_SECONDS", (0.0, 0.4))


def test_from_audio_to_results_report_and_an_exported_model_that_gives_times(
    corpus, tmp_path, encoder_folder, few_steps
):
    options = {"layers": ["0", "2"], "progress": False, "seeds": (0, 1), "export": tmp_path / "exported"}
    options |= {"cache_dir": tmp_path / "cache"}
    path = run_suite([encoder_folder], "synthetic-frames", corpus, tmp_path / "out", **options)
    content = read_results(path)
    metrics = ["beat_f_measure", "downbeat_f_measure", "chord_majmin", "melody_accuracy", "melody_overall"]
    records = [record for record in content["records"] if record["source"] == "model"]
    assert [record["metric"] for record in records] == metrics
    differences = {row["task"]: row["value"] for row in content["comparisons"] if row["baseline"] == "chance"}
    for record in records:
        stored = Predictions.load(tmp_path / "out" / record["predictions"])
        assert np.mean(stored.scores(record["metric"])) == pytest.approx(record["value"])
        assert list(record["validation_by_layer"]) == ["0", "2"] and record["ensemble"] is None
        assert len(record["frames"]["event_settings"]) == 2
        paired = paired_difference(path, path, "model", "chance")[record["task"]]
        assert paired.value == pytest.approx(differences[record["task"]])
    report = write_report(tmp_path / "out", tmp_path / "page").read_text()
    for text in ("beat F-measure", "majmin overlap", "raw pitch accuracy", "chance on"):
        assert text in report

    # The same again, into another folder, reads what the cache has.
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.parquet")}
    options["export"] = None
    again = run_suite([encoder_folder], "synthetic-melody", corpus, tmp_path / "again", **options)
    melody = {record["metric"]: record["value"] for record in records if record["task"] == "synthetic-melody"}
    found = [record for record in read_results(again)["records"] if record["source"] == "model"]
    assert {record["metric"]: record["value"] for record in found} == melody
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.parquet")}

    for name in ("synthetic-beats", "synthetic-chords", "synthetic-melody"):
        stored = Predictions.load(tmp_path / "out" / f"predictions/model--{name}.npz")
        files = load_task(name, corpus).splits["test"].paths
        find = pipeline("audio-classification", model=str(tmp_path / "exported" / name))
        for answer, rows in zip(find([str(file) for file in files[:3]]), stored.outputs[0], strict=False):
            expected = rows[rows[:, 2] >= 0]
            assert [one["label"] for one in answer] == [stored.labels[int(label)] for label in expected[:, 2]]
            times = [(one["start"], one["end"]) for one in answer]
            np.testing.assert_allclose(np.reshape(times, (-1, 2)), expected[:, :2], atol=1e-6)
        head = AutoModelForAudioFrameClassification.from_pretrained(tmp_path / "exported" / name)
        assert head.config.frame_events == name.removeprefix("synthetic-")
        assert "the head answers for every frame" in (tmp_path / "exported" / name / "README.md").read_text()


def test_other_protocols_are_refused_before_anything_is_read(tmp_path, encoder_folder):
    sentence = "synthetic-beats, synthetic-chords, synthetic-melody: frames are probed under 'quick' only, not under"
    with pytest.raises(ValueError, match=sentence):
        run_suite([encoder_folder], ["synthetic-genre", "synthetic-frames"], tmp_path, tmp_path / "out", "marble")
