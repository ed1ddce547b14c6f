"""The loop around the rules: tasks, counts, and what must not change a sample."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.helpers import dense, finite
from udd_jax.diffusion import chunks, objective, random_words, schedules, transition, vocab
from udd_jax.sampling import reverse
from udd_jax.sampling.settings import Settings

LAYOUT, ITEMS = finite.LAYOUT, finite.ITEMS
LINEAR = transition.make_kernel(LAYOUT, schedules.linear(finite.STEPS))
ABSORBING = transition.make_kernel(LAYOUT, schedules.absorbing(finite.STEPS))
ORACLE = finite.oracle(LINEAR)


def blank(kernel, xt, t, free):
    """A network that knows nothing."""
    shapes = [(xt.shape[0], m.length, m.classes) for m in kernel.vocab.modalities]
    return tuple(jnp.zeros(shape) for shape in shapes)


def counted(kernel, seen):
    """`blank`, that notes how many positions are masked in each call."""

    def denoise_fn(xt, t, free):
        jax.debug.callback(lambda n: seen.append(int(n)), (xt == kernel.vocab.mask_id).sum())
        return blank(kernel, xt, t, free)

    return denoise_fn


# ---- Tasks --------------------------------------------------------------------------------------

ROWS = ("pair", "t2i", "i2t", "image", "text", "infill")


def test_six_tasks_are_one_compilation_and_mix_in_one_batch():
    traces = []

    @functools.partial(finite.quick, static_argnames="options")
    def run(keys, x, free, absent, options):
        traces.append(1)
        denoise_fn = finite.oracle(LINEAR)
        return reverse.sample(LINEAR, denoise_fn, keys, x, free, absent, options)

    options = Settings(steps=10, guidance=1.5, top_r=0.9)
    keys = jax.random.split(jax.random.key(0), 12)
    mixed = finite.batch_of(ROWS * 2)
    together = np.asarray(run(keys, *mixed, options))
    for i, name in enumerate(ROWS):
        _, free, absent = finite.batch_of([name] * 12)
        alone = np.asarray(run(keys, mixed[0], free, absent, options))
        np.testing.assert_array_equal(together[[i, i + 6]], alone[[i, i + 6]])
        kept = ~free & ~absent[:, LAYOUT.modality_of]
        np.testing.assert_array_equal(alone[kept], mixed[0][kept])  # bit for bit
        shown = np.asarray(alone)[free]
        assert (shown != LAYOUT.mask_id).all()
    assert len(traces) == 1


def test_a_position_that_is_masked_and_not_free_stays_masked():
    x = np.full((2, 16), LAYOUT.mask_id, np.int32)
    free = np.broadcast_to(np.arange(16) < 14, (2, 16))  # a known length: the last two are beyond
    present = jnp.zeros((2, 2), bool)
    for name in ("ancestral", "best_first"):
        options = Settings(sampler=name, steps=4, group=4)
        drawn = np.asarray(
            finite.quick(reverse.sample, static_argnums=(1, 6))(
                ABSORBING, LAZY, jax.random.key(0), x, free, present, options
            )
        )
        assert (drawn[:, 14:] == LAYOUT.mask_id).all() and (drawn[:, :14] != LAYOUT.mask_id).all()


LAZY = functools.partial(blank, ABSORBING)


# ---- Drawing in pieces --------------------------------------------------------------------------


@pytest.mark.parametrize("n", (33, pytest.param(40, marks=pytest.mark.slow)))
def test_tokens_drawn_in_pieces_are_those_drawn_at_once(n):
    log_p = jax.nn.log_softmax(3 * jax.random.normal(jax.random.key(0), (2, n, 5)))
    words = random_words.words(jax.random.key(1), (2, n))

    def function(words, log_p):
        return random_words.categorical(words, log_p), log_p.max(-1)

    cut = finite.quick(functools.partial(chunks.in_pieces, function))(words, log_p)
    for ours, whole in zip(cut, finite.quick(function)(words, log_p), strict=True):
        np.testing.assert_array_equal(ours, whole)


# ---- The loop -----------------------------------------------------------------------------------


def test_maskgit_leaves_as_many_masked_as_its_table_says():
    layout = vocab.image_text((16, 16), image_classes=2, text_classes=2, text_length=1)
    kernel, seen = transition.make_kernel(layout, schedules.cosine(50)), []
    free = np.broadcast_to(np.arange(257) < 256, (1, 257))
    x, present = np.zeros((1, 257), np.int32), np.zeros((1, 2), bool)
    options, network = Settings(sampler="maskgit", steps=24), counted(kernel, seen)
    run = finite.quick(reverse.sample, static_argnums=(1, 6))
    run(kernel, network, jax.random.key(0), x, free, present, options)
    jax.effects_barrier()
    shown = [1, 2, 2, 4, 5, 6, 7, 8, 9, 9, 11, 11, 13, 13, 13, 14, 15, 16, 15, 16, 17, 16, 17, 16]
    assert seen == [256, *(256 - np.cumsum(shown))[:-1]]
    # With 56 of them given the counts are of the 200 that were unknown at the start.
    seen.clear()
    run(kernel, network, jax.random.key(0), x, free & (np.arange(257) >= 56), present, options)
    jax.effects_barrier()
    expected = np.floor(200 * np.cos(np.pi / 2 * np.arange(24) / 24)).astype(int)
    assert seen == [200, *np.minimum(expected[1:], 200 - np.arange(1, 24))]
    # Of few, one at least is revealed a call, and one is left for the last.
    seen.clear()
    run(kernel, network, jax.random.key(0), x, free & (np.arange(257) >= 252), present, options)
    jax.effects_barrier()
    assert seen == [4, 3, 2, *[1] * 21]


def test_what_truncation_makes_certain_is_not_thereby_sure():
    # The network knows nothing, and one class is left: still they are revealed one by one.
    seen = []
    network = counted(ABSORBING, seen)
    x, free, absent = finite.batch_of(["pair"])
    options = Settings(sampler="entropy_bounded", bound=0.1, top_k=1)
    run = finite.quick(reverse.sample, static_argnums=(1, 6))
    run(ABSORBING, network, jax.random.key(0), x, free, absent, options)
    jax.effects_barrier()
    assert seen == list(range(LAYOUT.length, 0, -1))


def test_a_stride_reveals_its_share_where_the_published_one_leaves_most_to_the_last_call():
    layout = vocab.image_text((32, 32), image_classes=2, text_classes=2, text_length=2)
    table, seen = schedules.linear(500), []
    kernel = transition.make_kernel(layout, table)
    free, present = np.ones((4, layout.length), bool), np.zeros((4, 2), bool)
    run = finite.quick(reverse.sample, static_argnums=(1, 6))
    x, options = np.zeros(free.shape, np.int32), Settings(steps=50)
    run(kernel, counted(kernel, seen), jax.random.key(0), x, free, present, options)
    jax.effects_barrier()
    shares = -np.diff([*seen, 0]) / free.size
    assert len(shares) == 50
    assert (np.abs(shares - 0.02) <= 4 * np.sqrt(0.02 * 0.98 / free.size)).all()
    published = dense.published_stride(table, 500, 10)
    np.testing.assert_allclose(published.sum(), 1)
    assert published[-1] > 0.5


ONE_OF_EACH = (
    Settings(steps=5, top_r=0.9),
    pytest.param(Settings(sampler="maskgit", steps=4), marks=pytest.mark.slow),
    pytest.param(Settings(sampler="first_hitting", group=5), marks=pytest.mark.slow),
)


def few(seed=0, kernel=LINEAR, count=8):
    x, free, absent = finite.batch_of((ROWS * 2)[:count])
    return kernel, finite.oracle(kernel), jax.random.key(seed), x, free, absent


@pytest.mark.parametrize("options", ONE_OF_EACH, ids=("ancestral", "maskgit", "first_hitting"))
def test_the_same_seed_makes_the_same_on_one_device_and_on_eight(options):
    _, denoise_fn, key, *inputs = few()
    keys = jax.random.split(key, 8)

    @finite.quick
    def run(keys, x, free, absent):
        return reverse.sample(LINEAR, denoise_fn, keys, x, free, absent, options)

    mesh = Mesh(np.array(jax.devices()), ("data",))
    over = [jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (keys, *inputs)]
    np.testing.assert_array_equal(run(keys, *inputs), run(*over))


@pytest.mark.slow
@pytest.mark.parametrize("options", ONE_OF_EACH, ids=("ancestral", "maskgit", "first_hitting"))
def test_the_compiled_loop_is_a_python_loop(options, monkeypatch):
    def python_loop(more, body, state):
        step = finite.quick(body)
        while more(state):
            state = step(state)
        return state

    _, _, key, *inputs = few(count=3)
    compiled = finite.quick(lambda key, *a: reverse.run(LINEAR, ORACLE, key, *a, options))
    ours = compiled(key, *inputs)
    monkeypatch.setattr(reverse.lax, "while_loop", python_loop)
    plain = reverse.run(LINEAR, ORACLE, key, *inputs, options)
    np.testing.assert_array_equal(ours.tokens, plain.tokens)
    np.testing.assert_array_equal(ours.calls, plain.calls)


def test_float32_draws_what_float64_draws():
    options = Settings(steps=20, top_r=0.95, guidance=1.5)
    run = finite.quick(reverse.sample, static_argnums=(1, 6))
    narrow = run(*few(), options)
    with jax.enable_x64(True):
        wide = transition.make_kernel(LAYOUT, schedules.linear(finite.STEPS), jnp.float64)
        np.testing.assert_array_equal(narrow, run(*few(kernel=wide), options))


@pytest.mark.slow
def test_sampling_and_its_loss_are_clean_of_nans_and_of_keys_used_twice():
    with jax.debug_nans(True), jax.debug_key_reuse(True):
        for options in (
            Settings(steps=3, top_k=2),
            Settings(sampler="purity", steps=2),
        ):
            run = finite.quick(
                lambda key, *a, o=options: reverse.sample(LINEAR, ORACLE, key, *a, o)
            )
            run(*few()[2:])

        @finite.quick
        def gradient(logits, key, x0, t):
            key_noise, key_prior = jax.random.split(key)
            free = jnp.ones(x0.shape, bool)
            xt = transition.q_sample(LINEAR, key_noise, x0, transition.free_times(LAYOUT, t, free))
            prior = transition.prior_sample(LINEAR, key_prior, len(x0))

            def loss(logits):
                terms = objective.loss_terms(LINEAR, logits, x0, xt, t, free)
                return sum(term.sum() for term in terms)

            return jax.grad(loss)(logits), prior

        logits = LAZY(ITEMS[:6], None, None)
        logits = [30 * jax.random.normal(jax.random.key(1), y.shape) for y in logits]
        t = np.array([[1, 1], [2, 2], [50, 50], [99, 99], [100, 100], [1, 100]], np.int32)
        gradients, _ = gradient(logits, jax.random.key(0), ITEMS[:6], t)
    assert all(jnp.isfinite(g).all() for g in gradients)


# ---- Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field, value",
    [
        ("sampler", "ancestrall"),
        ("confidence", "luck"),
        ("guidance_schedule", "cosine"),
        ("guidance_interval", (0.7, 0.2)),
        ("guidance", -1.0),
        ("steps", -1),
        ("temperature", 0.0),
        ("top_r", 0.0),
        ("top_k", -2),
        ("noise", -1.0),
        ("purity", -1.0),
        ("group", 0),
        ("threshold", 1.5),
        ("bound", -0.1),
        ("eta", 2.0),
        ("correct", -1),
    ],
)
def test_a_setting_that_means_nothing_is_an_error_that_names_it(field, value):
    with pytest.raises(ValueError, match=rf"^sample\.{field} = .*, expected [^\n]+$"):
        Settings(**{field: value})


NUMBERS = (
    ("ancestral", "steps", (4, 10)),
    ("remdm_cap", "eta", (0.02, 0.3)),
    ("maskgit", "noise", (0.5, 3.0)),
    ("purity", "purity", (0.5, 3.0)),
    ("best_first", "group", (3, 5)),
    ("threshold", "threshold", (0.3, 0.9)),
    ("entropy_bounded", "bound", (0.1, 3.0)),
    ("ancestral", "guidance", (1.5, 3.0)),
    ("ancestral", "temperature", (0.5, 2.0)),
    ("ancestral", "top_r", (0.5, 0.8)),
    ("ancestral", "top_k", (1, 2)),
)


@pytest.mark.parametrize("sampler, field, values", NUMBERS)
@pytest.mark.slow
def test_settings_that_differ_in_a_number_share_a_compilation(sampler, field, values):
    x, free, absent = finite.batch_of(ROWS * 2)
    traces, drawn = [], []

    def run(options):
        traces.append(1)
        return reverse.run(LINEAR, ORACLE, jax.random.key(3), x, free, absent, options)

    shared = finite.quick(run)
    each = [Settings(**{"sampler": sampler, "steps": 6, field: value}) for value in values]
    for options in each:
        drawn.append(shared(options))
    assert len(traces) == 1
    for options, ours in zip(each, drawn, strict=True):
        alone = finite.quick(lambda options=options: run(options))()  # the numbers are constants
        np.testing.assert_array_equal(ours.tokens, alone.tokens)
        np.testing.assert_array_equal(ours.calls, alone.calls)
    assert (drawn[0].tokens != drawn[1].tokens).any() or (drawn[0].calls != drawn[1].calls).any()


def test_a_number_that_is_off_is_not_compiled():
    leaves = jax.tree.leaves(Settings(top_r=0.9))
    assert sorted(leaves) == sorted([0.9, 2.0, 1.0, 1, 0.9, 0.1, 0.1])
    assert jax.tree.structure(Settings()) != jax.tree.structure(Settings(temperature=2.0))
    assert jax.tree.map(lambda x: x, Settings(steps=3)) == Settings(steps=3)


UNIFORM = transition.make_kernel(LAYOUT, schedules.uniform(10))


@pytest.mark.parametrize(
    "options, kernel, message",
    [
        ({"steps": 101}, LINEAR, "steps = 101 is more than the T = 100"),
        ({"sampler": "maskgit"}, UNIFORM, "'maskgit' fills masks, .* expected 'ancestral'"),
        ({"sampler": "remdm_cap"}, UNIFORM, "'remdm_cap' masks tokens again"),
        ({"correct": 1}, ABSORBING, "correct = 1 .* expected 0"),
        ({"correct": 1, "sampler": "maskgit"}, LINEAR, "correct = 1 .* expected 0"),
    ],
)
def test_settings_that_do_not_fit_the_run_are_an_error(options, kernel, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options).check(kernel)


def test_as_many_calls_as_the_run_has_times_fit():
    Settings(steps=100).check(LINEAR)


def test_guidance_needs_a_network_that_was_trained_for_it():
    Settings(guidance=2.0).check(LINEAR)
    with pytest.raises(ValueError, match=r"guidance = 2\.0, .* expected 1 \(off\)"):
        Settings(guidance=2.0).check(LINEAR, guidable=False)


# ---- Memory -------------------------------------------------------------------------------------


def held(function, *inputs):
    """Bytes that a program holds at once beside its inputs, by the compiler's own count."""
    memory = jax.jit(function).lower(*inputs).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def test_a_reverse_step_holds_less_than_its_logits_and_a_half_more():
    layout = vocab.image_text((16, 16), image_classes=509, text_classes=1021, text_length=64)
    kernel = transition.make_kernel(layout, schedules.linear(20))
    batch, logits = 2, 4 * 2 * sum(m.length * m.classes for m in layout.modalities)
    weights = [jnp.ones((m.length, m.classes)) for m in layout.modalities]

    def network(weights):
        def denoise_fn(xt, t, free):
            at = jnp.cos(xt.astype(jnp.float32))[..., None]
            return [at[:, w] * table[None] for w, table in zip(layout.slices, weights, strict=True)]

        return denoise_fn

    x, free = jnp.zeros((batch, layout.length), jnp.int32), jnp.ones((batch, layout.length), bool)
    present = jnp.zeros((batch, 2), bool)

    def forward(weights, x):
        return network(weights)(x, None, free)

    def reverse_step(weights, x, options):
        key = jax.random.key(0)
        return reverse.sample(kernel, network(weights), key, x, free, present, options)

    alone = held(forward, weights, x)
    assert logits <= alone
    for options in (Settings(steps=1, top_r=0.86), Settings(sampler="maskgit", steps=2)):
        added = held(functools.partial(reverse_step, options=options), weights, x) - alone
        assert added <= 1.5 * logits, f"{added / logits:.2f} times the logits"
