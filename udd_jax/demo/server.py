"""Opens the page on this machine, and closes it after Ctrl-C or SIGTERM.

Everything that a visitor sends is kept in one temporary folder, which is removed at the end. The
server gives out the files of that folder and no others.
"""

import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading

from udd_jax import pipeline
from udd_jax.errors import UserError
from udd_jax.runtime import logbook

HOST = "127.0.0.1"
# Colours of the theme with a contrast of 4.5 or more.
CONTRAST = {
    "color_accent": "*primary_700",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "input_placeholder_color": "*neutral_600",
    "input_placeholder_color_dark": "*neutral_300",
}


def run(workdir, port: int | None = None, share: bool = False) -> None:
    """Serves the page of a run until a signal comes. workdir: None for the run of the package.

    Raises:
        UserError: one line; Gradio is not installed, or the port is taken.
        FileNotFoundError, ValueError: one line; `workdir` has no run.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="udd_jax-demo-"))
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    try:
        shown, address = start(workdir, folder, port, share)
        logbook.say(f"open {address} in a browser; Ctrl-C ends it")
        over.wait()
        shown.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\nstopped", file=sys.stderr)


def start(workdir, folder, port: int | None = None, share: bool = False):
    """Opens the page with `folder` for what visitors send. Returns (the page, its address)."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        raise UserError("--mode=demo needs Gradio: pip install 'udd_jax[demo]'") from None
    from udd_jax.demo import page, painter, requests, views

    logbook.begin()
    pipe = pipeline.Pipeline.load(workdir or pipeline.PACKAGED)
    shown = page.Page(pipe.with_network(unroll=1), workdir)
    plain = ["system-ui", "sans-serif"]
    mono = ["ui-monospace", "monospace"]
    theme = gradio.themes.Default(primary_hue="blue", font=plain, font_mono=mono)
    theme.set(**CONTRAST)
    try:
        _, address, public = shown.blocks.launch(
            server_name=HOST,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=requests.BYTES,
            state_session_capacity=1000,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            run_history=False,
            theme=theme,
            css=views.CSS + painter.CSS,
        )
    except OSError as error:
        shown.service.close()
        what = f"--port={port} cannot be opened" if port else "no port can be opened"
        raise UserError(f"{what} ({error})" + (": leave it out" if port else "")) from None
    return shown, public or address
