"""emoMusic and GiantSteps in their official layouts at full size: splits recomputed from artists equal the lists."""

import numpy as np
import pytest
from toy_datasets import copy_of, edit, giantsteps_artists, write_tone

from music2vec_hf.common.metrics import KEY_LABELS
from music2vec_hf.probing.tasks import songs
from music2vec_hf.probing.tasks.declarations import SPLITS, list_path, read_table
from music2vec_hf.probing.tasks.loading import load_task

EMOMUSIC, GIANTSTEPS = (songs.benchmark_split(f"{name}_split.tsv") for name in ("emomusic", "giantsteps"))


@pytest.fixture
def songs_1000(toy, tmp_path):
    return copy_of(toy / "emomusic", tmp_path / "copy")


@pytest.fixture
def keys(toy, tmp_path):
    return copy_of(toy / "giantsteps", tmp_path / "copy")


def split_of(data):
    return {track: name for name in SPLITS for track in data.splits[name].track_ids}


def test_the_hash_of_real_artists_gives_the_published_split():
    """Names that the data sets' own pages show, with the split of their songs in the lists."""
    assert songs.split_by_artist("The New Mystikal Troubadours") == EMOMUSIC["2"] == "validation"
    assert songs.split_by_artists({"5881": "Brainbashers, Lance Madden"})["5881"] == GIANTSTEPS["5881"] == "train"
    for spelled in ("KEVIN  MacLeod", " Kevin\tMacLeod ", "Kevin MacLeod 2", "Kévin MacLeod".replace("é", "eé")):
        assert songs.split_by_artist(spelled) == songs.split_by_artist("kevin macleod")
    names = [f"{first} {second}" for first in "abcdefgh" for second in "abcdefghij"]
    assert {songs.split_by_artist(name) for name in names} == {"train", "validation"}


def test_emomusic_is_the_benchmark_in_its_own_units(toy):
    data = load_task("emomusic", toy)
    assert data.split_sizes == {"train": 504, "validation": 115, "test": 125} and split_of(data) == EMOMUSIC
    assert data.differences == () and data.comparable and data.extra == ()
    assert all(path.stem == track for track, path in zip(split_of(data), data.paths, strict=True))
    assert data.task.labels == ("arousal", "valence")
    table = toy / "emomusic" / "static_annotations.csv"
    rows = {row["song_id"]: row for row in read_table(table, ",", ("song_id", "mean_arousal", "mean_valence"))}
    for split in data.splits.values():
        expected = [[float(rows[track][f"mean_{name}"]) for name in data.task.labels] for track in split.track_ids]
        np.testing.assert_allclose(split.targets, expected, rtol=1e-6)
    development = np.concatenate([data.splits[name].targets for name in ("train", "validation")])
    mean, deviation = data.task.target_statistics
    np.testing.assert_allclose(mean, [4.756063, 4.973865], atol=1e-6)
    np.testing.assert_allclose(deviation, [1.386010, 1.254618], atol=1e-6)
    np.testing.assert_allclose(deviation, development.std(axis=0, ddof=0), rtol=1e-5)
    assert not np.allclose(mean, data.splits["train"].targets.mean(axis=0), atol=1e-4)


def test_emomusic_other_layouts_and_values(songs_1000):
    (songs_1000 / "annotations").mkdir()
    for name in ("songs_info.csv", "static_annotations.csv"):
        (songs_1000 / name).rename(songs_1000 / "annotations" / name)
    (songs_1000 / "clips_45seconds").rename(songs_1000 / "clips_45sec")
    write_tone(songs_1000 / "clips_45sec" / "1.mp3", seconds=0.5)
    data = load_task("emomusic", songs_1000)
    assert data.comparable and data.extra == ("clips_45sec/1.mp3",)
    edit(songs_1000 / "annotations" / "static_annotations.csv", lambda text: text.replace("\n2,", "\n2,1", 1))
    (sentence,) = load_task("emomusic", songs_1000).differences
    assert sentence.startswith("mean and standard deviation of the development songs are ")
    assert "the benchmark's are 4.756063, 4.973865 and 1.386010, 1.254618" in sentence


def test_emomusic_edited_artists_are_noticed(songs_1000):
    moved = next(song for song, split in EMOMUSIC.items() if split == "train")

    def change(text):
        line = next(line for line in text.splitlines() if line.startswith(f"{moved},"))
        cells = line.split(",")
        return text.replace(line, ",".join([*cells[:2], "The New Mystikal Troubadours", *cells[3:]]))

    edit(songs_1000 / "songs_info.csv", change)
    differences = load_task("emomusic", songs_1000).differences
    assert f"tracks in another split than in the benchmark: {moved}." in differences
    assert "train: 503 tracks, the benchmark has 504." in differences


@pytest.mark.parametrize(
    "table, change, sentence",
    [
        ("static", ("mean_arousal", "arousal_mean"), r"has no column .*mean_arousal.* files of the same name"),  # DEAM
        ("static", ("song_id,mean", "musicId,Arousal(mean"), r"has no column .*other data sets"),  # PMEmo
        ("static", ("\n1000,", "\n1001,"), "Songs 1000, 1001 are in only one of"),
        ("static", ("\n1000,", "\nx1000,"), "has song ids that are no numbers: x1000"),
        ("info", ("development", "training"), r"Song 2 of .* has 'training' as Mediaeval 2013 set"),
    ],
)
def test_emomusic_mistakes_get_a_sentence(table, change, sentence, songs_1000):
    name = {"static": "static_annotations.csv", "info": "songs_info.csv"}[table]
    edit(songs_1000 / name, lambda text: text.replace(*change, 1))
    with pytest.raises(ValueError, match=sentence):
        load_task("emomusic", songs_1000)


def test_giantsteps_is_the_benchmark(toy):
    data = load_task("giantsteps", toy)
    assert data.split_sizes == {"train": 923, "validation": 236, "test": 604} and split_of(data) == GIANTSTEPS
    assert data.differences == () and data.comparable and data.extra == ()
    assert tuple(data.task.label_counts) == KEY_LABELS == data.task.labels
    # The unit is the song; a clip is a whole window of 30 s, and the rest of 0.06 s is none.
    assert data.task.clip_seconds == 30.0
    rows = read_table(list_path("giantsteps_split.tsv"), "\t", ("track_id", "clips"))
    clips = {row["track_id"]: int(row["clips"]) for row in rows}
    for split in data.splits.values():
        assert split.num_clips == tuple(clips[track] for track in split.track_ids)
    assert [sum(data.splits[name].num_clips) for name in SPLITS] == [3_687, 942, 2_406]
    # Unsure and ambiguous songs are left out, and spelling is mapped.
    annotations = next((toy / "giantsteps").glob("*/annotations/annotations.txt"))
    rows = read_table(annotations, "\t", ("ID", "MANUAL KEY", "C"))
    unsure = {row["ID"] for row in rows if row["C"] != "2"}
    ambiguous = {row["ID"] for row in rows if row["C"] == "2" and "/" in row["MANUAL KEY"]}
    assert len(rows) == 1_486 and unsure and ambiguous and not (unsure | ambiguous) & split_of(data).keys()
    sharps = {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb"}
    for sharp, flat in sharps.items():
        assert songs.flat_key(f"{sharp} major ") == f"{flat} major" in KEY_LABELS
    assert songs.flat_key("C minor") == "C minor"


def test_giantsteps_one_folder_of_audio_shortened_songs_and_another_edition(keys):
    (keys / "audio").mkdir()
    for path in sorted(keys.glob("giantsteps*/audio/*.mp3")):
        path.rename(keys / "audio" / path.name)
    for song in ("1004923", "1224698"):
        (keys / "audio" / f"{song}.LOFI.mp3").unlink()
    write_tone(keys / "audio" / "1004923.LOFI.mp3", seconds=29.97, rate=8_000)
    write_tone(keys / "audio" / "1224698.LOFI.mp3", seconds=5.0, rate=8_000)
    write_tone(keys / "audio" / "77.LOFI.mp3", seconds=0.5)
    renamed = keys / "audio" / "1089 Kaiserdisco - Carachillo (Original Mix).mp3"
    song = next(track for track, split in GIANTSTEPS.items() if split == "train")
    (keys / "audio" / f"{song}.LOFI.mp3").rename(renamed.with_name(renamed.name.replace("1089", song)))
    data = load_task("giantsteps", keys)
    edition, clips = data.differences
    assert "1 audio files are named as in GiantSteps+" in edition and f"{song} Kaiserdisco" in edition
    assert clips == "test: 2403 clips of 30 s, the benchmark has 2406."
    assert data.extra == ("audio/77.LOFI.mp3",)
    clips = dict(zip(data.splits["test"].track_ids, data.splits["test"].num_clips, strict=True))
    assert clips["1004923"] == 1 and clips["1224698"] == 1


def test_co_artists_follow_a_validation_artist_and_their_own_co_artists_too():
    names = giantsteps_artists(4)
    a, b, c, d = names["train"][:4]
    held = names["validation"][0]
    together = {"1": a, "2": f"{a},{held}", "3": f" {a} , {b}", "4": b, "5": c, "6": f"{c}, {d}"}
    expected = dict.fromkeys("1234", "validation") | dict.fromkeys("56", "train")
    assert songs.split_by_artists(together) == expected
    # The hash is that of the lower-case name; who is a co-artist goes by the name as it is written.
    assert songs.split_by_artists({"1": held.upper()}) == {"1": "validation"}
    # A chain backwards through the table: two passes reach two links, as in the published split.
    chain = {"1": f"{c}, {d}", "2": f"{b}, {c}", "3": f"{a}, {b}", "4": f"{held}, {a}"}
    assert songs.split_by_artists(chain) == {"1": "train"} | dict.fromkeys("234", "validation")


def test_the_artists_of_songs_that_are_left_out_count_too(keys):
    names = giantsteps_artists(2)
    metadata = next(keys.glob("*/annotations/beatport_metadata.txt"))
    edit(metadata, lambda text: text.replace("Nobody 0\t", f"{names['train'][0]}, {names['validation'][0]}\t"))
    data = load_task("giantsteps", keys)
    assert not data.comparable and data.split_sizes["validation"] > 236
    sentence = data.differences[0]
    assert sentence.startswith("tracks in another split than in the benchmark: ")
    assert len(data.affected[sentence]) > 5 and f"and {len(data.affected[sentence]) - 5} more." in sentence


def test_giantsteps_mistakes_get_a_sentence(keys, tmp_path):
    with pytest.raises(FileNotFoundError, match="that is giantsteps-mtg-key-dataset"):
        load_task("giantsteps", tmp_path / "nowhere")
    table = next(keys.glob("*/annotations/annotations.txt"))
    edit(table, lambda text: text.replace("C minor\t2", "H minor\t2", 1))
    with pytest.raises(ValueError, match="unknown to the task: H minor"):
        load_task("giantsteps", keys)
    edit(table.with_name("beatport_metadata.txt"), lambda text: text.replace("5881\t", "5882\t", 1))
    with pytest.raises(ValueError, match=r"Songs 5881 of .* have no row in beatport_metadata.txt"):
        load_task("giantsteps", keys)
    (keys / "giantsteps-key-dataset").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="that is giantsteps-key-dataset"):
        load_task("giantsteps", keys)
