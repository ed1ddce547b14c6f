"""The suite "full" on an oracle whose answers are known, and its parts by hand."""

import csv
import dataclasses
import gzip
import os
import pathlib
import re
import types

import numpy as np
import pytest

from configs import t2i
from tests.helpers import oracle
from udd_jax import stages
from udd_jax.data import pixels, reading, sources, token_cache
from udd_jax.data.sources import shapes
from udd_jax.evaluation import (
    compare,
    feature_networks,
    held_out,
    image_sets,
    nearest_training,
    retrieval,
    samples,
)
from udd_jax.evaluation.metrics import alignment, frechet, intervals, java
from udd_jax.evaluation.report import measure_sections, report
from udd_jax.evaluation.suites import full as full_suite
from udd_jax.evaluation.suites import judges
from udd_jax.evaluation.suites import main as main_suite
from udd_jax.runtime import files, trees

WRONG = {"t2i": (0,), "i2t": (1,), "pair": (3,)}
NO_JAVA = "there is no java"
EMOJI = pathlib.Path(
    os.environ.get("UDD_EMOJI", pathlib.Path(__file__).parents[2] / "../shared/data/emoji")
)
STATES = 6  # of the network that stands for Inception


class Scorer(oracle.Oracle):
    """A pipeline with a known bound. A text costs as many bits as it has words, alone or given an
    image, and 8 bits more if it is not true of the image."""

    def score(self, tokens, *, task, common=False, **options):
        if not common:
            return super().score(tokens, task=task, **options)
        scenes = shapes.drawing.read_images(self.codecs["image"].decode(tokens["image"]))
        texts = self.codecs["text"].decode(tokens["text"])
        meanings = map(shapes.grammar.parse_caption, texts)
        wrong = [not shapes.WORLD.agrees(s, m) for s, m in zip(scenes, meanings, strict=True)]
        bits = np.array([len(text.split()) for text in texts], float)
        bits += 8.0 * np.array(wrong) * (task == "i2t")
        return -np.stack([np.zeros(len(bits)), bits], axis=1)


def extractor(size, seed):
    """A network that is a random projection of the pictures' mean colours."""
    table = np.random.default_rng(seed).standard_normal((3, size)).astype(np.float32)

    def extract(images):
        features = (np.asarray(images, np.float32).mean((1, 2)) / 255) @ table
        chances = np.exp(features)
        return np.concatenate([features, chances / chances.sum(1, keepdims=True)], axis=1)

    return extract


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(an oracle that is sometimes wrong, its folder with a token cache, its result)"""
    folder = tmp_path_factory.mktemp("run")
    config = oracle.config()
    config.data_options = {"size": 40}
    config.evaluate.update({"retrieval": 8, "among": 2, "round_trips": 4, "judged": 3})
    config.evaluate.update({"pictures": 5, "steering": 0})  # test_suite_steering.py
    made = oracle.make(folder, wrong=WRONG, config=config)
    fields = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
    pipe = Scorer(**fields)
    token_cache.write_cache(
        held_out.source(pipe, "train"),
        pipe.tokenizers["image"].encode,
        lambda texts: pipe.tokenizers["text"].encode(texts, oracle.LENGTH),
        folder / "tokens",
        settings={},
        views=reading.Views(32),
        batch_size=8,
    )
    lack = intervals.Unmeasured("no weights")
    inception = feature_networks.Network("a1", images=extractor(STATES, 0))
    nets = {"inception": inception, "clip": lack, "lpips": lack}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(java, "missing", lambda: NO_JAVA)
        patch.setattr(feature_networks, "load", lambda folder: nets)
        patch.setattr(image_sets, "STATES", STATES)
        result = main_suite.run(pipe, folder, "full", say=lambda _: None)
    return pipe, folder, result


def value(tree, *path):
    for name in path:
        tree = tree[name]
    return tree["value"]


def test_the_full_suite_has_all_that_main_has_and_does_for_it(done):
    pipe, folder, result = done
    assert result["suite"] == "full" and result["scores"]["t2i"]["agreement"]["rate"] == 7 / 8
    again = dataclasses.replace(pipe, asked=[])
    assert main_suite.run(again, folder, "main") == files.read_json(folder / "evaluation.json")
    other = again.with_config(evaluate={"retrieval": 400, "judged": 5, "category": "style"})
    assert main_suite.finished(other, folder, "main") == result  # main reads none of these
    assert main_suite.finished(again.with_config(evaluate={"samples": 3}), folder, "main") is None
    assert again.asked == []


def test_a_result_of_main_never_takes_the_place_of_one_of_full(done, tmp_path):
    files.write_json(tmp_path / "evaluation.json", done[2])
    main, said = {name: value for name, value in done[2].items() if name != "full"}, []
    main_suite._finish(tmp_path, main, said.append)
    assert f"kept as {tmp_path}/evaluation.json-1" in "".join(said)
    assert "full" in files.read_json(tmp_path / "evaluation.json-1")
    main_suite._finish(tmp_path, main, said.append)
    assert not (tmp_path / "evaluation.json-2").exists()


def test_pictures_are_compared_by_the_network_that_is_given(done):
    found = done[2]["full"]["pictures"]
    assert found["count"] == 5
    drawn = np.concatenate(
        [samples.load(f).images for f in sorted((done[1] / "samples/pictures").glob("*.npz"))]
    )
    real = np.stack([e.pixels[0] for e in held_out.stream(done[0], 5)])
    ours, theirs = (extractor(STATES, 0)(x)[:, :STATES] for x in (drawn, real))
    expected = frechet.fid(ours, theirs)
    assert value(found, "inception", "Frechet distance") == pytest.approx(expected.value, rel=1e-5)
    assert "singular" in found["inception"]["Frechet distance"]["warning"]  # fewer than dimensions
    assert {"KID", "precision", "recall", "Inception score"} <= set(found["inception"])
    assert len(list((done[1] / "features").glob("*.npy"))) == 4  # of pictures and reconstructions


def test_retrieval_finds_what_the_bound_says(done):
    found = done[2]["full"]["retrieval"]
    # A wrong caption costs 8 bits more, which no difference of length makes up for here.
    assert value(found, "image of a caption", "first 1") == 1
    assert value(found, retrieval.ALONE, "first 1") == 1
    assert found["chance"] == 0.5
    with np.load(done[1] / "samples/retrieval.npz") as kept:
        assert kept["given"].shape[1:] == (2, 2)


def test_a_network_of_one_time_says_nothing_of_a_caption_alone(done, tmp_path):
    pipe = done[0].with_network(time="shared")
    items = held_out.read(pipe, 4)
    options = {"among": 2, "times": 1, "seed": 0, "made_of": {}}
    found = retrieval.measure(pipe, items, np.eye(4, dtype=bool), tmp_path / "r.npz", **options)
    assert isinstance(found[retrieval.ALONE], intervals.Unmeasured)
    assert found["image of a caption"]["first 1"].value == 1


def test_what_is_asked_for_nothing_is_not_measured_and_says_why():
    evaluate = types.SimpleNamespace(round_trips=0, retrieval=0)
    pipe = types.SimpleNamespace(config=types.SimpleNamespace(evaluate=evaluate))
    found = full_suite.round_trips(pipe, None, {"i2t": [1], "t2i": [1]}, None)
    assert found == {"all": intervals.Unmeasured("evaluate.round_trips = 0")}
    found = full_suite.retrieved(pipe, [], None, None)
    assert set(found.values()) == {intervals.Unmeasured("evaluate.retrieval = 0")}


def test_round_trips_know_what_was_lost(done):
    found = done[2]["full"]["round_trips"]
    # Image 0 of t2i is empty, and so is the way back of item 1, whose caption is no caption.
    assert found["count"] == 4
    there = found["image to text to image"]
    assert value(there, "codes kept") >= 0.5 > value(there, "codes kept by chance")
    assert value(there, "both images fit the text") == pytest.approx(2 / 4)
    back = found["text to image to text"]
    assert value(back, "both texts fit the image") == pytest.approx(2 / 4)


def test_captions_are_held_against_those_of_the_item(done):
    found = done[2]["full"]["captions"]
    assert value(found, "BLEU_1") > 0.9 and found["tokenizer"] == "plain"
    assert "METEOR" in done[2]["unmeasured"]["captions: METEOR"]
    assert NO_JAVA in done[2]["unmeasured"]["captions: SPICE"]


def test_an_empty_caption_is_counted_and_scored_as_nothing(done):
    pipe = done[0]
    items = held_out.read(pipe, 3)
    told = [*items.captions[:2], ""]
    drawn = samples.Samples(np.zeros((3, 20)), np.ones(3), {}, captions=told)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(java, "missing", lambda: NO_JAVA)
        found = full_suite.captioning(pipe, items, drawn)
    assert found["empty"] == 1 and found["ROUGE_L"].value == pytest.approx(2 / 3)
    assert found["length"].count == 3


def test_the_nearest_training_pair_is_found_in_the_cache(done):
    _, folder, result = done
    cache = nearest_training.open_cache(folder)
    pair = cache.read([7])
    both = {"image": pair["image"][:, 0], "text": pair["text"][:, 0]}
    changed = {name: ids.copy() for name, ids in both.items()}
    changed["image"][0, 0] = (changed["image"][0, 0] + 1) % 43
    asked = {name: np.concatenate([ids, changed[name]]) for name, ids in both.items()}
    pairs, apart = nearest_training.nearest(cache, asked)
    assert apart.tolist() == [0, 1]
    assert all(np.array_equal(pairs[name][:1], ids) for name, ids in both.items())
    assert value(result["full"], "memory", "duplicates") < 1


def test_a_held_out_picture_that_is_a_training_picture_is_found(done, tmp_path):
    pipe, folder, _ = done
    cache, items = nearest_training.open_cache(folder), held_out.read(done[0], 4)
    assert nearest_training.shared(pipe, cache, items) == []
    items.images[2] = held_out.source(pipe, "train")[9].image
    items.codes[2] = pipe.tokenizers["image"].encode(items.images[2:3])[0]
    assert nearest_training.shared(pipe, cache, items) == [2]


def test_an_evaluation_leaves_out_what_was_trained_on(done, tmp_path, monkeypatch):
    pictures, texts, _ = shapes.arrays("test", 4)
    for i, splits in enumerate((("train",), ("train", "test"), ("test",), ("train", "test"))):
        for split in splits:
            folder = tmp_path / "data" / split
            folder.mkdir(parents=True, exist_ok=True)
            pixels.write_png(folder / f"{i}.png", pictures[i])
            (folder / f"{i}.txt").write_text(texts[i])
    config = oracle.config()
    config.data = f"folder:{tmp_path / 'data'}"
    config.data_options = {"trust_splits": True}  # else the source takes the train items away
    pipe = dataclasses.replace(done[0], config=config, asked=[])
    token_cache.write_cache(
        held_out.source(pipe, "train"),
        pipe.tokenizers["image"].encode,
        lambda texts: pipe.tokenizers["text"].encode(texts, oracle.LENGTH),
        tmp_path / "run/tokens",
        settings={},
        views=reading.Views(32),
        batch_size=8,
    )
    cache, items, said = nearest_training.open_cache(tmp_path / "run"), held_out.read(pipe, 4), []
    kept = nearest_training.not_learned(pipe, cache, items, said.append)
    assert items.keys == ["test/1.png", "test/2.png", "test/3.png"] and kept.keys == ["test/2.png"]
    assert np.array_equal(kept.images, items.images[1:2]) and kept.captions == [items.captions[1]]
    assert np.array_equal(kept.ids, items.ids[1:2]) and kept.hash != items.hash
    assert kept.left_out == {"test/1.png", "test/3.png"} and not items.left_out
    left = held_out.stream(pipe, 4, without=kept.left_out)  # also of pictures beyond the items
    assert [example.key for example in left] == ["test/2.png"]
    pipe.config.evaluate.pictures = 3
    (made,) = image_sets.ready(pipe, tmp_path, kept.left_out)
    assert samples.count(made) == 1
    seen, lack = [], intervals.Unmeasured("no weights")

    def counting(pictures):
        seen.append(len(pictures))
        return extractor(STATES, 0)(pictures)

    monkeypatch.setattr(image_sets, "STATES", STATES)
    nets = {"inception": feature_networks.Network("a2", images=counting), "clip": lack}
    report = image_sets.measure(pipe, kept, None, [made], tmp_path, nets)
    assert report["count"] == 1 and set(seen) == {1}  # made and real
    assert said == [
        "evaluation: 2 of 3 pictures are training pictures, too (the first is test/1.png): left out"
    ]
    with pytest.raises(ValueError, match="all 2 measured pictures are training pictures"):
        nearest_training.not_learned(pipe, cache, items.without([1]), said.append)


def test_shapes_fall_into_ten_categories(done):
    names = set(shapes.WORLD.categories)
    assert names == {shapes.WORLD.category(scene) for scene in shapes.scenes.all_scenes()}
    assert len(names) == len(shapes.WORLD.categories) == 10
    report = done[2]["full"]["agreement"]["by category"]["agreement"]
    assert "mean of categories" in report and names < set(report)
    items = held_out.read(done[0], oracle.ITEMS)
    kinds = full_suite.categories(items, "")
    for name in names - set(kinds):  # held-out scenes have two objects
        assert "none of the 8 items" in report[name]["unmeasured"]
    assert all(report[name]["count"] == kinds.count(name) for name in kinds)
    with pytest.raises(ValueError, match=r"evaluate\.category = 'style' is not a field"):
        full_suite.categories(dataclasses.replace(items, world=None), "style")
    extra = [{"style": "a"} if i % 2 else {} for i in range(len(items))]
    kinds = full_suite.categories(dataclasses.replace(items, world=None, extra=extra), "style")
    assert kinds == ["(none)", "a"] * 4


def test_a_category_that_no_item_has_is_refused_before_anything_is_sampled(
    tiny_run, tmp_path, monkeypatch
):
    pixels.write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "a.txt").write_text("a")
    there = {"validation": 0, "test": 0}
    source = sources.open_source(f"folder:{tmp_path}", "train", **there)
    monkeypatch.setattr(held_out, "source", lambda *_, **__: source)
    with pytest.raises(ValueError, match=r"^evaluate\.category is 'styl', which no item of the"):
        stages.evaluate_run(tiny_run, "full", fields={"evaluate.category": "styl"})


def test_several_processes_make_what_one_makes(done, tmp_path):
    pipe = dataclasses.replace(done[0], asked=[], wrong={"t2i": (5,)})
    items = held_out.read(pipe, 8)
    asked = {"count": 8, "batch_size": 3, "seed": 0, "made_of": {"weights": "a"}}
    whole = samples.obtain(pipe, items, "t2i", tmp_path / "one" / "t2i.npz", **asked)
    assert len(pipe.asked) == 3
    path = tmp_path / "many" / "t2i.npz"
    for index in (1, 0):
        samples.make(pipe, items, "t2i", path, share=(index, 2), **asked)
    assert len(pipe.asked) == 6  # three parts again, none twice
    joined = samples.obtain(pipe, items, "t2i", path, **asked)
    assert len(pipe.asked) == 6 and np.array_equal(joined.tokens, whole.tokens)
    assert joined.captions == whole.captions and np.array_equal(joined.images, whole.images)
    assert [f.name for f in path.parent.iterdir()] == ["t2i.npz"]


def test_groups_hold_no_two_equals():
    equal = np.eye(6, dtype=bool)
    equal[0, 1] = equal[2, 3] = True
    assert retrieval.groups(equal, 3).tolist() == [[0, 2, 4], [1, 3, 5]]
    assert retrieval.groups(equal, 7).shape == (0, 7)


def test_judges_are_scored_by_the_sheets_that_come_back(tmp_path):
    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    judges.write(tmp_path, pictures, pictures + 9, ["a", "<b>"])
    (tmp_path / "answers-none.csv").write_text("picture,answer\n001,\n")
    assert isinstance(judges.score(tmp_path), intervals.Unmeasured)
    key = files.read_json(tmp_path / "key.json")["pictures"]
    sheet = (tmp_path / "sheet.html").read_text()
    assert len(key) == 4 and "&lt;b&gt;" in sheet and sheet.count("<figure") == 4
    with open(tmp_path / "answers.csv", newline="") as file:
        assert [row["picture"] for row in csv.DictReader(file)] == list(key)
    lines = [f"{number}, real" for number in list(key)[:3]] + [f"{list(key)[3]},"]
    (tmp_path / "answers-ada.csv").write_text("\n".join(["picture,answer", *lines]))
    found = judges.score(tmp_path)
    right = [kind == "real" for kind in list(key.values())[:3]]
    assert found["judges"] == 1 and found["accuracy"].value == pytest.approx(np.mean(right))
    files.write_json(tmp_path / "key.json", key)  # as old sheets have it
    assert judges.score(tmp_path) == found
    numbers = [str(int(number)) for number in list(key)[:3]]  # as spreadsheets save it
    for text in (";".join, ",".join):
        table = [("picture", "answer", "note"), *((n, " Real", "Anm\u00e4rkung") for n in numbers)]
        sheet = "\r\n".join([*map(text, table), "x"])  # a cell is missing
        for encoding in ("utf-16", "latin-1"):
            (tmp_path / "answers-ada.csv").write_bytes(sheet.encode(encoding))
            assert judges.score(tmp_path) == found
    (tmp_path / "answers-bob.csv").write_text("number;answer\n1;real")
    with pytest.raises(ValueError, match=r"answers-bob\.csv has the columns"):
        judges.score(tmp_path)


def test_answers_are_never_counted_for_the_samples_of_another_model(done, tmp_path, capsys):
    pipe, run, _ = done
    items, folder = held_out.read(pipe, 4), tmp_path / "judges"
    drawn, options = samples.load(run / samples.FOLDER / "t2i.npz"), pipe.config.evaluate
    full_suite.judged(items, drawn, folder, options)
    (folder / "answers-ada.csv").write_text("picture,answer\n001,real\n")
    assert full_suite.judged(items, drawn, folder, options)["judges"] == 1
    (folder / "answers-bob.csv").write_text("picture,answer\n001,perhaps\n")
    found = full_suite.judged(items, drawn, folder, options)  # and no error after all the rest
    assert "'perhaps'" in found.unmeasured and (folder / "answers-ada.csv").exists()
    for n in (1, 2):
        drawn = dataclasses.replace(drawn, images=drawn.images[::-1])
        found = full_suite.judged(items, drawn, folder, options)
        assert "no judge has answered" in found.unmeasured
        assert f"now in {folder}-{n}" in capsys.readouterr().out
    assert (tmp_path / "judges-1" / "answers-ada.csv").exists()


def test_what_judges_say_later_enters_the_result(done, tmp_path):
    (tmp_path / "judges").mkdir()
    files.write_json(tmp_path / "evaluation.json", done[2])
    key = files.read_json(done[1] / "judges" / "key.json")
    files.write_json(tmp_path / "judges" / "key.json", key)
    lines = "".join(f"{number},{kind}\n" for number, kind in key["pictures"].items())
    (tmp_path / "judges" / "answers-eve.csv").write_text("picture,answer\n" + lines)
    assert "judges" in done[2]["unmeasured"]
    assert main_suite.judge(tmp_path)["accuracy"]["value"] == 1
    assert "judges" not in files.read_json(tmp_path / "evaluation.json")["unmeasured"]


def test_missing_weights_say_which_file_and_where_to_put_it(tmp_path):
    found = feature_networks.load("")
    assert "pt_inception-2015-12-05-6726825d" in found["inception"].unmeasured
    assert "--weights" in found["clip"].unmeasured
    found = feature_networks.load(str(tmp_path))
    assert str(tmp_path) in found["lpips"].unmeasured and "vgg16" in found["lpips"].unmeasured
    with pytest.raises(ValueError, match="which is not a folder"):
        feature_networks.load(str(tmp_path / "nowhere"))


def test_a_suite_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="suite 'everything' does not exist, expected one of main"):
        stages.evaluate_run(tmp_path, "everything")


def test_a_record_that_cannot_be_read_is_not_one_of_those_that_say_so(done, monkeypatch):
    records = held_out.source(done[0], "test", size=8)

    class Broken:
        def __len__(self):
            return len(records)

        def __getitem__(self, position):
            if position == 0:
                raise ValueError("the file is gone")
            return records[position]

    monkeypatch.setattr(held_out, "source", lambda *_, **__: Broken())
    with done[0].config.unlocked():
        done[0].config.evaluate.only = f"scene={records[1].extra['scene']}"
    try:
        assert [example.position for example in held_out.stream(done[0], 1)] == [1]
    finally:
        done[0].config.evaluate.only = ""


def test_only_items_that_say_so_are_measured(done):
    with done[0].config.unlocked():
        done[0].config.evaluate.only = "scene=none of them"
    try:
        with pytest.raises(ValueError, match="no readable item with scene = none of them"):
            held_out.read(done[0], 2)
    finally:
        done[0].config.evaluate.only = ""


def test_the_page_shows_what_was_found_and_says_what_was_not(done):
    pipe, folder, result = done
    files.write_json(folder / "config.json", {"config": pipe.config.to_dict()})
    text = report.write(folder).read_text()
    for name in set(measure_sections.PARTS) - {"judges", "recognition", "steering"}:
        assert f'<section id="{name}">' in text
    frechet = result["full"]["pictures"]["inception"]["Frechet distance"]["value"]
    assert measure_sections.number(frechet) in text
    trips = re.search(r'<section id="round_trips">.*?</section>', text, re.S).group()
    assert trips.count("<img") == 3 * 4
    section = re.search(r'<section id="unmeasured">.*?</section>', text, re.S).group()
    for name, why in result["unmeasured"].items():
        line = next(
            line for line in section.split("<li>") if measure_sections.page.escape(why) in line
        )
        assert measure_sections.page.escape(name.rpartition(": ")[2]) in line
    # What shares a reason stands together, and a measure is called by its name.
    lacking = "pictures: clip: Frechet distance, KID, precision, recall"
    assert f"{lacking}; agreement: CLIP score, R-precision; reconstruction: LPIPS</b>" in section
    assert section.count("<li>") == len(set(result["unmeasured"].values()))


def test_a_part_is_shown_if_a_leaf_of_it_was_measured():
    reason, estimate = {"unmeasured": "no 'value': of it"}, {"value": 1.0, "count": 3}
    assert not measure_sections.measured({"count": 3, "inception": {"KID": reason}, "clip": reason})
    assert not measure_sections.measured(reason)
    assert measure_sections.measured(
        {"inception": {"KID": reason, "FID": estimate}, "clip": reason}
    )
    assert measure_sections.measured(estimate | {"warning": "'unmeasured': is a word"})
    assert measure_sections.measured({"seconds, cold": 2.5, "batch": 8})
    paths = [
        path for path, _ in measure_sections.leaves({"a": {"b": reason, "c": 2}, "d": estimate})
    ]
    assert paths == [("a", "b"), ("a", "c"), ("d",)]


def test_tables_have_no_empty_columns_and_facts_stand_below(done):
    sections = dict(
        re.findall(
            r'<section id="(\w+)">(.*?)</section>',
            "".join(measure_sections.show(done[1], done[2])),
            re.S,
        )
    )
    assert "95 % interval" not in sections["speed"] and "95 % interval" in sections["captions"]
    assert f"batch: {oracle.ITEMS}" in sections["speed"]
    assert "<b>by category, agreement</b>" in sections["agreement"]


def test_two_full_results_are_compared_measure_by_measure(done, tmp_path):
    text = compare.show(done[1], done[1])
    assert "pictures: inception: Frechet distance" in text and "retrieval: image of a cap" in text
    other = files.read_json(done[1] / "evaluation.json")
    other["manifest"]["protocol"]["features"]["inception"] = "b2"
    files.write_json(tmp_path / "evaluation.json", other)
    with pytest.raises(ValueError, match=r"differ in features\.inception \(a1 and b2\)"):
        compare.show(done[1], tmp_path)


# ---- With weights, with real data


def clip_state() -> dict[str, np.ndarray]:
    """A CLIP of one layer with random weights, in OpenAI's names."""
    draw, state = np.random.default_rng(0), {}

    def add(name, *shape):
        state[name] = (draw.standard_normal(shape) * 0.1).astype(np.float32)

    for tower in ("visual.transformer", "transformer"):
        block = f"{tower}.resblocks.0"
        for name, wide, narrow in (
            ("attn.out_proj", 64, 64),
            ("mlp.c_fc", 256, 64),
            ("mlp.c_proj", 64, 256),
        ):
            add(f"{block}.{name}.weight", wide, narrow)
            add(f"{block}.{name}.bias", wide)
        add(f"{block}.attn.in_proj_weight", 192, 64)
        add(f"{block}.attn.in_proj_bias", 192)
        for norm in ("ln_1", "ln_2"):
            add(f"{block}.{norm}.weight", 64)
            add(f"{block}.{norm}.bias", 64)
    for norm in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        add(f"{norm}.weight", 64)
        add(f"{norm}.bias", 64)
    add("visual.conv1.weight", 64, 3, 16, 16)
    add("visual.class_embedding", 64)
    add("visual.positional_embedding", 5, 64)
    add("visual.proj", 64, 8)
    add("token_embedding.weight", feature_networks.CLASSES, 64)
    add("positional_embedding", 8, 64)
    add("text_projection", 64, 8)
    return state


def test_clip_scores_images_from_the_users_files(done, tmp_path):
    trees.save_tree(tmp_path / "ViT-B-32.safetensors", clip_state())
    found = feature_networks.load(str(tmp_path))
    items = dataclasses.replace(held_out.read(done[0], 8), world=None)
    drawn = samples.Samples(np.zeros((8, 20)), np.ones(8), {}, images=items.images)
    lacking = full_suite.agreements(items, drawn, None, found["clip"])
    assert feature_networks.MERGES in lacking["CLIP score"].unmeasured
    letters = [chr(97 + i % 26) for i in range(8)]
    merges = "".join(f"{letters[i % 8]}{i} x\n" for i in range(feature_networks.CLASSES - 514))
    (tmp_path / feature_networks.MERGES).write_bytes(
        gzip.compress(f"#version: 0.2\n{merges}".encode())
    )
    clip = feature_networks.load(str(tmp_path))["clip"]
    assert clip.hash == found["clip"].hash
    report = full_suite.agreements(items, drawn, list("aabbccdd"), clip)
    cosine = report["CLIP score"]["cosine"].value
    assert -1 < cosine < 1
    by_hand = alignment.cosine(clip.images(items.images), clip.texts(items.captions))
    assert cosine == pytest.approx(by_hand.mean())
    assert "by category" in report and "CLIP score" in report["by category"]
    assert any(name.startswith("R-precision among") for name in report)


@pytest.mark.skipif(not EMOJI.is_dir(), reason="the emoji data are not there")
def test_held_out_emoji_make_groups_of_twenty_different_names():
    config = t2i.get_config("emoji")
    config.data = f"webdataset:{EMOJI}"
    found = list(held_out.stream(types.SimpleNamespace(config=config), 120))
    assert all(example.extra["split_kind"] == "pair" for example in found)
    captions = [example.captions[0] for example in found]
    groups = retrieval.groups(retrieval.equal_texts(captions), config.evaluate.among)
    assert len(groups) >= 5
    assert all(len({captions[i] for i in group}) == 20 for group in groups)
