"""One listing of audio for everything that takes a source: a folder, a manifest, Parquet, .tar archives, or the Hub.

A manifest is a CSV, TSV or JSONL file with a column of paths named `file_name`, `path` or `file`. They are relative to
its folder, to the folder in a column `root` where there is one, or absolute.
"""

import glob
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, load_dataset_builder
from huggingface_hub import is_offline_mode

from music2vec_hf.audio.containers import (
    ARCHIVE_SUFFIXES,
    PackedRow,
    audio_columns,
    list_archive,
    list_parquet,
    list_plain,
)
from music2vec_hf.audio.decoding import AUDIO_SUFFIXES, AudioSource, is_audio_file
from music2vec_hf.audio.metadata import (
    METADATA_FILES,
    TABLE_SUFFIXES,
    Table,
    names_files,
    read_split,
    read_table,
    text_of,
    type_metadata,
)
from music2vec_hf.audio.reading import UNFINISHED, corpora_among, walk_files
from music2vec_hf.common.files import printable, read_json, write_json
from music2vec_hf.common.hub import explain_hub_errors

logger = logging.getLogger(__name__)

_SYNTH = "`music2vec synth {} --clips 200 --seed 0`"
SPLIT_ORDER = ("train", "validation", "test")
HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[\w.-]+))?")


@dataclass(frozen=True)
class Track:
    """One audio file: `path` to open, `source` relative to SOURCE, its `split` and its row of metadata."""

    path: AudioSource
    source: str
    track_id: str
    split: str = "train"
    num_bytes: int = 0
    metadata: dict = field(default_factory=dict)


@dataclass
class Listing:
    """Tracks in the order of the corpus, the types of their metadata, and what cannot be listed."""

    tracks: list[Track]
    metadata_types: dict[str, pa.DataType]
    rejects: list[tuple[str, str]]  # (path, reason)
    not_sampled: int | None = None  # tracks that a sample left out; None: no sample was taken

    def digest(self) -> str:
        """A hash of what is listed: names, sizes, splits and metadata."""
        digest = hashlib.sha256()
        for track in self.tracks:
            row = [track.source, track.num_bytes, track.split, track.track_id, track.metadata]
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source.

    `kind` is "manifest" (the table), "audiofolder", "webdataset" (.tar), "parquet" or another loader of `datasets`;
    `files` are paths or URLs by split; `root` is the folder that names are relative to; `on_hub`: named by a Hub id;
    `tables`: files of metadata in a folder of audio; `rejects`: folders that cannot be listed, and why;
    `metadata_types`: of the columns of the tables, where they were read.
    """

    kind: str
    files: dict[str, list]
    root: str = ""
    on_hub: bool = False
    tables: tuple[str, ...] = ()
    rejects: tuple[tuple[str, str], ...] = ()
    metadata_types: dict[str, pa.DataType] = field(default_factory=dict)


# ---- which files there are ----


def find_files(source: str | os.PathLike) -> SourceFiles:
    """Find the files of a source; of the files themselves only the first line of tables is read.

    Args:
        source: a folder, file or glob of audio, .tar archives or Parquet; a manifest, or a folder with one at its top;
            a corpus that `prepare_corpus` made; or the id of a data set on the Hub, `user/name` or `user/name:config`.

    Raises:
        ValueError: if there is nothing of the name, no audio in it, or files of several kinds.
    """
    text = os.fspath(source)
    if os.path.isdir(text):
        return _in_folder(Path(text))
    paths = [text] if os.path.isfile(text) else sorted(glob.glob(text, recursive=True))
    if len(paths) == 1 and paths[0].lower().endswith(TABLE_SUFFIXES):
        return SourceFiles("manifest", {"train": paths}, os.path.dirname(paths[0]))
    if paths:
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
        return _of_one_kind(f"{text} matches", Path(root), list(map(Path, paths)), [])
    match = HUB_ID.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text} does not exist. Name a folder of audio, a corpus that `music2vec prepare FOLDER CORPUS` made, a "
            f"manifest, a glob, or a data set on the Hub as user/name. To try without music: {_SYNTH.format(text)}."
        )
    return _on_hub(match["id"], match["config"])


def choose_splits(source: str | os.PathLike, found: SourceFiles, split: str | None) -> list[str]:
    """The splits that `split` asks for, at least one; ValueError if it is missing or must be named."""
    names = sorted(found.files, key=_split_rank)
    if split == "all":
        return names
    if split is None and found.on_hub and "train" in names:
        return ["train"]
    if split is None and len(names) > 1:
        raise ValueError(f"{source} has the splits {', '.join(names)}; name one of them, or 'all'.")
    if split is not None and split not in names:
        raise ValueError(
            f"{source} has no split {split!r}, only {', '.join(names)}; name one of these (in a folder of audio, "
            "folders train, validation and test are splits, or a column `split` of its metadata.csv)."
        )
    return [split or names[0]]


def _in_folder(folder: Path) -> SourceFiles:
    """The files of a folder; a corpus that `prepare_corpus` left unfinished is refused."""
    if (folder / "corpus.json").exists():
        paths = sorted(path for path in folder.rglob("*.parquet") if not set(UNFINISHED) & set(path.parts))
        within = corpora_among(paths, folder)  # another one, made from this
        files = _by_split("parquet", folder, [path for path in paths if not within & set(path.parents)])
        for name, split in read_json(folder / "corpus.json", "copy it again")["splits"].items():
            if (held := len(files.get(name, []))) != split["shards"]:
                raise ValueError(
                    f"{folder} should hold {split['shards']} shards of the split {name} but holds {held}; copy it "
                    "again, or remove it and prepare it anew."
                )
        return SourceFiles("parquet", files, os.fspath(folder))
    copied = (folder / "rejects.csv").exists() and (folder / "data").is_dir()  # not wholly
    if copied or any((folder / name).exists() for name in UNFINISHED):
        raise ValueError(
            f"{folder} holds no finished corpus (corpus.json is missing); run `music2vec prepare SOURCE {folder}` "
            "to its end, started again it goes on where it stood."
        )
    manifest = _manifest_of(folder)
    if manifest is not None:
        return SourceFiles("manifest", {"train": [os.fspath(manifest)]}, os.fspath(folder))
    refused: list[tuple[str, str]] = []
    return _of_one_kind(f"{folder} holds", folder, walk_files(folder, refused), refused)


def _of_one_kind(what: str, root: Path, paths: list[Path], refused: list[tuple[str, str]]) -> SourceFiles:
    """The audio files, archives or Parquet files among some files; `what` begins the error about their kinds."""
    prepared = corpora_among(paths, root)
    others = [path for path in paths if not prepared & set(path.parents)]
    if prepared and _by_kind(others):
        logger.warning("Left out, for `music2vec prepare` made them: %s", ", ".join(sorted(map(str, prepared))))
        paths = others
    by_kind = _by_kind(paths)
    if len(by_kind) > 1 and not any(map(_has_audio, by_kind.get("parquet", ()))):
        # A table of embeddings, or of anything else, beside the audio is no data set of audio.
        by_kind.pop("parquet", None)
    if len(by_kind) != 1:
        if not by_kind:
            raise ValueError(
                f"{what} neither Parquet, .tar nor audio files ({', '.join(sorted(AUDIO_SUFFIXES))}). Name a folder "
                f"with some below it. To try without music: {_SYNTH.format('DIR')}."
            )
        kinds = ", ".join(by_kind)
        raise ValueError(f"{what} files of several kinds ({kinds}). Name one kind by a glob such as '{root}/*.tar'.")
    ((kind, files),) = by_kind.items()
    tables = [path for path in paths if path.name in METADATA_FILES and kind == "audiofolder"]
    tables = tuple(os.fspath(path) for path in tables if _is_used(path))
    return SourceFiles(kind, _by_split(kind, root, files), os.fspath(root), tables=tables, rejects=tuple(refused))


def _has_audio(path: Path) -> bool:
    """Whether a Parquet file has a column of audio; one that cannot be read may have."""
    try:
        return bool(audio_columns(Features.from_arrow_schema(pq.read_schema(path))))
    except pa.ArrowInvalid:
        return True


def _by_kind(paths: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {"parquet": [], "webdataset": [], "audiofolder": []}
    for path in paths:
        if path.suffix == ".parquet":
            found["parquet"] += [] if path.name in METADATA_FILES else [path]
        elif path.name.endswith(ARCHIVE_SUFFIXES):
            found["webdataset"].append(path)
        elif is_audio_file(path.name):
            found["audiofolder"].append(path)
    return {kind: files for kind, files in found.items() if files}


def _by_split(kind: str, root: Path, paths: list[Path]) -> dict[str, list[str]]:
    """A file's split: its name, as in train-00000-of-00001.parquet, or the folder below `root`, or "train"."""
    files: dict[str, list[str]] = {}
    for path in paths:
        named = re.match(r"(\w+)-\d+-of-\d+", path.name) if kind != "audiofolder" else None
        top = path.relative_to(root).parts[0]
        split = named[1] if named else top if top in SPLIT_ORDER else "train"
        files.setdefault(split, []).append(os.path.abspath(path))
    return files


def _manifest_of(folder: Path) -> Path | None:
    """The one manifest at the top of a folder, or None; a table without a column of paths is no manifest."""
    tables = [path for path in folder.iterdir() if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()]
    tables = sorted(path for path in tables if not path.name.startswith("."))
    manifests = [path for path in tables if _is_used(path)]
    if len(manifests) > 1:
        names = ", ".join(path.name for path in manifests)
        raise ValueError(f"{folder} holds {len(manifests)} manifests ({names}); pass the one you mean as SOURCE.")
    return manifests[0] if manifests else None


def _is_used(table: Path) -> bool:
    """Whether a table names files; one that does not is named, but for our own rejects."""
    used = names_files(table)
    if not used and table.name != "rejects.csv":
        logger.warning("%s is not used: it names no files, in a column file_name, path or file.", table)
    return used


def _on_hub(name: str, config: str | None) -> SourceFiles:
    """The files that a data set lists; offline, those that it listed when it was last opened."""
    listing = Path(datasets.config.HF_DATASETS_CACHE, "music2vec_hf", f"{name}--{config}.json".replace("/", "___"))
    if is_offline_mode() and listing.exists():
        return SourceFiles(**json.loads(listing.read_text(encoding="utf-8")))
    with explain_hub_errors(name, "a data set"):
        builder = load_dataset_builder(name, config)
    files = {str(split): [str(url) for url in urls] for split, urls in (builder.config.data_files or {}).items()}
    if builder.name == "audiofolder":
        files = {split: [url for url in urls if is_audio_file(url)] for split, urls in files.items()}
    files = {split: urls for split, urls in files.items() if urls}
    if not files:
        raise ValueError(f"{name} lists no files of audio (its loader is {builder.name}); prepare a corpus from it.")
    found = SourceFiles(builder.name, files, on_hub=True)
    if not is_offline_mode():
        write_json(listing, asdict(found))
    return found


# ---- which tracks they hold ----


def list_source(source: str | os.PathLike, folder_splits: bool = False) -> Listing:
    """List the tracks of a source, with what its tables say of them (`Track.metadata`).

    A manifest lists what it names, and nothing else. In a folder without one, `metadata.csv`, `.jsonl` and `.parquet`
    files further down tell of the files below them; their column `file_name` is relative to where they lie. A column
    `split` decides a track's split, `track_id` replaces ours; the others are metadata. Metadata of a data set are the
    other columns of Parquet, and the .json files of an archive. Nothing is decoded.

    Args:
        source: as in [`find_files`].
        folder_splits (`bool`): files of a folder without a column `split` belong to the folder `train`, `validation`
            or `test` at its top; else, and elsewhere, to "train".

    Raises:
        ValueError: if nothing is found, or what is found cannot be understood.
    """
    text = os.fspath(source)
    if os.path.isfile(text) and is_audio_file(text):
        raise ValueError(f"{text} is neither a folder nor a manifest ({', '.join(TABLE_SUFFIXES)}) nor a data set.")
    return list_tracks(source, find_files(source), folder_splits)


def list_tracks(source: str | os.PathLike, found: SourceFiles, folder_splits: bool = False) -> Listing:
    """What [`list_source`] does, of files that were found before."""
    if found.kind == "manifest":
        return _list_manifest(found)
    if found.kind == "audiofolder" and not found.on_hub:
        return _list_folder(found, folder_splits)
    return _list_packed(source, found)


def hash_track_id(source: str) -> str:
    """The track_id of a file: 16 hexadecimal digits of the SHA-256 of its path relative to SOURCE."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _list_manifest(found: SourceFiles) -> Listing:
    ((path,),) = found.files.values()
    table = read_table(path)
    entries, rejects = [], []
    for number, row in enumerate(table.rows, start=1):
        if row.get(table.path_column):
            entries.append((Path(found.root, str(row.get("root") or ""), str(row[table.path_column])), row))
        else:
            rejects.append((f"{table.path.name} row {number}", f"unreadable: its {table.path_column} is empty."))
    if not entries:
        raise ValueError(f"{path} lists no files.")
    return _list_entries(path, found.root, entries, [table], rejects)


def _list_folder(found: SourceFiles, folder_splits: bool) -> Listing:
    tables, rows, rejects = [read_table(path) for path in found.tables], {}, list(found.rejects)
    for table in tables:
        for number, row in enumerate(table.rows, start=1):
            where = f"{os.path.relpath(table.path, found.root)} row {number}"
            path = os.path.abspath(table.path.parent / str(row.get(table.path_column) or ""))
            if not row.get(table.path_column):
                rejects.append((where, f"unreadable: its {table.path_column} is empty."))
            elif path in rows:
                rejects.append((where, f"listed twice: it names {printable(path)} again; this row is left out."))
            else:
                rows[path] = row
    entries = []
    for split, paths in found.files.items():
        entries += [(Path(path), rows.pop(path, {}), split if folder_splits else "train") for path in paths]
    entries += [(Path(path), row, "train") for path, row in rows.items()]
    return _list_entries(found.root, os.path.abspath(found.root), entries, tables, rejects)


def _list_entries(where: str, root: str, entries: list[tuple], tables: list[Table], rejects: list) -> Listing:
    """Tracks of entries `(path, row)` or `(path, row, split)`; `where` is what errors call their source."""
    leave_out = {"root", "track_id", *(table.path_column for table in tables)}
    as_text = all(table.as_text for table in tables)
    types, metadata = type_metadata(where, [row for _, row, *_ in entries], leave_out, as_text)
    tracks, seen = [], set()
    for (path, row, *split), values in zip(entries, metadata, strict=True):
        relative = Path(os.path.relpath(path, root)) if path.is_relative_to(root) else path
        name = relative.as_posix()
        if name in seen:
            rejects.append((printable(name), "listed twice: the manifest names it before; this row is left out."))
            continue
        seen.add(name)
        track_id = printable(text_of(row.get("track_id")) or hash_track_id(name))
        split = read_split(where, values, *split)
        tracks.append(Track(path, printable(name), track_id, split, _num_bytes(path), values))
    return Listing(sort_tracks(tracks), types, rejects)


def _list_packed(source: str | os.PathLike, found: SourceFiles) -> Listing:
    listed = {"parquet": list_parquet, "webdataset": list_archive, "audiofolder": list_plain}
    if found.kind not in listed:
        raise ValueError(f"{source} is read by the loader {found.kind!r}; only Parquet, .tar and audio files can be.")
    rows: list[tuple[str, int, PackedRow]] = [
        (split, number, row)
        for split, containers in found.files.items()
        for container in containers
        for number, row in enumerate(listed[found.kind](container))
    ]
    if not rows:
        raise ValueError(f"{source} holds no audio files; looked for {', '.join(sorted(AUDIO_SUFFIXES))}.")
    types, metadata = type_metadata(source, [row.metadata for *_, row in rows], {"track_id"}, as_text=False)
    names = Counter(row.file.name for *_, row in rows)
    tracks = []
    for (split, number, row), values in zip(rows, metadata, strict=True):
        file = row.file
        # Names without a meaning of their own, such as audio.flac in every row.
        unique = file.name and names[file.name] == 1
        name = file.name if unique else f"{os.path.basename(file.container)}/{number:06d}/{file.name}".rstrip("/")
        track_id = printable(text_of(row.metadata.get("track_id")) or hash_track_id(name))
        tracks.append(Track(file, printable(name), track_id, read_split(source, values, split), row.num_bytes, values))
    return Listing(sort_tracks(tracks), types, [])


def sort_tracks(tracks: list[Track]) -> list[Track]:
    """The order of the corpus: train, validation, test, other splits by name; in a split by source."""
    return sorted(tracks, key=lambda track: (*_split_rank(track.split), track.source.split("/")))


def _split_rank(split: str) -> tuple[int, str]:
    return SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER), split


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: a NUL character in the name
        return 0  # opening it gives the reason for its rejection
