"""A labelled toy corpus and a toy model for fine-tuning."""

import pytest
from toy_model import save_model

from music2vec_hf.finetuning.fitting import parse_arguments
from music2vec_hf.synthetic.generator import synthesize_corpus


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """60 clips of 2 s in three splits."""
    folder = tmp_path_factory.mktemp("finetuning") / "synthetic"
    synthesize_corpus(folder, 60, seed=0, clip_seconds=2.0)
    return folder


@pytest.fixture
def pretrained(tiny_student, tmp_path):
    """Folder of a pretrained toy model, with dropout as real ones have."""
    tiny_student.config.hidden_dropout, tiny_student.config.layerdrop = 0.1, 0.1
    return save_model(tiny_student, tmp_path / "pretrained")


@pytest.fixture
def settings(pretrained, synthetic, tmp_path):
    """`settings(name=value)`: arguments of two epochs of genre on the toy corpus."""

    def make(output="run", **changes):
        values = {"model": pretrained, "corpus": synthetic, "label": "genre", "output_dir": tmp_path / output}
        values |= {"crop_seconds": 1.0, "num_train_epochs": 2, "per_device_train_batch_size": 8}
        values |= {"use_cpu": True, "disable_tqdm": True, **changes}
        argv = []
        for name, value in values.items():
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return parse_arguments(argv)

    return make
