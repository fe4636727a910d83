"""The online probe: it hears labelled clips, leaves the run as it was, and refuses what it cannot score."""

import re

import pytest
from toy_audio import write_metadata
from toy_run import read_records, toy

from music2vec_hf.corpus.prepare import prepare_corpus
from music2vec_hf.pretraining.loop import pretrain


@pytest.fixture(scope="module")
def labelled_corpus(toy_corpus, tmp_path_factory):
    """The toy corpus' twelve tones, the lower half called low; `id` has a new value in every row."""
    folder = tmp_path_factory.mktemp("labelled")
    paths = [toy_corpus.parent / "audio" / f"{index}.flac" for index in range(12)]
    write_metadata(folder / "tones.csv", {"path": paths, "register": ["low"] * 6 + ["high"] * 6, "constant": "same"})
    prepare_corpus(folder / "tones.csv", folder / "corpus", progress=False)
    return folder / "corpus"


def test_it_probes_and_changes_nothing(labelled_corpus, whole_run, toy_corpus, tmp_path, capsys):
    recipe = toy(probe_corpus=str(labelled_corpus), probe_label="register", probe_every=3)
    records = read_records(pretrain(recipe, toy_corpus, tmp_path / "probed"))
    bar = next(line for line in reversed(re.split("[\r\n]", capsys.readouterr().err)) if "pretraining:" in line)
    after = r"6/6 \[\S+ gone, 00:00 left, .*audio s/s, probe [01]\.\d+ \(chance 0\.\d+\) at 6, checkpoint-6\]"
    assert re.search(after, bar), bar
    probed = [record for record in records if "probe_knn" in record]
    assert [record["step"] for record in probed] == [3, 6]
    assert all(set(record) == {"step", "probe_knn", "probe_linear", "probe_chance"} for record in probed)
    assert all(0 <= record["probe_linear"] <= 1 for record in probed)
    ours = [record["loss"] for record in records if "loss" in record]
    assert ours == [record["loss"] for record in read_records(whole_run)]


@pytest.mark.parametrize(
    ("label", "sentence"), [("genre", "has no column `genre`.*register"), ("constant", "has 1 distinct values")]
)
def test_labels_that_cannot_be_probed_are_refused(label, sentence, labelled_corpus, toy_corpus, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        pretrain(toy(probe_corpus=str(labelled_corpus), probe_label=label), toy_corpus, tmp_path / "run")
