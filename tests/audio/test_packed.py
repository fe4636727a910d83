"""A data set as SOURCE gives the corpus that the folder of its files gives; a corpus goes to the Hub and back."""

import csv
import json
import tarfile

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from awkward import music
from hub_server import TOKEN
from toy_corpus import contents, prepare

from music2vec_hf.corpus.loading import load_corpus

LETTERS = "abcdef"


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A folder of files with a manifest of two columns, and its corpus."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = []
    for index, letter in enumerate(LETTERS):
        (folder / "source").mkdir(exist_ok=True)
        soundfile.write(folder / "source" / f"{letter}.flac", music(3 + index, seed=index), 16000)
        rows.append({"path": f"{letter}.flac", "genre": "rock" if index % 2 else "jazz", "year": 1990 + index})
    (folder / "source" / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare(folder / "source", folder / "out")
    return folder / "source", rows, folder / "out"


def write_parquet(path, source, rows, **settings):
    table = [{"audio": {"bytes": (source / row["path"]).read_bytes(), "path": row["path"]}, **row} for row in rows]
    table = [{name: value for name, value in row.items() if name != "path"} for row in table]
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_list(table).cast_column("audio", datasets.Audio(decode=False))
    rows.to_parquet(path, batch_size=2)


def write_tar(path, source, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for row in rows:
            note = source / row["path"].replace(".flac", ".json")
            note.write_text(json.dumps({name: value for name, value in row.items() if name != "path"}))
            archive.add(source / row["path"], row["path"])
            archive.add(note, note.name)
            note.unlink()


@pytest.mark.parametrize("write, suffix", [(write_parquet, "parquet"), (write_tar, "tar")])
def test_a_data_set_brings_its_columns(labelled, tmp_path, write, suffix):
    source, rows, whole = labelled
    write(tmp_path / "data" / f"first-0.{suffix}", source, rows[:4])
    write(tmp_path / "data" / f"second-1.{suffix}", source, rows[4:])
    summary = prepare(tmp_path / "data", tmp_path / "out", num_proc=1)
    assert contents(tmp_path / "out", "*.parquet") == contents(whole, "*.parquet")
    prepare(str(tmp_path / "data" / f"*.{suffix}"), tmp_path / "globbed")
    assert contents(tmp_path / "globbed") == contents(tmp_path / "out")
    # Other files, another corpus.
    write(tmp_path / "data" / f"second-1.{suffix}", source, rows[5:])
    with pytest.raises(ValueError, match="was made with files 6, now it is 5"):
        prepare(tmp_path / "data", tmp_path / "out")
    assert summary["clips"] == len(load_corpus(whole))


def test_splits_and_names_of_a_data_set(labelled, tmp_path):
    source, rows, _ = labelled
    # Names that mean nothing, such as the same in every row, are not the tracks' names.
    same = [{**row, "split": ""} for row in rows]
    for part, name in ((same[:2], "train-00000-of-00002"), (same[2:4], "train-00001-of-00002"), (same[4:], "test")):
        write_parquet(tmp_path / "data" / f"{name}.parquet", source, part)
    table = pq.read_table(tmp_path / "data" / "test.parquet")
    (tmp_path / "data" / "test.parquet").unlink()
    audio = [{"bytes": row["bytes"], "path": "audio.flac"} for row in table["audio"].to_pylist()]
    datasets.Dataset.from_dict({"audio": audio, "split": ["", "validation"]}).to_parquet(
        tmp_path / "data" / "test-00000-of-00001.parquet"
    )
    summary = prepare(tmp_path / "data", tmp_path / "out")
    assert {name: split["tracks"] for name, split in summary["splits"].items()} == {
        "train": 4, "validation": 1, "test": 1,
    }  # fmt: skip
    corpus = load_corpus(tmp_path / "out", "train")
    assert list(dict.fromkeys(corpus["source"])) == ["a.flac", "b.flac", "c.flac", "d.flac"]
    assert load_corpus(tmp_path / "out", "test")["source"][0] == "test-00000-of-00001.parquet/000000/audio.flac"
    assert load_corpus(tmp_path / "out", "validation")["source"][0].endswith("parquet/000001/audio.flac")


def test_a_manifest_with_several_roots(tmp_path):
    for index, root in enumerate(["one", "two", "far"]):
        (tmp_path / root).mkdir()
        soundfile.write(tmp_path / root / "song.wav", music(3, seed=index), 16000)
    (tmp_path / "lists").mkdir()
    rows = [["root", "path", "genre"], [tmp_path / "one", "song.wav", "a"], ["../two", "song.wav", "b"]]
    rows += [["", tmp_path / "far" / "song.wav", "c"], [tmp_path, "one/song.wav", "d"]]
    with open(tmp_path / "lists" / "all.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    summary = prepare(tmp_path / "lists", tmp_path / "out")
    corpus = load_corpus(tmp_path / "out")
    assert dict(zip(corpus["genre"], corpus["source"], strict=True)) == {
        "a": f"{tmp_path}/one/song.wav", "b": "../two/song.wav", "c": f"{tmp_path}/far/song.wav",
    }  # fmt: skip
    assert len(set(corpus["track_id"])) == 3 and summary["rejects"] == {"listed twice": 1}
    assert "root" not in corpus.column_names


# Push a corpus, read it back by its id, and prepare from a data set that is on the Hub.
HUB = """
import sys
import numpy as np
from music2vec_hf.cli import main
from music2vec_hf.corpus.inspection import inspect_corpus
from music2vec_hf.corpus.loading import load_corpus
from music2vec_hf.corpus.prepare import prepare_corpus
source, out, again = sys.argv[1:]
if __name__ == "__main__":
    words = ["prepare", source, out, "--clip-seconds", "5", "--num-proc", "1", "--push-to-hub"]
    assert main([*words, "someone/prepared"]) == 0
    local, remote = load_corpus(out), load_corpus("someone/prepared")
    assert local.column_names == remote.column_names and local[:] == remote[:]
    assert main([*words, "someone/prepared"]) == 0
    assert main([*words, "nobody/..corpus"]) == 1
    assert inspect_corpus("someone/prepared").splits == inspect_corpus(out).splits
    assert inspect_corpus("someone/prepared").summary == inspect_corpus(out).summary
    assert prepare_corpus("someone/raw", again, clip_seconds=5.0, progress=False)["clips"] == len(local)
"""


@pytest.mark.slow
def test_to_the_hub_and_from_it(hub, online, labelled, tmp_path):
    source, rows, whole = labelled
    write_parquet(hub.root / "datasets/someone/raw/main/data/train-00000-of-00001.parquet", source, rows)
    done = online.run(HUB, source, tmp_path / "out", tmp_path / "again", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert contents(hub.root / "datasets/someone/prepared/main") == contents(tmp_path / "out")
    assert contents(tmp_path / "again", "*.parquet") == contents(whole, "*.parquet")
    assert "cannot be pushed to nobody/..corpus" in done.stderr
    assert np.isfinite(load_corpus(tmp_path / "again")["clip_mean"]).all()
