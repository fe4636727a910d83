"""Tables of embeddings: what they hold, that a killed run goes on, and that memory does not grow with a track."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import load_dataset
from toy_audio import noise

from music2vec_hf import embed
from music2vec_hf.cli import main
from music2vec_hf.corpus.prepare import prepare_corpus
from music2vec_hf.features.embeddings import list_inputs
from music2vec_hf.features.store import write_tables
from music2vec_hf.features.tables import write_embeddings
from music2vec_hf.features.windows import hear_tracks


def columns(path):
    """The columns of a table, or the arrays of an npz file, by name."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    table = pq.read_table(path)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def test_the_table_names_what_it_left_out(encoder_folder, music, tmp_path):
    summary = write_embeddings(encoder_folder, [music], tmp_path / "out.parquet")
    table = columns(tmp_path / "out.parquet")
    assert list(table) == ["path", "duration", "conv", "layer_0", "layer_1", "layer_2", "layer_3"]
    assert summary["tracks"] == 5 and summary["reused"] == 0 and summary["hours"] == pytest.approx(10 / 3600)
    assert [path for path, _ in summary["rejects"]] == [str(music / "x.wav")]
    assert list(table["path"]) == [
        str(music / name) for name in ("a.flac", "b.wav", "below/a.flac", "below/c.flac", "d.ogg")
    ]
    np.testing.assert_allclose(table["duration"], [1, 1.5, 2, 2.5, 3])
    np.testing.assert_allclose(table["layer_3"], embed(encoder_folder, list(table["path"]), layers=3), atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    assert load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train")[1]["duration"] == 1.5


def test_npz_and_a_folder_hold_what_the_table_holds(encoder_folder, music, tmp_path):
    write_embeddings(encoder_folder, [music], tmp_path / "out.parquet")
    write_embeddings(encoder_folder, [music], tmp_path / "out.npz")
    summary = write_embeddings(encoder_folder, [music], f"{tmp_path}/out/")
    table, whole = columns(tmp_path / "out.parquet"), columns(tmp_path / "out.npz")
    for name, values in table.items():
        np.testing.assert_array_equal(whole[name], values)
    assert json.loads(str(whole["settings"]))["layers"] == ["conv", "0", "1", "2", "3"]
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert files == ["a.flac.npz", "b.wav.npz", "below/a.flac.npz", "below/c.flac.npz", "d.ogg.npz"]
    for row, name in enumerate(files):
        one = columns(tmp_path / "out" / name)
        assert str(one["path"][0]) == table["path"][row] and one["duration"][0] == table["duration"][row]
        np.testing.assert_array_equal(one["layer_2"][0], table["layer_2"][row])
    assert summary["tracks"] == 5 and summary["hours"] == pytest.approx(10 / 3600)


@pytest.mark.parametrize("name", [f"{'x' * 251}.wav", f"{chr(0x97F3) * 80}.wav"])
def test_a_long_name_is_no_obstacle(encoder_folder, music, tmp_path, name):
    (tmp_path / "long").mkdir()
    shutil.copy(music / "b.wav", tmp_path / "long" / name)
    write_embeddings(encoder_folder, [tmp_path / "long"], f"{tmp_path}/out/")
    (path,) = (tmp_path / "out").iterdir()
    assert str(columns(path)["path"][0]).endswith(name) and path.name.startswith(name[:40])
    assert write_embeddings(encoder_folder, [tmp_path / "long"], f"{tmp_path}/out/")["reused"] == 1


def test_frames_have_their_times(encoder_folder, music, tmp_path):
    settings = {"layers": ["1", "3"], "pool": "none", "window_seconds": 1, "overlap_seconds": 0.2}
    write_embeddings(encoder_folder, [music / "d.ogg", music / "a.flac"], tmp_path / "out.parquet", **settings)
    write_embeddings(encoder_folder, [music / "d.ogg", music / "a.flac"], tmp_path / "out.npz", **settings)
    table, whole = columns(tmp_path / "out.parquet"), columns(tmp_path / "out.npz")
    assert list(table) == ["path", "time", "layer_1", "layer_3"]
    assert list(whole["offsets"]) == [0, 149, 198] and list(whole["duration"]) == [3, 1]
    for track, name in enumerate(["d.ogg", "a.flac"]):
        rows = slice(*whole["offsets"][track : track + 2])
        frames, times = embed(encoder_folder, music / name, **settings, return_times=True)
        assert set(table["path"][rows]) == {str(music / name)}
        np.testing.assert_allclose(table["time"][rows], times)
        np.testing.assert_allclose(np.stack([table["layer_1"][rows], table["layer_3"][rows]]), frames, atol=2e-5)
    for name in ("time", "layer_1", "layer_3"):
        np.testing.assert_array_equal(whole[name], table[name])


def test_a_prepared_corpus_gives_a_row_for_each_clip(encoder_folder, music, tmp_path):
    prepare_corpus(music, tmp_path / "corpus", clip_seconds=1.0, min_seconds=0.5, num_proc=1, progress=False)
    summary = write_embeddings(encoder_folder, [tmp_path / "corpus"], tmp_path / "out.parquet", ["3"])
    rows = pq.read_table(tmp_path / "corpus" / "data").to_pylist()
    table = columns(tmp_path / "out.parquet")
    assert summary["tracks"] == len(rows) == 11 and not summary["rejects"]
    assert list(table["path"]) == [row["audio"]["path"] for row in rows]
    np.testing.assert_allclose(
        table["layer_3"], embed(encoder_folder, [r["audio"] for r in rows], layers=3), atol=1e-6
    )


def embedded(monkeypatch):
    """A list that grows by the number of each track that the encoder hears."""
    heard = []

    def counted(*args):
        for found in hear_tracks(*args):
            heard.append(found.number)
            yield found

    monkeypatch.setattr("music2vec_hf.features.tables.hear_tracks", counted)
    return heard


@pytest.mark.parametrize("name", ["out.parquet", "out/"])
def test_a_killed_run_goes_on(encoder_folder, music, killed, tmp_path, monkeypatch, name):
    parts = killed / (".out.parquet.parts" if name == "out.parquet" else "out/.parts")
    assert parts.is_dir() and (name == "out/" or not (killed / name).exists())
    heard = embedded(monkeypatch)
    summary = write_embeddings(encoder_folder, [music], f"{killed}/{name}")
    assert summary["reused"] == 3 and len(heard) == 2 and summary["tracks"] == 5
    assert summary["hours"] == pytest.approx(10 / 3600)
    write_embeddings(encoder_folder, [music], tmp_path / "expected.parquet")
    files = [killed / name] if name == "out.parquet" else sorted((killed / "out").rglob("*.npz"))
    found = np.concatenate([columns(path)["layer_3"] for path in files])
    np.testing.assert_allclose(found, columns(tmp_path / "expected.parquet")["layer_3"], atol=1e-6)
    assert not parts.exists()


def test_a_changed_file_or_setting_reads_no_old_part(encoder_folder, music, tmp_path, monkeypatch):
    music = shutil.copytree(music, tmp_path / "music")

    def interrupted(target, *args):
        if target.suffix == ".parquet" and len(list(target.parent.glob("*.parquet"))) == 3:
            raise KeyboardInterrupt
        write_tables(target, *args)

    with monkeypatch.context() as patched:
        patched.setattr("music2vec_hf.features.tables.write_tables", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_embeddings(encoder_folder, [music], tmp_path / "out.parquet", ["3"])
    saved = shutil.copytree(tmp_path / ".out.parquet.parts", tmp_path / ".other.parquet.parts")
    assert len(list(saved.glob("*.parquet"))) == 3
    other = write_embeddings(encoder_folder, [music], tmp_path / "other.parquet", ["3"], window_seconds=20)
    assert other["reused"] == 0
    soundfile.write(music / "a.flac", noise(2.2, 9), 16_000)
    assert write_embeddings(encoder_folder, [music], tmp_path / "out.parquet", ["3"])["reused"] == 2
    expected = embed(encoder_folder, music / "a.flac", layers=3)
    np.testing.assert_allclose(columns(tmp_path / "out.parquet")["layer_3"][0], expected, atol=1e-6)


def test_a_folder_goes_on_and_is_not_mixed(encoder_folder, music, tmp_path, monkeypatch):
    music = shutil.copytree(music, tmp_path / "music")
    output = tmp_path / "out"
    output.mkdir()
    write_embeddings(encoder_folder, [music], output, ["3"])
    heard = embedded(monkeypatch)
    assert write_embeddings(encoder_folder, [music], output, ["3"])["reused"] == 5 and not heard
    soundfile.write(music / "b.wav", noise(2.2, 9), 16_000)
    assert write_embeddings(encoder_folder, [music], output, ["3"])["reused"] == 4 and heard == [0]
    expected = embed(encoder_folder, music / "b.wav", layers=3)
    np.testing.assert_allclose(columns(output / "b.wav.npz")["layer_3"][0], expected, atol=1e-6)
    before = (output / "a.flac.npz").read_bytes()
    with pytest.raises(ValueError, match="made by another model or with other settings"):
        write_embeddings(encoder_folder, [music], output, ["2"])
    assert (output / "a.flac.npz").read_bytes() == before
    (output / "a.flac.npz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="is no file of embeddings"):
        write_embeddings(encoder_folder, [music], output, ["3"])


def test_no_name_leaves_the_folder(encoder_folder, music, tmp_path):
    rows = "../../../up.flac", "/etc/abs.flac", "..\\back.flac"
    data = (music / "a.flac").read_bytes()
    audio = [{"bytes": data, "path": name} for name in rows]
    pq.write_table(pa.table({"audio": audio}), tmp_path / "evil.parquet")
    write_embeddings(encoder_folder, [tmp_path / "evil.parquet"], f"{tmp_path}/deep/out/", ["3"])
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.flac.npz"))
    assert files == ["deep/out/back.flac.npz", "deep/out/etc/abs.flac.npz", "deep/out/up.flac.npz"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "below").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="by a link"):
        write_embeddings(encoder_folder, [music], tmp_path / "linked", ["3"])


def test_mistakes_are_refused(encoder_folder, music, tmp_path):
    for output in ("out.csv", "out"):
        with pytest.raises(ValueError, match=r"Name a file that ends in \.parquet or \.npz"):
            write_embeddings(encoder_folder, [music], tmp_path / output)
    (tmp_path / "again").mkdir()
    soundfile.write(tmp_path / "again" / "a.flac", noise(1), 16_000)
    with pytest.raises(ValueError, match=r"would both become .*a\.flac\.npz"):
        write_embeddings(encoder_folder, [music, tmp_path / "again"], f"{tmp_path}/out/")
    assert not list(tmp_path.glob("*.parquet")) and not list(tmp_path.glob(".*"))


def test_inputs_of_every_kind_are_listed(music, tmp_path):
    music = shutil.copytree(music, tmp_path / "music")
    (music / "list.csv").write_text("file_name,label\nb.wav,1\nbelow/c.flac,2\n")
    named = list_inputs([music / "list.csv", music / "a.flac", music / "below"])
    assert [track.name for track in named.tracks] == ["b.wav", "below/c.flac", "a.flac", "a.flac", "c.flac"]


def test_truncated_files_are_named_also_after_a_kill(encoder_folder, music, tmp_path, capsys):
    music = shutil.copytree(music, tmp_path / "music")
    whole = (music / "below" / "c.flac").read_bytes()
    (music / "below" / "c.flac").write_bytes(whole[: len(whole) // 2])
    named = [str(music / "below" / "c.flac")]
    for output in ("out.parquet", "out/", "out/"):
        summary = write_embeddings(encoder_folder, [music], f"{tmp_path}/{output}", ["3"])
        assert [path for path, _ in summary["truncated"]] == named and "of the 2.5 s" in summary["truncated"][0][1]
    assert summary["reused"] == summary["tracks"] == 5
    command = ["embed", str(encoder_folder), str(music), "--output", str(tmp_path / "again.npz"), "--device", "cpu"]
    assert main([*command, "--layers", "3"]) == 0
    printed = capsys.readouterr()
    assert "1 truncated, 1 could not be read" in printed.out
    assert f"truncated: {named[0]}: only" in printed.err and f"left out: {music / 'x.wav'}:" in printed.err


MEMORY = """
import resource, sys
from music2vec_hf.features.tables import write_embeddings

def peak(name):
    write_embeddings(sys.argv[1], [f"{sys.argv[2]}/{name}.flac"], f"{sys.argv[2]}/{name}.parquet", **options)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

options = {"pool": sys.argv[3], "layers": ["3"], "device": "cpu"}
short = peak("short")
print(peak("long") - short)
"""


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["mean", "none"])
def test_memory_does_not_grow_with_the_track(encoder_folder, tmp_path, pool):
    """An hour of audio is 230 MB of samples; what ten minutes need is enough for it."""
    minute = noise(60)
    for name, minutes in (("short", 10), ("long", 60)):
        with soundfile.SoundFile(tmp_path / f"{name}.flac", "w", 16_000, 1) as file:
            for _ in range(minutes):
                file.write(minute)
    command = [sys.executable, "-c", MEMORY, encoder_folder, tmp_path, pool]
    grown = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 40  # MB
    assert pq.read_metadata(tmp_path / "long.parquet").num_rows == (1 if pool == "mean" else 120 * 1_499)
