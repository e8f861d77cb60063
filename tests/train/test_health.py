"""Every illness is planted and found; healthy runs of every method are left in peace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.methods.conftest import TinyClips
from tests.train.test_loop import Numbers, Toy, config
from torch import nn

from worldline.functional.masks import Visibility
from worldline.methods.consistency import ConsistencyConfig
from worldline.methods.dmd import DMDConfig
from worldline.methods.finetune import FinetuneConfig
from worldline.methods.ode import ODEConfig, OdeTrajectories, generate_trajectories
from worldline.methods.teacher_forcing import TeacherForcingConfig
from worldline.models.lora import LoRARole, add_lora
from worldline.rollout.plan import RolloutPlan
from worldline.schema import TextEmbedding, WorldlineError
from worldline.train.config import TrainConfig
from worldline.train.ema import EMA
from worldline.train.health import Health, HealthConfig, findings
from worldline.train.log import read_log, read_notes
from worldline.train.loop import Trainer
from worldline.train.samples import Samples

VISIBLE = Visibility(chunk=1, prefix=1, window=4)
LOOK_ALWAYS = HealthConfig(every=1)
EMPTY = TextEmbedding(torch.zeros(1, 6, 8), torch.ones(1, 6, dtype=torch.bool), "random")


class SmoothClips(TinyClips):
    """Clips that change slowly, as films do."""

    def select(self, index):
        batch = super().select(index)
        return replace(batch, latents=batch.latents[:, :1] + 0.2 * batch.latents.cumsum(dim=1))


def watched(tmp_path, method, data=None, *, steps=10, health=LOOK_ALWAYS, **changes):
    """Train under health's eyes; returns (kinds found, health)."""
    settings = dict(steps=steps, batch_size=2, log_every=1, save_every=100, warmup=2, lr=1e-3, precision="fp32")
    told = []
    watch = Health(health, tmp_path, moving_roles=getattr(method, "moving_roles", ()), tell=told.append)
    Trainer(method, data or SmoothClips(), TrainConfig(**{**settings, **changes}), tmp_path, observers=[watch]).fit()
    assert told == watch.findings == findings(tmp_path)
    return {f.kind for f in told}, watch


def build(kind, tiny_wan, tmp_path, camera="fused", **options):
    """A method on tiny networks, with what it trains on."""
    if kind == "finetune":
        return FinetuneConfig(**options).build(tiny_wan(camera, motion=True), EMPTY), SmoothClips()
    if kind == "teacher_forcing":
        return TeacherForcingConfig(context_noise=0.1).build(tiny_wan(camera), VISIBLE, EMPTY), SmoothClips()
    if kind == "consistency":
        cfg = ConsistencyConfig(grid_steps=8, **options)
        return cfg.build(tiny_wan(camera), tiny_wan(camera), VISIBLE, EMPTY), SmoothClips()
    if kind == "dmd":
        plan = RolloutPlan.few_step(VISIBLE, 2)
        cfg = DMDConfig(critic_updates=2, **options)
        return cfg.build(*(tiny_wan(camera) for _ in range(3)), plan, EMPTY), SmoothClips()
    cfg = ODEConfig(steps=2, euler_steps=4, clips=4, clips_per_batch=2)
    generate_trajectories(tiny_wan(camera), SmoothClips(), EMPTY, VISIBLE, cfg, tmp_path / "ode")
    return cfg.build(tiny_wan(camera), VISIBLE), OdeTrajectories(tmp_path / "ode", SmoothClips())


@pytest.mark.parametrize("kind", ["finetune", "teacher_forcing", "ode", "consistency", "dmd"])
def test_a_healthy_run_is_left_in_peace(tiny_wan, tmp_path, kind):
    method, data = build(kind, tiny_wan, tmp_path)
    found, watch = watched(tmp_path / "run", method, data, steps=40 if kind == "dmd" else 14)
    assert not found, [str(f) for f in watch.findings]


def test_a_healthy_discriminator_is_left_in_peace(tiny_wan, tmp_path):
    method, data = build("dmd", tiny_wan, tmp_path, gan_weight=0.01)
    found, watch = watched(tmp_path, method, data, steps=10)
    assert "discriminator" in method.roles
    assert not found, [str(f) for f in watch.findings]


@pytest.mark.parametrize("camera", ["branch", "plucker", "cross"])
def test_branches_that_start_silent_are_left_in_peace(tiny_wan, tmp_path, camera):
    model = tiny_wan(camera, motion=True, actions=10)
    model.silence()
    found, watch = watched(tmp_path, FinetuneConfig().build(model, EMPTY))
    assert not found, [str(f) for f in watch.findings]


def test_watching_changes_nothing_that_is_learnt(tiny_wan, tmp_path):
    weights = []
    for watch in (True, False):
        method, data = build("dmd", tiny_wan, tmp_path)
        observers = [Health(LOOK_ALWAYS, tmp_path / f"{watch}")] if watch else []
        cfg = TrainConfig(steps=3, batch_size=2, warmup=1, lr=1e-3)
        Trainer(method, data, cfg, tmp_path / f"{watch}", observers=observers).fit()
        weights.append(method.roles["generator"].state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_looks_are_logged_at_their_steps(tiny_wan, tmp_path):
    method, data = build("dmd", tiny_wan, tmp_path)
    watched(tmp_path / "run", method, data, steps=8, health=HealthConfig(every=4))
    rows = read_log(tmp_path / "run")
    assert [row["step"] for row in rows if "generator/health/update_ratio" in row] == [0, 4]
    assert [row["step"] for row in rows if "critic/health/update_ratio" in row] == [0, 4]
    assert {"generator/grad_norm", "critic/grad_norm"} <= rows[0].keys()
    last = rows[4]
    assert 0 < last["generator/health/update_ratio"] < 0.1
    assert last["generator/health/update_share"] > 0.9
    assert 0 < last["generator/health/ema_distance"] < 0.1
    assert last["generator/health/camera_poses"] > 0
    assert {f"generator/health/{kind}/{k}" for kind in ("std", "shift") for k in range(4)} <= last.keys()


# -- not a number --------------------------------------------------------------------------------------------------


def test_a_damaged_clip_is_named(tiny_wan, tmp_path):
    class Damaged(SmoothClips):
        def batch(self, seed, step, batch_size, device="cpu"):
            batch = super().batch(seed, step, batch_size)
            if step == 3:
                batch.latents[1, 2, 0, 0, 0] = float("nan")
            return replace(batch, ids=("clip-a", "clip-b"))

    method, _ = build("finetune", tiny_wan, tmp_path)
    found, watch = watched(tmp_path, method, Damaged(), steps=5)
    assert found == {"not a number"}
    assert watch.findings[0].step == 3
    assert "clip-b" in watch.findings[0].seen
    assert "clip-a" not in watch.findings[0].seen


def test_a_loss_that_is_no_number_is_told_once(tmp_path):
    found, watch = watched(tmp_path, Toy(bad_steps=(2, 5)), Numbers(), steps=8)
    assert found == {"not a number"}
    assert [(f.where, f.step) for f in watch.findings] == [("first", 2), ("second", 2)]
    assert "lower train.lr" in watch.findings[0].mend


def test_a_layer_whose_gradient_overflows_is_named(tiny_wan, tmp_path):
    method, data = build("finetune", tiny_wan, tmp_path)
    layer = method.model.blocks[1].ffn
    layer.register_full_backward_hook(lambda m, gin, gout: tuple(g * float("inf") for g in gin))
    found, watch = watched(tmp_path, method, data, steps=2)
    assert found == {"not a number"}
    assert "though the loss is" in watch.findings[0].seen
    assert "gradient of" in watch.findings[0].seen


# -- averages that stand -------------------------------------------------------------------------------------------


def test_an_average_that_is_never_updated(tmp_path, monkeypatch):
    monkeypatch.setattr(EMA, "update", lambda self, module: None)
    found, watch = watched(tmp_path, Toy(), Numbers())
    assert found == {"frozen EMA"}
    assert "fp32" in watch.findings[0].mend


def test_an_average_in_bf16_is_told_though_it_is_updated(tmp_path, monkeypatch):
    old, start = EMA.update, EMA.__init__

    def rounded(self, module):
        self.shadow = {k: v.bfloat16().float() for k, v in self.shadow.items()}
        old(self, module)
        self.shadow = {k: v.bfloat16().float() for k, v in self.shadow.items()}

    def grown(self, module, decay):
        start(self, module, decay)
        self.updates = 100_000
        self.shadow = {k: v.bfloat16().float() for k, v in self.shadow.items()}

    monkeypatch.setattr(EMA, "__init__", grown)
    monkeypatch.setattr(EMA, "update", rounded)
    found, _ = watched(tmp_path, Toy(), Numbers(), lr=1e-5, ema_decay=0.9999, schedule="constant")
    assert found == {"frozen EMA"}


def test_a_consistency_target_that_does_not_follow(tiny_wan, tmp_path):
    method, data = build("consistency", tiny_wan, tmp_path)
    method.after_step = lambda step: None
    found, watch = watched(tmp_path, method, data)
    assert found == {"frozen EMA"}
    assert "moving target" in watch.findings[0].seen


# -- cameras that do not arrive ------------------------------------------------------------------------------------


def test_a_camera_branch_that_is_cut_off(tiny_wan, tmp_path):
    method, data = build("finetune", tiny_wan, tmp_path, camera="branch")
    for block in method.model.blocks:
        block.attn1.prope_o.register_forward_hook(lambda m, args, out: out.detach())
    found, watch = watched(tmp_path, method, data)
    assert found == {"dead camera branch"}
    assert "camera's poses" in watch.findings[0].seen


def test_motion_behind_two_zero_layers_never_wakes(tiny_wan, tmp_path):
    method, data = build("finetune", tiny_wan, tmp_path)
    embedder = method.model.condition_embedder.motion_embedder
    for p in embedder.parameters():
        nn.init.zeros_(p)
    embedder.linear_2.bias.requires_grad_(False)
    found, watch = watched(tmp_path, method, data)
    assert found == {"dead camera branch"}
    assert "camera's motion" in watch.findings[0].seen
    assert "camera's poses" not in watch.findings[0].seen


def test_lora_that_leaves_a_silent_branch_frozen(tiny_wan, tmp_path):
    base = tiny_wan("branch")
    base.silence()
    add_lora(base, 2, adapter="student")
    found, _ = watched(tmp_path, FinetuneConfig().build(LoRARole(base, "student"), EMPTY))
    assert found == {"dead camera branch"}


def test_cameras_that_the_method_withholds(tiny_wan, tmp_path):
    method, data = build("finetune", tiny_wan, tmp_path, camera="branch", use_cameras=False)
    found, watch = watched(tmp_path, method, data)
    assert found == {"dead camera branch"}
    assert "layers that steer" in watch.findings[0].seen


def test_a_base_without_cameras_is_left_in_peace(tiny_wan, tmp_path):
    found, _ = watched(tmp_path, FinetuneConfig(use_cameras=False).build(tiny_wan("none"), EMPTY))
    assert not found


# -- critics -------------------------------------------------------------------------------------------------------


def test_a_critic_that_runs_away(tiny_wan, tmp_path):
    method, data = build("dmd", tiny_wan, tmp_path)
    found, watch = watched(tmp_path, method, data, steps=24, role_lr={"fake": 0.5}, schedule="constant")
    assert "critic collapse" in found
    assert next(f for f in watch.findings if f.kind == "critic collapse").where == "critic"


def test_a_critic_that_does_not_learn(tiny_wan, tmp_path):
    method, data = build("dmd", tiny_wan, tmp_path)
    found, watch = watched(tmp_path, method, data, role_lr={"fake": 0.0})
    assert found == {"critic collapse"}
    assert "role_lr" in watch.findings[0].mend


def test_a_critic_that_becomes_its_teacher(tiny_wan, tmp_path):
    method, data = build("dmd", tiny_wan, tmp_path, guidance=1.0)
    with torch.no_grad():
        for p in method.fake.parameters():
            p.add_(0.1 * torch.randn_like(p))
    old = method.critic_loss

    def cheating(batch, rng):
        if rng.step > 30:
            method.fake.load_state_dict(method.real.state_dict())
        return old(batch, rng)

    method.phases = (replace(method.phases[0], every=1), replace(method.phases[1], loss=cheating))
    found, watch = watched(tmp_path, method, data, steps=27, role_lr={"fake": 1e-7}, lr=1e-6)
    assert "critic collapse" in found
    assert watch.findings[0].where == "generator"
    assert "distillation gradient fell" in watch.findings[0].seen


# -- rollouts and students -----------------------------------------------------------------------------------------


def test_rollouts_that_grow_louder_with_every_chunk(tiny_wan, tmp_path):
    method, data = build("dmd", tiny_wan, tmp_path)
    plain = method.generator.forward

    def louder(x, sigma, text, *, cache=None, **seen):
        v = plain(x, sigma, text, cache=cache, **seen)
        level = sigma[..., None, None, None].clamp_min(1e-3)
        return v if cache is None else v - 0.8 * cache.frames * (x - level * v) / level  # x0 grows with every frame

    method.generator.forward = louder
    found, watch = watched(tmp_path, method, data, steps=14, lr=1e-6)
    assert found == {"exposure drift"}
    assert "contrast" in watch.findings[0].seen


def test_a_consistency_student_that_starts_to_flicker(tiny_wan, tmp_path):
    method, data = build("consistency", tiny_wan, tmp_path)
    plain, calls = method.model.forward, []

    def flickering(x, sigma, text, *, positions, **seen):
        calls.append(1)
        sign = (1 - 2 * (positions % 2)).float()[None, :, None, None, None]
        return plain(x, sigma, text, positions=positions, **seen) + 0.8 * len(calls) * sign

    method.model.forward = flickering
    found, watch = watched(tmp_path, method, data, steps=14)
    assert found == {"flicker"}
    assert "target_decay" in watch.findings[0].mend


# -- samples -------------------------------------------------------------------------------------------------------


def film(flicker: float = 0.0, fade: float = 0.0, seed: int = 0) -> np.ndarray:
    """Textured clips [2, 12, 8, 8, 3] whose light sways slowly; flicker: of every other frame; fade: of contrast."""
    rng = np.random.default_rng(seed)
    texture, t = rng.uniform(-60, 60, (2, 1, 8, 8, 3)), np.arange(12)
    gain = 1 - fade * t / 11
    light = 8 * np.sin(t / 2) + flicker * (-1.0) ** t
    frames = 128 + texture * gain[None, :, None, None, None] + light[None, :, None, None, None]
    return frames.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("fault", "kind"), [({}, None), ({"flicker": 10}, "flicker"), ({"fade": 0.8}, "exposure drift")]
)
def test_samples_are_measured_and_kept(tmp_path, fault, kind):
    health = Health(
        HealthConfig(every=0, sample_every=2, budget=1.0),
        tmp_path,
        play=lambda: Samples(film(**fault), film(), {"psnr": 20.0}),
    )
    Trainer(Toy(), Numbers(), config(steps=5), tmp_path, observers=[health]).fit()
    health.finish(5)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [f"step-{n:08d}.png" for n in (2, 4, 5)]
    figures = [line for line in read_notes(tmp_path) if "samples/flicker" in line]
    assert len(figures) == 3
    assert figures[0]["samples/psnr"] == 20.0
    assert [f.kind for f in health.findings] == ([kind] if kind else [])


def test_one_bad_sample_on_the_way_is_no_illness(tmp_path):
    films = iter([film(flicker=10), film(), film()])
    health = Health(
        HealthConfig(every=0, sample_every=2, budget=1.0), tmp_path, play=lambda: Samples(next(films), film())
    )
    Trainer(Toy(), Numbers(), config(steps=5), tmp_path, observers=[health]).fit()
    health.finish(5)
    assert not health.findings


def test_samples_keep_to_their_budget(tmp_path):
    played = []
    health = Health(HealthConfig(every=0, sample_every=2, budget=0.0), tmp_path, play=lambda: played.append(1))
    Trainer(Toy(), Numbers(), config(steps=5), tmp_path, observers=[health]).fit()
    assert not played


def test_resuming_tells_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(EMA, "update", lambda self, module: None)
    watched(tmp_path, Toy(), Numbers(), steps=6)
    told = []
    again = Health(LOOK_ALWAYS, tmp_path, tell=told.append)
    Trainer(Toy(), Numbers(), TrainConfig(steps=12, batch_size=2, lr=1e-3), tmp_path, observers=[again]).fit()
    assert len(again.findings) == 2
    assert not told


def test_options_out_of_range_are_refused():
    with pytest.raises(WorldlineError, match="budget"):
        HealthConfig(budget=2.0)
