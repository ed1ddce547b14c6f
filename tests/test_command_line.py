"""The flags: each belongs to some modes, every setting of the sampler is one, and help is short."""

import dataclasses
import sys

import pytest
from absl import flags

from configs import base
from tests.helpers import shell
from udd_jax import command_line, main
from udd_jax.errors import UserError
from udd_jax.sampling.settings import Settings

CONFIG = "--config=configs/t2i.py"


@pytest.fixture
def typed():
    with shell.flags() as parse:
        yield parse


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((CONFIG, "--prompt=a"), "--prompt does nothing in --mode=train (the default): leave it"),
        ((CONFIG, "--prompt=a"), "leave it out, or add --mode=sample"),
        (("--mode=train", CONFIG, "--num=2"), "--num does nothing in --mode=train: leave it out"),
        (("--mode=evaluate", "--steps=3"), "--steps does nothing in --mode=evaluate"),
        (("--mode=sample", "--suite=full"), "--suite does nothing in --mode=sample"),
        (("--mode=plan", CONFIG, "--workdir=a"), "--workdir does nothing in --mode=plan"),
        (("--mode=sample", CONFIG, "--config.train.steps=3"), "where the run has its config"),
        (("--mode=sample", "--guidance_interval=1"), "--guidance_interval=1, expected LOW,HIGH"),
    ],
)
def test_a_flag_that_does_nothing_is_refused(typed, words, message):
    with pytest.raises(ValueError) as caught:
        typed(*words)
        command_line.typed_settings()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_main_job_refuses_a_setting_that_none_of_its_samplers_reads(typed):
    typed(CONFIG, "--config.sample.steps=4")
    with pytest.raises(ValueError, match=r"^--config.sample.steps = 4 changes nothing"):
        main._config()
    typed(CONFIG, "--config.sample.steps=4", "--config.sample.sampler=maskgit")
    assert main._config().sample.steps == 4
    typed(CONFIG, "--config.sample.steps=4", "--config.train.prefix_share=0.5")
    with pytest.raises(ValueError, match=r"^--config.sample.steps = 4 changes nothing"):
        main._config()
    typed(CONFIG, "--config.sample.top_r=.9")
    command_line.config().sample_rules.text = {"tempo": 1.0}
    with pytest.raises(ValueError, match=r"^sample_rules.text.tempo is not a setting"):
        main._config()
    typed(CONFIG, "--config.model.kind=autoregressive", "--config.sample.temperature=.9")
    assert main._config().sample.temperature == 0.9


@pytest.mark.parametrize("mode", command_line.FIELDS)
def test_a_field_that_a_mode_does_not_read_is_refused_with_those_that_it_reads(typed, mode):
    read = command_line.FIELDS[mode]
    for config in ((CONFIG,), ()):
        with pytest.raises(ValueError, match=r"^--config.train.steps does nothing in --mode=") as e:
            typed(f"--mode={mode}", *config, "--config.train.steps=3")
        assert ("only --config." in str(e.value)) == bool(read) and "\n" not in str(e.value)
        assert ("--config.data=," in str(e.value)) == ("data" in read)
    if "data" not in read:
        with pytest.raises(ValueError, match=r"^--config.data does nothing in --mode="):
            typed(f"--mode={mode}", "--config.data=folder:a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--compare=a", "--config.evaluate.samples=3"),
            "--config.evaluate.samples does nothing with --compare: leave it out",
        ),
        (("--compare=a", "--suite=full"), "--suite does nothing with --compare: leave it out"),
        (("--compare=a", "--workdir=b"), "--workdir does nothing with --compare: leave it out"),
        (("--suite=judges", CONFIG), "--config does nothing with --suite=judges: leave it out"),
        (("--suite=judges", "--weights=a"), "--weights does nothing with --suite=judges: leave it"),
        (("--weights=a",), "--weights does nothing without --suite=full: leave it out"),
        (("--suite=tuning", "--weights=a"), "--weights does nothing without --suite=full"),
        (
            ("--suite=judges", "--config.data=shapes"),
            "--config.data does nothing with --sui",
        ),
        (
            ("--mode=convert", "--to=safetensors", CONFIG),
            "--config does nothing without --from",
        ),
    ],
)
def test_what_a_part_of_a_mode_does_not_read_is_refused(typed, words, message):
    with pytest.raises(ValueError) as caught:
        typed("--mode=evaluate", *words)
    assert str(caught.value).startswith(message)


def test_fields_without_a_config_are_those_of_the_run_or_of_own_pictures(
    typed, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)  # as of an installed package: no folder configs here
    typed("--mode=data", "--config.data=folder:a b", "--config.data_options.caption_field=prompt")
    config = command_line.config()
    assert (config.name, config.data) == ("own", "folder:a b")
    assert config.data_options.caption_field == "prompt"
    fields = ("--config.data=folder:b", "--config.evaluate.samples=3")
    typed("--mode", "evaluate", "--workdir=a", *fields)
    assert command_line.config() is None
    assert command_line.typed_fields() == {"data": "folder:b", "evaluate.samples": 3}
    typed("--mode=sample", "--config.sample.top_r=.5")
    assert command_line.config() is None and command_line.typed_settings() == {"top_r": 0.5}
    typed("--mode=embed", "--workdir=a", "--out=b", "--config.data=folder:b")
    assert command_line.config() is None


@pytest.mark.parametrize("mode", ["train", "tokenize", "plan", "convert"])
def test_fields_where_no_config_is_implied_are_one_line_with_the_whole_command(typed, mode):
    with pytest.raises(flags.Error) as caught:
        typed(f"--mode={mode}", "--config.data=folder:a b")
    base = "t2i.py:cub" if mode == "convert" else "own.py"
    assert str(caught.value) == (
        "--config.data is a field of a config, and --config= is missing: type for example udd_jax "
        f"--config=configs/{base} --mode={mode} '--config.data=folder:a b'"
    )


def test_the_name_of_a_config_is_read_where_it_is_the_folder_of_the_run(typed):
    typed("--mode=evaluate", CONFIG, "--config.name=other")
    assert main._workdir() == "runs/other"
    with pytest.raises(UserError, match=r"--config\.name does nothing in --mode=evaluate"):
        typed("--mode=evaluate", CONFIG, "--config.name=other", "--workdir=here")


def test_every_mode_with_fields_of_its_own_has_a_config_that_is_implied():
    assert command_line.FIELDS.keys() | {"data"} == command_line.IMPLIED.keys()
    named = {field.partition(".")[0] for read in command_line.FIELDS.values() for field in read}
    assert named <= {*base.get_config(), "skip_limit", "incomplete"}


def test_a_typed_setting_stands_for_every_rule_but_for_what_was_typed_for_one(typed):
    words = ("--config.sample.guidance=3.0", "--config.sample.top_r=0.6")
    typed("--config=configs/t2i.py:emoji", *words, "--config.sample_rules.text.top_r=0.5")
    c = command_line.config()
    assert c.sample_rules["image|text"].guidance == 2.0
    lines = command_line.prefer_typed(c, command_line.typed_fields())
    assert lines == ["sample.guidance = 3.0 replaces sample_rules.image|text.guidance = 2.0"]
    assert "guidance" not in c.sample_rules["image|text"] and c.sample_rules.text.top_r == 0.5
    assert command_line.prefer_typed(c, command_line.typed_fields()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "page",
            "# A page\n\nof text",
            "--config= names no Python file: invalid syntax (page.py, line 3)",
        ),
        ("number", "x = 1", "--config= names a file without get_config, as t2i.py has"),
        ("bad", "def get_config():\n    raise ValueError('bad: a, b')", "bad: a, b"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(typed, tmp_path, name, content, message):
    (tmp_path / f"{name}.py").write_text(content)
    with pytest.raises(flags.Error) as caught:
        typed(f"--config={tmp_path}/{name}.py")
    assert str(caught.value) == message


def test_a_tilde_is_the_home_folder_in_every_path(typed, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    typed("--mode=sample", "--workdir=~/run", "--image=~/a=b.png", "--given=image=~/c.png",
          "--given=text=about ~/c", "--mask=m~.png", "--dual_encoder=~/d", "--out=~/x",
          "--paint=red circle=~/p.png:2", "--scorer=palette=~/s.png:64")  # fmt: skip
    found = command_line.FLAGS
    assert (found.workdir, found.mask) == ("/home/me/run", "m~.png")
    assert found.image == ["/home/me/a=b.png"]
    assert found.given == ["image=/home/me/c.png", "text=about ~/c"]
    assert (found.dual_encoder, found.out) == ("/home/me/d", "/home/me/x")
    assert found.paint == ["red circle=/home/me/p.png:2"]
    assert found.scorer == ["palette=/home/me/s.png:64"]
    typed(CONFIG, *(f"--config.{name}=~/x" for name in command_line.PATH_FIELDS))
    config = command_line.CONFIG.value
    assert (config.init_from, config.vq.file) == ("/home/me/x", "/home/me/x")
    assert config.data_options.images == "/home/me/x"


def test_a_fault_in_a_config_file_is_a_traceback_and_no_line_about_fields(typed, tmp_path):
    (tmp_path / "c.py").write_text("def get_config():\n    return {}['steps']")
    with pytest.raises(KeyError, match="steps"):
        typed(f"--config={tmp_path}/c.py")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config=configs/t2i.py:nope", "config t2i.py:nope does not exist, expected one of"),
        ("--config.train.steps=1.5", "flag --config.train.steps=1.5: invalid literal for int()"),
        ("--config.train.speed=3", "'speed'\" is not a field of the config: configs/base.py has"),
    ],
)
def test_a_word_that_does_not_fit_the_config_is_one_line(typed, word, message):
    with pytest.raises(flags.Error) as caught:
        typed(*((word,) if word.startswith("--config=") else (CONFIG, word)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_flags_of_a_mode_are_taken(typed):
    typed("--mode=sample", "--workdir=a", "--prompt=b", "--top_r=.5", "--out=c", "--seed=3")
    typed("--mode=evaluate", "--workdir=a", "--suite=full", "--weights=b")


def test_every_setting_of_the_sampler_can_be_typed_in_two_ways(typed):
    values = {
        "sampler": "maskgit", "steps": 7, "guidance": 2.5, "guidance_schedule": "interval",
        "guidance_interval": (0.1, 0.8), "temperature": 0.5, "top_r": 0.25, "top_k": 3,
        "confidence": "margin", "noise": 1.5, "purity": 2.0, "group": 2, "threshold": 0.5,
        "bound": 0.25, "eta": 0.75, "correct": 1,
    }  # fmt: skip
    fields = {field.name: field.default for field in dataclasses.fields(Settings)}
    assert list(values) == list(fields) == list(command_line.SETTINGS)
    assert all(values[name] != default for name, default in fields.items())
    shown = {n: "0.1,0.8" if n == "guidance_interval" else v for n, v in values.items()}
    typed("--mode=sample", *(f"--{name}={value}" for name, value in shown.items()))
    assert command_line.typed_settings() == values
    typed("--mode=sample", CONFIG, *(f"--config.sample.{n}={v}" for n, v in values.items()))
    assert command_line.typed_settings() == values
    assert Settings(**command_line.typed_settings()) == Settings(**values)


def test_the_config_has_all_settings_and_those_for_some_samplers_at_their_defaults():
    found = base.get_config().sample.to_dict()
    for name, default in dataclasses.asdict(Settings()).items():
        chosen = name in ("sampler", "steps", "temperature", "top_r")
        assert chosen or found.pop(name) == default, name


def test_without_arguments_it_prints_ten_lines_and_no_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["udd_jax"])
    main.run()
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 10 and err == ""
    assert max(map(len, out.splitlines())) <= 100


def test_the_commands_of_the_overview_are_commands(typed):
    words = ("--mode=", "--config", "--workdir=", "--prompt=", "--task=", "--num=", "--help")
    lines = [line for line in command_line.OVERVIEW.splitlines() if line.startswith("  udd_jax")]
    assert len(lines) == 6
    for line in lines:
        asked = [word for word in line.split() if word.startswith("--")]
        assert all(word.startswith(words) for word in asked)
        typed(*(word.replace("folder:DIR", "shapes") for word in asked))


def test_help_has_every_flag_under_its_mode_and_can_be_of_one_mode():
    lines = command_line.about(["--help"]).splitlines()
    heads = [line for line in lines if line.startswith("--mode=")]
    assert [head.partition(":")[0] for head in heads] == [f"--mode={m}" for m in command_line.MODES]
    for name in command_line.TAKES:
        assert name == "mode" or sum(line.split()[:1] == [f"--{name}"] for line in lines) == 1
    assert max(map(len, lines)) <= 100
    assert any(line.split() == ["--seed", "seed;", "0"] for line in lines)
    one = command_line.about(["--mode=sample", "--help"])
    assert "--eta" in one and "--workdir" in one and "--suite" not in one


def test_every_flag_of_ours_says_which_modes_take_it():
    ours = {f.name for f in flags.FLAGS.flags_by_module_dict()["udd_jax.command_line"]}
    assert ours - {"config"} == command_line.TAKES.keys() - {"config"}
