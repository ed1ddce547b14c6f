"""The kernel as dense matrices, float64 NumPy: what `diffusion` and `sampling` are tested against.

All V ids at once, column = from, row = to; everything follows from the matrix of section 2 of Hu et
al. (2022) by products and Bayes' rule, and nothing is imported from the library but the layout and
the tables. The published code's own errors in the kernel live in `published_twin.py`; its strided
sampler lives here.
"""

import numpy as np


def cumulative(vocab, tables, t: int) -> np.ndarray:
    """Qbar_t, float64[V, V]; `tables` holds a Schedule a modality."""
    matrix = np.zeros((vocab.size, vocab.size))
    for modality, offset, table in zip(vocab.modalities, vocab.offsets, tables, strict=True):
        block = slice(offset, offset + modality.classes)
        matrix[block, block] = table.uniform_bar[t] / modality.classes
        matrix[block, block] += table.alpha_bar[t] * np.eye(modality.classes)
        matrix[-1, block] = table.gamma_bar[t]
    matrix[-1, -1] = 1
    return matrix


def step(vocab, tables, s: int, t: int) -> np.ndarray:
    """The matrix from s to t, float64[V, V], in the stable differences of the tables."""
    matrix = np.zeros((vocab.size, vocab.size))
    for modality, offset, table in zip(vocab.modalities, vocab.offsets, tables, strict=True):
        block = slice(offset, offset + modality.classes)
        change = (table.alpha_bar[s] - table.alpha_bar[t]) / table.alpha_bar[s]
        replaced = table.uniform_bar[t] - table.uniform_bar[s] + change * table.uniform_bar[s]
        matrix[block, block] = replaced / table.unmasked[s] / modality.classes
        matrix[block, block] += (1 - change) * np.eye(modality.classes)
        matrix[-1, block] = (table.gamma_bar[t] - table.gamma_bar[s]) / table.unmasked[s]
    matrix[-1, -1] = 1
    return matrix


def posterior(vocab, tables, s: int, t: int) -> np.ndarray:
    """q(x_s = k | x_t = j, x_0 = i) at [k, j, i] by Bayes' rule, float64[V, V, V]; where
    q(x_t = j | x_0 = i) = 0 it is 0."""
    joint = step(vocab, tables, s, t).T[:, :, None] * cumulative(vocab, tables, s)[:, None, :]
    evidence = joint.sum(0, keepdims=True)
    return np.divide(joint, evidence, out=np.zeros_like(joint), where=evidence > 0)


def published_stride(table, steps: int, stride: int) -> np.ndarray:
    """How the published strided sampler divides its tokens among its calls, float64[calls].

    It goes from t to t - stride with the posterior of ONE step: of the positions that are masked
    it reveals the share of a single step, and what is left falls to the last call, at t = 1.
    """
    times = [*range(steps, 1, -stride), 1]
    shares, masked = [], 1.0
    for t in times:
        shown = masked * (1 - table.gamma_bar[t - 1] / table.gamma_bar[t])
        shares.append(shown)
        masked -= shown
    return np.array(shares)
