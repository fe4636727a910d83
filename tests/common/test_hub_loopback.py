"""Whatever takes a model or a corpus takes a Hub id: over HTTP, from a Hub on loopback, in processes of their own."""

import re
import shutil
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from hub_server import TOKEN
from toy_hub import save_published
from toy_model import SIZES, save_model

from music2vec_hf import Music2VecConfig, Music2VecForPreTraining
from music2vec_hf.corpus.prepare import prepare_corpus

TOY = "--hidden_size 16 --num_hidden_layers 3 --num_attention_heads 2 --intermediate_size 32"
TOY += " --num_conv_pos_embedding_groups 4 --average_top_k_layers 2 --crop_seconds 1.0 --batch_seconds 4.0"
TOY += " --mask_group_seconds 4.0 --max_steps 2 --log_every 1 --num_workers 0 --precision fp32 --conv_dim" + 7 * " 8"

# Everything that reads a model, by id and from the folder that the id names; run online, then offline.
MODELS = """
import sys
import numpy as np, pyarrow.parquet as pq, torch
from transformers import AutoFeatureExtractor, AutoModel
import music2vec_hf
from music2vec_hf import Music2VecFeatureExtractor, Music2VecForPreTraining, Music2VecModel, embed
from music2vec_hf.cli import main
from music2vec_hf.features.encoders import open_source, resolve_sources
from music2vec_hf.features.store import FeatureStore
root, track, out = sys.argv[1:]

def weights(model):
    return {f"{name}": tensor.numpy() for name, tensor in model.state_dict().items()}

def same(one, two):
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)

local = f"{root}/models/someone/model"
for branch in ("main", "smaller"):
    by_id = Music2VecModel.from_pretrained("someone/model", revision=branch)
    same(weights(by_id), weights(Music2VecModel.from_pretrained(f"{local}/{branch}")))
same(weights(Music2VecForPreTraining.from_pretrained("someone/model")),
     weights(Music2VecForPreTraining.from_pretrained(f"{local}/main")))
auto = AutoModel.from_pretrained("someone/model")
assert type(auto) is Music2VecModel
extractor = Music2VecFeatureExtractor.from_pretrained("someone/model")
assert type(AutoFeatureExtractor.from_pretrained("someone/model")) is Music2VecFeatureExtractor
assert extractor.to_dict() == Music2VecFeatureExtractor.from_pretrained(f"{local}/main").to_dict()

published = Music2VecModel.from_pretrained("someone/music2vec-v1")
plain = torch.load(f"{root}/models/someone/music2vec-v1/main/pytorch_model.bin", weights_only=True)
same(weights(published), {name: tensor.numpy() for name, tensor in plain.items()})

assert main(["embed", "someone/model", track, "--output", f"{out}.parquet"]) == 0
table = pq.read_table(f"{out}.parquet").to_pylist()[0]
expected = embed(f"{local}/main", track)
for layer, values in enumerate(expected):
    assert np.array_equal(np.float32(table[f"layer_{layer}"]), values)
assert main(["export", "someone/model", f"{out}-plain"]) == 0
for source in resolve_sources(["someone/model", "random-init"], 1):
    rows = FeatureStore(None, open_source(source)).rows([track])
    assert np.allclose(rows.features["2"][0], expected[2], atol=1e-5) == (source.kind == "model")
np.savez(out, **weights(auto), embedding=expected, published=embed("someone/music2vec-v1", track))
"""

# Every kind of corpus, by id and from the folder that the id names: the same batches, and the same losses.
CORPORA = """
import itertools, json, sys
import numpy as np
from toy_plan import PLAN
from music2vec_hf.cli import main
from music2vec_hf.corpus.batches import CropDataset, training_batches
from music2vec_hf.corpus.loading import load_corpus, stream_corpus
from music2vec_hf.corpus.batches import streaming_batches
root, out, toy, offline = sys.argv[1], sys.argv[2], sys.argv[3].split(), sys.argv[4] == "offline"
numbers = itertools.count()

def batches(name, split):
    loaders = (training_batches(CropDataset(load_corpus(name, split), PLAN), 0, 2),
               streaming_batches(stream_corpus(name, split), PLAN, 0, 2, buffer_size=4))
    return [np.concatenate([batch["input_values"].numpy() for batch in loader]) for loader in loaders]

def losses(name, *switch):
    run = f"{out}-run{next(numbers)}"
    assert main(["pretrain", "--recipe", "small", "--corpus", name, "--output", run, *toy, *switch]) == 0
    return [json.loads(line)["loss"] for line in open(f"{run}/metrics.jsonl")]

saved = {}
for kind in ("corpus", "tones", "archives"):
    by_id = batches(f"someone/{kind}", None)  # on the Hub, "train" needs no name
    for ours, theirs in zip(by_id, batches(f"{root}/datasets/someone/{kind}/main", "train"), strict=True):
        assert ours.shape == (10, 16000) and np.array_equal(ours, theirs), kind
    saved[kind] = by_id[0]
found = losses("someone/corpus")
started = [losses(corpus, "--streaming", "true", "--init_from", model) for corpus, model in (
    ("someone/corpus", "someone/model"),
    (f"{root}/datasets/someone/corpus/main", f"{root}/models/someone/model/main"),
)]
assert len(found) == 2 and started[0] == started[1] and started[0][0] not in found
try:
    assert len(list(stream_corpus("someone/tones", "test"))) == 3 and not offline
except ValueError as error:
    assert offline and "someone/tones is neither a folder here nor a data set that the Hub gives" in str(error)
np.savez(out, **saved)
"""


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Eight noisy tones of 2.5 s to train on, three to test."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    for index in range(11):
        time = np.arange(40_000) / 16_000
        samples = 0.3 * np.sin(2 * np.pi * (200 + 50 * index) * time) + 0.05 * rng.standard_normal(40_000)
        path = folder / ("train" if index < 8 else "test") / f"tone #{index}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, samples, 16_000)
    return folder


@pytest.fixture(scope="module")
def filled(hub, audio):
    """The Hub, with a model in two branches, one laid out as the published one, three kinds of corpus, two secrets."""
    models, datasets = hub.root / "models" / "someone", hub.root / "datasets" / "someone"
    for branch, width in (("main", 32), ("smaller", 16)):
        torch.manual_seed(0)
        model = Music2VecForPreTraining(Music2VecConfig(**SIZES | {"intermediate_size": width}))
        save_model(model, models / "model" / branch)
    shutil.copytree(models / "model", models / "private")
    save_published(models / "music2vec-v1" / "main")
    prepare_corpus(audio / "train", datasets / "corpus" / "main", num_proc=1, progress=False)
    shutil.copytree(datasets / "corpus", datasets / "private")
    shutil.copytree(audio, datasets / "tones" / "main")
    (datasets / "archives" / "main").mkdir(parents=True)
    with tarfile.open(datasets / "archives" / "main" / "part.tar", "w") as archive:
        for path in sorted((audio / "train").iterdir()):
            archive.add(path, path.name)
    hub.private.add("someone/private")
    return hub


def assert_same_arrays(one, two):
    with np.load(f"{one}.npz") as ours, np.load(f"{two}.npz") as theirs:
        assert set(ours) == set(theirs)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_models_load_by_id_once_and_then_without_the_hub(filled, online, offline, audio, tmp_path):
    track = audio / "test" / "tone #9.flac"
    online.succeed(MODELS, filled.root, track, tmp_path / "online")
    weights = [request for request in filled.requests if re.fullmatch("GET /someone/model/.*safetensors", request)]
    assert len(weights) == len(set(weights)) == 2  # of two branches
    asked = len(filled.requests)
    offline.succeed(MODELS, filled.root, track, tmp_path / "offline")
    assert len(filled.requests) == asked
    assert_same_arrays(tmp_path / "online", tmp_path / "offline")


def test_corpora_load_by_id_once_and_then_without_the_hub(filled, online, offline, tmp_path):
    online.succeed(CORPORA, filled.root, tmp_path / "online", TOY, "online")
    asked = len(filled.requests)
    offline.succeed(CORPORA, filled.root, tmp_path / "offline", TOY, "offline")
    assert len(filled.requests) == asked
    assert_same_arrays(tmp_path / "online", tmp_path / "offline")


def test_a_mistake_gets_one_sentence(filled, online, audio, tmp_path):
    track = audio / "test" / "tone #9.flac"
    cases = [("", "absent"), ("", "private"), (TOKEN, "absent"), ("hf_expired", "absent"), ("hf_expired", "private")]
    calls = []
    for token, name in cases:
        calls += [
            (token, "embed", f"someone/{name}", track, "--output", tmp_path / "e.parquet"),
            (token, "export", f"someone/{name}", tmp_path / "plain"),
            (token, "pretrain", "--corpus", f"someone/{name}", "--recipe", "small", "--output", tmp_path / "run"),
        ]
    for (token, verb, *words), (code, _, said) in zip(calls, online.commands(*calls), strict=True):
        name, what = (words[1], "a data set") if verb == "pretrain" else (words[0], "a model")
        assert code == 1 and said.count("\n") == 1, said
        sentence = said.split("music2vec: ")[-1]
        assert sentence.startswith(f"{name} is neither a folder here nor {what} that the Hub gives ("), said
        assert sentence.endswith("for a private one, `hf auth login`.\n"), said
        assert ("Invalid credentials" in said) == (token == "hf_expired"), said
    assert not (tmp_path / "run").exists() and not (tmp_path / "plain").exists()
