"""Importing the package registers it, and says in one sentence when torchaudio does not fit torch."""

import subprocess
import sys


def test_a_torchaudio_that_does_not_load_is_named_with_its_remedy(tmp_path):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object')")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import music2vec_hf"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ImportError: The installed torchaudio cannot be loaded with the installed torch (libcudart"
    )
    assert "pip install --upgrade 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12'" in last


def test_public_names_are_there():
    import music2vec_hf

    for name in music2vec_hf.__all__:
        assert getattr(music2vec_hf, name).__doc__, name


def test_importing_twice_is_harmless():
    program = "import importlib, music2vec_hf; importlib.reload(music2vec_hf)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
