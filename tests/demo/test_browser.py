"""The page in headless Chromium, with the run of the package, as people would use it."""

import base64
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from tests.helpers import quick
from udd_jax.data import pixels

pytestmark = pytest.mark.slow
WAIT = 120_000  # milliseconds, for a result that compiles on a busy machine
CAPTION = "a small red circle above a large blue square"
SERIOUS = ("serious", "critical")
STEERING = ("Several prompts", "Places of words", "Likeness", "The best of several")


def command(*arguments):
    return [sys.executable, "-m", "udd_jax.main", *arguments]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The current folder, the home and the temporary folder of the server."""
    folder = tmp_path_factory.mktemp("demo")
    for name in ("here", "home", "tmp"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def server(place, compiled):
    """(the process, its address): the real command, in an empty folder."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install '.[demo]'")
    env = quick.environment()
    env |= {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp")}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(compiled), "PYTHONPATH": str(pathlib.Path.cwd())}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command("--mode=demo"), cwd=place / "here", env=env, **output)
    for line in process.stdout:
        if found := re.search(r"open (http://127\.0\.0\.1:\d+/)", line):
            break
    assert found, "the server said no address"
    yield process, found[1]
    if process.poll() is None:
        process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, server):
    """A function that opens the page in a new window; no window may ask another server."""
    windows, elsewhere, faults = [], [], []

    def note(request):
        if not request.url.startswith((server[1], "data:", "blob:")):
            elsewhere.append(request.url)

    def open_page(width=1200, height=1000, address=""):
        context = chromium.new_context(viewport={"width": width, "height": height})
        windows.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("request", note)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(server[1] + address)
        page.get_by_label("A new seed each time").uncheck()
        return page

    yield open_page
    for context in windows:
        context.close()
    assert elsewhere == [] and faults == []


def press(page, name):
    page.get_by_role("button", name=name, exact=True).locator("visible=true").click()


def said(page, text):
    page.locator(".udd-note", has_text=text).wait_for()


def pictures(page):
    """The pictures of the gallery as arrays, fetched as the browser would."""
    page.locator(".samples img").first.wait_for()
    sources = [image.get_attribute("src") for image in page.locator(".grid-container img").all()]
    return [pixels.read(page.request.get(source).body()) for source in sources]


def again(page):
    """The command that the page shows."""
    if not page.get_by_text("Command line").is_visible():
        page.get_by_role("button", name="Make it again").click()
    lines = page.locator(".cm-content").first
    lines.wait_for()
    return lines.inner_text().strip()


def ran(line, folder, compiled):
    """The folder of what a command of the page makes."""
    words = shlex.split(line)
    assert words[0] == "udd_jax"
    env = quick.environment()
    env |= {"JAX_COMPILATION_CACHE_DIR": str(compiled), "PYTHONPATH": str(pathlib.Path.cwd())}
    subprocess.run(command(*words[1:]), cwd=folder, env=env, check=True, capture_output=True)
    return folder / "generated"


def test_a_text_becomes_pictures_and_the_command_makes_the_same_ones(visit, tmp_path, compiled):
    page = visit()
    press(page, "Draw")
    said(page, "4 samples, seed 0.")
    shown = pictures(page)
    assert len(shown) == 4
    made = ran(again(page), tmp_path, compiled)
    for i, image in enumerate(shown):
        np.testing.assert_array_equal(image, pixels.read(made / f"image-{i:04d}.png"))
    # The chain: the slider shows other moments, with less of the picture.
    slider = page.get_by_label("moment of the chain")
    moments = page.locator(".moment")
    assert moments.count() == 12 and moments.nth(11).is_visible()
    slider.focus()
    page.keyboard.press("Home")
    assert moments.nth(0).is_visible() and not moments.nth(11).is_visible()
    press(page, "Play")
    moments.nth(11).wait_for(state="visible")


def test_a_mask_is_painted_with_the_mouse_and_the_rest_stays(visit, tmp_path, compiled):
    page = visit()
    press(page, "Draw")
    said(page, "4 samples, seed 0.")
    given = pictures(page)[0]
    page.get_by_role("tab", name="Infilling").click()
    press(page, "Take a picture of the result")
    cells = page.locator(".cells:visible")
    cells.wait_for()
    cells.scroll_into_view_if_needed()
    box = cells.bounding_box()
    row = box["y"] + box["height"] * 7 / 8
    page.mouse.move(box["x"] + box["width"] / 8, row)
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(box["x"] + box["width"] * (1 + step / 2) / 8, row)
    page.mouse.up()
    painted = page.locator(".cells:visible button[aria-pressed=true]")
    labels = [cell.get_attribute("aria-label") for cell in painted.all()]
    assert labels == [f"row 4, column {k}" for k in (1, 2, 3)]
    text = page.get_by_label("Text", exact=True).locator("visible=true")
    text.fill("a small ___ circle above a large blue ___")
    press(page, "Fill in")
    page.locator(".udd-words li").filter(has_text="a small").nth(3).wait_for()
    page.get_by_text("mask.png").first.wait_for(state="attached")
    line = again(page)
    for name in ("image.png", "mask.png"):
        with page.expect_download() as saved:
            page.get_by_role("link", name=f"Save {name}").click()
        saved.value.save_as(tmp_path / name)
    mask = pixels.read_mask(tmp_path / "mask.png", 32)
    expected = np.zeros((32, 32), bool)
    expected[24:, :24] = True
    np.testing.assert_array_equal(mask, expected)
    kept = pixels.read(tmp_path / "image.png")
    np.testing.assert_array_equal(kept[~mask], given[~mask])
    shown, made = pictures(page), ran(line, tmp_path, compiled)
    for i, image in enumerate(shown):
        np.testing.assert_array_equal(image, pixels.read(made / f"image-{i:04d}.png"))
    # This task has a sampler of its own. The one of the other tasks can be had by its name.
    assert "first_hitting" not in line
    choose(page, "first_hitting")
    press(page, "Fill in")
    page.locator(".cm-content", has_text="first_hitting").first.wait_for()


def choose(page, sampler):
    page.get_by_label("Sampler").click()
    page.get_by_role("option", name=sampler, exact=True).click()


def opened(page, *names):
    for name in names:
        page.get_by_role("button", name=name).locator("visible=true").first.click()


def stroke(page, cells, row, columns):
    """Paints cells of a row with the mouse."""
    cells.scroll_into_view_if_needed()
    box = cells.bounding_box()
    y = box["y"] + box["height"] * (row - 0.5) / 4
    page.mouse.move(box["x"] + box["width"] * (columns[0] - 0.5) / 4, y)
    page.mouse.down()
    for column in columns[1:]:
        page.mouse.move(box["x"] + box["width"] * (column - 0.5) / 4, y)
    page.mouse.up()


def test_prompts_painted_words_and_candidates_steer_a_picture(visit):
    page = visit()
    opened(page, "Steering", "Several prompts", "Places of words", "The best of several")
    text = page.get_by_role("textbox", name="Text", exact=True).locator("visible=true")
    text.fill("a small red circle")
    page.get_by_role("textbox", name="Words 1").fill("blue square")
    for row in (3, 4):
        stroke(page, page.get_by_role("group", name="the place of words 1"), row, (1, 2, 3, 4))
    press(page, "Draw")
    said(page, "Not done: paint: 'blue square' is not in the prompt 'a small red circle'")
    page.get_by_role("textbox", name="Words 1").fill("a small red circle")
    page.get_by_role("textbox", name="Prompt 2").fill("a small blue circle")
    page.get_by_label("Weight 2").fill("-1")
    press(page, "Draw")
    said(page, "Not done: the weights of the prompts (1, -1) sum to 0")
    page.get_by_label("Weight 2").fill("-0.5")
    page.get_by_label("number input for Candidates").locator("visible=true").fill("2")
    press(page, "Draw")
    said(page, "4 samples, seed 0.")
    line = again(page)
    assert shlex.split(line)[2:] == [
        "--prompt=a small red circle", "--weight=1", "--prompt=a small blue circle",
        "--weight=-0.5", "--paint=a small red circle=paint-1.png:1", "--best_of=2", "--by=match",
        "--num=4", "--seed=0",
    ]  # fmt: skip
    with page.expect_download() as saved:
        page.get_by_role("link", name="Save paint-1.png").click()
    mask = pixels.read(saved.value.path().read_bytes()).mean(axis=-1) > 127
    assert mask[16:].all() and not mask[:16].any()
    for image in pictures(page):  # red is where it was painted
        row = (image[..., 0].astype(int) - image[..., 1:].max(-1) > 60).nonzero()[0]
        assert (row >= 16).sum() > 40 and (row < 16).sum() < 10


def test_a_picture_of_the_result_is_edited_and_extended_with_the_keyboard(visit):
    page = visit()
    press(page, "Draw")
    said(page, "4 samples, seed 0.")
    page.locator(".samples .grid-container button").nth(2).click()  # opens one of them
    third = pixels.read(page.request.get(
        page.locator(".samples img").first.get_attribute("src")).body())  # fmt: skip
    page.get_by_role("tab", name="Edit", exact=True).focus()
    page.keyboard.press("Enter")
    take = page.get_by_role("button", name="Take a picture of the result").locator("visible=true")
    take.focus()
    page.keyboard.press("Enter")
    shown = page.locator(".udd-paint img:visible")
    shown.wait_for()
    sent = shown.get_attribute("src").partition(",")[2]
    np.testing.assert_array_equal(pixels.read(base64.b64decode(sent)), third)
    text = page.get_by_role("textbox", name="Text", exact=True).locator("visible=true")
    text.focus()
    page.keyboard.type("a small green circle above a large blue square")
    page.get_by_label("number input for Rounds").locator("visible=true").fill("4")
    page.get_by_role("button", name="Edit", exact=True).locator("visible=true").focus()
    page.get_by_label("Seed", exact=True).fill("5")
    press(page, "Edit")
    said(page, "4 samples, seed 5.")
    line = again(page)
    for word in ("--task=edit", "--image=image.png", "--share=0.6", "--rounds=4", "--guidance=2"):
        assert word in shlex.split(line)
    page.get_by_role("tab", name="Extend", exact=True).click()
    press(page, "Extend")
    said(page, "Not done: the picture is missing: choose one")
    take.click()
    shown.wait_for()
    press(page, "Extend")
    said(page, "4 samples, seed 5.")
    assert {image.shape for image in pictures(page)} == {(32, 48, 3)}


def test_each_other_tab_does_what_it_says(visit, tmp_path):
    page = visit()
    page.get_by_role("tab", name="Pairs").click()
    press(page, "Draw and describe")
    said(page, "4 samples, seed 0.")
    assert len(pictures(page)) == 4 and page.locator(".udd-words li").count() == 4
    pixels.write_png(tmp_path / "mine.png", pictures(page)[0].repeat(3, 0).repeat(3, 1))
    page.get_by_role("tab", name="Texts alone").click()
    page.get_by_label("Seed", exact=True).fill("7")
    press(page, "Write")
    said(page, "4 samples, seed 7.")
    assert page.locator(".grid-container img").count() == 0
    page.get_by_role("tab", name="Images alone").click()
    page.get_by_label("Seed", exact=True).fill("8")
    press(page, "Draw")
    said(page, "4 samples, seed 8.")
    assert len(pictures(page)) == 4
    page.get_by_role("tab", name="Image to text").click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "mine.png")
    page.locator(".udd-paint img:visible").wait_for()
    page.get_by_label("Seed", exact=True).fill("9")
    press(page, "Describe")
    said(page, "4 samples, seed 9.")
    assert page.locator(".udd-words li").count() == 4
    assert page.locator(".grid-container img").count() == 0
    press(page, "Take a picture of the result")
    said(page, "there is no picture in the result yet")


def test_the_likelihood_has_a_bar_for_each_token(visit):
    page = visit()
    press(page, "Draw")
    said(page, "4 samples, seed 0.")
    page.get_by_role("tab", name="Likelihood").click()
    press(page, "Take a picture of the result")
    page.locator(".udd-paint img:visible").wait_for()
    page.get_by_label("Text", exact=True).locator("visible=true").fill(CAPTION)
    press(page, "Measure")
    said(page, "The likelihood, seed 0.")
    words = [cell.inner_text() for cell in page.locator(".udd-bits tbody th").all()]
    assert words[:9] == CAPTION.split() and page.locator(".udd-map td").count() == 16
    right = float(page.locator("strong", has_text="bits").inner_text().split()[0])
    wrong = CAPTION.replace("circle", "triangle")
    page.get_by_label("Text", exact=True).locator("visible=true").fill(wrong)
    press(page, "Measure")
    page.locator(".udd-bits th", has_text="triangle").wait_for()
    assert float(page.locator("strong", has_text="bits").inner_text().split()[0]) > right + 5


def test_a_wrong_file_and_a_wrong_number_are_sentences(visit, tmp_path):
    page = visit()
    page.get_by_role("tab", name="Image to text").click()
    (tmp_path / "notes.png").write_text("no picture")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "notes.png")
    said(page, "Not done: the file is not a picture of a format that is read")
    press(page, "Describe")
    said(page, "Not done: the picture is missing: choose one")
    page.get_by_role("tab", name="Text to image").click()
    page.get_by_label("Text", exact=True).locator("visible=true").fill("red " * 50)
    press(page, "Draw")
    said(page, "more than the text length 13; shorten it")
    page.get_by_label("Text", exact=True).locator("visible=true").fill(CAPTION)
    page.get_by_label("Steps").fill("1000")
    choose(page, "ancestral")
    press(page, "Draw")
    said(page, "sample.steps = 1000 is more than the T = 100")


def test_two_windows_at_once_get_their_own_results(visit):
    first, second = visit(), visit()
    second.get_by_label("Text", exact=True).locator("visible=true").fill("a large green triangle")
    for page, seed in ((first, "11"), (second, "12")):
        page.get_by_label("Seed", exact=True).fill(seed)
        press(page, "Draw")
    said(first, "seed 11."), said(second, "seed 12.")
    for page, caption in ((first, CAPTION), (second, "a large green triangle")):
        pieces = page.locator(".udd-chain .pieces:visible span").all_inner_texts()
        assert pieces == caption.split()


def test_a_stopped_request_leaves_the_page_as_it_was(visit):
    page = visit()
    choose(page, "purity")  # not compiled yet
    press(page, "Draw")
    time.sleep(1)
    press(page, "Stop")
    choose(page, "first_hitting")
    page.get_by_label("Seed", exact=True).fill("13")
    press(page, "Draw")
    said(page, "4 samples, seed 13.")


def test_the_keyboard_alone_is_enough(visit):
    page = visit()

    def go_to(accepts, most=80):
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate(
                f"(() => {{ const e = document.activeElement; return {accepts}; }})()"
            ):
                return
        raise AssertionError(f"no way by Tab to {accepts}")

    go_to("e.innerText === 'Draw'")
    page.keyboard.press("Enter")
    said(page, "4 samples, seed 0.")
    page.get_by_role("tab", name="Text to image").focus()
    page.keyboard.press("Shift+Tab")
    go_to("e.role === 'tab' && e.innerText === 'Infilling'")
    page.keyboard.press("Enter")
    go_to("e.innerText === 'Take a picture of the result'")
    page.keyboard.press("Enter")
    page.locator(".cells:visible").wait_for()
    go_to("e.ariaLabel === 'row 1, column 1'")
    for key in ("Space", "ArrowRight", "ArrowDown", "Space"):
        page.keyboard.press(key)
        page.wait_for_timeout(200)
    painted = page.locator(".cells:visible button[aria-pressed=true]")
    labels = [cell.get_attribute("aria-label") for cell in painted.all()]
    assert labels == ["row 1, column 1", "row 2, column 2"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    page = visit(address=f"?__theme={theme}")
    press(page, "Draw")
    said(page, "4 samples, seed 0.")
    again(page)
    found = []
    for name in ("Text to image", "Image to text", "Infilling", "Edit", "Extend", "Likelihood"):
        page.get_by_role("tab", name=name, exact=True).click()
        if name == "Text to image":
            opened(page, "Steering", *STEERING)
        if name == "Infilling":
            press(page, "Take a picture of the result")
            page.locator(".cells:visible").wait_for()
        page.wait_for_timeout(500)
        rows = axe.Axe().run(page).response["violations"]
        found += [(name, row["id"]) for row in rows if row["impact"] in SERIOUS]
    assert found == []


def test_a_phone_shows_all_of_it_without_scrolling_sideways(visit):
    page = visit(width=390, height=844)
    press(page, "Draw")
    said(page, "4 samples, seed 0.")
    again(page)
    opened(page, "Steering", *STEERING)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    names = page.locator(".overflow-dropdown button").all_text_contents()
    assert "Edit" in names and "Likelihood" in names
    for name in names:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown").get_by_text(name, exact=True).click()
        page.get_by_role("tab", name=name, exact=True, selected=True).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name


def test_fifty_requests_at_once_are_all_answered_in_bounded_memory(server):
    client = pytest.importorskip("gradio_client", reason="gradio_client is not installed")
    process, address = server
    memory = lambda: psutil.Process(process.pid).memory_info().rss  # noqa: E731

    options = {"verbose": False, "analytics_enabled": False, "max_workers": 50}
    caller = client.Client(address, httpx_kwargs={"timeout": 300}, **options)
    steering, settings = (
        ("", "shows", 6, None, "palette", 64, 1, "match"),
        ("first_hitting", 25, 1.15, 0.75, 1, ""),
    )

    def round_of(first):
        seeds = range(first, first + 50)
        jobs = [caller.submit(*steering, 1, s, False, *settings, api_name="/pairs") for s in seeds]
        return [job.result(600) for job in jobs]

    sizes = []
    for first in (0, 50):
        answers = round_of(first)
        assert [answer[-1] for answer in answers] == list(range(first, first + 50))
        sizes.append(memory())
    assert sizes[1] - sizes[0] < 200 * 2**20


def test_no_other_file_is_served_and_none_is_written_elsewhere(server, place):
    import httpx

    _, address = server
    secret = place / "here" / "secret.txt"
    secret.write_text("secret")
    (place / "tmp" / "other.txt").write_text("secret")
    uploads = next((place / "tmp").glob("udd_jax-demo-*"))
    paths = [
        "/etc/passwd", str(secret), str(place / "tmp" / "other.txt"),
        f"{uploads}/../other.txt", f"{uploads}/%2e%2e/other.txt", "secret.txt",
        str(pathlib.Path(__file__).parent.parent.parent / "README.md"),
    ]  # fmt: skip
    for path in paths:
        for route in ("gradio_api/file=", "file=", "static/", "assets/", "gradio_api/stream/"):
            answer = httpx.get(f"{address}{route}{path}")
            assert answer.status_code >= 400 or "secret" not in answer.text, route + path
            assert "root:" not in answer.text and "Licence" not in answer.text, route + path
    assert httpx.get(f"{address}gradio_api/proxy=http://127.0.0.1:1/").status_code >= 400
    secret.unlink()
    (place / "tmp" / "other.txt").unlink()
    assert list((place / "here").iterdir()) == []
    assert [path.name for path in (place / "tmp").iterdir()] == [uploads.name]
    assert {path.name for path in (place / "home").iterdir()} <= {".cache", ".config"}


def test_a_signal_ends_it_and_removes_what_visitors_sent(server, place):
    process, _ = server
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert list((place / "tmp").iterdir()) == []
