"""Parts that merge to the single run's bytes, duplicates, samples of so many hours, one run at a time."""

import json

import numpy as np
import pytest
import soundfile
from toy_corpus import contents, interrupt, kill, rejects_of, start_until

from music2vec_hf.audio.listing import list_source
from music2vec_hf.cli import main
from music2vec_hf.corpus.prepare import merge_corpus, parse_shard, prepare_corpus, sample_tracks

SETTINGS = {"clip_seconds": 5.0, "shard_megabytes": 0.3, "progress": False}
SECONDS = [12, 6, 4, 3, 9, 5, 7, 8, 11, 4]


def prepare(source, out, **settings):
    return prepare_corpus(source, out, **{**SETTINGS, **settings})


def music(seconds, seed):
    return 0.1 * np.random.default_rng(seed).standard_normal(seconds * 16000).clip(-3, 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A source with rejects, duplicates and two splits, and its corpus by a single run."""
    source, out = tmp_path_factory.mktemp("parts") / "source", tmp_path_factory.mktemp("whole") / "out"
    source.mkdir()
    rows = []
    for index, seconds in enumerate(SECONDS):
        soundfile.write(source / f"{index}.wav", music(seconds, index), 16000, subtype="PCM_16")
        rows.append(
            {"path": f"{index}.wav", "split": "test" if index == 3 else "train", "artist_id": f"A{index // 3}"}
        )
    samples = soundfile.read(source / "1.wav")[0]
    soundfile.write(source / "again.flac", samples, 16000, subtype="PCM_16")
    soundfile.write(source / "longer.flac", np.append(samples, 0.01), 16000, subtype="PCM_16")
    (source / "letter.wav").write_text("no audio")
    soundfile.write(source / "silent.wav", np.zeros(80000), 16000)
    soundfile.write(source / "silence.wav", np.zeros(80000), 16000)
    rows += [{"path": name} for name in ("again.flac", "longer.flac", "letter.wav", "silent.wav", "silence.wav")]
    (source / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return source, out, prepare(source, out)


def test_four_parts_merged_equal_the_single_run(whole, tmp_path):
    source, out, summary = whole
    # Begun in any order, one of them twice; several shards, so that the merge drops clips on its way.
    parts = [prepare(source, tmp_path / "out", shard=(index, 4)) for index in (2, 0, 3, 2, 1)]
    assert sum(part["tracks"] for part in parts) - parts[3]["tracks"] == len(SECONDS) + 5
    assert parts[3] == parts[0] and not (tmp_path / "out" / "data").exists()
    assert merge_corpus(tmp_path / "out", progress=False) == summary
    assert contents(tmp_path / "out") == contents(out)
    assert summary["splits"]["train"]["shards"] > 2
    # Both are done: nothing happens.
    assert merge_corpus(tmp_path / "out", progress=False) == summary
    assert prepare(source, tmp_path / "out", shard=(1, 4)) == summary


def test_a_merge_names_what_is_missing_or_damaged_and_goes_on_when_it_was_killed(whole, tmp_path, monkeypatch):
    source, whole_out, _ = whole
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="is not a folder; give the one"):
        merge_corpus(out)
    out.mkdir()
    with pytest.raises(ValueError, match="holds no parts to merge"):
        merge_corpus(out)
    prepare(source, out, shard=(0, 3))
    with pytest.raises(ValueError, match=r"lacks 2 of 3 parts \(\d of \d shards\); .* --shard 1/3, --shard 2/3 first"):
        merge_corpus(out)
    with pytest.raises(ValueError, match="was begun with number of shards 3, now it is 4"):
        prepare(source, out, shard=(1, 4))
    with pytest.raises(ValueError, match=r"was begun with clip_seconds 5.0, now it is 7.0"):
        prepare(source, out, shard=(1, 3), clip_seconds=7.0)
    for index in (1, 2):
        prepare(source, out, shard=(index, 3))
    damaged, gone = out / ".unfinished" / "00001.parquet", out / ".unfinished" / "00004.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    gone.unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 3 parts \(2 of \d shards\), .*|--shard 1/3 first"):
        merge_corpus(out)
    prepare(source, out, shard=(1, 3))
    with monkeypatch.context() as patch:
        patch.setattr("music2vec_hf.corpus.publishing._summarise", interrupt)
        with pytest.raises(KeyboardInterrupt):
            merge_corpus(out, progress=False)
    merge_corpus(out, progress=False)
    assert contents(out) == contents(whole_out)


def test_a_merge_of_a_changed_source_is_refused(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    soundfile.write(source / "a.wav", music(3, 0), 16000)
    prepare(source, out, shard=(0, 1))
    soundfile.write(source / "b.wav", music(3, 1), 16000)
    with pytest.raises(ValueError, match="was begun with files 1, now it is 2"):
        merge_corpus(out)


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "a/b", "0/0", "1/2/3"])
def test_shards_count_from_zero(text):
    assert parse_shard("3/4") == (3, 4)
    with pytest.raises(ValueError, match="`shard` is"):
        parse_shard(text)


def test_the_command_prepares_parts_and_merges(whole, tmp_path, capsys):
    words = ["prepare", str(whole[0]), str(tmp_path / "out"), "--num-proc", "1", "--shard"]
    assert main([*words, "0/2"]) == 0 and "part 0/2: " in capsys.readouterr().out
    assert main(["merge", str(tmp_path / "out")]) == 1 and "lacks 1 of 2 parts" in capsys.readouterr().err
    assert main([*words, "1/2"]) == 0
    assert main(["merge", str(tmp_path / "out")]) == 0 and "rejected (see" in capsys.readouterr().out


def test_duplicates_are_dropped_and_named(whole):
    _, out, summary = whole
    reasons = [row for row in rejects_of(out) if row[1].startswith("duplicate")]
    # A file with the same samples in another format; one with a sample more is another track, silence is silence.
    assert reasons == [["again.flac", "duplicate: it decodes to the same samples as 1.wav, which is kept."]]
    assert summary["rejects"] == {"duplicate": 1, "silence": 2, "undecodable": 1}
    assert summary["rejected_files"] == 4 and summary["tracks"] == len(SECONDS) + 1
    assert "- duplicate: 1" in (out / "README.md").read_text()


def test_a_sample_takes_whole_artists_until_the_hours_are_reached(whole):
    listing, names = list_source(whole[0]), {}
    lengths = {**{str(index): seconds for index, seconds in enumerate(SECONDS)}, "again": 6, "longer": 6}
    lengths |= {"silent": 5, "silence": 5}
    for seconds in (10, 25, 40):
        for seed in (0, 1, 2):
            sample = sample_tracks(listing, seconds / 3600, seed, progress=False)
            chosen = names[seconds, seed] = [track.source for track in sample.tracks]
            assert chosen == [track.source for track in listing.tracks if track.source in chosen]
            assert sample.not_sampled == len(listing.tracks) - len(chosen)
            assert sum(lengths.get(name.split(".")[0], 0) for name in chosen) >= seconds - 0.1
            artists = {track.metadata["artist_id"] for track in sample.tracks} - {None}
            assert all(track in sample.tracks for track in listing.tracks if track.metadata["artist_id"] in artists)
    for seed in (0, 1, 2):
        assert set(names[10, seed]) <= set(names[25, seed]) <= set(names[40, seed])
    assert len({tuple(names[25, seed]) for seed in (0, 1, 2)}) > 1


def test_a_sample_in_parts_is_the_sample_of_a_single_run(whole, tmp_path):
    source = whole[0]
    summary = prepare(source, tmp_path / "single", hours=30 / 3600, seed=5)
    for index in range(2):
        prepare(source, tmp_path / "parts", hours=30 / 3600, seed=5, shard=(index, 2))
    assert merge_corpus(tmp_path / "parts", progress=False) == summary
    assert contents(tmp_path / "parts") == contents(tmp_path / "single")
    assert summary["not_sampled"] > 0 and summary["settings"]["seed"] == 5
    assert f"(seed 5): {summary['not_sampled']}" in (tmp_path / "single" / "README.md").read_text()
    with pytest.raises(ValueError, match=r"was made with seed 5, now it is 6"):
        prepare(source, tmp_path / "single", hours=30 / 3600, seed=6)
    with pytest.raises(ValueError, match=r"last 0.0\d h by their headers, fewer than the 10 hours asked for"):
        prepare(source, tmp_path / "more", hours=10)
    assert not (tmp_path / "more").exists()


def test_a_second_run_into_the_same_folder_is_refused(whole, tmp_path):
    source, whole_out, _ = whole
    out = tmp_path / "out"
    busy = r"Another `prepare` or `merge` is writing into .*; wait until it has ended"
    part = start_until("0.wav", source, out, shard=(0, 2), **SETTINGS)
    with pytest.raises(ValueError, match=busy):
        prepare(source, out)
    with pytest.raises(ValueError, match=busy):
        merge_corpus(out)
    with pytest.raises(ValueError, match="Another process prepares part 0/2 of"):
        prepare(source, out, shard=(0, 2))
    # Parts run at the same time.
    assert prepare(source, out, shard=(1, 2))["part"] == 1
    kill(part)
    # The lock went with the process that held it. A track that ends its process is another test's.
    next(out.glob(".unfinished/*.decoding")).unlink()
    single = start_until("0.wav", source, out, **SETTINGS)
    with pytest.raises(ValueError, match=busy):
        prepare(source, out)
    with pytest.raises(ValueError, match=busy):
        prepare(source, out, shard=(0, 2))
    single.go_on.set()
    single.join()
    assert single.exitcode == 0 and contents(out) == contents(whole_out)
