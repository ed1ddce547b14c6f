"""The edges of the tokenizers, the masks of pixels, and the order of batches."""

from tests.mutants.mutant import of

TEXT = "tests/tokenizers/test_text_tokenizer.py -k "
CLIP = "tests/tokenizers/test_clip_bpe.py"
PIXELS = "tests/data/test_pixels.py -k "
BATCHES = "tests/data/test_batches.py -k "
CODEBOOK = "tests/tokenizers/test_codebook_edges.py tests/tokenizers/test_codebook.py"

MUTANTS = (
    # ---- Texts ----------------------------------------------------------------------------------
    *of(
        "tokenizers",
        TEXT + "'normal_form or control or capitals or script'",
        ("text: control characters stay", 'not in ("Cc", "Cs"))', 'not in ("Cs",))'),
        ("text: surrogates stay", 'not in ("Cc", "Cs"))', 'not in ("Cc",))'),
        ("text: NFC", 'unicodedata.normalize("NFKC"', 'unicodedata.normalize("NFC"'),
        (
            "text: white space is kept",
            'return " ".join(text.split())\n\n\nclass',
            "return text\n\n\nclass",
        ),
        (
            "text: every vocabulary is lower-case",
            "return self._model.encode(text.lower() if self._lower else text)",
            "return self._model.encode(text.lower())",
        ),
        (
            "text: an alphabet without limit",
            "counts.most_common((vocab_size - _RESERVED) // 2)",
            "counts.most_common()",
        ),
    ),
    *of(
        "tokenizers",
        TEXT + "'padding or blanks or strict or cut or order or whole'",
        (
            "text: padding is decoded",
            "self._backing.text([i for i in row if i != self.pad_id])",
            "self._backing.text(list(row))",
        ),
        (
            "text: cut inside a character",
            "while ids and self._backing.text(ids)",
            "while False and self._backing.text(ids)",
        ),
        (
            "text: cut at a character a piece too soon",
            "if len(ids) <= length:\n            return ids",
            "if len(ids) < length:\n            return ids",
        ),
        (
            "blanks: given",
            "free += [True] * blank_tokens",
            "free += [False] * blank_tokens",
        ),
        (
            "blanks: the padding after the text is free",
            "free + [False] * padding, bool",
            "free + [True] * padding, bool",
        ),
        (
            "blanks: of one token",
            "ids += [self.pad_id] * blank_tokens + given",
            "ids += [self.pad_id] + given",
        ),
        ("blanks: two underscores", 'r"_{3,}"', 'r"_{2,}"'),
        ("blanks: exactly three underscores", 'r"_{3,}"', 'r"_{3}"'),
        ("prompt: one that just fits is refused", "if size > length:", "if size >= length:"),
        (
            "prompt: an empty one is encoded",
            "if size == 0:\n",
            "if size < 0:\n",
        ),
        (
            "text: training in the order of the captions",
            "lines = sorted(normalise(caption[:_LONGEST]) for caption in captions)",
            "lines = list(normalise(caption[:_LONGEST]) for caption in captions)",
        ),
    ),
    *of(
        "tokenizers",
        TEXT + "'any_ids or hugging_face or no_vocabulary'",
        (
            "ids: the size itself is in range",
            "(ids >= self.vocab_size)]",
            "(ids > self.vocab_size)]",
        ),
        ("ids: negative ones are in range", "(ids < 0) | (ids", "(ids < -9) | (ids"),
        (
            "hugging face: special tokens are added",
            "add_special_tokens=False",
            "add_special_tokens=True",
        ),
        (
            "hugging face: the file's own padding stays",
            "        model.no_padding()\n",
            "",
        ),
        (
            "hugging face: the file's own cut stays",
            "        model.no_truncation()\n",
            "",
        ),
        (
            "text: a damaged archive",
            "except (OSError, EOFError, zlib.error) as error",
            "except (OSError, zlib.error) as error",
        ),
    ),
    *of(
        "tokenizers",
        CLIP,
        (
            "clip: the last pair first",
            "best = min(itertools.pairwise",
            "best = max(itertools.pairwise",
        ),
        ("clip: the beginning is marked", "parts[-1] += self._END", "parts[0] += self._END"),
        (
            "clip: numbers in one piece",
            'last = end if kind in ("N", "space")',
            'last = end if kind in ("space",)',
        ),
        ("clip: no space after a word", '.replace(self._END, " ")', '.replace(self._END, "")'),
        ("clip: entities are read once", "html.unescape(html.unescape(ftfy", "html.unescape((ftfy"),
        ("clip: a merge too many", "else classes - others", "else classes - others + 1"),
        ("clip: capitals", '" ".join(text.split()).lower()', '" ".join(text.split())'),
        ("clip: contractions are not cut", "'s|'t|'re|'ve", "'s|'re|'ve"),
        (
            "clip: one pair of several is joined",
            "width = 2 if tuple(parts[i : i + 2]) == pair else 1",
            "width = 2 if tuple(parts[i : i + 2]) == pair and not i else 1",
        ),
    ),
    # ---- Codes ----------------------------------------------------------------------------------
    *of(
        "tokenizers",
        CODEBOOK,
        (
            "codebook: the farthest row",
            "codes = jnp.argmin(_square_distance",
            "codes = jnp.argmax(_square_distance",
        ),
        (
            "codebook: no smoothing",
            "smooth = (counts + epsilon) / (total + size * epsilon) * total",
            "smooth = counts",
        ),
        (
            "codebook: the average of counts forgets nothing",
            "counts = decay * state.counts + (1 - decay) * counts",
            "counts = state.counts + (1 - decay) * counts",
        ),
        (
            "codebook: dead below the mean",
            "dead = state.counts < threshold * mean",
            "dead = state.counts < mean",
        ),
        (
            "codebook: a moved row stays dead",
            "counts = jnp.where(found, mean, state.counts)",
            "counts = state.counts",
        ),
        (
            "codebook: every dead row takes the first vector",
            "rank = jnp.cumsum(dead) - 1",
            "rank = 0 * jnp.cumsum(dead)",
        ),
        (
            "kmeans: the distance from the last centre alone",
            "distance = jnp.minimum(distance, from_centre(vectors[index]))",
            "distance = from_centre(vectors[index])",
        ),
        (
            "kmeans: seeds by chance alone",
            "jnp.log(distance))",
            "jnp.zeros(distance.shape))",
        ),
        (
            "used codes: the rarest first",
            'np.argsort(-counts, kind="stable")',
            'np.argsort(counts, kind="stable")[::1]',
        ),
        (
            "used codes: unused ones never stay",
            "[: max(0, least - len(kept))]",
            "[:0]",
        ),
        (
            "used codes: in the order of their use",
            "kept = np.sort(kept)",
            "kept = np.array(kept)",
        ),
    ),
    *of(
        "tokenizers",
        "tests/tokenizers/test_vqgan.py -k 'quantiser or straight or gumbel or plain or space_to'",
        (
            "vq: no gradient through the codes",
            "return z + jax.lax.stop_gradient(rows - z), loss, codes",
            "return rows, loss, codes",
        ),
        (
            "vq: beta on the other term",
            "loss = self.beta * jnp.mean((z - jax.lax.stop_gradient(rows)) ** 2)",
            "loss = jnp.mean((z - jax.lax.stop_gradient(rows)) ** 2)",
        ),
        (
            "vq: rows are not pulled",
            "loss += jnp.mean((rows - jax.lax.stop_gradient(z)) ** 2)",
            "loss += 0 * jnp.mean((rows - jax.lax.stop_gradient(z)) ** 2)",
        ),
        (
            "vq: no temperature",
            "soft = nn.softmax((logits + noise) / temperature)",
            "soft = nn.softmax(logits + noise)",
        ),
        (
            "vq: the entropy for the divergence",
            "+ np.log(self.n_embed)",
            "+ 0 * np.log(self.n_embed)",
        ),
        (
            "vq: the plain pass keeps its loss",
            "jnp.where(plain, 0, loss)",
            "jnp.where(plain, loss, loss)",
        ),
    ),
    # ---- Pixels ---------------------------------------------------------------------------------
    *of(
        "data",
        PIXELS + "'mask or white or hidden or composite or centre'",
        (
            "pixels: a code is free if its whole cell is white",
            ".any(axis=(1, 3))",
            ".all(axis=(1, 3))",
        ),
        (
            "pixels: the colour over hidden pixels is theirs, too",
            "given = image[~mask]",
            "given = image.reshape(-1, 3)",
        ),
        (
            "pixels: given ones from the tokenizer",
            "return np.where(mask[..., None], generated, given)",
            "return np.where(mask[..., None], given, generated)",
        ),
        (
            "pixels: a fitted mask where most is white",
            "Image.Resampling.BOX, box=box)) > 0",
            "Image.Resampling.BOX, box=box)) > 0.5",
        ),
        (
            "pixels: not the centre",
            "top, left = (height - tall) // 2, (width - wide) // 2",
            "top, left = (height - tall) // 2, 0",
        ),
        ("pixels: grey is white", ".mean(axis=-1) > 127.5", ".mean(axis=-1) > 0"),
    ),
    # ---- Batches --------------------------------------------------------------------------------
    *of(
        "data",
        BATCHES + "'epoch or share or views or error or hang'",
        (
            "batches: one order for all epochs",
            "hashing.draw(_ORDER, seed, epoch))",
            "hashing.draw(_ORDER, seed, 0 * epoch))",
        ),
        (
            "batches: one view for all epochs",
            "hashing.draw(_VIEW, seed, epoch, items) %",
            "hashing.draw(_VIEW, seed, 0 * epoch, items) %",
        ),
        (
            "batches: the caption has the view's number",
            "captions = hashing.draw(_CAPTION, seed, epoch, items) %",
            "captions = hashing.draw(_VIEW, seed, epoch, items) %",
        ),
        (
            "batches: all processes read the first share",
            "mine = slice(process_index * share, (process_index + 1) * share)",
            "mine = slice(0, share)",
        ),
    ),
)
