"""Debian packages without dpkg: fetch the stated version, take out music and copyright file, read the latter."""

import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.request import Request, urlopen

import yaml
from tqdm import tqdm

from music2vec_hf.audio.decoding import is_audio_file

COPYRIGHT = "copyright"


@dataclass(frozen=True)
class Album:
    """One package of the list; `albums.yaml` says what the fields mean."""

    name: str
    list: str
    version: str
    pool: str
    size: int
    sha256: str
    music: str
    artist: str
    homepage: str
    files: tuple[str, ...] = ("*",)
    source: str = ""
    licence: str = "see the copyright file"
    stems: bool = False


def read_albums(path: Path) -> tuple[list[Album], list[str]]:
    """The albums of a list, and the addresses below which their packages lie."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [Album(name, **fields) for name, fields in content["albums"].items()], content["mirrors"]


def fetch_packages(albums: Sequence[Album], folder: Path, mirrors: Sequence[str]) -> dict[str, Path]:
    """The package of each album: that in `folder` with the right checksum, else by `apt-get download`, else by HTTP.

    A download that was broken off goes on where it stood.

    Raises:
        ValueError: if what was sent is not the package of the list.
        OSError: if it cannot be had; names all that are missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    with tqdm(total=sum(album.size for album in albums), unit="B", unit_scale=True, desc="packages") as bar:
        for number, album in enumerate(albums):
            path = _find(album, folder) or _by_apt(album, folder) or _by_http(album, folder, mirrors)
            if path is None:
                missing = [f"{mirrors[0]}/{one.pool}" for one in albums[number:] if _find(one, folder) is None]
                raise OSError(
                    f"Neither apt-get nor HTTP gives {album.name} {album.version}. Fetch these {len(missing)} files "
                    f"elsewhere, put them into {folder} and run this again: {' '.join(missing)}"
                )
            found[album.name] = path
            bar.update(album.size)
    return found


def _find(album: Album, folder: Path) -> Path | None:
    paths = sorted(folder.glob(f"{album.name}_*.deb"))
    return next((path for path in paths if path.stat().st_size == album.size and _sum(path) == album.sha256), None)


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(path: Path, album: Album, sender: str) -> Path:
    digest = _sum(path)
    if digest != album.sha256:
        path.unlink()
        raise ValueError(
            f"{sender} sent another file than {album.name} {album.version}: its SHA-256 is {digest}, the list has "
            f"{album.sha256}. It was removed; run this again, or put the right file into {path.parent}."
        )
    return path


def _by_apt(album: Album, folder: Path) -> Path | None:
    if shutil.which("apt-get") is None:
        return None
    words = ["apt-get", "download", f"{album.name}={album.version}"]
    done = subprocess.run(words, cwd=folder, capture_output=True, check=False)
    paths = sorted(folder.glob(f"{album.name}_*.deb"), key=lambda path: path.stat().st_mtime)
    return _checked(paths[-1], album, "apt-get") if done.returncode == 0 and paths else None


def _by_http(album: Album, folder: Path, mirrors: Sequence[str]) -> Path | None:
    target = folder / PurePosixPath(album.pool).name
    part = target.with_name(f"{target.name}.part")
    for url in (f"{mirror}/{album.pool}" for mirror in mirrors):
        have = part.stat().st_size if part.exists() else 0
        try:
            if have < album.size:
                with urlopen(Request(url, headers={"Range": f"bytes={have}-"}), timeout=60) as reply:
                    with open(part, "ab" if reply.status == 206 else "wb") as file:
                        shutil.copyfileobj(reply, file, 1 << 20)
        except (OSError, HTTPException):
            continue  # the next address goes on with what is there
        if part.stat().st_size >= album.size:
            return _checked(part, album, url).rename(target)
    return None


def unpack(package: Path, album: Album, folder: Path) -> None:
    """Write the audio of an album into `folder`, by paths below its music folder, and `copyright` beside it."""
    music, notice = PurePosixPath(album.music), f"usr/share/doc/{album.name}/copyright"
    for name, file in _files(package):
        path = PurePosixPath(name)
        inside = path.relative_to(music) if path.is_relative_to(music) and is_audio_file(path.name) else None
        if inside and ".." not in inside.parts and any(fnmatchcase(str(inside), one) for one in album.files):
            target = folder / inside
        elif name == notice:
            target = folder / COPYRIGHT
        else:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)


def _files(package: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Path and content of every file of a package, those in .pk3 archives (which are zips) too."""
    with open(package, "rb") as deb, _data_archive(deb) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if not member.isfile():
                continue
            if not name.endswith(".pk3"):
                yield name, archive.extractfile(member)
                continue
            with tempfile.TemporaryFile() as copy:
                shutil.copyfileobj(archive.extractfile(member), copy, 1 << 20)
                with zipfile.ZipFile(copy) as pk3:
                    for one in pk3.infolist():
                        with pk3.open(one) as file:
                            yield str(PurePosixPath(name).parent / one.filename), file


def _data_archive(deb: BinaryIO) -> tarfile.TarFile:
    """The files of a package: `data.tar.*`, a member of an `ar` archive."""
    deb.seek(len("!<arch>\n"))
    while header := deb.read(60):  # name 16, times and owners 32, size 10, end 2
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return tarfile.open(fileobj=deb, mode="r|*")
        deb.seek(size + size % 2, 1)
    raise ValueError(f"{deb.name} is no Debian package: it has no data.tar. Fetch it again.")


@dataclass(frozen=True)
class Stanza:
    """A `Files:` stanza of a copyright file: patterns of paths, holders of the copyright, name of the licence."""

    patterns: tuple[str, ...]
    holders: str
    licence: str


def read_stanzas(notice: str) -> list[Stanza]:
    """The `Files:` stanzas of a copyright file in the machine-readable format; none of one in prose."""
    found = []
    for paragraph in re.split(r"\n\s*\n", notice):
        fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)", paragraph, flags=re.MULTILINE))
        if "Files" in fields and "License" in fields:
            holders = "; ".join(line.strip() for line in fields.get("Copyright", "").splitlines() if line.strip())
            patterns = tuple(fields["Files"].split())
            found.append(Stanza(patterns, holders, fields["License"].splitlines()[0].strip()))
    return found


def stanza_of(path: str, stanzas: Sequence[Stanza]) -> Stanza | None:
    """The last stanza that has a pattern of this path: as the format says, later ones stand above earlier ones."""
    fitting = [one for one in stanzas if any(fnmatchcase(path, pattern) for pattern in one.patterns)]
    return fitting[-1] if fitting else None
