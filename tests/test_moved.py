"""Import paths of version 0.1.0 go on working."""

import importlib.util
import sys

import pytest

from music2vec_hf.moved import MOVED

NAMES = {
    "data.audio": "read_audio AudioReader AudioError SAMPLING_RATE",
    "data.clips": "AudioReader",
    "data.corpus": "load_corpus prepare_corpus",
    "finetuning.labels": "find_labels class_weights",
    "probing.checking": "describe_check",
    "probing.datasets.shared": "read_table",
    "probing.datasets.gtzan": "split_stems",
    "probing.declarations": "TaskData",
    "fairseq": "convert_fairseq_checkpoint",
    "onnx_int8": "measure_int8",
    "probing.published": "comparison",
    "push": "make_publication",
    "modeling_music2vec": "Music2VecPreTrainedModel Music2VecForSequenceClassification",
    "frontend_music2vec": "Music2VecFeatureEncoder",
    "data.prepare": "prepare_corpus",
    "data.batches": "CropDataset BatchPlan",
    "data.sources": "Track",
    "data.synthetic": "synthesize_corpus",
    "remote_code": "with_remote_code",
}


@pytest.mark.parametrize("old", NAMES)
def test_an_old_module_has_the_names_that_it_had(old):
    sys.modules.pop(f"music2vec_hf.{old}", None)
    with pytest.warns(DeprecationWarning, match=MOVED[old][0]):
        module = importlib.import_module(f"music2vec_hf.{old}")
    assert all(getattr(module, name) is not None for name in NAMES[old].split())


def test_every_old_module_leads_somewhere():
    for new in sum(MOVED.values(), ()):
        assert importlib.util.find_spec(f"music2vec_hf.{new}").name == f"music2vec_hf.{new}"


def test_from_a_package_that_is_gone(monkeypatch):
    for name in ("data", "data.clips"):
        monkeypatch.delitem(sys.modules, f"music2vec_hf.{name}", raising=False)
    import music2vec_hf.corpus.clips as new

    with pytest.warns(DeprecationWarning, match="corpus.clips"):
        from music2vec_hf.data import clips
    assert clips is new


def test_the_module_of_tasks_is_a_package_now():
    import music2vec_hf.probing.tasks as tasks
    from music2vec_hf.probing.tasks.loading import load_task

    with pytest.warns(DeprecationWarning, match="probing.tasks.loading"):
        assert tasks.load_task is load_task


def test_a_module_that_never_was():
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        importlib.import_module("music2vec_hf.data.nothing")
    module = importlib.import_module("music2vec_hf.data.audio")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name
