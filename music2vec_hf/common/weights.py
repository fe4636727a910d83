"""The weights that come with the library."""

from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "weights"


def pretrained(name: str = "tiny") -> Path:
    """Folder of a model that comes with the library, for `from_pretrained`, `embed`, `pipeline` and every command that
    takes a model; nothing is downloaded. Its README.md tells what it was trained on and what it is worth.

    Args:
        name (`str`): `"tiny"`, the only one so far.

    Raises:
        ValueError: for a name that no model has.
    """
    if name not in _names():
        raise ValueError(f"No model called {name!r} comes with the library. Use one of {', '.join(_names())}.")
    return _FOLDER / name


def model_source(name: str | Path) -> str | Path:
    """What a person called MODEL: a folder or Hub id as it is; for a name of the weights that come with the library
    their folder, unless one of that name lies here."""
    return str(pretrained(name)) if name in _names() and not Path(name).exists() else name


def _names() -> list[str]:
    return sorted(path.name for path in _FOLDER.iterdir())


__all__ = ["model_source", "pretrained"]
