"""The tiny autoencoder against a plain frame-by-frame reading of its published layout, whole against streamed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import randomise
from torch import Tensor

from worldline.models.tiny_vae import TINY_VAE_VARIANTS, TinyVAE, TinyVAEConfig
from worldline.schema import ShapeError, WorldlineError

SMALL = {
    "taew2_1": TinyVAEConfig(latent_channels=5, encoder_width=6, decoder_widths=(12, 8, 6, 4)),
    "taew2_2": TinyVAEConfig(latent_channels=6, patch=2, encoder_width=6, decoder_widths=(12, 8, 6, 4)),
}


@pytest.fixture(params=SMALL)
def codec(request) -> TinyVAE:
    return randomise(TinyVAE(SMALL[request.param])).eval()


class Reference:
    """The published decoder and encoder, one frame at a time through a graph of layers, from the state dict alone."""

    DECODER = ("clamp", "conv", "relu", *("mem",) * 3, "up", "grow", "conv", *("mem",) * 3, "up", "grow", "conv")
    DECODER += (*("mem",) * 3, "up", "grow", "conv", "relu", "conv")
    ENCODER = ("conv", "relu", *("pool", "down", "mem", "mem", "mem") * 3, "conv")

    def __init__(self, state: dict[str, Tensor], half: str) -> None:
        self.w = {k.removeprefix(half + "."): v for k, v in state.items() if k.startswith(half + ".")}
        self.kinds = self.DECODER if half == "decoder" else self.ENCODER
        self.kept: dict[int, list[Tensor]] = {}

    def conv(self, x: Tensor, name: str, **options: int) -> Tensor:
        return F.conv2d(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"), **options)

    def feed(self, x: Tensor, i: int = 0) -> list[Tensor]:
        """One frame [B, C, H, W] into layer i: the frames that fall out at the end."""
        if i == len(self.kinds):
            return [x]
        kind, outs = self.kinds[i], [x]
        if kind == "clamp":
            outs = [3 * torch.tanh(x / 3)]
        elif kind == "relu":
            outs = [x.relu()]
        elif kind == "conv":
            outs = [self.conv(x, str(i), padding=1)]
        elif kind == "down":
            outs = [self.conv(x, str(i), padding=1, stride=2)]
        elif kind == "up":
            outs = [x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)]
        elif kind == "grow":
            y = self.conv(x, f"{i}.conv")
            outs = list(y.split(x.shape[1], dim=1))
        elif kind == "pool":
            kept = self.kept.setdefault(i, [])
            kept.append(x)
            full = len(kept) * x.shape[1] == self.w[f"{i}.conv.weight"].shape[1]
            outs = [self.conv(torch.cat(kept, dim=1), f"{i}.conv")] if full else []
            self.kept[i] = [] if full else kept
        else:
            h = torch.cat([x, *self.kept.get(i, [torch.zeros_like(x)])], dim=1)
            self.kept[i] = [x]
            h = self.conv(self.conv(h, f"{i}.conv.0", padding=1).relu(), f"{i}.conv.2", padding=1).relu()
            outs = [(self.conv(h, f"{i}.conv.4", padding=1) + x).relu()]
        return [y for out in outs for y in self.feed(out, i + 1)]


@torch.no_grad()
def test_decodes_as_published(codec):
    z = 2 * torch.randn(2, 3, codec.latent_channels, 2, 3)
    reference = Reference(codec.state_dict(), "decoder")
    frames = [frame for latent in z.unbind(1) for frame in reference.feed(latent)]
    wanted = F.pixel_shuffle(torch.stack(frames, dim=1), codec.config.patch).clamp(0, 1)[:, 3:]  # the trim
    assert (wanted.shape[1], wanted.shape[3]) == (9, 2 * codec.spatial)
    assert ((wanted > 0) & (wanted < 1)).float().mean() > 0.1
    torch.testing.assert_close(codec.decode(z), 2 * wanted - 1, atol=1e-5, rtol=0)


@torch.no_grad()
def test_encodes_as_published(codec):
    video = torch.rand(2, 5, 3, 2 * codec.spatial, codec.spatial) * 2 - 1
    reference = Reference(codec.state_dict(), "encoder")
    frames = F.pixel_unshuffle((video + 1) / 2, codec.config.patch).unbind(1)
    wanted = torch.stack([z for frame in (*frames, *[frames[-1]] * 3) for z in reference.feed(frame)], dim=1)
    torch.testing.assert_close(codec.encode(video), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [[1] * 5, [2, 2, 1], [3, 2]])
@torch.no_grad()
def test_streamed_equals_whole(codec, sizes):
    z = torch.randn(2, 5, codec.latent_channels, 2, 3)
    state, parts = None, []
    for chunk in z.split(sizes, dim=1):
        video, state = codec.decode_stream(chunk, state)
        parts.append(video)
    assert [part.shape[1] for part in parts] == [4 * sizes[0] - 3] + [4 * n for n in sizes[1:]]
    torch.testing.assert_close(torch.cat(parts, dim=1), codec.decode(z), atol=1e-5, rtol=0)


@torch.no_grad()
def test_streams_interleave_fork_and_rewind(codec):
    a, b = torch.randn(2, 1, 3, codec.latent_channels, 2, 2).unbind()
    states, parts = {"a": None, "b": None}, {"a": [], "b": []}
    for t in range(3):
        for name, z in (("a", a), ("b", b)):
            video, states[name] = codec.decode_stream(z[:, t : t + 1], states[name])
            parts[name].append(video)
    for name, z in (("a", a), ("b", b)):
        torch.testing.assert_close(torch.cat(parts[name], dim=1), codec.decode(z), atol=1e-5, rtol=0)
    _, early = codec.decode_stream(a[:, :1], None)
    kept = [memory.clone() for memory in early]
    assert all(m.untyped_storage().nbytes() == m.numel() * 4 for m in early)  # and holds on to no activation
    one, _ = codec.decode_stream(a[:, 1:], early)
    other, _ = codec.decode_stream(b[:, 1:], early)
    assert all(torch.equal(x, y) for x, y in zip(kept, early, strict=True))
    assert not torch.equal(one, other)
    torch.testing.assert_close(codec.decode_stream(a[:, 1:], early)[0], one, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("name", "decoder", "spatial", "channels"), [("taew2_1", 9.84, 8, 16), ("taew2_2", 9.92, 16, 48)]
)
def test_published_sizes_and_keys(name, decoder, spatial, channels):
    with torch.device("meta"):
        codec = TinyVAE(TINY_VAE_VARIANTS[name])
    shapes = {k: tuple(v.shape) for k, v in codec.state_dict().items()}
    assert round(sum(p.numel() for p in codec.decoder.parameters()) / 1e6, 2) == decoder
    assert (codec.spatial, codec.latent_channels, codec.grid.stride) == (spatial, channels, 4)
    p = spatial // 8
    assert shapes["encoder.0.weight"] == (64, 3 * p * p, 3, 3)
    assert shapes["encoder.2.conv.weight"] == shapes["encoder.7.conv.weight"] == (64, 128, 1, 1)
    assert shapes["encoder.12.conv.weight"] == (64, 64, 1, 1)
    assert shapes["encoder.14.conv.4.bias"] == (64,)
    assert shapes["encoder.17.weight"] == (channels, 64, 3, 3)
    assert shapes["decoder.1.weight"] == (256, channels, 3, 3)
    assert shapes["decoder.3.conv.0.weight"] == (256, 512, 3, 3)
    assert shapes["decoder.7.conv.weight"] == (256, 256, 1, 1)
    assert shapes["decoder.13.conv.weight"] == (256, 128, 1, 1)
    assert shapes["decoder.19.conv.weight"] == (128, 64, 1, 1)
    assert shapes["decoder.20.weight"] == (64, 64, 3, 3)
    assert shapes["decoder.22.bias"] == (3 * p * p,)
    assert "decoder.8.bias" not in shapes


@torch.no_grad()
def test_half_precision_keeps_the_dtype_of_what_goes_in(codec):
    z = torch.randn(1, 2, codec.latent_channels, 2, 2)
    whole = codec.decode(z)
    rough, state = codec.bfloat16().decode_stream(z, None)
    assert rough.dtype == torch.float32
    assert state[0].dtype == torch.bfloat16
    assert 0 < (rough - whole).square().mean() < 1e-3


@torch.no_grad()
def test_errors_name_the_value_and_the_mend(codec):
    s, C = codec.spatial, codec.latent_channels
    with pytest.raises(ShapeError, match=f"{s + 3} x {s} pixels.*divisible by {s}; crop or resize it to {s} x {s}"):
        codec.encode(torch.zeros(1, 1, 3, s + 3, s))
    with pytest.raises(WorldlineError, match="cut the clip to 5 frames"):
        codec.encode(torch.zeros(1, 7, 3, s, s))
    with pytest.raises(ShapeError, match=rf"\(1, 1, 3, 2, 2\): expected \[B, T, {C}, H, W\]"):
        codec.decode(torch.zeros(1, 1, 3, 2, 2))
    _, state = codec.decode_stream(torch.zeros(1, 1, C, 2, 2), None)
    with pytest.raises(ShapeError, match=r"1 x 2 x 2.*cannot go on with 1 x 2 x 3"):
        codec.decode_stream(torch.zeros(1, 1, C, 2, 3), state)
    with pytest.raises(ShapeError, match="a state of 8 memories for the 9"):
        codec.decode_stream(torch.zeros(1, 1, C, 2, 2), state[1:])
    with pytest.raises(WorldlineError, match="expected four positive widths"):
        TinyVAEConfig(decoder_widths=(8, 8, 8))
