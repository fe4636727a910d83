"""Music that all tests of features share, and what runs left that were killed."""

import os
import signal

import pytest
import soundfile
from toy_audio import noise
from warm_python import fork

from music2vec_hf.features import store, tables
from music2vec_hf.features.spectral import SpectralEncoder


@pytest.fixture(scope="session")
def music(tmp_path_factory):
    """Five tracks of other lengths, two of them in a folder below, and a file that is no audio."""
    folder = tmp_path_factory.mktemp("features") / "music"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(["a.flac", "b.wav", "below/a.flac", "below/c.flac", "d.ogg"]):
        soundfile.write(folder / name, noise(1 + 0.5 * number, number), 16_000)
    (folder / "x.wav").write_text("not audio")
    return folder


def dies(function, after):
    """The function, which kills its process when it is called once more than `after` times."""
    done = []

    def dying(*args):
        if len(done) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(args)
        return function(*args)

    return dying


def write_table(model, music, output):
    tables.write_tables = dies(tables.write_tables, 3)
    tables.write_embeddings(model, [music], output, device="cpu")


def fill_cache(model, music, output):
    SpectralEncoder.rows = dies(SpectralEncoder.rows, 2)
    store.FILES_PER_PART = 2
    paths = sorted(path for path in music.rglob("*.*") if path.name != "x.wav")
    store.FeatureStore(output, SpectralEncoder("chroma")).rows(paths)


@pytest.fixture(scope="session")
def killed(encoder_folder, music, tmp_path_factory):
    """Where runs over `music` were killed: `out.parquet` and `out/` after three tracks, `cache` after four files."""
    root = tmp_path_factory.mktemp("killed")
    for run, output in ((write_table, "out.parquet"), (write_table, "out/"), (fill_cache, "cache")):
        process = fork(run, encoder_folder, music, f"{root}/{output}")
        process.join()
        assert process.exitcode == -signal.SIGKILL, output
    return root
