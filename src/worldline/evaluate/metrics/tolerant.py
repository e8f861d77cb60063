"""PSNR that forgives being a little late or a little to the side.

Strict PSNR ranks a perfect world that answers four frames late beside one that ignores its player. Here every frame is
compared with the truth within some frames before and after, shifted sideways by some pixels, and the best match counts.
Strict and tolerant together tell a wrong place from a wrong look.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldline.evaluate.fidelity import CAP_DB
from worldline.evaluate.metrics.frames import check_pair, shrunk

FRAMES = 8  # searched to either side
SHIFT = 1 / 8  # of the width, searched to either side
FLOOR_MSE = 255.0**2 / 10 ** (CAP_DB / 10)


@dataclass(frozen=True)
class Tolerant:
    """psnr [F] in dB, capped; delay [F]: frames by which the shown frame lags the truth it matches; shift [F]: pixels (of
    the width it was measured at) by which it lies to the right of it."""

    psnr: np.ndarray
    delay: np.ndarray
    shift: np.ndarray


def tolerant_psnr(frames: np.ndarray, truth: np.ndarray, reach: int = FRAMES) -> Tolerant:
    """uint8 [F, H, W, 3] twice. max over |delay| <= reach, |shift| <= W / 8 of PSNR(frames[t], truth[t - delay]) on the
    overlap; never below the strict PSNR at the width of measuring (160 pixels at most). Of equal matches the least delay
    and shift are named. Raises ShapeError on clips of two sizes or lengths."""
    check_pair(frames, truth)
    search, F = _Search(frames, truth), len(frames)
    best, delay, shift = np.full(F, np.inf), np.zeros(F, int), np.zeros(F, int)
    for d in sorted(range(-reach, reach + 1), key=abs):
        t = np.arange(max(d, 0), F + min(d, 0))
        if not len(t):
            continue
        mse, shifts = search.best(t, t - d)
        better = mse < best[t] * (1 - 1e-6)
        best[t[better]], delay[t[better]], shift[t[better]] = mse[better], d, shifts[better]
    return Tolerant(10 * np.log10(255.0**2 / best), delay, shift)


def neighbour_psnr(frames: np.ndarray) -> np.ndarray:
    """uint8 [F, H, W, 3] -> dB [F - 1]: of every frame and the one before, at the best sideways shift."""
    check_pair(frames, frames)
    t = np.arange(1, len(frames))
    return 10 * np.log10(255.0**2 / _Search(frames, frames).best(t, t - 1)[0])


class _Search:
    """Mean squared differences at every sideways shift at once: energies of the overlap less twice the correlation."""

    def __init__(self, frames: np.ndarray, truth: np.ndarray) -> None:
        a, b = (shrunk(clip).astype(np.float64) - 128 for clip in (frames, truth))
        F, H, W = a.shape[:3]
        widest = int(W * SHIFT)
        self.shifts = np.arange(-widest, widest + 1)
        rows = [clip.transpose(0, 1, 3, 2).reshape(F, -1, W) for clip in (a, b)]  # [F, H * 3, W]
        self.n = 1 << int(np.ceil(np.log2(W + widest)))
        self.fa, self.fb = (np.fft.rfft(row, self.n, axis=2).astype(np.complex128) for row in rows)
        ea, eb = (np.pad(np.cumsum((row**2).sum(axis=1), axis=1), ((0, 0), (1, 0))) for row in rows)
        # Shown pixel x + s against true pixel x: columns [max(s, 0), W + min(s, 0)) of what is shown.
        lo, hi = np.maximum(self.shifts, 0), W + np.minimum(self.shifts, 0)
        self.ea, self.eb = ea[:, hi] - ea[:, lo], eb[:, hi - self.shifts] - eb[:, lo - self.shifts]
        self.pixels = (W - np.abs(self.shifts)) * H * 3
        self.bias = 1 + 1e-6 * np.abs(self.shifts)  # so that of equal matches the nearest is named

    def best(self, t: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Least mean squared difference of frames t and true frames u, and the shift where it is, [n] each."""
        product = np.stack([np.einsum("rk,rk->k", self.fa[i], self.fb[j].conj()) for i, j in zip(t, u, strict=True)])
        match = np.fft.irfft(product, self.n, axis=1)[:, self.shifts % self.n]
        mse = np.maximum((self.ea[t] + self.eb[u] - 2 * match) / self.pixels, FLOOR_MSE)
        pick = np.argmin(mse * self.bias, axis=1)
        return mse[np.arange(len(t)), pick], self.shifts[pick]
