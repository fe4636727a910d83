"""Fine-tuning on two processes with gradient checkpointing, and crops in workers that outlive an epoch."""

import os
import subprocess
import sys
from pathlib import Path

from toy_two_processes import RUNS
from transformers import Trainer

from music2vec_hf.finetuning.fitting import finetune


def test_two_processes_with_gradient_checkpointing(pretrained, synthetic, tmp_path):
    """LayerDrop, a head on an early layer and frozen layers leave parameters without a gradient."""
    script = Path(__file__).with_name("toy_two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(synthetic), str(pretrained), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert all((tmp_path / name / "model.safetensors").is_file() for name in RUNS)


def test_persistent_workers_hear_other_crops_in_every_epoch(settings, monkeypatch):
    heard, step = {}, Trainer.training_step

    def listen(self, model, inputs, *args, **kwargs):
        heard.setdefault(int(self.state.epoch or 0), []).extend(inputs["input_values"].double().sum(1).tolist())
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", listen)
    plan = {"mode": "frozen", "num_train_epochs": 3, "eval_strategy": "no", "save_strategy": "no"}
    plan |= {"load_best_model_at_end": False, "dataloader_num_workers": 1}
    finetune(settings("persistent", **plan, dataloader_persistent_workers=True, dataloader_prefetch_factor=4))
    persistent = {epoch: sorted(sums) for epoch, sums in heard.items()}
    assert sorted(persistent) == [0, 1, 2]
    assert not {*persistent[0]} & {*persistent[1]} and not {*persistent[1]} & {*persistent[2]}
    heard.clear()
    finetune(settings("plain", **plan))
    assert {epoch: sorted(sums) for epoch, sums in heard.items()} == persistent
