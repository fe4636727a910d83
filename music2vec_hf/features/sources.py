"""Feature sources: what a probe hears. A model folder, the same model with random weights, or spectral statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from music2vec_hf.features.encoders import Encoder, load_encoder
from music2vec_hf.features.spectral import SPECTRAL_FRAMES, SpectralEncoder

RANDOM_INIT = "random-init"
SPECTRAL_SOURCES = tuple(SPECTRAL_FRAMES)


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


def open_source(
    source: FeatureSource, device: str = "cpu", trust_remote_code: bool = False
) -> Encoder | SpectralEncoder:
    """Load what a source stands for.

    Args:
        source (`FeatureSource`): from [`resolve_sources`].
        device (`str`): torch device of a model.
        trust_remote_code (`bool`): run the Python code of a repository that brings its own model.

    Raises:
        ValueError: if the model cannot be loaded, see [`load_encoder`].
    """
    if source.kind in SPECTRAL_SOURCES:
        return SpectralEncoder(source.kind)
    encoder = load_encoder(source.model, source.kind == RANDOM_INIT, source.seed, trust_remote_code)
    encoder.model.to(device)
    return encoder
