"""Names of others as text that every file and console takes."""

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """Text that UTF-8 can hold: bytes of a file name that are not UTF-8 become `\\xe9` and the like."""

    def written(match: re.Match) -> str:
        number = ord(match[0])
        return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else f"\\u{number:04x}"

    return _SURROGATE.sub(written, text)


def storable(value):
    """A value of JSON with all its texts as [`printable`] gives them."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return list(map(storable, value))
    return {storable(key): storable(one) for key, one in value.items()} if isinstance(value, dict) else value


__all__ = ["printable", "storable"]
