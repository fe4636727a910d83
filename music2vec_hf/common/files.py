"""Files and folders that are either whole or not there, new folders, locks between processes, printable names; and the
files that keep scores and runs, each read in one place: `results.json`, `metrics.jsonl` and `run.json`.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """Text that UTF-8 can hold: bytes of a file name that are not UTF-8 become `\\xe9` and the like."""

    def written(match: re.Match) -> str:
        number = ord(match[0])
        return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else f"\\u{number:04x}"

    return _SURROGATE.sub(written, text)


def storable(value):
    """A value of JSON with all its texts as [`printable`] gives them."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return list(map(storable, value))
    return {storable(key): storable(one) for key, one in value.items()} if isinstance(value, dict) else value


def short_name(name: str, limit: int) -> str:
    """A file's name, or where it has more bytes than `limit` its first letters and its hash: disks take 255 bytes."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= limit else f"{name[:40]}-{hashlib.sha256(encoded).hexdigest()[:16]}"


@contextmanager
def written_aside(target: str | os.PathLike) -> Iterator[Path]:
    """A path beside `target`, for a file or a folder, that becomes `target` when the block ends without an error.

    After an error it is removed, and `target` is as it was. The folders above `target` are made. A folder can replace
    an absent or empty folder only.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{short_name(target.name, 200)}.{os.getpid()}.unfinished")
    try:
        yield aside
        os.replace(aside, target)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


def write_text(target: str | os.PathLike, text: str) -> Path:
    """Write a text file in UTF-8, whole or not at all; names that are not UTF-8 are escaped. Returns its path."""
    with written_aside(target) as aside:
        aside.write_text(printable(text), encoding="utf-8")
    return Path(target)


def write_json(target: str | os.PathLike, content: object, indent: int | None = 2) -> Path:
    """Write a JSON file, whole or not at all. Returns its path."""
    return write_text(target, json.dumps(content, indent=indent) + "\n")


def read_json(path: str | os.PathLike, advice: str = "save or copy it again") -> dict:
    """The object that a JSON file holds. Raises ValueError if it is damaged, with `advice`, what to do about that."""
    content = parse_json(path, advice)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object; {advice}.")
    return content


def parse_json(path: str | os.PathLike, advice: str):
    """What a JSON file holds, of whatever kind. Raises ValueError, with the advice, if it is not JSON in UTF-8."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); {advice}.") from error


def write_npz(target: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write arrays to an npz file, whole or not at all. Returns its path."""
    with written_aside(target) as aside, open(aside, "wb") as file:
        np.savez(file, **arrays)
    return Path(target)


def check_new_folder(out: str | os.PathLike, what: str = "the result") -> Path:
    """The path of a folder that is absent or empty; else ValueError, with `what` it is for: "the exported model"."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"'{out}' exists and is not empty. Name a new folder for {what}.")
    return out


@contextmanager
def hold_lock(path: str | os.PathLike, busy: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock between processes during the block; the operating system frees it when a process dies.

    Raises ValueError with `busy` (who else holds it and what to do) if another process holds it and `wait` is false.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(busy) from None
    try:
        yield
    finally:
        lock.release()


# ---- scores and runs ----

FORMAT_VERSION = 1
RESULTS, METRICS, RUN = "results.json", "metrics.jsonl", "run.json"
PARTS = ("records", "averages", "comparisons")  # lists in results.json


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
    needed = {"source", "source_kind", "task", "metric", "value"}
    if not all(isinstance(record, dict) and needed <= record.keys() for record in content["records"]):
        raise ValueError(f"'{path}' has a record without one of {', '.join(sorted(needed))}; {advice}.")
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
