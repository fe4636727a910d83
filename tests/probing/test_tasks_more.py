"""MTG-Jamendo, NSynth, VocalSet and data sets of the user's own, in their layouts."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
from sklearn.model_selection import GroupShuffleSplit
from toy_audio import write_metadata
from toy_datasets import write_tone

from music2vec_hf.common.results import read_results
from music2vec_hf.probing.suite import run_suite
from music2vec_hf.probing.tasks import classes
from music2vec_hf.probing.tasks import loading as tasks
from music2vec_hf.probing.tasks.custom import NO_BENCHMARK
from music2vec_hf.probing.tasks.declarations import SPLITS
from music2vec_hf.probing.tasks.loading import TASKS, load_task

JAMENDO = {
    "train": (("41", 241, "genre---rock"), ("75", 775, "genre---easylistening\tgenre---electronic\tgenre---lounge")),
    "validation": (("00", 1_100, "genre---rock\tgenre---electronic"),),
    "test": (("07", 1_307, "genre---electronic"), ("08", 1_308, "genre---rock")),
}


def build_jamendo(root, audio="audio", low=""):
    folder = root / "data" / "splits" / "split-0"
    folder.mkdir(parents=True)
    for split, tracks in JAMENDO.items():
        lines = ["TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"]
        for place, track, tags in tracks:
            lines.append(f"track_{track:07d}\tartist_000005\talbum_000033\t{place}/{track}.mp3\t340.1\t{tags}")
            write_tone(root / audio / place / f"{track}{low}.mp3", seconds=0.5)
        (folder / f"autotagging_genre-{split}.tsv").write_bytes("\r\n".join([*lines, ""]).encode())
    return root


@pytest.mark.parametrize(("audio", "low"), [("audio", ""), ("audio-low", ".low")], ids=["full", "low"])
def test_mtg_jamendo_ragged_rows_and_both_qualities(tmp_path, monkeypatch, audio, low):
    monkeypatch.setitem(tasks.TASKS, "mtg-jamendo-genre", replace(TASKS["mtg-jamendo-genre"], counts=(2, 1, 2)))
    root = build_jamendo(tmp_path, audio, low)
    write_tone(root / audio / "99" / "99.mp3", seconds=0.5)  # of another subset: neither used nor unknown
    write_tone(root / audio / "jingle.mp3", seconds=0.5)
    data = load_task("mtg-jamendo-genre", root)
    assert data.comparable and data.extra == (f"{audio}/jingle.mp3",)
    labels = np.array(data.task.labels)
    for split, tracks in JAMENDO.items():
        assert data.splits[split].track_ids == tuple(f"track_{track:07d}" for _, track, _ in tracks)
        assert [path.name for path in data.splits[split].paths] == [f"{track}{low}.mp3" for _, track, _ in tracks]
        for (_, _, tags), target in zip(tracks, data.splits[split].targets, strict=True):
            assert set(labels[target == 1]) == set(tags.split("\t"))


def test_mtg_jamendo_subsets_and_mistakes(tmp_path):
    sizes = {"top50": 50, "genre": 87, "instrument": 40, "moodtheme": 56}
    for subset, size in sizes.items():
        labels = TASKS[f"mtg-jamendo-{subset}"].labels
        assert len(labels) == size == len(set(labels)) and all("---" in label for label in labels)
    root = build_jamendo(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no data/splits/split-0/autotagging_top50tags-train.tsv"):
        load_task("mtg-jamendo-top50", root)
    (root / "audio" / "07" / "1307.mp3").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 5 audio files are missing: .*audio/07/1307.mp3"):
        load_task("mtg-jamendo-genre", root)
    table = root / "data" / "splits" / "split-0" / "autotagging_genre-test.tsv"
    table.write_bytes(table.read_bytes().replace(b"---rock", b"---skiffle"))
    with pytest.raises(ValueError, match=r"1 labels of .* are unknown to the task: genre---skiffle"):
        load_task("mtg-jamendo-genre", root)
    table.write_text("autotagging.tsv")  # what a zip makes of a symbolic link
    with pytest.raises(ValueError, match=r"has the columns autotagging.tsv, but TRACK_ID"):
        load_task("mtg-jamendo-genre", root)


def build_nsynth(root):
    for split, families in (("train", ("bass", "vocal")), ("valid", ("bass",)), ("test", ("reed", "bass"))):
        notes = {}
        for number, family in enumerate(families):
            name = f"{family}_synthetic_{split}-0{60 + number}-025"
            notes[name] = {"note_str": name, "pitch": 60 + number, "instrument_family_str": family}
            write_tone(root / f"nsynth-{split}" / "audio" / f"{name}.wav", seconds=0.5)
        (root / f"nsynth-{split}" / "examples.json").write_text(json.dumps(notes))
    return root


def test_nsynth_instrument_and_pitch(tmp_path):
    root = build_nsynth(tmp_path)
    write_tone(root / "nsynth-test" / "audio" / "stray.wav")
    data, pitch = load_task("nsynth-instrument", root), load_task("nsynth-pitch", root)
    assert [data.task.labels[target] for target in data.splits["train"].targets] == ["bass", "vocal"]
    assert [data.task.labels[target] for target in data.splits["test"].targets] == ["reed", "bass"]
    assert pitch.splits["train"].targets.tolist() == [60, 61] and len(pitch.task.labels) == 128
    assert data.extra == ("nsynth-test/audio/stray.wav",) and len(data.task.labels) == 11
    assert data.differences[0] == "train: 2 tracks, the benchmark has 289205."
    (root / "nsynth-valid" / "examples.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"nsynth-valid/examples.json' is not there. Get it from: https"):
        load_task("nsynth-pitch", root)


def build_vocalset(root, top="FULL"):
    """Two recordings of three techniques by every singer, and one of a technique that only the singers' task has."""
    for singer in classes.SINGERS:
        folder = root / top / f"{'female' if singer[0] == 'f' else 'male'}{singer[1:]}"
        for technique in ("belt", "straight", "vocal_fry"):
            for context in ("arpeggios", "scales"):
                write_tone(folder / context / technique / f"{singer}_{context}_{technique}_a.wav")
        write_tone(folder / "scales" / "slow_forte" / f"{singer}_scales_slow_forte_a.wav")
    return root


@pytest.mark.parametrize("top", ["FULL", "VocalSet1-2/data_by_singer"])
def test_vocalset_singers_and_techniques(tmp_path, top):
    root = build_vocalset(tmp_path / "vocalset", top)
    technique, singer = (load_task(f"vocalset-{name}", tmp_path) for name in ("technique", "singer"))
    assert technique.task.labels[0] == "belt" and len(technique.task.labels) == 10 and len(singer.task.labels) == 20
    assert sum(technique.split_sizes.values()) == 120 and sum(singer.split_sizes.values()) == 140
    for data, position in ((technique, 0), (singer, 1)):
        for split in data.splits.values():
            for track, path, target in zip(split.track_ids, split.paths, split.targets, strict=True):
                label = (track.split("/")[0], path.name.split("_")[0])[position]
                assert data.task.labels[target] == label and path.stem == track.split("/")[1]
    singers = {split: {path.name.split("_")[0] for path in technique.splits[split].paths} for split in SPLITS}
    assert singers["test"] == {"f2", "f8", "m3", "m5", "m10"} and not singers["test"] & singers["train"]
    assert not technique.comparable and not singer.comparable
    with pytest.raises(FileNotFoundError, match=r"has no recording <singer>/<context>/<technique>.*zenodo.org"):
        load_task("vocalset-singer", root / top / "female1" / "scales")


def test_vocalset_names_without_their_singer_and_stray_files(tmp_path):
    root = build_vocalset(tmp_path)
    folder = root / "FULL" / "female4" / "arpeggios" / "belt"
    (folder / "f4_arpeggios_belt_a.wav").rename(folder / "arpeggios_belt_a.wav")
    strange = [
        write_tone(root / "FULL" / "female2" / "scales" / "vibrato" / "f2_scales_vibrato_a(1).wav"),
        write_tone(root / "FULL" / "male3" / "excerpts" / "vibrato" / "row_vibrato.wav"),
        write_tone(root / "FULL" / "male3" / "scales" / "humming" / "m3_scales_humming.wav"),
        write_tone(root / "FULL" / "stray.wav"),
    ]
    data = load_task("vocalset-technique", root)
    tracks = {
        track: path for split in data.splits.values() for track, path in zip(split.track_ids, split.paths, strict=True)
    }
    assert len(tracks) == 120 and tracks["belt/f4_arpeggios_belt_a"].name == "arpeggios_belt_a.wav"
    assert len(data.extra) == len(strange)


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


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def build_custom(root, labels, feature):
    """A `DatasetDict` with the audio inside, one tone for each class."""
    audio = []
    for number in range(len(labels)):
        audio.append(
            {"bytes": write_tone(root / "a.wav", frequency=300.0 * (1 + number % 2)).read_bytes(), "path": None}
        )
    clip = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"sound": clip, "label": feature})
    rows = datasets.Dataset.from_dict({"sound": audio, "label": labels}, features=features)
    rows = rows.cast_column("sound", datasets.Audio(decode=False))
    (root / "a.wav").unlink()
    return datasets.DatasetDict({"train": rows, "val": rows, "test": rows})


def test_custom_reads_what_datasets_wrote(tmp_path, own_cache):
    parts = build_custom(tmp_path, [1, 0] * 5, datasets.ClassLabel(names=["samba", "choro"]))
    parts.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    for split, part in parts.items():
        part.to_parquet(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet")
    for folder in ("saved", "parquet"):
        data = load_task("custom", tmp_path / folder)
        assert data.task.labels == ("samba", "choro") and data.split_sizes == dict.fromkeys(SPLITS, 10)
        assert data.splits["validation"].targets.tolist() == [1, 0] * 5
        assert data.differences == (NO_BENCHMARK,) and not data.comparable
        # The same audio is one file, however often it occurs.
        assert len(set(data.paths)) == 2 and len(data.paths) == 30
    path = run_suite({"mfcc": "mfcc"}, "custom", tmp_path / "saved", tmp_path / "out", seeds=(0,), progress=False)
    records = {record["source"]: record for record in read_results(path)["records"]}
    assert records["mfcc"]["value"] == 1.0 and records["mfcc"]["differences"] == [NO_BENCHMARK]


def test_custom_audio_folder_and_tags(tmp_path, own_cache):
    root = tmp_path / "folder"
    for split in SPLITS:
        for number, genre in enumerate(("choro", "samba", "samba")):
            write_tone(root / split / genre / f"{number}.wav")
    data = load_task("custom", root)
    assert data.task.labels == ("choro", "samba") and sorted(data.splits["test"].targets.tolist()) == [0, 1, 1]
    train = data.splits["train"]
    assert [path.parent.name for path in train.paths] == [data.task.labels[target] for target in train.targets]
    lines = [f"{path.relative_to(root)},{path.parts[-3]},{path.stem}" for path in data.paths]
    (root / "metadata.csv").write_text("\n".join(["file_name,split,label", *lines]))
    assert load_task("custom", root).task.labels == ("0", "1", "2")
    (root / "metadata.csv").write_text("\n".join(["file_name,split,tags", *(f"{line}; loud" for line in lines)]))
    listed = load_task("custom-tags", root)
    assert listed.task.labels == ("0", "1", "2", "loud") and (listed.splits["test"].targets.sum(axis=1) == 2).all()
    (root / "metadata.csv").unlink()
    tags = build_custom(tmp_path, [["loud"], ["soft", "slow"], []], datasets.List(datasets.Value("string")))
    tags.rename_column("label", "tags").save_to_disk(tmp_path / "tags")
    data = load_task("custom-tags", tmp_path / "tags")
    assert data.task.labels == ("loud", "slow", "soft")
    np.testing.assert_array_equal(data.splits["train"].targets, [[1, 0, 0], [0, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_custom_metadata_in_each_split_as_datasets_lays_it_out(kind, tmp_path, own_cache):
    wanted = {}
    for split in ("train", "valid", "test"):
        rows = [{"file_name": f"clips/{number}.wav", "label": ("None", "01")[number % 2]} for number in range(4)]
        for row in rows:
            write_tone(tmp_path / split / row["file_name"])
        write_metadata(tmp_path / split / f"metadata.{kind}", rows)
        wanted |= {f"{split}/{row['file_name']}": row["label"] for row in rows}
    write_tone(tmp_path / "other" / "a.wav")
    write_tone(tmp_path / "train" / "b.wav")
    data = load_task("custom", tmp_path)
    assert data.task.labels == ("01", "None") and data.extra == ("other/a.wav", "train/b.wav")
    found = {}
    for part in data.splits.values():
        found |= {name: data.task.labels[target] for name, target in zip(part.track_ids, part.targets, strict=True)}
    assert found == wanted


def test_custom_metadata_may_hold_lists_of_tags(tmp_path, own_cache):
    rows = []
    for split in SPLITS:
        for number, tags in enumerate((["loud", "slow"], [], ["slow"])):
            write_tone(tmp_path / split / f"{number}.wav")
            rows.append(json.dumps({"file_name": f"{split}/{number}.wav", "tags": tags}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    data = load_task("custom-tags", tmp_path)
    assert data.task.labels == ("loud", "slow")
    np.testing.assert_array_equal(data.splits["test"].targets, [[1, 1], [0, 0], [0, 1]])


@pytest.mark.parametrize(
    "table, sentence",
    [
        ("file_name,genre\n0.wav,a", "needs a column `label`: rename the column of labels"),
        ("name,label\n0.wav,a", r"has the columns .*name.*label"),
        ("file_name,label\n0.wav,a\n1.wav,", r"have no label, the first is number 1 \(train/1.wav\)"),
        ("file_name,label\n0.wav,a\n,b", r"3 entries cannot be used, the first is .*metadata.csv row 2: .*empty"),
        ("file_name,label\n0.wav,a\n./0.wav,b", r"3 entries cannot be used, .* listed twice"),
        ('file_name,label\n"0.wav,a', "cannot be read"),
        ("file_name,label\n9.wav,a\n0.wav,b", "9.wav"),
        (None, r"6 of the 6 .* have no label, .*train/0.wav"),
    ],
)
def test_custom_metadata_mistakes_get_a_sentence(table, sentence, tmp_path, own_cache):
    for split in SPLITS:
        for number in range(2):
            write_tone(tmp_path / split / f"{number}.wav")
        if table is not None:
            (tmp_path / split / "metadata.csv").write_text(table)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        load_task("custom", tmp_path)


def test_custom_mistakes_get_a_sentence(tmp_path, own_cache):
    parts = build_custom(tmp_path, ["a", "b"], datasets.Value("string"))
    parts.rename_column("label", "style").save_to_disk(tmp_path / "renamed")
    with pytest.raises(ValueError, match="needs a column `label`: rename the column of labels"):
        load_task("custom", tmp_path / "renamed")
    datasets.DatasetDict({"train": parts["train"]}).save_to_disk(tmp_path / "train-only")
    with pytest.raises(ValueError, match="has the splits train; probing needs train, validation, test"):
        load_task("custom", tmp_path / "train-only")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_task("custom", tmp_path / "nowhere")
