"""Import paths of version 0.1.0 go on working."""

import importlib.util
import sys

import pytest

from music2vec_hf.moved import MOVED

NAMES = [
    ("data.audio", "read_audio"),
    ("data.audio", "AudioReader"),
    ("data.audio", "AudioError"),
    ("data.audio", "SAMPLING_RATE"),
    ("data.clips", "AudioReader"),
    ("data.corpus", "load_corpus"),
    ("data.corpus", "prepare_corpus"),
    ("finetuning.labels", "find_labels"),
    ("finetuning.labels", "class_weights"),
    ("probing.checking", "describe_check"),
    ("probing.datasets.shared", "read_table"),
    ("probing.datasets.gtzan", "split_stems"),
    ("probing.declarations", "TaskData"),
    ("fairseq", "convert_fairseq_checkpoint"),
    ("onnx_int8", "measure_int8"),
    ("probing.published", "comparison"),
    ("push", "make_publication"),
    ("modeling_music2vec", "Music2VecPreTrainedModel"),
    ("modeling_music2vec", "Music2VecForSequenceClassification"),
    ("frontend_music2vec", "Music2VecFeatureEncoder"),
    ("data.prepare", "prepare_corpus"),
    ("data.batches", "CropDataset"),
    ("data.batches", "BatchPlan"),
    ("data.sources", "Track"),
    ("data.synthetic", "synthesize_corpus"),
    ("remote_code", "with_remote_code"),
]


@pytest.mark.parametrize(("old", "name"), NAMES)
def test_an_old_module_has_the_names_that_it_had(old, name):
    sys.modules.pop(f"music2vec_hf.{old}", None)
    with pytest.warns(DeprecationWarning, match=MOVED[old][0]):
        module = importlib.import_module(f"music2vec_hf.{old}")
    assert getattr(module, name) is not None


@pytest.mark.parametrize("old", MOVED)
def test_every_old_module_leads_somewhere(old):
    assert [importlib.util.find_spec(f"music2vec_hf.{new}").name for new in MOVED[old]] == [
        f"music2vec_hf.{new}" for new in MOVED[old]
    ]


def test_from_a_package_that_is_gone(offline):
    code = "from music2vec_hf.data import clips; import music2vec_hf.corpus.clips as new; assert clips is new"
    offline.succeed(code)


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
