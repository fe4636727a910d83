"""A prepared corpus whose clips become 16-bit WAV, in place: larger, and read without decoding."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from music2vec_hf.audio.decoding import AudioError
from music2vec_hf.audio.listing import find_files
from music2vec_hf.audio.reading import read_flac_crop, to_pcm
from music2vec_hf.audio.resampling import SAMPLING_RATE
from music2vec_hf.common.files import hold_lock, read_json, write_json, write_text, written_aside
from music2vec_hf.corpus.clips import encode_clip, write_tables

logger = logging.getLogger(__name__)


def convert_to_wav(corpus: str | os.PathLike, progress: bool = True) -> dict:
    """Store the clips of a prepared corpus as 16-bit WAV, shard by shard: 115 GB for 1,000 hours.

    The samples stay the same bit for bit. Each shard is written aside and replaced when it is whole, so a run that was
    killed leaves a corpus of both kinds, which trains as well, and goes on when it is started again.

    Args:
        corpus: folder that `prepare_corpus` made.
        progress (`bool`): show a progress bar.

    Returns:
        `dict`: `clips` (all), `bytes` of the shards, and `failed`, the names of clips that cannot be decoded; these
        stay as they are.

    Raises:
        ValueError: if there is no prepared corpus, another run is converting it, or the disk is too small.
    """
    corpus = Path(corpus)
    if not (corpus / "corpus.json").exists():
        raise ValueError(f"{corpus} is not a corpus that `music2vec prepare` made; make one of your audio first.")
    shards = [Path(path) for paths in find_files(corpus).files.values() for path in paths]
    with hold_lock(corpus / ".convert.lock", f"Another run is converting {corpus}; wait until it has ended."):
        todo = [shard for shard in shards if any(not path.endswith(".wav") for path in _clip_names(shard))]
        needed, free = sum(map(_growth, todo)), shutil.disk_usage(corpus).free
        if needed > free:
            raise ValueError(f"{corpus} needs {needed / 1e9:.1f} GB, but its disk has only {free / 1e9:.1f} GB left.")
        failed: list[str] = []
        for shard in tqdm(todo, "storing clips as wav", unit="shard", disable=not progress):
            with written_aside(shard) as aside, pq.ParquetFile(shard) as file:
                write_tables(aside, file.schema_arrow, _converted(file, failed))
        summary = read_json(corpus / "corpus.json", "prepare the corpus anew")
        if todo:
            write_json(corpus / "corpus.json", {**summary, "converted": "wav"})
            _correct_card(corpus / "README.md")
    return {"clips": summary["clips"], "bytes": sum(shard.stat().st_size for shard in shards), "failed": failed}


def _correct_card(card: Path) -> None:
    """Say WAV for FLAC, and change the line by which `datasets` tells what it has in its cache from this."""
    if card.is_file():
        text = (
            card.read_text(encoding="utf-8").replace("16-bit FLAC", "16-bit WAV").replace("a FLAC file", "a WAV file")
        )
        write_text(card, text.replace("description: content ", "description: WAV of content "))


def _clip_names(shard: Path) -> list[str]:
    with pq.ParquetFile(shard) as file:
        return [audio["path"] for audio in file.read(columns=["audio.path"])["audio"].to_pylist()]


def _growth(shard: Path) -> int:
    """Bytes by which a shard grows, with room for its old state beside it, which goes when the new one is whole."""
    with pq.ParquetFile(shard) as file:
        seconds = sum(file.read(columns=["duration"])["duration"].to_pylist())
    return max(0, round(2 * SAMPLING_RATE * seconds) - shard.stat().st_size) + 1_000_000


def _converted(file: pq.ParquetFile, failed: list[str]) -> Iterator[pa.Table]:
    """The rows of a shard with their clips as WAV; `failed` gets the names of those that cannot be decoded."""
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        rows = []
        for audio, seconds in zip(table["audio"].to_pylist(), table["duration"].to_pylist(), strict=True):
            try:
                if audio["bytes"][:4] == b"fLaC":
                    samples = read_flac_crop(audio["bytes"], 0, round(seconds * SAMPLING_RATE))
                    name = os.path.splitext(audio["path"])[0] + ".wav"
                    audio = {"bytes": encode_clip(to_pcm(samples), "wav"), "path": name}
            except (AudioError, ValueError) as error:
                logger.warning("%s: %s It stays as it is.", audio["path"], error)
                failed.append(audio["path"])
            rows.append(audio)
        index = table.schema.get_field_index("audio")
        yield table.set_column(index, table.schema.field("audio"), pa.array(rows, table.schema.field("audio").type))
