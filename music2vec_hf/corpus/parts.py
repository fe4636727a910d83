"""A corpus prepared in parts, each by a process of its own (`--shard i/n`): who does what, and whether all is there.

A part stages every n-th track of the listing where a single run would, and leaves a record. Joining the staged tracks
is then what a single run does: the same bytes need no proof of their own.
"""

import json
import os
from pathlib import Path

from music2vec_hf.corpus.claiming import STAGING, check_same
from music2vec_hf.corpus.clips import read_staged, write_atomically
from music2vec_hf.corpus.shards import closed_shards


def parse_shard(text: str) -> tuple[int, int]:
    """`i/n` as `(i, n)`.

    Raises:
        ValueError: if it is not two integers with 0 <= i < n.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise ValueError(f"`shard` is {text!r}; give i/n, two integers such as 0/4.")
    shard = (int(index), int(count))
    check_shard(shard)
    return shard


def check_shard(shard: tuple[int, int]) -> None:
    """Raise ValueError unless 0 <= i < n."""
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"`shard` is {index}/{count}; i counts from 0 to n - 1, as in 0/4, 1/4, 2/4, 3/4.")


def begin_parts(out: Path, source: str | os.PathLike, count: int) -> None:
    """Note on disk of how many parts, and of which source, the corpus in `out` is made.

    Raises:
        ValueError: if it was begun with another number of parts.
    """
    path = out / STAGING / "parts.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))["parts"]
        check_same(out, "was begun with", {"number of shards": before}, {"number of shards": count})
    (out / STAGING / "parts").mkdir(exist_ok=True)
    write_atomically(path, json.dumps({"parts": count, "source": os.path.abspath(source)}))


def part_file(out: Path, index: int) -> Path:
    """The record of a finished part."""
    return out / STAGING / "parts" / f"{index:05d}.json"


def forget_damaged(out: Path, stems: list[str], share: list[int]) -> None:
    """Let those of the tracks `share` be staged again whose staged files are not whole."""
    for track in damaged_tracks(out, stems, share):
        Path(stems[track] + ".json").unlink(missing_ok=True)


def damaged_tracks(out: Path, stems: list[str], share: list[int]) -> list[int]:
    """Those of the tracks `share` that are not staged, or not wholly, and in no closed shard yet."""
    closed = closed_shards(out / STAGING / "shards")
    first = closed[-1]["next_track"] if closed else 0
    return [track for track in share if track >= first and not _is_whole(stems[track])]


def _is_whole(stem: str) -> bool:
    try:
        result = read_staged(stem)
    except ValueError:
        return False
    clips = Path(stem + ".parquet")
    return result is not None and (
        not result["clips"] or (clips.exists() and clips.stat().st_size == result["staged_bytes"])
    )


def read_begun(out: Path) -> tuple[dict, dict]:
    """What the parts in `out` are parts of.

    Returns:
        the plan, and `{"parts": number, "source": path}`.

    Raises:
        ValueError: if `out` holds no parts.
    """
    plan, parts = out / STAGING / "plan.json", out / STAGING / "parts.json"
    if not (plan.exists() and parts.exists()):
        raise ValueError(
            f"{out} holds no parts to merge; make them with `music2vec prepare SOURCE {out} --shard i/n`."
        )
    return json.loads(plan.read_text(encoding="utf-8")), json.loads(parts.read_text(encoding="utf-8"))


def check_parts_finished(out: Path, plan: dict, count: int) -> None:
    """Check that every part has ended, and with the same settings and listing.

    Raises:
        ValueError: if one has not.
    """
    missing = [index for index in range(count) if not part_file(out, index).exists()]
    if missing:
        raise ValueError(
            f"{out} lacks {len(missing)} of {count} parts; run `music2vec prepare` with {_name(missing, count)} first."
        )
    for index in range(count):
        record = json.loads(part_file(out, index).read_text(encoding="utf-8"))
        check_same(out, f"has part {index}/{count} made with", record["settings"], plan)


def check_parts_whole(out: Path, stems: list[str], count: int) -> None:
    """Check that every track is staged and its clips are on disk.

    Raises:
        ValueError: if one is not.
    """
    damaged = damaged_tracks(out, stems, list(range(len(stems))))
    if damaged:
        parts = sorted({track % count for track in damaged})
        raise ValueError(
            f"{out} lacks the clips of {len(damaged)} of {len(stems)} tracks, or they are damaged; run "
            f"`music2vec prepare` with {_name(parts, count)} again."
        )


def _name(parts: list[int], count: int) -> str:
    shown = ", ".join(f"--shard {index}/{count}" for index in parts[:8])
    return shown + (f" and {len(parts) - 8} more" if len(parts) > 8 else "")
