"""A pushed model as a stranger meets it: on the Hub, in a home of its own, with nothing but its card to follow."""

import re

import pytest
import soundfile
import yaml
from hub_server import TOKEN

from music2vec_hf.common.files import read_results
from music2vec_hf.probing.report import write_report

REPO = "someone/stranger"


@pytest.fixture(scope="module")
def card(hub, online, probed):
    """The card of a probed model on the Hub."""
    words = ("push", probed / "model", REPO, "--license", "mit", "--results", probed / "probes")
    ((code, _, said),) = online.commands((TOKEN, *words))
    assert code == 0, said
    return (pushed(hub) / "README.md").read_text()


def pushed(hub):
    return hub.root / "models" / "someone" / "stranger" / "main"


def test_its_figures_are_those_of_the_report(hub, card, probed, tmp_path):
    write_report(probed / "probes", tmp_path)
    shown = re.findall(r"^!\[.+\]\((figures/[^)]+)\)$", card, flags=re.M)
    assert {"figures/scores.png", "figures/layers-0.png"} <= set(shown)
    for name in shown:
        assert (pushed(hub) / name).read_bytes()[:4] == b"\x89PNG"
    # Those of the scores are the same picture; the model's own are drawn without the other sources of the run.
    for name in ("figures/scores.png", "figures/validation-test.png"):
        assert (pushed(hub) / name).read_bytes() == (tmp_path / name).read_bytes(), name
    assert sum("confusion" in name for name in shown) == 2 and sum("scatter" in name for name in shown) == 1


def test_its_example_can_be_heard(hub, card):
    audio, rate = soundfile.read(pushed(hub) / "example.flac")
    assert rate == 16_000 and len(audio) == 160_000 and abs(audio).max() > 0.1
    front = yaml.safe_load(card.split("---\n")[1])
    (widget,) = front["widget"]
    assert widget["src"] == f"{hub.url}/{REPO}/resolve/main/example.flac"
    assert f'<audio controls src="{widget["src"]}"></audio>' in card


def test_its_scores_are_those_of_the_file(hub, card, probed):
    """Of the model and its baselines, as they were measured."""
    measured, shown = (read_results(folder)["records"] for folder in (probed / "probes", pushed(hub)))
    assert shown == measured
    for record in (each for each in shown if each["source"] == "pretrained"):
        assert f"{record['value']:.3f} [{record['interval'][0]:.3f}, {record['interval'][1]:.3f}]" in card
