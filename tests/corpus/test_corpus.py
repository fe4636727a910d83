"""From a messy folder to a corpus: exactly the expected clips and rejects, the same bytes however one gets there."""

import hashlib
import json
import os
import sys
import tarfile
from collections import Counter

import datasets
import numpy as np
import pytest
from awkward import LINKS, TABLE, encoded, in_order, make_awkward_folder, music
from toy_corpus import contents, kill, prepare, rejects_of, start_until, write

from music2vec_hf.audio.reading import read_audio
from music2vec_hf.corpus.loading import load_corpus, read_clip, read_crop

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messy")
    make_awkward_folder(folder / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchcodec.decoders", None)
        summary = prepare(folder / "source", folder / "out")
    return folder / "source", folder / "out", summary


def test_an_awkward_folder_gives_exactly_the_expected_clips(messy):
    _, out, summary = messy
    clips, expected = {}, {name: clips for name, (_, clips, _) in TABLE.items() if clips}
    for row in load_corpus(out).remove_columns("audio"):
        clips.setdefault(row["source"], []).append((row["clip_start"], row["duration"]))
        assert row["track_id"] == hashlib.sha256(row["source"].encode()).hexdigest()[:16]
    assert clips == expected
    assert list(clips) == in_order(expected)
    seconds = [duration for rows in expected.values() for _, duration in rows]
    assert summary["clips"] == len(seconds) and summary["tracks"] == len(expected)
    assert summary["hours"] == pytest.approx(sum(seconds) / 3600, abs=1e-6)
    assert summary == json.loads((out / "corpus.json").read_text())
    assert not (out / ".unfinished").exists()


def test_nothing_is_left_out_silently(messy):
    source, out, summary = messy
    expected = [(name, reason) for name in in_order(TABLE) for reason in TABLE[name][2]]
    rejects = rejects_of(out)
    assert [path for path, _ in rejects] == [path for path, _ in expected]
    for (path, reason), (_, beginning) in zip(rejects, expected, strict=True):
        assert reason.startswith(beginning), (path, reason)
        assert str(source) not in reason
    assert summary["rejects"] == Counter(reason.split(":")[0] for _, reason in expected)
    assert summary["rejected_files"] == sum(not clips and bool(reasons) for _, clips, reasons in TABLE.values())
    # 1 s of wav24.wav, 0.2 s and what the encoder adds of the joined mp3, what is left of the files that were cut.
    assert summary["remainder_hours"] * 3600 == pytest.approx(1.0 + 0.2 + 4 * 2.0 + 2 * 1.9 + 1.0, abs=1.0)


def test_the_corpus_knows_what_the_files_were(messy):
    rows = {row["source"]: row for row in load_corpus(messy[1]).remove_columns("audio")}
    for name, rate, channels, kind in [
        ("formats/wav16.wav", 44100, 2, "WAV PCM_16"),
        ("formats/mp3.mp3", 22050, 1, "MP3 MPEG_LAYER_III"),
        ("names/really_wav.mp3", 16000, 1, "WAV PCM_16"),
        ("channels/surround.flac", 48000, 6, "FLAC PCM_16"),
        ("formats/opus.opus", 48000, 1, "OGG OPUS"),
    ]:
        row = rows[name]
        assert (row["source_sampling_rate"], row["source_channels"], row["source_format"]) == (rate, channels, kind)


@pytest.mark.filterwarnings("ignore:.*only .* s of the:UserWarning", "ignore:.*it ends after:UserWarning")
def test_clips_hold_the_audio_of_their_file_and_its_mean_and_std(messy):
    source, out, _ = messy
    for row in load_corpus(out):
        whole, clip = read_audio(source / row["source"]), read_clip(row)
        first = round(row["clip_start"] * 16000)
        np.testing.assert_allclose(clip, whole[first : first + round(row["duration"] * 16000)], atol=2**-15)
        clip = clip.astype(np.float64)
        assert (row["clip_mean"], row["clip_std"]) == pytest.approx((clip.mean(), clip.std()), abs=1e-9)


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


def test_an_archive_of_the_folder_gives_the_same_clips_and_rejects(messy, tmp_path, monkeypatch):
    source, out, summary = messy
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(source, ".", filter=lambda member: None if member.issym() else member)
    packed = prepare(tmp_path / "all.tar", tmp_path / "out")
    assert contents(tmp_path / "out", "*.parquet") == contents(out, "*.parquet")
    assert rejects_of(tmp_path / "out") == [row for row in rejects_of(out) if row[0] not in LINKS]
    same = set(summary) - {"rejected_files", "rejects", "settings"}
    assert all(packed[name] == summary[name] for name in same)


def test_two_processes_write_the_same_bytes(messy, tmp_path):
    source, out, _ = messy
    prepare(source, tmp_path / "out", num_proc=2)
    assert contents(tmp_path / "out") == contents(out)


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for index in range(6):
        write(source / f"{index}.flac", music(12, seed=index))
    settings = {"clip_seconds": 5.0, "shard_megabytes": 0.1}
    summary = prepare(source, tmp_path / "undisturbed", **settings)
    kill(start_until("4.flac", source, out, **settings))
    assert len(list(out.glob(".unfinished/0000?.parquet"))) == 4
    with pytest.raises(ValueError, match=r"no finished corpus \(corpus.json is missing\)"):
        load_corpus(out)
    assert prepare(source, out, **settings) == summary and summary["splits"]["train"]["shards"] == 6
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("fails_at", ["data/train-00001", "rejects.csv", "README.md", "corpus.json"])
def test_a_run_killed_while_publishing_goes_on(tmp_path, monkeypatch, fails_at):
    for index in range(3):
        write(tmp_path / "source" / f"{index}.wav", music(6, seed=index))
    prepare(tmp_path / "source", tmp_path / "whole", shard_megabytes=0.1)
    replace = os.replace

    def killed(source, target):
        if str(target).startswith(str(tmp_path / "out" / fails_at)):
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
    other = tmp_path / "other"
    write(other / "a.wav", music(3))
    with pytest.raises(ValueError, match=f"was made with files {len(TABLE) - 1}, now it is 1"):
        prepare(other, out)
    # What is no corpus, or one that another version left unfinished.
    (tmp_path / "old" / ".staging").mkdir(parents=True)
    with pytest.raises(ValueError, match="another version, whose work cannot go on; remove it"):
        prepare(other, tmp_path / "old")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"holds something else than a corpus \(thesis.tex\)"):
        prepare(other, tmp_path / "mine")
    with pytest.raises(ValueError, match="is a file"):
        prepare(other, tmp_path / "mine" / "thesis.tex")


def test_nothing_usable_is_an_error_with_the_commonest_reason(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for index in range(3):
        (source / f"{index}.wav").write_text("no audio")
    (source / "empty.wav").touch()
    with pytest.raises(ValueError, match=r"None of the 4 audio files .* reason is 'undecodable' \(3 times\)"):
        prepare(source, tmp_path / "out")
    # With better files the same folder is taken.
    write(source / "empty.wav", music(3))
    assert prepare(source, tmp_path / "out")["clips"] == 1


TIMEOUT = r"`file_timeout` is .*give a number of seconds, or 0 for no limit"


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"min_seconds": 6.0}, "0 < min_seconds <= clip_seconds"),
        ({"min_seconds": 0.0}, "0 < min_seconds <= clip_seconds"),
        ({"num_proc": 0}, "0 < min_seconds <= clip_seconds"),
        ({"shard_megabytes": 0}, "0 < min_seconds <= clip_seconds"),
        ({"hours": 0}, "`hours` is 0"),
        ({"seed": 3}, "`seed` is 3 but `hours` is not given"),
        ({"file_timeout": -1}, TIMEOUT),
        ({"file_timeout": float("nan")}, TIMEOUT),
        ({"store": "mp3"}, "There is no store 'mp3'; use one of flac, wav"),
        ({"engine": "dask"}, "There is no engine 'dask'; use one of processes, ray"),
        ({"sharding": 1}, "no setting 'sharding'; it has clip_seconds"),
    ],
)
def test_settings_without_sense_are_refused(tmp_path, settings, sentence):
    with pytest.raises(TypeError if "sharding" in settings else ValueError, match=sentence):
        prepare(tmp_path, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", [2, 3])
def test_a_corpus_of_an_earlier_format_is_taken_for_finished_if_its_clips_are_the_same(messy, tmp_path, version):
    """Format 3 cut its shards elsewhere, and there was one store only; 2 did not have all columns."""
    source, _, summary = messy
    (tmp_path / "out").mkdir()
    settings = {**summary["settings"], "format_version": version}
    del settings["store"]
    (tmp_path / "out" / "corpus.json").write_text(json.dumps({**summary, "settings": settings}))
    if version == 3:
        assert prepare(source, tmp_path / "out")["clips"] == summary["clips"]
        with pytest.raises(ValueError, match=r"was made with clip_seconds 5.0, now it is 7.0"):
            prepare(source, tmp_path / "out", clip_seconds=7.0)
    else:
        with pytest.raises(ValueError, match="was made with format_version 2, now it is 4"):
            prepare(source, tmp_path / "out")


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


def test_an_incomplete_copy_is_noticed(tmp_path):
    for index in range(3):
        write(tmp_path / "source" / f"{index}.wav", music(6, seed=index))
    prepare(tmp_path / "source", tmp_path / "out", shard_megabytes=0.1)
    shards = sorted((tmp_path / "out" / "data").iterdir())
    shards[-1].unlink()
    with pytest.raises(ValueError, match=rf"should hold {len(shards)} shards of the split train but holds"):
        load_corpus(tmp_path / "out")
    with pytest.raises(ValueError, match=r"a corpus that `music2vec prepare"):
        load_corpus(tmp_path / "absent")


def test_foreign_parquet_is_loaded_and_cropped_at_16_khz(tmp_path):
    data = encoded(music(4, 44100, 2), 44100, "FLAC")
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": data, "path": "a.flac"}], "label": [1]})
    rows.cast_column("audio", datasets.Audio(decode=False)).to_parquet(tmp_path / "foreign.parquet")
    row = load_corpus(tmp_path)[0]
    np.testing.assert_allclose(read_crop(row, 1000, 16000), read_clip(row)[1000:17000], atol=2e-6)
    with pytest.raises(ValueError, match="ends 8000 samples earlier"):
        read_crop(row, 56000, 16000)
