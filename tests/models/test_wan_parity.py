"""The Wan transformer in both published layouts against diffusers', live and frozen in golden files.

`wan2.1` is told one timestep a clip, `wan2.2` one a token; ours takes one noise level a latent frame in either. The golden
files come from diffusers, by `python -m tests.models.test_wan_parity`; they hold what came out, as weights and inputs
are drawn anew by numpy, which promises that RandomState never changes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldline.models.wan import WAN_VARIANTS, WanConfig, WanModel
from worldline.schema import TextEmbedding

GOLDEN = Path(__file__).parent / "golden"
EVERY = 5  # a golden file holds every 5th value of an output
TEXT = dict(text_dim=32, text_len=12)
SMALL = {
    # 24 is a third of a head each for time, row and column; of 16, time has half
    "wan2.1": WanConfig(dim=48, ffn_dim=80, num_heads=2, num_layers=3, **TEXT),
    "wan2.2": WanConfig(dim=48, ffn_dim=72, num_heads=3, num_layers=3, in_channels=48, out_channels=48, **TEXT),
}
# Latent frames, patch rows, patch columns, batch.
SHAPES = [(1, 3, 5, 2), (3, 5, 1, 1), (5, 1, 3, 1)]


@dataclass
class Inputs:
    """What both models are given."""

    x: Tensor  # [B, T, C, H, W]
    sigma: Tensor  # [B, T]
    text: TextEmbedding
    weight: Tensor  # of every output value in the scalar whose gradient is compared


def seeded(model: nn.Module) -> nn.Module:
    """Every parameter redrawn, biases, norms and the head too."""
    random = np.random.RandomState(0)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = 0.12 * torch.from_numpy(random.standard_normal(p.shape)).float()
            p.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return model.eval()


def inputs(name: str, T: int, rows: int, cols: int, batch: int) -> Inputs:
    """Drawn for one layout: `wan2.2` has another noise level in every frame, the first of them clean."""
    cfg, random = SMALL[name], np.random.RandomState(1)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(random.standard_normal(shape)).float()

    x, weight = normal(2, batch, T, cfg.in_channels, 2 * rows, 2 * cols)
    sigma = torch.from_numpy(random.uniform(0.05, 1, (batch, T))).float()
    if name == "wan2.2" and T > 1:
        sigma[:, 0] = 0
    if name == "wan2.1":
        sigma = sigma[:, :1].expand(-1, T)
    mask = torch.arange(cfg.text_len) < cfg.text_len - 5
    return Inputs(
        x, sigma, TextEmbedding(normal(batch, cfg.text_len, cfg.text_dim), mask.expand(batch, -1), ""), weight
    )


def oracle(cfg: WanConfig) -> nn.Module:
    """diffusers' transformer of the same sizes."""
    diffusers = pytest.importorskip("diffusers", reason="parity with diffusers needs diffusers; golden files do not")
    return diffusers.WanTransformer3DModel(
        patch_size=cfg.patch_size,
        num_attention_heads=cfg.num_heads,
        attention_head_dim=cfg.head_dim,
        in_channels=cfg.in_channels,
        out_channels=cfg.out_channels,
        text_dim=cfg.text_dim,
        freq_dim=cfg.freq_dim,
        ffn_dim=cfg.ffn_dim,
        num_layers=cfg.num_layers,
        cross_attn_norm=True,
        rope_max_seq_len=1024,
    )


def theirs_of(model: nn.Module, name: str, given: Inputs) -> Tensor:
    """diffusers' velocity in our layout: prompts padded with zeros, a timestep a clip (`wan2.1`) or a token."""
    timestep = 1000 * given.sigma
    if name == "wan2.1":
        timestep = timestep[:, 0]
    else:
        timestep = timestep.repeat_interleave(given.x.shape[-1] * given.x.shape[-2] // 4, dim=1)
    text = given.text.tokens * given.text.mask[..., None]
    return model(given.x.transpose(1, 2), timestep, text, return_dict=False)[0].transpose(1, 2)


def ours_of(model: nn.Module, given: Inputs) -> Tensor:
    return model(given.x, given.sigma, model.text_context(given.text))


def gradients(model: nn.Module, given: Inputs, out: Tensor) -> dict[str, Tensor]:
    """Of the weighted sum of an output, by all parameters, the latents and the prompt."""
    (out * given.weight).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    return {**found, "latents": given.x.grad, "prompt": given.text.tokens.grad}


def learning(given: Inputs) -> Inputs:
    """The same inputs, as leaves of a graph of their own."""
    text = replace(given.text, tokens=given.text.tokens.clone().requires_grad_())
    return replace(given, x=given.x.clone().requires_grad_(), text=text)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_velocity_equals_diffusers(name, shape):
    theirs, ours, given = seeded(oracle(SMALL[name])), WanModel(SMALL[name]).eval(), inputs(name, *shape)
    ours.load_state_dict(theirs.state_dict(), strict=True)  # the key names are diffusers' own
    wanted = theirs_of(theirs, name, given)
    assert wanted.std() > 0.1
    torch.testing.assert_close(ours_of(ours, given), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "clock"), [("wan2.1", "wan2.2"), ("wan2.2", "wan2.1")])
@torch.no_grad()
def test_velocity_equals_diffusers_under_the_clock_of_the_other(name, clock, shape):
    """A noise level a frame in Wan2.1's layout, as causal students of it are trained; one a clip in Wan2.2's."""
    theirs, ours, given = seeded(oracle(SMALL[name])), WanModel(SMALL[name]).eval(), inputs(name, *shape)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    given = replace(given, sigma=inputs(clock, *shape).sigma)
    torch.testing.assert_close(ours_of(ours, given), theirs_of(theirs, clock, given), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 3, 3, 1), (3, 3, 1, 2), (5, 1, 3, 1)])
@pytest.mark.parametrize("name", SMALL)
def test_gradients_equal_diffusers(name, shape):
    theirs, ours, given = seeded(oracle(SMALL[name])), seeded(WanModel(SMALL[name])), inputs(name, *shape)
    one, two = learning(given), learning(given)
    wanted = gradients(theirs, one, theirs_of(theirs, name, one))
    got = gradients(ours, two, ours_of(ours, two))
    assert got.keys() == wanted.keys()
    far = {
        key: float((got[key] - value).norm() / value.norm())
        for key, value in wanted.items()
        if (got[key] - value).norm() > 1e-4 * value.norm()
    }
    assert far == {}


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_equals_the_golden_file(name):
    golden, model = load_file(GOLDEN / f"{name}.safetensors"), seeded(WanModel(SMALL[name]))
    for shape in SHAPES:
        got = ours_of(model, inputs(name, *shape)).flatten()[::EVERY]
        torch.testing.assert_close(got, golden["velocity_" + "_".join(map(str, shape))], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_equal_the_golden_file(name):
    golden, model = load_file(GOLDEN / f"{name}.safetensors"), seeded(WanModel(SMALL[name]))
    given = learning(inputs(name, *SHAPES[1]))
    found = gradients(model, given, ours_of(model, given))
    norms = torch.stack([found[key].norm() for key in sorted(found)])
    torch.testing.assert_close(norms, golden["gradient_norms"], atol=0, rtol=1e-4)


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_bf16_stays_within_two_percent(name):
    model = seeded(WanModel(SMALL[name]))
    for shape in SHAPES:
        given = inputs(name, *shape)
        fine = ours_of(model, given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = ours_of(model, given)
        assert rough.dtype == torch.float32
        assert 0 < (rough - fine).square().mean().sqrt() < 0.02 * fine.square().mean().sqrt()
        assert (rough - fine).abs().max() < 0.02 * fine.abs().max()


PUBLISHED = {
    # parameters, keys, digest of diffusers' keys and shapes
    "wan2.1-t2v-1.3b": (1_418_996_800, 825, "b2eaf9531529e021"),
    "wan2.2-ti2v-5b": (4_999_787_712, 825, "4914beb830dd70d0"),
}


def digest(model: nn.Module) -> str:
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_has_the_published_parameters(name):
    parameters, keys, names = PUBLISHED[name]
    with torch.device("meta"):
        model = WanModel(WAN_VARIANTS[name])
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == keys
    assert digest(model) == names


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_has_the_keys_of_diffusers(name):
    with torch.device("meta"):
        theirs = oracle(WAN_VARIANTS[name])
    assert digest(theirs) == PUBLISHED[name][2]


def test_the_camera_branch_adds_one_projection_a_block():
    cfg = WAN_VARIANTS["wan2.1-t2v-1.3b"]
    with torch.device("meta"):
        base, fused, branch = (WanModel(replace(cfg, camera=c)).state_dict() for c in ("none", "fused", "branch"))
    assert fused.keys() == base.keys()
    assert len(branch) == 885
    assert all("prope_o" in key for key in branch.keys() - base.keys())


def write_golden_files() -> None:
    """Freeze what diffusers gives."""
    for name in SMALL:
        model, tensors = seeded(oracle(SMALL[name])), {}
        for shape in SHAPES:
            with torch.no_grad():
                velocity = theirs_of(model, name, inputs(name, *shape))
            tensors["velocity_" + "_".join(map(str, shape))] = velocity.flatten()[::EVERY].contiguous()
        given = learning(inputs(name, *SHAPES[1]))
        found = gradients(model, given, theirs_of(model, name, given))
        tensors["gradient_norms"] = torch.stack([found[key].norm() for key in sorted(found)]).detach()
        GOLDEN.mkdir(exist_ok=True)
        save_file(tensors, GOLDEN / f"{name}.safetensors")


if __name__ == "__main__":
    write_golden_files()
