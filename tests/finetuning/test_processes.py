"""Fine-tuning on two processes with gradient checkpointing, and crops in workers that outlive an epoch."""

import os

import numpy as np
from accelerate.state import AcceleratorState
from transformers import Trainer
from warm_python import as_rank, fork, free_port

from music2vec_hf import Music2VecFeatureExtractor
from music2vec_hf.finetuning.clips import RandomCrops, load_labelled_corpus
from music2vec_hf.finetuning.fitting import FinetuneArguments, finetune

RUNS = {"full": {"mode": "full"}, "early_layer": {"mode": "lora", "classifier_layer": "1"}}


def finetune_as(variables, corpus, model, out):
    os.environ.update(variables)
    AcceleratorState._reset_state(reset_partial_state=True)  # that of the process which forked
    plan = dict.fromkeys(("eval_strategy", "save_strategy"), "no") | {"load_best_model_at_end": False, "report_to": []}
    plan |= {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_checkpointing": True, "use_cpu": True}
    for name, changes in RUNS.items():
        where = {"model": model, "corpus": corpus, "label": ["genre"], "output_dir": f"{out}/{name}"}
        finetune(FinetuneArguments(**where, crop_seconds=1.0, **plan, disable_tqdm=True, **changes))


def test_two_processes_with_gradient_checkpointing(pretrained, synthetic, tmp_path):
    """LayerDrop, a head on an early layer and frozen layers leave parameters without a gradient."""
    port, where = free_port(), (str(synthetic), str(pretrained), str(tmp_path))
    peers = [fork(finetune_as, as_rank(rank, port), *where) for rank in range(2)]
    for peer in peers:
        peer.join(timeout=240)
    assert [peer.exitcode for peer in peers] == [0, 0]
    assert all((tmp_path / name / "model.safetensors").is_file() for name in RUNS)


def test_persistent_workers_hear_other_crops_in_every_epoch(settings, synthetic, monkeypatch):
    heard, step = {}, Trainer.training_step

    def listen(self, model, inputs, *args, **kwargs):
        heard.setdefault(int(self.state.epoch or 0), []).extend(inputs["input_values"].double().sum(1).tolist())
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", listen)
    plan = {"mode": "frozen", "num_train_epochs": 2, "eval_strategy": "no", "save_strategy": "no"}
    plan |= {"load_best_model_at_end": False, "dataloader_num_workers": 1, "seed": 3}
    finetune(settings("persistent", **plan, dataloader_persistent_workers=True, dataloader_prefetch_factor=4))
    corpus = load_labelled_corpus(synthetic, "train")
    crops = RandomCrops(corpus, np.zeros(len(corpus)), Music2VecFeatureExtractor(), 1.0, seed=3)
    for epoch in range(2):
        crops.epoch = epoch
        expected = [crops[clip]["input_values"].sum(dtype=np.float64) for clip in range(len(crops))]
        np.testing.assert_allclose(sorted(heard[epoch]), sorted(expected), atol=1e-9)
    assert not {*heard[0]} & {*heard[1]}
