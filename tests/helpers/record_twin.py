"""Records a second set of arrays, of other sizes, by the twin of the published code.

    python -m tests.helpers.record_twin          # writes tests/fixtures/unid3_twin

The twin (`published_twin.py`) equals the arrays recorded from the published code itself; the tests
show it. This set then shows what those sizes hide: K_img and K_txt differ enough here for the
published swapped beta to change tokens. It has the published names and layout, and covers the
schedule, the distributions, the loss and its gradients by the logits, the logits of the three
networks, and all chains. The twin's network has no backward pass and shows no hidden states, and
there is no twin of the VQGAN here: gradients of weights, hidden states, the loss through the
network, brute force, image tokenizer and sentences are in the published set only.

The float arrays among the inputs are computed in each precision, so that the float32 ones are not
always the float64 ones rounded. Noise and weights have few bits: the files stay small.
"""

import itertools
import json

import numpy as np

from tests.helpers import published_twin, recorded

SIZES = {
    "dim": 16,
    "heads": 2,
    "depth": 2,
    "spatial": 3,
    "text_len": 5,
    "K_img": 24,
    "K_txt": 13,
    "T": 30,
    "sample_T": 7,
    "skip_delta": 4,
    "fast_delta": 6,
    "aux_weight": 0.01,
    "truncation": {"joint": 0.84, "fast": 0.85, "t2i": 0.86, "i2t": 0.6, "inpaint": 0.7},
}
N, M = SIZES["spatial"] ** 2, SIZES["text_len"]
CONFIG = SIZES | {
    "L": N + M,
    "L_img": N,
    "L_txt": M,
    "num_classes": SIZES["K_img"] + SIZES["K_txt"] + 1,
    "mask_id": SIZES["K_img"] + SIZES["K_txt"],
}
K_IMG, K_TXT, T, MASK = (CONFIG[name] for name in ("K_img", "K_txt", "T", "mask_id"))
TWIN = published_twin.Twin((K_IMG, K_TXT), T)
SHORT = published_twin.Twin((K_IMG, K_TXT), CONFIG["sample_T"])
MARGIN = 2e-3  # what the likeliest draw is ahead of the next in a chain: float32 does not turn it
UNKNOWN = 999999


def log(p):
    """Published zeros are 1e-30, and published logs end at -70."""
    return np.maximum(np.log(np.maximum(p, 1e-30)), -70)


def uniform(rng, *shape):
    """Noise in (0, 1) of 8 bits."""
    return ((rng.integers(0, 256, shape) + 0.5) / 256).astype(np.float32)


def clean(rng, batch):
    """int[B, L] of both modalities."""
    image, text = rng.integers(0, K_IMG, (batch, N)), rng.integers(K_IMG, MASK, (batch, M))
    return np.concatenate([image, text], axis=1)


def noisy(rng, x0, t):
    """x0 with tokens masked in proportion to the time, and a third of the others replaced."""
    chance = rng.random(x0.shape)
    masked = (t[:, None] + 1) / T * 0.6 > rng.random(x0.shape)
    return np.where(masked, MASK, np.where(chance < 0.3, clean(rng, len(x0)), x0))


# The process


def schedule(steps):
    """The published tables of one length; the cumulative ones end with clean."""
    abar, gbar = published_twin.cumulative(steps)
    at, ct = abar[1:] / abar[:-1], 1 - (1 - gbar[1:]) / (1 - gbar[:-1])
    att, ctt = np.append(abar[1:], 1.0), np.append(gbar[1:], 0.0)
    tables = {"at": at, "ct": ct, "att": att, "ctt": ctt}
    for m, classes in (("img", K_IMG), ("txt", K_TXT)):
        tables |= {f"bt_{m}": (1 - at - ct) / classes, f"btt_{m}": (1 - att - ctt) / classes}
    logs = {"at": at, "ct": ct, "1_min_ct": 1 - ct}
    logs |= {"cumprod_at": att, "cumprod_ct": ctt, "1_min_cumprod_ct": 1 - ctt}
    for m in ("img", "txt"):
        logs |= {f"bt_{m}": tables[f"bt_{m}"], f"cumprod_bt_{m}": tables[f"btt_{m}"]}
    with np.errstate(divide="ignore"):  # at clean, some are -inf, and are so in the published code
        tables |= {f"log_{name}": np.log(table) for name, table in logs.items()}
    return {f"T{steps}_{name}": table for name, table in tables.items()}


def inputs(rng, dtype):
    """Times with the first two, the last and a repeated one; tokens and logits."""
    t = np.array([0, 1, 15, 15, T - 1])
    x0 = clean(rng, len(t))
    logits = {
        f"logits_{m}": rng.standard_normal((len(t), n, k)).astype(dtype) * dtype(1.3)
        for m, n, k in (("img", N, K_IMG), ("txt", M, K_TXT))
    }
    return {"x0": x0, "xt": noisy(rng, x0, t), "t": t, **logits}


def diffusion(rng, dtype):
    a = inputs(rng, dtype)
    x0, t = a["x0"], a["t"]
    a |= {"x_prev": noisy(rng, x0, t), "mat_t": np.array([0, 1, 15, T - 1])}
    p0 = TWIN.p_x0([a["logits_img"], a["logits_txt"]])
    u = uniform(rng, len(t), TWIN.classes, N + M)
    p = TWIN.distributions(a, CONFIG["skip_delta"])
    for rate in (0.6, 0.85):
        p[f"p_x0_top{rate}"] = published_twin.with_mask(published_twin.truncate(p0, rate))
    logs = {f"log_{name}": log(value) for name, value in p.items()}
    drawn = recorded.gumbel_argmax(logs["log_q_xt_given_x0"], u)
    return a | logs | {"u_q_sample": u, "x_q_sample": drawn}


def loss(rng, dtype):
    a = inputs(rng, dtype)
    x0, t = a["x0"], a["t"]
    pt = a["pt"] = np.full(len(t), 1, dtype) / dtype(T)
    history = a["imp_Lt_history"] = rng.random(T).astype(dtype) * dtype(40)
    root = np.sqrt(history.astype(float) + 1e-10) + 1e-4
    root[0] = root[1]
    a["imp_pt_all"] = root / root.sum()
    image = np.arange(N + M) < N
    nowhere = np.zeros(N + M, bool)
    modes = {  # what is given, and whether it is there
        "joint": (nowhere, True),
        "txt": (~image, False),
        "img": (image, False),
        "txt_full": (~image, True),
        "img_full": (image, True),
    }
    for mode, (given, there) in modes.items():
        xt = np.where(given, x0, a["xt"])
        where = np.ones_like(given) if there else ~given
        logits = [a["logits_img"], a["logits_txt"]]
        if not there:
            logits[int(given[0] == 0)] = None  # the text is given where the image is not

        def terms(logits, xt=xt, where=where, given=given, there=there):
            options = {"leak": True, "swapped": not there}
            kl, decode, aux = TWIN.terms(logits, x0[:, where], xt[:, where], t, **options)
            free = ~given[where]
            return kl * free, decode * free, aux

        def total(logits, terms=terms):
            return published_twin.combine(*terms(logits), t, pt, CONFIG["aux_weight"])

        kl, decode, aux = terms(logits)
        kl_loss = np.where(t == 0, decode.sum(1), kl.sum(1))
        memory = np.zeros(T)
        memory[t] = 0.1 * kl_loss**2
        found = {"kl_loss": kl_loss, "eval": kl_loss / pt, "Lt_history": memory}
        for name, value in (("kl", kl), ("nll", decode), ("aux", aux)):
            found |= {f"{name}_pos": value, name: value.sum(1)}
        found["total"] = total(logits).sum(1)
        grads = published_twin.by_logits(total, logits)
        for m, grad in zip(("img", "txt"), grads, strict=True):
            if grad is not None:
                found[f"dtotal_dlogits_{m}"] = grad
        a |= {f"{mode}_{name}": value for name, value in found.items()}
    p0 = TWIN.p_x0([a["logits_img"], a["logits_txt"]])
    return a | {"joint_log_model_prob": log(TWIN.posterior(p0, a["xt"], t, leak=True))}


# The network and its chains


def weights(rng):
    """Every parameter by its published name, in multiples of 1/64."""
    d = CONFIG["dim"]

    def draw(scale, *shape):
        return (np.rint(rng.standard_normal(shape) * scale * 64) / 64).astype(np.float32)

    def linear(name, out, inner=d):
        return {f"{name}.weight": draw(0.25, out, inner), f"{name}.bias": draw(0.1, out)}

    def norm(name):
        return {f"{name}.weight": 1 + draw(0.2, d), f"{name}.bias": draw(0.1, d)}

    found = {}
    for i in range(CONFIG["depth"]):
        block = {}
        for name in ("ln1", "ln1_1", "ln1_2"):
            block |= {f"{name}.emb.weight": draw(0.6, T, d), **linear(f"{name}.linear", 2 * d)}
        for name in ("attn1", "image_attn", "text_attn"):
            for part in ("key", "query", "value", "proj"):
                block |= linear(f"{name}.{part}", d)
        block |= norm("ln2") | linear("mlp.0", 4 * d) | linear("mlp.2", d, 4 * d)
        found |= {f"blocks.{i}.{name}": value for name, value in block.items()}
    found |= norm("norm") | linear("to_logits_img", K_IMG) | linear("to_logits_txt", K_TXT)
    rows = {"embedding": MASK + 1, "height_emb": CONFIG["spatial"], "width_emb": CONFIG["spatial"]}
    for name, count in (rows | {"length_emb": M}).items():
        found[f"embedding.{name}.weight"] = draw(0.6, count, d)
    found = {f"transformer.{name}": value for name, value in found.items()}
    return found | {"rezero.alpha": np.ones(1, np.float32)}


def transformer(rng, params):
    t = np.array([0, 2, 11, T - 2, T - 1])
    x = noisy(rng, clean(rng, len(t)), t)
    image, text = published_twin.network(params, CONFIG, x, t)
    image_alone, _ = published_twin.network(params, CONFIG, x, t, given="txt")
    _, text_alone = published_twin.network(params, CONFIG, x, t, given="img")
    return {
        "x": x,
        "t": t,
        "logits_img": image,
        "logits_txt": text,
        "logits_img_cond_txt": image_alone,
        "logits_txt_cond_img": text_alone,
    }


class Narrow(Exception):
    """A draw that rounding could turn, or a set of chains that do not show the swapped beta."""


def draw(p, u):
    """The published draw; Narrow where two classes are almost equally likely."""
    scores = log(p) - np.log(-np.log(u.astype(float) + 1e-30) + 1e-30)
    first, second = np.sort(scores, axis=1)[:, :-3:-1].swapaxes(0, 1)
    if (first - second).min() < MARGIN:
        raise Narrow
    return scores.argmax(axis=1)


def step(params, twin, x, i, at, u, rate, *, given=None, swapped=False):
    """x drawn anew from the network's distribution at time i and the posterior of time `at`."""
    logits = published_twin.network(params, CONFIG, x, np.full(len(x), i), given)
    p0, part = twin.p_x0(logits), slice(0, N) if given == "txt" else slice(None)
    p0 = published_twin.truncate(p0, rate) if rate < 1 else p0
    time = np.full(len(x), at)
    drawn = x.copy()
    drawn[:, part] = draw(twin.posterior(p0, x[:, part], time, leak=True, swapped=swapped), u)
    return drawn


def chain(params, rng, name, x, *, known=None, given=None, swapped=False, strided=0):
    """(noise, drawn sequences, those with the known set back), in the order drawn."""
    twin, start, states, kept, noise = TWIN if strided else SHORT, x, [], [], []
    for i in range(0, twin.steps, strided or 1)[::-1]:
        u = uniform(rng, len(x), TWIN.classes, N if given == "txt" else N + M)
        at = i - strided if i > strided else i
        rate = CONFIG["truncation"][name]
        drawn = step(params, twin, x, i, at, u, rate, given=given, swapped=swapped)
        x = drawn if known is None else np.where(known, start, drawn)
        for series, value in ((noise, u), (states, drawn), (kept, x)):
            series.append(value)
    return np.stack(noise), np.stack(states), np.stack(kept)


def sampling(seed, params, network):
    """The arrays; Narrow if this seed will not do."""
    rng, image = np.random.default_rng(seed), np.arange(N + M) < N
    masked, x0 = np.full((2, N + M), MASK), clean(np.random.default_rng(seed + 1), 2)
    a = {}
    u, states, kept = chain(params, rng, "joint", masked)
    a |= {"u_joint_steps": u, "joint_states": states, "joint_out": kept[::-1]}

    delta = CONFIG["fast_delta"]
    u, states, _ = chain(params, rng, "fast", masked, strided=delta)
    out = np.zeros((T, 2, N + M), int)
    out[::delta] = states[::-1]
    a |= {"u_fast_steps": u, "fast_states": states, "fast_out": out}

    start, after = np.where(image, MASK, x0), rng.bit_generator.state
    options = {"given": "txt", "swapped": True}
    u, states, _ = chain(params, rng, "t2i", start, **options)
    states = states[..., :N]
    a |= {"t2i_text": x0[:, N:] - K_IMG, "u_t2i_steps": u}
    a |= {"t2i_states": states, "t2i_out": states[::-1]}
    again = np.random.default_rng()
    again.bit_generator.state = after
    mended = chain(params, again, "t2i", start, given="txt")[1]
    if (mended[..., :N] == states).all():
        raise Narrow  # the swap does not show

    u, states, kept = chain(params, rng, "i2t", np.where(image, x0, MASK), known=image)
    a |= {"i2t_image": x0[:, :N], "u_i2t_steps": u, "i2t_states": states, "i2t_out": kept[::-1]}

    known = rng.random((1, N + M)) < 0.5
    tokens = np.where(known, x0[:1], MASK)
    u, states, kept = chain(params, rng, "inpaint", np.repeat(tokens, 2, axis=0), known=known)
    shown = np.where(known, x0[:1] - np.where(image, 0, K_IMG), UNKNOWN)
    a |= {"u_inpaint_steps": u, "inpaint_states": states, "inpaint_out": kept[-1]}
    a |= {"inp_img_tokens": shown[:, :N], "inp_txt_tokens": shown[:, N:]}
    a |= {"inp_mask_img": known[:, :N].astype(int), "inp_mask_txt": known[:, N:].astype(int)}

    u = a["u_single"] = uniform(rng, len(network["t"]), TWIN.classes, N + M)
    rows = [slice(b, b + 1) for b in range(len(u))]
    a["single_out"] = np.concatenate(
        [
            step(params, TWIN, network["x"][r], t, t, u[r], 1)
            for r, t in zip(rows, network["t"], strict=True)
        ]
    )
    return a


def main():
    params = weights(np.random.default_rng(1))
    network = transformer(np.random.default_rng(2), params)
    for seed in itertools.count(3):
        try:
            chains = sampling(seed, params, network)
        except Narrow:
            continue
        break
    folder = recorded.TWIN.folder
    folder.mkdir(exist_ok=True)
    text = json.dumps(CONFIG | {"sample_seed": seed}, indent=1)
    (folder / "config.json").write_text(text + "\n")
    tables = schedule(T) | schedule(CONFIG["sample_T"])
    for precision, dtype in (("f32", np.float32), ("f64", np.float64)):
        files = {
            "schedule": tables,
            "diffusion": diffusion(np.random.default_rng(seed), dtype),
            "loss": loss(np.random.default_rng(seed), dtype),
            "transformer": network,
            "sampling": chains,
        }
        for name, arrays in files.items():
            if name != "schedule" and precision == "f32":
                arrays = {
                    k: a.astype(dtype) if a.dtype == np.float64 else a for k, a in arrays.items()
                }
            if name == "transformer" and precision == "f32":
                arrays = arrays | {f"param/{k}": a for k, a in params.items()}
            np.savez_compressed(folder / f"{name}_{precision}.npz", **arrays)


if __name__ == "__main__":
    main()
