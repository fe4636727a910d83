"""Whose OUT is: a corpus of these settings or something else, and one run at a time.

The locks are those of the operating system: they end with the process that holds them, so none is ever left over.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from music2vec_hf.corpus.clips import write_atomically

try:
    import fcntl
except ImportError:  # Windows: runs are not kept apart
    fcntl = None

STAGING = ".staging"
LOCK, CLAIM_LOCK = ".prepare.lock", ".claim.lock"

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def lock_out(out: Path, shared: bool = False) -> Iterator[None]:
    """Make the folder `out`, and keep other runs from writing into it for as long as the context lasts.

    Args:
        out: the folder of the corpus.
        shared (`bool`): let others in who share too: the parts of one corpus.

    Raises:
        ValueError: if `out` is a file, or another run is writing into it.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder for the corpus.")
    out.mkdir(parents=True, exist_ok=True)
    busy = f"Another `prepare` or `merge` is writing into {out}; wait until it has ended, or take another folder."
    with hold_lock(out / LOCK, busy, shared):
        yield


@contextlib.contextmanager
def hold_lock(path: Path, busy: str, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock at `path`; the last who lets go removes the file.

    Args:
        path: the lock file; its folder must exist.
        busy (`str`): what to say if another process holds it.
        shared (`bool`): hold it together with others who share.
        wait (`bool`): wait for it instead.

    Raises:
        ValueError: `busy`, if another process holds the lock.
    """
    if fcntl is None:
        yield
        return
    file = _take_lock(path, busy, shared, wait)
    try:
        yield
    finally:
        # Not unlocked but for those who share it, and not locked anew by somebody in between.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                path.unlink()
        file.close()


def _take_lock(path: Path, busy: str, shared: bool, wait: bool) -> BinaryIO:
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        file = open(path, "ab")
        try:
            fcntl.flock(file, kind)
        except BlockingIOError:
            file.close()
            raise ValueError(busy) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): see to it that only one run writes there.", path, error)
            return file
        # Whoever held it before may have removed the file.
        if _is_at(file, path):
            return file
        file.close()


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def read_finished(out: Path, plan: dict) -> dict | None:
    """The summary of a finished corpus in `out`, or None; ValueError if it was made with another plan."""
    corpus_json = out / "corpus.json"
    if not corpus_json.exists():
        return None
    summary = json.loads(corpus_json.read_text(encoding="utf-8"))
    check_same(out, "was made with", summary.get("settings", {}), plan)
    return summary


def claim_out(out: Path, plan: dict) -> dict | None:
    """Make the locked folder `out` ours.

    Args:
        out: the folder of the corpus; it exists.
        plan (`dict`): the settings, and what is listed.

    Returns:
        `dict`: the summary, if the corpus is there already; else None.

    Raises:
        ValueError: if `out` holds something else, or a corpus with another plan.
    """
    plan_json = out / STAGING / "plan.json"
    finished = read_finished(out, plan)
    if finished is not None:
        shutil.rmtree(out / STAGING, ignore_errors=True)
        return finished
    if plan_json.exists():
        check_same(out, "was begun with", json.loads(plan_json.read_text(encoding="utf-8")), plan)
        return None
    others = sorted(path.name for path in out.iterdir() if path.name not in (STAGING, LOCK, CLAIM_LOCK))
    if others:
        raise ValueError(f"{out} holds something else than a corpus ({others[0]}); give an absent or empty folder.")
    # Without a plan, what is staged is of unknown settings.
    shutil.rmtree(plan_json.parent, ignore_errors=True)
    plan_json.parent.mkdir(parents=True)
    write_atomically(plan_json, json.dumps(plan))
    return None


def check_same(out: Path, verb: str, before: dict, now: dict) -> None:
    """Raise ValueError for the first setting that is not what it was."""
    for key, value in now.items():
        if before.get(key) != value:
            raise ValueError(
                f"{out} {verb} {key} {before.get(key)}, now it is {value}; take the same, another folder, "
                "or remove this one."
            )
