"""What is to be embedded: audio files, folders, manifests and data sets, as one list of tracks."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from music2vec_hf.audio.containers import TABLE_SUFFIXES, PackedFile
from music2vec_hf.audio.decoding import AUDIO_SUFFIXES, AudioSource
from music2vec_hf.audio.listing import Track, list_source
from music2vec_hf.common.names import printable


@dataclass(frozen=True)
class InputTrack:
    """One track.

    Args:
        path (`str`): what the table calls it: the file's path, or its name in the data set.
        name (`str`): its path below the folder or data set that was named; never leaves it.
        source (`AudioSource`): to be opened.
        stamp (`str`): changes where the file does.
    """

    path: str
    name: str
    source: AudioSource | PackedFile
    stamp: str


@dataclass
class Inputs:
    """Tracks, and (path, reason) of what a manifest names in vain."""

    tracks: list[InputTrack]
    rejects: list[tuple[str, str]]


def is_one_file(item: str | os.PathLike) -> bool:
    """Whether this names one audio file, there or not, and no folder, manifest or data set."""
    path = Path(item)
    known = path.suffix.lower() in (".parquet", ".tar", *TABLE_SUFFIXES)
    return not path.is_dir() and (path.suffix.lower() in AUDIO_SUFFIXES or (path.is_file() and not known))


def list_inputs(inputs: Sequence[str | os.PathLike]) -> Inputs:
    """List all tracks of some inputs.

    Args:
        inputs: audio files; or what [`music2vec_hf.audio.listing.list_source`] takes: folders, manifests, Parquet
            files, archives, Hub ids; or corpora that `music2vec prepare` made, of which every clip is a track.

    Raises:
        ValueError: if there is nothing of a name, or no audio in it.
    """
    found = Inputs([], [])
    for item in map(os.fspath, inputs):
        if is_one_file(item):
            name = _inside(printable(os.path.basename(item)))
            found.tracks.append(InputTrack(printable(item), name, Path(item), _stamp(item)))
            continue
        listing = list_source(item)
        found.rejects += listing.rejects
        for track in sorted(listing.tracks, key=_place):
            packed = isinstance(track.path, PackedFile)
            path = track.source if packed else os.fspath(track.path)
            stamp = f"{_stamp(track.path.container)} {track.path}" if packed else _stamp(path)
            found.tracks.append(InputTrack(printable(path), _inside(track.source), track.path, stamp))
    return found


def _place(track: Track) -> tuple:
    """The order of rows in a data set; files stay in theirs."""
    file = track.path
    return (file.container, file.start, file.length) if isinstance(file, PackedFile) else ()


def _inside(name: str) -> str:
    """A relative path that leads nowhere but down."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part.strip("/") not in ("", ".", "..")]
    return "/".join(parts)


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "not there"
    return f"{status.st_size} {status.st_mtime_ns}"


__all__ = ["InputTrack", "Inputs", "is_one_file", "list_inputs"]
