"""A labelled toy corpus and a toy model for probing."""

import pytest
from toy_datasets import DATASETS

from music2vec_hf import Music2VecFeatureExtractor, Music2VecModel
from music2vec_hf.synthetic.generator import synthesize_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """80 clips of 2 s in three splits."""
    folder = tmp_path_factory.mktemp("probing") / "corpus"
    synthesize_corpus(folder, 80, seed=3, clip_seconds=2.0)
    return folder


@pytest.fixture
def model_folder(tiny_config, tmp_path):
    """Folder of a toy model with random weights."""
    Music2VecModel(tiny_config).save_pretrained(tmp_path / "model")
    Music2VecFeatureExtractor().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Every data set of a task in its official layout, in a folder of its name; not to be changed."""
    root = tmp_path_factory.mktemp("toy")
    for name, build in DATASETS.items():
        build(root / name)
    return root
