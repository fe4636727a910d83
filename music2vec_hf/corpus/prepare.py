"""A folder of audio, or a manifest, to a corpus of clips in Parquet shards: row 2 of the data's way.

A shard is written whole by one task, in `OUT/.unfinished`, and outlives a kill. When all are there they are published.
Nothing depends on time or on the number of processes: the corpus is always the same bytes.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.listing import HUB_ID, Listing, Track, list_source
from music2vec_hf.audio.reading import UNFINISHED, AudioReader
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.files import hold_lock, read_json, write_json
from music2vec_hf.corpus.clips import STORES
from music2vec_hf.corpus.publishing import publish
from music2vec_hf.corpus.shards import Shard, cut_shards, write_shards, write_shards_by_ray

BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h of audio [{elapsed}<{remaining}{postfix}]"
# No music is stored in fewer bits a second: a header that states more seconds than that states nothing.
MIN_BIT_RATE = 500.0


def sample_tracks(listing: Listing, hours: float, seed: int, progress: bool = True) -> Listing:
    """Choose tracks at random until they last `hours`, by the lengths that their headers state.

    Chosen are whole tracks; whole artists where the manifest has a column `artist_id`, so that no artist is on both
    sides. The order of the choice depends on the seed and on the names (track_id, artist_id) alone: the choice is the
    same on every machine, and with the same seed fewer hours are a part of more hours. A file that states no length,
    or cannot be opened, may be chosen but counts as 0 hours.

    Args:
        hours (`float`): at least how much; the last track, or artist, may go beyond.

    Returns:
        `Listing`: the chosen tracks in the order of `listing`; `not_sampled` says how many were not.

    Raises:
        ValueError: if the tracks last less than `hours`.
    """
    groups: dict[str, list[int]] = {}
    for index, track in enumerate(listing.tracks):
        artist = track.metadata.get("artist_id")
        group = f"track {track.track_id}" if artist is None or artist == "" else f"artist {artist}"
        groups.setdefault(group, []).append(index)
    chosen: list[int] = []
    found = 0.0
    with tqdm(desc="choosing tracks: ", disable=not progress, total=hours, bar_format=BAR) as bar:
        for group in sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
            for index in groups[group]:
                stated = _stated_hours(listing.tracks[index])
                found += stated
                bar.update(stated)
            chosen += groups[group]
            if found >= hours:
                break
    if found < hours:
        raise ValueError(
            f"The {len(chosen)} tracks last {found:.2f} h by their headers, fewer than the {hours:g} hours asked for; "
            "ask for fewer, or leave `hours` out to take all."
        )
    tracks = [listing.tracks[index] for index in sorted(chosen)]
    return replace(listing, tracks=tracks, not_sampled=len(listing.tracks) - len(tracks))


def _stated_hours(track: Track) -> float:
    try:
        with AudioReader(track.path, name=track.source) as reader:
            seconds = reader.num_samples / SAMPLING_RATE
    except AudioError:
        # Preparing it gives the reason for its rejection.
        return 0.0
    return seconds / 3600 if seconds <= track.num_bytes * 8 / MIN_BIT_RATE else 0.0


# ---- from a source to a corpus ----

# 3 cut shards by the bytes of their clips, else it is the same.
FORMAT_VERSION, SAME_CLIPS = 4, (3, 4)
WORK = UNFINISHED[0]
ENGINES = {"processes": write_shards, "ray": write_shards_by_ray}


@dataclass(frozen=True)
class PrepareSettings:
    """How a corpus is prepared.

    Args:
        clip_seconds (`float`): length of a clip. The remainder of a track is a clip if it is long enough.
        min_seconds (`float`): shortest clip, and shortest track.
        shard_megabytes (`float`): a shard ends after the track with which the files of its tracks weigh so much; a
            track is in one shard, however long it is.
        store (`str`): how the samples of a clip are stored: "flac", or "wav", which is larger and decodes faster.
        hours (`float`, *optional*): take so many hours of tracks at random instead of all; see [`sample_tracks`].
        seed (`int`, *optional*): of that choice; 0 by default.
        shard (`tuple[int, int]`, *optional*): `(i, n)`: write every n-th shard from the i-th on, counted from 0, and
            publish nothing; [`merge_corpus`] does when all are there. Such parts may run at the same time, on several
            machines.
        engine (`str`): what writes the shards: `"processes"` of this machine, or `"ray"`; see [`write_shards_by_ray`].
        file_timeout (`float`): seconds, and one more for each 50 kB, after which a file is given up and rejected as
            "too slow"; 0 is never. Only where a process of its own decodes it, thus not with a `num_proc` of 1.
    """

    clip_seconds: float = 30.0
    min_seconds: float = 2.0
    num_proc: int = 1
    shard_megabytes: float = 500.0
    store: str = "flac"
    hours: float | None = None
    seed: int | None = None
    shard: tuple[int, int] | None = None
    engine: str = "processes"
    file_timeout: float = 600.0

    def __post_init__(self):
        if not (0 < self.min_seconds <= self.clip_seconds and self.num_proc >= 1 and self.shard_megabytes > 0):
            names = ("min_seconds", "clip_seconds", "num_proc", "shard_megabytes")
            raise ValueError(
                "`prepare_corpus` needs 0 < min_seconds <= clip_seconds, num_proc >= 1 and shard_megabytes > 0, got "
                f"{', '.join(f'{name} {getattr(self, name)}' for name in names)}."
            )
        if self.hours is not None and not 0 < self.hours < math.inf:
            raise ValueError(f"`hours` is {self.hours}; give a number above 0, or leave it out to take all tracks.")
        if self.hours is None and self.seed is not None:
            raise ValueError(f"`seed` is {self.seed} but `hours` is not given, of which it chooses the tracks.")
        if not 0 <= self.file_timeout < math.inf:
            raise ValueError(f"`file_timeout` is {self.file_timeout}; give a number of seconds, or 0 for no limit.")
        for name, known in (("engine", ENGINES), ("store", STORES)):
            if getattr(self, name) not in known:
                raise ValueError(f"There is no {name} '{getattr(self, name)}'; use one of {', '.join(known)}.")
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise ValueError(f"`shard` is {self.shard[0]}/{self.shard[1]}; i counts from 0 to n - 1, as in 0/2, 1/2.")


def prepare_corpus(
    source: str | os.PathLike,
    out: str | os.PathLike,
    clip_seconds: float = 30.0,
    min_seconds: float = 2.0,
    num_proc: int = 1,
    progress: bool = True,
    **settings,
) -> dict:
    """Turn audio files into a corpus that pretraining reads and that loads with plain `datasets`.

    `out` gets `data/<split>-00000-of-0000n.parquet`, `rejects.csv` (`path,reason`), `README.md` (data set card) and,
    last, `corpus.json`: a corpus without it is incomplete. A run that was killed goes on after its last whole shard
    when it is started again, and ends with the same bytes; so does any `num_proc`, and so do parts that are merged.
    With `num_proc` above 1 a script must call this below `if __name__ == "__main__":`.

    Args:
        source: a folder (searched recursively), a CSV/TSV/JSONL manifest with a column `file_name`, `path` or `file`,
            a folder with one such manifest at its top; or a data set: a folder or glob of Parquet files or of .tar
            archives, or the id of one on the Hub, `user/name` or `user/name:config`. Other columns of a manifest or
            data set come along; `split` decides the shards, `track_id` replaces ours.
        out: an absent or empty folder, or a corpus begun with the same settings.
        clip_seconds, min_seconds (`float`), num_proc (`int`), settings: of [`PrepareSettings`].
        progress (`bool`): show a bar, in hours of audio.

    Returns:
        `dict`: the content of `corpus.json`: hours, clips, tracks, splits, rejects, settings, versions. For a part
        `part` and `parts` (i and n), `tracks`, `clips`, `hours`, `rejected_files`, `settings`.

    Raises:
        ValueError: if a setting makes no sense, nothing is found, no file can be used, `out` holds something else, or
            another run is writing into it.
        TypeError: if there is no such setting.
    """
    names = [field.name for field in fields(PrepareSettings)]
    unknown = sorted(set(settings) - set(names))
    if unknown:
        raise TypeError(f"`prepare_corpus` has no setting {unknown[0]!r}; it has {', '.join(names)}, progress.")
    chosen = PrepareSettings(clip_seconds, min_seconds, num_proc, **settings)
    out = Path(out)
    listing, plan = _list(source, vars(chosen), progress)
    finished = _read_finished(out, plan)
    if finished is not None:
        return finished
    index, count = chosen.shard or (0, 1)
    with _only_run(out, chosen.shard, partial(_begin, out, source, plan, chosen.shard and count)):
        shards = cut_shards(out / WORK, listing, plan, chosen.file_timeout)
        if not (out / "data").exists():  # else all are there, and some may have moved already
            _write_missing(shards[index::count], chosen, progress)
        if chosen.shard is None:
            return publish(source, out, plan, listing, shards)
    results = [result for shard in shards[index::count] for result in shard.results]
    return {
        "part": index,
        "parts": count,
        "tracks": len(results),
        "clips": sum(result["clips"] for result in results),
        "hours": round(sum(result["seconds"] for result in results) / 3600, 6),
        "rejected_files": sum(result["rejected_file"] for result in results),
        "settings": plan,
    }


def merge_corpus(out: str | os.PathLike, progress: bool = True) -> dict:
    """Publish what `prepare_corpus(..., shard=(i, n))` wrote into `out`: the corpus of a single run.

    It checks first that all shards are there, whole, and of what the source holds now, which must still be where it
    was. A merge that was killed goes on when it is started again.

    Raises:
        ValueError: if a shard is missing or damaged, the source has changed, nothing can be used, or another run is
            writing into `out`.
    """
    out = Path(out)
    if not out.is_dir():
        raise ValueError(f"{out} is not a folder; give the one that `music2vec prepare SOURCE OUT --shard i/n` wrote.")
    finished = _read_finished(out, {})
    if finished is not None:
        return finished
    begun = _read_begun(out)
    count = begun.get("parts")
    if not count:
        raise ValueError(
            f"{out} holds no parts to merge; make them with `music2vec prepare SOURCE {out} --shard i/n`."
        )
    listing, plan = _list(begun["source"], begun["plan"], progress)
    with _only_run(out, None, partial(_begin, out, begun["source"], plan, None)):
        shards = cut_shards(out / WORK, listing, plan)
        missing = [number for number, shard in enumerate(shards) if not shard.is_whole]
        if missing and not (out / "data").exists():
            parts = sorted({number % count for number in missing})
            shown = ", ".join(f"--shard {part}/{count}" for part in parts[:8])
            raise ValueError(
                f"{out} lacks {len(parts)} of {count} parts ({len(missing)} of {len(shards)} shards); run "
                f"`music2vec prepare` with {shown}{f' and {len(parts) - 8} more' if len(parts) > 8 else ''} first."
            )
        return publish(begun["source"], out, plan, listing, shards)


def parse_shard(text: str) -> tuple[int, int]:
    """`i/n` as `(i, n)`; ValueError if it is not two integers with 0 <= i < n."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise ValueError(f"`shard` is {text!r}; give i/n, two integers such as 0/4.")
    return PrepareSettings(shard=(int(index), int(count))).shard


def _list(source: str | os.PathLike, settings: dict, progress: bool) -> tuple[Listing, dict]:
    """What is to be prepared, and the plan: the settings that decide the bytes, and what they are applied to."""
    listing = list_source(source)
    hours = settings["hours"]
    if hours is not None:
        listing = sample_tracks(listing, hours, settings["seed"] or 0, progress)
    plan = {
        "format_version": FORMAT_VERSION,
        **{name: float(settings[name]) for name in ("clip_seconds", "min_seconds", "shard_megabytes")},
        "store": settings["store"],
        "hours": None if hours is None else float(hours),
        "seed": None if hours is None else settings["seed"] or 0,
        "files": len(listing.tracks) + len(listing.rejects),
        "source_digest": listing.digest(),
    }
    return listing, plan


def _read_finished(out: Path, plan: dict) -> dict | None:
    """The summary of a finished corpus in `out`, or None; ValueError if it was made with another plan."""
    if not (out / "corpus.json").is_file():
        return None
    summary = read_json(out / "corpus.json", "remove the corpus and prepare it anew")
    before = {"store": "flac", **summary.get("settings", {})}
    if before.get("format_version") in SAME_CLIPS:
        before["format_version"] = FORMAT_VERSION
    if "store" in plan and plan["store"] in (before["store"], summary.get("converted")):
        before["store"] = plan["store"]
    _check_same(out, "was made with", before, plan)
    shutil.rmtree(out / WORK, ignore_errors=True)  # of a run that was killed after its last step
    return summary


def _check_same(out: Path, verb: str, before: dict, now: dict) -> None:
    """Raise ValueError for the first setting that is not what it was."""
    for key, value in now.items():
        if before.get(key) != value:
            raise ValueError(
                f"{out} {verb} {key} {before.get(key)}, now it is {value}; take the same, another folder, "
                "or remove this one."
            )


def _read_begun(out: Path) -> dict:
    """`plan`, `source` and `parts`, their number if there are any, of the corpus that was begun; empty if none was."""
    path = out / WORK / "plan.json"
    return read_json(path, f"remove {out} and begin anew") if path.exists() else {}


def _begin(out: Path, source: str | os.PathLike, plan: dict, parts: int | None) -> None:
    """Note on disk what is made of what, or check that it is what was begun."""
    begun = _read_begun(out) or {"plan": plan, "parts": None}
    _check_same(out, "was begun with", begun["plan"], plan)
    if parts and begun["parts"]:
        _check_same(out, "was begun with", {"number of shards": begun["parts"]}, {"number of shards": parts})
    text = os.fspath(source)
    on_hub = HUB_ID.fullmatch(text) is not None and not os.path.exists(text)
    begun |= {"parts": parts or begun["parts"], "source": text if on_hub else os.path.abspath(text)}
    write_json(out / WORK / "plan.json", begun)


@contextmanager
def _only_run(out: Path, shard: tuple[int, int] | None, begin: Callable[[], None]) -> Iterator[None]:
    """Make the folder `out`, and keep others from writing into it; but parts may write beside other parts."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder for the corpus.")
    others = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if set(UNFINISHED[1:]) & set(others):
        raise ValueError(f"{out} was begun by another version, whose work cannot go on; remove it and begin anew.")
    if others and WORK not in others:
        raise ValueError(f"{out} holds something else than a corpus ({others[0]}); give an absent or empty folder.")
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    busy = f"Another `prepare` or `merge` is writing into {out}; wait until it has ended, or take another folder."
    with ExitStack() as held:
        with hold_lock(work / "starting.lock", busy, wait=True), ExitStack() as briefly:
            (briefly if shard else held).enter_context(hold_lock(work / "all.lock", busy))
            if shard:
                name = f"{shard[0]}/{shard[1]}"
                busy = f"Another process prepares part {name} of {out}; wait until it has ended, or take another part."
                held.enter_context(hold_lock(work / f"part-{shard[0]:05d}.lock", busy))
            else:
                for part in sorted(work.glob("part-*.lock")):
                    briefly.enter_context(hold_lock(part, busy))
            begin()
        yield


def _write_missing(shards: list[Shard], settings: PrepareSettings, progress: bool) -> None:
    """Write the shards that are not there yet, and show how many hours of audio they are."""
    missing = [shard for shard in shards if not shard.is_whole]
    tracks = [track for shard in missing for track in shard.tracks]
    all_bytes, done_bytes, number, rejects = sum(track.num_bytes for track in tracks), 0, 0, 0
    with tqdm(disable=not progress, total=0.0, bar_format=BAR) as bar:

        def report(track: Track, result: dict) -> None:
            nonlocal done_bytes, number, rejects
            done_bytes, number = done_bytes + track.num_bytes, number + 1
            rejects += len(result["rejects"])
            bar.set_postfix_str(f"{number}/{len(tracks)} files, {rejects} rejects", refresh=False)
            hours = result["decoded_seconds"] / 3600
            # How many hours the rest holds is known only from its bytes.
            bar.total = (bar.n + hours) * all_bytes / done_bytes if done_bytes else 0.0
            bar.update(hours)

        ENGINES[settings.engine](missing, settings.num_proc, report)
