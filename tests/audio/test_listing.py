"""What tables and archives say of audio files comes as it stands there, or is refused; no table is passed over."""

import io
import logging
import os
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.listing import list_source
from music2vec_hf.audio.reading import read_audio

SOUND = 0.1 * np.random.default_rng(0).standard_normal(4_000)


@pytest.fixture
def songs(tmp_path):
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", SOUND, 16_000)
    return tmp_path


def listed(folder, column):
    return {track.source: track.metadata[column] for track in list_source(folder).tracks}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "-9223372036854775808", "9223372036854775807"], [1, -(2**63), 2**63 - 1]),
        (["1", "2", "9223372036854775808"], ["1", "2", "9223372036854775808"]),
        (["1234567890123456700", "1234567890123456701", ""], [1234567890123456700, 1234567890123456701, None]),
        (["0.5", "1234567890123456789012", "1"], [0.5, 1234567890123456789012.0, 1.0]),
    ],
)
def test_whole_numbers_of_a_table_stay_what_they_are(songs, values, expected):
    rows = "\n".join(f"{name}.wav,{value}" for name, value in zip("abc", values, strict=True))
    (songs / "list.csv").write_text(f"file_name,id\n{rows}\n")
    assert list(listed(songs, "id").values()) == expected


@pytest.mark.parametrize("column", ["id", "split", "track_id"])
def test_a_zero_is_a_value(songs, column):
    """In JSONL, whose numbers are numbers; an id that is too long for one becomes a text."""
    values = {"id": [2**63, 0, 1], "split": [0, 1, 2], "track_id": [0, 1, 2]}[column]
    rows = (f'{{"file_name": "{name}.wav", "{column}": {value}}}' for name, value in zip("abc", values, strict=True))
    (songs / "list.jsonl").write_text("\n".join(rows))
    tracks = sorted(list_source(songs).tracks, key=lambda track: track.source)
    found = [getattr(track, column) if column != "id" else track.metadata["id"] for track in tracks]
    assert found == list(map(str, values))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "\n\r\nfile_name,id\na.wav,1\n"),
        ("list.jsonl", '\n{"file_name": "a.wav", "id": 1}\n'),
        ("list.jsonl", f'{{"about": "{"x" * 70_000}", "file_name": "a.wav", "id": 1}}\n'),
    ],
)
def test_a_table_is_read_whatever_stands_before_its_first_row(songs, name, text):
    (songs / name).write_text(text)
    assert listed(songs, "id") == {"a.wav": 1}


def test_lines_are_counted_from_the_top_of_the_file(songs):
    (songs / "list.csv").write_text("\n\nfile_name,id\na.wav,1,2\n")
    with pytest.raises(ValueError, match=r"list\.csv line 4 has 3 fields, its header 2"):
        list_source(songs)


@pytest.mark.parametrize("text", ["# songs\nfile_name,id\na.wav,1\n", "File_Name,id\na.wav,1\n"])
def test_a_table_that_is_not_used_is_named(songs, text, caplog):
    (songs / "list.csv").write_text(text)
    (songs / "rejects.csv").write_text("path,reason\nx.wav,empty: it holds no samples.\n")
    with caplog.at_level(logging.WARNING):
        assert len(list_source(songs).tracks) == 3
    assert [record.args[0].name for record in caplog.records if "is not used" in record.msg] == ["list.csv"]


def test_names_of_classes_come_along(songs):
    """Of a `ClassLabel`, and of lists of one; a row without a class has none."""
    buffer = io.BytesIO()
    soundfile.write(buffer, SOUND, 16_000, format="WAV")
    kinds = datasets.ClassLabel(names=["jazz", "rock"])
    features = {"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    features |= {"genre": kinds, "tags": datasets.List(kinds)}
    audio = [{"bytes": buffer.getvalue(), "path": f"{name}.wav"} for name in "abc"]
    rows = {"audio": audio, "genre": [1, 0, -1], "tags": [[0, 1], [], None]}
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(songs / "data" / "rows.parquet")
    assert list(listed(songs / "data", "genre").values()) == ["rock", "jazz", None]
    assert list(listed(songs / "data", "tags").values()) == [["jazz", "rock"], [], None]
    table = pq.read_table(songs / "data" / "rows.parquet")
    odd = pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64()))
    pq.write_table(table.append_column("odd", odd).replace_schema_metadata(None), songs / "data" / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet has a column of a kind that cannot be kept \(.*map"):
        list_source(songs / "data")


def test_links_in_an_archive_are_followed_or_named(songs, caplog):
    soundfile.write(songs / "b.wav", SOUND[:2_000], 16_000)
    os.link(songs / "b.wav", songs / "hard.wav")
    os.symlink("b.wav", songs / "soft.wav")
    with tarfile.open(songs / "songs.tar", "w") as archive:
        for name in ("a", "b", "hard", "soft", "c"):
            archive.add(songs / f"{name}.wav", f"{name}.wav")
    tracks = {track.source: track.path for track in list_source(songs / "songs.tar").tracks}
    assert list(tracks) == ["a.wav", "b.wav", "c.wav", "hard.wav"]
    for name, file in tracks.items():
        assert file.read() == (songs / name).read_bytes()
    assert "soft.wav is a link and is left out" in caplog.text and "hard.wav" not in caplog.text


def test_a_file_with_holes_in_an_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "songs.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo("sparse.wav")
        member.type = tarfile.GNUTYPE_SPARSE
        archive.addfile(member)
    with pytest.raises(ValueError, match=r"songs\.tar holds sparse\.wav with holes; pack it anew"):
        list_source(tmp_path / "songs.tar")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="it is a pipe, no file"):
        read_audio(tmp_path / "pipe.wav")
