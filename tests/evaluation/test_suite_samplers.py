"""The suite "samplers" on an oracle whose mistakes are known."""

import dataclasses

import numpy as np
import pytest

from tests.helpers import oracle
from udd_jax.diffusion import schedules, transition
from udd_jax.evaluation.metrics import agreement
from udd_jax.evaluation.suites import samplers as samplers_suite


def test_every_sampler_is_measured_or_left_out_with_its_reason(tmp_path):
    pipe = oracle.make(tmp_path)
    replacing = schedules.make("mask_and_replace", 20)
    kernel = transition.make_kernel(pipe.vocab, replacing)
    wrong = {"pair": range(2)}  # what is made first: of pair, i2t and t2i side by side
    pipe = dataclasses.replace(pipe, asked=[], wrong=wrong, kernel=kernel)
    result = samplers_suite.run(pipe, tmp_path, count=4, say=lambda _: None)
    names = {row["settings"]["sampler"] for row in result["rows"]}
    left = {row["settings"]["sampler"] for row in result["left_out"]}
    assert left == {"remdm_cap", "remdm_rescale", "remdm_confidence"}  # the schedule replaces
    assert "ancestral" in names and "entropy_bounded" in names and not names & left
    assert result["rows"][0]["pair"] == agreement.rate(np.arange(4) > 1)
    # What was chosen is measured again, on as many samples as the config says.
    assert result["again"]["full"]["pair"] == agreement.rate(np.arange(8) > 1)
    assert result["best"]["full"] == result["again"]["full"]
    assert result["best"]["full"]["settings"] == {"sampler": "ancestral", "steps": 20}
    assert max(result["best"]["quarter"]["calls_of"].values()) <= 5
    bounded = [row["settings"] for row in result["rows"] if "bounds" in row]
    assert bounded == [{"sampler": "ancestral", "steps": n} for n in (1, 2, 5, 20)]
    assert result["rows"][0]["bounds"]["t2i"]["value"] == 2.0
    assert result["best"]["default"]["row"]["settings"] == {"sampler": "first_hitting", "group": 1}
    assert "one token a call" in result["best"]["default"]["why"]
    again = dataclasses.replace(pipe, asked=[])
    assert samplers_suite.run(again, tmp_path, count=4, say=lambda _: None) == result
    assert again.asked == []


def test_the_best_quarter_is_the_best_of_those_that_are_cheap_in_every_task():
    def row(sampler, steps, rate, pair=0):
        return {
            "settings": {"sampler": sampler, "steps": steps},
            "calls_of": {"t2i": steps, "pair": pair or steps},
            "agreement": {"rate": rate, "error": 0.003},
            "t2i": {"rate": rate + 0.05, "error": 0.004},
        }

    rows = [row("ancestral", 20, 0.9), row("maskgit", 5, 0.88), row("halton", 4, 0.7)]
    rows += [row("maskgit", 10, 0.99), row("threshold", 2, 0.97, pair=9)]
    ours = {"sampler": "ancestral", "steps": 0, "top_r": 1.0}
    found = samplers_suite.best(samplers_suite.choose(rows, 20, ours))
    assert found["quarter"]["settings"] == {"sampler": "maskgit", "steps": 5}
    assert found["points_lost"] == pytest.approx(2) and not found["within_a_point"]
    assert found["error"] == pytest.approx(0.3 * 2**0.5)
    assert found["of_tasks"]["t2i"]["points_lost"] == pytest.approx(2)
    assert found["of_tasks"]["t2i"]["error"] == pytest.approx(0.4 * 2**0.5)
    assert found["default"]["row"] is found["full"] and found["default"]["within_a_point"]
    rows[1]["agreement"]["rate"] = 0.891
    ours = {"sampler": "fixed", "steps": 3}
    assert samplers_suite.best(samplers_suite.choose(rows, 20, ours))["within_a_point"]
