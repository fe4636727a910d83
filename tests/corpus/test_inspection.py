"""Looking at a corpus: the printed facts are those of the files, the page holds its clips, leaks are named."""

import base64
import io
import json
import re
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from toy_corpus import contents
from toy_plan import PLAN

from music2vec_hf.audio.metadata import CORPUS_COLUMNS
from music2vec_hf.cli import main
from music2vec_hf.corpus.batches import CropDataset
from music2vec_hf.corpus.inspection import (
    SOURCE_COLUMNS,
    draw_clips,
    find_warnings,
    format_summary,
    inspect_corpus,
    log_spectrogram,
    write_page,
)
from music2vec_hf.corpus.loading import load_corpus
from music2vec_hf.corpus.prepare import prepare_corpus

MANIFEST = """file_name,split,track_id,artist_id,genre
a.wav,train,A,1,rock
b.wav,train,B,1,
c.flac,validation,C,2,jazz
d.wav,test,A,2,jazz
<i>.wav,test,D,,jazz
empty.wav,train,E,9,jazz
gone.wav,train,F,9,jazz
"""


def write_tone(path, seconds, rms_dbfs, rate=16000, offset=0.0, hertz=440):
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, offset + np.sqrt(2) * 10 ** (rms_dbfs / 20) * np.sin(2 * np.pi * hertz * time), rate)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspected")
    source = folder / "source"
    source.mkdir()
    write_tone(source / "a.wav", 10, -20)
    write_tone(source / "b.wav", 7, -20, 44100)
    write_tone(source / "c.flac", 5, -30)
    write_tone(source / "d.wav", 5, -40)
    write_tone(source / "<i>.wav", 6, -20, offset=0.1)
    (source / "empty.wav").touch()
    (source / "list.csv").write_text(MANIFEST)
    prepare_corpus(source, folder / "corpus", clip_seconds=5.0, progress=False)
    return folder / "corpus"


@pytest.fixture(scope="module")
def inspection(corpus):
    return inspect_corpus(corpus, progress=False)


def facts_of(text):
    lines = [line for line in text.splitlines()[1:] if "WARNING" not in line]
    return [tuple(re.split(r"  +", line.strip(), maxsplit=1)) for line in lines]


def test_the_facts_are_those_of_the_files(inspection):
    facts = facts_of(format_summary(inspection))
    for fact in [
        ("all", "0.0089 h, 7 clips"),
        ("split train", "0.0047 h, 4 clips, 2 tracks"),
        ("split validation", "0.0014 h, 1 clips, 1 tracks"),
        ("split test", "0.0028 h, 2 clips, 2 tracks"),
        ("duration of a clip", "min 2.00 s, median 5.00 s, max 5.00 s"),
        ("constant offset", "1 clips with a mean beyond 0.01"),
        ("rates of the sources", "16000 5, 44100 2 (clips)"),
        ("channels of the sources", "1 7 (clips)"),
        ("formats of the sources", "WAV PCM_16 6, FLAC PCM_16 1 (clips)"),
        ("suffixes of the sources", ".wav 6, .flac 1 (clips)"),
        ("rejects", "1 empty, 1 unreadable"),
        ("ends dropped", "1.0 s in all, shorter than a clip may be"),
    ]:
        assert fact in facts
    metadata = dict(facts)["metadata (type, filled)"]
    assert "genre (string, 71 %)" in metadata and "artist_id (int64, 86 %)" in metadata
    assert {name: round(split["hours"] * 3600, 6) for name, split in inspection.splits.items()} == {
        "train": 17.0, "validation": 5.0, "test": 10.0
    }  # fmt: skip
    with_offset = 10 * np.log10(0.1**2 + 0.1**2)
    np.testing.assert_allclose(np.sort(inspection.levels), [-40, -30, -20, -20, -20, -20, with_offset], atol=0.02)
    low, middle, high = np.percentile(inspection.levels, [5, 50, 95])
    assert ("level (RMS)", f"5 % {low:.1f}, 50 % {middle:.1f}, 95 % {high:.1f} dBFS") in facts


def test_leaks_between_splits_are_named_and_counted(inspection):
    assert inspection.leaks == {"track_id": {"A": ["train", "test"]}, "artist_id": {"2": ["validation", "test"]}}
    text = format_summary(inspection)
    assert "track_id: 1 in several splits: A (train, test)" in text
    assert "artist_id: 1 in several splits: 2 (validation, test)" in text
    assert "not checked, no such column: composition_id" in text
    assert "WARNING: 1 values of track_id lie in several splits" in text


def test_lists_of_artists_are_compared_one_by_one_and_an_empty_name_is_none(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    rows = []
    for index, (split, artists) in enumerate([("train", ["x", "", "y"]), ("test", ["z", "y"]), ("test", [""])]):
        write_tone(source / f"{index}.wav", 3, -20, hertz=300 + 100 * index)
        rows.append({"file": f"{index}.wav", "split": split, "artist_id": artists})
    (source / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare_corpus(source, tmp_path / "out", progress=False)
    assert inspect_corpus(tmp_path / "out", progress=False).leaks == {
        "track_id": {}, "artist_id": {"y": ["train", "test"]}
    }  # fmt: skip


def test_one_split_cannot_leak(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_tone(source / "a.wav", 4, -20)
    write_tone(source / "b.wav", 4, -20, hertz=600)
    prepare_corpus(source, tmp_path / "out", clip_seconds=2.0, progress=False)
    found = inspect_corpus(tmp_path / "out", progress=False)
    facts = dict(facts_of(format_summary(found)))
    assert facts["split leaks"] == "none possible, there is one split" and facts["rejects"] == "none"
    assert find_warnings(found) == []
    page = write_page(found, tmp_path / "new" / "page.html").read_text()
    assert "Nothing was left out." in page and page.count("<audio") == 4


def test_a_corpus_json_that_does_not_fit_its_shards_is_noticed(corpus, inspection):
    splits = {**inspection.summary["splits"], "train": {**inspection.summary["splits"]["train"], "clips": 9}}
    changed = inspection.__class__(**{**vars(inspection), "summary": {**inspection.summary, "splits": splits}})
    assert "corpus.json says 9 clips of the split train, the shards hold 4." in find_warnings(changed)


def test_the_verb_prints_the_facts_and_its_page_holds_the_clips(corpus, inspection, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = contents(corpus)
    assert main(["inspect", str(corpus), "--seed", "3"]) == 0
    out, page = capsys.readouterr().out, (tmp_path / "inspection.html").read_text()
    assert out.startswith(format_summary(inspection)) and out.endswith("inspection.html\n")
    assert "(seed 3)" in page
    assert "http" not in page and "<script" not in page  # nothing beside the page is needed
    assert "&lt;i&gt;.wav" in page and "<i>" not in page
    assert "cannot be opened" in page and "1 values of track_id" in page
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    players = re.findall(r'<audio [^>]*src="data:audio/flac;base64,([^"]+)"', page)
    assert len(images) == 1 + 7 and len(players) == 7
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    rows = draw_clips(inspection)
    for (_, row), player in zip(rows, players, strict=True):
        heard, rate = soundfile.read(io.BytesIO(base64.b64decode(player)))
        assert rate == 16000 and len(heard) == row["duration"] * 16000
        np.testing.assert_array_equal(heard, soundfile.read(io.BytesIO(row["audio"]["bytes"]))[0])
    assert contents(corpus) == before


def test_the_seed_draws_the_clips(inspection):
    def names(seed):
        return [(split, row["source"], row["clip_start"]) for split, row in draw_clips(inspection, seed, number=3)]

    assert names(0) == names(0) and len({tuple(names(seed)) for seed in range(8)}) > 1
    rows = [(row["track_id"], row["source"], row["clip_start"]) for _, row in draw_clips(inspection)]
    shards = [pq.read_table(path) for paths in inspection.files.values() for path in paths]
    stored = [row for shard in shards for row in shard.select(["track_id", "source", "clip_start"]).to_pylist()]
    assert rows == [tuple(row.values()) for row in stored]


def test_a_sine_at_full_scale_is_zero_db():
    time = np.arange(16000) / 16000
    spectrogram = log_spectrogram(np.sin(2 * np.pi * 1000 * time).astype(np.float32))
    assert spectrogram.shape == (513, 59)
    assert spectrogram.argmax(axis=0).tolist() == [64] * 59  # 1000 Hz in bins of 15.625 Hz
    assert spectrogram.max() == pytest.approx(0.0, abs=0.01)
    assert log_spectrogram(np.zeros(10, np.float32)).shape == (513, 1)


def test_noise_fits_into_five_megabytes_and_its_audio_is_not_read_for_the_facts(tmp_path, monkeypatch):
    """The worst case of a page, since noise is not compressed."""
    (tmp_path / "source").mkdir()
    noise = np.random.default_rng(0).uniform(-1, 1, 16000 * 80)
    soundfile.write(tmp_path / "source" / "noise.wav", noise, 16000)
    prepare_corpus(tmp_path / "source", tmp_path / "out", clip_seconds=8.0, progress=False)
    read = []
    with monkeypatch.context() as patch:
        read_all = pq.ParquetFile.read
        patch.setattr(pq.ParquetFile, "read", lambda file, names: read.extend(names) or read_all(file, names))
        found = inspect_corpus(tmp_path / "out", progress=False)
    assert set(read) == set(CORPUS_COLUMNS) - {"audio"}
    assert 3e6 < write_page(found, tmp_path / "page.html").stat().st_size < 5e6


def test_shards_alone_are_inspected_too(corpus, inspection, tmp_path):
    shutil.copytree(corpus / "data", tmp_path / "shards")
    for name in (tmp_path / "shards", f"{tmp_path}/shards/*.parquet"):
        found = inspect_corpus(name, progress=False)
        assert found.splits == inspection.splits and found.leaks == inspection.leaks
        assert dict(facts_of(format_summary(found)))["rejects"] == "not known, there is no corpus.json"
    page = write_page(found, tmp_path / "page.html").read_text()
    assert page.count("<audio") == 7 and "Nothing was left out." not in page
    columns = {"audio": [{"bytes": b"", "path": "a"}], "duration": [1.0]}
    pq.write_table(pa.table(columns), tmp_path / "shards" / "foreign.parquet")
    with pytest.raises(ValueError, match=r"foreign.parquet has no column track_id, source, clip_start, clip_mean, cl"):
        inspect_corpus(tmp_path / "shards", progress=False)


def test_a_corpus_of_format_2_is_inspected_and_trained_on(corpus, inspection, tmp_path, monkeypatch):
    """Written before the columns of what a clip's file was; else the files are the same."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    shutil.copytree(corpus, tmp_path / "old")
    summary = json.loads((corpus / "corpus.json").read_text())
    summary["settings"]["format_version"] = 2
    (tmp_path / "old" / "corpus.json").write_text(json.dumps(summary))
    for path in (tmp_path / "old" / "data").iterdir():
        table = pq.read_table(path).drop_columns(list(SOURCE_COLUMNS.values()))
        # As `datasets` tells its own types.
        about = json.loads(table.schema.metadata[b"huggingface"])
        for name in SOURCE_COLUMNS.values():
            del about["info"]["features"][name]
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), path)
    found = inspect_corpus(tmp_path / "old", progress=False)
    facts = dict(facts_of(format_summary(found)))
    assert {facts[label] for label in SOURCE_COLUMNS} == {"not recorded in this corpus"}
    assert found.splits == inspection.splits and find_warnings(found) == find_warnings(inspection)
    assert len(draw_clips(found)) == 7
    old, new = (CropDataset(load_corpus(folder, "train"), PLAN) for folder in (tmp_path / "old", corpus))
    for row in range(PLAN.rows_per_update):
        np.testing.assert_array_equal(old[0, row][1], new[0, row][1])


def write_damaged(folder, summary):
    (folder / "data").mkdir()
    (folder / "corpus.json").write_text(summary)
    (folder / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda folder: write_tone(folder / "a.wav", 3, -20), "run `music2vec prepare SOURCE OUT` and inspect OUT"),
        (lambda folder: (folder / ".unfinished").mkdir(), "holds no finished corpus"),
        (lambda folder: write_damaged(folder, '{"splits": {"train": {"shards": 1}}}'), "is no whole Parquet file"),
        (lambda folder: write_damaged(folder, "{"), "is not JSON"),
        (None, "ends in .html"),
    ],
)
def test_a_mistake_is_one_sentence(make, sentence, corpus, tmp_path, capsys):
    if make is not None:
        corpus = tmp_path / "corpus"
        corpus.mkdir()
        make(corpus)
    page = tmp_path / ("page.html" if make is not None else "rejects.csv")
    assert main(["inspect", str(corpus), "--output", str(page)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("music2vec:")]
    assert len(errors) == 1 and sentence in errors[0] and not page.exists()
