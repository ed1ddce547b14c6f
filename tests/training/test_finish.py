"""Claims about the end of an image tokenizer's training: which codes are joined, and what it may
cost. The network is a table: the code of a cell is the nearest grey, and its picture is that grey.
"""

import json
import types

import numpy as np
import pytest

from udd_jax.tokenizers import image_tokenizer
from udd_jax.training import finish

GREYS = np.arange(16, dtype=np.float32) * 16 + 8  # 16 codes, evenly spaced
LEVELS = {"levels": (((3, 3), 16),), "codebooks": ("quantize",)}
MODEL = types.SimpleNamespace(grid=(3, 3), embed_dim=1, n_embed=16, resolution=12, **LEVELS)


class Table(image_tokenizer.ImageTokenizer):
    """Encodes 4 x 4 cells by their mean grey."""

    def encode(self, images, key=None):
        means = images.reshape(len(images), 3, 4, 3, 4, 3).mean((2, 4, 5)).reshape(-1, 9)
        codes = np.abs(means[..., None] - GREYS[None, None]).argmin(-1)
        return codes if self.full_to_used is None else self.full_to_used[codes]

    def decode(self, codes):
        cells = GREYS[self.used_to_full[codes]].reshape(-1, 3, 3).repeat(4, 1).repeat(4, 2)
        return cells[..., None].repeat(3, -1).astype(np.uint8)


@pytest.fixture(autouse=True)
def _table(monkeypatch):
    monkeypatch.setattr(image_tokenizer, "ImageTokenizer", Table)
    monkeypatch.setattr(finish.vqgan, "rows", lambda params, name: GREYS[:, None])

    def vectors(model, params, images):
        means = np.asarray(images, np.float32).reshape(-1, 3, 4, 3, 4, 3).mean((2, 4, 5))
        return means[..., None]

    monkeypatch.setattr(finish, "_vectors", vectors)


def pictures(greys, noise=0.0, count=40, seed=0):
    """uint8[n, 12, 12, 3]: each cell one of the greys, with noise."""
    rng = np.random.default_rng(seed)
    cells = rng.choice(greys, (count, 3, 3)).astype(np.float64)
    cells += rng.normal(0, noise, cells.shape)
    return np.clip(cells.repeat(4, 1).repeat(4, 2)[..., None].repeat(3, -1), 0, 255).astype(
        np.uint8
    )


def used(images, merge, **options):
    return finish.used(MODEL, {}, images, merge, finish.jax.random.key(0), **options)


def test_codes_that_differ_only_by_noise_become_one():
    images = pictures([50, 200], noise=10)
    assert len(np.unique(Table(MODEL, {}).encode(images))) > 6
    assert used(images, 8.0, most_cost=np.inf).codes == 2


def test_joined_codes_look_like_the_most_used_of_them():
    images = pictures([50, 200], noise=10)
    counts = np.bincount(Table(MODEL, {}).encode(images).ravel(), minlength=16)
    tokenizer = used(images, 8.0, most_cost=np.inf)
    groups = [np.flatnonzero(tokenizer.full_to_used == k) for k in range(2)]
    assert tokenizer.used_to_full.tolist() == [group[counts[group].argmax()] for group in groups]
    assert all(len(group) > 1 and group[0] not in tokenizer.used_to_full for group in groups)


@pytest.mark.parametrize("most_cost", [0.3, 1.5])
def test_joining_costs_no_more_than_its_limit(most_cost, capsys):
    images = pictures(np.linspace(5, 250, 60), seed=3)
    whole = Table(MODEL, {})
    best = finish._pooled_psnr(whole.decode(whole.encode(images)), images)

    def cost(tokenizer):
        return best - finish._pooled_psnr(tokenizer.decode(tokenizer.encode(images)), images)

    free = used(images, 5.0, most_cost=np.inf)
    assert cost(free) > 1.5 and free.codes < 16
    held = used(images, 5.0, most_cost=most_cost)
    assert cost(held) <= most_cost and held.codes > free.codes
    assert f"more than {most_cost:g}" in capsys.readouterr().out


def test_at_least_two_codes_are_left_of_pictures_in_one_colour():
    tokenizer = used(pictures([40]), 5.0)
    assert tokenizer.codes == 2
    np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode(pictures([40])))[..., 0], 40)


def test_a_tokenizer_that_shows_one_colour_a_cell_is_refused_with_the_fields_that_help():
    flat = pictures([50, 90, 200], noise=3)
    detailed = flat.copy()
    detailed[:, ::2] = 255 - detailed[:, ::2]
    scores = finish.score(Table(MODEL, {}), detailed)
    assert scores["above_flat"] < 0.1
    with pytest.raises(ValueError, match=r"expected at least 3: .*--config.vq.above_flat=0"):
        finish.check_worth(scores, 3.0)
    finish.check_worth(scores, 0.0)
    finish.check_worth(scores | {"above_flat": 3.1}, 3.0)
    finish.check_worth(finish.score(Table(MODEL, {}), flat), 3.0)  # as good as it needs to be


@pytest.mark.parametrize("shape", [(8, 24), (11, 10)])
def test_pictures_without_room_for_the_window_of_ssim_have_all_other_scores(shape):
    class Grey:
        codes, grid = 2, (1, 1)
        encode = finest = staticmethod(lambda images: np.zeros((len(images), 1), int))
        decode = staticmethod(lambda codes: np.full((len(codes), *shape, 3), 90, np.uint8))

    images = np.random.default_rng(0).integers(0, 256, (5, *shape, 3)).astype(np.uint8)
    found = finish.score(Grey, images)
    whole = finish.score(Table(MODEL, {}), pictures([50, 90]))
    assert "ssim" in whole and set(found) == set(whole) - {"ssim"}
    assert np.isfinite(list(found.values())).all()


def test_a_picture_that_comes_back_bit_for_bit_has_a_number_that_a_file_can_hold():
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3)).astype(np.uint8)
    other = images.copy()
    other[1] ^= 1
    found = finish.worth(other, images, (1, 1))
    np.testing.assert_allclose(found["psnr"], (100 + 10 * np.log10(255**2)) / 2)
    json.dumps(finish.worth(images, images, (1, 1)), allow_nan=False)
