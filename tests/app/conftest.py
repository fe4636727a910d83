"""Music, models, a library, and the page that serves them."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from toy_audio import noise
from toy_model import SIZES, save_model

import music2vec_hf
from music2vec_hf.app_listener import Limits, Listener
from music2vec_hf.features.tables import write_embeddings


@pytest.fixture(scope="session")
def music(tmp_path_factory):
    """Three tracks, and a song of two of them."""
    folder = tmp_path_factory.mktemp("music")
    time = np.arange(4 * 16_000) / 16_000
    tones = {name: 0.3 * np.sin(2 * np.pi * pitch * time) for name, pitch in (("low", 110), ("high", 1760))}
    for name, samples in (*tones.items(), ("noise", noise(4.0))):
        soundfile.write(folder / f"{name}.flac", samples, 16_000)
    (folder / "songs").mkdir()
    soundfile.write(folder / "songs" / "song.wav", np.concatenate([tones["low"], tones["high"]]), 16_000)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A plain encoder, and the same one with heads of each kind."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    plain = music2vec_hf.Music2VecModel(music2vec_hf.Music2VecConfig(**SIZES))
    save_model(plain, folder / "plain")
    for kind in ("single_label_classification", "multi_label_classification", "regression"):
        labels = dict(enumerate(("calm", "<b>loud</b>", "fast")))
        config = music2vec_hf.Music2VecConfig(
            **SIZES, id2label=labels, problem_type=kind, classifier_layer=2, window_seconds=2.0
        )
        head = music2vec_hf.Music2VecForSequenceClassification(config)
        head.data2vec_audio.load_state_dict(plain.state_dict())
        save_model(head, folder / kind)
    return folder


@pytest.fixture(scope="session")
def library(models, music):
    path = music / "library.parquet"
    write_embeddings(models / "plain", [*sorted(music.glob("*.flac"))], path)
    return path


@pytest.fixture(scope="session")
def page(models, library):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'music2vec_hf[app]'")
    from music2vec_hf.app import served

    limits = Limits(max_megabytes=1, max_minutes=0.5)
    with served(Listener(models / "single_label_classification", library, limits)) as address:
        yield address


@pytest.fixture
def left(page):
    """`left()`: the files with content that the server of the page has."""
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    return lambda: [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
