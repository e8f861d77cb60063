"""Diffusion forcing: what may be seen, what is scored, and a world whose best answer is known."""

from __future__ import annotations

import pytest
import torch
from tests.methods.conftest import EMPTY
from torch import nn

from worldline.functional.masks import Visibility
from worldline.methods.base import Rng
from worldline.methods.diffusion_forcing import DiffusionForcingConfig, clean_before
from worldline.schema import LatentBatch, TextEmbedding, WorldlineError

VISIBLE = Visibility(chunk=2, prefix=1)


def capture(method, batch, step=0):
    """The model's (x_t, sigma, mask) and the gradient of its answer."""
    seen = {}

    def before(module, args, kwargs):
        seen.update(x=args[0], sigma=args[1], mask=kwargs["mask"])

    def after(module, args, kwargs, out):
        out.retain_grad()
        seen["out"] = out

    hooks = [
        method.model.register_forward_pre_hook(before, with_kwargs=True),
        method.model.register_forward_hook(after, with_kwargs=True),
    ]
    method.loss(batch, Rng(0, step))["loss"].backward()
    for hook in hooks:
        hook.remove()
    return seen


def test_levels_are_independent_a_chunk_and_clean_frames_are_not_scored(tiny_wan, clips):
    method = DiffusionForcingConfig(clean_past=0.5).build(tiny_wan("fused"), VISIBLE, EMPTY)
    batch, mixtures = clips.select([0, 1]), set()
    for step in range(6):
        seen = capture(method, batch, step)
        sigma, scored = seen["sigma"], seen["out"].grad.abs().amax(dim=(2, 3, 4)) > 0
        assert (sigma[:, 0] == 0).all(), "the given frame is clean"
        assert torch.equal(sigma[:, 1::2], sigma[:, 2::2]), "one level a chunk"
        assert torch.equal(scored, sigma > 0)
        clean = sigma == 0
        assert torch.equal(seen["x"][clean], batch.latents[clean])
        mixtures |= {tuple(row) for row in clean.tolist()}
        assert (sigma[:, 1] != sigma[:, 3]).all()
    assert mixtures == {(True, False, False, False, False), (True, True, True, False, False)}


def test_the_future_is_not_seen(tiny_wan, clips):
    method = DiffusionForcingConfig().build(tiny_wan("fused"), VISIBLE, EMPTY)
    batch = clips.select([0, 1])
    x, sigma, mask = (capture(method, batch)[k] for k in ("x", "sigma", "mask"))
    context = method.model.text_context(batch.text)

    @torch.no_grad()
    def answer(x, sigma):
        return method.model(x, sigma, context, cameras=batch.cameras, mask=mask)

    base = answer(x, sigma)
    for j in range(5):
        later, louder = x.clone(), sigma.clone()
        later[:, j] += 1
        louder[:, j] = 0.33
        start = 0 if j == 0 else 1 if j < 3 else 3
        for moved in (answer(later, sigma), answer(x, louder)):
            changed = (moved - base).abs().amax(dim=(0, 2, 3, 4)) > 1e-6
            assert changed.tolist() == [t >= start for t in range(5)]


class Still(nn.Module):
    """The exact answer for a world that stands still (x0 ~ N(0, 1), the same in all frames): x0 given the frames that are
    seen is a mean weighted by their precisions (1 - s)^2 / s^2. `trust` scales the past's."""

    def __init__(self, trust: float) -> None:
        super().__init__()
        self.trust = nn.Parameter(torch.tensor(trust))

    def tokens_per_frame(self, height, width):
        return height * width // 4

    def text_context(self, text):
        return None

    def forward(self, x, sigma, text, *, cameras=None, mask=None):
        level = sigma.clamp_min(1e-3)
        seen = mask.visible.float()
        own = torch.eye(len(seen))
        heard = own + (seen - own) * self.trust  # [T, T]
        evidence = ((1 - level) / level.square())[..., None, None, None] * x
        precision = 1 + ((1 - level) / level).square() @ heard.T
        x0 = torch.einsum("ij,bjchw->bichw", heard, evidence) / precision[..., None, None, None]
        return (x - x0) / level[..., None, None, None]


@pytest.mark.parametrize("clean_past", [0.0, 0.5])
def test_the_noisy_past_is_trusted_by_its_noise(clean_past):
    still = torch.randn(64, 1, 2, 4, 6, generator=torch.Generator().manual_seed(0)).expand(-1, 5, -1, -1, -1)
    text = TextEmbedding(torch.zeros(64, 6, 8), torch.ones(64, 6, dtype=torch.bool))
    batch = LatentBatch(still, text, None)
    cfg = DiffusionForcingConfig(weighting="uniform", clean_past=clean_past, shift=1.0)

    def loss(trust):
        method = cfg.build(Still(trust), Visibility(chunk=1), EMPTY)
        value = torch.stack([method.loss(batch, Rng(0, step))["loss"] for step in range(4)]).mean()
        value.backward()
        return value.item(), method.model.trust.grad.item()

    (exact, slope), (less, _), (deaf, _) = loss(1.0), loss(0.2), loss(0.0)
    assert exact < less < deaf
    assert abs(slope) < 0.05 * (deaf - exact)


def test_clean_past_is_a_share():
    clean = clean_before(4000, 9, Visibility(chunk=2, prefix=1), 0.5, torch.Generator().manual_seed(0))
    assert clean[:, 0].all()
    assert clean[:, 1].float().mean().item() == pytest.approx(0.5 * 3 / 4, abs=0.03)
    assert not clean_before(9, 9, Visibility(chunk=2), 0.0, torch.Generator()).any()
    with pytest.raises(WorldlineError, match="clean_past"):
        DiffusionForcingConfig(clean_past=1.5)
