"""How a verb of the command line is declared, and how settings behind it are read."""

import argparse
from collections.abc import Callable, Sequence

VERBS: list[tuple[Callable, tuple[Callable, ...]]] = []


def verb(*arguments: Callable) -> Callable[[Callable], Callable]:
    """Make a function a verb of its name."""

    def declare(function: Callable) -> Callable:
        VERBS.append((function, arguments))
        return function

    return declare


def arg(name: str, help: str, **settings) -> Callable[[argparse.ArgumentParser], object]:
    """An argument, in capitals a positional one. Its help tells the default, which a number's type is taken from."""
    default = settings.get("default")
    if isinstance(default, (int, float)):
        settings["type"] = type(default)
    if default is not None and "(default" not in help:
        help += " (default: %(default)s)"
    names = name.split()
    if name[0] != "-":
        settings["metavar"], names = name, [settings.pop("dest", name.lower())]
    return lambda command: command.add_argument(*names, help=help, **settings)


def read_overrides(words: Sequence[str]) -> dict:
    """`--key value`, `--key=value` or `--key v1 v2 ...` -> values as YAML reads them; `--key` alone is true.

    Raises:
        ValueError: for a word that follows no key.
    """
    import yaml

    found: dict[str, list] = {}
    for word in words:
        if word.startswith("--"):
            key, _, value = word[2:].partition("=")
            values = found[key.replace("-", "_")] = [yaml.safe_load(value)] if value else []
        elif found:
            values.append(yaml.safe_load(word))
        else:
            raise ValueError(f"{word!r} follows no `--key`. Write recipe values as `--key value`.")
    return {key: values[0] if len(values) == 1 else values or True for key, values in found.items()}
