"""HunyuanVideo-1.5 against diffusers, on small models whose every parameter is random."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from worldline.functional.masks import Visibility
from worldline.models.hunyuan15 import HUNYUAN_VARIANTS, HunyuanConfig, HunyuanModel
from worldline.nn.attention import FrameMask
from worldline.schema import ShapeError, TextEmbedding, WorldlineError

SMALL = HunyuanConfig(
    dim=32, num_heads=2, num_layers=3, text_dim=16, text_lens=(6, 4, 3), byt5_dim=8, byt5_hidden=2048, image_dim=12,
    in_channels=4, out_channels=4, ffn_dim=64, refiner_layers=2, refiner_ffn_dim=128, rope_dims=(4, 6, 6),
)  # fmt: skip


def randomised(model, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            p.copy_(torch.randn(p.shape, generator=g) * (0.5 / max(1, p.shape[-1]) ** 0.5 if p.ndim > 1 else 0.2))
            if "norm" in name and name.endswith("weight") and p.ndim == 1:
                p.add_(1.0)
    return model.eval()


def theirs(config):
    diffusers = pytest.importorskip("diffusers")
    return diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=2 * config.in_channels + 1, out_channels=config.out_channels,
        num_attention_heads=config.num_heads, attention_head_dim=config.head_dim, num_layers=config.num_layers,
        num_refiner_layers=config.refiner_layers, mlp_ratio=config.ffn_dim / config.dim,
        patch_size=config.patch_size[1], patch_size_t=1, text_embed_dim=config.text_dim,
        text_embed_2_dim=config.byt5_dim, image_embed_dim=config.image_dim, rope_axes_dim=config.rope_dims,
        rope_theta=config.rope_theta,
    )  # fmt: skip


def prompt(config, lengths, seed=1, image=True):
    """One embedding of three sources; `lengths`: valid tokens of (words, quoted words) of each sample."""
    g = torch.Generator().manual_seed(seed)
    B, (a, b, c) = len(lengths), config.text_lens
    tokens = torch.randn(B, a + b + c, config.text_dim, generator=g)
    tokens[:, a : a + b, config.byt5_dim :] = 0
    tokens[:, a + b :, config.image_dim :] = 0
    mask = torch.zeros(B, a + b + c, dtype=torch.bool)
    for i, (words, quoted) in enumerate(lengths):
        mask[i, :words] = True
        mask[i, a : a + quoted] = True
        mask[i, a + b :] = image
    tokens[:, a + b :] *= float(image)
    return TextEmbedding(tokens, mask)


def asked(model, config, x, sigma, text, given):
    """diffusers' answer: their channels, masks and clock of a clip."""
    a, b, _ = config.text_lens
    known = torch.zeros_like(x[:, :, :1])
    known[:, 0] = float(given)
    hidden = torch.cat([x, x * known, known], dim=2).transpose(1, 2)
    tokens, mask = text.tokens, text.mask
    out = model(
        hidden,
        1000 * sigma,
        encoder_hidden_states=tokens[:, :a],
        encoder_attention_mask=mask[:, :a],
        encoder_hidden_states_2=tokens[:, a : a + b, : config.byt5_dim],
        encoder_attention_mask_2=mask[:, a : a + b],
        image_embeds=tokens[:, a + b :, : config.image_dim],
    ).sample
    return out.transpose(1, 2)


GOLDEN = Path(__file__).parent / "golden" / "hunyuan15.safetensors"  # diffusers' answer: how to make it is below


def golden_case():
    """Inputs of the golden file: two prompts of different lengths, three latents."""
    x = torch.randn(2, 3, 4, 6, 10, generator=torch.Generator().manual_seed(21))
    return x, torch.tensor([0.3, 0.8]), prompt(SMALL, [(6, 4), (3, 1)], seed=22)


def pair(config=SMALL):
    reference = randomised(theirs(config))
    own = HunyuanModel(config).eval()
    missing, unexpected = own.load_state_dict(reference.state_dict(), strict=False)
    assert not missing
    assert not unexpected
    return own, reference


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("frames", [1, 3, 5])
@pytest.mark.parametrize(("lengths", "image"), [([(6, 4)], True), ([(4, 2), (6, 0)], True), ([(3, 0)], False)])
def test_equals_diffusers(patch, frames, lengths, image):
    config = replace(SMALL, patch_size=(1, patch, patch))
    own, reference = pair(config)
    g = torch.Generator().manual_seed(2)
    x = torch.randn(len(lengths), frames, 4, 6, 10, generator=g)
    sigma = torch.rand(len(lengths), generator=g) * 0.9 + 0.05
    text = prompt(config, lengths, image=image)
    with torch.no_grad():
        wanted = asked(reference, config, x, sigma, text, given=False)
        got = own(x, sigma[:, None].expand(-1, frames), own.text_context(text))
    assert got.abs().max() > 0.1
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_equals_the_golden_file():
    """Without diffusers. Where it is installed, the file is checked against it."""
    x, sigma, text = golden_case()
    wanted = load_file(GOLDEN)["velocity"]
    own = randomised(HunyuanModel(SMALL))
    with torch.no_grad():
        got = own(x, sigma[:, None].expand(-1, 3), own.text_context(text))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    if importlib.util.find_spec("diffusers") is None:
        return
    with torch.no_grad():
        theirs_now = asked(randomised(theirs(SMALL)), SMALL, x, sigma, text, given=False)
    torch.testing.assert_close(theirs_now, wanted, atol=1e-5, rtol=1e-5)


def test_a_given_first_frame_is_handed_over_as_the_image_to_video_weights_expect():
    own, reference = pair()
    x, text = torch.randn(1, 3, 4, 6, 10, generator=torch.Generator().manual_seed(3)), prompt(SMALL, [(5, 3)])
    with torch.no_grad():
        wanted = asked(reference, SMALL, x, torch.zeros(1), text, given=True)
        got = own(x, torch.zeros(1, 3), own.text_context(text))
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        # A clean frame that is not the first one is not given.
        later = own(x, torch.zeros(1, 3), own.text_context(text), positions=torch.arange(4, 7))
        assert (later - got).abs().max() > 1e-2


def test_gradients_equal_diffusers():
    own, reference = pair()
    x, text = torch.randn(2, 2, 4, 4, 6, generator=torch.Generator().manual_seed(4)), prompt(SMALL, [(6, 4), (3, 1)])
    sigma = torch.tensor([0.3, 0.8])
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    (asked(reference, SMALL, x, sigma, text, given=False) * weight).sum().backward()
    (own(x, sigma[:, None].expand(-1, 2), own.text_context(text)) * weight).sum().backward()
    theirs_by_name = dict(reference.named_parameters())
    for name, parameter in own.named_parameters():
        wanted, got = (torch.zeros_like(p) if p.grad is None else p.grad for p in (theirs_by_name[name], parameter))
        assert (got - wanted).norm() <= 1e-4 * wanted.norm().clamp_min(1e-3), name


def test_bf16_stays_near_fp32():
    own, _ = pair()
    x, text = torch.randn(1, 3, 4, 6, 10, generator=torch.Generator().manual_seed(6)), prompt(SMALL, [(6, 4)])
    sigma = torch.full((1, 3), 0.6)
    with torch.no_grad():
        exact = own(x, sigma, own.text_context(text))
        with torch.autocast("cpu", torch.bfloat16):
            rough = own(x, sigma, own.text_context(text))
    assert (rough - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize(("camera", "tensors", "parameters"), [("none", 1801, 8_326_608_160), ("branch", 1909, None)])
def test_full_size_has_exactly_the_published_keys(camera, tensors, parameters):
    with torch.device("meta"):
        own = HunyuanModel(replace(HUNYUAN_VARIANTS["hunyuan-1.5"], camera=camera))
    keys = own.state_dict()
    assert len(keys) == tensors
    assert parameters is None or sum(p.numel() for p in own.parameters()) == parameters
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        reference = diffusers.HunyuanVideo15Transformer3DModel().state_dict()
    assert {k: v.shape for k, v in keys.items() if "prope_o" not in k} == {k: v.shape for k, v in reference.items()}


# -- decoupled: streaming ----------------------------------------------------------------------------------------------

STREAMED = replace(SMALL, text_mode="decoupled")


def decoupled(camera="none", **changes):
    return randomised(HunyuanModel(replace(STREAMED, camera=camera, **changes)))


def walk(frames, batch=2, seed=7):
    from worldline.functional.camera import cameras_of, rotation_yaw

    g = torch.Generator().manual_seed(seed)
    w2c = torch.eye(4).repeat(batch, frames, 1, 1)
    for b in range(batch):
        for t in range(frames):
            w2c[b, t, :3, :3] = torch.from_numpy(rotation_yaw(5.0 * t * (b + 1))).float()
            w2c[b, t, :3, 3] = torch.randn(3, generator=g) * 0.1 * t
    return cameras_of(w2c, torch.tensor([0.5, 0.9, 0.5, 0.5]).expand(batch, frames, 4))


@pytest.mark.parametrize("camera", ["none", "branch", "fused"])
@pytest.mark.parametrize(
    "visibility",
    [
        Visibility(chunk=1, window=3, prefix=1),
        Visibility(chunk=3, window=6, sink=1, prefix=1),
        Visibility(chunk=4, window=8),
    ],
)
def test_streamed_chunks_equal_one_masked_pass(camera, visibility):
    from worldline.rollout.loop import ChunkLoop
    from worldline.rollout.plan import RolloutPlan

    model, T = decoupled(camera, motion=True), visibility.prefix + 6 * visibility.chunk
    g = torch.Generator().manual_seed(8)
    clean, noise = (torch.randn(2, T, 4, 4, 6, generator=g) for _ in range(2))
    cameras, text = walk(T), prompt(STREAMED, [(6, 4), (3, 2)])
    sigma = 0.7
    x = (1 - sigma) * clean + sigma * noise
    plan = RolloutPlan(visibility, (sigma,))
    with torch.no_grad():
        levels = torch.cat([torch.zeros(2, T), torch.full((2, T), sigma)], dim=1)
        mask = FrameMask(visibility.teacher_forcing_mask(T), model.tokens_per_frame(4, 6), "dense")
        both = model(
            torch.cat([clean, x], dim=1), levels, model.text_context(text), cameras=cameras.tile(frames=2),
            positions=torch.arange(T).repeat(2), mask=mask,
        )[:, T:]  # fmt: skip
        loop = ChunkLoop(model, plan, text, cache="ring")
        starts = ([0] if visibility.prefix else []) + list(range(visibility.prefix, T, visibility.chunk))
        for start, stop in zip(starts, [*starts[1:], T], strict=True):
            own = slice(start, stop)
            got = loop._ask(x[:, own], sigma, loop._texts[0], cameras[own], loop._caches[0])
            torch.testing.assert_close(got, both[:, own], atol=1e-5, rtol=1e-5)
            loop.commit(clean[:, own], cameras[own])


def test_masked_padding_equals_a_prompt_alone():
    model, x = decoupled(), torch.randn(2, 2, 4, 4, 6, generator=torch.Generator().manual_seed(9))
    together, sigma = prompt(STREAMED, [(6, 4), (2, 1)]), torch.full((2, 2), 0.5)
    with torch.no_grad():
        both = model(x, sigma, model.text_context(together))
        for i in range(2):
            alone = TextEmbedding(together.tokens[i : i + 1], together.mask[i : i + 1])
            context = model.text_context(alone)
            assert context.valid is None
            assert context.layers[0][0].shape[2] == int(alone.mask.sum())
            torch.testing.assert_close(
                model(x[i : i + 1], sigma[i : i + 1], context), both[i : i + 1], atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize("mode", ["joint", "decoupled"])
def test_identity_cameras_leave_the_pretrained_model_as_it_was(mode):
    from worldline.functional.camera import cameras_of

    plain = randomised(HunyuanModel(replace(SMALL, text_mode=mode)))
    fused = HunyuanModel(replace(SMALL, text_mode=mode, camera="fused")).eval()
    fused.load_state_dict(plain.state_dict())
    x, sigma, text = torch.randn(1, 3, 4, 4, 6), torch.full((1, 3), 0.5), prompt(SMALL, [(5, 2)])
    still = cameras_of(torch.eye(4).expand(1, 3, 4, 4), torch.tensor([1.0, 1.0, 0.5, 0.5]).expand(1, 3, 4))
    with torch.no_grad():
        wanted = plain(x, sigma, plain.text_context(text))
        torch.testing.assert_close(
            fused(x, sigma, fused.text_context(text), cameras=still), wanted, atol=1e-5, rtol=1e-5
        )
        moved = fused(x, sigma, fused.text_context(text), cameras=walk(3, batch=1))
    assert (moved - wanted).abs().max() > 1e-3


def test_the_legacy_cache_differs_after_the_first_chunk_alone():
    """minWM's streams kept rotated keys for past frames' camera attention (research/minwm 3.7): reproduced on request."""
    from worldline.rollout.loop import ChunkLoop
    from worldline.rollout.plan import RolloutPlan

    correct, legacy = (
        decoupled("branch"),
        HunyuanModel(replace(STREAMED, camera="branch", legacy_prope_cache=True)).eval(),
    )
    legacy.load_state_dict(correct.state_dict())
    visibility, cameras, text = Visibility(chunk=2, window=4), walk(4, batch=1), prompt(STREAMED, [(5, 2)])
    noise = torch.randn(1, 4, 4, 4, 6, generator=torch.Generator().manual_seed(10))
    found = []
    for model in (correct, legacy):
        loop, chunks = ChunkLoop(model, RolloutPlan(visibility, (1.0,)), text, cache="ring"), []
        for own in (slice(0, 2), slice(2, 4)):
            chunks.append(loop.denoise(noise[:, own], cameras[own]))
            loop.commit(noise[:, own] * 0.5, cameras[own])
        found.append(chunks)
    torch.testing.assert_close(found[0][0], found[1][0])
    assert (found[0][1] - found[1][1]).norm() > 2e-3 * found[0][1].norm()


def test_a_joint_model_refuses_to_stream():
    model = randomised(HunyuanModel(SMALL))
    mask = FrameMask(Visibility(chunk=1).frame_mask(2), model.tokens_per_frame(4, 6))
    context = model.text_context(prompt(SMALL, [(5, 2)]))
    with pytest.raises(WorldlineError, match="decoupled"):
        model(torch.randn(1, 2, 4, 4, 6), torch.rand(1, 2), context, mask=mask)


def test_a_prompt_of_another_encoder_is_refused():
    with pytest.raises(ShapeError, match="13 or 6 tokens of width 16"):
        decoupled().text_context(TextEmbedding(torch.randn(1, 5, 16), torch.ones(1, 5, dtype=torch.bool)))


def test_no_graph_breaks_and_no_host_syncs():
    model = decoupled("fused")
    context, cameras = model.text_context(prompt(STREAMED, [(5, 2)])), walk(2, batch=1)
    x, sigma = torch.randn(1, 2, 4, 4, 6), torch.full((1, 2), 0.5)
    with torch.no_grad():
        wanted = model(x, sigma, context, cameras=cameras)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, sigma, context, cameras=cameras), wanted, atol=1e-5, rtol=1e-5)
