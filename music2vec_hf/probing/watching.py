"""The report of pretraining runs that still go on, written again and again."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from music2vec_hf.common.files import METRICS, read_metrics, read_run
from music2vec_hf.probing.report import is_run, write_report

_SILENT_SECONDS = 3600.0


def watch_runs(
    inputs: Sequence[str | Path], output: str | Path, interval: float = 60.0, sleep: Callable = time.sleep
) -> Iterator[str]:
    """Write the report of [`write_report`] now and every `interval` seconds, until all runs among `inputs` are over.

    A run is over when its last record is of the last step that its `run.json` names, or when it has written none for
    an hour (it was stopped or killed). The page is written once more after that was seen.

    Args:
        interval (`float`): seconds between two pages, above 0.
        sleep (`Callable`): waits for so many seconds.

    Returns:
        `Iterator[str]`: after each page, how far the runs are, in one line.

    Raises:
        ValueError: if `interval` is not above 0, there is no run among `inputs`, or a log is damaged.
    """
    runs = [Path(path) for path in inputs if is_run(Path(path))]
    runs = [path if path.is_dir() else path.parent for path in runs]
    if interval <= 0:
        raise ValueError(f"`--watch` is {interval:g}. Give the seconds between two pages, above 0.")
    if not runs:
        raise ValueError(
            "There is no pretraining run to watch. Name the folder that `music2vec pretrain --output` writes, or "
            "leave out `--watch`."
        )
    going_on = True
    while going_on:
        states = [_state(run) for run in runs]  # before the page, which then holds the last record, too
        page = write_report(inputs, output)
        going_on = any(one for one, _ in states)
        yield f"{page}: {'; '.join(text for _, text in states)}"
        if going_on:
            sleep(interval)


def _state(run: Path) -> tuple[bool, str]:
    """Whether a run goes on, and how far it is."""
    records = read_metrics(run)
    step, last = records[-1]["step"] if records else 0, (read_run(run) or {}).get("max_steps")
    if last is None:  # a run of an earlier version: its model is written last
        over = (run / "config.json").is_file()
    else:
        over = step >= last
    log = run / METRICS
    written = (log if log.is_file() else run).stat().st_mtime
    silent = not over and time.time() - written > _SILENT_SECONDS
    how = "finished" if over else "no record for an hour: stopped?" if silent else "going on"
    return not over and not silent, f"{run.resolve().name} step {step}{f' of {last}' if last else ''}, {how}"
