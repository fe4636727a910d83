"""Nearest neighbours: by cosine, the query embedded as the library was."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from toy_audio import noise
from toy_model import save_model

from music2vec_hf import Music2VecModel, embed
from music2vec_hf.features.store import vectors
from music2vec_hf.features.tables import find_similar, nearest, write_embeddings


@pytest.fixture(scope="module")
def library(encoder_folder, tmp_path_factory):
    """Six tracks, embedded in windows of a second, beside the folder `music` that they are in."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "music").mkdir()
    for number in range(6):
        soundfile.write(folder / "music" / f"{number}.wav", noise(2.5, number), 16_000)
    options = {"window_seconds": 1, "overlap_seconds": 0.5}
    write_embeddings(encoder_folder, [folder / "music"], folder / "library.parquet", **options)
    return folder / "library.parquet"


def table_of(tmp_path, rows):
    table = pa.table({"path": [f"{number}" for number in range(len(rows))], "layer_0": vectors(rows)})
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=7)
    return tmp_path / "table.parquet"


def test_the_nearest_is_the_track_itself_and_cosines_are_cosines(encoder, library, tmp_path):
    query = library.parent / "music" / "4.wav"
    found = find_similar(library, query, top=6, layer="2")
    vector = embed(encoder, query, layers=2, window_seconds=1, overlap_seconds=0.5)
    rows = np.array(pq.read_table(library)["layer_2"].to_pylist())
    cosines = rows @ vector / np.linalg.norm(rows, axis=1) / np.linalg.norm(vector)
    order = np.argsort(-cosines)
    assert [path for path, _ in found] == [str(library.parent / "music" / f"{number}.wav") for number in order]
    assert order[0] == 4 and found[0][1] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose([cosine for _, cosine in found], cosines[order], atol=1e-5)
    assert len(find_similar(library, query, top=2)) == 2


def test_blocks_give_what_the_whole_gives(tmp_path):
    rng = np.random.default_rng(0)
    rows, vector = rng.standard_normal((20_000, 4)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    cosines = rows @ vector / np.linalg.norm(rows, axis=1) / np.linalg.norm(vector)
    best = np.argsort(-cosines)[:30]
    found = nearest(table_of(tmp_path, rows), "layer_0", vector, 30)
    assert [int(path) for path, _ in found] == best.tolist()
    np.testing.assert_allclose([cosine for _, cosine in found], cosines[best], atol=1e-6)


def test_the_library_knows_its_model(encoder, library, tmp_path, encoder_folder):
    settings = json.loads(pq.read_schema(library).metadata[b"music2vec_hf"])
    assert settings["model"] == str(encoder_folder) and settings["window_seconds"] == 1
    torch.manual_seed(1)
    save_model(Music2VecModel(encoder.config), tmp_path / "other")
    query = library.parent / "music" / "1.wav"
    with pytest.raises(ValueError, match="has other weights than the model that made"):
        find_similar(library, query, model=tmp_path / "other")
    bare = tmp_path / "bare.parquet"
    pq.write_table(pq.read_table(library).replace_schema_metadata(None), bare)
    with pytest.raises(ValueError, match="does not say which model made it; name that model with --model"):
        find_similar(bare, query)
    assert find_similar(bare, query, model=encoder_folder, top=1)[0][0] == str(query)


def test_mistakes_are_refused(library, encoder_folder, tmp_path):
    query = library.parent / "music" / "1.wav"
    with pytest.raises(ValueError, match=r"has no layer 7. It has conv, 0, 1, 2, 3"):
        find_similar(library, query, layer="7")
    with pytest.raises(ValueError, match="`top` is 0"):
        find_similar(library, query, top=0)
    with pytest.raises(ValueError, match="is no Parquet file"):
        find_similar(query, query)
    write_embeddings(encoder_folder, [query], tmp_path / "frames.parquet", ["3"], pool="none")
    with pytest.raises(ValueError, match="has a row for each frame"):
        find_similar(tmp_path / "frames.parquet", query)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match="is no table of embeddings; its columns are a"):
        find_similar(tmp_path / "foreign.parquet", query, model=encoder_folder)
