"""The ledger of the recording: every array of every file is compared, used as input, or excluded.

A row is a pattern of names and what becomes of them; where it says "compared" the test file that
does it follows.
"""

import ast
import re

import numpy as np
import pytest

from tests.helpers import recorded

COMPARED, INPUT = "compared", "input"
NETWORK = "networks/test_published_network.py"
DIFFUSION = "diffusion/test_published_diffusion.py"
CHAINS = "sampling/test_published_chains.py"
VQ, TEXT = "tokenizers/test_published_vq.py", "tokenizers/test_clip_bpe.py"

DEAD = "a head of the embedding that nothing calls: in the files, in no computation"
ALIAS = (
    "compared where a time is alone in the batch (with repeated times the last one wins, in no "
    "defined order); skipped where the recording holds the buffer as a later call left it"
)
PRIOR = "compares with a uniform over all V classes, wrong for a masking process, and is unused"
CUB = "needs a vocabulary file that is not here"

LEDGER = {
    "schedule_f32 schedule_f64": [
        (r"T\d+_(att|ctt|btt_img|btt_txt)", COMPARED, DIFFUSION),
        (r"T\d+_(at|ct|bt_img|bt_txt)", COMPARED, DIFFUSION),
        (r"T\d+_log_.*", COMPARED, DIFFUSION),
    ],
    "diffusion_f32 diffusion_f64": [
        (r"x0|xt|x_prev|t|mat_t|logits_img|logits_txt|u_q_sample", INPUT, DIFFUSION),
        (r"log_onehot_x0|x_q_sample", COMPARED, DIFFUSION),
        (r"log_(q|p)_.*|log_Q_.*", COMPARED, DIFFUSION),
    ],
    "paper_exact_f64": [
        (r"x0|xt|t", COMPARED, DIFFUSION),
        (r"valid", INPUT, DIFFUSION),
        (r"q_xt_given_x0|q_posterior|p_xtm1", COMPARED, DIFFUSION),
    ],
    "loss_f32 loss_f64": [
        (r"x0|xt|t|pt|logits_img|logits_txt|imp_Lt_history", INPUT, DIFFUSION),
        (r"(joint|txt|img|txt_full|img_full)_(kl|nll|aux)(_pos)?", COMPARED, DIFFUSION),
        (r"(joint|txt|img|txt_full|img_full)_(kl_loss|total|eval)", COMPARED, DIFFUSION),
        (r"(joint|txt|img|txt_full|img_full)_dtotal_dlogits_(img|txt)", COMPARED, DIFFUSION),
        (r"joint_log_model_prob|imp_pt_all", COMPARED, DIFFUSION),
        (r"(joint|txt|img|txt_full|img_full)_Lt_history", f"excluded in part: {ALIAS}", DIFFUSION),
        (r"kl_prior", f"excluded: {PRIOR}", None),
    ],
    "transformer_f32 transformer_f64": [
        (r"param/transformer\.embedding\.to_logits\..*", f"excluded: {DEAD}", None),
        (r"param/.*", INPUT, NETWORK),
        (r"x|t|w_img|w_txt|e2e_x0|u_e2e", INPUT, NETWORK),
        (r"h/.*|grad/.*", COMPARED, NETWORK),
        (r"logits_(img|txt)|logits_img_cond_txt|logits_txt_cond_img", COMPARED, NETWORK),
        (r"sinusoidal", COMPARED, NETWORK),
        (r"e2e_total|e2e_gradnorm", COMPARED, CHAINS),
    ],
    "sampling_f32 sampling_f64": [
        (r"t2i_text|i2t_image|inp_.*", INPUT, CHAINS),
        (r"u_.*_steps|u_single|u_.*_init\d", INPUT, CHAINS),
        (r".*_states|.*_out", COMPARED, CHAINS),
    ],
    "vqgan_f32 vqgan_f64": [
        (r"param/.*", INPUT, VQ),
        (r"image|gumbel|full_to_quantize|dec_idx|vq2_codebook|vq2_z", INPUT, VQ),
        (r"enc|logits|full_idx_.*|quantize_to_full|idx_official", COMPARED, VQ),
        (r"dec_image|rec_image|vq2_zq|vq2_loss|vq2_idx", COMPARED, VQ),
    ],
    "tokenizer": [
        (r"clip\d+_(flat|offsets|padded128)", COMPARED, TEXT),
        (r"cub_.*", f"excluded: {CUB}", None),
    ],
}
ROWS = {file: rows for files, rows in LEDGER.items() for file in files.split()}


# What the twin cannot record: rows, and whole files.
NOT_BY_TWIN = {
    r"param/transformer\.embedding\.to_logits\..*",
    r"kl_prior",
    r"h/.*|grad/.*",
    r"sinusoidal",
    r"e2e_total|e2e_gradnorm",
}
PUBLISHED_ONLY = {"paper_exact_f64", "vqgan_f32", "vqgan_f64", "tokenizer"}
FILES = [(r, f) for r in recorded.SETS.values() for f in ROWS]
FILES = [(r, f) for r, f in FILES if r is recorded.PUBLISHED or f not in PUBLISHED_ONLY]


@pytest.mark.parametrize(
    ("recording", "file"), FILES, ids=[f"{r.folder.name}-{f}" for r, f in FILES]
)
def test_every_array_is_in_exactly_one_row_and_every_row_has_one(recording, file):
    names = sorted(recording.arrays(file))
    places = {name: [p for p, *_ in ROWS[file] if re.fullmatch(p, name)] for name in names}
    for name, found in places.items():
        first = found[:1]  # the parameters that are dead come before the others
        assert first, f"{file}: {name} is in no row"
        assert len(found) == 1 or "to_logits" in name, f"{file}: {name} is in {found}"
    empty = {pattern for pattern, *_ in ROWS[file]} - {found[0] for found in places.values()}
    if not any(name.startswith("param/") for name in names):
        empty = {pattern for pattern in empty if "param" not in pattern}
    allowed = NOT_BY_TWIN if recording is recorded.TWIN else set()
    assert empty <= allowed, f"{file}: no array in {sorted(empty - allowed)}"


def test_every_file_of_the_recordings_is_in_the_ledger():
    for recording, without in (
        (recorded.PUBLISHED, {"tokenizer"}),
        (recorded.TWIN, PUBLISHED_ONLY),
    ):
        files = {path.stem for path in recording.folder.glob("*.npz")}
        assert files | without == set(ROWS)


def files_read(path):
    """What a test file passes to `arrays` and `under` of a recording, without the precision."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if called and node.func.attr in ("arrays", "under") and node.args:
            text = ast.unparse(node.args[0])  # 'loss_f64', or f'loss_{precision}'
            found.add(re.sub(r"_(f32|f64|\{\w+\})$", "", text.removeprefix("f").strip("'")))
    return found


def test_what_is_compared_names_a_test_file_that_reads_it():
    files = (NETWORK, DIFFUSION, CHAINS, VQ, TEXT)
    read = {where: files_read(recorded.HERE / where) for where in files}
    for file, rows in ROWS.items():
        for pattern, verdict, where in rows:
            assert verdict in (COMPARED, INPUT) or verdict.startswith("excluded"), pattern
            stem = re.sub(r"_f(32|64)$", "", file)
            assert where is None or stem in read[where], f"{where} does not read {file}"


@recorded.both_sets
def test_both_precisions_hold_the_same_inputs(recording):
    """Integers alike, and floats to float32's rounding; the two files agree in names."""
    for file in {path.stem for path in recording.folder.glob("*_f32.npz")}:
        low, high = recording.arrays(file), recording.arrays(file.replace("f32", "f64"))
        assert {n for n in low if not n.startswith("param/")} == set(high)
        for name, array in high.items():
            rows = [verdict for p, verdict, _ in ROWS[file] if re.fullmatch(p, name)]
            if rows[0] == INPUT and low[name].dtype.kind == "f":
                recorded.assert_close(low[name], array, 1e-6, name)
            elif rows[0] == INPUT:
                np.testing.assert_array_equal(array, low[name], name)


@recorded.both_sets
def test_the_sizes_in_the_config_are_those_of_the_arrays(recording):
    config, x = recording.config, recording.arrays("transformer_f32")["x"]
    assert x.shape[1] == config["L"] == recording.vocab.length
    assert config["mask_id"] == recording.vocab.mask_id
    assert config["num_classes"] == recording.vocab.size


def test_every_sentence_has_its_ids():
    sentences = recorded.PUBLISHED.json_of("tokenizer_sentences")["sentences"]
    assert len(sentences) + 1 == len(recorded.PUBLISHED.arrays("tokenizer")["clip7936_offsets"])
