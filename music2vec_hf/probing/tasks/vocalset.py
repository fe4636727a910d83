"""VocalSet: who sings (20 singers) and with which of 10 techniques, in recordings of single voices.

Official layout (VocalSet 1.1, Zenodo 1203819): `FULL/<singer>/<context>/<technique>/<recording>.wav`, as
`FULL/female1/arpeggios/belt/f1_arpeggios_belt_c_a.wav`; 17 folders of techniques. The folder of singers may lie any
number of folders below the given one and have any name (`data_by_singer` in version 1.2).

Splits are MARBLE v1's rule (`benchmark/tasks/VocalSet/preprocess.py` of a43992899/MARBLE-Benchmark, 3e5761d) run
again: recordings of one technique are numbered in the order of their names, and the numbers are shuffled into splits
from one seed. MARBLE ships no lists to hold the result against, and hears 3 s segments with silence cut off the start,
where we hear whole recordings. So a score here is never called comparable.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from music2vec_hf.audio.reading import find_audio_files
from music2vec_hf.probing.tasks.declarations import Task, TaskData
from music2vec_hf.probing.tasks.shared import class_targets, make_splits

SINGERS = (*(f"f{number}" for number in range(1, 10)), *(f"m{number}" for number in range(1, 12)))
TECHNIQUES = (
    "belt",
    "breathy",
    "inhaled",
    "lip_trill",
    "spoken",
    "straight",
    "trill",
    "trillo",
    "vibrato",
    "vocal_fry",
)
OTHER_FOLDERS = ("fast_forte", "fast_piano", "forte", "messa", "pp", "slow_forte", "slow_piano")
TEST_SINGERS = ("f2", "f8", "m3", "m5", "m10")
SEED = 42617

# A copy of a recording, and four that are no part of the paper's table.
STRAY = ("f2_scales_vibrato_a(1)", "caro_vibrato", "dona_vibrato", "row_vibrato", "slow_vibrato_arps")

_FOLDER_OF_SINGER = re.compile(r"(female|male)(\d+)")
_PREFIX = re.compile(r"([fm]\d+)_")
NOT_MARBLES = (
    "a track is a whole recording, MARBLE's examples are segments of 3 s of it; MARBLE ships no lists, so its split "
    "rule was run again and could not be held against them."
)
_TERMS = {
    "problem_type": "single_label_classification",
    "metrics": ("accuracy",),
    "primary_metric": "accuracy",
    "value_metrics": ("accuracy",),
    "loss": "cross-entropy, mean",
    # As copies on the Hub state it (stemsai/vocalset).
    "license": "CC BY 4.0",
    "citation": "Wilkins, Seetharaman, Wahl and Pardo, VocalSet: a singing voice dataset, ISMIR 2018",
    "source": "https://zenodo.org/records/1203819: VocalSet11.zip, unpacked",
    "dataset": "vocalset",
}

TASKS = (
    Task(
        name="vocalset-singer",
        title="singer",
        split_rule="MARBLE v1's rule run again: numbers of recordings within a technique at random, a fifth test, of "
        "the rest two fifths validation; all 17 techniques; the lists themselves are not published",
        labels=SINGERS,
        **_TERMS,
    ),
    Task(
        name="vocalset-technique",
        title="technique",
        split_rule=f"test: singers {', '.join(TEST_SINGERS)}; the others by MARBLE v1's rule run again: numbers of "
        "recordings within a technique at random, two fifths validation; the lists themselves are not published",
        labels=TECHNIQUES,
        **_TERMS,
    ),
)


def read(task: Task, folder: Path) -> TaskData:
    """Read VocalSet from its folder.

    Raises:
        FileNotFoundError: if no folder of a singer with folders of techniques is there.
        ValueError: if a split is empty.
    """
    recordings, extra = _recordings(folder)
    if not recordings:
        raise FileNotFoundError(
            f"'{folder}' has no recording <singer>/<context>/<technique>/<name>.wav with a singer female1 to male11. "
            f"Get it from: {task.source}."
        )
    numbered = [
        (technique, name, number, path)
        for technique, names in recordings.items()
        for number, (name, path) in enumerate(sorted(names.items(), key=lambda item: f"{item[0]}.wav"))
    ]
    of_technique, of_singer = _shuffled_numbers(numbered)
    rows, labels = {"train": [], "validation": [], "test": []}, {"train": [], "validation": [], "test": []}
    for technique, name, number, path in numbered:
        singer = _singer(name)
        if task.name == "vocalset-singer":
            split, label = of_singer[number], singer
        elif technique in TECHNIQUES:
            split, label = "test" if singer in TEST_SINGERS else of_technique[number], technique
        else:
            continue
        rows[split].append((f"{technique}/{name}", path))
        labels[split].append(label)
    targets = {split: class_targets(values, task.labels, str(folder)) for split, values in labels.items()}
    return TaskData(task, make_splits(rows, targets), (NOT_MARBLES,), tuple(extra))


def _singer(name: str) -> str:
    return _PREFIX.match(name)[1]


def _recordings(folder: Path) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Technique to recordings by name, each name with its singer before it; and files that are none of them."""
    recordings: dict[str, dict[str, Path]] = {technique: {} for technique in sorted((*TECHNIQUES, *OTHER_FOLDERS))}
    extra = []
    for path in find_audio_files(folder):
        relative = path.relative_to(folder)
        parents = [parent.name for parent in list(relative.parents)[:3]]
        singer = _FOLDER_OF_SINGER.fullmatch(parents[2]) if len(parents) == 3 else None
        name = path.stem
        if singer is not None and _PREFIX.match(name) is None and name not in STRAY:
            # Some files lack the singer that the others begin with.
            name = f"{singer[1][0]}{singer[2]}_{name}"
        known = singer is not None and parents[0] in recordings and name not in STRAY and _singer(name) in SINGERS
        if not known or name in recordings[parents[0]]:
            extra.append(relative.as_posix())
        else:
            recordings[parents[0]][name] = path
    return {technique: names for technique, names in recordings.items() if names}, extra


def _shuffled_numbers(numbered: Sequence[tuple]) -> tuple[dict[int, str], dict[int, str]]:
    """Split of each number: for techniques and for singers, drawn in MARBLE's order from one generator.

    scikit-learn's `GroupShuffleSplit` permutes the groups and takes the first of them, rounded up, as its test part.
    """
    # The generator of numpy's that MARBLE seeds; a newer one would shuffle otherwise.
    rng = np.random.RandomState(SEED)
    kept = {n for technique, name, n, _ in numbered if technique in TECHNIQUES and _singer(name) not in TEST_SINGERS}
    train, validation = _drawn(sorted(kept), 0.4, rng)
    of_technique = dict.fromkeys(train, "train") | dict.fromkeys(validation, "validation")
    rest, test = _drawn(sorted({number for _, _, number, _ in numbered}), 0.2, rng)
    train, validation = _drawn(sorted(rest), 0.4, rng)
    of_singer = dict.fromkeys(train, "train") | dict.fromkeys(validation, "validation")
    return of_technique, of_singer | dict.fromkeys(test, "test")


def _drawn(numbers: list[int], share: float, rng: np.random.RandomState) -> tuple[list[int], list[int]]:
    """The rest and the drawn share of some numbers."""
    order = [numbers[place] for place in rng.permutation(len(numbers))]
    size = int(np.ceil(share * len(numbers)))
    return order[size:], order[:size]
