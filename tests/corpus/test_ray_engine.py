"""The Ray engine on two local workers makes the corpus of a single process; without Ray it says what to install."""

import builtins

import numpy as np
import pytest
import soundfile
from toy_corpus import contents

from music2vec_hf.corpus.prepare import prepare_corpus


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


@pytest.mark.slow
def test_two_workers_make_the_same_corpus(two_workers, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"clip_seconds": 4.0, "shard_megabytes": 0.4, "progress": False}
    alone = prepare_corpus("source", "alone", **settings)
    assert prepare_corpus("source", "together", engine="ray", **settings) == alone
    assert alone["splits"]["train"]["shards"] > 2
    assert alone["rejects"] == {"undecodable": 1}
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


def test_without_ray_one_sentence_says_so(source, tmp_path, monkeypatch):
    imported = builtins.__import__

    def without_ray(name, *args, **kwargs):
        if name == "ray":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(ValueError, match=r"not installed: `pip install 'music2vec_hf\[cluster\]'`"):
        prepare_corpus(source, tmp_path / "out", engine="ray", progress=False)
    with pytest.raises(ValueError, match="There is no engine 'dask'; use one of processes, ray"):
        prepare_corpus(source, tmp_path / "out", engine="dask", progress=False)
