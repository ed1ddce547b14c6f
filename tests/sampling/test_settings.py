"""The settings of sampling: their types, and which sampler reads which."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import documented, finite
from udd_jax.diffusion import schedules, transition
from udd_jax.sampling import reverse, settings
from udd_jax.sampling.samplers import SAMPLERS
from udd_jax.sampling.settings import OF_SAMPLERS, Settings


def reads(sampler, monkeypatch) -> set[str]:
    """The settings that the code reads while it traces a chain."""
    seen = set()

    def record(self, name):
        seen.add(name)
        return object.__getattribute__(self, name)

    # Only a schedule that replaces tokens has any for the corrector.
    options = {"correct": 1} if sampler == "ancestral" else {}
    schedule = "uniform" if options else "absorbing"
    kernel = transition.make_kernel(finite.LAYOUT, schedules.make(schedule, finite.STEPS))
    settings = Settings(sampler=sampler, **options)
    x = np.zeros((2, finite.LAYOUT.length), np.int32)
    monkeypatch.setattr(Settings, "check", lambda *_: None)
    monkeypatch.setattr(Settings, "__getattribute__", record)
    jax.eval_shape(
        lambda key: reverse.run(
            kernel, finite.oracle(kernel), key, x, x == 0, np.zeros((2, 2), bool), settings
        ),
        jax.random.key(0),
    )
    return seen


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_reads_the_settings_that_the_table_says(sampler, monkeypatch):
    found = reads(sampler, monkeypatch) & {*OF_SAMPLERS}
    if sampler == "remdm_confidence":  # hands eta on to a rule that ignores it
        found -= {"eta"}
    assert found == {*SAMPLERS[sampler].reads}


def table() -> dict[str, tuple[str, str, set]]:
    """{sampler: (kind, network calls, what it reads)}, from the page of sampling."""
    text = (documented.ROOT / "docs" / "sampling.md").read_text()
    rows = text.partition("| `--sampler=` |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {
        sampler.strip("`"): (kind, calls, set(re.findall(r"`(\w+)`", read)))
        for sampler, kind, calls, read in cells
    }


def test_the_table_of_the_page_has_every_sampler_with_its_kind_and_what_it_reads():
    assert list(table()) == list(settings.names())
    for sampler, (kind, _, listed) in table().items():
        chosen = Settings(sampler=sampler)
        assert kind == chosen.kind
        assert listed == {name for name in ("steps", *OF_SAMPLERS) if not chosen.unread(name)}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_makes_the_calls_that_the_page_says(sampler):
    kernel = transition.make_kernel(finite.LAYOUT, schedules.make("absorbing", finite.STEPS))
    length, masks = finite.LAYOUT.length, np.zeros((1, 2), bool)
    x = np.full((1, length), finite.LAYOUT.mask_id, np.int32)
    uniform = lambda xt, t, free: tuple(  # noqa: E731
        jnp.zeros((len(xt), m.length, m.classes)) for m in finite.LAYOUT.modalities
    )

    def calls(**changes) -> int:
        asked, key = Settings(sampler=sampler, **changes), jax.random.key(0)
        run = finite.quick(
            lambda asked: reverse.run(kernel, uniform, key, x, x == x, masks, asked).calls
        )
        return int(run(asked)[0])

    wide = {"threshold": {"threshold": 1e-6}, "entropy_bounded": {"bound": 1e6}}
    narrow = {"threshold": {"threshold": 1.0}, "entropy_bounded": {"bound": 0.0}}
    documented_calls = table()[sampler][1]
    if documented_calls == "`steps`":
        assert calls(steps=3) == 3
    elif documented_calls == "tokens / `group`":
        assert (calls(), calls(group=3)) == (length, -(-length // 3))
    else:
        assert documented_calls == "1 to tokens"
        assert (calls(**wide[sampler]), calls(**narrow[sampler])) == (1, length)


@pytest.mark.parametrize(
    ("changes", "name", "unread"),
    [
        ({"sampler": "first_hitting"}, "steps", "runs until no position is masked"),
        ({"sampler": "maskgit"}, "group", "only best_first and first_hitting"),
        ({}, "guidance_schedule", "guidance is off"),
        ({"guidance": 2}, "guidance_interval", "guidance_schedule is constant"),
        ({"guidance": 2, "guidance_schedule": "interval"}, "guidance_interval", None),
        ({"sampler": "maskgit"}, "steps", None),
        ({"sampler": "first_hitting"}, "group", None),
        ({}, "top_r", None),
    ],
)
def test_a_setting_says_why_it_changes_nothing(changes, name, unread):
    found = Settings(**changes).unread(name)
    assert found is None if unread is None else unread in found.why


@pytest.mark.parametrize("name", ["steps", *OF_SAMPLERS, "guidance_schedule", "guidance_interval"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_a_message_says_to_set_lets_the_setting_count(sampler, name):
    changes, times = {"sampler": sampler}, 0
    while found := Settings(**changes).unread(name):
        changes[found.setting] = found.value
        times += 1
    assert times <= 2  # guidance, then its schedule


def test_a_setting_is_refused_if_no_chain_reads_it_and_a_whole_set_never_is():
    ordered, counted = Settings(sampler="first_hitting"), Settings(sampler="maskgit")
    settings.require_read([ordered, counted], {"steps": 5, "group": 2, "noise": 1.0})
    with pytest.raises(ValueError, match=r"steps = 5 changes nothing, .*set sampler='maskgit'$"):
        settings.require_read([ordered], {"top_r": 0.5, "steps": 5})
    with pytest.raises(ValueError, match=r"--eta = 0.5 changes nothing, .*--sampler=remdm_cap$"):
        settings.require_read([ordered, counted], {"eta": 0.5}, "--")
    settings.require_read([ordered], dataclasses.asdict(ordered) | {"steps": 5})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", "5", "a whole number"),
        ("steps", 2.5, "a whole number"),
        ("top_k", True, "a whole number"),
        ("guidance", float("inf"), "a finite number"),
        ("temperature", None, "a finite number"),
        ("top_r", float("nan"), "a finite number"),
        ("guidance_interval", 0.5, "(low, high)"),
        ("guidance_interval", ("a", "b"), "(low, high)"),
        ("sampler", ["maskgit"], "one of"),
    ],
)
def test_a_setting_of_another_type_is_one_line(name, value, expected):
    with pytest.raises(ValueError, match=f"sample.{name} = ") as caught:
        Settings(**{name: value})
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_of_numpy_and_a_list_from_a_file_are_settings():
    settings = Settings(steps=np.int64(5), top_r=np.float32(0.5), guidance_interval=[0.2, 0.5])
    assert settings.guidance_interval == (0.2, 0.5)
    hash(jax.tree.structure(settings))


def test_numbers_of_numpy_are_on_and_off_as_those_of_python():
    for name, value in (
        ("steps", np.int64(0)),
        ("guidance", np.float32(1)),
        ("top_k", np.int32(0)),
    ):
        assert not Settings(**{name: value}).on(name)
        assert Settings(**{name: value}) == Settings(**{name: value.item()})
