"""Structural similarity (Wang et al. 2004): Gaussian window 11 x 11, sigma 1.5, K1 0.01, K2 0.03, population covariance."""

from __future__ import annotations

import numpy as np

from worldline.evaluate.metrics.frames import check_pair
from worldline.schema import ShapeError

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
BORDER = WINDOW // 2


def ssim(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] twice -> [F], the mean over colour channels and over pixels whose window lies in the picture.

    ssim = (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2)). Equals scikit-image's
    `structural_similarity` with gaussian_weights, sigma 1.5, use_sample_covariance off. Raises ShapeError on clips of two
    sizes or frames smaller than the window.
    """
    check_pair(frames, truth)
    if min(frames.shape[1:3]) < WINDOW:
        raise ShapeError(f"frames of {frames.shape[1:3]} pixels: expected at least {WINDOW} each way")
    return np.array([_ssim(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(frames, truth, strict=True)])


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    ma, mb = _blur(a), _blur(b)
    saa, sbb, sab = _blur(a * a) - ma * ma, _blur(b * b) - mb * mb, _blur(a * b) - ma * mb
    score = (2 * ma * mb + C1) * (2 * sab + C2) / ((ma * ma + mb * mb + C1) * (saa + sbb + C2))
    return float(score[BORDER:-BORDER, BORDER:-BORDER].mean())


def _blur(image: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(image, (WINDOW, WINDOW), SIGMA, borderType=cv2.BORDER_REFLECT)
