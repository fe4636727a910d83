"""Shared by all tests: toy models and golden values; the network is blocked."""

import copy
import functools
import json
import os
import socket
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from hub_server import HubServer
from toy_model import SIZES, save_model
from warm_python import WarmPython

import music2vec_hf

GOLDEN = Path(__file__).parent / "golden"


# What these share takes seconds to make: with several processes of tests, one of them takes all of a line.
TOGETHER = (
    ("tests/hub/", "tests/common/test_hub_loopback", "tests/test_docs.py", "tests/test_cli"),
    ("tests/pretraining/", "tests/finetuning/"),
    ("tests/probing/",),
    ("tests/app/",),
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return next((line[0] for line in TOGETHER if nodeid.startswith(line)), nodeid.partition("::")[0])

    return ByWhatIsShared(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any connection that leaves this machine is an error."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """`datasets` keeps what this test loads in a folder of its own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny_config():
    """Three layers, 16 wide, without anything random in training."""
    unvaried = dict.fromkeys(("hidden_dropout", "attention_dropout", "layerdrop"), 0.0)
    return music2vec_hf.Music2VecConfig(**SIZES, **unvaried, average_top_k_layers=2)


@pytest.fixture
def tiny_student(tiny_config):
    torch.manual_seed(0)
    return music2vec_hf.Music2VecForPreTraining(tiny_config)


@pytest.fixture(scope="session")
def encoder():
    """Whoever embeds leaves it as it is."""
    torch.manual_seed(0)
    return music2vec_hf.Music2VecModel(music2vec_hf.Music2VecConfig(**SIZES, average_top_k_layers=2)).eval()


@pytest.fixture(scope="session")
def encoder_folder(encoder, tmp_path_factory):
    """The encoder as a folder of a model; not to be changed."""
    return save_model(encoder, tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture
def batch():
    """Two clips of one second, their 49 frames, and a mask of 15 frames each."""
    rng = np.random.default_rng(0)
    mask = np.zeros((2, 49), dtype=bool)
    mask[0, 3:18] = mask[1, 20:35] = True
    return torch.tensor(rng.standard_normal((2, 16_000)), dtype=torch.float32), torch.tensor(mask)


@pytest.fixture(scope="session")
def golden():
    """`golden(name)`: the arrays of one golden file, with the reference's settings under `config`."""

    @functools.cache
    def load(name):
        arrays = dict(np.load(GOLDEN / name, allow_pickle=False))
        return arrays | {"config": json.loads((GOLDEN / "config.json").read_text())["main.npz"]}

    return lambda name: copy.deepcopy(load(name))


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """A Hub on loopback that all tests fill, each with repositories of its own names."""
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """`HF_HOME` of the processes below."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def online(hub, home):
    """Python that reaches the Hub on loopback and no other."""
    with WarmPython(hub.environment(home)) as python:
        yield python


@pytest.fixture(scope="session")
def offline(online):
    """Python that has what `online` fetched, and no Hub."""
    return online.offline()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """80 synthetic clips of 2 s in three splits; not to be changed."""
    from music2vec_hf.synthetic.generator import synthesize_corpus

    folder = tmp_path_factory.mktemp("synthetic") / "corpus"
    synthesize_corpus(folder, 80, seed=3, clip_seconds=2.0)
    return folder


@pytest.fixture(scope="session")
def probed(corpus):
    """A toy model and a real probe of it on those clips: `model/`, `corpus/`, `probes/`; not to be changed."""
    from music2vec_hf.probing.probes import SEARCHES
    from music2vec_hf.probing.suite import run_suite

    root = corpus.parent
    torch.manual_seed(0)
    save_model(music2vec_hf.Music2VecModel(music2vec_hf.Music2VecConfig(**SIZES)), root / "model")
    names = {"pretrained": str(root / "model"), "random-init": "random-init", "chroma": "chroma"}
    settings = {"seeds": (0, 1), "layers": ["conv", "2"], "progress": False}
    with pytest.MonkeyPatch.context() as patch:  # a few steps make as real a file
        quick = SEARCHES["quick"]
        patch.setitem(SEARCHES, "quick", replace(quick, settings=quick.settings[2:4], max_steps=40))
        run_suite(names, "synthetic", corpus, root / "probes", **settings)
    return root
