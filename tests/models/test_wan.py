"""The Wan backbone against diffusers' implementation, and the camera against what it must leave alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.conftest import randomise

from worldline.control import trajectories
from worldline.functional.camera import cameras_of
from worldline.models.backbone import INJECTED
from worldline.models.wan import WanConfig, WanModel
from worldline.nn.attention import FrameMask
from worldline.nn.layers import sinusoidal_embedding
from worldline.schema import Cameras, ShapeError, WorldlineError


def pair():
    """The same re-randomised weights in diffusers' model and in ours."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=40,
        num_layers=2,
        rope_max_seq_len=64,
    )
    randomise(theirs).eval()
    ours = WanModel(
        WanConfig(
            dim=48,
            ffn_dim=40,
            num_heads=2,
            num_layers=2,
            text_dim=8,
            text_len=6,
            in_channels=4,
            out_channels=4,
            freq_dim=16,
        )
    ).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)  # the key names are diffusers' own
    return theirs, ours


@pytest.mark.parametrize(("T", "H", "W"), [(1, 4, 6), (3, 6, 4), (5, 2, 8)])
@torch.no_grad()
def test_equals_diffusers(tiny_text, T, H, W):
    theirs, ours = pair()
    x, text, sigma = torch.randn(2, T, 4, H, W), tiny_text(2), torch.rand(2)
    reference = theirs(x.transpose(1, 2), 1000 * sigma, text.tokens * text.mask[..., None], return_dict=False)[
        0
    ].transpose(1, 2)
    got = ours(x, sigma[:, None].expand(-1, T), ours.text_context(text))
    torch.testing.assert_close(got, reference, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_each_frame_has_its_own_noise_level(tiny_wan, tiny_text):
    model, x = tiny_wan(num_layers=1), torch.randn(1, 3, 4, 4, 4)
    context = model.text_context(tiny_text())
    diagonal = FrameMask(torch.eye(3, dtype=torch.bool), tokens=4)
    sigma = torch.tensor([[0.1, 0.5, 0.9]])
    mixed = model(x, sigma, context, mask=diagonal)  # frames apart, so each must equal its own run
    for t in range(3):
        alone = model(x[:, t : t + 1], sigma[:, t : t + 1], context, positions=torch.tensor([t]))
        torch.testing.assert_close(mixed[:, t : t + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("camera", ["branch", "fused", "plucker", "cross"])
@torch.no_grad()
def test_camera_starts_from_the_pretrained_model(tiny_text, cameras, camera):
    sizes = dict(
        dim=32,
        ffn_dim=48,
        num_heads=2,
        num_layers=2,
        text_dim=8,
        text_len=6,
        in_channels=4,
        out_channels=4,
        freq_dim=16,
    )
    base = randomise(WanModel(WanConfig(**sizes))).eval()
    model = WanModel(WanConfig(**sizes, camera=camera)).eval()
    missing = model.load_state_dict(base.state_dict(), strict=False).missing_keys
    assert all(any(part in key for part in INJECTED) for key in missing)
    x, sigma, context = torch.randn(1, 3, 4, 4, 4), torch.rand(1, 3), base.text_context(tiny_text())
    reference = base(x, sigma, context)
    poses = cameras(1, 3)
    if camera == "fused":  # exact for cameras that do not move; intrinsics cancel
        poses = cameras_of(poses.w2c[:, 1:2].expand(-1, 3, -1, -1), poses.K)
    torch.testing.assert_close(model(x, sigma, context, cameras=poses), reference, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("camera", ["branch", "fused"])
@torch.no_grad()
def test_camera_moves_the_output_and_the_world_frame_does_not(tiny_wan, tiny_text, cameras, camera):
    model, x, sigma = tiny_wan(camera), torch.randn(1, 3, 4, 4, 4), torch.rand(1, 3)
    context, poses = model.text_context(tiny_text()), cameras(1, 3)
    out = model(x, sigma, context, cameras=poses)
    other = model(x, sigma, context, cameras=cameras(1, 3, seed=4))
    assert (out - other).abs().max() > 1e-2
    world = torch.linalg.inv(cameras(1, 2, seed=8).w2c[:, 1])
    moved = cameras_of(poses.w2c @ world[:, None], poses.K)
    torch.testing.assert_close(model(x, sigma, context, cameras=moved), out, atol=5e-5, rtol=1e-3)


def test_every_parameter_learns(tiny_wan, tiny_text, cameras):
    model = tiny_wan("branch")
    x, sigma = torch.randn(1, 3, 4, 4, 4), torch.rand(1, 3)
    model(x, sigma, model.text_context(tiny_text()), cameras=cameras(1, 3)).square().sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # A constant added to all keys cancels in the softmax; RMS norm keeps that from being exact, so no key is exempt.
    assert dead == []


def test_wrong_shapes_are_named(tiny_wan, tiny_text, cameras):
    model = tiny_wan("fused")
    context = model.text_context(tiny_text())
    with pytest.raises(ShapeError, match="one noise level per latent frame"):
        model(torch.randn(1, 3, 4, 4, 4), torch.rand(1, 2), context)
    with pytest.raises(ShapeError, match="cameras for 3 latent frames"):
        model(torch.randn(1, 3, 4, 4, 4), torch.rand(1, 3), context, cameras=cameras(1, 2))
    with pytest.raises(ShapeError, match="patches"):
        model(torch.randn(1, 3, 4, 5, 4), torch.rand(1, 3), context)
    with pytest.raises(WorldlineError, match="head width"):
        WanConfig(dim=30, ffn_dim=4, num_heads=4, num_layers=1, text_dim=4, text_len=4)


@pytest.mark.parametrize("camera", ["plucker", "cross"])
@torch.no_grad()
def test_rays_and_camera_tokens_steer_their_own_frame(tiny_wan, tiny_text, cameras, camera):
    model, x, sigma = tiny_wan(camera, num_layers=1), torch.randn(1, 3, 4, 4, 4), torch.rand(1, 3)
    context, poses, others = model.text_context(tiny_text()), cameras(1, 3), cameras(1, 3, seed=4)
    alone = FrameMask(torch.eye(3, dtype=torch.bool), tokens=4)
    mixed = cameras_of(torch.cat([poses.w2c[:, :2], others.w2c[:, 2:]], dim=1), poses.K)
    out, other = (model(x, sigma, context, cameras=c, mask=alone) for c in (poses, mixed))
    assert (out - other).abs().amax(dim=(0, 2, 3, 4)).gt(1e-3).tolist() == [False, False, True]
    assert not model.reanchors


@torch.no_grad()
def test_discrete_actions_start_silent_then_steer_their_own_frame(tiny_wan, tiny_text, cameras):
    model, x, sigma = tiny_wan(num_layers=1, actions=5), torch.randn(1, 3, 4, 4, 4), torch.rand(1, 3)
    context, poses = model.text_context(tiny_text()), cameras(1, 3)
    alone = FrameMask(torch.eye(3, dtype=torch.bool), tokens=4)
    held = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2]]), 5).float()
    other = torch.nn.functional.one_hot(torch.tensor([[0, 1, 4]]), 5).float()
    one, two = (model(x, sigma, context, cameras=replace(poses, actions=a), mask=alone) for a in (held, other))
    assert (one - two).abs().amax(dim=(0, 2, 3, 4)).gt(1e-3).tolist() == [False, False, True]
    with pytest.raises(ShapeError, match="10 discrete actions; this model expects 5"):
        model(x, sigma, context, cameras=poses)  # read off the motion
    fresh = WanModel(model.config)
    torch.nn.init.normal_(fresh.proj_out.weight)
    a, b = (fresh(x, sigma, fresh.text_context(tiny_text()), cameras=replace(poses, actions=a)) for a in (held, other))
    torch.testing.assert_close(a, b, atol=0, rtol=0)


@torch.no_grad()
def test_a_label_embedding_reads_its_labels_off_the_motion(tiny_wan, tiny_text):
    """As wide as the clock's embedding: HY-WorldPlay's numbers, as its models take them."""
    turned = torch.from_numpy(trajectories.parse("w*1,wd*1,l*1,sj*1").poses())
    poses = cameras_of(torch.linalg.inv(turned)[None].float(), torch.tensor([0.5, 0.9, 0.5, 0.5]).expand(1, 5, 4))
    model, x, sigma = tiny_wan(actions=16), torch.randn(1, 5, 4, 4, 4), torch.rand(1, 5)
    context = model.text_context(tiny_text())
    labels = torch.tensor([[0.0, 9, 45, 1, 20]])
    read = model(x, sigma, context, cameras=poses)
    given = model(x, sigma, context, cameras=replace(poses, actions=sinusoidal_embedding(labels, 16)))
    torch.testing.assert_close(read, given, atol=0, rtol=0)
    other = model(x, sigma, context, cameras=replace(poses, actions=sinusoidal_embedding(labels + 1, 16)))
    assert (read - other).abs().max() > 1e-3


@torch.no_grad()
def test_motion_starts_silent_then_steers_its_own_frame(tiny_wan, tiny_text, cameras):
    model, x, sigma = tiny_wan(num_layers=1, motion=True), torch.randn(1, 3, 4, 4, 4), torch.rand(1, 3)
    context, poses = model.text_context(tiny_text()), cameras(1, 3)
    alone = FrameMask(torch.eye(3, dtype=torch.bool), tokens=4)
    still = Cameras(poses.w2c, poses.K, poses.motion * torch.tensor([1, 1, 0])[None, :, None])
    out, other = (model(x, sigma, context, cameras=c, mask=alone) for c in (poses, still))
    assert (out - other).abs().amax(dim=(0, 2, 3, 4)).gt(1e-3).tolist() == [False, False, True]
    fresh = WanModel(model.config)
    torch.nn.init.normal_(fresh.proj_out.weight)
    a, b = (fresh(x, sigma, fresh.text_context(tiny_text()), cameras=c) for c in (poses, None))
    torch.testing.assert_close(a, b, atol=0, rtol=0)
