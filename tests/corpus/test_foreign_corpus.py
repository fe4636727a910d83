"""Corpora that `prepare_corpus` did not make: Parquet, archives, audio folders, data sets as the Hub lays them out."""

import io
import logging
import sys
import tarfile

import datasets
import fsspec
import numpy as np
import pytest
from awkward import encoded
from toy_corpus import prepare

from music2vec_hf.audio.listing import SourceFiles
from music2vec_hf.audio.reading import read_audio
from music2vec_hf.corpus.batches import header_length
from music2vec_hf.corpus.loading import load_corpus, open_files, read_clip, stream_corpus

# Name -> seconds, rate, channels, what soundfile calls the format.
FILES = {
    "a.wav": (2.0, 44_100, 2, "WAV"),
    "b.flac": (1.5, 48_000, 1, "FLAC"),
    "c.ogg": (2.5, 22_050, 2, "OGG"),
    "d.mp3": (3.0, 44_100, 2, "MP3"),
    "e.flac": (1.0, 16_000, 1, "FLAC"),
}


pytestmark = pytest.mark.usefixtures("own_cache")


def encoded_file(name):
    seconds, rate, channels, format = FILES[name]
    rng = np.random.default_rng(list(name.encode()))
    time = np.arange(round(seconds * rate))[:, None] / rate
    samples = 0.1 + 0.3 * np.sin(2 * np.pi * 440 * time) + 0.05 * rng.standard_normal((len(time), channels))
    return encoded(samples, rate, format)


@pytest.fixture(scope="module")
def audio():
    return {name: encoded_file(name) for name in FILES}


def make_folder(folder, audio):
    folder.mkdir()
    for name, data in audio.items():
        (folder / name).write_bytes(data)
    return folder


def make_parquet(path, audio, column="audio"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {column: [{"bytes": data, "path": name} for name, data in audio.items()], "duration": ["long"] * len(audio)}
    datasets.Dataset.from_dict(rows).cast_column(column, datasets.Audio(decode=False)).to_parquet(path)
    return path.parent


def make_archive(folder, audio):
    folder.mkdir()
    with tarfile.open(folder / "part.tar", "w") as archive:
        for name, data in audio.items():
            for member, content in ((name, data), (f"{name.split('.')[0]}.json", b"{}")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return folder


def make_hub_layout(folder, audio):
    make_parquet(folder / "user" / "name" / "data" / "train-00000-of-00001.parquet", audio, "sound")
    make_parquet(folder / "user" / "name" / "data" / "test-00000-of-00001.parquet", {"a.wav": audio["a.wav"]}, "sound")
    (folder / "user" / "name" / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: data/train*.parquet\n"
        "  - split: test\n    path: data/test*.parquet\n---\n"
    )
    return "user/name:main"


@pytest.fixture(params=["folder", "parquet", "parquet glob", "struct column", "archive", "hub"])
def foreign(request, audio, tmp_path, monkeypatch):
    if request.param == "folder":
        return make_folder(tmp_path / "music", audio)
    if request.param == "archive":
        return make_archive(tmp_path / "archives", audio)
    if request.param == "hub":
        # `datasets` takes a folder of the working directory for the data set user/name.
        monkeypatch.chdir(tmp_path)
        return make_hub_layout(tmp_path, audio)
    if request.param == "struct column":
        rows = [{"bytes": data, "path": name} for name, data in audio.items()]
        (tmp_path / "shards").mkdir()
        datasets.Dataset.from_dict({"clip": rows}).to_parquet(tmp_path / "shards" / "x.parquet")
        return tmp_path / "shards"
    folder = make_parquet(tmp_path / "shards" / "x.parquet", audio)
    return folder if request.param == "parquet" else f"{folder}/*.parquet"


def test_every_kind_gives_the_same_measured_clips(foreign, audio):
    corpus = load_corpus(foreign)
    assert [row["path"].rsplit("/", 1)[-1] for row in corpus["audio"]] == list(FILES)
    for row, (name, data) in zip(corpus, audio.items(), strict=True):
        clip = read_audio(data)
        assert row["duration"] == len(clip) / 16_000
        if not name.endswith(".mp3"):
            assert row["duration"] == pytest.approx(FILES[name][0], abs=1e-9)
        assert row["clip_mean"] == pytest.approx(clip.mean(dtype=np.float64), abs=1e-8)
        assert row["clip_std"] == pytest.approx(clip.std(dtype=np.float64), abs=1e-8)
        np.testing.assert_array_equal(read_clip(row), clip)
    assert "torchcodec" not in sys.modules


def test_every_kind_streams_the_same_clips(foreign, audio):
    rows = [row for batch in stream_corpus(foreign).iter(batch_size=2) for row in batch["audio"]]
    for row, data in zip(rows, audio.values(), strict=True):
        clip = read_audio(data)
        np.testing.assert_array_equal(read_clip({"audio": row}), clip)
        assert header_length({"audio": row}) == len(clip)


def test_broken_files_are_left_out_named_and_counted(audio, tmp_path, caplog):
    folder = make_folder(tmp_path / "music", audio)
    (folder / "ba.wav").write_text("a letter")
    (folder / "bb.mp3").touch()
    cut = audio["b.flac"]
    (folder / "f.flac").write_bytes(cut[: len(cut) // 2])
    for _ in range(2):  # measured, then from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING, "music2vec_hf"):
            corpus = load_corpus(folder)
        names = [row["path"].rsplit("/", 1)[-1] for row in corpus["audio"]]
        assert names == [*FILES, "f.flac"]
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 4
        assert "ba.wav: no decoder reads it" in lines[0] and lines[0].endswith("It is left out.")
        assert "bb.mp3: it has 0 bytes. It is left out." in lines[1]
        assert "f.flac: only 0." in lines[2] and lines[2].endswith("That part is kept.")
        assert lines[3] == "2 of 8 clips are left out: 1 undecodable, 1 empty."
    with pytest.warns(UserWarning, match="f.flac: only 0."):
        assert corpus[5]["duration"] == len(read_clip(corpus[5])) / 16_000 < 1.5
    caplog.clear()
    load_corpus(folder, report=False)
    assert not caplog.records


def test_measuring_happens_once_and_again_for_a_changed_file(audio, tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "music", {"a.wav": audio["a.wav"]})
    assert load_corpus(folder)[0]["duration"] == 2.0
    with monkeypatch.context() as patch:
        patch.setattr("music2vec_hf.corpus.loading.AudioReader", None)
        assert load_corpus(folder)[0]["duration"] == 2.0
    (folder / "a.wav").write_bytes(audio["e.flac"])
    assert load_corpus(folder)[0]["duration"] == 1.0


def test_splits_come_from_folders_and_names(audio, tmp_path, monkeypatch):
    for split, name in [("train", "a.wav"), ("test", "b.flac")]:
        (tmp_path / "music" / split).mkdir(parents=True)
        (tmp_path / "music" / split / name).write_bytes(audio[name])
    with pytest.raises(ValueError, match="has the splits train, test; name one of them, or 'all'"):
        load_corpus(tmp_path / "music")
    assert load_corpus(tmp_path / "music", "test")[0]["duration"] == 1.5
    assert load_corpus(tmp_path / "music", "all")["duration"][:] == [2.0, 1.5]
    assert len(list(stream_corpus(tmp_path / "music", "all"))) == 2
    monkeypatch.chdir(tmp_path)
    name = make_hub_layout(tmp_path, audio)
    assert len(load_corpus(name)) == 5 and len(load_corpus(name, "test")) == 1
    with pytest.raises(ValueError, match="has no split 'validation', only train, test"):
        load_corpus(name, "validation")


def test_no_or_several_audio_columns_are_refused_with_their_names(audio, tmp_path):
    clips = [{"bytes": audio["a.wav"], "path": "a.wav"}]
    for columns, message in [
        ({"x": [1], "path": ["a.wav"]}, r"no column of audio \(columns: x, path\)"),
        ({"mix": clips, "vocals": clips, "y": [1]}, r"audio columns mix, vocals \(columns: mix, vocals, y\)"),
    ]:
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "x.parquet")
        for load in (load_corpus, stream_corpus, lambda folder: prepare(folder, tmp_path / "out")):
            with pytest.raises(ValueError, match=message):
                load(tmp_path)


def test_what_is_no_corpus_is_refused(audio, tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "music", audio)
    make_parquet(folder / "x.parquet", audio)
    with pytest.raises(ValueError, match=r"several kinds \(parquet, audiofolder\)\. Name one kind by a glob"):
        load_corpus(folder)
    with pytest.raises(ValueError, match=r"files of several kinds \(parquet, audiofolder\)"):
        prepare(folder, tmp_path / "out")
    assert len(load_corpus(f"{folder}/*.flac")) == 2
    assert len(load_corpus(folder / "x.parquet")) == 5
    with pytest.raises(ValueError, match=r"matches files of several kinds"):
        load_corpus(f"{folder}/*")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="user/absent is neither a folder here nor a data set that the Hub gives"):
        load_corpus("user/absent")
    (tmp_path / "empty" / "a.wav").write_text("a letter")
    with pytest.raises(ValueError, match=r"None of the 1 clips can be decoded \(1 undecodable\)"):
        load_corpus(tmp_path / "empty")
    archive = make_archive(tmp_path / "archives", audio) / "part.tar"
    archive.write_bytes(archive.read_bytes()[:100_000])
    for load in (load_corpus, lambda name: list(stream_corpus(name)), lambda name: prepare(name, tmp_path / "out")):
        with pytest.raises(ValueError, match=r"part.tar is no whole .tar archive"):
            load(archive)


def test_remote_files_are_read_through_their_url(audio):
    memory = fsspec.filesystem("memory")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        info = tarfile.TarInfo("a.wav")
        info.size = len(audio["a.wav"])
        tar.addfile(info, io.BytesIO(audio["a.wav"]))
    memory.pipe({"/clips/part.tar": archive.getvalue(), "/clips/a.wav": audio["a.wav"]})
    for kind, url in (("webdataset", "memory://clips/part.tar"), ("audiofolder", "memory://clips/a.wav")):
        for streaming in (False, True):
            (row,) = open_files(SourceFiles(kind, {"train": [url]}), streaming)
            assert row["audio"]["bytes"] == audio["a.wav"] and row["audio"]["path"].endswith("a.wav")
