"""The report: one HTML page with its figures, the same as Markdown, and the layer guide, from `results.json` files.

Row 14 of DESIGN.md section 3. What the page says about who is better is computed from the paired intervals.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from music2vec_hf.common.files import printable, storable, write_json, write_text
from music2vec_hf.common.render import markdown_table, render
from music2vec_hf.common.results import METRICS, RESULTS, read_metrics, read_results
from music2vec_hf.probing.report_figures import draw_all
from music2vec_hf.probing.report_tables import (
    comparison,
    format_table,
    layer_guide,
    layer_guide_rows,
    notices,
    protocol_facts,
    source_kinds,
    table_rows,
    verdicts,
)

TEMPLATES = Path(__file__).parent
PARTS = ("records", "averages", "comparisons")


def write_report(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    title: str = "Music2Vec probing report",
) -> Path:
    """Write the report: report.html, which holds its figures; report.md; layer_guide.json; and the figures as PNG.

    Args:
        inputs: results.json files or their folders, and metrics.jsonl files or the folders of pretraining runs, for
            their curves; any number of both.
        output (`str` or `Path`): folder for these and `figures/`.

    Raises:
        FileNotFoundError, ValueError: if a results file is missing or not readable.
    """
    inputs = [Path(inputs)] if isinstance(inputs, str | Path) else [Path(path) for path in inputs]
    logs = [path for path in inputs if _is_run(path)]
    names = _short_names([path.parent if path.is_file() else path for path in logs])
    runs = {name: read_metrics(path) for name, path in zip(names, logs, strict=True)}
    paths = [path for path in inputs if path not in logs]
    folders = [path if path.is_dir() else path.parent for path in paths]
    contents = distinct_sources([storable(read_results(path)) for path in paths], _short_names(folders))
    results = {part: [row for content in contents for row in content[part]] for part in PARTS}
    output = Path(output)
    figures = draw_all(results, list(zip(folders, contents, strict=True)), runs, output)
    content = {"title": title, "figures": figures} | _content(results)
    write_text(output / "report.md", render(TEMPLATES / "report.md.jinja", **content))
    write_json(output / "layer_guide.json", {"layers": layer_guide(results)}, indent=1)
    return write_text(output / "report.html", render(TEMPLATES / "report.html.jinja", **content))


def _is_run(path: Path) -> bool:
    """Whether a path is a pretraining run rather than results: it has a log and no results."""
    if path.is_dir():
        return (path / METRICS).is_file() and not (path / RESULTS).is_file()
    return path.suffix == ".jsonl"


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Last names of folders, or whole paths where these are not distinct."""
    names = [printable(folder.resolve().name) for folder in folders]
    return names if len(set(names)) == len(names) else [printable(str(folder)) for folder in folders]


def distinct_sources(results: Sequence[Mapping], names: Sequence[str]) -> list[dict]:
    """Results whose source names are distinct: where two files would claim the same cell, the file's name is added.

    The same source (equal weights and protocol) on other tasks in another file keeps its name, so that tasks
    which were probed one by one share a column.
    """
    claims, identities = defaultdict(set), defaultdict(set)
    for number, content in enumerate(results):
        for record in content["records"]:
            claims[record["source"]].add((record["task"], number))
            identities[record["source"]].add((record["model_hash"], record["protocol"]))
    clashing = {
        source
        for source, cells in claims.items()
        if len(cells) > len({task for task, _ in cells}) or len(identities[source]) > 1
    }

    def renamed(row: Mapping, name: str) -> dict:
        keys = [key for key in ("source", "baseline") if row.get(key) in clashing]
        return {**row, **{key: f"{name}/{row[key]}" for key in keys}}

    return [
        {**content, **{part: [renamed(row, name) for row in content.get(part, ())] for part in PARTS}}
        for name, content in zip(names, results, strict=True)
    ]


def _content(results: Mapping) -> dict:
    """All that the page and the Markdown show, but the figures."""
    records, guide, published = results["records"], layer_guide(results), comparison(results)

    def published_table(rows: Sequence[Mapping]) -> str:
        def text(row: Mapping, column: str) -> str:
            return f"{_percent(row['scores'].get(column))} {row['marks'].get(column, '')}".strip()

        cells = [[row["name"], row["protocol"], *(text(row, name) for name in published["columns"])] for row in rows]
        return markdown_table(["approach", "protocol", *published["columns"].values()], cells)

    return {
        "notices": notices(results),
        "verdicts": verdicts(results),
        "sources": source_kinds(results),
        "rows": table_rows(results),
        "score_table": format_table(results),
        "facts": protocol_facts(results),
        "published": published,
        "published_table": published_table,
        "percent": _percent,
        "guide": layer_guide_rows(guide) if guide else None,
        "versions": records[0]["library_versions"] if records else {},
        "hashes": {record["source"]: record["model_hash"] for record in records if record["model_hash"]},
    }


def _percent(score: float | None) -> str:
    """One digit: means of scores with one digit often end in 5, which binary fractions would round down."""
    return "-" if score is None else f"{score + 1e-9:.1f}"
