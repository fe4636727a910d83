"""MagnaTagATune, MTG-Jamendo, NSynth and VocalSet in their layouts."""

from dataclasses import replace

import numpy as np
import pytest
import toy_datasets as toys
from sklearn.model_selection import GroupShuffleSplit
from toy_datasets import copy_of, edit, write_tone

from music2vec_hf.probing.tasks import classes, loading
from music2vec_hf.probing.tasks.declarations import SPLITS
from music2vec_hf.probing.tasks.loading import TASKS, load_task

COUNTS = {"magnatagatune": (4, 2, 3), "magnatagatune-filtered": (3, 1, 2), "mtg-jamendo-genre": (2, 1, 2)}


@pytest.fixture(autouse=True)
def small_benchmark(monkeypatch):
    """Declare the toys' sizes as the benchmark's."""
    for name, counts in COUNTS.items():
        monkeypatch.setitem(loading.TASKS, name, replace(TASKS[name], counts=counts))


def tracks_of(data):
    """Track id -> (path, target, split)."""
    return {
        track: (path, target, name)
        for name, split in data.splits.items()
        for track, path, target in zip(split.track_ids, split.paths, split.targets, strict=True)
    }


@pytest.mark.parametrize(
    "layout",
    [{}, {"audio": "mp3", "quoted": False}, {"audio": "Audio", "newline": "\r\n"}, {"suffix": ".flac"}],
    ids=str,
)
def test_magnatagatune_layouts(tmp_path, layout):
    root = toys.build_magnatagatune(tmp_path, **layout)
    data, filtered = load_task("magnatagatune", root), load_task("magnatagatune-filtered", root)
    assert {split: data.splits[split].track_ids for split in data.splits} == {
        "train": ("6", "10", "11", "23"),
        "validation": ("14", "19"),
        "test": ("2", "21", "22"),
    }
    tags = {str(clip): set(tags) - {"harpsicord"} for clip, _, tags in toys.MTT_CLIPS}
    for track, (path, target, _) in tracks_of(data).items():
        assert {label for label, one in zip(data.task.labels, target, strict=True) if one} == tags[track]
        assert f"-{int(track):02d}-" in path.name
    assert data.extra == () and data.task.labels[:3] == ("guitar", "classical", "slow") and len(data.task.labels) == 50
    # Sizes fit, tags do not: the toy's tags are as rare as ten clips make them.
    assert [sentence.split(":")[0] for sentence in data.differences] == ["train", "validation", "test"]
    assert "guitar 2 instead of 3469" in data.differences[0]
    assert set(tracks_of(filtered)) == {track for track in tracks_of(data) if tags[track]}
    assert data.task.name != filtered.task.name


@pytest.mark.parametrize(
    "change, sentence",
    [
        (("\t", ","), r"has no column clip_id, guitar, .* 44 more; its columns, separated by a tab, are "),
        (('"f/some', '"x/some'), r"Clip 2 of .* has the path 'x/some"),
        (('"1"', '"yes"'), "has the tag value 'yes'"),
    ],
)
def test_magnatagatune_mistakes_get_a_sentence(change, sentence, toy, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no annotations_final.csv, .* Get it from: https://mirg"):
        load_task("magnatagatune", tmp_path)
    root = copy_of(toy / "magnatagatune", tmp_path / "copy")
    edit(root / "annotations_final.csv", lambda text: text.replace(*change))
    with pytest.raises(ValueError, match=sentence):
        load_task("magnatagatune", root)
    for folder in [path for path in root.iterdir() if path.is_dir()]:
        folder.rename(root / f"part-{folder.name}")
    edit(root / "annotations_final.csv", lambda text: text.replace(*reversed(change)))
    with pytest.raises(FileNotFoundError, match="has the folders 0 to f"):
        load_task("magnatagatune", root)


@pytest.mark.parametrize(("audio", "low"), [("audio", ""), ("audio-low", ".low")], ids=["full", "low"])
def test_mtg_jamendo_ragged_rows_and_both_qualities(tmp_path, audio, low):
    root = toys.build_jamendo(tmp_path, audio, low)
    write_tone(root / audio / "99" / "99.mp3", seconds=0.5)  # of another subset: neither used nor unknown
    write_tone(root / audio / "jingle.mp3", seconds=0.5)
    data = load_task("mtg-jamendo-genre", root)
    assert data.comparable and data.extra == (f"{audio}/jingle.mp3",)
    found, labels = tracks_of(data), np.array(data.task.labels)
    for split, tracks in toys.JAMENDO.items():
        assert data.splits[split].track_ids == tuple(f"track_{track:07d}" for _, track, _ in tracks)
        for _, track, tags in tracks:
            path, target, _ = found[f"track_{track:07d}"]
            assert path.name == f"{track}{low}.mp3" and set(labels[target == 1]) == set(tags.split("\t"))


def test_mtg_jamendo_mistakes_get_a_sentence(toy, tmp_path):
    root = copy_of(toy / "mtg-jamendo", tmp_path / "copy")
    with pytest.raises(FileNotFoundError, match=r"has no data/splits/split-0/autotagging_top50tags-train.tsv"):
        load_task("mtg-jamendo-top50", root)
    (root / "audio" / "07" / "1307.mp3").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 5 audio files are missing: .*audio/07/1307.mp3"):
        load_task("mtg-jamendo-genre", root)
    table = root / "data" / "splits" / "split-0" / "autotagging_genre-test.tsv"
    train = table.with_name("autotagging_genre-train.tsv").read_text()
    for change, sentence in (
        (lambda text: text.replace("---rock", "---skiffle"), "1 labels of .* unknown to the task: genre---skiffle"),
        (lambda text: text + "track_0001309\tartist\r\n", "has a row of 2 fields, track_0001309, artist"),
        (lambda text: "autotagging.tsv", "has the columns autotagging.tsv, but TRACK_ID"),  # a symbolic link in a zip
        (lambda text: train, "Track 'track_0000241' is in 'train' and again in 'test'"),
    ):
        edit(table, change)
        with pytest.raises(ValueError, match=sentence):
            load_task("mtg-jamendo-genre", root)


def test_nsynth_instrument_and_pitch(toy, tmp_path):
    root = copy_of(toy / "nsynth", tmp_path / "copy")
    write_tone(root / "nsynth-test" / "audio" / "stray.wav")
    data, pitch = load_task("nsynth-instrument", root), load_task("nsynth-pitch", root)
    assert [data.task.labels[target] for target in data.splits["train"].targets] == ["bass", "vocal"]
    assert [data.task.labels[target] for target in data.splits["test"].targets] == ["reed", "bass"]
    assert pitch.splits["train"].targets.tolist() == [60, 61]
    assert data.extra == ("nsynth-test/audio/stray.wav",) and len(data.task.labels) == 11
    assert data.differences[0] == "train: 2 tracks, the benchmark has 289205."


@pytest.mark.parametrize("top", ["FULL", "VocalSet1-2/data_by_singer"])
def test_vocalset_singers_and_techniques(tmp_path, top):
    root = toys.build_vocalset(tmp_path / "vocalset", top)
    technique, singer = (load_task(f"vocalset-{name}", tmp_path) for name in ("technique", "singer"))
    assert sum(technique.split_sizes.values()) == 120 and sum(singer.split_sizes.values()) == 140
    for data, position in ((technique, 0), (singer, 1)):
        for track, (path, target, _) in tracks_of(data).items():
            label = (track.split("/")[0], path.name.split("_")[0])[position]
            assert data.task.labels[target] == label and path.stem == track.split("/")[1]
    singers = {split: {path.name.split("_")[0] for path in technique.splits[split].paths} for split in SPLITS}
    assert singers["test"] == {"f2", "f8", "m3", "m5", "m10"} and not singers["test"] & singers["train"]
    assert technique.differences == singer.differences == (classes.NOT_MARBLES,)
    with pytest.raises(FileNotFoundError, match=r"has no recording <singer>/<context>/<technique>.*zenodo.org"):
        load_task("vocalset-singer", root / top / "female1" / "scales")


def test_vocalset_odd_names_misfiled_recordings_and_copies(toy, tmp_path):
    root = copy_of(toy / "vocalset", tmp_path / "copy")
    full, before = root / "FULL", tracks_of(load_task("vocalset-singer", root))
    f4, m8, m9 = full / "female4/arpeggios/belt", full / "male8/scales/belt", full / "male9/scales/belt"
    (f4 / "f4_arpeggios_belt_a.wav").rename(f4 / "arpeggios_belt_a.wav")  # some lack their singer
    write_tone(m8 / "m9_scales_belt_a.wav", frequency=300)  # comes first, and is not the recording of that name
    (full / "male10/scales/belt/m10_scales_belt_a.wav").rename(m9 / "m10_scales_belt_a.wav")  # comes alone
    write_tone(m9 / "m9_scales_belt_a(1).wav", frequency=500)  # called a copy
    same = (m9 / "m9_scales_belt_a.wav").read_bytes()
    (m9 / "m9_scales_belt_again.wav").write_bytes(same)  # one by its bytes
    write_tone(full / "male3" / "excerpts" / "vibrato" / "row_vibrato.wav")
    write_tone(full / "male3" / "scales" / "humming" / "m3_scales_humming.wav")
    data = load_task("vocalset-singer", root)
    found = tracks_of(data)
    assert found["belt/f4_arpeggios_belt_a"][0].name == "arpeggios_belt_a.wav"
    path, target, _ = found["belt/m9_scales_belt_a"]
    assert path.parent == m9 and data.task.labels[target] == "m9"
    assert found.keys() == before.keys() - {"belt/m10_scales_belt_a"}
    misfiled, copies = data.differences[1:]
    assert misfiled.startswith("2 recordings lie in the folder of another singer than their name says, left out: ")
    assert copies.startswith("2 recordings are copies of a recording beside them, left out: ")
    for sentence, names in (
        (misfiled, {"m9_scales_belt_a.wav", "m10_scales_belt_a.wav"}),
        (copies, {"m9_scales_belt_a(1).wav", "m9_scales_belt_again.wav"}),
    ):
        assert {path.rpartition("/")[2] for path in data.affected[sentence]} == names
    assert len(data.extra) == 2
    write_tone(full / "female2/scales/vibrato/f2_scales_vibrato_a.wav")
    write_tone(full / "female2/scales/vibrato/f2_scales_vibrato_a(1).wav", frequency=700)
    assert load_task("vocalset-singer", root).differences[2].startswith("3 recordings are copies")


def test_vocalset_numbers_are_shuffled_as_scikit_learn_does():
    """MARBLE's three calls on one generator, on numbers with gaps and in any order."""
    rng = np.random.default_rng(0)
    numbered = [
        classes.Recording(technique, f"{classes.SINGERS[rng.integers(20)]}_x", number)
        for technique in (*classes.TECHNIQUES, *classes.OTHER_TECHNIQUES)
        for number in range(rng.integers(20, 90))
    ]
    of_technique, of_singer = classes.shuffled_numbers(numbered)
    reference = np.random.RandomState(classes.SEED)

    def drawn(groups, share):
        shuffle = GroupShuffleSplit(n_splits=1, test_size=share, random_state=reference)
        return [[groups[row] for row in rows] for rows in next(shuffle.split(groups, groups=groups))]

    kept = [
        one.number
        for one in numbered
        if one.technique in classes.TECHNIQUES and one.singer not in classes.TEST_SINGERS
    ]
    _, validation = drawn(kept, 0.4)
    assert set(validation) == {number for number, split in of_technique.items() if split == "validation"}
    rest, test = drawn([one.number for one in numbered], 0.2)
    assert set(test) == {number for number, split in of_singer.items() if split == "test"}
    _, validation = drawn(rest, 0.4)
    assert set(validation) == {number for number, split in of_singer.items() if split == "validation"}
