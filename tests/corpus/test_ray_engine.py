"""The Ray engine on two local workers makes the corpus of a single process; without Ray it says what to install."""

import sys

import pytest
from awkward import music
from toy_corpus import contents, write

from music2vec_hf.corpus.prepare import prepare_corpus


@pytest.fixture
def two_workers():
    ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_two_workers_make_the_same_corpus(two_workers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index in range(7):
        write(tmp_path / "source" / f"{index}.flac", music(index + 3, 22_050, seed=index), 22_050)
    (tmp_path / "source" / "text.wav").write_text("no audio")
    settings = {"clip_seconds": 4.0, "shard_megabytes": 0.4, "progress": False}
    alone = prepare_corpus("source", "alone", **settings)
    assert prepare_corpus("source", "together", engine="ray", **settings) == alone
    assert alone["splits"]["train"]["shards"] > 2
    assert alone["rejects"] == {"undecodable": 1}
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


def test_without_ray_one_sentence_says_so(tmp_path, monkeypatch):
    source = tmp_path / "source"
    write(source / "a.wav", music(3))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"not installed: `pip install 'music2vec_hf\[cluster\]'`"):
        prepare_corpus(source, tmp_path / "out", engine="ray", progress=False)
