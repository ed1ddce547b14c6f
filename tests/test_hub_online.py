"""Models of a hub, with the real client and a small server on this machine (helpers/hub_server)."""

import jax
import numpy as np
import pytest

from tests.helpers import hub_server
from udd_jax import hub, pipeline
from udd_jax.runtime import trees

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
# The client's own way of calling httpx.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture
def online(tmp_path, monkeypatch):
    """(the hub, options for fetching, options for pushing)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    with hub_server.running() as (content, address):
        options = {"endpoint": address, "token": hub_server.TOKEN}
        yield content, options | {"cache_dir": tmp_path / "cache"}, options


def same(a, b):
    ours, theirs = trees.flatten(a.params), trees.flatten(b.params)
    return ours.keys() == theirs.keys() and all(
        np.asarray(ours[n]).tobytes() == np.asarray(theirs[n]).tobytes() for n in ours
    )


def test_every_bit_comes_back_from_a_hub(pipe, online):
    content, fetching, pushing = online
    address = pipe.push_to_hub("org/tiny", license="apache-2.0", **pushing)
    assert "/org/tiny" in address
    assert set(content.models["org/tiny"][-1][1]) == set(hub.FILES) - {hub.RESULT}
    again = pipeline.Pipeline.from_pretrained("org/tiny", **fetching)
    assert same(pipe, again) and again.config.to_dict() == pipe.config.to_dict()
    card = content.models["org/tiny"][-1][1]["README.md"].decode()
    assert 'from_pretrained("org/tiny")' in card and 'license: "apache-2.0"' in card


def test_a_revision_is_the_model_of_that_commit(pipe, online):
    content, fetching, pushing = online
    pipe.push_to_hub("org/tiny", **pushing)
    first = content.models["org/tiny"][-1][0]
    other = pipeline.dataclasses.replace(pipe, params=jax.tree.map(lambda a: a + 1, pipe.params))
    other.push_to_hub("org/tiny", message="Add one", **pushing)
    find = pipeline.Pipeline.from_pretrained
    assert same(find("org/tiny", revision=first, **fetching), pipe)
    assert same(find("org/tiny", **fetching), other)
    content.models.clear()  # from the cache, without the hub
    assert same(find("org/tiny", revision=first, local_files_only=True, **fetching), pipe)


def test_no_file_but_those_of_the_layout_is_fetched(pipe, online):
    content, fetching, pushing = online
    pipe.push_to_hub("org/tiny", **pushing)
    content.add("org/tiny", {"modeling.py": b"raise SystemExit", "weights.pkl": b"\x80\x04."})
    assert same(pipeline.Pipeline.from_pretrained("org/tiny", **fetching), pipe)
    assert not any("modeling.py" in line or ".pkl" in line for line in content.asked)


def test_a_hostile_file_under_a_name_of_the_layout_is_refused(pipe, online):
    content, fetching, pushing = online
    pipe.push_to_hub("org/tiny", **pushing)
    content.add("org/tiny", {"text.model": b"\x80\x04\x95cos\nsystem\n."})
    with pytest.raises(ValueError, match=r"text.model is a pickle or an archive"):
        pipeline.Pipeline.from_pretrained("org/tiny", **fetching)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("org/none", {}, "org/none' is no folder here, and as a model"),
        ("org/tiny", {"revision": "v9"}, "org/tiny' is no folder here, and as a model"),
        (
            "org/tiny",
            {"endpoint": "http://127.0.0.1:9"},
            "org/tiny' is no folder here, and as a model",
        ),
        ("org/tiny/more", {"revision": "v1"}, "is a folder or no name of a model: leave out"),
    ],
)
def test_what_the_hub_lacks_is_one_line(online, name, options, message):
    content, fetching, _ = online
    content.add("org/tiny", {"README.md": b""})
    with pytest.raises(ValueError) as caught:
        pipeline.Pipeline.from_pretrained(name, **fetching | options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_pushing_without_the_right_token_is_one_line(pipe, online):
    _, _, pushing = online
    with pytest.raises(ValueError, match=r"'org/tiny' on the hub: .*401") as caught:
        pipe.push_to_hub("org/tiny", **pushing | {"token": "hf_wrong"})
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="'tiny' is not the name of a model, expected org/name"):
        pipe.push_to_hub("tiny", **pushing)
