"""Data sets of events: GTZAN-Rhythm, Ballroom, and folders of audio with files of beats, chords or a melody."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from music2vec_hf.audio.labels import SPLIT_NAMES, name_some
from music2vec_hf.audio.reading import find_audio_files
from music2vec_hf.common.events import NOT_SCORED, UNSCORED, chord_class, melody_classes
from music2vec_hf.common.files import read_json
from music2vec_hf.model.events_music2vec import class_segments
from music2vec_hf.probing.tasks.classes import read_gtzan, split_stems
from music2vec_hf.probing.tasks.declarations import NO_BENCHMARK, Example, Found, Task

OWN_DECODING = "published scores are of other splits, and of trackers with models of tempo and metre behind them."
# Copies of recordings, by the README of the annotations; the first of each pair is kept.
BALLROOM_COPIES = (
    *("Albums-Chrisanne2-12", "Albums-Fire-09", "Albums-Latin_Jam2-13", "Media-104705", "Albums-AnaBelen_Veneo-15"),
    *("Albums-Ballroom_Magic-18", "Albums-Latin_Jam-13", "Albums-Latin_Jam-14", "Albums-Latin_Jam-15"),
    *("Albums-Latin_Jam2-14", "Albums-Latin_Jam2-15", "Media-103414", "Media-103415"),
)
# Tracks that lie in fewer folders than this are split one by one.
MIN_FOLDERS = 10


def hashed_split(group: str) -> str:
    """The split of an album, or whatever is to stay together: by a hash of its name 65, 15 and 20 of a hundred."""
    place = int(hashlib.sha1(group.encode()).hexdigest(), 16) % 100
    return "train" if place < 65 else "validation" if place < 80 else "test"


def read_ballroom(task: Task, folder: Path) -> Found:
    """Read Ballroom: beats and downbeats of 698 excerpts of ballroom dances, 30 s each.

    Layout: `BallroomData/<dance>/<name>.wav` and `BallroomAnnotations/<name>.beats` (time, place in the bar), anywhere
    below the folder. The 13 copies that the README of the annotations names are left out. There is no official split:
    albums (`Albums-<album>-<number>`) and single tracks (`Media-<number>`) are split by a hash of their names.
    """
    found = _pair(task, folder, ".beats", read_beats, "Albums-Fire-01.beats beside or below BallroomData")
    copies = [one.track_id for one in found.examples if one.path.stem in BALLROOM_COPIES]
    examples = []
    for one in found.examples:
        name = one.path.stem
        if name not in BALLROOM_COPIES:
            album = name.rpartition("-")[0] if name.startswith("Albums") else name
            examples.append(replace(one, split=hashed_split(album), track_id=name))
    return replace(found, examples=examples, extra=[*found.extra, *copies])


def read_gtzan_rhythm(task: Task, folder: Path) -> Found:
    """Read GTZAN with the beats and downbeats of GTZAN-Rhythm, on the fault-filtered split of `gtzan`.

    Layout: that of `gtzan`, and anywhere below the folder `jams/<genre>.000NN.wav.jams`, whose annotations have the
    `annotation_type` beat and downbeat.
    """
    genres = tuple({stem.split(".")[0] for stems in split_stems().values() for stem in stems})
    clips = read_gtzan(replace(task, labels=genres), folder)
    files = {path.name: path for path in folder.rglob("*.wav.jams")}
    names = {one.track_id: f"{one.track_id}.wav.jams" for one in clips.examples}
    missing = [name for name in names.values() if name not in files]
    if missing:
        raise FileNotFoundError(
            f"'{folder}' lacks {len(missing)} of {len(names)} annotations: {name_some(missing)}. Get them from: "
            f"{task.source}."
        )
    examples = [replace(one, label=read_jams(files[names[one.track_id]])) for one in clips.examples]
    return _usable(Found(task, examples, folder, {OWN_DECODING: []}, clips.extra))


def read_own_events(task: Task, folder: Path) -> Found:
    """Read audio files with `.beats` (time, place in the bar), `.lab` (start, end, chord), or for a melody `.csv` or
    `.txt` files (time, f0) of the same name; `REF`, `_MELODY1` to 3 and `_MIX` at the end of a name do not count.

    A file belongs to the audio beside it, or else to that in a folder of the same name, or else to the only one of
    its name: so the chords of Isophonics (`chordlab/The_Beatles/<album>/<song>.lab`) fit a folder of albums. Splits
    are the folders train, validation and test, if there are any; else albums (folders) are split by a hash of their
    names, and where there are fewer than 10 folders single tracks.
    """
    readers = {"beats": (".beats", read_beats), "chords": (".lab", read_chords), "melody": (".csv .txt", read_melody)}
    suffixes, read = readers[task.events]
    found = _pair(task, folder, suffixes, read, f"{suffixes.replace(' ', ' or ')} file with the name of an audio file")
    spelling = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    parents = {one.path.parent for one in found.examples}
    examples = []
    for one in found.examples:
        relative = one.path.relative_to(folder)
        group = relative.parent if len(parents) >= MIN_FOLDERS else relative.with_suffix("")
        split = spelling.get(relative.parts[0]) or hashed_split(group.as_posix())
        examples.append(replace(one, split=split))
    return replace(found, examples=examples, differences={NO_BENCHMARK: [], **found.differences})


def with_events(task: Task, folder: Path, tracks: Sequence[Example]) -> Found:
    """The clips of a synthetic corpus with the events that `music2vec synth` wrote. Raises FileNotFoundError for a
    corpus of an earlier version, which has none, and ValueError for one whose events lack the melody."""
    again = (
        "which earlier versions did not write. Run `music2vec synth` on this folder again, with its number of clips "
        "and seed (synth.json): it adds them and leaves the rest."
    )
    if not (folder / "events.json").is_file():
        raise FileNotFoundError(f"'{folder}' has no events.json, {again}")
    advice = "delete it and run `music2vec synth` on the folder again, which writes it anew"
    known = read_json(folder / "events.json", advice)
    missing = [one.track_id for one in tracks if one.track_id not in known]
    if missing:
        raise ValueError(f"'{folder}/events.json' lacks {len(missing)} clips: {name_some(missing)}; {advice}.")
    if any(task.events not in known[one.track_id] for one in tracks):
        raise ValueError(f"'{folder}/events.json' has no notes of the {task.events}, {again}")
    return _usable(Found(task, [replace(one, label=_synthetic(task, known[one.track_id])) for one in tracks], folder))


def _synthetic(task: Task, events: dict) -> np.ndarray:
    if task.events == "beats":
        return _beats(events["beats"], events["downbeats"])
    if task.events == "melody":
        rows = np.array(events["melody"], dtype=np.float64)  # None is NaN
        return np.column_stack([rows[:, :2], melody_classes(rows[:, 2])])
    return np.array([(start, end, chord_class(label)) for start, end, label in events["chords"]])


def _pair(task: Task, folder: Path, suffixes: str, read: Callable, what: str) -> Found:
    """Every audio file that has an annotation; its id is its relative path, its split is not known yet."""
    annotations = defaultdict(list)
    for path in sorted(path for suffix in suffixes.split() for path in folder.rglob(f"*{suffix}")):
        annotations[re.sub("(REF|_MELODY[123])$", "", path.stem)].append(path)
    examples, extra, used = [], [], set()
    for audio in find_audio_files(folder):
        chosen, name = (
            _of_audio(audio, annotations[audio.stem.removesuffix("_MIX")]),
            audio.relative_to(folder).as_posix(),
        )
        if chosen is None:
            extra.append(name)
        else:
            used.add(chosen)
            examples.append(Example("", name, audio, read(chosen)))
    if not examples:
        raise FileNotFoundError(f"'{folder}' has no {what}. Get it from: {task.source}.")
    lonely = [path.name for paths in annotations.values() for path in paths if path not in used]
    sentence = f"{len(lonely)} annotations have no audio file of their name: {name_some(lonely)}."
    differences = {sentence: lonely} if lonely else {}
    return _usable(
        Found(task, examples, folder, {**differences, **({OWN_DECODING: []} if task.dataset else {})}, extra)
    )


def _of_audio(audio: Path, candidates: Sequence[Path]) -> Path | None:
    for fits in (lambda one: one.parent == audio.parent, lambda one: one.parent.name == audio.parent.name, bool):
        chosen = [one for one in candidates if fits(one)]
        if len(chosen) == 1:
            return chosen[0]
    return None


def _usable(found: Found) -> Found:
    """Without the tracks of which nothing can be scored, which `differences` names."""
    empty = [one.track_id for one in found.examples if not (one.label[:, 2] != UNSCORED[found.task.events]).any()]
    if not empty:
        return found
    sentence = f"{len(empty)} tracks have no {found.task.events} that can be scored, left out: {name_some(empty)}."
    kept = [one for one in found.examples if one.track_id not in set(empty)]
    return replace(found, examples=kept, differences={**found.differences, sentence: empty})


# ---- files of annotations; each raises ValueError, with the file's name, for what it cannot read ----


def read_beats(path: Path) -> np.ndarray:
    """A `.beats` file, lines of a time and a place in the bar (1 is a downbeat) -> events `[E, 3]`."""
    rows = _numbers(path, 2, "a time in seconds and a place in the bar")
    return _beats([time for time, _ in rows], [time for time, place in rows if float(place) == 1], path)


def read_jams(path: Path) -> np.ndarray:
    """The beats and downbeats of a JAMS file of GTZAN-Rhythm -> events `[E, 3]`."""
    advice = "use the data set's own file"
    times = {}
    for annotation in read_json(path, advice).get("annotations", ()):
        kind, data = annotation.get("sandbox", {}).get("annotation_type"), annotation.get("data", ())
        times[kind] = data["time"] if isinstance(data, dict) else [one["time"] for one in data]
    if "beat" not in times:
        raise ValueError(f"'{path}' has no annotation of the annotation_type beat; {advice}.")
    return _beats(times["beat"], times.get("downbeat", ()), path)


def read_chords(path: Path) -> np.ndarray:
    """A `.lab` file, lines of start, end and chord in the syntax of Harte et al. -> events `[E, 3]` without gaps: what
    nothing is said of is not scored."""
    rows = [(float(start), float(end), label) for start, end, label in _numbers(path, 3, "start, end and a chord")]
    events: list[tuple[float, float, int]] = []
    for start, end, label in rows:
        before = events[-1][1] if events else start
        if not 0 <= start <= end or start < before - 0.05:
            raise ValueError(f"'{path}' has a chord from {start:g} to {end:g} s after one that ends at {before:g} s.")
        if start > before:
            events.append((before, start, NOT_SCORED))
        if end > max(start, before):
            try:
                events.append((max(start, before), end, chord_class(label)))
            except ValueError as error:
                raise ValueError(f"'{path}': {error}") from error
    return np.array(events, dtype=np.float64).reshape(-1, 3)


def read_melody(path: Path) -> np.ndarray:
    """A series of time and f0 in Hz (0 or less where there is no melody) -> events `[E, 3]`, segments of the nearest
    semitone, each frame from the middle between it and the one before."""
    rows = np.array(_numbers(path, 2, "a time in seconds and a frequency in Hz"), dtype=np.float64).reshape(-1, 2)
    times, hertz = rows.T
    if not (np.isfinite(rows).all() and (times >= 0).all() and (np.diff(times) > 0).all()):
        raise ValueError(f"'{path}' has times that do not rise from 0 on, or a frequency that is no number.")
    notes = np.full(len(rows), np.nan)
    notes[hertz > 0] = 69 + 12 * np.log2(hertz[hertz > 0] / 440)
    return class_segments(melody_classes(notes), times) if len(rows) else np.zeros((0, 3))


def _numbers(path: Path, columns: int, what: str) -> list[list]:
    """Rows of numbers, but for a third column; blank lines are no matter, two columns may have a comma between."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        fields = line.replace(",", " ").split() if columns == 2 else line.split()
        try:
            if fields:
                rows.append([*(float(field) for field in fields[:2]), *fields[2:columns]])
            fits = not fields or len(rows[-1]) == columns
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"Line {number} of '{path}' is '{line[:60]}'; it needs {what}.")
    return rows


def _beats(beats: Sequence[float], downbeats: Sequence[float], path: Path | str = "events.json") -> np.ndarray:
    events = [(float(time), float(time), label) for label, times in enumerate((beats, downbeats)) for time in times]
    events = np.array(events, dtype=np.float64).reshape(-1, 3)
    if not (np.isfinite(events).all() and (events >= 0).all()):
        raise ValueError(f"'{path}' has a beat at a time that is no number of seconds from 0 on.")
    return events[np.argsort(events[:, 0], kind="stable")]
