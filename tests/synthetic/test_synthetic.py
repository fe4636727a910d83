"""Laws of the synthetic corpus: it repeats itself to the bit, its labels are balanced and true of the audio."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
import soundfile
from toy_corpus import interrupt

from music2vec_hf.synthetic.generator import (
    COLUMNS,
    OTHER_TAGS,
    TAGS,
    load_synthetic_labels,
    place_of,
    synthesize_clip,
    synthesize_corpus,
    synthesize_score,
)
from music2vec_hf.synthetic.score import DRUM_KITS, GENRES, HARMONY, KEYS, POOLS, STYLES, TIMBRES, parse_chord

# Krumhansl and Kessler's probe-tone ratings: how well each degree fits a major and a minor key.
PROFILES = {
    "major": [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
    "minor": [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],
}


@pytest.fixture(scope="module")
def clips():
    """120 clips of 5 s: (samples, labels)."""
    return [synthesize_clip(3, index, 5.0) for index in range(120)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "corpus"
    return folder, synthesize_corpus(folder, num_clips=40, seed=7, clip_seconds=2.5)


def places(num_clips):
    """Genre, key and split of each clip."""
    order = np.random.default_rng(0).permutation(12)
    return [(place["genre"], place["key"], place["split"]) for place in (place_of(i, order) for i in range(num_clips))]


# Determinism


def test_a_clip_depends_neither_on_how_many_follow_nor_on_the_number_of_processes(corpus, tmp_path):
    synthesize_corpus(tmp_path / "short", num_clips=3, seed=7, clip_seconds=2.5, num_proc=2)
    short, long = load_synthetic_labels(tmp_path / "short"), load_synthetic_labels(corpus[0])
    assert short == long[:3]
    for row in short:
        assert (tmp_path / "short" / row["file_name"]).read_bytes() == (corpus[0] / row["file_name"]).read_bytes()


def test_generator_version_1_gives_what_it_always_gave():
    """Labels to the digit; samples to the rounding of another machine's mathematics."""
    samples, labels = synthesize_clip(5, 17, 4.0)
    assert labels == {
        "split": "train",
        "track_id": "synth-5-000017",
        "composition_id": "composition-5-000017",
        "genre": "bossa",
        "key": "C minor",
        "arousal": 0.267008,
        "valence": 0.037654,
        "tags": ["epiano", "tuba", "drums", "staccato", "minor", "no_melody"],
        "duration": 4.0,
    }
    first = [0.1481782, -4.24e-05, 0.1146991, -0.0006852, -0.0047678, 0.0003978, -0.0343105, 0.0079367]
    np.testing.assert_allclose(samples[::8000], first, atol=1e-5)


def test_seeds_and_indices_give_different_music_and_leave_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, *others = (synthesize_clip(seed, index, 3.0) for seed, index in ((0, 0), (1, 0), (0, 10)))
    for samples, labels in others:
        assert labels["genre"] == first[1]["genre"]
        assert abs(np.corrcoef(first[0], samples)[0, 1]) < 0.3
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


# Balance


def test_splits_hold_60_15_25_percent_and_every_genre_and_key_and_few_clips_fill_them():
    counts = Counter((split, genre) for genre, _, split in places(400))
    shares = {"train": 24, "validation": 6, "test": 10}
    assert counts == {(split, genre): share for split, share in shares.items() for genre in GENRES}
    assert set(Counter(key for _, key, split in places(400) if split == "train").values()) == {10}
    assert {(split, genre) for genre, _, split in places(40)} == set(counts)
    assert {split for _, _, split in places(10)} == set(shares)


def test_no_label_tells_another_one():
    """Within a genre the training split walks through all 24 keys, half of them minor, before one comes back."""
    train = [(genre, key) for genre, key, split in places(400) if split == "train"]
    assert set(Counter(train).values()) == {1} and len(train) == 240
    for genre in GENRES:
        early = [key for name, key in train if name == genre][:8]
        assert sum(key.endswith("minor") for key in early) == 4


def test_tags_are_neither_rare_nor_everywhere(clips):
    counts = Counter(tag for _, labels in clips for tag in labels["tags"])
    shares = np.array([counts[tag] / len(clips) for tag in TAGS])
    assert len(TAGS) == 28 and set(counts) <= set(TAGS)
    assert shares.min() >= 0.01 and shares.max() <= 0.8
    assert 0.15 < shares.mean() < 0.25


def test_arousal_and_valence_spread_and_are_not_one_variable(clips):
    affect = np.array([(labels["arousal"], labels["valence"]) for _, labels in clips])
    assert np.all(np.abs(affect) < 1) and np.all(np.abs(affect.mean(axis=0)) < 0.12)
    assert np.all((affect.std(axis=0) > 0.28) & (affect.std(axis=0) < 0.5))
    assert 0 < np.corrcoef(affect.T)[0, 1] < 0.6


# Labels are true of the music


def test_chroma_of_the_audio_agrees_with_the_key(clips):
    """Krumhansl's template on a plain chroma names the key in most clips; chance is 1 in 24."""
    profiles = np.array([np.roll(PROFILES[mode], tonic) for mode in ("major", "minor") for tonic in range(12)])
    profiles = (profiles - profiles.mean(axis=1, keepdims=True)) / profiles.std(axis=1, keepdims=True)
    hz = np.fft.rfftfreq(8192, 1 / 16_000)
    heard = (hz > 60) & (hz < 1000)
    pitch_class = np.round(69 + 12 * np.log2(np.maximum(hz, 1) / 440)).astype(int) % 12
    right = []
    for samples, labels in clips[:100]:
        frames = np.lib.stride_tricks.sliding_window_view(samples, 8192)[::4096] * np.hanning(8192)
        spectrum = np.sqrt(np.abs(np.fft.rfft(frames))).mean(axis=0)
        chroma = np.array([spectrum[heard & (pitch_class == value)].mean() for value in range(12)])
        right.append(KEYS[int((profiles @ (chroma - chroma.mean())).argmax())] == labels["key"])
    assert 0.35 < np.mean(right) < 0.9


def test_metre_and_swing_follow_the_genre(clips):
    for _, labels in clips:
        assert ("triple_or_compound" in labels["tags"]) == (labels["genre"] in ("waltz", "jig"))
        assert ("swung" in labels["tags"]) == (labels["genre"] in ("swing", "blues"))
        assert ("minor" in labels["tags"]) == labels["key"].endswith("minor")


@pytest.mark.parametrize("genre, period", [("waltz", 3), ("house", 4)])
def test_the_bass_marks_the_bar(genre, period):
    """Bass onsets repeat after a bar of three or four beats, up to the human jitter."""
    for index in range(GENRES.index(genre), 60, 10):
        score = synthesize_score(1, index)
        onsets = np.array([note.onset for note in score.notes if note.role == "bass"])
        bar = period * 60 / score.spec.bpm
        later = onsets[onsets < 10 - bar - 0.1] + bar
        assert all(np.abs(onsets - onset).min() < 0.06 for onset in later)


def test_an_instrument_counts_only_if_it_sounds(clips):
    for index, (_, labels) in enumerate(clips[:20]):
        score = synthesize_score(3, index, 5.0)
        sounding = {score.spec.instruments[note.role] for note in score.notes}
        assert sounding == set(labels["tags"]) - set(OTHER_TAGS)
        assert all(note.onset < 5.0 and note.onset + note.seconds > 0 for note in score.notes)


def test_every_table_entry_can_be_played():
    assert set().union(*POOLS.values()) == set(TIMBRES) and len(STYLES) == 10
    for progressions in HARMONY["progressions"].values():
        for lines in (progressions["major"], progressions["minor"]):
            assert all(parse_chord(symbol).intervals for line in lines for symbol in line.split())
    for entries in (TIMBRES, STYLES, *DRUM_KITS.values()):
        assert len({tuple(vars(row)) for row in entries.values()}) == 1, "an entry has a field without a default"
    for style in STYLES.values():
        assert None not in vars(style).values() and set(style.typical) <= set(TIMBRES)
        assert all(set(pattern) <= set(DRUM_KITS["hand"]) for pattern in style.drums)


# Levels


def test_levels_are_in_range_and_no_clip_is_silent(clips):
    level = np.array([20 * np.log10(np.sqrt(np.mean(samples**2))) for samples, _ in clips])
    assert -23.6 < level.mean() < -22.4 and 1.5 < level.std() < 2.5
    assert all(samples.dtype == np.float32 and np.isfinite(samples).all() for samples, _ in clips)
    assert all(0.05 < np.abs(samples).max() < 0.98 for samples, _ in clips)


def test_no_label_depends_on_the_absolute_level(clips):
    """With 120 clips a correlation of 0.3 would be seen once in a thousand such corpora."""
    level = np.array([np.log(np.sqrt(np.mean(samples**2))) for samples, _ in clips])
    for name in ("arousal", "valence"):
        assert abs(np.corrcoef(level, [labels[name] for _, labels in clips])[0, 1]) < 0.3
    for tag in ("drums", "minor", "dense", "fast"):
        assert abs(np.corrcoef(level, [tag in labels["tags"] for _, labels in clips])[0, 1]) < 0.3


@pytest.mark.parametrize("clip_seconds", [2.0, 30.0, 4.00003])
def test_duration_is_exact(clip_seconds):
    samples, labels = synthesize_clip(0, 4, clip_seconds)
    assert len(samples) == round(16_000 * clip_seconds) and labels["duration"] == len(samples) / 16_000


# The corpus on disk


def test_corpus_holds_what_its_metadata_says(corpus):
    folder, summary = corpus
    rows = load_synthetic_labels(folder)
    assert len(rows) == 40 and tuple(rows[0]) == COLUMNS
    for row in rows:
        info = soundfile.info(folder / row["file_name"])
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16_000, 1, "FLAC", "PCM_16")
        assert info.frames == 40_000 and row["duration"] == 2.5
        assert row["file_name"] == f"audio/{row['split']}/{row['track_id']}.flac"
    assert len({row["composition_id"] for row in rows}) == 40, "no split shares a composition"
    assert json.loads((folder / "synth.json").read_text()) == summary
    assert summary["splits"] == dict(Counter(row["split"] for row in rows))
    assert summary["keys"] == list(KEYS) and summary["tags"] == list(TAGS) and summary["genres"] == list(GENRES)
    assert len(set(KEYS)) == 24 and KEYS[1] == "Db major" and KEYS[-2] == "Bb minor" and "#" not in "".join(KEYS)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "audio", "events.json", "metadata.csv", "synth.json")
    ]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: cc0-1.0\n")
    assert "**The audio is synthetic**" in card and "not human ratings" in card
    assert "music2vec synth OUT --clips 40 --seed 7 --clip-seconds 2.5" in card


def test_written_audio_is_the_clip_to_16_bits(corpus):
    row = load_synthetic_labels(corpus[0])[11]
    samples, labels = synthesize_clip(7, 11, 2.5)
    written, _ = soundfile.read(corpus[0] / row["file_name"], dtype="float32")
    assert np.abs(written - samples).max() <= 1 / 32768
    assert labels == {name: row[name] for name in COLUMNS if name != "file_name"}


def test_the_same_corpus_is_kept_and_anything_else_refused(corpus, tmp_path):
    folder, summary = corpus
    assert synthesize_corpus(folder, num_clips=40, seed=7, clip_seconds=2.5) == summary
    with pytest.raises(ValueError, match="is not empty"):
        synthesize_corpus(folder, num_clips=41, seed=7, clip_seconds=2.5)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        synthesize_corpus(tmp_path, num_clips=1, seed=0)
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("music2vec_hf.synthetic.generator._write_clip", interrupt)
    with pytest.raises(KeyboardInterrupt):
        synthesize_corpus(tmp_path / "out", num_clips=2, seed=0, clip_seconds=2.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"num_clips": 0}, "`num_clips` is 0, but it must be a whole number from 1"),
        ({"num_clips": 2.5}, "`num_clips` is 2.5"),
        ({"seed": -1}, "`seed` is -1"),
        ({"clip_seconds": 0.5}, "`clip_seconds` is 0.5, but it must be a number of seconds from 2.0 to 120.0"),
        ({"clip_seconds": float("nan")}, "`clip_seconds` is nan"),
        ({"num_proc": 0}, "`num_proc` is 0"),
    ],
)
def test_bad_arguments_are_refused_with_one_sentence(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        synthesize_corpus(tmp_path / "out", **{"num_clips": 2, "seed": 0, **change})
    assert not (tmp_path / "out").exists()


def test_missing_files_are_named(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no metadata.csv"):
        load_synthetic_labels(tmp_path)
    (tmp_path / "metadata.csv").write_bytes((corpus[0] / "metadata.csv").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"40 of the 40 audio files .* the first is audio/"):
        load_synthetic_labels(tmp_path)
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["file_name", "label"])
    with pytest.raises(ValueError, match="but a synthetic corpus has"):
        load_synthetic_labels(tmp_path)
