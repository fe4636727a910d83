"""emoMusic and GiantSteps in their official layouts at full size: splits recomputed from artists equal the lists."""

import shutil

import numpy as np
import pytest
from toy_datasets import build_emomusic, build_giantsteps, giantsteps_artists, link, write_tone

from music2vec_hf.common.metrics import KEY_LABELS
from music2vec_hf.probing.tables import list_path, read_table
from music2vec_hf.probing.tasks import songs
from music2vec_hf.probing.tasks.declarations import SPLITS
from music2vec_hf.probing.tasks.loading import load_task
from music2vec_hf.probing.tasks.songs import benchmark_split


@pytest.fixture(scope="module")
def songs_1000(tmp_path_factory):
    return build_emomusic(tmp_path_factory.mktemp("emomusic"), benchmark_split("emomusic_split.tsv"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return build_giantsteps(tmp_path_factory.mktemp("giantsteps"))


def copy_without_audio(root, target):
    """A copy of the annotations with links to the audio, to be edited."""
    shutil.copytree(root, target, copy_function=lambda source, to: link(source, type(target)(to)))
    return target


def edit(path, change):
    """Change a file's text; a new file, because the copy is a link."""
    text = path.read_bytes().decode()
    assert change(text) != text
    path.unlink()
    path.write_bytes(change(text).encode())


def split_of(data):
    return {track: name for name in SPLITS for track in data.splits[name].track_ids}


def test_the_hash_of_real_artists_gives_the_published_split():
    """Names that the data sets' own pages show, with the split of their songs in the lists."""
    assert (
        songs.split_by_artist("The New Mystikal Troubadours")
        == benchmark_split("emomusic_split.tsv")["2"]
        == "validation"
    )
    real = songs.split_by_artists({"5881": "Brainbashers, Lance Madden"})
    assert real["5881"] == benchmark_split("giantsteps_split.tsv")["5881"] == "train"


def test_emomusic_split_by_artists_equals_the_list(songs_1000):
    data = load_task("emomusic", songs_1000)
    assert data.split_sizes == {"train": 504, "validation": 115, "test": 125}
    assert split_of(data) == benchmark_split("emomusic_split.tsv")
    assert data.differences == () and data.comparable and data.extra == ()
    assert all(path.stem == track for track, path in zip(split_of(data), data.paths, strict=True))


def test_emomusic_hash_ignores_what_it_must(songs_1000):
    for spelled in ("KEVIN  MacLeod", " Kevin\tMacLeod ", "Kevin MacLeod 2", "Kévin MacLeod".replace("é", "eé")):
        assert songs.split_by_artist(spelled) == songs.split_by_artist("kevin macleod")
    names = [f"{first} {second}" for first in "abcdefgh" for second in "abcdefghij"]
    assert {songs.split_by_artist(name) for name in names} == {"train", "validation"}


def test_emomusic_targets_keep_their_units_and_bring_the_benchmarks_statistics(songs_1000):
    data = load_task("emomusic", songs_1000)
    assert data.task.labels == ("arousal", "valence")
    rows = {row["song_id"]: row for row in read_table(songs_1000 / "static_annotations.csv", ",", HEADER)}
    for split in data.splits.values():
        expected = [
            [float(rows[track]["mean_arousal"]), float(rows[track]["mean_valence"])] for track in split.track_ids
        ]
        np.testing.assert_allclose(split.targets, expected, rtol=1e-6)
    development = np.concatenate([data.splits[name].targets for name in ("train", "validation")])
    mean, deviation = data.task.target_statistics
    np.testing.assert_allclose(mean, [4.756063, 4.973865], atol=1e-6)
    np.testing.assert_allclose(deviation, [1.386010, 1.254618], atol=1e-6)
    np.testing.assert_allclose(deviation, development.std(axis=0, ddof=0), rtol=1e-5)
    assert not np.allclose(mean, data.splits["train"].targets.mean(axis=0), atol=1e-4)


HEADER = ("song_id", "mean_arousal", "mean_valence")


def test_emomusic_other_layouts_and_values(songs_1000, tmp_path):
    copy = copy_without_audio(songs_1000, tmp_path / "copy")
    (copy / "annotations").mkdir()
    for name in ("songs_info.csv", "static_annotations.csv"):
        (copy / name).rename(copy / "annotations" / name)
    (copy / "clips_45seconds").rename(copy / "clips_45sec")
    write_tone(copy / "clips_45sec" / "1.mp3", seconds=0.5)
    data = load_task("emomusic", copy)
    assert data.comparable and data.extra == ("clips_45sec/1.mp3",)
    edit(copy / "annotations" / "static_annotations.csv", lambda text: text.replace("\n2,", "\n2,1", 1))
    (sentence,) = load_task("emomusic", copy).differences
    assert sentence.startswith("mean and standard deviation of the development songs are ")
    assert "the benchmark's are 4.756063, 4.973865 and 1.386010, 1.254618" in sentence


def test_emomusic_edited_artists_are_noticed(songs_1000, tmp_path):
    copy = copy_without_audio(songs_1000, tmp_path / "copy")
    moved = next(song for song, split in benchmark_split("emomusic_split.tsv").items() if split == "train")
    info = copy / "songs_info.csv"

    def change(text):
        line = next(line for line in text.splitlines() if line.startswith(f"{moved},"))
        cells = line.split(",")
        return text.replace(line, ",".join([*cells[:2], "The New Mystikal Troubadours", *cells[3:]]))

    edit(info, change)
    differences = load_task("emomusic", copy).differences
    assert f"tracks in another split than in the benchmark: {moved}." in differences
    assert "train: 503 tracks, the benchmark has 504." in differences


@pytest.mark.parametrize(
    "header",
    ["song_id,valence_mean,valence_std,arousal_mean,arousal_std", "musicId,Arousal(mean),Valence(mean),x,y"],
    ids=["DEAM", "PMEmo"],
)
def test_other_emotion_data_sets_are_refused(songs_1000, tmp_path, header):
    copy = copy_without_audio(songs_1000, tmp_path / "copy")
    original = "song_id,mean_arousal,std_arousal,mean_valence,std_valence"
    edit(copy / "static_annotations.csv", lambda text: text.replace(original, header))
    with pytest.raises(
        ValueError, match=r"has no column .*mean_arousal.* other data sets have files of the same name"
    ):
        load_task("emomusic", copy)


def test_emomusic_mistakes_get_a_sentence(songs_1000, tmp_path):
    copy = copy_without_audio(songs_1000, tmp_path / "copy")
    static, info = copy / "static_annotations.csv", copy / "songs_info.csv"
    edit(static, lambda text: text.rsplit("\n", 1)[0])
    with pytest.raises(ValueError, match="Songs 1000 are in only one of"):
        load_task("emomusic", copy)
    static.unlink()
    link(songs_1000 / static.name, static)
    edit(info, lambda text: text.replace("development", "training", 1))
    with pytest.raises(ValueError, match=r"Song 2 of .* has 'training' as Mediaeval 2013 set"):
        load_task("emomusic", copy)
    info.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no songs_info.csv, .* Get it from: http://cvml"):
        load_task("emomusic", copy)


def test_giantsteps_split_by_artists_equals_the_list(keys):
    data = load_task("giantsteps", keys)
    assert data.split_sizes == {"train": 923, "validation": 236, "test": 604}
    assert split_of(data) == benchmark_split("giantsteps_split.tsv")
    assert data.differences == () and data.comparable and data.extra == ()
    counts = read_table(list_path("giantsteps_keys.tsv"), "\t", ("label", *SPLITS))
    assert tuple(row["label"] for row in counts) == KEY_LABELS == data.task.labels


def test_giantsteps_clips_of_a_song(keys):
    """The unit is the song; a clip is a whole window of 30 s, and the rest of 0.06 s is none."""
    data = load_task("giantsteps", keys)
    assert data.task.clip_seconds == 30.0
    rows = read_table(list_path("giantsteps_split.tsv"), "\t", ("track_id", "clips"))
    clips = {row["track_id"]: int(row["clips"]) for row in rows}
    for split in data.splits.values():
        assert split.num_clips == tuple(clips[track] for track in split.track_ids)
    assert [sum(data.splits[name].num_clips) for name in SPLITS] == [3_687, 942, 2_406]


def test_giantsteps_one_folder_of_audio_and_shortened_songs(keys, tmp_path):
    copy = copy_without_audio(keys, tmp_path / "copy")
    (copy / "audio").mkdir()
    for path in sorted(copy.glob("giantsteps*/audio/*.mp3")):
        path.rename(copy / "audio" / path.name)
    assert load_task("giantsteps", copy).comparable
    for song in ("1004923", "1224698"):
        (copy / "audio" / f"{song}.LOFI.mp3").unlink()
    write_tone(copy / "audio" / "1004923.LOFI.mp3", seconds=29.97, rate=8_000)
    write_tone(copy / "audio" / "1224698.LOFI.mp3", seconds=5.0, rate=8_000)
    write_tone(copy / "audio" / "77.LOFI.mp3", seconds=0.5)
    data = load_task("giantsteps", copy)
    assert data.differences == ("test: 2403 clips of 30 s, the benchmark has 2406.",)
    assert data.extra == ("audio/77.LOFI.mp3",)
    clips = dict(zip(data.splits["test"].track_ids, data.splits["test"].num_clips, strict=True))
    assert clips["1004923"] == 1 and clips["1224698"] == 1


def test_giantsteps_plus_is_not_the_benchmark(keys, tmp_path):
    copy = copy_without_audio(keys, tmp_path / "copy")
    path = copy / "giantsteps-key-dataset" / "audio" / "1004923.LOFI.mp3"
    path.rename(path.with_name("1004923 Kaiserdisco - Carachillo (Original Mix).mp3"))
    data = load_task("giantsteps", copy)
    (sentence,) = data.differences
    assert "1 audio files are named as in GiantSteps+" in sentence and "1004923 Kaiserdisco" in sentence


def test_giantsteps_unsure_and_ambiguous_songs_are_left_out_and_spelling_is_mapped(keys):
    tracks = split_of(load_task("giantsteps", keys))
    annotations = next(keys.glob("*/annotations/annotations.txt"))
    rows = read_table(annotations, "\t", ("ID", "MANUAL KEY", "C"))
    unsure = {row["ID"] for row in rows if row["C"] != "2"}
    ambiguous = {row["ID"] for row in rows if row["C"] == "2" and "/" in row["MANUAL KEY"]}
    assert len(rows) == 1_486 and unsure and ambiguous and not (unsure | ambiguous) & tracks.keys()
    sharps = {"C#": "Db", "D#": "Eb", "F#": "Gb", "G#": "Ab", "A#": "Bb"}
    for sharp, flat in sharps.items():
        assert songs.flat_key(f"{sharp} major ") == f"{flat} major" in KEY_LABELS
    assert songs.flat_key("C minor") == "C minor"


def test_co_artists_follow_a_validation_artist_and_their_own_co_artists_too():
    names = giantsteps_artists(4)
    a, b, c, d = names["train"][:4]
    held = names["validation"][0]
    together = {"1": a, "2": f"{a},{held}", "3": f" {a} , {b}", "4": b, "5": c, "6": f"{c}, {d}"}
    assert songs.split_by_artists(together) == dict.fromkeys("1234", "validation") | dict.fromkeys("56", "train")
    # The hash is that of the lower-case name; who is a co-artist goes by the name as it is written.
    assert songs.split_by_artists({"1": held.upper()}) == {"1": "validation"}
    # A chain backwards through the table: two passes reach two links, as in the published split.
    chain = {"1": f"{c}, {d}", "2": f"{b}, {c}", "3": f"{a}, {b}", "4": f"{held}, {a}"}
    assert songs.split_by_artists(chain) == {
        "1": "train",
        "2": "validation",
        "3": "validation",
        "4": "validation",
    }


def test_the_artists_of_songs_that_are_left_out_count_too(keys, tmp_path):
    copy = copy_without_audio(keys, tmp_path / "copy")
    names = giantsteps_artists(2)
    metadata = next(copy.glob("*/annotations/beatport_metadata.txt"))
    edit(metadata, lambda text: text.replace("Nobody 0\t", f"{names['train'][0]}, {names['validation'][0]}\t"))
    data = load_task("giantsteps", copy)
    assert not data.comparable and data.split_sizes["validation"] > 236
    assert data.differences[0].startswith("tracks in another split than in the benchmark: ")


def test_giantsteps_mistakes_get_a_sentence(keys, tmp_path):
    with pytest.raises(FileNotFoundError, match="that is giantsteps-mtg-key-dataset"):
        load_task("giantsteps", tmp_path)
    copy = copy_without_audio(keys, tmp_path / "copy")
    test_root = copy / "giantsteps-key-dataset"
    table = next(copy.glob("*/annotations/annotations.txt"))
    edit(table, lambda text: text.replace("C minor\t2", "H minor\t2", 1))
    with pytest.raises(ValueError, match="unknown to the task: H minor"):
        load_task("giantsteps", copy)
    edit(table.with_name("beatport_metadata.txt"), lambda text: text.replace("5881\t", "5882\t", 1))
    with pytest.raises(ValueError, match=r"Songs 5881 of .* have no row in beatport_metadata.txt"):
        load_task("giantsteps", copy)
    test_root.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="that is giantsteps-key-dataset"):
        load_task("giantsteps", copy)
