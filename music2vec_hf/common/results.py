"""The files that keep scores and runs, each read in one place: `results.json`, `metrics.jsonl` and `run.json`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from music2vec_hf.common.files import parse_json, read_json, write_json

FORMAT_VERSION = 1
RESULTS, METRICS, RUN = "results.json", "metrics.jsonl", "run.json"


def read_results(path: str | os.PathLike) -> dict:
    """Read a `results.json`, given itself or its folder.

    Returns:
        `dict`: `records`, one per source, task and metric; `averages`, `comparisons` and what else the run wrote.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no file of ours, or of a later format.
    """
    path = Path(path)
    path = path / RESULTS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"There are no results at '{path}'; `music2vec probe` writes them.")
    advice = "write it again with `music2vec probe`"
    content = parse_json(path, advice)
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION or "records" not in content:
        raise ValueError(f"'{path}' is no results file of format {FORMAT_VERSION}; {advice}.")
    return content


def write_results(folder: str | os.PathLike, content: Mapping) -> Path:
    """Write `results.json` into a folder, whole or not at all; the format's number is added. Returns its path."""
    return write_json(Path(folder) / RESULTS, with_format(content), indent=1)


def with_format(content: Mapping) -> dict:
    """The content of a results file with the number of its format."""
    return {"format_version": FORMAT_VERSION, **content}


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Read a `metrics.jsonl`, given itself or its folder; none yet is an empty one.

    Returns:
        `list[dict]`: one record per line, with `step`. A last line that was cut when the run was killed is left out.

    Raises:
        ValueError: if another line is no record.
    """
    path = Path(path)
    path = path / METRICS if path.is_dir() else path
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"Line {number} of '{path}' is not JSON ({error}); remove that line.") from error
        if not isinstance(record, dict):
            raise ValueError(f"Line {number} of '{path}' is {line[:40]!r}, no record; remove that line.")
        if "step" in record:
            records.append(record)
    return records


def read_run(folder: str | os.PathLike) -> dict | None:
    """The `run.json` of a pretraining run's folder, None if there is none; ValueError if it is damaged."""
    path = Path(folder) / RUN
    return read_json(path) if path.is_file() else None
