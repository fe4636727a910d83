"""What a run tells about itself: `metrics.jsonl`, the progress bar, trackers, and the collapse guard."""

import json
import math
import os
import resource
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from music2vec_hf.pretraining.moments import FrameMoments

# Monitor, the recipe's limit, whether the limit is a floor, and what has happened beyond it.
_GUARDS = (
    ("target_std", "min_target_std", True, "the targets have collapsed to a constant"),
    ("prediction_std", "min_prediction_std", True, "the predictions have collapsed to a constant"),
    ("feature_std", "min_feature_std", True, "the front end has collapsed to a constant"),
    ("position_share", "max_position_share", False, "the targets say only where in the crop they stand"),
)


class TrainingStopped(RuntimeError):
    """The run ended itself; the message says why, in one sentence, and what was saved."""


class Monitor:
    """Collects the monitors of a run and writes one record per `log_every` steps, of that step.

    Everything is summed over micro-batches and devices before it is divided. On the steps between records nothing is
    computed.

    Args:
        output (`Path`): folder of `metrics.jsonl`.
        recipe ([`Recipe`]): limits of the collapse guard, `log_every`, `max_steps`.
        first_step (`int`): steps already done; later records of an interrupted run are dropped, since they are made
            again.
        accelerator (`accelerate.Accelerator`): sums over devices; its trackers, if any, get the records too.
    """

    def __init__(self, output: Path, recipe, first_step: int, accelerator):
        self.path, self.recipe, self.accelerator = output / "metrics.jsonl", recipe, accelerator
        self.started, self.last_step, self.waited = time.perf_counter(), first_step, 0.0
        self.moments, self.totals = None, None
        if accelerator.is_main_process:
            self._drop_records_after(first_step)
        self.bar = tqdm(
            total=recipe.max_steps,
            initial=first_step,
            unit="step",
            desc="pretraining",
            disable=not accelerator.is_main_process,
        )

    def begin_step(self, step: int) -> None:
        """Open optimiser step `step` (1, 2, ...)."""
        if step % self.recipe.log_every == 0 or step == self.recipe.max_steps:
            device = self.accelerator.device
            self.moments = FrameMoments(self.recipe.num_frames, self.recipe.hidden_size, device)
            # Loss summed over masked frames, masked frames, frames, clips that could not be read.
            self.totals = torch.zeros(4, device=device)

    def wait_for(self, stream):
        """The next batch of `stream`; the time it takes is counted as waiting for data."""
        started = time.perf_counter()
        batch = next(stream)
        self.waited += time.perf_counter() - started
        return batch

    @torch.no_grad()
    def add(self, output, mask_time_indices: torch.Tensor, num_masked: int) -> None:
        """Take in one micro-batch's [`Music2VecForPreTrainingOutput`], its mask `[B, T]` and masked frames."""
        if self.moments is None:
            return
        self.totals[0] += output.loss.detach() * num_masked
        self.totals[1] += num_masked
        self.totals[2] += mask_time_indices.numel()
        self.moments.add(output, mask_time_indices)

    def end_step(self, step: int, skipped: int, failed_clips: int, **values: float) -> None:
        """Close optimiser step `step`; where a record is due, write it and check for collapse.

        Args:
            step (`int`): number of the step.
            skipped (`int`): updates skipped so far because they were not finite.
            failed_clips (`int`): clips that this process has found unreadable so far; recorded where there are any.
            values: what the loop knows itself: `learning_rate`, `ema_decay`, `grad_norm`.

        Raises:
            TrainingStopped: if targets, predictions or front end have collapsed.
        """
        self.bar.update(1)
        if self.moments is None:
            return
        self.totals[3] = failed_clips
        loss_sum, masked, frames, failed = self.accelerator.reduce(self.totals, "sum").tolist()
        now = time.perf_counter()
        audio_seconds = (step - self.last_step) * self.recipe.rows_per_update * self.recipe.crop_seconds
        record = {
            "step": step,
            "loss": loss_sum / masked,
            "masked_share": masked / frames,
            **self.moments.monitors(lambda sums: self.accelerator.reduce(sums, "sum")),
            **{name: float(value) for name, value in values.items()},
            "skipped_updates": skipped,
            **({"failed_clips": int(failed)} if failed else {}),
            "audio_seconds_per_second": audio_seconds / (now - self.started),
            "data_wait_share": self.waited / (now - self.started),
            "peak_memory_gib": peak_memory_gib(self.accelerator.device),
        }
        self.started, self.last_step, self.waited = now, step, 0.0
        self.moments = self.totals = None
        # A number that is not finite has no place in JSON.
        record = {name: value if math.isfinite(value) else None for name, value in record.items()}
        if self.accelerator.is_main_process:
            self._show(record)
            self.write(record)
        self._guard(record)

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()

    def _show(self, record: dict) -> None:
        shown = {name: float("nan") if value is None else value for name, value in record.items()}
        self.bar.set_postfix_str(
            f"loss {shown['loss']:.3f}, target std {shown['target_std']:.2f}, prediction std "
            f"{shown['prediction_std']:.2f}, rank {shown['target_rank']:.0f}, lr {shown['learning_rate']:.1e}, "
            f"{shown['audio_seconds_per_second']:.0f} audio s/s"
        )

    def write(self, record: dict) -> None:
        """Append a record, `step` and monitors, to `metrics.jsonl` and the trackers; for the main process."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        finite = {name: value for name, value in record.items() if value is not None and name != "step"}
        self.accelerator.log(finite, step=record["step"])

    def _guard(self, record: dict) -> None:
        if record["step"] <= self.recipe.collapse_after_steps:
            return
        for name, limit_name, is_floor, what in _GUARDS:
            value, limit = record[name], getattr(self.recipe, limit_name)
            if value is not None and (value < limit if is_floor else value > limit):
                raise TrainingStopped(
                    f"`{name}` is {value:.4f} at step {record['step']}, {'below' if is_floor else 'above'} "
                    f"`{limit_name}` {limit}: {what}. Start again with a lower `learning_rate` or a longer warm-up."
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


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: the GPU's allocator's on CUDA, else this process' resident memory; in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


__all__ = ["Monitor", "TrainingStopped", "peak_memory_gib"]
