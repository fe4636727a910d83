"""`compile`: what torch.compile makes of front end, layers and teacher trains as they do."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from toy_run import toy

from music2vec_hf.pretraining.loop import pretrain

WITHOUT_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.4}


@pytest.mark.slow
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_trains_the_same_weights(recomputed, toy_corpus, tmp_path):
    """With LayerDrop, whose draws are not compiled; the weights keep their names."""
    pretrain(toy(**WITHOUT_DROPOUT), toy_corpus, tmp_path / "plain")
    recipe = toy(**WITHOUT_DROPOUT, compile=True, gradient_checkpointing=recomputed)
    pretrain(recipe, toy_corpus, tmp_path / "compiled")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("compiled", "plain"))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-4, rtol=1e-3, msg=name)


def test_where_torch_cannot_compile_one_sentence_says_so(toy_corpus, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", lambda *args, **options: fail)
    with pytest.raises(ValueError, match=r"torch.compile fails here \(no compiler at all\)"):
        pretrain(toy(compile=True), toy_corpus, tmp_path / "run")
