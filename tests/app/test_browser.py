"""The page in headless Chromium: a song is dropped by a click, heard, seen and played."""

import shutil

import pytest
import soundfile
from toy_audio import noise

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; on Debian: apt-get install chromium"),
]
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, page):
    """`visit(size)`: somebody who has opened the page; all that the browser asked for in `asked`."""
    contexts = []

    def open_page(size):
        contexts.append(chromium.new_context(viewport=size))
        tab = contexts[-1].new_page()
        tab.asked, tab.errors = [], []
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.goto(page)
        tab.locator("#song button").first.wait_for()
        return tab

    yield open_page
    for context in contexts:
        context.close()


def drop(tab, path):
    """Choose a file by a click on the place where songs are dropped."""
    with tab.expect_file_chooser() as chooser:
        tab.locator("#song button").first.click()
    chooser.value.set_files(path)


def answer(tab):
    found = tab.locator("#answer .m2v")
    found.wait_for(timeout=60_000)
    return found


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_song_is_heard_and_played(size, visit, page, left, music):
    tab = visit(size)
    drop(tab, music / "songs" / "song.wav")
    shown = answer(tab)
    assert shown.locator("h2").inner_text() == "song.wav"
    assert shown.locator(".m2v-label").count() == 3 and shown.locator(".m2v-row").count() == 4
    assert "from its layer 2" in shown.locator(".m2v-about").inner_text()
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    box = shown.locator(".m2v-strip").bounding_box()
    assert box["width"] > 200 and box["x"] >= 0 and box["x"] + box["width"] <= size["width"]
    # A click in the middle of the time line plays the song from there.
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.wait_for_function("document.querySelector('audio.m2v-song').currentTime > 4")
    # The first similar track has a player, whose button is at its left.
    assert shown.locator(".m2v-similar audio").count() == 3
    shown.locator(".m2v-similar audio").first.click(position={"x": 22, "y": 19})
    tab.wait_for_function("document.querySelector('.m2v-similar audio').currentTime > 0")
    assert left() == [] and tab.errors == []
    elsewhere = [url for url in tab.asked if not url.startswith((page, "data:", "blob:"))]
    assert elsewhere == []


def test_a_bad_file_gets_our_sentence_and_the_next_song_an_answer(visit, left, music, tmp_path):
    (tmp_path / "words.mp3").write_text("These are words. " * 50)
    tab = visit(DESKTOP)
    drop(tab, tmp_path / "words.mp3")
    sentence = answer(tab).locator(".m2v-error").inner_text()
    assert sentence.startswith("Cannot use the audio of words.mp3: ") and "Traceback" not in sentence
    drop(tab, music / "songs" / "song.wav")
    tab.locator("#answer .m2v-strip").wait_for()
    assert left() == []


def test_a_file_beyond_the_limit_is_refused_before_it_is_sent(visit, page, left, tmp_path):
    soundfile.write(tmp_path / "large.wav", noise(33.0), 16_000)
    tab = visit(DESKTOP)
    drop(tab, tmp_path / "large.wav")
    tab.get_by_text("exceed the maximum allowed size").first.wait_for()
    assert left() == []


def test_a_name_with_markup_is_text(visit, music, tmp_path):
    name = "${document.title='seen'} {{1+1}} <img src=x onerror=alert(1)>.wav"
    shutil.copy(music / "songs" / "song.wav", tmp_path / name)
    tab = visit(DESKTOP)
    tab.on("dialog", lambda dialog: tab.errors.append(dialog.message))
    drop(tab, tmp_path / name)
    shown = answer(tab)
    assert shown.locator(".m2v-strip").count() == 1 and shown.locator("h2 img").count() == 0
    assert tab.title() != "seen" and tab.errors == []


def test_two_people_are_answered_at_once(visit, left, music):
    tabs = [visit(DESKTOP), visit(PHONE)]
    for tab, name in zip(tabs, ("low", "high"), strict=True):
        drop(tab, music / f"{name}.flac")
    for tab, name in zip(tabs, ("low", "high"), strict=True):
        shown = answer(tab)
        assert shown.locator("h2").inner_text() == f"{name}.flac"
        assert shown.locator(".m2v-similar .m2v-name").first.inner_text() == f"{name}.flac"
    assert left() == []
