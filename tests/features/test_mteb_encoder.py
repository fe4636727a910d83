"""The encoder of MTEB, by the installed version's own mock run and protocol, and on a task of made-up audio."""

import shutil
import sys
from types import ModuleType, SimpleNamespace

import mteb
import numpy as np
import pytest
import torch
from datasets import DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskClustering
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.models_protocols import EncoderProtocol
from mteb.results import TaskResult
from torch.utils.data import DataLoader
from toy_audio import noise
from toy_hub import of_files, wav
from toy_model import SIZES, save_model

from music2vec_hf import Music2VecConfig, Music2VecModel
from music2vec_hf.features.embeddings import embed
from music2vec_hf.features.mteb_encoder import MTEBEncoder

TASK = {"task_metadata": SimpleNamespace(name="Toy"), "hf_split": "test", "hf_subset": "default"}
QUIET = {"show_progress_bar": False}


@pytest.fixture(scope="module")
def model(encoder_folder):
    return MTEBEncoder(str(encoder_folder), device="cpu")


def tone(seconds, frequency=440.0, rate=16_000):
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def collate(rows):
    return {"audio": [row["audio"] for row in rows]}


def loader(rows, batch_size=2):
    return DataLoader([{"audio": row} for row in rows], batch_size, collate_fn=collate)


def described(kind, name, score):
    return TaskMetadata(
        name=name, description="made up", reference=None, dataset={"path": "none/none", "revision": "1"}, type=kind,
        category="a2c", eval_splits=["test"], eval_langs=["zxx-Zxxx"], main_score=score, modalities=["audio"],
        date=None, domains=["Music"], task_subtypes=[], license=None, annotations_creators=None, dialect=[],
        sample_creation=None, bibtex_citation="",
    )  # fmt: skip


class Local:
    """Noise and tones as encoded files, at a rate of their own each."""

    input_column_name, label_column_name, n_experiments, max_fraction_of_documents_to_embed = "audio", "label", 2, None

    def load_data(self, **kwargs):
        def rows(first, count):
            for number in range(first, first + count):
                rate, label = (8_000, 16_000, 22_050, 44_100)[number % 4], number % 2
                half = rate / 32_000  # of a second, as `noise` counts it
                samples = tone(0.5, 400 + number, rate) if label else noise(half, number)
                yield {"audio": {"bytes": wav(samples, rate), "path": None}, "label": label}

        splits = {"train": rows(0, 20), "test": rows(20, 12)}
        self.dataset = DatasetDict({name: of_files(rows) for name, rows in splits.items()})
        self.data_loaded = True


class LocalClassification(Local, AbsTaskClassification):
    metadata = described("AudioClassification", "LocalClassification", "accuracy")


class LocalClustering(Local, AbsTaskClustering):
    metadata = described("AudioClustering", "LocalClustering", "v_measure")


class WavEncoder:
    """What `datasets` needs of torchcodec to make files of the arrays of MTEB's mock tasks."""

    def __init__(self, samples, *, sample_rate):
        self.samples, self.rate = samples.numpy(), sample_rate

    def to_file_like(self, buffer, format, num_channels):
        buffer.write(wav(self.samples, self.rate))


def test_the_mock_run_of_mteb_passes(model, monkeypatch):
    for name in ("torchcodec", "torchcodec.encoders"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torchcodec.encoders"].AudioEncoder = WavEncoder
    assert isinstance(model, EncoderProtocol)
    done = {name: result for name, result in mteb.mock_run(model).items() if result is not None}
    assert {"MockAudioClassification", "MockAudioClusteringTask", "MockAudioReranking"} <= set(done)
    assert {name: result for name, result in done.items() if not isinstance(result, TaskResult)} == {}


def test_tasks_are_scored_and_scores_kept_by_model_revision_and_layer(tmp_path, monkeypatch):
    model = MTEBEncoder("tiny", layer=2, device="cpu")
    tasks, cache = [LocalClassification(), LocalClustering()], mteb.ResultCache(tmp_path)
    results = mteb.evaluate(model, tasks, cache=cache, **QUIET)
    scores = {result.task_name: result.get_score() for result in results.task_results}
    assert scores["LocalClassification"] > 0.9 and scores["LocalClustering"] > 0.9
    kept = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("Local*.json")]
    revision = model.mteb_model_meta.revision
    assert len(kept) == 2 and all(f"local__tiny/{revision}/" in path and "layer_2" in path for path in kept)
    monkeypatch.setattr(model, "encode", None)
    again = mteb.evaluate(model, tasks, cache=cache, **QUIET)
    assert {result.task_name: result.get_score() for result in again.task_results} == scores


def test_batches_change_nothing_and_values_are_those_of_embed(model):
    rows = [{"array": noise(1 + number / 4, number), "sampling_rate": 16_000} for number in range(5)]
    found = [model.encode(loader(rows, size), **TASK, **QUIET) for size in (1, 2, 5)]
    assert found[0].dtype == np.float32 and all(np.array_equal(found[0], other) for other in found[1:])
    alone = np.stack([embed(model.model, row["array"], layers=3) for row in rows])
    np.testing.assert_allclose(found[0], alone, atol=1e-5)


def test_a_column_of_files_keeps_its_order_and_needs_no_torchcodec(model):
    files = [{"audio": {"bytes": wav(noise(1, number), 16_000), "path": None}} for number in range(4)]
    inputs = DataLoader(of_files(files), sampler=[2, 0, 3, 1], batch_size=3, collate_fn=collate)
    expected = np.stack([embed(model.model, noise(1, number), layers=3) for number in (2, 0, 3, 1)])
    np.testing.assert_allclose(model.encode(inputs, **TASK, **QUIET), expected, atol=1e-5)


def test_the_metadata_says_what_is_known_and_no_more(model, encoder_folder):
    meta = model.mteb_model_meta
    assert ModelMeta.model_validate(meta.model_dump()) == meta
    assert (meta.name, meta.revision) == ("local/model", MTEBEncoder(str(encoder_folder)).mteb_model_meta.revision)
    assert (meta.embed_dim, meta.modalities, meta.open_weights, meta.loader) == (16, ["audio"], None, None)
    assert meta.n_parameters == sum(parameter.numel() for parameter in model.model.parameters())
    assert (meta.license, meta.training_datasets, meta.public_training_data) == (None, None, None)
    assert meta.similarity_fn_name == "cosine"
    conv = MTEBEncoder(str(encoder_folder), layer="conv", window_seconds=5.0).mteb_model_meta
    assert conv.embed_dim == 8 and {"layer": "conv", "window_seconds": 5.0}.items() <= conv.experiment_kwargs.items()
    assert conv.experiment_name != meta.experiment_name


def test_mistakes_are_refused(model, encoder_folder):
    with pytest.raises(ValueError, match=r"There is no layer 9. This model has conv, 0, 1, 2, 3."):
        MTEBEncoder(str(encoder_folder), layer=9)
    with pytest.raises(ValueError, match=r"Toy has text where this model hears audio only."):
        model.encode(DataLoader([{"text": "a"}]), **TASK, **QUIET)
    with pytest.raises(ValueError, match=r"`precision` is 'int8'; embeddings are given as float32 only."):
        model.encode(loader([]), **TASK, precision="int8")
    with pytest.raises(ValueError, match=r"supports .'audio'., but none overlap"):
        mteb.evaluate(model, mteb.get_task("STS12"), cache=None, **QUIET)
    with pytest.raises(ValueError, match="The audio has 100 samples at 16000 Hz but one frame needs 400"):
        model.encode(loader([{"array": noise(1)[:100], "sampling_rate": 16_000}]), **TASK, **QUIET)


def test_without_mteb_a_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", None)
    monkeypatch.delitem(sys.modules, "music2vec_hf.features.mteb_encoder")
    with pytest.raises(ImportError, match=r"needs mteb: pip install 'music2vec_hf\[mteb\]'"):
        import music2vec_hf.features.mteb_encoder  # noqa: F401


def test_a_revision_of_the_hub_is_taken_and_told(encoder_folder, tmp_path, monkeypatch):
    """Two commits of one repository, as `huggingface_hub` keeps what it has fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    old, new = ("a" * 40, "b" * 40)
    repository = tmp_path / "models--someone--toy"
    shutil.copytree(encoder_folder, repository / "snapshots" / new)
    torch.manual_seed(1)
    save_model(Music2VecModel(Music2VecConfig(**SIZES)), repository / "snapshots" / old)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(new)
    rows = [{"array": noise(1), "sampling_rate": 16_000}]
    models = {commit: MTEBEncoder("someone/toy", revision) for commit, revision in ((new, None), (old, old))}
    found = {commit: model.encode(loader(rows), **TASK, **QUIET)[0] for commit, model in models.items()}
    for commit, model in models.items():
        meta = model.mteb_model_meta
        assert (meta.name, meta.revision, meta.open_weights, meta.loader) == ("someone/toy", commit, True, MTEBEncoder)
        expected = embed(repository / "snapshots" / commit, noise(1), layers=3)
        np.testing.assert_allclose(found[commit], expected, atol=1e-5)
    assert np.abs(found[old] - found[new]).max() > 0.1
    with pytest.raises(ValueError, match="someone/toy is neither a folder here nor a model"):
        MTEBEncoder("someone/toy", "absent")
