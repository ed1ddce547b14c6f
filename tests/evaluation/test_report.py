"""The page says what was measured, shows it, and needs nothing but itself."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.helpers import oracle
from udd_jax.evaluation import scores
from udd_jax.evaluation.report import page, report, sample_sections
from udd_jax.evaluation.suites import main as main_suite
from udd_jax.evaluation.suites import samplers as samplers_suite
from udd_jax.runtime import files, logbook

WRONG = {"t2i": (0,), "i2t": (1, 2), "pair": (3,), "infill": (0, 5), "image": (7,), "text": (1,)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(the folder of a run with everything in it, its page)"""
    folder = tmp_path_factory.mktemp("run")
    pipe = oracle.make(folder, wrong=WRONG)
    main_suite.run(pipe, folder, say=lambda _: None)
    config = pipe.config.to_dict() | {"name": "<b>bold</b>"}
    files.write_json(folder / "config.json", {"config": config})
    files.write_json(folder / "stages.json", {"data": 0.5, "diffusion": 600})
    tasks = ("t2i", "i2t", "pair")
    rows = [
        {"settings": {"sampler": s, "steps": n}, "calls": n, "calls_of": dict.fromkeys(tasks, n),
         "seconds": n / 10, "agreement": {"rate": rate, "error": 0.01},
         **{task: {"rate": rate, "error": 0.02} for task in tasks}}
        for s, n, rate in (("ancestral", 5, 0.4), ("ancestral", 20, 0.62), ("maskgit", 5, 0.615))
    ]  # fmt: skip
    for row in rows[:2]:
        row["bounds"] = {task: {"value": 0.7} for task in tasks}
    best = samplers_suite.best(samplers_suite.choose(rows, 20, {"sampler": "maskgit", "steps": 5}))
    files.write_json(folder / "samplers.json", {"rows": rows, "left_out": [], "best": best})
    with_curves(folder, loss=3.0, image_nll=1.0, text_nll=2.0)
    with_curves(folder / "vq", psnr=20.0, perplexity=9.0)
    return folder, report.write(folder).read_text()


def with_curves(folder, **values):
    book = logbook.Logbook(folder)
    for step in (10, 20, 30):
        book.write(step, **{name: value + step / 10 for name, value in values.items()})
    book.close()


class Tags(HTMLParser):
    """Every start tag with its attributes; fails where tags are not nested."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(run):
    found = Tags(run[1]).found
    for tag, attributes in found:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"https?://|@import|url\(", run[1])
    assert len(run[1]) < 3_000_000


def test_links_lead_to_what_is_there(run):
    found = Tags(run[1]).found
    names = {attributes.get("id") for _, attributes in found}
    links = {attributes["href"][1:] for tag, attributes in found if tag == "a"}
    assert links and links <= names


def test_every_rate_stands_on_the_page_with_its_error(run):
    result = files.read_json(run[0] / "evaluation.json")
    for row in result["headline"]:
        if row["better"] == "higher":
            assert page.percent(row["value"], row["error"]) in run[1]
        else:
            assert f"{row['value']:.3f}" in run[1]
    for bits in result["bounds"].values():
        assert f"{bits['value']:.3f} ± " in run[1]
    assert f"{result['tokenizer']['psnr']['value']:.2f} ±" in run[1]
    for name in result["unmeasured"]:
        assert page.escape(name) in run[1]


def test_every_task_shows_its_samples_right_beside_wrong(run):
    for task in oracle.TASKS:
        section = re.search(rf'<section id="{task}">.*?</section>', run[1], re.S).group()
        if task == "text":
            assert section.count("<li>") > oracle.ITEMS
            continue
        wrong = len(WRONG[task])
        # Once in the first row, once among those picked.
        assert section.count('class="wrong"') + section.count("triple wrong") == 2 * wrong
        assert section.count("✗") == 2 * wrong
        right = min(4 if task == "infill" else 8, 8 - wrong)
        assert section.count('class="judged"') == 8 + right + wrong


def test_infilled_words_are_marked_and_the_hole_is_grey(run):
    section = re.search(r'<section id="infill">.*?</section>', run[1], re.S).group()
    lines = map(json.loads, (run[0] / "samples/samples.jsonl").read_text().splitlines())
    first = next(line for line in lines if line["task"] == "infill")
    assert page.escape(first["condition"]["given"]) in section
    assert section.count("<mark>") >= first["condition"]["given"].count("___")


def test_a_lost_part_is_told_apart_from_a_changed_token():
    told = sample_sections.reason({}, scores.LOST)
    assert told != scores.LOST and "a blank became no word or several" in told
    world = {"world": {"reasons": {"wrong colour": "another colour"}}}
    assert sample_sections.reason(world, "wrong colour") == "another colour"
    assert sample_sections.reason(world, "unknown") == "unknown"


def test_the_way_of_a_pair_is_shown_for_both_modalities(run):
    section = re.search(r'<section id="way">.*?</section>', run[1], re.S).group()
    assert section.count("<img") == 3 * 8 and section.count('class="hidden"') > 8


def test_curves_are_drawn_for_what_was_logged_and_nothing_else(run):
    training = re.search(r'<section id="training">.*?</section>', run[1], re.S).group()
    assert training.count("<svg") == 2  # the loss, and both -log p in one
    assert training.count("<polyline") == 3
    tokenizer = re.search(r'<section id="tokenizer">.*?</section>', run[1], re.S).group()
    assert tokenizer.count("<svg") == 2


def test_names_from_outside_are_escaped(run):
    assert "<b>bold</b>" not in run[1] and "&lt;b&gt;bold&lt;/b&gt;" in run[1]


def test_the_runs_own_task_comes_first(run, tmp_path):
    config = files.read_json(run[0] / "config.json")
    before = json.dumps(config)
    try:
        config["config"]["task"] = "pair"
        files.write_json(run[0] / "config.json", config)
        text = report.write(run[0]).read_text()
    finally:
        files.write_json(run[0] / "config.json", json.loads(before))
    assert text.index('id="pair"') < text.index('id="t2i"')
    assert run[1].index('id="t2i"') < run[1].index('id="pair"')


def test_a_run_without_metrics_samples_or_stages_still_has_its_page(run, tmp_path):
    for name in ("config.json", "evaluation.json"):
        (tmp_path / name).write_bytes((run[0] / name).read_bytes())
    text = report.write(tmp_path).read_text()
    assert 'id="headline"' in text and 'id="training"' not in text and 'id="t2i"' not in text
    links = {a["href"][1:] for tag, a in Tags(text).found if tag == "a"}
    assert links <= {a.get("id") for _, a in Tags(text).found}


def test_what_was_found_in_the_data_is_a_section_and_names_the_training_split(run, tmp_path):
    for name in ("config.json", "evaluation.json"):
        (tmp_path / name).write_bytes((run[0] / name).read_bytes())
    row = {"name": "folder /x, train", "records": 9, "captions": 8, "unusable": 1, "decided": "so"}
    fault = {"broken image": {"count": 1, "first": "<a>.png: cut"}}
    kinds = {"unusable": fault, "dropped": {}, "repaired": {}, "left": {}}
    found = {"splits": {"train": row}, "sizes": {"9 x 8": 8}, "examples": ["a box"], **kinds}
    files.write_json(tmp_path / "data.json", found)
    result = files.read_json(run[0] / "evaluation.json")
    del result["world"]  # which only embedded worlds have
    files.write_json(tmp_path / "evaluation.json", result)
    text = report.write(tmp_path).read_text()
    assert "It was trained on folder /x, train, and is measured on" in text
    assert 'id="data"' in text and "train: 9 pictures, 1 of them unusable, 8 captions (so)" in text
    assert "unusable: broken image, 1 (the first: &lt;a&gt;.png: cut)" in text
    assert 'id="data"' not in run[1]


def test_a_folder_without_a_result_is_refused(tmp_path):
    files.write_json(tmp_path / "config.json", {"config": {}})
    with pytest.raises(FileNotFoundError, match=r"evaluation\.json does not exist"):
        report.write(tmp_path)


def test_a_plot_puts_points_where_they_belong():
    drawn = page.plot("p", {"a": ([0, 10], [1, 3])}, size=(330, 180))
    points = re.search(r'points="([^"]*)"', drawn).group(1).split()
    assert points == ["48.0,146.0", "312.0,10.0"]  # lower left and upper right of the frame
    logs = page.plot("p", {"a": ([1, 10, 100], [0, 1, 2])}, log_x=True)
    xs = [float(p.split(",")[0]) for p in re.search(r'points="([^"]*)"', logs).group(1).split()]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])


def test_panels_name_every_line_in_the_colour_that_it_has_in_all():
    names = [f"line {i}" for i in range(10)]
    full = {name: ([0, 1], [i, i + 1]) for i, name in enumerate(names)}
    drawn = page.panels({"x": {names[0]: full[names[0]]}, "y": {n: full[n] for n in names[1:]}})
    assert all(f">{name}</text>" in drawn for name in names[:8])
    assert all(f">- - {name}</text>" in drawn for name in names[8:])
    colours = re.findall(r'<polyline[^>]* stroke="([^"]*)"', drawn)
    assert colours == [page.FIXED[i % 8] for i in range(10)]


def test_samples_of_an_older_result_are_not_shown(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    result = files.read_json(tmp_path / "run" / main_suite.RESULT)
    files.write_json(tmp_path / "run" / main_suite.RESULT, result | {"scores": {}})
    shown = report.write(tmp_path / "run").read_text()
    assert '<section id="t2i">' not in shown and '<section id="t2i">' in run[1]


def test_long_curves_are_averaged_not_cut():
    drawn = page.plot("p", {"a": (np.arange(800), np.arange(800) % 2)})
    points = re.search(r'points="([^"]*)"', drawn).group(1).split()
    assert len(points) == 200 and len({p.split(",")[1] for p in points}) == 1


def test_a_large_picture_is_made_small():
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    assert len(page.picture(noise)) < 40_000


def test_samplers_are_compared_in_plots_and_words(run):
    section = re.search(r'<section id="samplers">.*?</section>', run[1], re.S).group()
    assert "<i>ancestral, steps 20</i>, agrees in 62.0 ± 1.0 % with 20.0 calls" in section
    assert "<i>maskgit, steps 5</i>, agrees in 61.5 ± 1.0 % with 5.0 calls" in section
    assert ": within a point of it (points: pair -0.5 ± 2.8, " in section
    assert "with one chain for every task, has <i>maskgit, steps 5</i>" in section
    for label in ("network calls", "seconds of all samples", "bound of the ancestral chain"):
        assert label in section
    assert section.count('<div class="plot">') == 3


def test_a_large_picture_keeps_its_sides():
    image = np.zeros((64, 256, 4), np.uint8)
    image[:, :8] = image[:, -8:] = 255
    uri = re.search('src="data:image/png;base64,(.*?)"', page.picture(image)).group(1)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))
    assert shown.shape[:2] == (32, 128) and shown[:, 0].min() > 200 and shown[:, -1].min() > 200
