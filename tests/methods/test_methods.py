"""What every method must keep: leaks, roles, gradients, forwards, and two real steps on real classes."""

from __future__ import annotations

import pytest
import torch

from worldline.functional.masks import Visibility
from worldline.methods.base import Rng
from worldline.methods.consistency import ConsistencyConfig
from worldline.methods.diffusion_forcing import DiffusionForcingConfig
from worldline.methods.dmd import DMDConfig
from worldline.methods.finetune import FinetuneConfig
from worldline.methods.noise import drawn_index, table_levels
from worldline.methods.ode import ODEConfig, OdeTrajectories, generate_trajectories
from worldline.methods.teacher_forcing import TeacherForcingConfig
from worldline.rollout.plan import RolloutPlan
from worldline.rollout.teacher_forcing import teacher_forced_velocity
from worldline.schema import WorldlineError
from worldline.train.loop import TrainConfig, Trainer

VISIBLE = Visibility(chunk=1, prefix=1, window=4)
QUICK = TrainConfig(steps=2, batch_size=2, save_every=2, log_every=1, warmup=1, lr=1e-3)


@pytest.mark.parametrize("camera", ["branch", "fused"])
@pytest.mark.parametrize("kind", ["finetune", "teacher_forcing", "diffusion_forcing", "consistency", "dmd", "ode"])
def test_two_real_steps(tiny_wan, clips, empty, tmp_path, camera, kind):
    data = clips
    if kind == "finetune":
        method = FinetuneConfig().build(tiny_wan(camera), empty)
    elif kind == "teacher_forcing":
        method = TeacherForcingConfig(context_noise=0.1).build(tiny_wan(camera), VISIBLE, empty)
    elif kind == "diffusion_forcing":
        method = DiffusionForcingConfig().build(tiny_wan(camera), VISIBLE, empty)
    elif kind == "consistency":
        method = ConsistencyConfig(grid_steps=8).build(tiny_wan(camera), tiny_wan(camera), VISIBLE, empty)
    elif kind == "dmd":
        plan = RolloutPlan.few_step(VISIBLE)
        method = DMDConfig(critic_updates=2).build(*(tiny_wan(camera) for _ in range(3)), plan, empty)
    else:
        cfg = ODEConfig(euler_steps=4, clips=4, clips_per_batch=2)
        generate_trajectories(tiny_wan(camera), clips, empty, VISIBLE, cfg, tmp_path / "ode")
        method, data = cfg.build(tiny_wan(camera), VISIBLE), OdeTrajectories(tmp_path / "ode", clips)
    trained = {p.role for p in method.phases}
    before = {r: {k: v.clone() for k, v in m.state_dict().items()} for r, m in method.roles.items()}
    result = Trainer(method, data, QUICK, tmp_path / "run").fit()
    assert result.finished
    for role, module in method.roles.items():
        moved = any(not torch.equal(v, before[role][k]) for k, v in module.state_dict().items())
        assert moved is (role in trained or role in getattr(method, "moving_roles", ())), role


@torch.no_grad()
def test_teacher_forcing_does_not_leak_the_answer(tiny_wan, clips):
    model, batch = tiny_wan("fused"), clips.select([0, 1])
    x0, context = batch.latents, model.text_context(batch.text)
    noisy, sigma = torch.randn_like(x0), torch.rand(2, 5)

    def velocity(clean):
        return teacher_forced_velocity(
            model, clean, noisy, sigma, context, cameras=batch.cameras, visibility=Visibility(chunk=2, prefix=1)
        )

    base = velocity(x0)
    for j in range(5):
        changed = x0.clone()
        changed[:, j] += 1
        moved = (velocity(changed) - base).abs().amax(dim=(0, 2, 3, 4)) > 1e-6
        chunk_end = 1 if j == 0 else 3 if j < 3 else 5
        assert moved.tolist() == [t >= chunk_end for t in range(5)], f"clean frame {j}"


def test_phases_train_their_own_role_alone(tiny_wan, clips, empty):
    nets = [tiny_wan("fused") for _ in range(3)]
    method = DMDConfig().build(*nets, RolloutPlan.few_step(VISIBLE), empty)
    batch = clips.select([0, 1])
    for phase, own in zip(method.phases, (0, 2), strict=True):
        for net in nets:
            net.zero_grad(set_to_none=True)
        phase.loss(batch, Rng(0, 0))["loss"].backward()
        has = [any(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters()) for net in nets]
        assert has == [i == own for i in range(3)], phase.name


def test_forwards_of_a_rollout(tiny_wan, clips, empty):
    net = tiny_wan()
    method = DMDConfig().build(net, tiny_wan(), tiny_wan(), RolloutPlan.few_step(VISIBLE), empty)
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    exits = []
    for step in range(12):
        calls.clear()
        with torch.no_grad():
            method.rollout(clips.select([0, 1]), Rng(0, step), grad=False)
        # one prefix pass; four chunks of k + 1 denoising passes; a commit after each but the last
        exits.append((len(calls) - 1 - 3) // 4 - 1)
        assert len(calls) == 1 + 4 * (exits[-1] + 1) + 3
    assert set(exits) == {0, 1, 2, 3}


def test_given_frames_are_not_scored(tiny_wan, clips, empty):
    model, batch = tiny_wan(), clips.select([0, 1])
    method = TeacherForcingConfig(text_dropout=0).build(model, VISIBLE, empty)
    scored: list[torch.Tensor] = []
    model.register_forward_hook(lambda m, args, out: scored.append(out.retain_grad() or out))
    method.loss(batch, Rng(0, 0))["loss"].backward()
    grad = scored[0].grad[:, 5:].abs().amax(dim=(0, 2, 3, 4))
    assert grad[0] == 0
    assert (grad[1:] > 0).all()


def test_trajectories_are_kept_and_resumed(tiny_wan, clips, empty, tmp_path):
    cfg = ODEConfig(euler_steps=4, clips=6, clips_per_batch=2)
    seen: list[tuple[int, int]] = []
    generate_trajectories(tiny_wan(), clips, empty, VISIBLE, cfg, tmp_path, progress=lambda *a: seen.append(a))
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert seen[-1] == (6, 6)
    generate_trajectories(tiny_wan(), clips, empty, VISIBLE, cfg, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == stamps
    with pytest.raises(WorldlineError, match="multiple"):
        ODEConfig(euler_steps=6)


def test_levels_are_drawn_as_published():
    """research/minwm 13: HunyuanVideo's logit-normal levels under shift 3."""
    index = drawn_index((1_000_000,), "logit_normal", torch.Generator().manual_seed(0))
    sigma = table_levels(index, 3.0).double()
    assert sigma.mean().item() == pytest.approx(0.7134, abs=2e-3)
    found = sigma.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([0.366, 0.75, 0.940], dtype=torch.float64), atol=3e-3, rtol=0)
    even = drawn_index((100_000,), "uniform", torch.Generator().manual_seed(0)).double()
    assert even.mean().item() == pytest.approx(499.5, abs=3)


class Listener(torch.nn.Module):
    """A score that says how the noise was mixed and what it was told of it. roles need parameters."""

    def __init__(self, net):
        super().__init__()
        self.net, self.heard = net, []

    def text_context(self, text):
        return self.net.text_context(text)

    def forward(self, x, sigma, *args, **kwargs):
        self.heard.append((x.detach(), sigma.detach()))
        return self.net(x, sigma, *args, **kwargs)


@pytest.mark.parametrize("clock", ["level", "index"])
@pytest.mark.parametrize("levels", ["all", "exit"])
def test_both_clocks_of_the_scores(tiny_wan, clips, empty, clock, levels):
    """minWM's HunyuanVideo line: raw ~ U[step k + 1, step k] of (1000, 750, 500, 250, 0), mixed at shift_5(raw / 1000), told
    1000 - raw where 1000 shift_5(raw / 1000) is meant (900 -> 100 for 978.3)."""
    real, fake = Listener(tiny_wan()), Listener(tiny_wan())
    options = {"score_clock": clock, "score_levels": levels, "band": (0.0, 1.0)}
    plan = RolloutPlan.few_step(VISIBLE)
    method = DMDConfig(**options).build(tiny_wan(), real, fake, plan, empty)
    batch, raw_of = clips.select([0, 1]), {}
    for step in range(8):
        rng, k = Rng(0, step), method._exit_step(Rng(0, step))
        for loss in (method.generator_loss, method.critic_loss):
            real.heard.clear()
            fake.heard.clear()
            loss(batch, rng)
            for x, told in [*real.heard, *fake.heard]:
                assert (told[:, 0] == 0).all()  # the given frame
                assert torch.equal(x[:2, 0], batch.latents[:2, 0])
                raw = 1 - told[:, 1:] if clock == "index" else told[:, 1:] / (5 - 4 * told[:, 1:])
                raw_of.setdefault(k, []).append(raw)
        # Mixed at the true level whatever is told: x_t - level eps has no noise left.
        x0 = method.rollout(batch, rng, grad=False).detach()
        x, told = fake.heard[0]
        level = method._renoise(x0, rng)[1]
        eps = rng.randn_like(x0, "score noise")
        torch.testing.assert_close(
            x[:, 1:], ((1 - level[..., None, None, None]) * x0 + level[..., None, None, None] * eps)[:, 1:]
        )
        wanted = 1 - level / (5 - 4 * level) if clock == "index" else level
        torch.testing.assert_close(told[:, 1:], wanted[:, 1:], atol=1e-5, rtol=1e-5)
    assert len(raw_of) > 1
    for k, raws in raw_of.items():
        raw = torch.cat(raws)
        inside = ((raw >= 0.75 - 0.25 * k - 1e-5) & (raw <= 1 - 0.25 * k + 1e-5)).all()
        assert inside or levels == "all"
    if levels == "all":
        assert not all(
            ((torch.cat(r) >= 0.75 - 0.25 * k) & (torch.cat(r) <= 1 - 0.25 * k)).all() for k, r in raw_of.items()
        )


def test_the_clock_that_runs_backwards_in_published_numbers(tiny_wan, empty):
    plan = RolloutPlan.few_step(VISIBLE)
    method = DMDConfig(score_clock="index").build(tiny_wan(), tiny_wan(), tiny_wan(), plan, empty)
    true = torch.tensor([[978.2609, 937.5, 833.3333, 625.0, 357.1429]]) / 1000
    torch.testing.assert_close(
        1000 * method._told(true), torch.tensor([[100.0, 250, 500, 750, 900]]), atol=1e-2, rtol=0
    )
