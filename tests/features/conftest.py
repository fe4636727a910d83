"""A toy encoder that all tests of features share: whoever embeds leaves it as it is."""

import pytest
import soundfile
import torch
from toy_audio import noise
from toy_model import SIZES, save_model

from music2vec_hf import Music2VecConfig, Music2VecModel


@pytest.fixture(scope="session")
def encoder():
    torch.manual_seed(0)
    return Music2VecModel(Music2VecConfig(average_top_k_layers=2, **SIZES)).eval()


@pytest.fixture(scope="session")
def encoder_folder(encoder, tmp_path_factory):
    """The encoder as a folder of a model."""
    folder = tmp_path_factory.mktemp("features") / "model"
    return save_model(encoder, folder)


# One interpreter for all: each run is a child of its own, which kills itself.
_KILLED = """
import os, signal, sys
from music2vec_hf.features import store, tables
from music2vec_hf.features.spectral import SpectralEncoder

model, music, root = sys.argv[1:]

def dies(function, after, done=None):
    done = []
    def dying(*args):
        if len(done) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(args)
        return function(*args)
    return dying

def table(output):
    tables.write_tables = dies(tables.write_tables, 3)
    tables.write_embeddings(model, [music], f"{root}/{output}", device="cpu")

def cache(output):
    SpectralEncoder.rows = dies(SpectralEncoder.rows, 2)
    store.FILES_PER_PART = 2
    paths = sorted(path for path in store.Path(music).rglob("*.*") if path.name != "x.wav")
    store.FeatureStore(f"{root}/{output}", SpectralEncoder("chroma")).rows(paths)

for run, output in ((table, "out.parquet"), (table, "out/"), (cache, "cache")):
    child = os.fork()
    if child == 0:
        run(output)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, output
"""


@pytest.fixture(scope="session")
def music(tmp_path_factory):
    """Five tracks of other lengths, two of them in a folder below, and a file that is no audio."""
    folder = tmp_path_factory.mktemp("features") / "music"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(["a.flac", "b.wav", "below/a.flac", "below/c.flac", "d.ogg"]):
        soundfile.write(folder / name, noise(1 + 0.5 * number, number), 16_000)
    (folder / "x.wav").write_text("not audio")
    return folder


@pytest.fixture(scope="session")
def killed(offline, encoder_folder, music, tmp_path_factory):
    """Where runs over `music` were killed: `out.parquet` and `out/` after three tracks, `cache` after four files."""
    root = tmp_path_factory.mktemp("killed")
    offline.succeed(_KILLED, encoder_folder, music, root)
    return root
