"""Feature sources: what a probe hears. A model folder, the same model with random weights, or spectral statistics.

Row 12 of DESIGN.md section 3. Features are written to a cache in parts as they are computed, keyed by the weights, the
preprocessing and the content of the audio files, so a killed run resumes where it stopped and a changed file or model
is never mistaken for an old one.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..precision import choose_precision
from .baselines import chroma_features, mfcc_features

RANDOM_INIT = "random-init"
SPECTRAL_SOURCES: dict[str, Callable[[Sequence[Path]], np.ndarray]] = {
    "mfcc": mfcc_features,
    "chroma": chroma_features,
}
SPECTRAL_VERSION = "1"
FILES_PER_PART = 128


@dataclass(frozen=True)
class FeatureSource:
    """One thing whose features are probed.

    Attributes:
        name (`str`): its name in results.
        kind (`str`): `model`, `random-init`, `mfcc` or `chroma`.
        model (`str` or `None`): folder or Hub id that weights, or for `random-init` only the shape, come from.
        seed (`int`): seed of the random weights.
    """

    name: str
    kind: str
    model: str | None = None
    seed: int = 0


def resolve_sources(sources: Sequence[str] | Mapping[str, str], random_init_seed: int = 0) -> list[FeatureSource]:
    """Turn source names into sources.

    Args:
        sources: names, or result name to name. A name is `random-init`, `mfcc`, `chroma`, or else a model folder or
            Hub id. `random-init` has the shape of the first model of the list.
        random_init_seed (`int`): seed of the random weights.

    Raises:
        ValueError: if `random-init` stands without a model, or two sources would have one name in the results.
    """
    named = list(sources.items()) if isinstance(sources, Mapping) else [(None, name) for name in sources]
    reserved = (RANDOM_INIT, *SPECTRAL_SOURCES)
    models = [value for _, value in named if value not in reserved]
    resolved = []
    for name, value in named:
        if value == RANDOM_INIT:
            if not models:
                raise ValueError("`random-init` takes the shape of a model; name a model folder or Hub id beside it.")
            source = FeatureSource(name or value, RANDOM_INIT, str(models[0]), random_init_seed)
        elif value in SPECTRAL_SOURCES:
            source = FeatureSource(name or value, value)
        else:
            source = FeatureSource(name or Path(value).name, "model", str(value))
        resolved.append(source)
    names = [source.name for source in resolved]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Two sources are called {', '.join(twice)}; give them names as a mapping of name to source.")
    return resolved


def audio_digests(paths: Sequence[Path]) -> list[str]:
    """Digest of the content of each file."""
    return [hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest() for path in paths]


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an npz file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez(aside, **arrays)
    os.replace(aside, path)


def _cached_parts(
    paths: Sequence[Path],
    digests: Sequence[str],
    identity: str,
    cache_dir: Path | None,
    compute: Callable[[Sequence[Path]], Mapping[str, np.ndarray]],
    label: str,
    progress: bool,
) -> dict[str, np.ndarray]:
    """Compute features of files part by part, taking from the cache the parts that are there."""
    parts = []
    with tqdm(total=len(paths), desc=f"features of {label}", unit="file", disable=not progress) as bar:
        for start in range(0, len(paths), FILES_PER_PART):
            chosen = paths[start : start + FILES_PER_PART]
            text = "\n".join([identity, *digests[start : start + FILES_PER_PART]])
            key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            path = cache_dir / f"{key}.npz" if cache_dir is not None else None
            if path is not None and path.is_file():
                with np.load(path) as stored:
                    part = {layer: stored[layer] for layer in stored.files}
            else:
                part = {layer: np.asarray(values, dtype=np.float32) for layer, values in compute(chosen).items()}
                if path is not None:
                    write_npz(path, part)
            parts.append(part)
            bar.update(len(chosen))
    return {layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]}


def source_features(
    source: FeatureSource,
    paths: Sequence[Path],
    digests: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    window_seconds: float = 30.0,
    precision: str = "fp32",
    device: str = "cpu",
    progress: bool = True,
) -> tuple[dict[str, np.ndarray], str]:
    """Compute, or read from the cache, the features of audio files.

    Args:
        source (`FeatureSource`): what hears the files.
        paths (`Sequence[Path]`): audio files.
        digests (`Sequence[str]`, *optional*): from `audio_digests`, where they are known already.
        cache_dir (`str` or `Path`, *optional*): folder of the cache; without it nothing is kept.
        window_seconds (`float`): longest piece that a model hears at once, in seconds.
        precision (`str`): of a model: `fp32`, `bf16`, or `auto` (bf16 where the hardware multiplies it).
        device (`str`): torch device of the model.
        progress (`bool`): show a progress bar.

    Returns:
        `tuple[dict[str, np.ndarray], str]`: layer to features `[n, C]` float32 in the order of `paths` (one entry,
        named as the source's kind, for spectral sources), and the hash of the model or of the feature's definition.
    """
    digests = audio_digests(paths) if digests is None else digests
    cache_dir = None if cache_dir is None else Path(cache_dir)
    if source.kind in SPECTRAL_SOURCES:
        function = SPECTRAL_SOURCES[source.kind]
        identity = f"{source.kind}-{SPECTRAL_VERSION}"

        def compute(chosen: Sequence[Path]) -> dict[str, np.ndarray]:
            return {source.kind: function(chosen)}

    else:
        from ..embeddings import embed_files, load_model, model_hash

        model, feature_extractor = load_model(source.model, random_init=source.kind == RANDOM_INIT, seed=source.seed)
        identity = model_hash(model)
        model.to(device)

        def compute(chosen: Sequence[Path]) -> Mapping[str, np.ndarray]:
            return embed_files(model, feature_extractor, chosen, window_seconds, precision, progress=False)

        preprocessing = (
            f"{feature_extractor.to_json_string()}, windows of {window_seconds} s, {choose_precision(precision)}"
        )
        features = _cached_parts(
            paths, digests, f"{identity}\n{preprocessing}", cache_dir, compute, source.name, progress
        )
        return features, identity
    return _cached_parts(paths, digests, identity, cache_dir, compute, source.name, progress), identity
