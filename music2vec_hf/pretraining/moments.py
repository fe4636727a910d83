"""Sums from which the monitors of one step are computed: they add up over micro-batches and devices, so a monitor does
not depend on how the machine cuts the batch."""

import torch


class FrameMoments:
    """First and second moments of targets, predictions and projected features over the frames of one step.

    Args:
        num_frames (`int`): frames of a crop.
        channels (`int`): hidden size.
        device: where the sums are kept until they are asked for.
    """

    def __init__(self, num_frames: int, channels: int, device):
        def zeros(*shape):
            return torch.zeros(*shape, device=device, dtype=torch.float32)

        self.sums = {
            "count": zeros(3),
            "sum": zeros(3, channels),
            "square_sum": zeros(3, channels),
            "target_products": zeros(channels, channels),
            "position_count": zeros(num_frames),
            "position_sum": zeros(num_frames, channels),
            "position_square_sum": zeros(num_frames),
        }

    @torch.no_grad()
    def add(self, output, mask_time_indices: torch.Tensor) -> None:
        """Take in one micro-batch's [`Music2VecForPreTrainingOutput`] and its masks, `[B, T]` or `[B, V, T]`."""
        targets = output.targets.float()
        for row, values in enumerate((targets, output.predictions, output.projected_features.flatten(0, 1))):
            values = values.detach().float()
            self.sums["count"][row] += len(values)
            self.sums["sum"][row] += values.sum(0)
            self.sums["square_sum"][row] += values.square().sum(0)
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
        count, total = sums["count"][:, None], sums["sum"]
        variance = (sums["square_sum"] - total.square() / count).clamp(min=0) / (count - 1).clamp(min=1)
        stds = torch.sqrt(variance + 1e-6).mean(1).tolist()
        mean = total[0] / count[0]
        covariance = sums["target_products"] / count[0] - torch.outer(mean, mean)
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


__all__ = ["FrameMoments", "effective_rank", "position_share"]
