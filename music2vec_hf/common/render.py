"""Pages, cards and readmes from jinja templates that lie beside their callers; Markdown tables; figures as PNG.

A template `name.html.jinja` extends `page.html.jinja`, the frame of all pages, and what is put into it is escaped. In
`name.md.jinja` the names of others (tags, tracks, sources) go through the filters `text` or `code`, or into `table`.
"""

import base64
import io
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import jinja2

from music2vec_hf.common.files import printable

_COMMON = Path(__file__).parent
# Characters that Markdown or HTML would take for markup; an underscore within a word is none.
_MARKUP = re.compile(r"[\\`*\[\]|]|(?<![^\W_])_|_(?![^\W_])|^[#>~]")
_ENTITY = re.compile(r"&(?=#?\w+;)")


class Markdown(str):
    """Text that is Markdown already, so that nothing in it is escaped."""


def render(template: Path, **content) -> str:
    """Fill a template `name.html.jinja` or `name.md.jinja`.

    Bytes of a file name that are not UTF-8 are written as `\\xe9`. Raises jinja2.UndefinedError if the template uses a
    variable that is not given.
    """
    is_page = template.name.endswith(".html.jinja")
    text = printable(_environment(template.parent, is_page).get_template(template.name).render(**content))
    return text if is_page else re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def _unchanged(text: str) -> str:
    """What a page escapes by itself."""
    return text


@lru_cache
def _environment(folder: Path, is_page: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _COMMON]),
        autoescape=is_page,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": _unchanged if is_page else markdown_text, "code": markdown_code}
    environment.globals["table"] = partial(markdown_table, compact=True)
    return environment


def markdown_text(text: object) -> str:
    """Anything as one line of Markdown that shows it as it is; [`Markdown`] is not escaped."""
    if isinstance(text, Markdown):
        return text
    line = _MARKUP.sub(r"\\\g<0>", " ".join(str(text).split()))
    return Markdown(_ENTITY.sub("&amp;", line).replace("<", "&lt;"))


def markdown_code(text: object) -> str:
    """Anything as code within a line, in as many backticks as it needs."""
    line = " ".join(str(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return Markdown(f"{fence}{space}{line}{space}{fence}")


def markdown_table(header: Iterable[object], rows: Iterable[Sequence[object]], compact: bool = False) -> str:
    """A Markdown table whose columns are aligned in plain text, too: all but the first to the right.

    Cells are escaped unless they are [`Markdown`]. `compact`: nothing is aligned; this is how templates have it.
    """
    lines = [[re.sub(r"(?<!\\)\|", r"\\|", markdown_text(cell)) for cell in line] for line in (header, *rows)]
    if compact:
        first, *others = (f"| {' | '.join(line)} |" for line in lines)
        return Markdown("\n".join([first, f"|{' --- |' * len(lines[0])}", *others]))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    text = []
    for first, *others in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        text.append(f"| {' | '.join(cells)} |")
    return Markdown("\n".join([text[0], f"|{'|'.join(rule)}|", *text[1:]]))


def save_figure(figure, path: str | os.PathLike, dpi: int = 130) -> Path:
    """Write a `matplotlib.figure.Figure` as PNG; the folders above are made, and no display is needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=dpi)
    return path


def figure_as_base64(figure, dpi: int = 130) -> str:
    """A `matplotlib.figure.Figure` as the base64 of a PNG, to be put into a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return as_base64(buffer.getvalue())


def as_base64(data: bytes) -> str:
    """Bytes as base64, for `data:` addresses in a page."""
    return base64.b64encode(data).decode()
