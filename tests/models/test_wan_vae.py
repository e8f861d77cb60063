"""The Wan autoencoders against diffusers' (live, and frozen in golden files), streamed against whole.

The golden files come from diffusers, by `python -m tests.models.test_wan_vae`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from worldline.models.wan_vae import WAN_VAE_VARIANTS, WanVAE, WanVAEConfig
from worldline.schema import ShapeError, WorldlineError

GOLDEN = Path(__file__).parent / "golden"
EVERY = 7  # a golden file holds every 7th value of a video
WAN21 = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.1, -0.2, 0.3, 0.4],
    "latents_std": [1.5, 0.7, 2.0, 1.0],
}
WAN22 = {
    **WAN21,
    "decoder_base_dim": 16,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
SMALL = {"wan2.1": WAN21, "wan2.2": WAN22}


def seeded(model: nn.Module) -> nn.Module:
    """Every parameter redrawn, biases and norms too. numpy promises that RandomState never changes."""
    random = np.random.RandomState(0)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.from_numpy(random.standard_normal(p.shape)).float()
            p.copy_(1 + 0.2 * noise if name.endswith("gamma") else 0.12 * noise)
            if name.startswith("decoder.conv_out"):
                p.mul_(0.2)  # few pixels clamp
    return model.eval()


def drawn(*shape: int, seed: int = 1) -> Tensor:
    """Values in [-1, 1]."""
    return torch.from_numpy(np.random.RandomState(seed).uniform(-1, 1, shape)).float()


def oracle(name: str) -> nn.Module:
    """diffusers' autoencoder, small and seeded."""
    diffusers = pytest.importorskip("diffusers", reason="parity with diffusers needs diffusers; golden files do not")
    return seeded(diffusers.AutoencoderKLWan(**SMALL[name]))


def statistics(name: str) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(SMALL[name][key])[:, None, None] for key in ("latents_mean", "latents_std"))
    return mean, std


def encoded(theirs: nn.Module, name: str, video: Tensor) -> Tensor:
    """Normalised latents of diffusers' codec, in our layout."""
    mean, std = statistics(name)
    return (theirs.encode(video.transpose(1, 2)).latent_dist.mode().transpose(1, 2) - mean) / std


def decoded(theirs: nn.Module, name: str, latents: Tensor) -> Tensor:
    """Video of diffusers' codec, in our layout."""
    mean, std = statistics(name)
    return theirs.decode((latents * std + mean).transpose(1, 2)).sample.transpose(1, 2)


def small(name: str) -> WanVAE:
    return seeded(WanVAE(WanVAEConfig.from_diffusers(SMALL[name])))


@pytest.fixture(params=SMALL)
def codec(request) -> WanVAE:
    return small(request.param)


def streamed(step, pieces, state=None) -> list[Tensor]:
    parts = []
    for piece in pieces:
        part, state = step(piece, state)
        parts.append(part)
    return parts


@pytest.mark.parametrize(("frames", "H", "W", "batch"), [(1, 2, 1, 1), (5, 2, 3, 1), (9, 3, 2, 2)])
@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_equals_diffusers(name, frames, H, W, batch):
    theirs = oracle(name)
    ours = WanVAE(WanVAEConfig.from_diffusers(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)  # the key names are diffusers' own
    video = drawn(batch, frames, 3, H * ours.spatial, W * ours.spatial)
    wanted = encoded(theirs, name, video)
    assert wanted.shape == (batch, (frames + 3) // 4, 4, H, W)
    torch.testing.assert_close(ours.encode(video), wanted, atol=1e-5, rtol=0)
    latents = 2 * drawn(*wanted.shape, seed=2)
    wanted = decoded(theirs, name, latents)
    assert wanted.std() > 0.1
    assert (wanted.abs() == 1).float().mean() < 0.2
    torch.testing.assert_close(ours.decode(latents), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_equals_the_golden_file(name):
    golden, ours = load_file(GOLDEN / f"vae_{name}.safetensors"), small(name)
    video = drawn(1, 9, 3, 2 * ours.spatial, ours.spatial)
    torch.testing.assert_close(ours.encode(video), golden["encoded"], atol=1e-5, rtol=0)
    got = ours.decode(golden["latents"])
    torch.testing.assert_close(got.flatten()[::EVERY], golden["decoded"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [[1] * 6, [1, 2, 3], [2] * 3, [3] * 2])
@torch.no_grad()
def test_streamed_equals_whole(codec, sizes):
    s = codec.spatial
    latents = 2 * drawn(2, 6, 4, 2, 1)
    parts = streamed(codec.decode_stream, latents.split(sizes, dim=1))
    counts = [4 * sizes[0] - 3] + [4 * n for n in sizes[1:]]
    assert [part.shape[1] for part in parts] == counts
    torch.testing.assert_close(torch.cat(parts, dim=1), codec.decode(latents), atol=1e-5, rtol=0)
    video = drawn(2, 21, 3, 2 * s, s)
    parts = streamed(codec.encode_stream, video.split(counts, dim=1))
    assert [part.shape[1] for part in parts] == sizes
    torch.testing.assert_close(torch.cat(parts, dim=1), codec.encode(video), atol=1e-5, rtol=0)


@torch.no_grad()
def test_interleaved_sessions_equal_sequential_ones(codec):
    s = codec.spatial
    clips = {"wide": drawn(1, 9, 3, s, 2 * s, seed=3), "tall": drawn(2, 9, 3, 2 * s, s, seed=4)}
    latents = {k: codec.encode(v) for k, v in clips.items()}
    alone = {k: codec.decode(z) for k, z in latents.items()}
    states: dict = {(k, way): None for k in clips for way in ("encode", "decode")}
    got: dict = {key: [] for key in states}
    for t, frames in enumerate((slice(0, 1), slice(1, 5), slice(5, 9))):
        for k in clips:
            for way, step, piece in (
                ("encode", codec.encode_stream, clips[k][:, frames]),
                ("decode", codec.decode_stream, latents[k][:, t : t + 1]),
            ):
                out, states[k, way] = step(piece, states[k, way])
                got[k, way].append(out)
    for k in clips:
        torch.testing.assert_close(torch.cat(got[k, "encode"], dim=1), latents[k], atol=0, rtol=0)
        torch.testing.assert_close(torch.cat(got[k, "decode"], dim=1), alone[k], atol=0, rtol=0)


@torch.no_grad()
def test_a_stream_forks_and_rewinds(codec):
    start, one, other = 2 * drawn(3, 1, 2, 4, 1, 1)
    _, state = codec.decode_stream(start, None)
    kept = [memory.clone() for memory in state]
    assert all(m.untyped_storage().nbytes() == m.numel() * 4 for m in state)  # and holds on to no activation
    first, _ = codec.decode_stream(one, state)
    second, _ = codec.decode_stream(other, state)
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(kept, state, strict=True))  # a call changes no state it was given
    torch.testing.assert_close(codec.decode_stream(one, state)[0], first, atol=0, rtol=0)
    whole = codec.decode(torch.cat([start, other], dim=1))
    torch.testing.assert_close(second, whole[:, 5:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_later_pixels_and_latents_change_nothing_earlier(codec):
    s = codec.spatial
    video = drawn(1, 9, 3, s, s)
    later = video.clone()
    later[:, 5:] *= -1  # frame 5 opens latent 2
    changed = (codec.encode(later) - codec.encode(video)).abs().amax(dim=(0, 2, 3, 4)) > 0
    assert changed.tolist() == [False, False, True]
    latents = drawn(1, 3, 4, 1, 1)
    other = latents.clone()
    other[:, 2] *= -1
    changed = (codec.decode(other) - codec.decode(latents)).abs().amax(dim=(0, 2, 3, 4)) > 0
    assert changed.tolist() == [False] * 5 + [True] * 4


@torch.no_grad()
def test_half_precision_keeps_the_dtype_of_what_goes_in(codec):
    latents = drawn(1, 2, 4, 2, 2)
    fine = codec.decode(latents)
    rough, state = codec.bfloat16().decode_stream(latents, None)
    assert rough.dtype == torch.float32
    assert all(memory.dtype == torch.bfloat16 for memory in state)
    assert 0 < (rough - fine).square().mean() < 1e-3
    assert codec.encode(fine[:, :1].bfloat16()).dtype == torch.bfloat16


PUBLISHED = {
    # millions of encoder and decoder, parameters of all, spatial, channels, digest of diffusers' keys and shapes
    "wan2.1": (53.6, 73.3, 126_892_531, 8, 16, "d7d79a2ea173562d"),
    "wan2.2": (149.6, 555.0, 704_688_668, 16, 48, "4c6e07d0953e2b95"),
}


def digest(model: nn.Module) -> str:
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", WAN_VAE_VARIANTS)
def test_full_size_has_the_published_parameters(name):
    encoder, decoder, every, spatial, channels, keys = PUBLISHED[name]
    with torch.device("meta"):
        codec = WanVAE(WAN_VAE_VARIANTS[name])
    millions = [round(sum(p.numel() for p in half.parameters()) / 1e6, 1) for half in (codec.encoder, codec.decoder)]
    assert millions == [encoder, decoder]
    assert sum(p.numel() for p in codec.parameters()) == every
    assert (codec.spatial, codec.latent_channels, codec.grid.stride) == (spatial, channels, 4)
    assert digest(codec) == keys


# Of one 480 x 832 stream: TFLOP to decode the first latent and any later one, MiB of bf16 state to decode and to encode.
COSTS = {"wan2.1": (1.70, 13.55, 1801, 1069), "wan2.2": (3.79, 29.39, 1359, 448)}


@pytest.mark.parametrize("name", WAN_VAE_VARIANTS)
@torch.no_grad()
def test_full_size_costs_of_a_stream(name):
    with torch.device("meta"):
        codec = WanVAE(WAN_VAE_VARIANTS[name])
        latent = torch.empty(1, 1, codec.latent_channels, 480 // codec.spatial, 832 // codec.spatial)
        _, encoding = codec.encode_stream(torch.empty(1, 1, 3, 480, 832), None)
        decoding, flops = None, []
        for frames in (1, 4):
            with FlopCounterMode(display=False) as counter:
                video, decoding = codec.decode_stream(latent, decoding)
            flops.append(round(counter.get_total_flops() / 1e12, 2))
            assert video.shape == (1, frames, 3, 480, 832)
    sizes = [round(sum(memory.numel() for memory in state) * 2 / 2**20) for state in (decoding, encoding)]
    assert (*flops, *sizes) == COSTS[name]


def test_full_size_reads_the_published_config():
    diffusers = pytest.importorskip("diffusers", reason="compares with the defaults of diffusers")
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLWan()
    assert WanVAEConfig.from_diffusers(theirs.config) == WAN_VAE_VARIANTS["wan2.1"]


@torch.no_grad()
def test_built_without_memory_and_filled_with_weights_it_is_the_same(codec):
    with torch.device("meta"):
        empty = WanVAE(codec.config)
    empty.load_state_dict(codec.state_dict(), assign=True)
    latents = drawn(1, 1, 4, 1, 1)
    torch.testing.assert_close(empty.decode(latents), codec.decode(latents), atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.slow
def test_steady_decoding_compiles_to_one_graph():
    """The first chunk has its own graph, all others share one, and none breaks."""
    cfg = WanVAEConfig((0.0,), (1.0,), 4, 4, multipliers=(1, 1), halve_time=(True,), blocks=1, residual=True)
    codec, graphs = seeded(WanVAE(cfg)), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(codec.decode_stream, fullgraph=True, dynamic=False, backend=backend)
    latents = drawn(1, 4, 1, 2, 1)
    parts = streamed(step, latents.split(1, dim=1))
    torch.testing.assert_close(torch.cat(parts, dim=1), codec.decode(latents), atol=1e-5, rtol=0)
    assert len(graphs) == 2


@torch.no_grad()
def test_errors_name_the_value_and_the_mend(codec):
    s = codec.spatial
    with pytest.raises(
        ShapeError, match=f"{2 * s + 5} x {s} pixels.*divisible by {s}; crop or resize it to {2 * s} x {s}"
    ):
        codec.encode(torch.zeros(1, 1, 3, 2 * s + 5, s))
    with pytest.raises(ShapeError, match=rf"video \(1, 1, 4, {s}, {s}\): expected \[B, F, 3, h, w\]"):
        codec.encode(torch.zeros(1, 1, 4, s, s))
    with pytest.raises(WorldlineError, match="cut the clip to 5 frames"):
        codec.encode(torch.zeros(1, 8, 3, s, s))
    with pytest.raises(ShapeError, match=r"latents \(1, 1, 3, 2, 2\): expected \[B, T, 4, H, W\]"):
        codec.decode(torch.zeros(1, 1, 3, 2, 2))
    _, encoding = codec.encode_stream(torch.zeros(1, 1, 3, s, s), None)
    with pytest.raises(ShapeError, match="3 frames go on a stream; expected a multiple of 4"):
        codec.encode_stream(torch.zeros(1, 3, 3, s, s), encoding)
    with pytest.raises(ShapeError, match=r"memories for the .* of this decoder"):
        codec.decode_stream(torch.zeros(1, 1, 4, 1, 1), encoding)
    _, decoding = codec.decode_stream(torch.zeros(1, 1, 4, 1, 1), None)
    with pytest.raises(ShapeError, match=r"1 x 1 x 1.*cannot go on with 2 x 1 x 1.*state None"):
        codec.decode_stream(torch.zeros(2, 1, 4, 1, 1), decoding)


def test_wrong_configs_are_errors():
    with pytest.raises(WorldlineError, match="2 means and 1 deviations"):
        WanVAEConfig((0.0, 0.0), (1.0,), 8, 8)
    with pytest.raises(WorldlineError, match="halve_time has 3 entries; expected 1"):
        WanVAEConfig((0.0,), (1.0,), 8, 8, multipliers=(1, 2))
    with pytest.raises(WorldlineError, match=r"attn_scales \[1.0\]; expected none"):
        WanVAEConfig.from_diffusers({**WAN21, "attn_scales": [1.0]})


@torch.no_grad()
def write_golden_files() -> None:
    """Freeze what diffusers gives."""
    for name in SMALL:
        theirs = oracle(name)
        s = theirs.config.scale_factor_spatial
        latents = 2 * drawn(1, 3, 4, 2, 1, seed=2)
        tensors = {
            "latents": latents,
            "encoded": encoded(theirs, name, drawn(1, 9, 3, 2 * s, s)).contiguous(),
            "decoded": decoded(theirs, name, latents).flatten()[::EVERY].contiguous(),
        }
        GOLDEN.mkdir(exist_ok=True)
        save_file(tensors, GOLDEN / f"vae_{name}.safetensors")


if __name__ == "__main__":
    write_golden_files()
