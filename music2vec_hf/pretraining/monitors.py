"""What a run tells about itself: `metrics.jsonl`, the progress bar, trackers, and the collapse guard.

Monitors of a step are computed from sums over its frames, which add up over micro-batches and devices: a monitor does
not depend on how the machine cuts the batch.
"""

import json
import math
import resource
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from music2vec_hf.common.files import METRICS, read_metrics, write_text
from music2vec_hf.pretraining import TrainingStopped

# Monitor, the recipe's limit, whether the limit is a floor, and what has happened beyond it.
_GUARDS = (
    ("target_std", "min_target_std", True, "the targets have collapsed to a constant"),
    ("prediction_std", "min_prediction_std", True, "the predictions have collapsed to a constant"),
    ("feature_std", "min_feature_std", True, "the front end has collapsed to a constant"),
    ("position_share", "max_position_share", False, "the targets say only where in the crop they stand"),
)


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed} gone, {remaining} left, {rate_fmt}{postfix}]"
_RECORD = (
    "loss {loss:.3f}, target std {target_std:.2f}, rank {target_rank:.0f}, {audio_seconds_per_second:.0f} audio s/s"
)
_PROBE = "probe {probe_linear:.3f} (chance {probe_chance:.3f}) at {step}"


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
        self.path, self.recipe, self.accelerator = output / METRICS, recipe, accelerator
        self.started, self.last_step, self.waited = time.perf_counter(), first_step, 0.0
        self.moments, self.totals = None, None
        self.shown = {"checkpoint": f"checkpoint-{first_step}" if first_step else "no checkpoint yet"}
        if accelerator.is_main_process and self.path.exists():
            kept = [record for record in read_metrics(self.path) if record["step"] <= first_step]
            write_text(self.path, "".join(f"{json.dumps(record)}\n" for record in kept))
        self.bar = tqdm(
            total=recipe.max_steps,
            initial=first_step,
            unit="step",
            desc="pretraining",
            disable=not accelerator.is_main_process,
            bar_format=_BAR,
        )

    def begin_step(self, step: int) -> None:
        """Open optimiser step `step` (1, 2, ...)."""
        if step % self.recipe.log_every == 0 or step == self.recipe.max_steps:
            # Loss summed over masked frames, masked frames, frames, acoustic loss, clips that could not be read.
            self.totals = torch.zeros(5, device=self.accelerator.device)

    def wait_for(self, stream):
        """The next batch of `stream`; the time it takes is counted as waiting for data."""
        started = time.perf_counter()
        batch = next(stream)
        self.waited += time.perf_counter() - started
        return batch

    @torch.no_grad()
    def add(self, output, mask_time_indices: torch.Tensor, num_masked: int) -> None:
        """Take in one micro-batch's [`Music2VecForPreTrainingOutput`], its mask `[B, T]` and masked frames."""
        if self.totals is None:
            return
        if self.moments is None:
            self.moments = FrameMoments(self.recipe.num_frames, output)
        self.totals[0] += output.loss.detach() * num_masked
        self.totals[1] += num_masked
        self.totals[2] += mask_time_indices.numel()
        if output.acoustic_loss is not None:
            self.totals[3] += output.acoustic_loss.detach() * num_masked
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
        if self.totals is None:
            return
        self.totals[4] = failed_clips
        loss_sum, masked, frames, acoustic_sum, failed = self.accelerator.reduce(self.totals, "sum").tolist()
        now = time.perf_counter()
        audio_seconds = (step - self.last_step) * self.recipe.rows_per_update * self.recipe.crop_seconds
        record = {
            "step": step,
            "loss": loss_sum / masked,
            **({"acoustic_loss": acoustic_sum / masked} if self.recipe.acoustic_weight else {}),
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
            self.write(record)
        self._guard(record)

    def close(self) -> None:
        """End the progress bar."""
        self.bar.close()

    def note_checkpoint(self, path: Path) -> None:
        """Show a checkpoint that has just been saved in the bar."""
        self._show(checkpoint=path.name)

    def _show(self, **parts: str) -> None:
        """Replace some parts of what stands behind the bar: `record`, `probe`, `checkpoint`."""
        self.shown |= parts
        order = ("record", "probe", "checkpoint")
        self.bar.set_postfix_str(", ".join(self.shown[name] for name in order if name in self.shown))

    def write(self, record: dict) -> None:
        """Append a record, `step` and monitors, to `metrics.jsonl` and the trackers; for the main process."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        finite = {name: value for name, value in record.items() if value is not None and name != "step"}
        self.accelerator.log(finite, step=record["step"])
        numbers = {name: float("nan") if value is None else value for name, value in record.items()}
        if "loss" in numbers:
            self._show(record=_RECORD.format(**numbers))
        if "probe_linear" in numbers:
            self._show(probe=_PROBE.format(**numbers))

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


class FrameMoments:
    """First and second moments of targets, predictions and projected features over the frames of one step.

    Args:
        num_frames (`int`): frames of a crop.
        output ([`Music2VecForPreTrainingOutput`]): whose channels and device the sums, which begin at 0, will have.
    """

    def __init__(self, num_frames: int, output):
        def zeros(*shape):
            return torch.zeros(*shape, device=output.targets.device, dtype=torch.float32)

        channels = output.targets.shape[1]
        self.widths = (channels, channels, output.projected_features.shape[2])
        self.sums = {
            "count": zeros(3),
            "sum": zeros(sum(self.widths)),
            "square_sum": zeros(sum(self.widths)),
            "target_products": zeros(channels, channels),
            "position_count": zeros(num_frames),
            "position_sum": zeros(num_frames, channels),
            "position_square_sum": zeros(num_frames),
        }

    @torch.no_grad()
    def add(self, output, mask_time_indices: torch.Tensor) -> None:
        """Take in one micro-batch's [`Music2VecForPreTrainingOutput`] and its masks, `[B, T]` or `[B, V, T]`."""
        targets = output.targets.float()
        rows = [targets, output.predictions, output.projected_features.flatten(0, 1)]
        rows = [values.detach().float() for values in rows]
        for row, values in enumerate(rows):
            self.sums["count"][row] += len(values)
        self.sums["sum"] += torch.cat([values.sum(0) for values in rows])
        self.sums["square_sum"] += torch.cat([values.square().sum(0) for values in rows])
        self.sums["target_products"] += targets.T @ targets
        places = mask_time_indices.bool().nonzero()  # row-major, as the targets
        if mask_time_indices.ndim == 3:  # several views of a clip have equal targets: the first stands for the clip
            targets, places = targets[places[:, 1] == 0], places[places[:, 1] == 0]
        frames = places[:, -1]
        self.sums["position_count"].index_add_(0, frames, torch.ones_like(frames, dtype=torch.float32))
        self.sums["position_sum"].index_add_(0, frames, targets)
        self.sums["position_square_sum"].index_add_(0, frames, targets.square().sum(1))

    def monitors(self, reduce) -> dict[str, float]:
        """The monitors of the step.

        Args:
            reduce: adds a tensor up over all devices.

        Returns:
            `dict`: `target_std`, `prediction_std`, `feature_std` (mean over channels of `sqrt(unbiased variance +
            1e-6)`), `target_rank` (effective rank) and `position_share`.
        """
        flat = reduce(torch.cat([value.flatten() for value in self.sums.values()])).cpu().double()
        parts = torch.split(flat, [value.numel() for value in self.sums.values()])
        sums = {name: part.view(self.sums[name].shape) for name, part in zip(self.sums, parts, strict=True)}
        count = sums["count"].repeat_interleave(torch.tensor(self.widths))
        variance = (sums["square_sum"] - sums["sum"].square() / count).clamp(min=0) / (count - 1).clamp(min=1)
        stds = [float(each.mean()) for each in torch.sqrt(variance + 1e-6).split(self.widths)]
        mean = (sums["sum"] / count)[: self.widths[0]]
        covariance = sums["target_products"] / sums["count"][0] - torch.outer(mean, mean)
        return {
            "target_std": stds[0],
            "prediction_std": stds[1],
            "feature_std": stds[2],
            "target_rank": effective_rank(covariance),
            "position_share": position_share(
                sums["position_count"], sums["position_sum"], sums["position_square_sum"]
            ),
        }


def effective_rank(covariance: torch.Tensor) -> float:
    """Number of dimensions that a covariance `[C, C]` fills: exp of the entropy of its normalised eigenvalues.

    1 when all channels move together, C for white noise.

    Source: Roy and Vetterli, The effective rank, 2007, applied to the covariance.
    """
    eigenvalues = torch.linalg.eigvalsh(covariance).clamp(min=0)
    total = eigenvalues.sum()
    if total <= 0:
        return 0.0
    shares = eigenvalues / total
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


def position_share(count: torch.Tensor, total: torch.Tensor, square_total: torch.Tensor) -> float:
    """Share of the targets' power that their frame's position in the crop alone explains.

    Targets that say only where in the crop they stand are easy to predict and worthless; their deviations look
    healthy. The squared mean at each position is estimated without bias, from pairs of different clips.

    Args:
        count (`torch.Tensor` of shape `(T,)`): clips in which the frame is masked.
        total (`torch.Tensor` of shape `(T, C)`): sum of their targets.
        square_total (`torch.Tensor` of shape `(T,)`): sum of their squared norms.

    Returns:
        `float`: about 0 (content) to 1 (position); 0 where no position is masked in two clips.
    """
    several = count > 1
    if not several.any() or square_total.sum() <= 0:
        return 0.0
    count, total, square_total = count[several], total[several], square_total[several]
    squared_means = (total.square().sum(1) - square_total) / (count * (count - 1))
    return float((squared_means * count).sum() / square_total.sum())


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: the GPU's allocator's on CUDA, else this process' resident memory; in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


__all__ = ["FrameMoments", "Monitor", "effective_rank", "peak_memory_gib", "position_share"]
