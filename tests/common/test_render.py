"""Templates, escaping and Markdown tables: what others named is shown as it is and never taken for markup."""

import base64

import jinja2
import pytest
from matplotlib.figure import Figure

from music2vec_hf.common.render import (
    Markdown,
    figure_as_base64,
    markdown_code,
    markdown_table,
    markdown_text,
    printable,
    render,
    save_figure,
)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<x>", "&lt;x>"),
        ("R&B", "R&B"),
        ("&lt;", "&amp;lt;"),
        ("*loud*", r"\*loud\*"),
        ("m9_caro_vibrato", "m9_caro_vibrato"),
        ("_em_", r"\_em\_"),
        ("[x](y)", r"\[x\](y)"),
        ("back`tick\\", "back\\`tick\\\\"),
        ("two\nlines  ", "two lines"),
        ("# one", r"\# one"),
        (0.5, "0.5"),
        (Markdown("**bold**"), "**bold**"),
    ],
)
def test_text_of_others_is_not_markup(name, shown):
    assert markdown_text(name) == shown
    assert markdown_text(markdown_text(name)) == shown


@pytest.mark.parametrize(("name", "shown"), [("a", "`a`"), ("a`b", "``a`b``"), ("`a", "`` `a ``"), ("", "`  `")])
def test_code_is_fenced(name, shown):
    assert markdown_code(name) == shown


def test_a_table_is_aligned_and_escaped_once():
    table = markdown_table(["task", "a|b"], [["key", 0.25], [markdown_code("c|d"), Markdown("**1**")]])
    assert table.splitlines() == [
        "| task   |  a\\|b |",
        "|--------|------:|",
        "| key    |  0.25 |",
        "| `c\\|d` | **1** |",
    ]


def test_bytes_that_are_no_utf_8_are_written_out():
    assert printable("caf\udce9 \ud83d é") == "caf\\xe9 \\ud83d é"


def test_templates(tmp_path):
    (tmp_path / "x.html.jinja").write_text(
        '{% extends "page.html.jinja" %}{% block content %}<p>{{ name }}</p>{% endblock %}'
    )
    (tmp_path / "x.md.jinja").write_text("# {{ name | text }}\n\n\n\n{{ table(['a'], [[name]]) }}\n")
    page = render(tmp_path / "x.html.jinja", title="a & b", notices=["<i>"], versions={}, name="<x>\udce9")
    assert "<p>&lt;x&gt;\\xe9</p>" in page and "<h1>a &amp; b</h1>" in page and "&lt;i&gt;</p>" in page
    assert render(tmp_path / "x.md.jinja", name="a|<") == "# a\\|&lt;\n\n| a |\n| --- |\n| a\\|&lt; |\n"
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render(tmp_path / "x.html.jinja")


def test_figures(tmp_path):
    figure = Figure(figsize=(1, 1))
    figure.add_subplot()
    data = save_figure(figure, tmp_path / "new" / "one.png", dpi=50).read_bytes()
    assert data.startswith(b"\x89PNG") and base64.b64decode(figure_as_base64(figure, dpi=50)) == data
