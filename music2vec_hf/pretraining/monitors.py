"""What a run tells about itself: `metrics.jsonl`, the progress bar, and the collapse guard."""

import json
import math
import os
import time
from pathlib import Path

import torch
from tqdm import tqdm


class TrainingStopped(RuntimeError):
    """The run ended itself; the message says why, in one sentence, and what was saved."""


class Monitor:
    """Collects the monitors of a run and writes one record per `log_every` steps.

    Values stay on the device between records, so that watching does not slow the run down. Monitors are averages over
    the micro-batches and devices of the record's last step; the loss is exact: summed over masked frames, over their
    number.

    Args:
        output (`Path`): folder of `metrics.jsonl`.
        recipe ([`Recipe`]): ranges of the collapse guard, `log_every`, `max_steps`.
        first_step (`int`): steps already done; later records of an interrupted run are dropped, since they are made
            again.
        accelerator (`accelerate.Accelerator`).
    """

    def __init__(self, output: Path, recipe, first_step: int, accelerator):
        self.path, self.recipe, self.accelerator = output / "metrics.jsonl", recipe, accelerator
        self.started, self.last_step, self.records = time.perf_counter(), first_step, []
        self.totals: dict[str, torch.Tensor] = {}
        if accelerator.is_main_process:
            self._drop_records_after(first_step)
        self.bar = tqdm(
            total=recipe.max_steps,
            initial=first_step,
            unit="step",
            desc="pretraining",
            disable=not accelerator.is_main_process,
        )

    def add(self, output, num_masked: int, num_frames: int) -> None:
        """Take in one micro-batch's [`Music2VecForPreTrainingOutput`]."""
        values = {
            "loss_sum": output.loss.detach() * num_masked,
            "num_masked": num_masked,
            "num_frames": num_frames,
            "target_std": output.target_std.detach(),
            "prediction_std": output.prediction_std.detach(),
            "micro_batches": 1,
        }
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0) + torch.as_tensor(value, dtype=torch.float64)

    def end_step(self, step: int, learning_rate: float, ema_decay: float, grad_norm: torch.Tensor) -> None:
        """Close optimiser step `step`; on every `log_every`-th one write a record and check for collapse.

        Raises:
            TrainingStopped: if the loss is not finite, or targets or predictions have collapsed.
        """
        self.bar.update(1)
        if step % self.recipe.log_every and step != self.recipe.max_steps:
            self.totals = {}
            return
        names = sorted(self.totals)
        device = self.accelerator.device
        local = torch.stack([self.totals[name].to(device, torch.float32) for name in names])
        sums = dict(zip(names, self.accelerator.reduce(local, "sum").tolist(), strict=True))
        elapsed = time.perf_counter() - self.started
        record = {
            "step": step,
            "loss": sums["loss_sum"] / sums["num_masked"],
            "masked_share": sums["num_masked"] / sums["num_frames"],
            "target_std": sums["target_std"] / sums["micro_batches"],
            "prediction_std": sums["prediction_std"] / sums["micro_batches"],
            "grad_norm": float(grad_norm),
            "learning_rate": learning_rate,
            "ema_decay": ema_decay,
            "audio_seconds_per_second": (step - self.last_step)
            * self.recipe.rows_per_update
            * self.recipe.crop_seconds
            / elapsed,
        }
        self.totals, self.last_step, self.started = {}, step, time.perf_counter()
        self._write(record)
        self._guard(record)

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()

    def _write(self, record: dict) -> None:
        self.records.append(record)
        if not self.accelerator.is_main_process:
            return
        self.bar.set_postfix_str(
            f"loss {record['loss']:.3f}, target std {record['target_std']:.2f}, prediction std "
            f"{record['prediction_std']:.2f}, lr {record['learning_rate']:.1e}, "
            f"{record['audio_seconds_per_second']:.0f} audio s/s"
        )
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _guard(self, record: dict) -> None:
        recipe = self.recipe
        if not math.isfinite(record["loss"]):
            raise TrainingStopped(
                f"The loss is {record['loss']} at step {record['step']}. Resume from the last checkpoint with a lower "
                "`learning_rate` or `precision` fp32."
            )
        if record["step"] <= recipe.collapse_after_steps:
            return
        for name, floor in (
            ("target_std", recipe.min_target_std),
            ("prediction_std", recipe.min_prediction_std),
        ):
            if record[name] < floor:
                raise TrainingStopped(
                    f"`{name}` is {record[name]:.4f} at step {record['step']}, below `min_{name}` {floor}: the model "
                    "has collapsed to a constant. Start again with a lower `learning_rate` or a longer warm-up."
                )

    def _drop_records_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written when the run was killed
            if record["step"] <= step:
                kept.append(line)
        aside = self.path.with_suffix(".unfinished")
        aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(aside, self.path)


__all__ = ["Monitor", "TrainingStopped"]
