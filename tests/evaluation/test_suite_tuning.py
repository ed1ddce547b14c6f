"""The suite "tuning" on an oracle whose mistakes depend on the setting."""

import dataclasses

import pytest

from tests.helpers import oracle
from udd_jax import pipeline, stages
from udd_jax.evaluation.suites import tuning
from udd_jax.runtime import files


def row(temperature, rate, variation):
    task = {"rate": rate, "error": 0.01, "variation": variation}
    return {"temperature": temperature, "top_r": 0.8, **dict.fromkeys(tuning.TASKS, task)}


def test_the_choice_is_the_surest_of_those_that_are_varied_enough():
    rows = [row(1.0, 0.8, 0.05), row(1.1, 0.9, 0.09), row(1.2, 0.95, 0.2)]
    assert tuning.best(rows, 0.1) is rows[1]
    assert tuning.best(rows, 0.3) is rows[2]
    assert tuning.best(rows, 0.01) is rows[2]  # none is: then of all
    assert tuning.line(rows[1]).startswith("temperature 1.1, top_r 0.8: t2i 0.900, ")


def test_each_setting_is_that_of_a_task_also_where_its_rule_has_another_name(tiny_run):
    rules = {"text|image": {"temperature": 9.0}, "image|text": {"top_r": 0.1}}
    pipe = pipeline.Pipeline.load(tiny_run).with_config(sample_rules=rules)
    row = {"temperature": 1.3, "top_r": 0.8}
    for task in tuning.TASKS:
        assert vars(tuning.with_settings(pipe, row).settings(task)).items() >= row.items()
    assert pipe.settings("i2t").temperature == 9


@pytest.mark.parametrize("name", tuning.OWN)
def test_a_field_that_the_suite_decides_itself_is_refused(tiny_run, name):
    with pytest.raises(ValueError, match=f"^--config.{name} does nothing with --suite=tuning"):
        stages.evaluate_run(tiny_run, "tuning", fields={name: "test" if "split" in name else 1})


def test_settings_are_chosen_on_the_validation_split_and_all_are_measured(tmp_path):
    class Hot(oracle.Oracle):
        """Makes more mistakes the hotter it is, in the images of t2i."""

        def generate(self, task, count, **options):
            wrong = int(10 * self.config.sample.temperature) - 10
            self.wrong["t2i"] = range(wrong)
            return super().generate(task, count, **options)

    pipe = oracle.make(tmp_path)
    pipe = Hot(**{f.name: getattr(pipe, f.name) for f in dataclasses.fields(pipe)})
    said = []
    result = tuning.run(pipe, tmp_path, count=8, say=said.append)
    assert result["manifest"]["source"] == "shapes/validation"
    assert pipe.config.evaluate.split == "test"  # the caller's pipeline is as it was
    assert result["manifest"]["protocol"]["split"] == "validation"
    assert [(r["temperature"], r["top_r"]) for r in result["rows"]] == tuning.grid()
    assert all(r["i2t"]["rate"] == r["infill"]["rate"] == 1 for r in result["rows"])
    by_temperature = {r["temperature"]: r["t2i"]["rate"] for r in result["rows"]}
    assert by_temperature == {1.0: 1.0, 1.15: pytest.approx(7 / 8), 1.3: pytest.approx(5 / 8)}
    assert result["best"]["temperature"] == 1.0
    assert files.read_json(tmp_path / tuning.RESULT) == result
    assert len(said) == len(tuning.grid()) + 1
    asked = len(pipe.asked)
    tuning.run(pipe, tmp_path, count=8, say=said.append)
    assert len(pipe.asked) == asked  # the samples are kept
