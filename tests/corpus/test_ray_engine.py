"""The Ray engine on two local workers makes the corpus of a single process; without Ray it says what to install."""

import builtins
import os

import numpy as np
import pytest
import soundfile

from music2vec_hf.corpus.clips import ClipJob, read_staged
from music2vec_hf.corpus.prepare import prepare_corpus
from music2vec_hf.corpus.ray_engine import staged_by_ray


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    rng = np.random.default_rng(0)
    for index in range(7):
        soundfile.write(tmp_path / "source" / f"{index}.flac", 0.1 * rng.standard_normal(22_050 * (index + 3)), 22_050)
    (tmp_path / "source" / "text.wav").write_text("no audio")
    return tmp_path / "source"


@pytest.fixture
def two_workers():
    ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_two_workers_make_the_same_corpus(two_workers, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = prepare_corpus("source", "alone", clip_seconds=4.0, progress=False)
    assert prepare_corpus("source", "together", clip_seconds=4.0, engine="ray", progress=False) == alone
    assert alone["rejects"] == {"undecodable": 1}
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


@pytest.mark.slow
def test_a_decoder_that_crashes_is_one_reject(two_workers, source, tmp_path, monkeypatch):
    def crash(job):
        os._exit(139)

    monkeypatch.setattr("music2vec_hf.corpus.ray_engine.stage_guarded", crash)
    job = ClipJob(str(source / "0.flac"), "0.flac", "0", str(tmp_path / "staged" / "0"), 64_000, 16_000)
    (result,) = staged_by_ray([job], 0, 2)
    assert result["rejects"] == [("undecodable", "undecodable: the decoder crashes on it.")]
    assert read_staged(job.stem)["rejected_file"]


def test_without_ray_one_sentence_says_so(source, tmp_path, monkeypatch):
    imported = builtins.__import__

    def without_ray(name, *args, **kwargs):
        if name == "ray":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(ValueError, match=r"not installed: `pip install music2vec_hf\[cluster\]`"):
        prepare_corpus(source, tmp_path / "out", engine="ray", progress=False)
    with pytest.raises(ValueError, match="There is no engine 'dask'; use one of processes, ray"):
        prepare_corpus(source, tmp_path / "out", engine="dask", progress=False)
