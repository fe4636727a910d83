"""The report: one HTML page with its figures, the same as Markdown, and the layer guide, from `results.json` files.

Row 14 of DESIGN.md section 3. What the page says about who is better is computed from the paired intervals.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from music2vec_hf.common.files import write_json
from music2vec_hf.common.results import read_results
from music2vec_hf.probing.published import comparison
from music2vec_hf.probing.report_figures import draw_all
from music2vec_hf.probing.report_tables import (
    format_table,
    layer_guide,
    layer_guide_rows,
    markdown_table,
    notices,
    protocol_notes,
    source_kinds,
    table_rows,
    verdicts,
)

__all__ = ["read_metrics", "write_report"]

PUBLISHED_HEADING = "Beside published scores"
GUIDE_HEADING = "Layer guide"
PARTS = ("records", "averages", "comparisons")
NOT_AMONG = (
    "None of the four tasks of the paper is among these results; scores on other data have no place in its table."
)


def distinct_sources(results: Sequence[dict], names: Sequence[str]) -> list[dict]:
    """Results whose source names are distinct: where two files would claim the same cell, the file's name is added.

    The same source (equal weights and protocol) on other tasks in another file keeps its name, so that tasks
    which were probed one by one share a column.

    Args:
        results (`Sequence[dict]`): contents of results files.
        names (`Sequence[str]`): a name for each file.
    """
    claims: dict[str, list[tuple[set, set]]] = {}
    for content in results:
        of_file: dict[str, tuple[set, set]] = {}
        for record in content["records"]:
            tasks, identities = of_file.setdefault(record["source"], (set(), set()))
            tasks.add(record["task"])
            identities.add((record["model_hash"], record["protocol"]))
        for source, claim in of_file.items():
            claims.setdefault(source, []).append(claim)

    def clash(source: str) -> bool:
        tasks, identities = zip(*claims[source], strict=True) if source in claims else ((), ())
        return sum(map(len, tasks)) > len(set().union(*tasks)) or len(set().union(*identities)) > 1

    distinct = []
    for name, content in zip(names, results, strict=True):
        changed = dict(content)
        for part in PARTS:
            changed[part] = [
                row | {key: f"{name}/{row[key]}" for key in ("source", "baseline") if key in row and clash(row[key])}
                for row in content.get(part, [])
            ]
        distinct.append(changed)
    return distinct


def read_metrics(path: str | Path) -> list[dict]:
    """Read a metrics.jsonl; a last line that a killed run left unfinished is left out.

    Raises:
        ValueError: if another line is not JSON.
    """
    lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number + 1 < len(lines):
                raise ValueError(f"Line {number + 1} of '{path}' is not JSON ({error}).") from error
    return [record for record in records if "step" in record]


def _log_of(path: Path) -> Path:
    return path / "metrics.jsonl" if path.is_dir() else path


def _is_run(path: Path) -> bool:
    """Whether a path is a pretraining run rather than results: it has a log and no results."""
    if path.is_dir():
        return _log_of(path).is_file() and not (path / "results.json").is_file()
    return path.suffix == ".jsonl"


def _named(folders: Sequence[Path]) -> list[str]:
    """Short names of folders, or whole paths where the short ones are not distinct."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


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
        title (`str`): title of the page.

    Returns:
        `Path`: of report.html.

    Raises:
        FileNotFoundError, ValueError: if a results file is missing or not readable.
    """
    inputs = [Path(inputs)] if isinstance(inputs, str | Path) else [Path(path) for path in inputs]
    logs = [path for path in inputs if _is_run(path)]
    runs = _named([path.parent if path.is_file() else path for path in logs])
    runs = {name: read_metrics(_log_of(path)) for name, path in zip(runs, logs, strict=True)}
    paths = [path for path in inputs if path not in logs]
    folders = [path if path.is_dir() else path.parent for path in paths]
    contents = distinct_sources([read_results(path) for path in paths], _named(folders))
    merged = {key: [row for content in contents for row in content[key]] for key in PARTS}
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    content = _content(merged, title) | {
        "figures": draw_all(merged, list(zip(folders, contents, strict=True)), runs, output)
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    path = output / "report.html"
    path.write_text(environment.get_template("report.html").render(**content), encoding="utf-8")
    (output / "report.md").write_text(_markdown(content, merged), encoding="utf-8")
    write_json(output / "layer_guide.json", {"layers": content["guide"]}, indent=1)
    return path


def _content(results: Mapping, title: str) -> dict:
    """All that the page and the Markdown show, but the figures."""
    records = results["records"]
    guide = layer_guide(results)
    published = comparison(results)
    return {
        "title": title,
        "notices": notices(results) if records else [],
        "verdicts": verdicts(results),
        "sources": [{"name": name, "kind": kind} for name, kind in source_kinds(results).items()],
        "rows": table_rows(results),
        "notes": protocol_notes(results) if records else [],
        "published": published and _published_text(published),
        "not_among": NOT_AMONG,
        "headings": {"published": PUBLISHED_HEADING, "guide": GUIDE_HEADING},
        "guide": guide,
        "guide_table": layer_guide_rows(guide),
        "versions": records[0]["library_versions"] if records else {},
        "hashes": {record["source"]: record["model_hash"] for record in records if record["model_hash"]},
    }


def _published_text(published: Mapping) -> dict:
    """The table beside published scores, its cells as pairs of text and mark (None in a column without marks)."""
    rows = [row for group in published["groups"] for row in group["rows"]]
    marked = {column for row in rows for column in row["marks"]}
    groups = []
    for group in published["groups"]:
        rows = []
        for row in group["rows"]:
            cells = [(row["name"], None), (row["protocol"], None)]
            for column in published["columns"]:
                value = row["scores"].get(column)
                # The scores have one digit, so their means end in 5 often; binary fractions would round those down.
                cells.append(
                    (
                        "-" if value is None else f"{value + 1e-9:.1f}",
                        row["marks"].get(column, "" if column in marked else None),
                    )
                )
            rows.append(cells)
        groups.append({"title": group["title"], "rows": rows})
    header = ["approach", "protocol", *published["columns"].values()]
    return {"header": header, "groups": groups, "footnotes": published["footnotes"]}


def _markdown(content: Mapping, results: Mapping) -> str:
    """The report as Markdown, for a model card; figures lie beside it."""
    lines = [f"# {content['title']}", *content["notices"]]
    if content["rows"]:
        lines += ["## What the intervals say", "\n".join(f"- {sentence}" for sentence in content["verdicts"])]
        lines += ["## Scores on the test split", format_table(results), *content["notes"]]
        lines.append(f"## {PUBLISHED_HEADING}")
        published = content["published"]
        for group in published["groups"] if published else ():
            rows = [[f"{text} {mark or ''}".strip() for text, mark in row] for row in group["rows"]]
            lines += [f"{group['title']}:", markdown_table(published["header"], rows)]
        lines += published["footnotes"] if published else [NOT_AMONG]
    if content["guide"]:
        lines += [f"## {GUIDE_HEADING}", markdown_table(*content["guide_table"])]
    for figure in content["figures"]:
        lines += [f"## {figure['heading']}"] if figure["heading"] else []
        lines.append(f"![{figure['caption']}]({figure['file']})")
    return "\n\n".join(lines) + "\n"
