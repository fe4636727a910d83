"""Feature sources: what a probe hears. A model folder, the same model with random weights, or spectral statistics.

Row 12 of DESIGN.md section 3. One pass over the audio gives all layers of every window; `feature_cache.py` keeps them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from music2vec_hf.probing.baselines import SPECTRAL_FRAMES, spectral_rows
from music2vec_hf.probing.feature_cache import audio_digests, cached_rows
from music2vec_hf.probing.rows import FeatureRows

RANDOM_INIT = "random-init"
SPECTRAL_SOURCES = tuple(SPECTRAL_FRAMES)
SPECTRAL_VERSION = "1"


@dataclass(frozen=True)
class FeatureSource:
    """One thing whose features are probed.

    Attributes:
        name (`str`): its name in results.
        kind (`str`): `model`, `random-init`, `mfcc`, `chroma` or `mel`.
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
        sources: names, or result name to name. A name is `random-init`, `mfcc`, `chroma`, `mel`, or else a model
            folder or Hub id. `random-init` has the shape of the first model of the list.
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


def source_features(
    source: FeatureSource,
    paths: Sequence[Path],
    digests: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    window_seconds: float = 30.0,
    row_seconds: float | None = None,
    precision: str = "fp32",
    device: str = "cpu",
    progress: bool = True,
    trust_remote_code: bool = False,
    check_layers: Callable[[list[str]], object] | None = None,
) -> tuple[FeatureRows, str]:
    """Compute, or read from the cache, the features of audio files.

    Args:
        source (`FeatureSource`): what hears the files.
        paths (`Sequence[Path]`): audio files.
        digests (`Sequence[str]`, *optional*): from `audio_digests`, where they are known already.
        cache_dir (`str` or `Path`, *optional*): folder of the cache; without it nothing is kept.
        window_seconds (`float`): longest piece that a model hears at once, in seconds.
        row_seconds (`float`, *optional*): length of audio behind a row, a multiple of `window_seconds`; None means the
            whole file. A model's row is the mean over its windows, weighted by frames; spectral statistics are those
            of the row's audio.
        precision (`str`): of a model: `fp32`, `bf16`, or `auto` (bf16 where the hardware multiplies it).
        device (`str`): torch device of the model.
        progress (`bool`): show a progress bar.
        trust_remote_code (`bool`): run the Python code of a repository that brings its own model.
        check_layers (`Callable`, *optional*): told the names of a model's layers before audio is read, to refuse them.

    Returns:
        `tuple[FeatureRows, str]`: rows of the files in the order of `paths` (one layer, named as the source's kind,
        for spectral sources), and the hash of the model or of the feature's definition.

    Raises:
        ValueError: if the model cannot be loaded or a file not be heard, with its name.
    """
    paths = [Path(path) for path in paths]
    digests = audio_digests(paths) if digests is None else digests
    cache_dir = None if cache_dir is None else Path(cache_dir)
    if source.kind in SPECTRAL_SOURCES:
        model_hash, windows_per_row = f"{source.kind}-{SPECTRAL_VERSION}", 1
        identity = f"{model_hash}, pieces of {row_seconds} s"

        def compute(chosen: Sequence[Path]) -> FeatureRows:
            return spectral_rows(source.kind, chosen, row_seconds)

    else:
        from music2vec_hf.probing.encoders import (
            encode_windows,
            encoder_identity,
            encoder_layers,
            load_encoder,
            prepared_tracks,
        )

        encoder = load_encoder(source.model, source.kind == RANDOM_INIT, source.seed, trust_remote_code)
        if check_layers is not None:
            check_layers(encoder_layers(encoder))
        model_hash, identity = encoder_identity(encoder, window_seconds, precision)
        windows_per_row = None if row_seconds is None else round(row_seconds / window_seconds)
        encoder.model.to(device)

        def compute(chosen: Sequence[Path]) -> FeatureRows:
            return encode_windows(encoder, prepared_tracks(encoder, chosen), window_seconds, precision)

    rows = cached_rows(paths, digests, identity, cache_dir, compute, windows_per_row, source.name, progress)
    return rows, model_hash
