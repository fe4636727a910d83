"""Clips stored as wav: the samples of the FLAC clips, read without a decoder; a corpus is converted safely."""

import json
import logging
import pickle
import shutil

import numpy as np
import pytest
import soundfile
from datasets import load_dataset
from toy_plan import PLAN

from music2vec_hf.cli import main
from music2vec_hf.corpus.batches import CropDataset, training_batches
from music2vec_hf.corpus.clips import convert_to_wav
from music2vec_hf.corpus.crops import EncodedClips
from music2vec_hf.corpus.loading import load_corpus, read_clip, read_crop
from music2vec_hf.corpus.prepare import prepare_corpus


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two splits of noises that go beyond full scale, of several lengths."""
    root, rng = tmp_path_factory.mktemp("converting"), np.random.default_rng(0)
    (root / "audio").mkdir()
    manifest = ["path,split"]
    for index in range(9):
        samples = rng.uniform(-1.2, 1.2, 32_100 + 1_001 * index)
        soundfile.write(root / "audio" / f"{index}.wav", samples, 16_000, subtype="FLOAT")
        manifest.append(f"{index}.wav,{'test' if index in (2, 5) else 'train'}")
    (root / "audio" / "list.csv").write_text("\n".join(manifest))
    prepare_corpus(root / "audio", root / "corpus", progress=False)
    return root


@pytest.fixture
def folder(prepared, tmp_path, own_cache):
    """A copy of the corpus."""
    return shutil.copytree(prepared / "corpus", tmp_path / "corpus")


def batches(folder, **settings):
    loader = training_batches(CropDataset(load_corpus(folder, "train"), PLAN), 0, 4, **settings)
    return [batch["input_values"] for batch in loader]


@pytest.mark.parametrize("prepared_as_wav", [False, True])
def test_it_holds_the_very_samples(prepared, folder, tmp_path, prepared_as_wav, monkeypatch):
    expected, flac = batches(folder), load_corpus(folder, "all")
    if prepared_as_wav:
        folder = tmp_path / "wav"
        wav = prepare_corpus(prepared / "audio", folder, progress=False, store="wav")
        assert wav["settings"]["store"] == "wav" and "mono 16-bit WAV" in (folder / "README.md").read_text()
    else:
        with pytest.raises(ValueError, match="was made with store flac, now it is wav"):
            prepare_corpus(prepared / "audio", folder, progress=False, store="wav")
        convert_to_wav(folder, progress=False)
    monkeypatch.setattr("music2vec_hf.corpus.loading.read_flac_crop", None)
    corpus, peaks = load_corpus(folder, "all"), []
    for row, before in zip(corpus, flac, strict=True):
        whole = read_clip(row)
        np.testing.assert_array_equal(whole, read_clip(before))
        np.testing.assert_array_equal(read_crop(row, 777, 16_000), whole[777:16_777])
        peaks += [whole.min(), whole.max()]
        assert {**row, "audio": None} == {**before, "audio": None}
        assert row["audio"]["path"] == before["audio"]["path"].replace(".flac", ".wav")
        assert len(row["audio"]["bytes"]) == 44 + 2 * len(whole)
    assert min(peaks) == -1 and max(peaks) == 32767 / 32768
    with pytest.raises(ValueError, match="does not lie inside a clip of 32100 samples"):
        read_crop(corpus[0], 20_000, 16_000)
    for num_workers in (0, 2):
        found = batches(folder, num_workers=num_workers)
        assert all(ours.equal(theirs) for ours, theirs in zip(found, expected, strict=True))


def test_plain_datasets_does_not_give_the_rows_of_before_and_it_is_taken_for_either_store(prepared, folder):
    rows = load_dataset(str(folder), split="test")
    convert_to_wav(folder, progress=False)
    for store in ("flac", "wav"):
        prepare_corpus(prepared / "audio", folder, progress=False, store=store)
    again = load_dataset(str(folder), split="test")
    assert [row["path"][-4:] for row in (rows["audio"][0], again["audio"][0])] == ["flac", ".wav"]
    assert "16-bit WAV" in (folder / "README.md").read_text()


def test_clips_are_views_that_a_worker_maps_anew(folder):
    convert_to_wav(folder, progress=False)
    corpus = load_corpus(folder, "all")
    for rows in (corpus, corpus.select([7, 1, 3])):
        clips = EncodedClips(rows)
        sent = pickle.dumps(clips)
        assert len(sent) < 50_000
        for one in (clips, pickle.loads(sent)):
            for clip, row in enumerate(rows):
                found = one[clip]["audio"]
                assert bytes(found["bytes"]) == row["audio"]["bytes"] and found["path"] == row["audio"]["path"]
                assert isinstance(found["bytes"], memoryview)


def test_a_clip_that_cannot_be_decoded_is_named_and_stays(folder, caplog):
    encoded = load_corpus(folder, "train")[1]["audio"]["bytes"]
    (shard,) = (folder / "data").glob("train-*.parquet")
    data = shard.read_bytes()
    middle = data.index(encoded) + len(encoded) // 2
    shard.write_bytes(data[:middle] + bytes(len(encoded) // 4) + data[middle + len(encoded) // 4 :])
    expected = batches(folder)
    with caplog.at_level(logging.WARNING, "music2vec_hf"):
        found = convert_to_wav(folder, progress=False)
    corpus = load_corpus(folder, "train")
    assert found["failed"] == [corpus[1]["audio"]["path"]] and found["failed"][0] in caplog.text
    assert [row["path"].endswith(".wav") for row in corpus["audio"]] == [True, False, *[True] * 5]
    assert all(ours.equal(theirs) for ours, theirs in zip(batches(folder), expected, strict=True))


def test_it_is_done_once_and_goes_on_after_a_kill(folder, capsys, monkeypatch):
    shards = sorted((folder / "data").iterdir())
    before = [shard.read_bytes() for shard in shards]
    from music2vec_hf.corpus import clips

    real = clips.encode_clip

    def killed(pcm, store):
        if len(pcm) == 32_100:
            raise KeyboardInterrupt
        return real(pcm, store)

    with monkeypatch.context() as patch:
        patch.setattr(clips, "encode_clip", killed)
        with pytest.raises(KeyboardInterrupt):
            convert_to_wav(folder, progress=False)
    assert sum(shard.read_bytes() == old for shard, old in zip(shards, before, strict=True)) == 1
    assert sorted((folder / "data").iterdir()) == shards and len(load_corpus(folder, "all")) == 9
    assert main(["pcm", str(folder)]) == 0
    assert "9 clips, 0.00 GB; 0 cannot be decoded" in capsys.readouterr().out
    stamps = [shard.stat().st_mtime_ns for shard in shards]
    convert_to_wav(folder, progress=False)
    assert [shard.stat().st_mtime_ns for shard in shards] == stamps
    assert json.loads((folder / "corpus.json").read_text())["converted"] == "wav"


def test_what_cannot_be_converted_is_refused(prepared, folder, monkeypatch):
    with pytest.raises(ValueError, match="audio is not a corpus that `music2vec prepare` made"):
        convert_to_wav(prepared / "audio")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000}))
    with pytest.raises(ValueError, match=r"needs 0.0 GB, but its disk has only 0.0 GB left"):
        convert_to_wav(folder)
