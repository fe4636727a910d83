"""Importing costs next to nothing, our classes join transformers', a torchaudio that does not fit is named."""

import subprocess
import sys

import pytest
from warm_python import WarmPython


@pytest.fixture(scope="module")
def run():
    """A process that has torch, and neither transformers nor torchaudio."""
    with WarmPython(modules=("torch", "torch._dynamo", "accelerate")) as python:
        yield python.run


@pytest.mark.parametrize("statement", ["import transformers", "music2vec_hf.embed", "import torchaudio"])
def test_a_torchaudio_that_does_not_load_is_named_with_its_remedy(run, statement, tmp_path):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object')")
    result = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import music2vec_hf; {statement}")
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ImportError: The installed torchaudio cannot be loaded with the installed torch (libcudart"
    )
    assert "pip install --upgrade 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12'" in last


def test_public_names_are_there():
    import music2vec_hf

    for name in music2vec_hf.__all__:
        assert getattr(music2vec_hf, name).__doc__, name


@pytest.mark.parametrize(
    "statements",
    [
        "import music2vec_hf, importlib.util as util, importlib; util.find_spec('transformers'); "
        "importlib.reload(music2vec_hf); from transformers import AutoConfig; importlib.reload(music2vec_hf)",
        "from music2vec_hf.model.pipeline_music2vec import TASK; from transformers import AutoConfig",
    ],
    ids=["looked for and loaded twice", "a model file first"],
)
def test_our_classes_join_the_auto_classes(run, statements):
    result = run(
        f"{statements}; from transformers.pipelines import PIPELINE_REGISTRY as tasks; "
        "print(type(AutoConfig.for_model('music2vec')).__name__, "
        "tasks.supported_tasks['audio-classification']['impl'].__name__)"
    )
    assert result.stdout.split() == ["Music2VecConfig", "Music2VecAudioClassificationPipeline"], result.stderr


def test_neither_torch_nor_transformers_is_loaded_before_it_is_needed():
    program = "from music2vec_hf.cli import build_parser; build_parser(); import sys; "
    program += "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]", loaded.stderr
