"""Data sets of the user's own: what `datasets` wrote, audio folders with tables of any kind, folders of labels."""

import datasets
import numpy as np
import pytest
from toy_audio import write_metadata
from toy_datasets import write_tone

from music2vec_hf.common.files import read_results
from music2vec_hf.probing.suite import run_suite
from music2vec_hf.probing.tasks.declarations import SPLITS
from music2vec_hf.probing.tasks.loading import NO_BENCHMARK, load_task

pytestmark = pytest.mark.usefixtures("own_cache")


def build_custom(root, labels, feature):
    """A `DatasetDict` with the audio inside, one tone for each class."""
    tones = [write_tone(root / "a.wav", frequency=frequency).read_bytes() for frequency in (300.0, 600.0)]
    audio = [{"bytes": tones[number % 2], "path": None} for number in range(len(labels))]
    clip = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"sound": clip, "label": feature})
    rows = datasets.Dataset.from_dict({"sound": audio, "label": labels}, features=features)
    rows = rows.cast_column("sound", datasets.Audio(decode=False))
    (root / "a.wav").unlink()
    return datasets.DatasetDict({"train": rows, "val": rows, "test": rows})


def test_custom_reads_what_datasets_wrote(tmp_path, short_searches):
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


def test_custom_audio_folder_and_tags(tmp_path):
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
    lists = (["loud", "slow"], [], ["slow"]) * 3
    rows = [
        {"file_name": str(path.relative_to(root)), "tags": tags} for path, tags in zip(data.paths, lists, strict=True)
    ]
    write_metadata(root / "metadata.jsonl", rows)
    listed = load_task("custom-tags", root)
    assert listed.task.labels == ("loud", "slow")
    np.testing.assert_array_equal(listed.splits["test"].targets, [[1, 1], [0, 0], [0, 1]])
    tags = build_custom(tmp_path, [["loud"], ["soft", "slow"], []], datasets.List(datasets.Value("string")))
    tags.rename_column("label", "tags").save_to_disk(tmp_path / "tags")
    data = load_task("custom-tags", tmp_path / "tags")
    assert data.task.labels == ("loud", "slow", "soft")
    np.testing.assert_array_equal(data.splits["train"].targets, [[1, 0, 0], [0, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_custom_metadata_in_each_split_as_datasets_lays_it_out(kind, tmp_path):
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


def test_labels_that_train_has_not_are_told(tmp_path):
    for place in ("train/a", "train/b", "val/a", "test/b", "test/c"):
        write_tone(tmp_path / place / "x.wav")
    data = load_task("custom", tmp_path)
    sentence = "1 tracks have labels that no track of train has: c."
    assert sentence in data.differences and data.affected[sentence] == ("test/c/x.wav",)


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
def test_custom_metadata_mistakes_get_a_sentence(table, sentence, tmp_path):
    for split in SPLITS:
        for number in range(2):
            write_tone(tmp_path / split / f"{number}.wav")
        if table is not None:
            (tmp_path / split / "metadata.csv").write_text(table)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        load_task("custom", tmp_path)


def test_custom_mistakes_get_a_sentence(tmp_path):
    parts = build_custom(tmp_path, ["a", "b"], datasets.Value("string"))
    parts.rename_column("label", "style").save_to_disk(tmp_path / "renamed")
    with pytest.raises(ValueError, match="needs a column `label`: rename the column of labels"):
        load_task("custom", tmp_path / "renamed")
    datasets.DatasetDict({"train": parts["train"]}).save_to_disk(tmp_path / "train-only")
    with pytest.raises(ValueError, match="has the splits train; probing needs train, validation, test"):
        load_task("custom", tmp_path / "train-only")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_task("custom", tmp_path / "nowhere")
