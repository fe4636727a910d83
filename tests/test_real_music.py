"""examples/real_music: tiny packages in, a corpus and probing tasks out; downloads, kills, checksums."""

import csv
import hashlib
import importlib
import io
import shutil
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file
from toy_corpus import contents
from toy_model import SIZES, save_model
from transformers import AutoModel

from music2vec_hf import Music2VecConfig, Music2VecForPreTraining
from music2vec_hf.common.files import read_results
from music2vec_hf.probing.suite import run_suite
from music2vec_hf.probing.tasks.declarations import SPLITS
from music2vec_hf.probing.tasks.loading import TASKS, load_task, resolve_tasks

FOLDER = Path(__file__).parents[1] / "examples" / "real_music"
NOTICE = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: The Team
License: GPL-2+

Files: src/music/a.ogg
       src/music/b*
Copyright: 2001 Ann
           2002 Bob
License: CC-BY-SA-4.0
 text of the licence
 .
 Files: no field
"""
# name: folder of the music, its list, how it is packed, tag of the artist
TOYS = {
    "nexuiz-music": ("usr/share/games/nexuiz/data/music", "train", "pk3", "blkrbt"),
    "hyperrogue-music": ("usr/share/hyperrogue/music", "train", "gz", "NeonCorridor"),
    "asc-music": ("usr/share/games/asc/music", "kept", "xz", None),
    "fretsonfire-songs-sectoid": ("usr/share/songs/sectoid", "kept", "stems", None),
}


@pytest.fixture(scope="module")
def builder():
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("build")
    sys.path.remove(str(FOLDER))
    for name in ("build", "packages", "make_tiny"):
        sys.modules.pop(name, None)


def tone(pitch, artist=None, seconds=32.0, kind="OGG"):
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8_000, 1, format=kind) as file:
        if artist:
            file.artist, file.title = artist, f"At {pitch} Hz"
        file.write(0.6 * np.sin(2 * np.pi * pitch * np.arange(round(8_000 * seconds)) / 8_000))
    return buffer.getvalue()


def ar_member(name, content):
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
    return header.encode() + content + b"\n" * (len(content) % 2)


def make_package(files, packing):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz" if packing == "gz" else "w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{packing[:2]}": tar.getvalue()}
    return b"!<arch>\n" + b"".join(ar_member(name, content) for name, content in parts.items())


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A folder of packages, and the list that names them; `mirrors` are filled in by the tests."""
    root, albums = tmp_path_factory.mktemp("mirror"), {}
    for number, (name, (music, kind, packing, artist)) in enumerate(TOYS.items()):
        audio = {f"{track}.ogg": tone(200 + 90 * number + 7 * row, artist) for row, track in enumerate("abc")}
        audio |= {"short.ogg": tone(300, seconds=2), "notes.txt": b"no audio"}
        if packing == "stems":
            audio = {f"{song}/{part}.ogg": tone(150, seconds=31) for song in "abc" for part in ("song", "guitar")}
        files = {f"{music}/{path}": content for path, content in audio.items()}
        if packing == "pk3":
            pk3 = io.BytesIO()
            with zipfile.ZipFile(pk3, "w") as archive:
                for path, content in audio.items():
                    archive.writestr(f"music/{path}", content)
            files = {"usr/share/games/nexuiz/data/music.pk3": pk3.getvalue()}
        prose = "This package was debianized in prose."
        files |= {f"usr/share/doc/{name}/copyright": (prose if packing == "stems" else NOTICE).encode()}
        files |= {"usr/share/sounds/x.ogg": b"an effect"}
        content = make_package(files, packing)
        path = root / "pool" / f"{name}_1-1_all.deb"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        fields = {"list": kind, "version": "1:1-1", "pool": f"pool/{path.name}", "size": len(content), "music": music}
        fields |= {"sha256": hashlib.sha256(content).hexdigest(), "source": "src/music", "licence": "MIT"}
        albums[name] = fields | {"artist": "A Band", "homepage": "https://x.org", "stems": packing == "stems"}
    (root / "albums.yaml").write_text(yaml.safe_dump({"mirrors": [], "albums": albums}, sort_keys=False))
    return root


@pytest.fixture(scope="module")
def albums(builder, pool):
    return builder.read_albums(pool / "albums.yaml")[0]


@pytest.fixture(scope="module")
def built(builder, pool, albums, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    return out, builder.build(out, albums, [], pool / "pool")


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_built(built, builder, albums, pool):
    out, summary = built
    manifest = rows_of(out / "manifest.csv")
    assert summary["tracks"] == len(manifest) == 12 and not list(out.rglob("short*"))
    assert {(row["album"], row["split"]) for row in manifest} >= {(album.name, "test") for album in albums}
    by_id = {row["track_id"]: row for row in manifest}
    tagged, named, plain = (by_id[name] for name in ("nexuiz-music/a", "asc-music/b", "asc-music/c"))
    assert (tagged["title"], tagged["artist"], tagged["licence"]) == ("At 200 Hz", "blkrbt", "CC-BY-SA-4.0")
    assert (named["title"], named["artist"], named["licence"]) == ("b", "2001 Ann; 2002 Bob", "CC-BY-SA-4.0")
    assert (plain["artist"], plain["licence"], plain["seconds"]) == ("A Band", "GPL-2+", "32.0")
    mixed = by_id["fretsonfire-songs-sectoid/a"]
    assert (mixed["licence"], mixed["path"]) == ("MIT", "music/fretsonfire-songs-sectoid/a.flac")
    assert 0.99 < np.abs(soundfile.read(out / mixed["path"])[0]).max() <= 1.0  # 0.6 and 0.6, brought into range
    text = (out / "ATTRIBUTION.md").read_text()
    assert "| At 200 Hz | blkrbt | CC-BY-SA-4.0 | `a` |" in text and "music/asc-music/copyright" in text
    corpus = rows_of(out / "pretraining.csv")
    assert {(row["list"], row["split"]) for row in corpus} == {("train", "train")}
    assert summary["corpus"]["tracks"] == len(corpus) == 2 and (out / "corpus" / "corpus.json").is_file()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert builder.build(out, albums, [], pool / "nowhere") == summary
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(ValueError, match="name another folder"):
        builder.build(out, albums[:1], [], pool / "pool")


def test_splits_and_clips(builder):
    tracks = [f"t{number}" for number in range(10)]
    splits = builder.split_tracks("album", tracks)
    assert splits == builder.split_tracks("album", tracks[::-1])
    assert sorted(splits.values()) == ["test"] * 3 + ["train"] * 5 + ["validation"] * 2
    known = builder.split_tracks("hyperrogue-music", ["hr3-caves", "hr3-hell", "hr3-rlyeh", "hr-domina-hunting"])
    assert [name for name, split in known.items() if split == "test"] == ["hr3-caves"]

    def track(name, seconds):
        return builder.Track(name, "", name, "", "", "", "train", "train", seconds)

    short, long = track("short", 30.0), track("long", 111.0)
    assert builder.place_clips([short, long], 2) == {short: [10.0], long: [50.5]}
    places = builder.place_clips([short, long], 99)
    assert places[short] == [5.0, 15.0] and len(places[long]) == 10
    assert places[long][0] >= 5 and places[long][-1] + 10 <= 106 and min(np.diff(places[long])) >= 10


def test_the_tasks_read_it(built, tmp_path):
    out, summary = built
    assert resolve_tasks("real") == ("soundtrack", "soundtrack-kept", "composer")
    assert summary["clips"] == {f"{kind} {split}": 4 for kind in ("train", "kept") for split in SPLITS}
    for name, labels in (
        ("soundtrack", {"nexuiz-music", "hyperrogue-music"}),
        ("soundtrack-kept", {"asc-music", "fretsonfire-songs-sectoid"}),
        ("composer", {"blkrbt", "NeonCorridor"}),
    ):
        data = load_task(name, out / "tasks")
        assert data.split_sizes == dict.fromkeys(SPLITS, 4) and not data.comparable
        assert {data.task.labels[target] for target in data.splits["test"].targets} == labels
        assert {soundfile.info(path).duration for path in data.paths} == {10.0}
        assert "album effect" in data.task.split_rule
    where = rows_of(out / "tasks" / "real-music" / "clips.csv")
    splits = {(row["track_id"], row["split"]) for row in where}
    assert len(splits) == len({track for track, _ in splits}) == 12
    run_suite({"mel": "mel"}, "soundtrack", out / "tasks", tmp_path / "out", seeds=(0,), progress=False)
    record = next(one for one in read_results(tmp_path / "out")["records"] if one["source"] == "mel")
    assert record["task"] == "soundtrack" and record["value"] == 1.0 and not record["synthetic"]
    with pytest.raises(FileNotFoundError, match=r"clips\.csv' is not there.*examples/real_music/build\.py"):
        load_task("soundtrack", tmp_path)


def test_what_is_released_is_the_encoder_in_half_the_bytes(builder, tmp_path):
    student = Music2VecForPreTraining(Music2VecConfig(**SIZES, acoustic_weight=1.0))
    save_model(student, tmp_path / "run")
    (tmp_path / "ATTRIBUTION.md").write_text("# Attribution\n")
    importlib.import_module("make_tiny").release(tmp_path / "run", tmp_path / "out", tmp_path / "ATTRIBUTION.md")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32 and model.state_dict().keys() == student.data2vec_audio.state_dict().keys()
    for name, tensor in student.data2vec_audio.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=2**-8, atol=1e-6)
    assert (tmp_path / "out" / "ATTRIBUTION.md").is_file()


@pytest.mark.slow
def test_one_command_makes_the_weights_and_their_card(built, builder, tmp_path, monkeypatch):
    """Every stage, with a few updates and clips."""
    out, make_tiny = tmp_path / "out", importlib.import_module("make_tiny")
    shutil.copytree(built[0], out)
    few = {"rising": ["--max_steps", "3"], "settling": ["--max_steps", "2", "--seed", "2"]}
    monkeypatch.setattr(make_tiny, "STAGES", few)
    monkeypatch.setattr(make_tiny, "NUM_CLIPS", 60)
    monkeypatch.setattr(sys, "argv", ["make_tiny.py", str(out)])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    make_tiny.main()
    assert [path.name for path in sorted(out.glob("*/checkpoint-*"))] == ["checkpoint-3", "checkpoint-2"]
    card = (out / "tiny" / "README.md").read_text()
    assert "On the five albums that it never heard" in card and "| optimiser steps | 2 |" in card.replace("  ", "")
    assert AutoModel.from_pretrained(out / "tiny").config.conv_dim == [336, 256]
    tasks = {record["task"] for record in read_results(out / "tiny")["records"]}
    assert tasks == {"synthetic-genre", "synthetic-key", "synthetic-tags", "synthetic-emotion", "soundtrack"}


def test_a_killed_run_goes_on(built, builder, albums, pool, tmp_path, monkeypatch):
    calls = []

    def killed(samples):
        calls.append(samples)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return encode(samples)

    encode, out = builder.encode_flac, tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(builder, "encode_flac", killed)
        builder.build(out, albums, [], pool / "pool")
    assert not (out / "real_music.json").exists()
    (out / "music" / ".asc-music.1.unfinished").mkdir()  # what a kill at another place leaves
    (out / "tasks" / "real-music" / ".clips.csv.1.unfinished").write_text("half")
    shutil.rmtree(out / "music" / "asc-music")
    builder.build(out, albums, [], pool / "pool")
    assert contents(out / "tasks") == contents(built[0] / "tasks")
    assert contents(out / "music") == contents(built[0] / "music")
    assert not list(out.rglob("*.unfinished"))


class Mirror(BaseHTTPRequestHandler):
    """Serves `server.root`; breaks off every first answer of a file in its middle; notes the ranges asked for."""

    def do_GET(self):
        content = (self.server.root / self.path.lstrip("/")).read_bytes()
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.server.asked.append((self.path, start))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:] if start else content[: len(content) // 2])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def mirror(pool):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.root, server.asked = pool, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_packages_come_by_http(builder, albums, pool, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get
    server, url = mirror
    with pytest.raises(
        OSError, match=r"asc-music 1:1-1. Fetch these 1 files elsewhere.* http://127.*asc-music_1-1_all"
    ):
        builder.fetch_packages(albums[2:3], tmp_path / "got", [url])
    builder.fetch_packages(albums, tmp_path / "got", [url, url])  # the second goes on with what the first gave
    assert contents(tmp_path / "got") == contents(pool / "pool")
    half = albums[2].size // 2
    assert [start for path, start in server.asked if "asc-music" in path] == [0, half]
    asked = len(server.asked)
    assert builder.fetch_packages(albums, tmp_path / "got", [url]).keys() == TOYS.keys()
    assert len(server.asked) == asked


def test_what_is_not_the_package_is_refused(builder, albums, pool, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    server, url = mirror
    server.root = tmp_path
    (tmp_path / "pool").mkdir()
    wrong = tmp_path / albums[2].pool
    wrong.write_bytes(b"x" * albums[2].size)
    with pytest.raises(ValueError, match=rf"another file than asc-music 1:1-1.*the list has {albums[2].sha256}"):
        builder.fetch_packages(albums[2:3], tmp_path / "got", [url, url])
    assert list((tmp_path / "got").iterdir()) == []
    (tmp_path / "got" / wrong.name).write_bytes(b"of the user")
    with pytest.raises(OSError, match="Fetch these 1 files"):
        builder.fetch_packages(albums[2:3], tmp_path / "got", ["http://127.0.0.1:9"])
    not_debian = tmp_path / "odd.deb"
    not_debian.write_bytes(b"!<arch>\n" + ar_member("debian-binary", b"2.0\n"))
    with pytest.raises(ValueError, match=r"odd\.deb is no Debian package"):
        builder.unpack(not_debian, albums[2], tmp_path / "music")


def test_packages_come_by_apt(builder, albums, pool, tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "apt-get"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\n[ "$2" = asc-music=1:1-1 ] && /bin/cp {pool}/pool/asc-music_1-1_all.deb .\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    found = builder.fetch_packages(albums[2:3], tmp_path / "got", [])
    assert found["asc-music"].parent == tmp_path / "got"
    with pytest.raises(OSError, match="Neither apt-get nor HTTP gives nexuiz-music"):
        builder.fetch_packages(albums[:1], tmp_path / "got", ["http://127.0.0.1:9"])


def test_the_list_that_ships(builder, monkeypatch, capsys):
    albums, mirrors = builder.read_albums(FOLDER / "albums.yaml")
    by_list = {kind: sorted(album.name for album in albums if album.list == kind) for kind in ("train", "kept")}
    assert by_list["train"] == list(TASKS["soundtrack"].labels) and len(mirrors) == 2
    assert by_list["kept"] == list(TASKS["soundtrack-kept"].labels)
    assert all(len(album.sha256) == 64 and album.pool.endswith(".deb") for album in albums)
    monkeypatch.setattr(sys, "argv", ["build.py", "out", "--albums", "odd"])
    with pytest.raises(SystemExit):
        builder.main()
    assert "there is no album odd; the list has ufoai-music, " in capsys.readouterr().err
