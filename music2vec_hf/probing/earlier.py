"""Results that a run finds in its folder: kept unless it has measured all of them anew.

A folder is used again for another task, protocol or checkpoint, since its cache is there.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

from music2vec_hf.common.results import read_results

EARLIER = "earlier"

logger = logging.getLogger(__name__)

_MEASURED = (
    "source",
    "source_kind",
    "model_hash",
    "task",
    "metric",
    "protocol",
    "layers",
    "window_seconds",
    "row_seconds",
    "seeds",
    "split_sizes",
    "differences",
)
"""Fields of a record that say what was measured."""


def set_aside(output: Path, records: Sequence[Mapping]) -> None:
    """Move the results in `output` to `output/earlier/1` (or 2, ...), unless `records` measure all of them again.

    The predictions that they name go with them, and a warning says where they are.

    Args:
        output (`Path`): folder of a run, with or without `results.json` and `predictions/`.
        records (`Sequence[Mapping]`): records that are to take the place of those in `results.json`.
    """
    if not (output / "results.json").is_file():
        return
    try:
        old = read_results(output)["records"]
    except ValueError:
        old = None  # not ours, or damaged: kept as it is
    if old is not None and {_measured(record) for record in old} <= {_measured(record) for record in records}:
        return
    named = {str(record.get("predictions")) for record in old or ()}
    predictions = sorted(name for name in named if Path(name).parent == Path("predictions"))  # no other file
    files = ["results.json", *(name for name in predictions if (output / name).is_file())]
    copy = output / EARLIER / f".{os.getpid()}"
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(output / name, copy / name)
    folder = next(path for number in count(1) if not (path := output / EARLIER / str(number)).exists())
    os.rename(copy, folder)
    for name in files:  # copied first: a kill in between loses nothing
        (output / name).unlink()
    logger.warning("%s held results of another run; they are in %s now.", output, folder)


def _measured(record: Mapping) -> str:
    return json.dumps([record.get(name) for name in _MEASURED], sort_keys=True)
