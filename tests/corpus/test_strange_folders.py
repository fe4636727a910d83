"""One bad entry costs itself, not the run; what we wrote into a folder of music is not taken for music."""

import json
import os
import shutil
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from awkward import encoded, music
from toy_corpus import contents, interrupt, prepare, rejects_of, write

from music2vec_hf.corpus import clips
from music2vec_hf.corpus.inspection import format_summary, inspect_corpus, write_page
from music2vec_hf.corpus.loading import load_corpus
from music2vec_hf.features.embeddings import list_inputs

pytestmark = pytest.mark.usefixtures("own_cache")


def put(folder, name, content):
    """Write a file whose name is bytes."""
    path = os.path.join(os.fsencode(folder), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


NAMES = (
    b"caf\xe9.wav",  # Latin-1
    b"K\xf6ln/a.wav",
    b"\x89\xb9\x8ay.wav",  # Shift-JIS
    "ö".encode()[:1] + b".wav",  # cut UTF-8
    b"\xed\xa0\x80.wav",  # a surrogate in UTF-8
    b"a\nb.wav",
    b"a\",b';.wav",
    b"\x1b[31m.wav",
    b"x" * 251 + b".wav",
    b"<script>{{ 7 * 7 }} | `a`.wav",
    b"\xe8.wav",  # two that differ in bytes that are not UTF-8
    b"\xe9.wav",
)


@pytest.mark.parametrize("content", ["audio", "letter"])
def test_names_of_any_bytes_are_prepared_or_rejected(tmp_path, content):
    for number, name in enumerate(NAMES):
        put(tmp_path / "source", name, encoded(music(3, seed=number)) if content == "audio" else b"a letter")
    put(tmp_path / "source", b"good.wav", encoded(music(3, seed=99)))
    summary = prepare(tmp_path / "source", tmp_path / "out")
    shown = {name.decode("utf-8", "backslashreplace") for name in NAMES}
    if content == "audio":
        corpus = load_corpus(tmp_path / "out")
        assert set(corpus["source"]) == shown | {"good.wav"} and summary["rejects"] == {}
        assert len(set(corpus["track_id"])) == len(NAMES) + 1
    else:
        assert {path for path, _ in rejects_of(tmp_path / "out")} == shown and summary["tracks"] == 1
    for track in list_inputs([tmp_path / "source"]).tracks:
        f"{track.path} {track.name}".encode()
    found = inspect_corpus(tmp_path / "out", progress=False)
    format_summary(found).encode()
    assert "<script>" not in write_page(found, tmp_path / "page.html").read_text(encoding="utf-8")


ROWS = {
    "half an emoji as path": ({"path": "\ud83d.wav"}, "unreadable: it cannot be opened"),
    "half an emoji as tag": ({"path": "a.wav", "tags": ["x", "\ud83d"]}, None),
    "half an emoji as track_id": ({"path": "a.wav", "track_id": "\udc80"}, None),
    "NUL in the path": ({"path": "a\0.wav"}, "unreadable: it cannot be opened (embedded null byte)"),
    "a path of 5,000 characters": (
        {"path": "x" * 5_000 + ".wav"},
        "unreadable: it cannot be opened (File name too long)",
    ),
    "a folder": ({"path": "folder.wav"}, "unreadable: it cannot be opened (Is a directory)"),
    "a link to nowhere": ({"path": "gone.wav"}, "unreadable: it cannot be opened (No such file or directory)"),
    "a link to itself": ({"path": "loop.wav"}, "unreadable: it cannot be opened (Too many levels of symbolic links)"),
    "no path": ({"path": ""}, "unreadable: its path is empty"),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_of_a_manifest_costs_itself_at_most(tmp_path, case):
    source, (row, reason) = tmp_path / "source", ROWS[case]
    for number, name in enumerate("ab"):
        write(source / f"{name}.wav", music(3, seed=number))
    (source / "folder.wav").mkdir()
    (source / "gone.wav").symlink_to("nowhere.wav")
    (source / "loop.wav").symlink_to("loop.wav")
    (source / "list.jsonl").write_text("\n".join(map(json.dumps, [row, {"path": "b.wav"}])))
    summary = prepare(source, tmp_path / "out")
    rejects = rejects_of(tmp_path / "out")
    assert summary["tracks"] == (1 if reason else 2) and len(rejects) == bool(reason)
    assert all(text.startswith(reason) for _, text in rejects)
    json.dumps(load_corpus(tmp_path / "out").remove_columns("audio")[:], ensure_ascii=False).encode()


def test_names_in_an_archive_of_any_bytes(tmp_path):
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for number, name in enumerate(("café.wav", "b.wav")):
            write(tmp_path / "song.wav", music(3, seed=number))
            archive.add(tmp_path / "song.wav", name)
    assert prepare(tmp_path / "in", tmp_path / "out")["tracks"] == 2
    assert load_corpus(tmp_path / "out")["source"][:] == ["b.wav", "caf\\xe9.wav"]


def test_a_folder_that_cannot_be_listed_is_a_reject(tmp_path, monkeypatch):
    for name in ("open/a.wav", "closed/b.wav"):
        write(tmp_path / "source" / name, music(3))
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    summary = prepare(tmp_path / "source", tmp_path / "out")
    assert summary["tracks"] == 1 and summary["rejected_files"] == 1
    ((path, reason),) = rejects_of(tmp_path / "out")
    assert path == "closed" and "Permission denied" in reason


@pytest.fixture
def songs(tmp_path):
    for number in range(4):
        write(tmp_path / "songs" / "ab"[number % 2] / f"{number}.wav", music(3, seed=number))
    return tmp_path / "songs"


def stop_at(monkeypatch, name):
    """Let the decoder be interrupted at a file."""
    reader = clips.AudioReader

    def interrupted(path, **kwargs):
        if str(path).endswith(name):
            raise KeyboardInterrupt
        return reader(path, **kwargs)

    monkeypatch.setattr(clips, "AudioReader", interrupted)


@pytest.mark.parametrize("place", ["corpus", "a/deep/corpus"])
@pytest.mark.parametrize("stopped", [None, "in the middle", "while publishing"])
def test_out_inside_source_is_no_source(songs, tmp_path, monkeypatch, caplog, place, stopped):
    prepare(songs, tmp_path / "beside", shard_megabytes=0.1)
    out = songs / place
    with monkeypatch.context() as patch:
        if stopped == "in the middle":
            stop_at(patch, "1.wav")
        elif stopped:
            patch.setattr("music2vec_hf.corpus.publishing._summarise", interrupt)
        if stopped:
            with pytest.raises(KeyboardInterrupt):
                prepare(songs, out, shard_megabytes=0.1)
    for _ in range(2):
        summary = prepare(songs, out, shard_megabytes=0.1)
    assert summary["tracks"] == 4 and contents(out) == contents(tmp_path / "beside")
    assert f"`music2vec prepare` made them: {out}" in caplog.text


def write_embeddings(path):
    pq.write_table(pa.table({"path": ["0.wav"], "vector": [[1.0, 2.0]]}), path)


OUTPUTS = {
    "a corpus": lambda folder: prepare(folder / "a", folder / "a corpus"),
    "embeddings": lambda folder: write_embeddings(folder / "embeddings.parquet"),
    "embeddings deep down": lambda folder: write_embeddings(folder / "a" / "embeddings.parquet"),
    "embeddings half done": lambda folder: write(folder / ".e.parquet.parts" / "x.wav", music(3, seed=9)),
    "rejects": lambda folder: (folder / "rejects.csv").write_text("path,reason\n0.wav,silence\n"),
    "results": lambda folder: (folder / "results.json").write_text("{}"),
    "metrics": lambda folder: (folder / "metrics.jsonl").write_text('{"step": 1}\n'),
    "npz": lambda folder: np.savez(folder / "embeddings.npz", vectors=np.zeros(3)),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_our_own_output_in_a_folder_of_music_is_no_music(songs, tmp_path, case):
    OUTPUTS[case](songs)
    assert prepare(songs, tmp_path / "out")["tracks"] == 4
    assert len(list_inputs([songs]).tracks) == 4
    assert len(load_corpus(songs)) == 4


def test_out_inside_a_corpus_or_a_folder_of_parquet(songs, tmp_path):
    """What is prepared from a data set into a folder within it is not a part of it."""
    first = prepare(songs, tmp_path / "corpus")
    for source in (tmp_path / "corpus", tmp_path / "parquet"):
        if source.name == "parquet":
            shutil.copytree(tmp_path / "corpus" / "data", source)
        for _ in range(2):
            assert prepare(source, source / "again", clip_seconds=2.0)["tracks"] == first["tracks"]
        assert len(load_corpus(source)) == first["clips"]


def test_plain_datasets_gives_each_corpus_its_own_rows(tmp_path):
    """Folders of one name and shards of one size; the rows differ in a label, or in the samples."""
    rows = {}
    for name, genre, seed in (
        ("first", "rock", 1),
        ("second", "jazz", 1),
        ("third", "rock", 2),
        ("fourth", "rock", 1),
    ):
        noise = np.random.default_rng(seed).integers(-3000, 3000, 48_000).astype(np.int16)
        write(tmp_path / name / "music" / "a.wav", noise)
        (tmp_path / name / "music" / "list.csv").write_text(f"path,genre\na.wav,{genre}\n")
        prepare(tmp_path / name / "music", tmp_path / name / "corpus", store="wav")
        rows[name] = datasets.load_dataset(str(tmp_path / name / "corpus"), split="train")
        assert rows[name]["genre"] == [genre]
        assert rows[name]["audio"][0]["bytes"] == load_corpus(tmp_path / name / "corpus")["audio"][0]["bytes"]
        assert rows[name].info.splits["train"].num_examples == 1 and rows[name].info.splits["train"].num_bytes > 96_000
    assert rows["first"].cache_files != rows["second"].cache_files
    assert rows["first"].cache_files == rows["fourth"].cache_files  # the same corpus
