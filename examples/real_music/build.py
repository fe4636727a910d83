"""Build the corpus of game soundtracks: packages -> music, manifest, attribution, pretraining corpus, probing clips.

python examples/real_music/build.py OUT
"""

import argparse
import csv
import hashlib
import io
import math
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from packages import COPYRIGHT, Album, fetch_packages, read_albums, read_stanzas, stanza_of, unpack
from tqdm import tqdm

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.reading import AudioReader, encode_flac, find_audio_files, read_audio
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.files import hold_lock, read_json, write_json, write_text, written_aside
from music2vec_hf.corpus.prepare import prepare_corpus

MIN_TRACK_SECONDS, MIN_SECONDS = 30.0, 5.0
TEST_SHARE, VALIDATION_SHARE = 0.25, 0.15
CLIP_SECONDS, EDGE_SECONDS = 10.0, 5.0
MAX_CLIPS = {"train": 40, "validation": 10, "test": 15}  # of an album
UNKNOWN = ("", "<unknown>", "unknown", "unknown artist")
MANIFEST = ("path", "album", "track_id", "title", "artist", "licence", "split", "list", "seconds")
CLIPS = ("path", "split", "track_id", "album", "artist", "list")


@dataclass(frozen=True)
class Track:
    """One row of the manifest; `path` is relative to OUT, `track_id` is album/track."""

    path: str
    album: str
    track_id: str
    title: str
    artist: str
    licence: str
    split: str
    list: str
    seconds: float


def split_tracks(album: str, tracks: Sequence[str]) -> dict[str, str]:
    """Split of each track, by names alone: in the order of a hash 25 % test, 15 % validation (both rounded up)."""
    order = sorted(tracks, key=lambda track: hashlib.sha256(f"{album}/{track}".encode()).hexdigest())
    test = math.ceil(TEST_SHARE * len(order))
    held = test + math.ceil(VALIDATION_SHARE * len(order))
    return {
        track: "test" if number < test else "validation" if number < held else "train"
        for number, track in enumerate(order)
    }


def build(out: Path, albums: Sequence[Album], mirrors: Sequence[str], packages: Path, num_proc: int = 1) -> dict:
    """Make everything that is not there yet. Returns counts and hours, which `OUT/real_music.json` keeps.

    Raises:
        ValueError: if a package is not that of the list, OUT holds other albums, or another run is writing into it.
        OSError: if packages cannot be fetched.
    """
    done, made_of = out / "real_music.json", {album.name: album.sha256 for album in albums}
    if done.is_file():
        summary = read_json(done, "remove it and run this again")
        if summary["packages"] != made_of:
            raise ValueError(f"{out} was built from {', '.join(summary['packages'])}; name another folder for others.")
        return summary
    out.mkdir(parents=True, exist_ok=True)
    with hold_lock(out / ".lock", f"Another run is building {out}; wait for it, or name another folder."):
        for place in (".", "music", "tasks/real-music"):
            for rest in (out / place).glob(".*.unfinished"):  # of runs that were killed
                shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
        missing = [album for album in albums if not (out / "music" / album.name).is_dir()]
        found = fetch_packages(missing, packages, mirrors) if missing else {}
        for album in tqdm(missing, desc="unpacking"):
            with written_aside(out / "music" / album.name) as folder:
                _take_music(found[album.name], album, folder)
        tracks = [track for album in tqdm(albums, desc="manifest") for track in list_album(album, out)]
        write_table(out / "manifest.csv", MANIFEST, map(vars, tracks))
        write_text(out / "ATTRIBUTION.md", attribution(albums, tracks))
        chosen = [track for track in tracks if track.list == track.split == "train"]
        write_table(out / "pretraining.csv", MANIFEST, map(vars, chosen))
        corpus = prepare_corpus(out / "pretraining.csv", out / "corpus", min_seconds=MIN_SECONDS, num_proc=num_proc)
        clips = write_clips(tracks, out)
        summary = {
            "packages": made_of,
            "tracks": len(tracks),
            "hours": round(sum(track.seconds for track in tracks) / 3600, 2),
            "corpus": {"tracks": len(chosen), "hours": round(corpus["hours"], 2)},
            "clips": {f"{kind} {split}": number for (kind, split), number in clips.items()},
        }
        write_json(done, summary)
    return summary


def _take_music(package: Path, album: Album, folder: Path) -> None:
    """Unpack an album, mix its stems, and leave out what is shorter than a track."""
    unpack(package, album, folder)
    if not (folder / COPYRIGHT).is_file():
        raise ValueError(f"{package} has no copyright file; without one its music cannot be used. Fetch it again.")
    if album.stems:
        for song in sorted(path for path in folder.iterdir() if path.is_dir()):
            parts = [read_audio(path) for path in find_audio_files(song)]
            mix = np.sum([np.pad(one, (0, max(map(len, parts)) - len(one))) for one in parts], axis=0)
            (folder / f"{song.name}.flac").write_bytes(encode_flac(mix / max(1.0, np.abs(mix).max())))
            shutil.rmtree(song)
    for path in find_audio_files(folder):
        if _seconds(path) < MIN_TRACK_SECONDS:
            path.unlink()


def _seconds(path: Path) -> float:
    with AudioReader(path) as reader:
        return reader.num_samples / SAMPLING_RATE


def list_album(album: Album, out: Path) -> list[Track]:
    """The tracks of an unpacked album, in the order of their names, with what tags and copyright file say of them."""
    folder = out / "music" / album.name
    stanzas = read_stanzas((folder / COPYRIGHT).read_text(encoding="utf-8", errors="replace"))
    paths = {path.relative_to(folder).with_suffix("").as_posix(): path for path in find_audio_files(folder)}
    splits, tracks = split_tracks(album.name, list(paths)), []
    for name, path in sorted(paths.items()):
        inside = path.relative_to(folder).as_posix()
        stanza = stanza_of(f"{album.source}/{inside}", stanzas)
        holders = stanza.holders if stanza and "*" not in stanza.patterns else ""  # of `*`: of the whole game
        with soundfile.SoundFile(path) as file:
            tags = {key: " ".join(value.split()) for key, value in file.copy_metadata().items()}
        title, artist = ("" if tags.get(key, "").lower() in UNKNOWN else tags[key] for key in ("title", "artist"))
        tracks.append(
            Track(
                path=path.relative_to(out).as_posix(),
                album=album.name,
                track_id=f"{album.name}/{name}",
                title=title or name.rsplit("/", 1)[-1],
                artist=artist or holders or album.artist,
                licence=stanza.licence if stanza else album.licence,
                split=splits[name],
                list=album.list,
                seconds=round(_seconds(path), 2),
            )
        )
    return tracks


def attribution(albums: Sequence[Album], tracks: Sequence[Track]) -> str:
    """ATTRIBUTION.md: who made every track, and under which licence, by album."""
    lines = [
        "# Attribution",
        "",
        "Music of free games, as their Debian packages hold it. Titles and artists are those of the files' tags, else",
        "artists are those of the package's copyright file or of the game. Licences are those of the copyright file,",
        "which lies beside the tracks.",
    ]
    for album in albums:
        about = f"{album.homepage}; `music/{album.name}/{COPYRIGHT}`"
        lines += ["", f"## {album.name} {album.version}", "", about, ""]
        lines += ["| title | artist | licence | file |", "| --- | --- | --- | --- |"]
        for one in (track for track in tracks if track.album == album.name):
            cells = (one.title, one.artist, one.licence, f"`{one.track_id.removeprefix(f'{album.name}/')}`")
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def place_clips(tracks: Sequence[Track], wanted: int) -> dict[Track, list[float]]:
    """Where the clips of some tracks begin, in seconds: as equal a number in each track as its length allows.

    A track without its ends is cut into as many equal parts as it has clips; each lies in the middle of its part.
    """
    room = {track: int((track.seconds - 2 * EDGE_SECONDS) // CLIP_SECONDS) for track in tracks}
    counts = Counter()
    while counts.total() < min(wanted, sum(room.values())):
        for track in tracks:
            if counts[track] < room[track] and counts.total() < wanted:
                counts[track] += 1
    places = {}
    for track, number in counts.items():
        part = (track.seconds - 2 * EDGE_SECONDS) / number
        places[track] = [EDGE_SECONDS + part * (index + 0.5) - CLIP_SECONDS / 2 for index in range(number)]
    return places


def write_clips(tracks: Sequence[Track], out: Path) -> Counter:
    """Write the data of the tasks `real`: clips by album and their table. Returns (list, split) -> number of clips."""
    root, rows, by_album = out / "tasks" / "real-music", [], defaultdict(list)
    for track in sorted(tracks, key=lambda track: hashlib.sha256(track.track_id.encode()).hexdigest()):
        by_album[track.album].append(track)
    for album, of_album in tqdm(sorted(by_album.items()), desc="clips of albums"):
        places = {}
        for split, wanted in MAX_CLIPS.items():
            places |= place_clips([track for track in of_album if track.split == split], wanted)
        clips = [(track, start) for track, starts in places.items() for start in starts]
        names = [f"{number:03d}.flac" for number in range(len(clips))]
        if not (root / album).is_dir():
            with written_aside(root / album) as folder:
                folder.mkdir(parents=True)
                for name, (track, start) in zip(names, clips, strict=True):
                    (folder / name).write_bytes(encode_flac(read_audio(out / track.path, start, CLIP_SECONDS)))
        rows += [{**vars(track), "path": f"{album}/{name}"} for name, (track, _) in zip(names, clips, strict=True)]
    write_table(root / "clips.csv", CLIPS, rows)
    return Counter((row["list"], row["split"]) for row in rows)


def write_table(path: Path, columns: Sequence[str], rows) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the result; a run that was killed goes on")
    argument = partial(parser.add_argument, default=None)
    argument("--albums", nargs="+", metavar="NAME", help="of these packages only (default: all of the list)")
    argument("--packages", type=Path, metavar="FOLDER", help="where packages lie or are put (default: OUT/packages)")
    argument("--list", type=Path, metavar="FILE", help="list of versions (default: albums.yaml beside this file)")
    argument("--num-proc", type=int, metavar="N", help="processes that prepare the corpus (default: 1)")
    given = parser.parse_args()
    albums, mirrors = read_albums(given.list or Path(__file__).with_name("albums.yaml"))
    names = given.albums or [album.name for album in albums]
    unknown = sorted(set(names) - {album.name for album in albums})
    if unknown:
        parser.error(f"there is no album {unknown[0]}; the list has {', '.join(album.name for album in albums)}.")
    albums = [album for album in albums if album.name in names]
    try:
        summary = build(given.out, albums, mirrors, given.packages or given.out / "packages", given.num_proc or 1)
    except (OSError, ValueError, AudioError) as error:
        sys.exit(f"error: {error}")
    print(f"{given.out}: {summary['tracks']} tracks, {summary['hours']} h, of {len(summary['packages'])} albums")
    print(f"corpus: {summary['corpus']['tracks']} tracks, {summary['corpus']['hours']} h; clips: {summary['clips']}")


if __name__ == "__main__":
    main()
