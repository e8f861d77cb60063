"""A diffusers transformer as teacher answers as our own model with its weights, and says what it cannot do."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.conftest import random_cameras, randomise

from worldline.functional.masks import Visibility
from worldline.methods.base import Rng
from worldline.methods.dmd import DMDConfig
from worldline.methods.guided import guided_teacher_velocity
from worldline.models.diffusers_teacher import DiffusersTeacher, TeacherCall, TeacherError
from worldline.models.wan import WanModel
from worldline.nn.kv_cache import BlockCache
from worldline.rollout.bidirectional import sample
from worldline.rollout.plan import RolloutPlan
from worldline.schema import LatentBatch, ShapeError, TextEmbedding
from worldline.train.loop import TrainConfig, Trainer

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

WAN = dict(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8, freq_dim=16, ffn_dim=48,
    num_layers=2, rope_max_seq_len=32,
)  # fmt: skip
EMPTY = TextEmbedding(torch.zeros(1, 6, 8), torch.ones(1, 6, dtype=torch.bool), "random")


def twin(model: WanModel) -> Any:
    """diffusers' transformer with our model's weights."""
    theirs = diffusers.WanTransformer3DModel(**WAN)
    theirs.load_state_dict(model.state_dict())
    return theirs


def clips(batch: int = 2, frames: int = 3) -> LatentBatch:
    g = torch.Generator().manual_seed(0)
    mask = torch.tensor([True] * 4 + [False] * 2).expand(batch, -1)
    text = TextEmbedding(torch.randn(batch, 6, 8, generator=g), mask, "random")
    return LatentBatch(torch.randn(batch, frames, 4, 4, 6, generator=g), text, random_cameras(batch, frames))


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_equals_our_model(tiny_wan, per_frame, mixed):
    ours, batch = tiny_wan(), clips()
    teacher = DiffusersTeacher(twin(ours), per_frame=per_frame)
    sigma = torch.tensor([[0.3], [0.8]]).expand(2, 3).clone()
    if mixed:
        sigma[:, 0] = 0.0
        if not per_frame:
            with pytest.raises(TeacherError, match=r"sigma differs.*per_frame=True"):
                teacher(batch.latents, sigma, teacher.text_context(batch.text))
            return
    v = teacher(batch.latents, sigma, teacher.text_context(batch.text), cameras=batch.cameras)
    assert v.dtype == torch.float32
    with torch.no_grad():
        expected = ours(batch.latents, sigma, ours.text_context(batch.text))
    torch.testing.assert_close(v, expected, atol=1e-5, rtol=0)
    assert teacher.tokens_per_frame(4, 6) == ours.tokens_per_frame(4, 6)


@pytest.mark.parametrize("prefix", [0, 1])
def test_dmd_step_equals_our_model_as_real_score(tiny_wan, prefix):
    """Losses and student gradients of a whole step; a given first frame asks for per-frame levels."""
    real = randomise(tiny_wan(), seed=7).eval()
    plan, grads = RolloutPlan.few_step(Visibility(chunk=3 - prefix, prefix=prefix)), []
    for teacher in (real, DiffusersTeacher(twin(real), per_frame=prefix > 0)):
        student = tiny_wan("fused")
        method = DMDConfig().build(student, teacher, tiny_wan(), plan, EMPTY)
        out = method.generator_loss(clips(), Rng(0, 0))
        out["loss"].backward()
        grads.append([out["loss"], out["gradient"], *(p.grad for p in student.parameters() if p.grad is not None)])
    assert grads[0][1] > 0.1
    torch.testing.assert_close(grads[1], grads[0], atol=1e-5, rtol=1e-4)


def test_guided_ode_solution_equals_our_model(tiny_wan):
    ours, batch = tiny_wan(), clips()
    plan = RolloutPlan.multi_step(Visibility(chunk=3), steps=4, guidance=3.0, solver="euler")
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    ends = [
        sample(model, plan, noise, batch.text, negative=EMPTY.expand(2))
        for model in (ours, DiffusersTeacher(twin(ours)))
    ]
    assert (ends[0] - noise).abs().max() > 0.1
    torch.testing.assert_close(ends[1], ends[0], atol=1e-5, rtol=1e-5)


def test_trains_as_the_frozen_role_of_a_run(tiny_wan, tmp_path):
    real = twin(tiny_wan())
    before = {k: v.clone() for k, v in real.state_dict().items()}
    teacher = DiffusersTeacher(real)
    method = DMDConfig(critic_updates=1).build(
        tiny_wan("fused"), teacher, tiny_wan(), RolloutPlan.few_step(Visibility(chunk=3)), EMPTY
    )

    class Same:
        def batch(self, *_: object) -> LatentBatch:
            return clips()

    cfg = TrainConfig(steps=1, batch_size=2, warmup=1, log_every=1)  # bf16: autocast does not reach the teacher
    assert Trainer(method, Same(), cfg, tmp_path).fit().finished
    assert not real.training
    assert not any(p.requires_grad for p in real.parameters())
    assert all(torch.equal(v, before[k]) for k, v in real.state_dict().items())
    with pytest.raises(TeacherError, match="frozen"):
        teacher.requires_grad_(True)


def test_autocast_does_not_reach_it(tiny_wan):
    teacher, batch = DiffusersTeacher(twin(tiny_wan())), clips()
    sigma, text = torch.full((2, 3), 0.4), teacher.text_context(batch.text)
    with torch.autocast("cpu", torch.bfloat16):
        inside = teacher(batch.latents, sigma, text)
    assert torch.equal(inside, teacher(batch.latents, sigma, text))


def test_says_what_it_cannot_do(tiny_wan):
    ours, batch = tiny_wan(), clips()
    teacher = DiffusersTeacher(twin(ours))
    x, sigma, text = batch.latents, torch.full((2, 3), 0.4), teacher.text_context(batch.text)
    visible = Visibility(chunk=1)
    with pytest.raises(TeacherError, match=r"a cache.*bidirectional teacher has none"):
        teacher(x, sigma, text, cache=BlockCache(visible))
    with pytest.raises(TeacherError, match=r"a mask.*bidirectional teacher has none"):
        guided_teacher_velocity(teacher, x, x, sigma, batch.text, EMPTY, None, visible, 3.0)
    with pytest.raises(TeacherError, match=r"positions \[4, 5, 6\]"):
        teacher(x, sigma, text, positions=torch.arange(4, 7))
    with pytest.raises(TeacherError, match="no cache"):
        teacher.reanchor(BlockCache(visible), torch.eye(4)[None])
    with pytest.raises(ShapeError, match="another model"), torch.no_grad():
        teacher(x, sigma, ours.text_context(batch.text))
    with pytest.raises(ShapeError, match="text of width 9"):
        teacher.text_context(TextEmbedding(torch.zeros(1, 6, 9), torch.ones(1, 6, dtype=torch.bool)))
    with pytest.raises(ShapeError, match="5 channels: this teacher expects 4"):
        teacher(torch.zeros(2, 3, 5, 4, 6), sigma, text)
    with pytest.raises(ShapeError, match="3x5x6 does not divide"):
        teacher(torch.zeros(2, 3, 4, 5, 6), sigma, text)
    with pytest.raises(ShapeError, match="one noise level"):
        teacher(x, sigma[:, :1], text)


def test_folders(tiny_wan, tmp_path):
    theirs, batch = twin(tiny_wan()), clips()
    theirs.save_pretrained(tmp_path / "wan" / "transformer")
    (tmp_path / "wan" / "model_index.json").write_text(json.dumps({"expand_timesteps": True}))
    sigma = torch.full((2, 3), 0.4)

    def velocity(teacher: DiffusersTeacher) -> torch.Tensor:
        return teacher(batch.latents, sigma, teacher.text_context(batch.text))

    whole, alone = (DiffusersTeacher.from_pretrained(tmp_path / "wan" / part) for part in ("", "transformer"))
    assert (whole.per_frame, alone.per_frame) == (True, False)
    assert torch.equal(velocity(whole), velocity(DiffusersTeacher(theirs)))
    assert torch.equal(velocity(alone), velocity(whole))
    half = velocity(DiffusersTeacher.from_pretrained(tmp_path / "wan", dtype=torch.bfloat16))
    assert half.dtype == torch.float32
    error = float((half - velocity(whole)).norm() / velocity(whole).norm())
    assert 0 < error < 0.03

    with pytest.raises(TeacherError, match=r"no config\.json"):
        DiffusersTeacher.from_pretrained(tmp_path / "Wan-AI" / "Wan2.1-T2V-1.3B-Diffusers")
    (tmp_path / "wan" / "model_index.json").write_text(json.dumps({"boundary_ratio": 0.875}))
    with pytest.raises(TeacherError, match=r"two experts.*0\.875"):
        DiffusersTeacher.from_pretrained(tmp_path / "wan")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"_class_name": "NotAThing"}))
    with pytest.raises(TeacherError, match="'NotAThing' is not in diffusers"):
        DiffusersTeacher.from_pretrained(tmp_path / "odd")


def ltx() -> Any:
    return randomise(
        diffusers.LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=1,
            caption_channels=8,
        )
    )


def test_ltx(tiny_wan):
    """Per-frame levels through per-token clocks; the prompt's padding is masked; one frame moved moves all."""
    teacher, batch = DiffusersTeacher(ltx(), per_frame=True), clips()
    text, level = teacher.text_context(batch.text), torch.full((2, 3), 0.4)
    v = teacher(batch.latents, level, text)
    direct = teacher.transformer(
        batch.latents.permute(0, 1, 3, 4, 2).reshape(2, 3 * 4 * 6, 4), text.layers[0][0], torch.full((2,), 400.0),
        batch.text.mask, num_frames=3, height=4, width=6, rope_interpolation_scale=(8 / 25, 32, 32), return_dict=False,
    )[0]  # fmt: skip
    torch.testing.assert_close(v, direct.view(2, 3, 4, 6, 4).permute(0, 1, 4, 2, 3), atol=1e-6, rtol=0)
    mixed = level.clone()
    mixed[:, 0] = 0.0
    assert (teacher(batch.latents, mixed, text) - v).abs().amax(dim=(0, 2, 3, 4)).min() > 1e-5
    faster = DiffusersTeacher(teacher.transformer, inputs=lambda _: {"rope_interpolation_scale": (8 / 8, 32, 32)})
    assert (faster(batch.latents, level, text) - v).abs().max() > 1e-5


def test_hunyuan_video():
    model = randomise(
        diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            patch_size=2,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=8,
            pooled_projection_dim=6,
            rope_axes_dim=(2, 2, 4),
        )
    )
    batch, sigma = clips(), torch.full((2, 3), 0.4)
    bare = DiffusersTeacher(model)
    with pytest.raises(TeacherError, match=r"pooled_projections.*guidance"):
        bare(batch.latents, sigma, bare.text_context(batch.text))
    with pytest.raises(TeacherError, match="one noise level a clip"):
        DiffusersTeacher(model, per_frame=True)

    def inputs(text: Any) -> dict[str, torch.Tensor]:
        B = len(text.layers[0][0])
        return {"pooled_projections": torch.ones(B, 6), "guidance": torch.full((B,), 6000.0)}

    teacher = DiffusersTeacher(model, inputs=inputs)
    text = teacher.text_context(batch.text)
    direct = model(
        batch.latents.transpose(1, 2), torch.full((2,), 400.0), text.layers[0][0], batch.text.mask, **inputs(text),
        return_dict=False,
    )[0].transpose(1, 2)  # fmt: skip
    torch.testing.assert_close(teacher(batch.latents, sigma, text), direct, atol=1e-6, rtol=0)


class Doubler(torch.nn.Module):
    """A transformer that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))


def test_any_other_model_through_a_function():
    batch = clips()

    def ask(model: torch.nn.Module, call: TeacherCall) -> torch.Tensor:
        return model.weight * call.x + call.clock[:, None, None, None, None]

    with pytest.raises(TeacherError, match=r"Doubler is no transformer known.*ask="):
        DiffusersTeacher(Doubler())
    teacher = DiffusersTeacher(Doubler(), ask=ask)
    v = teacher(batch.latents, torch.full((2, 3), 0.5), teacher.text_context(batch.text))
    torch.testing.assert_close(v, 2 * batch.latents + 500)
    crooked = DiffusersTeacher(Doubler(), ask=lambda _, call: call.x[:, :1])
    with pytest.raises(ShapeError, match="expected the same"):
        crooked(batch.latents, torch.full((2, 3), 0.5), teacher.text_context(batch.text))
