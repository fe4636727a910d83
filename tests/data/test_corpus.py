"""From a messy folder to a corpus: exactly the expected clips and rejects, the same bytes however one gets there."""

import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
import soundfile

from music2vec_hf.data.audio import read_audio
from music2vec_hf.data.corpus import load_corpus, prepare_corpus, read_clip, read_crop


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def prepare(source, out, **settings):
    return prepare_corpus(source, out, **{"clip_seconds": 5.0, "progress": False, **settings})


def music(seconds, rate=16000, channels=1, seed=0, level=0.1):
    rng = np.random.default_rng(seed)
    return np.clip(level * rng.standard_normal((round(seconds * rate), channels)), -0.99, 0.99)


def write(path, samples, rate=16000, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **kwargs)


def rejects_of(out):
    with open(out / "rejects.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    return rows[1:]


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_messy_folder(folder):
    write(folder / "wav16.wav", music(12, 44100, 2, seed=1), 44100)  # 5 + 5 + 2
    write(folder / "wav24.wav", music(6, seed=2), subtype="PCM_24")  # 5, remainder of 1 s dropped
    write(folder / "deep" / "er" / "mp3.mp3", music(4, 22050, seed=3), 22050)
    write(folder / "Größe 音楽.ogg", music(2.5, seed=4), format="OGG")
    write(folder / "surround.flac", music(5, 48000, 6, seed=5), 48000)
    write(folder / "misnamed.mp3", music(3, seed=6), format="WAV")
    quiet_end = np.concatenate([music(5, seed=7), np.zeros((5, 1)).repeat(16000, 0)])
    write(folder / "half_silent.wav", quiet_end)
    write(folder / "silent.flac", np.zeros(80000))
    write(folder / "nearly_silent.wav", music(5, seed=8, level=1e-4), subtype="PCM_24")
    write(folder / "offset.wav", np.full(80000, 0.5))
    write(folder / "click.wav", music(0.05))
    nan = music(10, seed=9)
    nan[-1] = np.nan
    write(folder / "nan.wav", nan, subtype="FLOAT")
    (folder / "empty.mp3").touch()
    (folder / "letter.wav").write_text("This is a letter, not a song.\n" * 100)
    (folder / "notes.txt").write_text("not looked at")
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    (folder / "deep" / "loop").symlink_to(folder, target_is_directory=True)
    for name, samples, rate in [
        ("cut.flac", music(10, 44100, seed=10), 44100),
        ("cut.mp3", music(10, seed=11), 16000),
    ]:
        write(folder / name, samples, rate)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) * 7 // 10])


EXPECTED_CLIPS = {
    "Größe 音楽.ogg": [(0.0, 2.5)],
    "cut.flac": [(0.0, 5.0)],
    "cut.mp3": [(0.0, 5.0)],
    "deep/er/mp3.mp3": [(0.0, 4.0)],
    "half_silent.wav": [(0.0, 5.0)],
    "misnamed.mp3": [(0.0, 3.0)],
    "surround.flac": [(0.0, 5.0)],
    "wav16.wav": [(0.0, 5.0), (5.0, 5.0), (10.0, 2.0)],
    "wav24.wav": [(0.0, 5.0)],
}
EXPECTED_REJECTS = {
    "click.wav": "too short: it lasts 0.05 s, at least 2 s are needed.",
    "cut.flac": "truncated: only 6.",
    "cut.mp3": "truncated: only ",
    "empty.mp3": "empty: it has 0 bytes.",
    "gone.wav": "unreadable: it cannot be opened (No such file or directory).",
    "half_silent.wav": "silence: the clip at 5 s (all samples are equal).",
    "letter.wav": "undecodable: no decoder reads it (Format not recognised).",
    "nan.wav": "non-finite: it holds samples that are NaN or infinite.",
    "nearly_silent.wav": "silence: the clip at 0 s (peak -6",
    "offset.wav": "silence: the clip at 0 s (all samples are equal).",
    "silent.flac": "silence: the clip at 0 s (all samples are equal).",
}


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messy")
    make_messy_folder(folder / "source")
    summary = prepare(folder / "source", folder / "out")
    return folder / "source", folder / "out", summary


def test_a_messy_folder_gives_exactly_the_expected_clips(messy):
    _, out, summary = messy
    clips = {}
    for row in load_corpus(out).remove_columns("audio"):
        clips.setdefault(row["source"], []).append((row["clip_start"], row["duration"]))
        assert row["track_id"] == hashlib.sha256(row["source"].encode()).hexdigest()[:16]
    # cut.flac and cut.mp3 keep their first clip; what follows is shorter than `min_seconds`.
    assert clips == EXPECTED_CLIPS
    assert list(clips) == sorted(clips, key=lambda name: name.split("/"))
    seconds = sum(duration for rows in clips.values() for _, duration in rows)
    assert summary["clips"] == 11 and summary["tracks"] == 9
    assert summary["hours"] == pytest.approx(seconds / 3600, abs=1e-6)
    assert summary == json.loads((out / "corpus.json").read_text())
    assert not (out / ".staging").exists()


def test_nothing_is_left_out_silently(messy):
    source, out, summary = messy
    rejects = rejects_of(out)
    assert [path for path, _ in rejects] == sorted(EXPECTED_REJECTS)
    for path, reason in rejects:
        assert reason.startswith(EXPECTED_REJECTS[path]), (path, reason)
        assert str(source) not in reason
    assert summary["rejects"] == {
        "empty": 1, "non-finite": 1, "silence": 4, "too short": 1, "truncated": 2, "undecodable": 1, "unreadable": 1,
    }  # fmt: skip
    assert summary["rejected_files"] == 8
    # 1 s of wav24.wav, and what is left after 5 s of the two files that were cut at about 7 s.
    assert summary["remainder_hours"] * 3600 == pytest.approx(1.0 + 2 * 1.9, abs=0.2)


def test_clips_hold_the_audio_of_their_file(messy):
    source, out, _ = messy
    for row in load_corpus(out):
        if row["source"].startswith("cut"):
            continue
        whole = read_audio(source / row["source"])
        first = round(row["clip_start"] * 16000)
        expected = whole[first : first + round(row["duration"] * 16000)]
        np.testing.assert_allclose(read_clip(row), expected, atol=2**-15)


def test_mean_and_std_are_those_of_the_stored_clip(messy):
    for row in load_corpus(messy[1]):
        clip = read_clip(row).astype(np.float64)
        assert row["clip_mean"] == pytest.approx(clip.mean(), abs=1e-9)
        assert row["clip_std"] == pytest.approx(clip.std(), abs=1e-9)


def test_a_crop_is_the_slice_of_the_clip(messy):
    row = load_corpus(messy[1])[3]
    np.testing.assert_array_equal(read_crop(row, 7000, 20000), read_clip(row)[7000:27000])
    with pytest.raises(ValueError, match="does not lie inside"):
        read_crop(row, 70000, 20000)


def test_plain_datasets_loads_it_and_knows_the_audio(messy):
    _, out, summary = messy
    shards = [str(path) for path in sorted((out / "data").iterdir())]
    by_files = datasets.load_dataset("parquet", data_files=shards, split="train")
    by_folder = datasets.load_dataset(str(out), split="train")
    for dataset in (by_files, by_folder):
        assert len(dataset) == summary["clips"]
        assert dataset.features["audio"] == datasets.Audio(sampling_rate=16000, decode=False)
    assert "torchcodec" not in sys.modules
    assert "split: train" in (out / "README.md").read_text()


def test_two_processes_write_the_same_bytes(messy, tmp_path):
    source, out, _ = messy
    prepare(source, tmp_path / "out", num_proc=2)
    assert contents(tmp_path / "out") == contents(out)


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for index in range(12):
        write(source / f"{index:02d}.flac", music(20, 44100, seed=index), 44100)
    settings = {"clip_seconds": 5.0, "shard_megabytes": 1, "progress": False}
    prepare(source, tmp_path / "undisturbed", **settings)
    code = (
        "import sys, json, time; from music2vec_hf.data import prepare\n"
        "stage = prepare.stage_track\n"
        "def slow(job):\n    time.sleep(0.1)\n    return stage(job)\n"
        "prepare.stage_track = slow\n"
        f"prepare.prepare_corpus({str(source)!r}, {str(out)!r}, **{settings!r})\n"
    )
    for num_done in (3, 7):
        process = subprocess.Popen([sys.executable, "-c", code])
        while len(list(out.glob(".staging/tracks/*/*.json"))) < num_done:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "corpus.json").exists()
        with pytest.raises(ValueError, match=r"no finished corpus \(corpus.json is missing\)"):
            load_corpus(out)
    assert list(out.glob(".staging/shards/*.parquet"))
    summary = prepare(source, out, **settings)
    assert summary["splits"]["train"]["shards"] > 2
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("fails_at", ["data/train-00001", "rejects.csv", "README.md", "corpus.json"])
def test_a_run_killed_while_publishing_goes_on(tmp_path, monkeypatch, fails_at):
    for index in range(3):
        write(tmp_path / "source" / f"{index}.wav", music(6, seed=index))
    prepare(tmp_path / "source", tmp_path / "whole", shard_megabytes=0.1)
    replace = os.replace

    def killed(source, target):
        if fails_at in str(target):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "source", tmp_path / "out", shard_megabytes=0.1)
    prepare(tmp_path / "source", tmp_path / "out", shard_megabytes=0.1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_corpus_is_not_made_again_and_other_settings_are_refused(messy, tmp_path):
    source, out, summary = messy
    before = contents(out)
    assert prepare(source, out) == summary
    with pytest.raises(ValueError, match=r"was made with clip_seconds 5.0, now it is 7.0"):
        prepare(source, out, clip_seconds=7.0)
    assert contents(out) == before
    write(tmp_path / "other" / "a.wav", music(3))
    with pytest.raises(ValueError, match="was made with files 17, now it is 1"):
        prepare(tmp_path / "other", out)


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    write(tmp_path / "source" / "a.wav", music(3))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"holds something else than a corpus \(thesis.tex\)"):
        prepare(tmp_path / "source", tmp_path / "out")
    with pytest.raises(ValueError, match="is a file"):
        prepare(tmp_path / "source", tmp_path / "out" / "thesis.tex")


def test_nothing_usable_is_an_error_with_the_commonest_reason(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(ValueError, match=r"No audio files below .*\.flac"):
        prepare(source, tmp_path / "out")
    with pytest.raises(ValueError, match="does not exist"):
        prepare(tmp_path / "absent", tmp_path / "out")
    for index in range(3):
        (source / f"{index}.wav").write_text("no audio")
    (source / "empty.wav").touch()
    with pytest.raises(
        ValueError, match=r"None of the 4 audio files .* commonest reason is 'undecodable' \(3 times\)"
    ):
        prepare(source, tmp_path / "out")
    # With better files the same folder is taken.
    write(source / "empty.wav", music(3))
    assert prepare(source, tmp_path / "out")["clips"] == 1


def test_settings_without_sense_are_refused(tmp_path):
    for settings in ({"min_seconds": 6.0}, {"min_seconds": 0.0}, {"num_proc": 0}, {"shard_megabytes": 0}):
        with pytest.raises(ValueError, match="0 < min_seconds <= clip_seconds"):
            prepare(tmp_path, tmp_path / "out", **settings)


def make_manifest(folder, name, text):
    for index, stem in enumerate(["a", "b", "c"]):
        write(folder / f"{stem}.wav", music(3, seed=index))
    (folder / name).write_text(text)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_manifest_chooses_files_and_brings_its_columns(tmp_path, as_file):
    source = tmp_path / "source"
    make_manifest(
        source,
        "list.csv",
        "file_name,genre,year,code,tempo,split,duration\n"
        "b.wav,rock,1999,007,120.5,test,181\n"
        "a.wav,jazz,,012,90,train,200\n"
        "a.wav,jazz,2000,012,90,train,200\n"
        "gone.wav,jazz,2001,1,90,train,1\n",
    )
    summary = prepare(source / "list.csv" if as_file else source, tmp_path / "out")
    assert {name: split["clips"] for name, split in summary["splits"].items()} == {"train": 1, "test": 1}
    assert [path for path, _ in rejects_of(tmp_path / "out")] == ["a.wav", "gone.wav"]
    with pytest.raises(ValueError, match="has the splits train, test; name one of them, or 'all'"):
        load_corpus(tmp_path / "out")
    with pytest.raises(ValueError, match="has no split 'validation', only train, test"):
        load_corpus(tmp_path / "out", "validation")
    both = load_corpus(tmp_path / "out", "all").remove_columns("audio")
    assert both["source"][:] == ["a.wav", "b.wav"]
    assert both[0]["year"] is None and both[1]["year"] == 1999
    assert both["code"][:] == ["012", "007"] and both["tempo"][:] == [90.0, 120.5]
    assert both["duration"][:] == [3.0, 3.0] and both["manifest_duration"][:] == [200, 181]
    assert load_corpus(tmp_path / "out", "test")["genre"][:] == ["rock"]


def test_a_jsonl_manifest_keeps_lists_and_track_ids(tmp_path):
    rows = [{"path": f"{stem}.wav", "tags": ["x", stem], "track_id": f"T{stem}"} for stem in "abc"]
    make_manifest(tmp_path / "source", "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    prepare(tmp_path / "source", tmp_path / "out")
    dataset = load_corpus(tmp_path / "out")
    assert dataset["tags"][:] == [["x", "a"], ["x", "b"], ["x", "c"]]
    assert dataset["track_id"][:] == ["Ta", "Tb", "Tc"]


def test_manifests_that_cannot_be_understood_are_refused(tmp_path):
    source = tmp_path / "source"
    make_manifest(source, "one.csv", "path,x\na.wav,1\n")
    (source / "labels.csv").write_text("name,x\na,1\n")  # no column of paths: no manifest
    assert prepare(source, tmp_path / "out")["clips"] == 1
    (source / "two.tsv").write_text("path\tx\na.wav\t1\n")
    with pytest.raises(ValueError, match=r"2 manifests \(one.csv, two.tsv\)"):
        prepare(source, tmp_path / "out2")
    with pytest.raises(ValueError, match="none named file_name, path, file"):
        prepare(source / "labels.csv", tmp_path / "out2")
    (source / "bad.jsonl").write_text('{"path": "a.wav", "x": 1}\n{"path": "b.wav", "x": "one"}\n')
    with pytest.raises(ValueError, match="mixes kinds of values in the column 'x'"):
        prepare(source / "bad.jsonl", tmp_path / "out2")
    with pytest.raises(ValueError, match="neither a folder nor a manifest"):
        prepare(source / "a.wav", tmp_path / "out2")


def test_an_incomplete_copy_is_noticed(messy, tmp_path):
    source, _, _ = messy
    prepare(source, tmp_path / "out", shard_megabytes=0.3)
    shards = sorted((tmp_path / "out" / "data").iterdir())
    shards[-1].unlink()
    with pytest.raises(ValueError, match=rf"should hold {len(shards)} shards of the split train but holds"):
        load_corpus(tmp_path / "out")
    with pytest.raises(ValueError, match=r"is not a folder; make a corpus with `music2vec prepare"):
        load_corpus(tmp_path / "absent")


def test_foreign_parquet_is_loaded_and_cropped_at_16_khz(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, music(4, 44100, 2), 44100, format="FLAC")
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": buffer.getvalue(), "path": "a.flac"}], "label": [1]})
    rows.cast_column("audio", datasets.Audio(decode=False)).to_parquet(tmp_path / "foreign.parquet")
    row = load_corpus(tmp_path)[0]
    np.testing.assert_allclose(read_crop(row, 1000, 16000), read_clip(row)[1000:17000], atol=2e-6)
    with pytest.raises(ValueError, match="ends 8000 samples earlier"):
        read_crop(row, 56000, 16000)
    datasets.Dataset.from_dict({"label": [1]}).to_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match="has no column of audio \\(columns: label\\)"):
        load_corpus(tmp_path)
