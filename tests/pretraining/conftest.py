"""A corpus of twelve noisy tones and a recipe that trains on it in seconds."""

import numpy as np
import pytest
import soundfile
from toy_run import toy

from music2vec_hf.corpus.prepare import prepare_corpus


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    (folder / "audio").mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        time = np.arange(int(2.5 * 16_000)) / 16_000
        samples = 0.3 * np.sin(2 * np.pi * (200 + 50 * index) * time) + 0.05 * rng.standard_normal(len(time))
        soundfile.write(folder / "audio" / f"{index}.flac", samples, 16_000)
    prepare_corpus(folder / "audio", folder / "corpus", progress=False)
    return folder / "corpus"


@pytest.fixture
def toy_recipe():
    """`toy_recipe(**changes)`: the toy recipe with some values changed."""
    return toy
