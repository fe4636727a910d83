"""`music2vec app`: a page that hears a song, for one person or several, in any browser.

All is computed where the page is served, and the page fetches nothing from elsewhere. A song is deleted as soon as
it has been heard; what was never heard goes with the server.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.parquet as pq

from music2vec_hf.app_listener import Listener
from music2vec_hf.app_view import show_answer, show_error, show_introduction
from music2vec_hf.common.files import printable

_STYLE, _SCRIPT = (Path(__file__).with_name(name) for name in ("app.css", "app.js"))
_LOOPBACK = "localhost,127.0.0.1"


def serve(listener: Listener, host: str = "127.0.0.1", port: int | None = None) -> None:
    """Serve the page until Ctrl-C or SIGTERM; the arguments are those of [`served`]."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with served(listener, host, port) as address, suppress(KeyboardInterrupt):
            print(f"{listener.name} listens at {address} (Ctrl-C ends it)", flush=True)
            while True:
                time.sleep(3600)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def served(listener: Listener, host: str = "127.0.0.1", port: int | None = None) -> Iterator[str]:
    """The address of the page, which is served during the block.

    Args:
        host (`str`): address to listen on; `0.0.0.0` for all.
        port (`int`, *optional*): by default the first that is free from 7860 on.

    Raises:
        ValueError: if gradio is not installed or there is no such port; OSError if the port is taken.
    """
    if port is not None and not 0 < port < 65_536:
        raise ValueError(f"`port` is {port}. Use one from 1 to 65535.")
    direct = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), _LOOPBACK, host)))
    with (
        tempfile.TemporaryDirectory(prefix="music2vec-app-", ignore_cleanup_errors=True) as uploads,
        # gradio asks its own server whether it is up, which no proxy can tell.
        _environment(GRADIO_TEMP_DIR=os.path.realpath(uploads), NO_PROXY=direct, no_proxy=direct),
    ):
        page = make_page(listener)  # its parts keep their files where the environment says
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                allowed_paths=_library_files(listener),
                max_file_size=int(listener.limits.max_megabytes * 1e6),
                css=_STYLE.read_text(encoding="utf-8"),
                head=f"<script>{_SCRIPT.read_text(encoding='utf-8')}</script>",
                theme=_theme(),
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                strict_cors=True,
            )
            yield address
        finally:
            page.close(verbose=False)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables of the environment during the block."""
    before = {name: os.environ.pop(name, None) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def make_page(listener: Listener):
    """The page of a listener, a `gradio.Blocks` with a queue: one song is heard at a time, the others wait.

    Raises ValueError if gradio is not installed.
    """
    gradio = _gradio()

    def hear(song: str | None, progress=gradio.Progress()):  # noqa: B008  gradio finds it by this default
        if song is None:
            return "", None
        path = Path(song)
        try:
            answer = listener.listen(path, lambda share, sentence: progress(share, desc=sentence))
            return show_answer(printable(path.name), answer, listener), None
        except OSError as error:
            return show_error(f"{path.name} cannot be read ({error.strerror}). Drop it again."), None
        except ValueError as error:
            return show_error(str(error)), None
        finally:
            with suppress(OSError):
                path.unlink()
                path.parent.rmdir()  # of this upload alone

    with gradio.Blocks(title=f"{listener.name} hears a song", analytics_enabled=False) as page:
        gradio.HTML(show_introduction(listener))
        song = gradio.File(label="Song", elem_id="song", height=150)
        answer = gradio.HTML(elem_id="answer")
        song.upload(hear, song, [answer, song], api_name="hear", show_progress_on=[answer])
    return page.queue(default_concurrency_limit=1, max_size=listener.limits.max_waiting)


def _library_files(listener: Listener) -> list[str]:
    """The files that the page may play: those of the library that are there."""
    if listener.library is None:
        return []
    paths = pq.read_table(listener.library, columns=["path"]).column("path").to_pylist()
    return [os.path.abspath(path) for path in paths if os.path.isfile(path)]


def _gradio():
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise ValueError("The page needs gradio: pip install 'music2vec_hf[app]'.") from error
    return gradio


def _theme():
    """The default theme with the fonts that a device has."""
    fonts = ["system-ui", "sans-serif"]
    return _gradio().themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
