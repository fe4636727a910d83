"""A corpus of twelve noisy tones, a recipe that trains on it in seconds, and one whole run of it."""

import numpy as np
import pytest
import soundfile
from toy_run import toy

from music2vec_hf.corpus.prepare import prepare_corpus
from music2vec_hf.pretraining.loop import pretrain


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


@pytest.fixture(scope="session")
def whole_run(toy_corpus, tmp_path_factory):
    """The toy recipe's run, never interrupted, with a tracker."""
    return pretrain(toy(report_to="tensorboard"), toy_corpus, tmp_path_factory.mktemp("whole") / "run")
