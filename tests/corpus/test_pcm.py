"""The PCM store: the samples of the FLAC clips bit for bit, made once, refused when it does not fit."""

import json
import logging
import pickle

import numpy as np
import pytest
import soundfile
from toy_plan import PLAN

from music2vec_hf.cli import main
from music2vec_hf.corpus.batches import CropDataset, training_batches
from music2vec_hf.corpus.loading import load_corpus, read_clip
from music2vec_hf.corpus.pcm import open_pcm, store_pcm
from music2vec_hf.corpus.prepare import prepare_corpus


@pytest.fixture
def folder(tmp_path):
    """Two splits of noises that go beyond full scale, of several lengths."""
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    manifest = ["path,split"]
    for index in range(9):
        samples = rng.uniform(-1.2, 1.2, 32_100 + 1_001 * index)
        soundfile.write(tmp_path / "audio" / f"{index}.wav", samples, 16_000, subtype="FLOAT")
        manifest.append(f"{index}.wav,{'test' if index in (2, 5) else 'train'}")
    (tmp_path / "audio" / "list.csv").write_text("\n".join(manifest))
    prepare_corpus(tmp_path / "audio", tmp_path / "corpus", progress=False)
    return tmp_path / "corpus"


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_it_holds_the_very_samples(folder, split):
    store_pcm(folder, progress=False)
    corpus = load_corpus(folder, split)
    store = open_pcm(folder, split, corpus)
    peaks = []
    for clip, row in enumerate(corpus):
        whole = read_clip(row)
        stored = store.read(clip, 0, len(whole))
        assert clip in store and stored.dtype == np.float32
        np.testing.assert_array_equal(stored, whole)
        np.testing.assert_array_equal(store.read(clip, 777, 16_000), whole[777:16_777])
        peaks += [whole.min(), whole.max()]
    assert min(peaks) == -1 and max(peaks) == 32767 / 32768


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_with_and_without(folder, num_workers, monkeypatch):
    corpus = load_corpus(folder, "train")
    assert open_pcm(folder, "train", corpus) is None
    expected = list(training_batches(CropDataset(corpus, PLAN), 0, 4))
    store_pcm(folder, progress=False)
    monkeypatch.setattr("music2vec_hf.corpus.batches.read_crop", None)
    dataset = CropDataset(corpus, PLAN, open_pcm(folder, "train", corpus))
    for ours, theirs in zip(training_batches(dataset, 0, 4, num_workers=num_workers), expected, strict=True):
        assert ours["input_values"].equal(theirs["input_values"])


def test_a_worker_that_is_not_forked_gets_the_path_and_not_the_samples(folder):
    store_pcm(folder, progress=False)
    corpus = load_corpus(folder, "train")
    store = open_pcm(folder, "train", corpus)
    sent = pickle.dumps(store)
    assert len(sent) < 2_000
    np.testing.assert_array_equal(pickle.loads(sent).read(3, 5, 100), store.read(3, 5, 100))


def damage_train_clip(folder, clip):
    """Overwrite the middle of a clip's FLAC in its shard, and let go of what was cached of it."""
    encoded = load_corpus(folder, "train")[clip]["audio"]["bytes"]
    (shard,) = (folder / "data").glob("train-*.parquet")
    data = shard.read_bytes()
    middle = data.index(encoded) + len(encoded) // 2
    shard.write_bytes(data[:middle] + bytes(len(encoded) // 4) + data[middle + len(encoded) // 4 :])


def test_a_clip_that_cannot_be_decoded_is_named_and_gives_the_same_batches(folder, caplog):
    damage_train_clip(folder, 1)
    with caplog.at_level(logging.WARNING, "music2vec_hf"):
        index = store_pcm(folder, progress=False)
    corpus = load_corpus(folder, "train")
    assert index["failed"] == [1]
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == [corpus[1]["audio"]["path"]]
    store = open_pcm(folder, "train", corpus)
    assert [clip in store for clip in range(len(corpus))] == [True, False, *[True] * 5]
    plain, stored = CropDataset(corpus, PLAN), CropDataset(corpus, PLAN, store)
    for ours, theirs in zip(training_batches(stored, 0, 4), training_batches(plain, 0, 4), strict=True):
        assert ours["input_values"].equal(theirs["input_values"])
    assert stored.failed.count == plain.failed.count == 1
    # Clip numbers are those of the split.
    assert 0 in open_pcm(folder, "test", load_corpus(folder, "test"))


def test_it_is_made_once_and_anew_where_it_does_not_fit(folder, capsys):
    assert main(["pcm", str(folder)]) == 0
    assert "9 clips, 0.00 GB; 0 cannot be decoded" in capsys.readouterr().out
    samples, index = folder / "pcm" / "samples.int16", folder / "pcm" / "index.json"
    assert sorted(path.name for path in samples.parent.iterdir()) == ["index.json", "samples.int16"]
    before = samples.stat().st_mtime_ns
    store_pcm(folder, progress=False)
    assert samples.stat().st_mtime_ns == before
    corpus, whole = load_corpus(folder, "train"), samples.read_bytes()
    samples.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match=r"pcm is not whole, or was made from other clips.*`music2vec pcm"):
        open_pcm(folder, "train", corpus)
    store_pcm(folder, progress=False)
    assert samples.read_bytes() == whole
    with pytest.raises(ValueError, match="made from other clips"):
        open_pcm(folder, "train", corpus.select(range(5)))
    changed = json.loads(index.read_text())
    changed["splits"]["train"]["key"] = "0"
    index.write_text(json.dumps(changed))
    store_pcm(folder, progress=False)
    assert open_pcm(folder, "train", corpus) is not None


def test_what_cannot_be_stored_is_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="audio is not a corpus that `music2vec prepare` made"):
        store_pcm(tmp_path / "audio")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000}))
    with pytest.raises(ValueError, match=r"needs 0.0 GB, but its disk has only 0.0 GB left"):
        store_pcm(folder)
    assert open_pcm(folder, "train", load_corpus(folder, "train")) is None
