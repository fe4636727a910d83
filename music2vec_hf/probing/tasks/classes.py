"""Data sets of classes: GTZAN, NSynth, VocalSet and game soundtracks."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from music2vec_hf.audio.labels import name_some
from music2vec_hf.audio.reading import find_audio_files
from music2vec_hf.probing.tasks.declarations import SPLITS, Example, Found, Task, index_audio, list_path, read_table

_GTZAN_STEM = re.compile(r"([a-z]+)\.000\d\d")

NSYNTH_FIELDS = {"nsynth-instrument": "instrument_family_str", "nsynth-pitch": "pitch"}
NSYNTH_FOLDERS = {"train": "nsynth-train", "validation": "nsynth-valid", "test": "nsynth-test"}

SINGERS = (*(f"f{number}" for number in range(1, 10)), *(f"m{number}" for number in range(1, 12)))
TECHNIQUES = tuple("belt breathy inhaled lip_trill spoken straight trill trillo vibrato vocal_fry".split())
# Folders that only the task of singers has.
OTHER_TECHNIQUES = ("fast_forte", "fast_piano", "forte", "messa", "pp", "slow_forte", "slow_piano")
TEST_SINGERS = ("f2", "f8", "m3", "m5", "m10")
SEED = 42617
# A copy of a recording, and four that are no part of the paper's table: MARBLE removes them before it numbers.
STRAY = ("f2_scales_vibrato_a(1)", "caro_vibrato", "dona_vibrato", "row_vibrato", "slow_vibrato_arps")
NOT_MARBLES = (
    "a track is a whole recording, MARBLE's examples are segments of 3 s of it; MARBLE ships no lists, so its split "
    "rule was run again and could not be held against them."
)
_SINGER_FOLDER = re.compile(r"(female|male)(\d+)")
_PREFIX = re.compile(r"([fm]\d+)_")
_COPY = re.compile(r"(.+)\(\d+\)")


def split_stems() -> dict[str, list[str]]:
    """Stems of GTZAN's fault-filtered split, `blues.00029`, in the order of the published lists."""
    return {
        split: [Path(line).stem for line in list_path(f"gtzan_{split}.txt").read_text().splitlines() if line]
        for split in SPLITS
    }


def read_gtzan(task: Task, folder: Path) -> Found:
    """Read GTZAN: ten genres, the fault-filtered split.

    Official layout `genres/<genre>/<genre>.000NN.wav`; older copies hold `.au`, the Kaggle copy lies in
    `Data/genres_original/`. A file is found by its stem, wherever it lies.
    """

    def stem_of(path: Path) -> str | None:
        match = _GTZAN_STEM.fullmatch(path.stem)
        return path.stem if match and match[1] in task.labels else None

    found, others = index_audio(folder, stem_of)
    if not found:
        raise FileNotFoundError(
            f"'{folder}' has no clip of GTZAN such as genres/blues/blues.00000.wav. Get it from: {task.source}."
        )
    examples = []
    for split, stems in split_stems().items():
        for stem in stems:
            genre = stem.split(".")[0]
            path = found.get(stem, folder / "genres" / genre / f"{stem}.wav")
            examples.append(Example(split, stem, path, genre))
    return Found(task, examples, folder, extra=others)


def read_nsynth(task: Task, folder: Path) -> Found:
    """Read NSynth: instrument family or pitch of single notes of 4 s.

    Official layout: `nsynth-train/`, `nsynth-valid/` and `nsynth-test/`, each with `examples.json` and
    `audio/<note>.wav`.
    """
    examples, extra = [], []
    for split in SPLITS:
        table = folder / NSYNTH_FOLDERS[split] / "examples.json"
        if not table.is_file():
            raise FileNotFoundError(f"'{table}' is not there. Get it from: {task.source}.")
        try:
            notes = json.loads(table.read_text(encoding="utf-8"))
            labels = {note: str(fields[NSYNTH_FIELDS[task.name]]) for note, fields in notes.items()}
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"'{table}' is no list of notes with {NSYNTH_FIELDS[task.name]} ({error}). Get it from: {task.source}."
            ) from error
        audio = table.parent / "audio"
        examples.extend(Example(split, note, audio / f"{note}.wav", label) for note, label in labels.items())
        extra.extend(
            path.relative_to(folder).as_posix() for path in sorted(audio.glob("*.wav")) if path.stem not in notes
        )
    return Found(task, examples, folder, extra=extra)


@dataclass(frozen=True)
class Recording:
    """A recording of VocalSet: `name` begins with its singer, `number` is its place among those of its technique."""

    technique: str
    name: str
    number: int
    path: Path | None = None

    @property
    def singer(self) -> str:
        """`f1` to `f9`, `m1` to `m11`, as the name says."""
        return _PREFIX.match(self.name)[1]


def read_vocalset(task: Task, folder: Path) -> Found:
    """Read VocalSet: who sings (20 singers), or with which of 10 techniques, in recordings of single voices.

    Official layout (VocalSet 1.1): `FULL/<singer>/<context>/<technique>/<recording>.wav`, as
    `FULL/female1/arpeggios/belt/f1_arpeggios_belt_c_a.wav`; 17 folders of techniques. The folder of singers may lie
    any number of folders below the given one and have any name (`data_by_singer` in version 1.2).

    Splits are MARBLE v1's rule (`benchmark/tasks/VocalSet/preprocess.py` of a43992899/MARBLE-Benchmark) run again:
    recordings of one technique are numbered in the order of their names, and the numbers are shuffled into splits from
    one seed. MARBLE ships no lists to hold the result against, and hears 3 s segments with silence cut off the start,
    where we hear whole recordings. So a score here is never called comparable. Recordings whose name and folder
    disagree about the singer, and exact copies, keep their number but are left out, and named.
    """
    found = _find_recordings(folder)
    if not found.recordings:
        raise FileNotFoundError(
            f"'{folder}' has no recording <singer>/<context>/<technique>/<name>.wav with a singer female1 to male11. "
            f"Get it from: {task.source}."
        )
    of_technique, of_singer = shuffled_numbers(found.recordings)
    examples = []
    for recording in found.recordings:
        if recording.path in found.copies or recording.path in found.misfiled:
            continue
        if task.name == "vocalset-singer":
            split, label = of_singer[recording.number], recording.singer
        elif recording.technique in TECHNIQUES:
            split = "test" if recording.singer in TEST_SINGERS else of_technique[recording.number]
            label = recording.technique
        else:
            continue
        examples.append(Example(split, f"{recording.technique}/{recording.name}", recording.path, label))
    differences = {NOT_MARBLES: []}
    for what, paths in (
        ("lie in the folder of another singer than their name says", found.misfiled),
        ("are copies of a recording beside them", found.copies),
    ):
        names = [path.relative_to(folder).as_posix() for path in paths]
        if names:
            differences[f"{len(names)} recordings {what}, left out: {name_some(names)}."] = names
    return Found(task, examples, folder, differences, found.extra)


@dataclass
class _Found:
    """What lies in a folder of VocalSet: recordings in the order of technique and name, of which some are not used."""

    recordings: list[Recording] = field(default_factory=list)
    misfiled: list[Path] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)


def _find_recordings(folder: Path) -> _Found:
    found, by_name = _Found(), {}
    for path in find_audio_files(folder):
        relative = path.relative_to(folder)
        technique, _, singer_folder = [*(parent.name for parent in relative.parents), "", "", ""][:3]
        match = _SINGER_FOLDER.fullmatch(singer_folder)
        singer, name = f"{match[1][0]}{match[2]}" if match else "", path.stem
        if match and _PREFIX.match(name) is None and name not in STRAY:
            name = f"{singer}_{name}"  # some files lack the singer that the others begin with
        known = singer in SINGERS and technique in (*TECHNIQUES, *OTHER_TECHNIQUES) and name not in STRAY
        if known and _PREFIX.match(name)[1] in SINGERS:
            before = by_name.get((technique, name))
            if _PREFIX.match(name)[1] != singer:
                found.misfiled.append(path)
            elif before is not None and before not in found.misfiled:
                found.extra.append(relative.as_posix())
            if before is None or before in found.misfiled:
                by_name[technique, name] = path
        elif name in STRAY and _original(path) is not None:
            found.copies.append(path)
        else:
            found.extra.append(relative.as_posix())
    numbers = Counter()
    for technique, name in sorted(by_name, key=lambda item: (item[0], f"{item[1]}.wav")):
        found.recordings.append(Recording(technique, name, numbers[technique], by_name[technique, name]))
        numbers[technique] += 1
    found.copies += _copies([path for path in by_name.values() if path not in found.misfiled])
    found.copies.sort()
    return found


def _original(path: Path) -> Path | None:
    """The file `a.wav` that lies beside `a(1).wav`."""
    match = _COPY.fullmatch(path.stem)
    original = match and path.with_stem(match[1])
    return original if original and original.is_file() else None


def _copies(paths: Sequence[Path]) -> list[Path]:
    """Files that are in their folder again: under a name such as `a(1)` beside `a`, or with the same bytes."""
    copies = [path for path in paths if _original(path) is not None]
    same_size = defaultdict(list)
    for path in sorted(paths, key=lambda path: (len(path.name), path.name)):
        if path.is_file() and path not in copies:
            same_size[path.parent, path.stat().st_size].append(path)
    seen = set()
    for (parent, _), together in same_size.items():
        for path in together if len(together) > 1 else ():
            content = parent, hashlib.sha256(path.read_bytes()).digest()
            if content in seen:
                copies.append(path)
            seen.add(content)
    return copies


def shuffled_numbers(recordings: Sequence[Recording]) -> tuple[dict[int, str], dict[int, str]]:
    """Split of each number: for techniques and for singers, drawn in MARBLE's order from one generator.

    scikit-learn's `GroupShuffleSplit` permutes the groups and takes the first of them, rounded up, as its test part.
    """
    # The generator of numpy's that MARBLE seeds; a newer one would shuffle otherwise.
    rng = np.random.RandomState(SEED)
    kept = {one.number for one in recordings if one.technique in TECHNIQUES and one.singer not in TEST_SINGERS}
    train, validation = _drawn(sorted(kept), 0.4, rng)
    of_technique = dict.fromkeys(train, "train") | dict.fromkeys(validation, "validation")
    rest, test = _drawn(sorted({one.number for one in recordings}), 0.2, rng)
    train, validation = _drawn(sorted(rest), 0.4, rng)
    of_singer = dict.fromkeys(train, "train") | dict.fromkeys(validation, "validation")
    return of_technique, of_singer | dict.fromkeys(test, "test")


def _drawn(numbers: list[int], share: float, rng: np.random.RandomState) -> tuple[list[int], list[int]]:
    """The rest and the drawn share of some numbers."""
    order = [numbers[place] for place in rng.permutation(len(numbers))]
    size = int(np.ceil(share * len(numbers)))
    return order[size:], order[:size]


def read_real_music(task: Task, folder: Path) -> Found:
    """Read clips of game soundtracks, cut by `examples/real_music/build.py`: which album, or whose music.

    Layout: `clips.csv` with the columns `path`, relative to it, `split`, `album`, `artist` and others. An example is a
    clip; all clips of a track are in one split. Clips whose album or artist is no label of the task are not used.
    """
    column = "artist" if task.name == "composer" else "album"
    rows = read_table(folder / "clips.csv", ",", ("path", "split", column), task.source)
    chosen = [row for row in rows if row[column] in task.labels]
    examples = [Example(row["split"], row["path"], folder / row["path"], row[column]) for row in chosen]
    return Found(task, examples, folder, {"there is no published score on these clips.": []})
