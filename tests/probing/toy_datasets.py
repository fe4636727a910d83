"""Builders of data sets in their official layouts: real names, columns, separators, quirks; tiny synthetic audio."""

import csv
import hashlib
import json
import os
import shutil

import numpy as np
import soundfile

from music2vec_hf.probing.tasks.classes import SINGERS, split_stems
from music2vec_hf.probing.tasks.declarations import SPLITS, list_path, read_table
from music2vec_hf.probing.tasks.loading import TASKS
from music2vec_hf.probing.tasks.songs import EMOMUSIC_STATISTICS, benchmark_split, split_by_artist

GENRES = TASKS["gtzan"].labels
SHARPS = {"Db": "C#", "Eb": "D#", "Gb": "F#", "Ab": "G#", "Bb": "A#"}


def write_tone(path, seconds=0.2, frequency=440.0, rate=16_000):
    """A quiet tone, in the format that the name asks for; wav and flac exactly as long, mp3 nearly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, (0.1 * np.sin(2 * np.pi * frequency * times)).astype(np.float32), rate)
    return path


def link(source, target):
    """One more name for an audio file, so that a data set of full size costs no space."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def copy_of(root, target):
    """A copy made of links, to be edited."""
    shutil.copytree(root, target, copy_function=lambda source, to: os.link(source, to))
    return target


def edit(path, change):
    """Change a file's text or bytes; a new file, because a copy is a link. Returns whether anything changed."""
    content = path.read_bytes()
    changed = change(content.decode())
    changed = changed.encode() if isinstance(changed, str) else changed
    path.unlink()
    path.write_bytes(changed)
    assert changed != content


def build_gtzan(root):
    """All 1,000 clips; each genre has a tone of its own."""
    for number, genre in enumerate(GENRES):
        first = write_tone(root / "genres" / genre / f"{genre}.00000.wav", frequency=200.0 * 1.3**number)
        for clip in range(1, 100):
            link(first, first.with_name(f"{genre}.{clip:05d}.wav"))
    return root


def gtzan_subset(root, per_split=4):
    """Only some clips of every genre and split, for tests that compute features of them."""
    for number, genre in enumerate(GENRES):
        tone = write_tone(root / f"tone{genre}.wav", frequency=200.0 * 1.3**number)
        for stems in split_stems().values():
            for stem in [stem for stem in stems if stem.startswith(genre)][:per_split]:
                link(tone, root / "genres" / genre / f"{stem}.wav")
        tone.unlink()
    return root


MTT_CLIPS = (
    # clip id, folder, tags; "harpsicord" is one of the 188 tags and none of the 50.
    (2, "f", ("classical", "strings", "violin", "opera")),
    (6, "0", ("classical", "guitar")),
    (10, "a", ()),
    (11, "b", ("rock", "male voice", "male vocal")),
    (14, "c", ("guitar", "rock")),
    (19, "c", ("harpsicord",)),
    (21, "d", ("harpsicord",)),
    (22, "e", ("rock", "no vocals")),
    (23, "9", ("guitar", "harpsicord")),
    (35644, "6", ("guitar",)),
)


def build_magnatagatune(root, audio="", suffix=".mp3", quoted=True, newline="\n"):
    """Ten clips, one of them unreadable as in the official download."""
    columns = list_path("magnatagatune_columns.txt").read_text().split("\n")[:190]
    tone = write_tone(root / f"tone{suffix}", seconds=0.5)
    lines = [columns]
    for clip, folder, tags in MTT_CLIPS:
        name = f"{folder}/some_band-some_album-{clip:02d}-song__a-30-59.mp3"
        target = (root / audio / name).with_suffix(suffix)
        if clip == 35644:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        else:
            link(tone, target)
        lines.append([str(clip), *("1" if tag in tags else "0" for tag in columns[1:-1]), name])
    tone.unlink()
    fields = [[f'"{field}"' if quoted else field for field in line] for line in lines]
    text = newline.join("\t".join(line) for line in fields) + newline
    (root / "annotations_final.csv").write_bytes(text.encode())
    return root


def _emomusic_artists(split_of):
    """An artist's name for every song, found by trying, that the rule puts into the song's split."""
    found, number = {"train": [], "validation": []}, 0
    while min(map(len, found.values())) < 40:
        name = "".join("abcdefghij"[int(digit)] for digit in str(number))
        found[split_by_artist(name)].append(name.title())
        number += 1
    found["test"] = found["train"]
    # Digits, points and doubled blanks are no part of the name that is hashed.
    return {song: f" 5{found[split][int(song) % 40]}.  " for song, split in split_of.items()}


def build_emomusic(root):
    """Both tables with stray tabs and CR LF, and one clip per song; values have the benchmark's statistics."""
    split_of = benchmark_split("emomusic_split.tsv")
    songs = list(split_of)
    artists = _emomusic_artists(split_of)
    values = np.random.default_rng(0).uniform(2, 8, (len(songs), 2))
    development = np.array([split_of[song] != "test" for song in songs])
    mean, deviation = map(np.array, EMOMUSIC_STATISTICS)
    chosen = values[development]
    values = (values - chosen.mean(axis=0)) / chosen.std(axis=0) * deviation + mean
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "songs_info.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)  # CR LF
        writer.writerow(
            "song_id,file_name,Artist,Song title,start of the segment (min.sec),end of the segment (min.sec),Genre,"
            "Mediaeval 2013 set".split(",")
        )
        for song in songs:
            place = "evaluation" if split_of[song] == "test" else "development"
            title = f"A, song \t{song}"
            writer.writerow([song, f"{song}.mp3", f"{artists[song]}\t", title, "2.1", "1", "Blues", f"{place}\t"])
    with open(root / "static_annotations.csv", "w", encoding="utf-8") as file:
        file.write("song_id,mean_arousal,std_arousal,mean_valence,std_valence\n")
        file.write(
            "\n".join(f"{song},{a!r},0.5,{v!r},0.6" for song, (a, v) in zip(songs, values.tolist(), strict=True))
        )
    tone = write_tone(root / "tone.mp3", seconds=0.5)
    for song in songs:
        link(tone, root / "clips_45seconds" / f"{song}.mp3")
    tone.unlink()
    return root


def _hash_bucket(artist):
    return int(hashlib.sha1(artist.lower().encode()).hexdigest(), 16) % 116


def giantsteps_artists(number_of_each=60):
    """Names of artists whom the hash alone puts into train and into validation."""
    found, number = {"train": [], "validation": []}, 0
    while min(map(len, found.values())) < number_of_each:
        name = f"Künstler {number}"
        found["train" if _hash_bucket(name) < 100 else "validation"].append(name)
        number += 1
    return found


def _key_of_each(songs):
    """A key for every song so that each split has the benchmark's number of songs per key."""
    keys = {}
    for split in SPLITS:
        rows = read_table(list_path("giantsteps_keys.tsv"), "\t", ("label", split))
        every = [row["label"] for row in rows for _ in range(int(row[split]))]
        keys.update(zip((song["track_id"] for song in songs if song["split"] == split), every, strict=True))
    return keys


def _sharp(key):
    tonic, mode = key.split()
    return f"{SHARPS.get(tonic, tonic)} {mode}"


def build_giantsteps(root):
    """Both repositories with all their songs; those that the benchmark leaves out have no audio here."""
    test_root, train_root = root / "giantsteps-key-dataset", root / "giantsteps-mtg-key-dataset-master"
    songs = read_table(list_path("giantsteps_split.tsv"), "\t", ("track_id", "split", "clips"))
    keys, artists = _key_of_each(songs), giantsteps_artists()
    audio_of = {
        clips: write_tone(root / f"{clips}.mp3", seconds=30 * int(clips) + 0.06, rate=8_000) for clips in "1234"
    }
    (test_root / "annotations" / "key").mkdir(parents=True)
    (train_root / "annotations").mkdir(parents=True)
    annotations = ["ID\tMANUAL KEY\tC"]
    metadata = ["ID\tARTIST\tSONG TITLE\tMIX\tLABEL\tBP GENRE\tBP BPM\tBP KEY"]
    for number, song in enumerate(songs):
        track, split = song["track_id"], song["split"]
        repository = test_root if split == "test" else train_root
        link(audio_of[song["clips"]], repository / "audio" / f"{track}.LOFI.mp3")
        if split == "test":
            (test_root / "annotations" / "key" / f"{track}.LOFI.key").write_text(keys[track])
            continue
        blank = " " if number % 5 == 0 else ""
        annotations.append(f"{track}\t{_sharp(keys[track])}{blank}\t2")
        # Every third validation song has a train artist too, who belongs to nobody else in train.
        artist = artists[split][number % 50]
        if split == "validation" and number % 3 == 0:
            artist = f"{artists['train'][55]}, {artist}"
        metadata.append(f"{track}\t{artist}\tSong\tOriginal Mix\tLabel\tHard Dance\t149\tC major")
    left_out = [("-", 0), ("C minor", 1), ("F minor / G# major", 2), ("G minor/major", 2), ("A-A# minor", 1)]
    for number in range(1_486 - 1_159):
        key, confidence = left_out[number % len(left_out)]
        annotations.append(f"{90_000_000 + number}\t{key}\t{confidence}")
        metadata.append(f"{90_000_000 + number}\tNobody {number}\tSong\tMix\tLabel\tTrance\t138\tC major")
    (train_root / "annotations" / "annotations.txt").write_text("\n".join(annotations) + "\n", encoding="ascii")
    text = "\r\n".join(metadata)
    (train_root / "annotations" / "beatport_metadata.txt").write_bytes(text.encode("utf-8"))
    for path in audio_of.values():
        path.unlink()
    return root


JAMENDO = {
    "train": (("41", 241, "genre---rock"), ("75", 775, "genre---easylistening\tgenre---electronic\tgenre---lounge")),
    "validation": (("00", 1_100, "genre---rock\tgenre---electronic"),),
    "test": (("07", 1_307, "genre---electronic"), ("08", 1_308, "genre---rock")),
}


def build_jamendo(root, audio="audio", low=""):
    """Split 0 of the genre subset, five tracks in full or low quality."""
    folder = root / "data" / "splits" / "split-0"
    folder.mkdir(parents=True)
    for split, tracks in JAMENDO.items():
        lines = ["TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"]
        for place, track, tags in tracks:
            lines.append(f"track_{track:07d}\tartist_000005\talbum_000033\t{place}/{track}.mp3\t340.1\t{tags}")
            write_tone(root / audio / place / f"{track}{low}.mp3", seconds=0.5)
        (folder / f"autotagging_genre-{split}.tsv").write_bytes("\r\n".join([*lines, ""]).encode())
    return root


def build_nsynth(root):
    """Five notes of three families."""
    for split, families in (("train", ("bass", "vocal")), ("valid", ("bass",)), ("test", ("reed", "bass"))):
        notes = {}
        for number, family in enumerate(families):
            name = f"{family}_synthetic_{split}-0{60 + number}-025"
            notes[name] = {"note_str": name, "pitch": 60 + number, "instrument_family_str": family}
            write_tone(root / f"nsynth-{split}" / "audio" / f"{name}.wav", seconds=0.5)
        (root / f"nsynth-{split}" / "examples.json").write_text(json.dumps(notes))
    return root


def build_vocalset(root, top="FULL"):
    """Two recordings of three techniques by every singer, and one of a technique that only the singers' task has."""
    for singer in SINGERS:
        folder = root / top / f"{'female' if singer[0] == 'f' else 'male'}{singer[1:]}"
        for technique in ("belt", "straight", "vocal_fry"):
            for context in ("arpeggios", "scales"):
                write_tone(folder / context / technique / f"{singer}_{context}_{technique}_a.wav")
        write_tone(folder / "scales" / "slow_forte" / f"{singer}_scales_slow_forte_a.wav")
    return root


def build_real_music(root):
    """A clip of two albums in every split, as `examples/real_music` cuts them."""
    lines = ["path,split,track_id,album,artist,list"]
    for album in ("asc-music", "lugaru-data"):
        for split in ("train", "validation", "test"):
            lines.append(f"{album}/{split}.flac,{split},{album}/{split},{album},Somebody,kept")
            write_tone(root / album / f"{split}.flac", seconds=0.5)
    (root / "clips.csv").write_text("\n".join(lines))
    return root


BALLROOM = (
    *(f"Albums-{album}-{number:02d}" for album in ("Fire", "Macumba", "Latin_Jam") for number in (1, 13)),
    *(f"Media-10{number}" for number in range(3401, 3416)),
)
BEATS = "0.50 1\n1.00 2\n\n1.50 3\n2.00 1\n"


def build_ballroom(root):
    """Both archives, with 21 excerpts of which the annotators name three as copies; one has no annotation."""
    for name in (*BALLROOM, "alone"):
        write_tone(root / "BallroomData" / "Waltz" / f"{name}.wav", seconds=0.3)
    (root / "BallroomAnnotations").mkdir()
    for name in (*BALLROOM, "Media-1"):
        (root / "BallroomAnnotations" / f"{name}.beats").write_text(BEATS)
    return root


DATASETS = {
    "gtzan": build_gtzan, "magnatagatune": build_magnatagatune, "emomusic": build_emomusic,
    "giantsteps": build_giantsteps, "mtg-jamendo": build_jamendo, "nsynth": build_nsynth,
    "vocalset": build_vocalset, "real-music": build_real_music, "ballroom": build_ballroom,
}  # fmt: skip
