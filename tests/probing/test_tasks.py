"""Loading a task: declarations, the check of the audio before any compute, mistakes in the tables of any reader."""

import hashlib
import shutil

import numpy as np
import pytest
import torchaudio.datasets.gtzan as published
from toy_datasets import DATASETS, GENRES, copy_of, link, write_tone

from music2vec_hf.probing.tasks import loading
from music2vec_hf.probing.tasks.classes import SINGERS, TECHNIQUES, split_stems
from music2vec_hf.probing.tasks.declarations import list_path, read_table
from music2vec_hf.probing.tasks.loading import TASKS, describe_check, load_task, resolve_tasks

GTZAN_SUMS = {"train": "2b04966c", "validation": "f8fbee7c", "test": "09cafa6a"}


def test_declarations_and_groups():
    assert resolve_tasks(["paper", "gtzan"]) == ("magnatagatune", "gtzan", "giantsteps", "emomusic")
    assert resolve_tasks(["synthetic", "synthetic-key"]) == tuple(TASKS)[:4]
    assert all(TASKS[name].synthetic for name in resolve_tasks("synthetic"))
    assert all(TASKS[name].counts and not TASKS[name].synthetic for name in resolve_tasks("paper"))
    assert TASKS["vocalset-singer"].labels == SINGERS and TASKS["vocalset-technique"].labels == TECHNIQUES
    assert TASKS["nsynth-pitch"].labels[0] == "0" and len(TASKS["nsynth-pitch"].labels) == 128
    for subset, size in {"top50": 50, "genre": 87, "instrument": 40, "moodtheme": 56}.items():
        labels = TASKS[f"mtg-jamendo-{subset}"].labels
        assert len(labels) == size == len(set(labels)) and all("---" in label for label in labels)
    unfiltered, filtered = TASKS["magnatagatune"], TASKS["magnatagatune-filtered"]
    assert tuple(np.subtract(unfiltered.counts, (3_459, 296, 997))) == filtered.counts
    assert sum(unfiltered.counts) == 25_863 - 3 and unfiltered.split_rule != filtered.split_rule
    columns = list_path("magnatagatune_columns.txt").read_text().split()
    assert columns[0] == "clip_id" and columns[-1] == "mp3_path"
    assert sum(TASKS["giantsteps"].clip_counts) == 7_035 and sum(TASKS["emomusic"].counts) == 744
    for task in TASKS.values():
        assert task.license and task.citation and task.source and task.split_rule
        assert set(task.value_metrics) <= set(task.metrics)
    with pytest.raises(ValueError, match="no task 'mtt'; use one of synthetic, synthetic-frames, real, paper, synth"):
        resolve_tasks("mtt")
    with pytest.raises(ValueError, match="no task 'mtt'; use one of synthetic-genre"):
        load_task("mtt", ".")


def test_gtzan_official_layout_is_the_benchmark(toy):
    stems = split_stems()
    assert [stems[split] for split in ("train", "validation", "test")] == [
        published.filtered_train, published.filtered_valid, published.filtered_test,
    ]  # fmt: skip
    for split, digest in GTZAN_SUMS.items():
        assert hashlib.sha256(list_path(f"gtzan_{split}.txt").read_bytes()).hexdigest().startswith(digest)
    data = load_task("gtzan", toy / "gtzan")
    assert data.comparable and data.differences == () and data.extra == ()
    assert data.split_sizes == {"train": 443, "validation": 197, "test": 290}
    assert data.task.labels == tuple(sorted(GENRES))
    for split in data.splits.values():
        for track, path, target in zip(split.track_ids, split.paths, split.targets, strict=True):
            assert path.parent.name == GENRES[target] == track.split(".")[0] and path.stem == track
    assert load_task("gtzan", toy).paths == data.paths  # below the given folder, under the data set's name


@pytest.mark.parametrize("folder, suffix", [("Data/genres_original", ".wav"), ("genres", ".au")])
def test_gtzan_variants_are_found_by_stem_and_strangers_named(toy, tmp_path, folder, suffix):
    for path in (toy / "gtzan").rglob("*.wav"):
        link(path, tmp_path / folder / path.parent.name / f"{path.stem}{suffix}")
    write_tone(tmp_path / "techno" / "techno.00001.wav")
    write_tone(tmp_path / "more" / "blues.00029.wav")
    data = load_task("gtzan", tmp_path)
    assert data.comparable and {path.suffix for path in data.paths} == {suffix}
    assert data.extra == ("more/blues.00029.wav", "techno/techno.00001.wav")
    assert "2 audio files: more/blues" in describe_check(data) and data.task.split_rule in describe_check(data)


def test_a_broken_jazz_00054_is_left_out_and_said(toy, tmp_path):
    root = copy_of(toy / "gtzan", tmp_path / "copy")
    path = root / "genres" / "jazz" / "jazz.00054.wav"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 930 audio files are missing: .*jazz.00054.wav"):
        load_task("gtzan", root)
    path.write_bytes(b"RIFF, but nothing that follows it")
    data = load_task("gtzan", root)
    assert data.split_sizes["train"] == 442 == len(data.splits["train"].targets) and not data.comparable
    assert data.differences == (
        "train: the audio of 1 of 443 tracks is unreadable, left out: jazz.00054.",
        "train: 442 tracks, the benchmark has 443.",
    )


def test_missing_and_unreadable_files_are_named_and_left_out_only_when_asked(toy, tmp_path):
    root, stems = copy_of(toy / "gtzan", tmp_path / "copy"), split_stems()
    missing, broken = stems["test"][0], stems["validation"][:7]
    for stem in (missing, *broken):
        next(root.rglob(f"{stem}.wav")).unlink()
    for stem in broken:
        (root / "genres" / stem.split(".")[0] / f"{stem}.wav").touch()
    with pytest.raises(FileNotFoundError) as error:
        load_task("gtzan", root)
    assert f"1 of 930 audio files are missing: {root}/genres/blues/{missing}.wav." in str(error.value)
    assert "7 of 930 audio files cannot be read" in str(error.value) and "and 2 more" in str(error.value)
    data = load_task("gtzan", root, allow_missing=True)
    assert data.split_sizes == {"train": 443, "validation": 190, "test": 289} and not data.comparable
    assert data.differences[0].endswith(f"unreadable, left out: {', '.join(broken[:5])} and 2 more.")
    assert data.affected[data.differences[0]] == tuple(broken)
    assert f"test: the audio of 1 of 290 tracks is missing, left out: {missing}." in data.differences
    assert "validation: 190 tracks, the benchmark has 197." in describe_check(data)
    for split in data.splits.values():
        assert [GENRES[target] for target in split.targets] == [track.split(".")[0] for track in split.track_ids]
    link(next(root.rglob("*.wav")), root / "genres" / "blues" / f"{missing}.wav")
    with pytest.raises(ValueError, match="7 of 930 audio files cannot be read"):
        load_task("gtzan", root)
    shutil.rmtree(root / "genres")
    with pytest.raises(FileNotFoundError, match="has no clip of GTZAN such as genres/blues"):
        load_task("gtzan", root)
    write_tone(root / f"{missing}.wav")
    with pytest.raises(ValueError, match="no usable track in the split 'train'"):
        load_task("gtzan", root, allow_missing=True)


def test_the_length_is_the_one_that_the_header_states(tmp_path):
    """Only headers are read: that a file breaks off is found when its features are computed."""
    path = write_tone(tmp_path / "a.wav", seconds=1.0)
    path.write_bytes(path.read_bytes()[:8_000])
    assert loading.read_headers([path]) == ({path: 1.0}, {})


def test_tables_are_read_by_name_whatever_their_quirks(tmp_path):
    table = tmp_path / "table.txt"
    table.write_bytes('\ufeffMORE\t"ID"\t KEY \t\r\nx\t"5061"\tD# minor \t\r\n\r\ny\t5881\tA major'.encode())
    rows = [{"ID": "5061", "KEY": "D# minor"}, {"ID": "5881", "KEY": "A major"}]
    assert read_table(table, "\t", ("ID", "KEY")) == rows
    table.write_text("ID\tKEY\n5061\n")
    with pytest.raises(ValueError, match=r"Line 2 of .* has 1 fields, its header 2"):
        read_table(table, "\t", ("ID", "KEY"))


TABLES = [
    ("magnatagatune", "annotations_final.csv"),
    ("emomusic", "songs_info.csv"),
    ("emomusic", "static_annotations.csv"),
    ("giantsteps", "giantsteps-mtg-key-dataset-master/annotations/annotations.txt"),
    ("giantsteps", "giantsteps-mtg-key-dataset-master/annotations/beatport_metadata.txt"),
    ("giantsteps", "giantsteps-key-dataset/annotations/key/1004923.LOFI.key"),
    ("mtg-jamendo-genre", "data/splits/split-0/autotagging_genre-validation.tsv"),
    ("nsynth-pitch", "nsynth-valid/examples.json"),
]


@pytest.mark.parametrize("name, table", TABLES, ids=lambda value: value.split("/")[-1])
def test_a_table_that_cannot_be_read_is_named_with_where_to_get_it(name, table, toy, tmp_path):
    root = copy_of(toy / TASKS[name].dataset, tmp_path / "copy")
    source = TASKS[name].source[:30]
    text = (root / table).read_bytes()
    for content in (text + b"\ncaf\xe9", ("\ufeff" + text.decode()).encode("utf-16")):
        (root / table).unlink()
        (root / table).write_bytes(content)
        with pytest.raises(ValueError, match=r"UTF-8|examples.json") as error:
            load_task(name, root)
        assert table.rpartition("/")[2] in str(error.value) and source in str(error.value)
        assert len(str(error.value)) < 700 and "\n" not in str(error.value)
    (root / table).unlink()
    if name == "giantsteps" and table.endswith(".key"):  # one song less, not the table
        assert any("in the benchmark but not in these annotations" in s for s in load_task(name, root).differences)
        return
    with pytest.raises(FileNotFoundError) as error:
        load_task(name, root)
    assert table.rpartition("/")[2] in str(error.value) and source in str(error.value)


@pytest.mark.parametrize(
    "name, repository, copy",
    [
        ("giantsteps", "giantsteps-key-dataset", "giantsteps-key-dataset-2"),
        ("giantsteps", "giantsteps-mtg-key-dataset-master", "old"),
        ("mtg-jamendo-genre", "data", "mtg-jamendo-dataset/data"),
        ("magnatagatune", "annotations_final.csv", "two/annotations_final.csv"),
    ],
)
def test_two_copies_of_a_repository_are_refused_in_one_short_sentence(name, repository, copy, toy, tmp_path):
    root = copy_of(toy / TASKS[name].dataset, tmp_path / "twice")
    (root / copy).parent.mkdir(exist_ok=True)
    shutil.copytree(root / repository, root / copy) if (root / repository).is_dir() else link(
        root / repository, root / copy
    )
    if name == "magnatagatune":
        (root / "one").mkdir()
        (root / repository).rename(root / "one" / repository)
    with pytest.raises(ValueError, match="has 2 copies of ") as error:
        load_task(name, root)
    assert len(str(error.value)) < 500 and str(error.value).endswith("Keep one of them.")


def test_every_data_set_has_a_toy():
    assert {task.dataset for task in TASKS.values()} == {*DATASETS, "synthetic", ""}
