"""What a plan counts is what a stream does: against a running session, and against the formulas of the recipes' plans."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from worldline.functional.masks import Visibility
from worldline.models.nano_vae import NanoVAEConfig
from worldline.models.wan import WAN_VARIANTS
from worldline.recipes.costs import forward_flops, prompt_flops
from worldline.schema import Controls, WorldlineError
from worldline.stream.plan import plan_of


def test_a_plan_counts_what_a_session_does(engine):
    plan, session = engine.plan(), engine.session("hall")
    assert plan is engine.plan()
    for _ in range(7):
        session.step(Controls.still(4))
    session.commit()
    with engine.compute(), FlopCounterMode(display=False) as denoising:
        drawn = session._now.draw(Controls.still(4), 0, 0)
    with engine.compute(), FlopCounterMode(display=False) as decoding:
        session._now.shown(drawn)
    assert plan.denoise_flops == pytest.approx(denoising.get_total_flops(), rel=0.03)
    assert plan.decode_flops == pytest.approx(decoding.get_total_flops(), rel=1e-6)
    assert plan.cache_bytes == session._now.loop.nbytes
    assert plan.latent_bytes == session.log.latents[0].nbytes
    assert plan.weight_bytes == 4 * sum(p.numel() for p in type(engine.model)(engine.model.config).parameters())
    assert (plan.calls, plan.frames_per_chunk, plan.window, plan.guided) == (3, 4, 4, 1)
    assert plan.seconds(plan.flops, 1e30) == pytest.approx(1.0)
    assert plan.seconds(1e30, plan.bytes) == pytest.approx(1.0)
    assert plan.realtime_flops() == pytest.approx(plan.flops * 4)


def test_a_large_world_is_planned_without_weights(engine):
    """Wan2.1 1.3B at 480 x 832, chunks of 3 in a window of 21: 40.4 TFLOP a call (the published arithmetic), 6.04 GB of cache."""
    config = dataclasses.replace(
        engine.config,
        visibility=Visibility(chunk=3, window=21, prefix=1),
        height=480,
        width=832,
        sigmas=(1.0, 0.9, 0.8, 0.6),
    )
    wan = dataclasses.replace(WAN_VARIANTS["wan2.1-t2v-1.3b"], num_layers=2)
    plan = plan_of(wan, NanoVAEConfig(latent_channels=16), config)
    formula = forward_flops(wan, 3, 1560, 3 * 21, cameras=False).flops
    assert plan.commit_flops == pytest.approx(formula, rel=2e-3)
    assert plan.prompt_flops == pytest.approx(prompt_flops(wan).flops, rel=2e-3)
    assert plan.tokens_per_latent == 1560
    assert plan.cache_bytes * 15 == 21 * 1560 * 1536 * 2 * 2 * 30
    guided = plan_of(wan, NanoVAEConfig(latent_channels=16), dataclasses.replace(config, guidance=3.0))
    assert guided.calls == 2 * plan.calls
    assert guided.denoise_flops == pytest.approx(2 * plan.denoise_flops)
    with pytest.raises(WorldlineError, match="registered Backbone"):
        plan_of(config, NanoVAEConfig(), config)
    with pytest.raises(WorldlineError, match="registered Backbone"):
        plan_of(NanoVAEConfig(), NanoVAEConfig(latent_channels=16), config)
    assert torch.is_grad_enabled()
