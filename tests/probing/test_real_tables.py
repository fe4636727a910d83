"""The real tables of MagnaTagATune, MTG-Jamendo and VocalSet, where they lie beside the checkout."""

import lzma
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from toy_datasets import write_tone

from music2vec_hf.probing.tasks import classes, songs
from music2vec_hf.probing.tasks.declarations import SPLITS
from music2vec_hf.probing.tasks.loading import TASKS, check_found, describe_check

TABLES = Path(__file__).parents[3] / "shared" / "annotations"
pytestmark = pytest.mark.skipif(not TABLES.is_dir(), reason=f"the real tables are not at {TABLES}")


@pytest.fixture(scope="module")
def magnatagatune(tmp_path_factory):
    """What is read of the real table and of three clips of 25,860."""
    root = tmp_path_factory.mktemp("real") / "magnatagatune"
    shutil.copytree(TABLES / "faults" / "2_magnatagatune_allow_missing", root)
    with lzma.open(TABLES / "magnatagatune" / "annotations_final.csv.xz") as table:
        (root / "annotations_final.csv").write_bytes(table.read())
    return {name: songs.read_magnatagatune(TASKS[name], root) for name in ("magnatagatune", songs.FILTERED)}


def test_magnatagatune_splits_and_tags_are_the_published_ones(magnatagatune):
    found = {one.track_id: one for one in magnatagatune["magnatagatune"].examples}
    text = lzma.open(TABLES / "expected" / "magnatagatune.tsv.xz", "rt", encoding="utf-8").read()
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    assert len(rows) == len(found) == 25_860
    assert all(found[clip].split == split for clip, split, _ in rows)
    assert all(set(found[clip].label) <= set(names.split(";")) for clip, _, names in rows)
    filtered = magnatagatune[songs.FILTERED].examples
    counts = Counter(one.split for one in filtered)
    assert tuple(counts[split] for split in SPLITS) == TASKS[songs.FILTERED].counts
    names = {one.split: set() for one in filtered}
    for one in filtered:
        names[one.split].add(f"{one.path.parent.name}/{one.path.stem}")
    for line in lzma.open(TABLES / "expected" / "magnatagatune_lee2017_filtered.tsv.xz", "rt").read().splitlines():
        split, name = line.split("\t")
        split = {"valid": "validation"}.get(split, split)
        assert name.removesuffix(".npy") in names[split]


def test_what_is_missing_is_said_in_short_lines(magnatagatune):
    data = check_found(magnatagatune["magnatagatune"], allow_missing=True)
    assert data.split_sizes == dict.fromkeys(SPLITS, 1)
    lines = describe_check(data).splitlines()
    assert max(map(len, lines)) < 400 and "left out: 2, 6, 10" not in describe_check(data)
    sentence = next(line for line in data.differences if line.startswith("train: the audio of 18705 of 18706"))
    assert "and 18700 more" in sentence and len(data.affected[sentence]) == 18_705
    with pytest.raises(FileNotFoundError, match="25857 of 25860 audio files are missing") as error:
        check_found(magnatagatune["magnatagatune"])
    assert len(str(error.value)) < 1_500


@pytest.fixture(scope="module")
def jamendo(tmp_path_factory):
    root = tmp_path_factory.mktemp("jamendo")
    with tarfile.open(TABLES / "mtg-jamendo" / "split-0.tar.xz") as archive:
        archive.extractall(root, filter="data")
    write_tone(root / "audio" / "00" / "1100.mp3")
    return root


@pytest.mark.parametrize("subset", ["top50", "genre", "instrument", "moodtheme"])
def test_jamendo_counts_are_the_published_ones(subset, jamendo):
    task = TASKS[f"mtg-jamendo-{subset}"]
    examples = songs.read_jamendo(task, jamendo).examples
    counts = Counter(one.split for one in examples)
    assert tuple(counts[split] for split in SPLITS) == task.counts
    assert {tag for one in examples for tag in one.label} == set(task.labels)


def test_odd_names_of_vocalset_lead_to_the_right_singers():
    root = TABLES / "faults" / "1_vocalset_m9_in_male8"
    found = classes.read_vocalset(TASKS["vocalset-singer"], root)
    by_path = {one.path.relative_to(root).as_posix(): one for one in found.examples}
    assert by_path["FULL/male9/excerpts/vibrato/m9_caro_vibrato.wav"].label == "m9"
    assert "FULL/male8/excerpts/vibrato/m9_caro_vibrato.wav" not in by_path
    for place, one in by_path.items():
        folder = place.split("/")[1]
        assert one.label == folder.replace("female", "f").replace("male", "m")
    names = (TABLES / "vocalset" / "real_odd_names.txt").read_text().splitlines()
    copies = [place for place in names if "(1)" in place]
    assert len(copies) == 3 and not {*copies} & {*by_path}
    said = {sentence: tuple(tracks) for sentence, tracks in found.differences.items() if tracks}
    (misfiled,) = [tracks for sentence, tracks in said.items() if "another singer" in sentence]
    (copied,) = [tracks for sentence, tracks in said.items() if "copies" in sentence]
    assert misfiled == ("FULL/male8/excerpts/vibrato/m9_caro_vibrato.wav",) and set(copied) == set(copies)
