"""How close a reconstruction is to its original: PSNR and SSIM, picture by picture.

    PSNR = 10 log10(255^2 / mean squared error)
    SSIM = mean of (2 m_x m_y + c_1)(2 s_xy + c_2) / ((m_x^2 + m_y^2 + c_1)(s_x^2 + s_y^2 + c_2))

with local means, variances and covariance under a Gaussian window of 11 x 11 pixels and deviation
1.5, c_1 = (.01 255)^2, c_2 = (.03 255)^2, for each colour channel, over the windows that lie
entirely inside the picture (Wang et al. 2004). Pictures with opacity are compared as they look over
white, with the opacity as one more channel.
"""

import numpy as np

from udd_jax.errors import UserError

WINDOW = 11
MOST = 100.0  # dB, of equal pictures: a number that means and files can hold


def seen(images) -> np.ndarray:
    """uint8[B, H, W, C] as it is compared: with opacity float32, colours as they look over white.

    Others are returned as they are.
    """
    images = np.asarray(images)
    if images.shape[-1] != 4:
        return images
    images = images.astype(np.float32)
    opacity = images[..., 3:]
    return np.concatenate([255 - (255 - images[..., :3]) * opacity / 255, opacity], axis=-1)


def psnr(images, targets) -> np.ndarray:
    """uint8[B, H, W, C] twice -> float64[B] in decibels, at most MOST."""
    images, targets = _pair(images, targets)
    error = np.square(images - targets).mean((1, 2, 3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 255.0**2 * 10 ** (-MOST / 10)))


def flat(images, grid: tuple[int, int]) -> np.ndarray:
    """[B, H, W, C], each of the (rows, columns) cells painted in its mean colour, uint8.

    A tokenizer whose pictures are no better has learned nothing about what is in a cell.
    """
    images, (rows, columns) = np.asarray(images), grid
    count, height, width, channels = images.shape
    cells = images.reshape(count, rows, height // rows, columns, width // columns, channels)
    means = cells.mean((2, 4), keepdims=True)
    painted = np.broadcast_to(np.rint(means).astype(np.uint8), cells.shape)
    return painted.reshape(images.shape)


def window_fits(images) -> bool:
    """Whether pictures [B, H, W, C] have room for the window of SSIM."""
    return min(np.shape(images)[1:3]) >= WINDOW


def ssim(images, targets) -> np.ndarray:
    """uint8[B, H, W, C] twice -> float64[B], 1 for equal pictures.

    Raises:
      ValueError: shapes that differ, or pictures smaller than the window.
    """
    images, targets = _pair(images, targets)
    if not window_fits(images):
        raise UserError(
            f"SSIM: pictures of {images.shape[1]} x {images.shape[2]}, its window needs {WINDOW}"
        )
    mean_x, mean_y = _smooth(images), _smooth(targets)
    variance = _smooth(images**2) + _smooth(targets**2) - mean_x**2 - mean_y**2
    covariance = _smooth(images * targets) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (variance + c2)
    return (above / below).mean((1, 2, 3))


def _smooth(x: np.ndarray) -> np.ndarray:
    """The local average under the Gaussian window, along height and width: [B, H-10, W-10, C]."""
    offset = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offset**2) / (2 * 1.5**2))
    weights = weights / weights.sum()
    h, w = x.shape[1] - WINDOW + 1, x.shape[2] - WINDOW + 1
    x = sum(weight * x[:, i : i + h] for i, weight in enumerate(weights))
    return sum(weight * x[:, :, i : i + w] for i, weight in enumerate(weights))


def _pair(images, targets) -> tuple[np.ndarray, np.ndarray]:
    images, targets = (np.asarray(seen(part), np.float64) for part in (images, targets))
    if images.shape != targets.shape or images.ndim != 4:
        raise UserError(
            f"pictures of shapes {images.shape} and {targets.shape}, expected two times the same "
            "[batch, height, width, channels]"
        )
    return images, targets
