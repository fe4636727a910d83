"""From outputs for clips to outputs for tracks: the four ways of JukeMIR.

A song of the key task is several clips (`ProbeExperiment.eval` in `jukemir/probe/__init__.py`, the same four
in `tasks/GS/utils.py` of MARBLE v1). The way is chosen on the validation split, never on the test split.

| name | output of a track |
| --- | --- |
| `vote` | how many of its clips have their largest output at this class |
| `max` | largest output of its clips |
| `gmean` | mean output of its clips; for logits the geometric mean of probabilities, up to a factor |
| `mean` | mean of the softmax of its clips |
"""

import numpy as np
import torch
import torch.nn.functional as F

ENSEMBLES = ("vote", "max", "gmean", "mean")
"""In the order in which ties are broken: the first one wins."""


def ensembles_to_try(primary_metric: str) -> tuple[str, ...]:
    """Ways among which validation chooses: all four for keys, the mean of the outputs for every other task."""
    return ENSEMBLES if primary_metric == "weighted_key_score" else ("gmean",)


def combine(outputs: np.ndarray | torch.Tensor, tracks: np.ndarray | torch.Tensor, ensemble: str):
    """Combine the outputs for the clips of each track.

    Args:
        outputs (`np.ndarray` or `torch.Tensor` of shape `(..., num_rows, K)`): logits or values, one row per clip.
        tracks (`np.ndarray` or `torch.Tensor` of shape `(num_rows,)`): track of each row, 0 to the number of tracks
            less one, in any order.
        ensemble (`str`): `vote`, `max`, `gmean` or `mean`, see the table of this module.

    Returns:
        Of the type of `outputs`, of shape `(..., num_tracks, K)`.

    Raises:
        ValueError: if there is no ensemble of this name, or rows and tracks do not fit.
    """
    if ensemble not in ENSEMBLES:
        raise ValueError(f"There is no ensemble '{ensemble}'; use one of {', '.join(ENSEMBLES)}.")
    values, tracks = torch.as_tensor(outputs), torch.as_tensor(tracks)
    if tracks.shape != (values.shape[-2],):
        raise ValueError(f"Outputs have {values.shape[-2]} rows, but `tracks` has shape {tuple(tracks.shape)}.")
    if ensemble == "vote":
        values = F.one_hot(values.argmax(dim=-1), values.shape[-1]).to(values.dtype)
    elif ensemble == "mean":
        values = values.softmax(dim=-1)
    how = {"vote": "sum", "max": "max"}.get(ensemble, "mean")
    order, lengths = tracks.argsort(stable=True), tracks.bincount()
    if not lengths.all():
        raise ValueError(f"Track {int(lengths.argmin())} has no row; every track needs one or more.")
    # Sorted segments instead of scattered additions: these add in one order on every device.
    combined = torch.segment_reduce(values.movedim(-2, 0)[order], how, lengths=lengths, axis=0).movedim(0, -2)
    return combined if isinstance(outputs, torch.Tensor) else combined.numpy()
