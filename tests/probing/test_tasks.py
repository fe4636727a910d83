"""Readers of data sets: official layouts, their variants and quirks, and the check before any compute."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torchaudio.datasets.gtzan as published
from toy_datasets import GENRES, MTT_CLIPS, build_gtzan, build_magnatagatune, gtzan_subset, link, write_tone

from music2vec_hf.common.results import read_results
from music2vec_hf.probing.suite import run_suite
from music2vec_hf.probing.tables import list_path, read_table
from music2vec_hf.probing.tasks import loading as tasks
from music2vec_hf.probing.tasks.classes import split_stems
from music2vec_hf.probing.tasks.loading import TASKS, describe_check, load_task, resolve_tasks

GTZAN_SUMS = {"train": "2b04966c", "validation": "f8fbee7c", "test": "09cafa6a"}
MTT_COUNTS = {"magnatagatune": (4, 2, 3), "magnatagatune-filtered": (3, 1, 2)}


@pytest.fixture(scope="module")
def gtzan(tmp_path_factory):
    return build_gtzan(tmp_path_factory.mktemp("gtzan"))


@pytest.fixture
def small_benchmark(monkeypatch):
    """Declare the toy's sizes as the benchmark's."""
    for name, counts in MTT_COUNTS.items():
        monkeypatch.setitem(tasks.TASKS, name, replace(TASKS[name], counts=counts))


def test_the_groups_are_the_papers_and_the_synthetic_tasks():
    assert resolve_tasks(["paper", "gtzan"]) == ("magnatagatune", "gtzan", "giantsteps", "emomusic")
    assert "magnatagatune-filtered" in TASKS
    assert all(TASKS[name].counts and not TASKS[name].synthetic for name in resolve_tasks("paper"))


def test_gtzan_lists_are_the_published_ones():
    stems = split_stems()
    assert stems == {
        "train": published.filtered_train,
        "validation": published.filtered_valid,
        "test": published.filtered_test,
    }
    for split, digest in GTZAN_SUMS.items():
        content = list_path(f"gtzan_{split}.txt").read_bytes()
        assert hashlib.sha256(content).hexdigest().startswith(digest)


def test_gtzan_official_layout_is_the_benchmark(gtzan):
    data = load_task("gtzan", gtzan)
    assert data.comparable and data.differences == () and data.extra == ()
    assert data.split_sizes == {"train": 443, "validation": 197, "test": 290}
    assert data.task.labels == tuple(sorted(GENRES))
    for split in data.splits.values():
        for track, path, target in zip(split.track_ids, split.paths, split.targets, strict=True):
            assert path.parent.name == GENRES[target] == track.split(".")[0] and path.stem == track
    assert load_task("gtzan", gtzan.parent / gtzan.name).paths == data.paths


def test_gtzan_variants_are_found_by_stem(gtzan, tmp_path):
    for folder, suffix in (("Data/genres_original", ".wav"), ("genres", ".au")):
        root = tmp_path / suffix / "gtzan"  # below the given folder, under the data set's name
        for path in gtzan.rglob("*.wav"):
            link(path, root / folder / path.parent.name / f"{path.stem}{suffix}")
        data = load_task("gtzan", root.parent)
        assert data.comparable and {path.suffix for path in data.paths} == {suffix}


def test_a_broken_jazz_00054_is_left_out_and_said(gtzan, tmp_path):
    for path in gtzan.rglob("*.wav"):
        if path.stem != "jazz.00054":
            link(path, tmp_path / path.relative_to(gtzan))
    with pytest.raises(FileNotFoundError, match=r"1 of 930 audio files are missing: .*jazz.00054.wav"):
        load_task("gtzan", tmp_path)
    (tmp_path / "genres" / "jazz" / "jazz.00054.wav").write_bytes(b"RIFF, but nothing that follows it")
    data = load_task("gtzan", tmp_path)
    assert data.split_sizes["train"] == 442 == len(data.splits["train"].targets) and not data.comparable
    assert data.differences == (
        "train: the audio of 1 of 443 tracks is unreadable, left out: jazz.00054.",
        "train: 442 tracks, the benchmark has 443.",
    )


def test_missing_and_unreadable_files_are_named_and_left_out_only_when_asked(gtzan, tmp_path):
    stems = split_stems()
    missing, broken = stems["test"][0], stems["validation"][:7]
    for path in gtzan.rglob("*.wav"):
        target = tmp_path / path.relative_to(gtzan)
        if path.stem in broken:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"")
        elif path.stem != missing:
            link(path, target)
    with pytest.raises(FileNotFoundError) as error:
        load_task("gtzan", tmp_path)
    assert f"1 of 930 audio files are missing: {tmp_path}/genres/blues/{missing}.wav." in str(error.value)
    assert "7 of 930 audio files cannot be read" in str(error.value) and "and 2 more" in str(error.value)
    data = load_task("gtzan", tmp_path, allow_missing=True)
    assert data.split_sizes == {"train": 443, "validation": 190, "test": 289} and not data.comparable
    assert data.differences[0].endswith(f"unreadable, left out: {', '.join(broken[:5])} and 2 more.")
    assert data.affected[data.differences[0]] == tuple(broken)
    assert f"test: the audio of 1 of 290 tracks is missing, left out: {missing}." in data.differences
    assert "validation: 190 tracks, the benchmark has 197." in describe_check(data)
    for split in data.splits.values():
        assert [GENRES[target] for target in split.targets] == [track.split(".")[0] for track in split.track_ids]
    link(next(gtzan.rglob("*.wav")), tmp_path / "genres" / "blues" / f"{missing}.wav")
    with pytest.raises(ValueError, match="7 of 930 audio files cannot be read"):
        load_task("gtzan", tmp_path)


def test_files_that_gtzan_does_not_know_are_named_and_not_used(gtzan, tmp_path):
    for path in gtzan.rglob("*.wav"):
        link(path, tmp_path / path.relative_to(gtzan))
    write_tone(tmp_path / "genres" / "techno" / "techno.00001.wav")
    write_tone(tmp_path / "copy" / "blues.00029.wav")
    data = load_task("gtzan", tmp_path)
    assert len(data.extra) == 2 and any(name.endswith("techno/techno.00001.wav") for name in data.extra)
    assert data.comparable and "2 audio files: " in describe_check(data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no clip of GTZAN such as genres/blues"):
        load_task("gtzan", tmp_path / "empty")
    with pytest.raises(ValueError, match="no usable track in the split 'train'"):
        link(next(gtzan.rglob("*.wav")), tmp_path / "one" / f"{split_stems()['test'][0]}.wav")
        load_task("gtzan", tmp_path / "one", allow_missing=True)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"audio": "mp3", "quoted": False},
        {"audio": "Audio", "newline": "\r\n"},
        {"suffix": ".flac"},
    ],
    ids=str,
)
def test_magnatagatune_layouts(tmp_path, small_benchmark, layout):
    root = build_magnatagatune(tmp_path, **layout)
    data = load_task("magnatagatune", root)
    assert {split: data.splits[split].track_ids for split in data.splits} == {
        "train": ("6", "10", "11", "23"),
        "validation": ("14", "19"),
        "test": ("2", "21", "22"),
    }
    tags = {str(clip): set(tags) - {"harpsicord"} for clip, _, tags in MTT_CLIPS}
    for split in data.splits.values():
        for track, path, target in zip(split.track_ids, split.paths, split.targets, strict=True):
            assert {label for label, one in zip(data.task.labels, target, strict=True) if one} == tags[track]
            assert f"-{int(track):02d}-" in path.name
    assert data.extra == () and data.task.labels[:3] == ("guitar", "classical", "slow") and len(data.task.labels) == 50
    # Sizes fit, tags do not: the toy's tags are as rare as ten clips make them.
    assert [sentence.split(":")[0] for sentence in data.differences] == ["train", "validation", "test"]
    assert "guitar 2 instead of 3469" in data.differences[0]


def test_filtered_and_unfiltered_magnatagatune_are_two_tasks(tmp_path, small_benchmark):
    root = build_magnatagatune(tmp_path)
    data, filtered = load_task("magnatagatune", root), load_task("magnatagatune-filtered", root)
    assert data.split_sizes == {"train": 4, "validation": 2, "test": 3}
    assert filtered.split_sizes == {"train": 3, "validation": 1, "test": 2}
    assert data.task.name != filtered.task.name and data.task.split_rule != filtered.task.split_rule
    assert all(split.targets.any(axis=1).all() for split in filtered.splits.values())
    assert not all(split.targets.any(axis=1).all() for split in data.splits.values())
    assert TASKS["magnatagatune-filtered"].counts != TASKS["magnatagatune"].counts
    with pytest.raises(ValueError, match="no task 'mtt'"):
        load_task("mtt", root)


def test_the_counts_that_ship_are_those_of_the_benchmark():
    unfiltered, filtered = TASKS["magnatagatune"].counts, TASKS["magnatagatune-filtered"].counts
    without_tag = (3_459, 296, 997)
    assert tuple(np.subtract(unfiltered, without_tag)) == filtered and sum(unfiltered) == 25_863 - 3
    columns = list_path("magnatagatune_columns.txt").read_text().split()
    assert columns[0] == "clip_id" and columns[-1] == "mp3_path"
    assert sum(TASKS["giantsteps"].clip_counts) == 7_035 and sum(TASKS["emomusic"].counts) == 744


def test_magnatagatune_mistakes_get_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no annotations_final.csv, .* Get it from: https://mirg"):
        load_task("magnatagatune", tmp_path)
    root = build_magnatagatune(tmp_path)
    table = root / "annotations_final.csv"
    text = table.read_text()
    table.write_text(text.replace("\t", ","))
    with pytest.raises(
        ValueError, match=r"has no column clip_id, guitar, .* 44 more; its columns, separated by a tab, are "
    ):
        load_task("magnatagatune", root)
    table.write_text(text.replace('"f/some', '"x/some'))
    with pytest.raises(ValueError, match=r"Clip 2 of .* has the path 'x/some"):
        load_task("magnatagatune", root)
    table.write_text(text.replace('"1"', '"yes"'))
    with pytest.raises(ValueError, match="has the tag value 'yes'"):
        load_task("magnatagatune", root)
    table.write_text(text)
    for folder in [path for path in root.iterdir() if path.is_dir()]:
        folder.rename(root / f"part-{folder.name}")
    with pytest.raises(FileNotFoundError, match="has the folders 0 to f"):
        load_task("magnatagatune", root)


def test_tables_are_read_by_name_whatever_their_quirks(tmp_path):
    table = tmp_path / "table.txt"
    table.write_bytes('\ufeffMORE\t"ID"\t KEY \t\r\nx\t"5061"\tD# minor \t\r\n\r\ny\t5881\tA major'.encode())
    assert read_table(table, "\t", ("ID", "KEY")) == [
        {"ID": "5061", "KEY": "D# minor"},
        {"ID": "5881", "KEY": "A major"},
    ]
    table.write_text("ID\tKEY\n5061\n")
    with pytest.raises(ValueError, match=r"Line 2 of .* has 1 fields, its header 2"):
        read_table(table, "\t", ("ID", "KEY"))


def test_the_length_is_the_one_that_the_header_states(tmp_path):
    """Only headers are read: that a file breaks off is found when its features are computed."""
    path = write_tone(tmp_path / "a.wav", seconds=1.0)
    path.write_bytes(path.read_bytes()[:8_000])
    assert tasks.read_headers([path]) == ({path: 1.0}, {})


def test_a_toy_gtzan_goes_from_folder_to_results(tmp_path):
    root = gtzan_subset(tmp_path / "gtzan")
    with pytest.raises(FileNotFoundError, match="810 of 930 audio files are missing"):
        run_suite({"mfcc": "mfcc"}, "gtzan", root, tmp_path / "refused", progress=False)
    path = run_suite({"mfcc": "mfcc"}, "gtzan", root, tmp_path / "out", seeds=(0,), progress=False, allow_missing=True)
    records = {record["source"]: record for record in read_results(path)["records"]}
    assert records["mfcc"]["value"] == 1.0 and records["chance"]["value"] == pytest.approx(0.1)
    for record in records.values():
        assert record["split_sizes"] == {"train": 40, "validation": 40, "test": 40}
        assert "train: 40 tracks, the benchmark has 443." in record["differences"]
    json.dumps(records)
