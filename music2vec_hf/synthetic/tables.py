"""Tables of the synthetic corpus, read from the YAML files in this folder, which say what each field means."""

from pathlib import Path
from types import SimpleNamespace

import yaml


def _read(name: str) -> dict:
    return yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _rows(entries: dict[str, dict], defaults: dict) -> dict[str, SimpleNamespace]:
    return {name: SimpleNamespace(**{**defaults, **values}) for name, values in entries.items()}


_INSTRUMENTS, _STYLES = _read("instruments.yaml"), _read("styles.yaml")
POOLS: dict[str, list[str]] = _INSTRUMENTS["pools"]
TIMBRES = _rows(_INSTRUMENTS["timbres"], _INSTRUMENTS["timbre_defaults"])
DRUM_KITS = {kit: _rows(sounds, _INSTRUMENTS["drum_defaults"]) for kit, sounds in _INSTRUMENTS["kits"].items()}
STYLES = _rows(_STYLES["genres"], _STYLES["defaults"])
GENRES = tuple(STYLES)
HARMONY = _read("progressions.yaml")  # chords, scales, blues_scales, tonic_weights, progressions
