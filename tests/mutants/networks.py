"""The transformer: layers, blocks, stacks, experts."""

from tests.mutants.mutant import of

NETWORK = "tests/networks/test_layers.py tests/networks/test_transformer.py -k "
PUBLISHED = "tests/networks/test_published_network.py"
APART = "tests/networks/test_transformer_block_attention.py"
LEFT_OUT = "tests/networks/test_left_out.py -k "
STACKS = "tests/networks/test_stacks.py"

MUTANTS = (
    # ---- What is absent -------------------------------------------------------------------------
    *of(
        "networks",
        LEFT_OUT + "nobody",
        (
            "left out: what is absent is seen",
            "layers.hide(bias, self._absent(t, free)[:, None, None, self.vocab.modality_of])",
            "layers.hide(bias, (t < 0)[:, None, None, self.vocab.modality_of])",
        ),
        (
            "left out: mutual attention to nothing counts",
            "hidden.append(self._absent(t, free)[:, self.vocab.modality_of])",
            "hidden.append((t < 0)[:, self.vocab.modality_of])",
        ),
        ("left out: it is computed all the same", "kept = {name: {} for name in without}", "pass"),
    ),
    # ---- Attention ------------------------------------------------------------------------------
    *of(
        "networks",
        NETWORK + "every_implementation",
        (
            "attention: over the size, not its root",
            "flat(q) * (1 / math.sqrt(size))",
            "flat(q) * (1 / size)",
        ),
        (
            "attention: no bias",
            "scores = scores + bias.reshape(scores.shape)",
            "scores = scores + 0 * bias.reshape(scores.shape)",
        ),
        (
            "attention: weights of a key sum to 1",
            "weights = jax.nn.softmax(scores, axis=-1)",
            "weights = jax.nn.softmax(scores, axis=-2)",
        ),
        (
            "attention: heads and places exchanged",
            "return out.reshape(batch, heads, n, size).transpose(0, 2, 1, 3)",
            "return out.reshape(batch, n, heads, size)",
        ),
    ),
    *of(
        "networks",
        NETWORK + "'rotated or rotary or angles or rotates'",
        (
            "rotary: rows for columns",
            "place = np.unravel_index(place, m.grid)[axis]",
            "place = np.unravel_index(place, m.grid)[0]",
        ),
        (
            "rotary: the second half is not turned",
            "[a * cos - b * sin, a * sin + b * cos]",
            "[a * cos - b * sin, b]",
        ),
        (
            "rotary: other modalities turn, too",
            "place = np.zeros(m.length)",
            "place = np.arange(m.length)",
        ),
        ("rotary: frequencies to 1/10", "frequencies = 100.0 **", "frequencies = 10.0 **"),
        (
            "rotary: queries are not turned",
            "q = q if angles is None else rotate(q, angles)",
            "q = q if angles is None else q",
        ),
    ),
    *of(
        "networks",
        NETWORK + "query_key",
        (
            "attention: keys are not normalised",
            "k = self.key_norm(k) if self.qk_norm else k",
            "k = k if self.qk_norm else k",
        ),
        (
            "attention: queries are not normalised",
            "q = self.query_norm(q) if self.qk_norm else q",
            "q = q if self.qk_norm else q",
        ),
    ),
    # ---- Times ----------------------------------------------------------------------------------
    *of(
        "networks",
        NETWORK + "'shared_time or two_equal or sinusoids or own_time'",
        ("time: the earlier one is shared", "time = jnp.max(t, axis=1", "time = jnp.min(t, axis=1"),
        (
            "adaln: the scale of the first modality for all",
            "part * (1 + scale[:, c : c + 1])",
            "part * (1 + scale[:, :1])",
        ),
        (
            "adaln: the shift of the first modality for all",
            "+ shift[:, c : c + 1])",
            "+ shift[:, :1])",
        ),
        (
            "time: sinusoids of the share of T alone",
            "angles = t[..., None] / self.steps * 4000 *",
            "angles = t[..., None] / self.steps *",
        ),
        (
            "time: sines twice",
            "[jnp.sin(angles), jnp.cos(angles)]",
            "[jnp.sin(angles), jnp.sin(angles)]",
        ),
    ),
    # ---- The published network ------------------------------------------------------------------
    *of(
        "networks",
        PUBLISHED,
        ("adaln: the scale itself", "return h * (1 + scale) + shift", "return h * scale + shift"),
        (
            "norm: a larger epsilon",
            "epsilon=1e-5,\n        use_bias=affine",
            "epsilon=1e-3,\n        use_bias=affine",
        ),
        (
            "embedding: rows alone",
            "(row + column).reshape(",
            "(row + 0 * column).reshape(",
        ),
        (
            "embedding: no positions",
            "return h + (positions[None] if at is None else positions[at])",
            "return h + 0 * (positions[None] if at is None else positions[at])",
        ),
        (
            "block: the MLP without its residual",
            'h = h + layers.MLP(c.mlp_ratio, c.activation, c.dtype, name="mlp")(x)\n        return '
            'sharding.constrain(h, "data", None, None), to_keep',
            'h = layers.MLP(c.mlp_ratio, c.activation, c.dtype, name="mlp")(x)\n        return '
            'sharding.constrain(h, "data", None, None), to_keep',
        ),
        (
            "block: self-attention without its residual",
            "h = h + attend(x, context, biases(parts, every), angles)",
            "h = attend(x, context, biases(parts, every), angles)",
        ),
        (
            "block: mutual results are not normalised",
            '{name}_result", c.mutual_gain)(y)\n                if alone',
            '{name}_result", c.mutual_gain)(y) * 0 + y\n                if alone',
        ),
        (
            "block: mutual attention replaces h",
            "h = h + jnp.concatenate(results, axis=1)\n\n",
            "h = jnp.concatenate(results, axis=1)\n\n",
        ),
        (
            "block: mutual queries without the time",
            'queries = c.ada(time, f"{name}_norm", y, [m])',
            'queries = y + 0 * c.ada(time, f"{name}_norm", y, [m])',
        ),
        (
            "mlp: GELU by tanh",
            "nn.gelu(x, approximate=False)",
            "nn.gelu(x, approximate=True)",
        ),
        (
            "heads: without the last norm",
            'h = layers.layer_norm(True, self.dtype, "norm")(h)',
            'h = h + 0 * layers.layer_norm(True, self.dtype, "norm")(h)',
        ),
    ),
    # ---- Options --------------------------------------------------------------------------------
    *of(
        "networks",
        NETWORK + "'padding_of_a_given_text_is'",
        (
            "padding: seen",
            "layers.hide(bias, self._padded(xt, t, free)[:, None, None])",
            "layers.hide(bias, (0 * xt > 1)[:, None, None])",
        ),
        (
            "padding: hidden in an absent text",
            "~vocab.any_of(free) & (t < self.steps)",
            "~vocab.any_of(free) & (t <= self.steps)",
        ),
        (
            "padding: hidden in a text with free places",
            "self._texts()[None] & ~vocab.any_of(free)",
            "self._texts()[None] & vocab.any_of(~free)",
        ),
    ),
    *of(
        "networks",
        "tests/networks/test_references.py -k padding",
        (
            "padding: of a text by the state of another",
            "whole[:, vocab.modality_of]",
            "whole.any(axis=1, keepdims=True)",
        ),
    ),
    *of(
        "networks",
        "tests/networks/test_transformer_block_attention.py -k another_modality_that_is_given",
        (
            "blocks: none of the others looks at itself with kept keys",
            "if self.block_attention and keep is None and len(parts) > 1:",
            "if self.block_attention and keep is None and not kept:",
        ),
    ),
    *of(
        "networks",
        NETWORK + "'learned_vector or gains or plain_joint or modality_is_there'",
        (
            "given: the vector everywhere",
            "jnp.where(given[..., None], vector[None, None], 0)",
            "jnp.where(given[..., None] | True, vector[None, None], 0)",
        ),
        (
            "given: absent tokens, too",
            "return ~free & ~self._absent(t, free)[:, self.vocab.modality_of]",
            "return ~free",
        ),
        (
            "given: at time T nothing is",
            "return (t == self.steps) & ~self.vocab.any_of(free)",
            "return t == self.steps",
        ),
        (
            "block: gains start at 0",
            "nn.initializers.constant(1.0 if affine else gain)",
            "nn.initializers.constant(1.0 if affine else 0.0)",
        ),
    ),
    *of(
        "networks",
        "tests/networks/test_concentrated.py tests/networks/test_layers.py",
        (
            "concentrated: a masked word does not see itself",
            "others = ~np.eye(self.vocab.length, dtype=bool)[None]",
            "others = np.ones((1, self.vocab.length, self.vocab.length), bool)",
        ),
        (
            "concentrated: the image sees masked words",
            "others = ~np.eye(self.vocab.length, dtype=bool)[None]",
            "others = ~np.eye(self.vocab.length, dtype=bool)[None] & (self.vocab.modality_of "
            '== self.vocab.index("text"))[None, :, None]',
        ),
        (
            "concentrated: no word is seen",
            "[None] & (xt == self.vocab.mask_id)",
            "[None] & (xt >= 0)",
        ),
        (
            "concentrated: where all words are masked the image sees the mean of them",
            "hidden.append(self._masked_text(xt))",
            "hidden.append(0 * xt > 1)",
        ),
    ),
    *of(
        "networks",
        APART,
        (
            "block attention: who is alone is not seen",
            "given[:, at, None] &",
            "given[:, None, at] &",
        ),
        (
            "block attention: mutual results where nothing is seen",
            "y = jnp.where(alone[:, m, None, None], 0, y)",
            "y = jnp.where(alone[:, m, None, None], y, y)",
        ),
        (
            "block attention: no cached keys in mutual attention",
            "found += [known[m][name] for m in modalities if m in known]",
            'found += [known[m][name] for m in modalities if m in known and name == "self"]',
        ),
        (
            "block attention: alone if one place is given",
            "given = ~self.vocab.any_of(free)",
            "given = self.vocab.any_of(~free)",
        ),
    ),
    # ---- Stacks and experts ---------------------------------------------------------------------
    *of(
        "networks",
        STACKS + " -k 'decoder_takes or is_a_loop'",
        (
            "stack: long skips in the order of the outputs",
            "skips = tuple(reversed(range(layers // 2)))",
            "skips = tuple(range(layers // 2))",
        ),
        (
            "stack: the decoder takes its last outputs only",
            "(decoder_layers - 1 - j) * encoder // decoder_layers",
            "(decoder_layers - 1 - j)",
        ),
        (
            "stack: a skip replaces h",
            'h = h + project.apply({"params": weights}, both)',
            'h = project.apply({"params": weights}, both)',
        ),
        (
            "stack: h and the skip exchanged",
            "both = jnp.concatenate([h, earlier], axis=-1)",
            "both = jnp.concatenate([earlier, h], axis=-1)",
        ),
    ),
    *of(
        "networks",
        "tests/networks/test_experts.py -k 'answered or ascend or absent_picture'",
        (
            "experts: the time of what is absent decides",
            "clock = jnp.where(self.vocab.any_of(free), t, 0).max(axis=1)",
            "clock = t.max(axis=1)",
        ),
        (
            "experts: one row decides for all",
            "own = (mine == i)[:, None, None]",
            "own = (mine == i).any()[None, None, None]",
        ),
        (
            "experts: equal boundaries",
            "all(a < b for a, b in itertools.pairwise(ends))",
            "all(a <= b for a, b in itertools.pairwise(ends))",
        ),
    ),
    *of(
        "networks",
        "tests/networks/test_experts.py -k a_step_leaves",
        (
            "experts: the moments of the others fade",
            'names = [key.key for key in path if getattr(key, "key", None) in learns]',
            'names = [k.key for k in path[:2] if getattr(k, "key", None) in learns]',
        ),
    ),
    *of(
        "networks",
        "tests/networks/test_experts.py -k further",
        (
            "experts: the parent of the end of an interval",
            "bisect.bisect_left(of, (a + b) / 2)",
            "bisect.bisect_left(of, b)",
        ),
    ),
    *of(
        "steering",
        "tests/test_compose.py -k dual_encoder_of_another",
        (
            "match: the first modality is the image",
            "    return of_image(pipe.vocab, score)\n\n\ndef shows(",
            "    return score\n\n\ndef shows(",
        ),
    ),
    *of(
        "",
        "tests/test_pipeline_inputs.py",
        ("mask: clear is white", "as_rgb(image, ground=0)", "as_rgb(image)"),
        (
            "values: a grey picture is ids",
            "not in (length[name], whole) or grey:",
            "not in (length[name], whole):",
        ),
        (
            "guidance: by nothing",
            "return own & (there.sum(axis=1, keepdims=True) > there)",
            "return own",
        ),
        (
            "negative: not for what comes first",
            "if set(free) - {name}}",
            "if name in free and set(free) - {name}}",
        ),
        (
            "masks: of other samples",
            "part.shape not in ((1, width), (count // num, width))",
            "part.shape[1:] != (width,)",
        ),
        (
            "score: of any ids",
            "if rows.size and not 0 <= rows.min() <= rows.max() <= m.classes:",
            "if False:",
        ),
    ),
    *of(
        "steering",
        "tests/test_pipeline_steering.py -k how_many_others",
        (
            "edit: draws of the whole call",
            "[np.random.default_rng((seed, number)) for number in range(count * num)]",
            "[np.random.default_rng(seed)] * (count * num)",
        ),
    ),
)
