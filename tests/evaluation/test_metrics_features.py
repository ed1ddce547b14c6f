"""Measures on features of pictures: recorded numbers, closed forms, slow twins, bad input."""

import json
import pathlib
import tracemalloc
import types

import numpy as np
import pytest

from udd_jax.evaluation import image_sets
from udd_jax.evaluation.metrics import arrays, cache, frechet, intervals, quality
from udd_jax.tokenizers import reconstruction

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "metrics"


@pytest.fixture(scope="module")
def recorded():
    expected = json.loads((FIXTURES / "feature_metrics.json").read_text())["expected"]
    with np.load(FIXTURES / "feature_metrics.npz") as data:
        return dict(data), {
            name: case["value"] for name, case in expected.items() if "value" in case
        }


def distance(x, y):
    return frechet.distance(frechet.moments([x]), frechet.moments([y]))


def gaussian(mean, variance, count=10**6):
    mean, variance = np.asarray(mean, np.float64), np.asarray(variance, np.float64)
    return frechet.Moments(count, mean, np.diag(variance) * (count - 1))


# --- Frechet distance ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("fid_xy", ("X", slice(None)), ("Y", slice(None))),
        ("fid_x_halves", ("X", slice(300)), ("X", slice(300, None))),
        ("fid_rank_deficient", ("X", slice(20)), ("Y", slice(20))),
    ],
)
def test_frechet_distance_is_the_recorded_one(recorded, name, x, y):
    data, expected = recorded
    ours = distance(data[x[0]][x[1]], data[y[0]][y[1]])
    np.testing.assert_allclose(ours, expected[name], rtol=1e-8)


def test_singular_covariances_are_exact(recorded):
    # 20 samples in 32 dimensions, worked out with 50 digits: the recording is 9.5e-9 off it.
    x, y = (recorded[0][name][:20] for name in "XY")
    np.testing.assert_allclose(distance(x, y), 15.286111930674127511, rtol=1e-13)


@pytest.mark.parametrize("size", [64, pytest.param(2048, marks=pytest.mark.slow)])
def test_gaussians_that_differ_in_mean_only(size):
    a, b = gaussian(np.zeros(size), np.ones(size)), gaussian(np.ones(size), np.ones(size))
    np.testing.assert_allclose(frechet.distance(a, b), size, rtol=1e-12)


def test_gaussians_with_diagonal_covariances():
    # sum of (mu - mu')^2 and of (sigma - sigma')^2: 1 + 0 + 4, 1 + 1 + 0
    a, b = gaussian([0, 1, 2], [1, 4, 9]), gaussian([1, 1, 0], [4, 1, 9])
    np.testing.assert_allclose(frechet.distance(a, b), 7, rtol=1e-12)


def test_ill_conditioned_covariances_keep_their_digits():
    # One rotation of both: d^2 = sum (sqrt l - sqrt l')^2, here over twelve orders of magnitude.
    values = 10.0 ** np.arange(0, -12, -1)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 12)))[0]
    a, b = (
        frechet.Moments(1001, np.zeros(12), (rotation * v) @ rotation.T * 1000)
        for v in (values, 4 * values)
    )
    np.testing.assert_allclose(frechet.distance(a, b), values.sum(), rtol=1e-9)


def test_a_set_is_at_no_distance_from_itself(recorded):
    assert distance(recorded[0]["X"], recorded[0]["X"]) < 1e-12


def test_moments_of_blocks_are_the_moments_of_the_whole():
    x = np.random.default_rng(0).standard_normal((1000, 5)) + 1e6
    whole = frechet.moments(x[i : i + 37] for i in range(0, 1000, 37))
    assert whole.count == 1000
    np.testing.assert_allclose(whole.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(whole.covariance, np.cov(x.T), rtol=1e-8, atol=1e-10)


def test_fid_of_blocks_of_a_file_is_that_of_the_array(recorded, tmp_path, monkeypatch):
    data, expected = recorded
    np.save(tmp_path / "x.npy", data["X"])
    monkeypatch.setattr(arrays, "ROWS", 7)
    ours = frechet.fid(np.load(tmp_path / "x.npy", mmap_mode="r"), data["Y"])
    np.testing.assert_allclose(ours.value, expected["fid_xy"], rtol=1e-12)
    assert ours.low < ours.value < ours.high and ours.count == 600 and ours.warning is None


def test_memory_for_fid_does_not_grow_with_the_samples(tmp_path):
    shape = (60_000, 32)
    samples = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape)
    for i in range(0, len(samples), 1000):
        samples[i : i + 1000] = np.random.default_rng(i).standard_normal((1000, 32))
    reference = gaussian(np.zeros(32), np.ones(32))
    frechet.fid(samples[:100], reference)  # whatever is imported late
    peaks = []
    for count in (20_000, 60_000):
        tracemalloc.start()
        assert frechet.fid(samples[:count], reference).value < 0.1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < samples.nbytes / 2


def test_fid_takes_stored_moments_for_the_reference(recorded):
    x, y = recorded[0]["X"], recorded[0]["Y"]
    assert frechet.fid(x, frechet.moments([y])) == frechet.fid(x, y)


def test_the_jackknife_of_fid_finds_its_spread():
    generator = np.random.default_rng(0)
    reference = gaussian(np.zeros(4), np.ones(4))
    sets = generator.standard_normal((60, 200, 4)) + 0.3
    estimates = [frechet.fid(x, reference) for x in sets]
    spread = np.std([e.value for e in estimates])
    assert 0.8 * spread < np.mean([e.standard_error for e in estimates]) < 1.25 * spread


def test_no_interval_reaches_where_no_distance_can_be():
    x = np.random.default_rng(0).standard_normal((20, 1))
    ours = frechet.fid(x, gaussian([0], [1]))
    assert ours.value < ours.standard_error  # so that it would reach below
    assert ours.low == 0 < ours.value < ours.high
    wide = intervals.spread(0.5, 1.0, 9, 3, "by hand", least=-1, most=1)
    assert (wide.low, wide.high, wide.standard_error) == (-1, 1, 1)


def test_fewer_samples_than_dimensions_is_a_warning(recorded):
    x, y = recorded[0]["X"], recorded[0]["Y"]
    warning = frechet.fid(x[:20], y).warning
    assert "20 generated samples for 32 dimensions" in warning and "reference" not in warning
    assert "500 reference" not in (frechet.fid(x, y).warning or "")


@pytest.mark.parametrize(
    "measure", [frechet.fid, quality.mmd, quality.kid, quality.precision_recall]
)
def test_broken_features_are_refused(recorded, measure):
    x, y = recorded[0]["X"].copy(), recorded[0]["Y"]
    x[[3, 5], 2] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"generated: 2 of 600 feature rows hold NaN") as caught:
        measure(x, y)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"reference: 2 of 600"):
        measure(y, x)
    with pytest.raises(ValueError, match=r"32.*31|31.*32"):
        measure(y, y[:, 1:])
    with pytest.raises(ValueError, match=r"generated: 1 samples, at least"):
        measure(y[:1], y)
    with pytest.raises(ValueError, match=r"shape \(32,\)"):
        measure(y[0], y)


# --- Kernel distance, Inception score --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("kid_full", ("X", slice(500)), ("Y", slice(500))),
        ("kid_xy", ("X", slice(None)), ("Y", slice(None))),
        ("kid_x_halves", ("X", slice(300)), ("X", slice(300, None))),
    ],
)
def test_kernel_distance_is_the_recorded_one(recorded, monkeypatch, name, x, y):
    data, expected = recorded
    monkeypatch.setattr(arrays, "ROWS", 130)
    ours = quality.mmd(data[x[0]][x[1]], data[y[0]][y[1]])
    np.testing.assert_allclose(ours, expected[name], rtol=1e-12)


def test_kid_of_subsets_agrees_with_the_whole(recorded):
    x, y = recorded[0]["X"], recorded[0]["Y"]
    ours = quality.kid(x, y, size=100)
    assert abs(ours.value - recorded[1]["kid_xy"]) < 3 * ours.standard_error
    assert ours.low < recorded[1]["kid_xy"] < ours.high
    assert quality.kid(x, y, size=100) == ours
    assert quality.kid(x, y, size=100, seed=1) != ours


def test_subsets_of_everything_have_no_interval(recorded):
    x, y = recorded[0]["X"][:40], recorded[0]["Y"][:40]
    ours = quality.kid(x, y)
    np.testing.assert_allclose(ours.value, quality.mmd(x, y), rtol=1e-12)
    assert ours.low is None and "all of the smaller set" in ours.warning


def test_inception_score_is_the_recorded_one(recorded):
    probabilities = recorded[0]["P"]
    np.testing.assert_allclose(
        quality.inception_scores(probabilities, 1), [recorded[1]["is_1split"]], rtol=1e-12
    )
    scores = quality.inception_scores(probabilities, 10)
    np.testing.assert_allclose(scores.mean(), 2.559335155232532, rtol=1e-12)
    np.testing.assert_allclose(scores.std(), 0.2341465003412217, rtol=1e-12)
    assert quality.inception_score(probabilities).value == scores.mean()


def test_inception_score_of_certain_and_of_equal_predictions():
    certain = np.eye(4)[np.arange(40) % 4]
    np.testing.assert_allclose(quality.inception_score(certain).value, 4)
    np.testing.assert_allclose(quality.inception_score(np.full((40, 4), 0.25)).value, 1)
    assert quality.inception_score(certain, 1).low is None


def test_logits_are_no_probabilities(recorded):
    with pytest.raises(ValueError, match="expected at least 1 split of class probabilities"):
        quality.inception_score(np.log(recorded[0]["P"]))
    with pytest.raises(ValueError, match="5 samples, at least 10"):
        quality.inception_score(recorded[0]["P"][:5])


# --- Precision and recall --------------------------------------------------------------------


def test_precision_and_recall_by_hand():
    # On a line, k = 1: balls of the reference reach 1 around 0, 1 and 4 around 5; so 2.5 is inside.
    reference = np.array([[0.0], [1.0], [5.0]])
    generated = np.array([[2.5], [2.0], [9.5], [9.8]])
    ours = quality.precision_recall(generated, reference, neighbours=1)
    # The balls of the generated: .5 around 2.5 and 2, .3 around 9.5 and 9.8: none holds 0, 1, 5.
    assert ours["precision"].value == 0.5
    assert ours["recall"].value == 0


def test_precision_and_recall_equal_their_slow_twin(monkeypatch):
    from scipy.spatial import distance as twin

    monkeypatch.setattr(arrays, "ROWS", 13)
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((50, 3)) + 7, generator.standard_normal((41, 3)) * 1.4 + 7
    ours = quality.precision_recall(x, y)

    def covered(queries, samples):
        radius = np.sort(twin.cdist(samples, samples), 1)[:, 3]  # 0 is the sample itself
        return (twin.cdist(queries, samples) <= radius[None]).any(1).mean()

    assert ours["precision"].value == covered(x, y)
    assert ours["recall"].value == covered(y, x)


def test_nearest_in_blocks_equals_a_full_sort(monkeypatch):
    monkeypatch.setattr(arrays, "ROWS", 6)
    generator = np.random.default_rng(1)
    x, y = generator.standard_normal((20, 4)), generator.standard_normal((33, 4))
    table = np.square(x[:, None] - y[None]).sum(2)
    index, square = arrays.nearest(x, y, 5)
    np.testing.assert_array_equal(index, np.argsort(table, 1)[:, :5])
    np.testing.assert_allclose(square, np.sort(table, 1)[:, :5], rtol=1e-10)
    itself = arrays.nearest(y, y, 1, same=True)[0][:, 0]
    assert (itself != np.arange(33)).all()


# --- PSNR and SSIM ---------------------------------------------------------------------------


def test_psnr_by_hand():
    a = np.zeros((3, 2, 2, 3), np.uint8)
    b = a.copy()
    b[1], b[2, 0, 0, 0] = 255, 12
    ours = reconstruction.psnr(b, a)
    np.testing.assert_allclose(ours, [100, 0, 10 * np.log10(255**2 / 12)])


def test_ssim_of_one_window_is_its_formula():
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 256, (2, 1, 11, 11, 1), np.uint8)
    place = np.arange(-5, 6)
    weights = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    a, b = x[0, ..., 0].astype(float), y[0, ..., 0].astype(float)
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
    variances = (weights * ((a - mean_a) ** 2 + (b - mean_b) ** 2)).sum()
    c1, c2 = 6.5025, 58.5225
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (variances + c2)
    np.testing.assert_allclose(reconstruction.ssim(x, y), [expected], rtol=1e-12)


def test_ssim_is_one_for_equals_and_falls_with_noise():
    generator = np.random.default_rng(0)
    x = generator.integers(64, 192, (2, 16, 20, 3)).astype(np.uint8)
    little, much = (x + generator.integers(0, n, x.shape).astype(np.uint8) for n in (10, 60))
    np.testing.assert_allclose(reconstruction.ssim(x, x), [1, 1])
    assert (reconstruction.ssim(x, little) < 1).all()
    assert (reconstruction.ssim(x, little) > reconstruction.ssim(x, much)).all()


def test_pictures_that_do_not_match_are_refused():
    x = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 3\) and \(1, 8, 8, 3\)"):
        reconstruction.psnr(x, x[:1])
    with pytest.raises(ValueError, match=r"8 x 8.*11"):
        reconstruction.ssim(x, x)


@pytest.mark.parametrize("shape, fits", [((11, 11), True), ((10, 24), False), ((24, 10), False)])
def test_ssim_is_measured_where_its_window_fits_and_else_says_why_not(shape, fits, tmp_path):
    x = np.full((4, *shape, 3), 90, np.uint8)
    pipe = types.SimpleNamespace(
        tokenizers={"image": types.SimpleNamespace(decode=lambda codes: x)}
    )
    nets = dict.fromkeys(("lpips", "inception"), intervals.Unmeasured("no files"))
    items = types.SimpleNamespace(codes=None, images=x)
    found = image_sets.reconstructed(pipe, items, tmp_path, nets)["SSIM"]
    if fits:
        assert found.value == 1
    else:
        assert found.unmeasured == "the pictures have a side below 11 pixels, the window of SSIM"


# --- The cache -------------------------------------------------------------------------------


def test_features_are_computed_once_and_named_by_content(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), np.uint8)
    calls = []

    def extract(batch):
        calls.append(len(batch))
        return batch.reshape(len(batch), -1)[:, :5].astype(np.float64)

    def of(images, size, network="a"):
        batches = lambda: (images[i : i + size] for i in range(0, len(images), size))  # noqa: E731
        return cache.features(tmp_path, batches, extract, network)

    first = of(images, 3)
    assert first.dtype == np.float32 and not first.flags.writeable and calls == [3, 3, 1]
    np.testing.assert_array_equal(first, images.reshape(7, -1)[:, :5])
    np.testing.assert_array_equal(of(images, 2), first)  # batches of another size, the same content
    assert len(calls) == 3
    of(images, 3, network="b")
    changed = images.copy()
    changed[6, 3, 3, 2] ^= 1
    of(changed, 3)
    assert len(calls) == 9 and len(list(tmp_path.iterdir())) == 3


def test_memory_for_features_does_not_grow_with_the_pictures(tmp_path):
    def batches(count):
        return lambda: (np.full((32, 32, 32, 3), i % 256, np.uint8) for i in range(count // 32))

    def extract(batch):
        return batch[:, :2, :32].reshape(len(batch), -1)

    cache.features(tmp_path, batches(64), extract, "a")  # whatever is imported late
    peaks = []
    for count in (3_200, 9_600):
        tracemalloc.start()
        assert cache.features(tmp_path, batches(count), extract, "a").shape == (count, 192)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 9_600 * 192 * 4 / 2  # of a table in memory


def test_broken_features_leave_nothing_in_the_cache(tmp_path):
    images = np.zeros((4, 2, 2, 3), np.uint8)
    images[2:] = 1
    with pytest.raises(ValueError, match="pictures 2 to 3 give NaN"):
        cache.features(
            tmp_path,
            lambda: (images[:2], images[2:]),
            lambda batch: np.full((2, 3), np.nan if batch.any() else 0),
            "a",
        )
    with pytest.raises(ValueError, match="no pictures"):
        cache.features(tmp_path, lambda: (), np.asarray, "a")
    assert list(tmp_path.iterdir()) == []


# --- Intervals -------------------------------------------------------------------------------


def test_bootstrap_interval_of_a_mean_is_the_normal_one():
    x = np.random.default_rng(0).standard_normal(400) * 3 + 10
    ours = intervals.bootstrap(x)
    error = x.std(ddof=1) / 20
    assert ours.value == x.mean() and ours.count == 400
    np.testing.assert_allclose(ours.standard_error, error, rtol=0.1)
    np.testing.assert_allclose(
        [ours.low, ours.high], x.mean() + error * 1.96 * np.array([-1, 1]), rtol=0.01
    )


def test_a_share_of_all_or_nothing_has_wilsons_interval():
    # Wilson 1927, 95 %: 20 of 20 are at least n / (n + z^2) = .8389, as scipy has it too
    from scipy import stats

    for hits in (0, 20):
        ours = intervals.bootstrap(np.arange(20) < hits)
        wilson = stats.binomtest(hits, 20).proportion_ci(method="wilson")
        np.testing.assert_allclose([ours.low, ours.high], wilson, atol=1e-6)
        assert ours.value == hits / 20 and ours.standard_error > 0
    scores = intervals.bootstrap(np.ones(20))  # of numbers nothing is known beyond them
    assert scores.low == scores.high == 1


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    estimates = [intervals.bootstrap(generator.random(60) < 0.3) for _ in range(50)]
    assert 43 <= sum(e.low <= 0.3 <= e.high for e in estimates) <= 50


def test_bootstrap_of_a_ratio_resamples_its_two_sums_together():
    rows = np.array([[1.0, 2.0], [10.0, 20.0], [3.0, 6.0]])
    ours = intervals.bootstrap(rows, lambda mean: mean[..., 0] / mean[..., 1])
    np.testing.assert_allclose([ours.value, ours.low, ours.high], 0.5)


def test_jackknife_of_a_mean_is_its_standard_error():
    x = np.arange(10.0)
    ours = intervals.jackknife(x.mean(), (x.sum() - x) / 9, 10, "by hand")
    np.testing.assert_allclose(ours.standard_error, x.std(ddof=1) / 10**0.5)
    np.testing.assert_allclose(ours.high - ours.value, 2.2621571628540993 * ours.standard_error)


def test_one_item_has_no_interval_and_none_is_an_error():
    ours = intervals.bootstrap([3.0])
    assert ours.value == 3 and ours.low is None and "1 item" in ours.warning
    with pytest.raises(ValueError, match="at least one item"):
        intervals.bootstrap([])
    with pytest.raises(ValueError, match="1 of 2 items have a score that is not finite"):
        intervals.bootstrap([1, np.nan])
