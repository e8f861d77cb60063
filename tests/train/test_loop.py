"""Resume equals uninterrupted, to the bit; nothing saved is lost; nothing bad is saved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from worldline.methods.base import Phase, Rng
from worldline.schema import WorldlineError
from worldline.train.checkpoint import checkpoints, load_checkpoint
from worldline.train.config import TrainConfig
from worldline.train.log import read_log
from worldline.train.loop import NonFiniteError, Trainer
from worldline.train.observers import Silent
from worldline.train.optim import lr_factor, make_optimizer


class Numbers:
    """Batches of random numbers by counter."""

    def batch(self, seed: int, step: int, batch_size: int, device: str = "cpu") -> torch.Tensor:
        return torch.randn(batch_size, 6, generator=torch.Generator().manual_seed(seed * 1000 + step))


class Toy:
    """Two networks with phases of different pace, and a target that follows one of them."""

    moving_roles = ("target",)

    def __init__(self, bad_steps: tuple[int, ...] = ()) -> None:
        torch.manual_seed(0)
        self.a, self.b, self.target = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)
        self.roles = {"a": self.a, "b": self.b, "target": self.target}
        self.phases = (Phase("first", "a", self._loss(self.a), every=2), Phase("second", "b", self._loss(self.b)))
        self.bad_steps = bad_steps

    def _loss(self, net):
        def loss(batch, rng: Rng):
            noise = torch.randn(batch.shape, generator=rng.generator("noise"))
            value = (net(batch + noise) - self.target(batch)).square().mean()
            return {"loss": value * float("nan") if rng.step // 2 in self.bad_steps else value}

        return loss

    def after_step(self, step: int) -> None:
        with torch.no_grad():
            self.target.weight.lerp_(self.b.weight, 0.1)


def config(**changes) -> TrainConfig:
    base = dict(steps=8, batch_size=4, lr=1e-2, warmup=3, save_every=4, log_every=1, precision="fp32", ema_decay=0.9)
    return TrainConfig(**{**base, **changes})


def run(run_dir: Path, cfg: TrainConfig, **kw):
    trainer = Trainer(Toy(**kw), Numbers(), cfg, run_dir)
    return trainer, trainer.fit()


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    out = {f"{r}.{k}": v for r, m in trainer.method.roles.items() for k, v in m.state_dict().items()}
    return out | {f"ema.{r}.{k}": v for r, e in trainer.emas.items() for k, v in e.state().items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_equals_uninterrupted(tmp_path, precision):
    whole, _ = run(tmp_path / "whole", config(precision=precision))

    class Stop(Exception):
        pass

    def stop_at_six(step, steps, last):
        if step == 6:
            raise Stop  # a crash two steps after the checkpoint

    part = Trainer(Toy(), Numbers(), config(precision=precision), tmp_path / "part", progress=stop_at_six)
    with pytest.raises(Stop):
        part.fit()
    again, result = run(tmp_path / "part", config(precision=precision))
    assert result.finished
    for key, value in everything(whole).items():
        assert torch.equal(value, everything(again)[key]), key
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "part")


def test_accumulation_equals_a_larger_batch(tmp_path):
    class Plain(Toy):
        def _loss(self, net):
            return lambda batch, rng: {"loss": (net(batch) - self.target(batch)).square().mean()}

    class Double(Numbers):
        def batch(self, seed, step, batch_size, device="cpu"):
            return torch.cat([super(Double, self).batch(seed, 2 * step + i, batch_size // 2) for i in range(2)])

    one = Trainer(Plain(), Double(), config(batch_size=8), tmp_path / "one")
    two = Trainer(Plain(), Numbers(), config(accumulation=2), tmp_path / "two")
    one.fit(), two.fit()
    for key, value in everything(one).items():
        torch.testing.assert_close(value, everything(two)[key], atol=1e-6, rtol=1e-5)


def test_slow_phase_runs_at_its_pace(tmp_path):
    run(tmp_path, config())
    assert ["first/loss" in row for row in read_log(tmp_path)] == [step % 2 == 0 for step in range(8)]


def test_nonfinite_updates_are_skipped_and_too_many_stop_the_run(tmp_path):
    trainer, result = run(tmp_path / "some", config(), bad_steps=(2,))
    assert result.finished
    assert all(torch.isfinite(v).all() for v in everything(trainer).values())
    with pytest.raises(NonFiniteError, match="lower lr"):
        run(tmp_path / "many", config(max_nonfinite=3), bad_steps=tuple(range(8)))


def test_a_torn_checkpoint_is_ignored_and_old_ones_are_dropped(tmp_path):
    run(tmp_path, config(steps=8, save_every=2, keep=2))
    kept = checkpoints(tmp_path / "checkpoints")
    assert [p.name for p in kept] == ["step-00000006", "step-00000008"]
    (kept[1] / "state.json").unlink()
    trainer, _ = run(tmp_path, config(steps=8, save_every=2))
    assert trainer.step == 8
    (kept[0] / "optimizers.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(WorldlineError, match="delete that folder"):
        load_checkpoint(kept[0])


CHILD = """
import os, sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
from tests.train.test_loop import *

def slow(step, steps, last):
    print(step, flush=True)
    time.sleep(0.05)

trainer = Trainer(Toy(), Numbers(), config(steps=40), Path({run!r}), progress=slow)
print("finished", trainer.fit().finished, flush=True)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_killed_runs_go_on_where_they_were(tmp_path, signum):
    code = textwrap.dedent(CHILD.format(paths=[p for p in (os.getcwd(), *sys.path) if p], run=str(tmp_path / "killed")))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if line.strip() == "13":
            child.send_signal(signum)
            break
    rest = child.stdout.read()
    child.wait(timeout=60)
    saved = json.loads((checkpoints(tmp_path / "killed" / "checkpoints")[-1] / "state.json").read_text())["step"]
    if signum == signal.SIGTERM:
        assert "finished False" in rest
        assert saved >= 13
    else:
        assert saved == 12
    again, _ = run(tmp_path / "killed", config(steps=40))
    whole, _ = run(tmp_path / "whole", config(steps=40))
    for key, value in everything(whole).items():
        assert torch.equal(value, everything(again)[key]), key


def test_learning_rate_follows_its_schedule():
    cfg = config(steps=103, warmup=3, schedule="cosine", final_lr=0.1)
    assert [lr_factor(s, cfg) for s in range(3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert lr_factor(53, cfg) == pytest.approx(0.55)
    assert lr_factor(103, cfg) == pytest.approx(0.1)


def test_counters_make_streams_apart():
    draws = {
        Rng(*args).generator(stream).initial_seed()
        for args in [(0, 0), (1, 0), (0, 1), (0, 0, 1), (0, 0, 0, 1)]
        for stream in ("noise", "level")
    }
    assert len(draws) == 10


class Blocks(nn.Module):
    """A network with matrices inside and outside of blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.blocks = nn.Linear(6, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = h + block(h).tanh()
        return h


def test_muon_takes_the_matrices_of_blocks_and_moves_all_their_directions_alike():
    net = Blocks()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = make_optimizer(net, 1e-2, config(optimizer="muon", weight_decay=0.0))
    net(torch.randn(64, 6, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    optimizer.step()
    for i, block in enumerate(net.blocks):
        moved = torch.linalg.svdvals(net.state_dict()[f"blocks.{i}.weight"] - before[f"blocks.{i}.weight"])
        gradient = torch.linalg.svdvals(block.weight.grad)
        assert moved.median() > 0.5 * moved.max() > 0, "Newton-Schulz makes singular values about one"
        assert gradient.median() < 0.35 * gradient.max(), "which those of the gradient are not"
    outside = net.state_dict()["embed.weight"] - before["embed.weight"]
    torch.testing.assert_close(outside.abs(), torch.full_like(outside, 1e-2), rtol=1e-3, atol=1e-6)  # Adam's first step


def test_muon_resumes_from_its_state():
    def steps(net, optimizer, first, last):
        for i in range(first, last):
            net(torch.randn(16, 6, generator=torch.Generator().manual_seed(i))).square().mean().backward()
            optimizer.step(), optimizer.zero_grad()

    cfg = config(optimizer="muon")
    whole, part, again = Blocks(), Blocks(), Blocks()
    steps(whole, make_optimizer(whole, 1e-2, cfg), 0, 4)
    first = make_optimizer(part, 1e-2, cfg)
    steps(part, first, 0, 2)
    again.load_state_dict(part.state_dict())
    second = make_optimizer(again, 1e-2, cfg)
    second.load_state_dict(first.state_dict())
    steps(again, second, 2, 4)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_observers_see_every_update_and_add_to_the_log(tmp_path):
    class Watch(Silent):
        def __init__(self) -> None:
            self.seen, self.before = [], None

        def before_update(self, update):
            self.before = update.roles[update.role].weight.detach().clone()
            assert update.roles[update.role].weight.grad is not None

        def after_update(self, update):
            moved = (update.roles[update.role].weight - self.before).detach().norm()
            self.seen.append((update.step, update.phase, update.applied, float(moved) > 0))
            return {"moved": moved}

    watch = Watch()
    Trainer(Toy(bad_steps=(2,)), Numbers(), config(steps=4), tmp_path, observers=[watch]).fit()
    assert watch.seen == [
        (0, "first", True, True),
        (0, "second", True, True),
        (1, "second", True, True),
        (2, "first", False, False),
        (2, "second", False, False),
        (3, "second", True, True),
    ]
    assert all(row["second/moved"] > 0 for row in read_log(tmp_path) if row["step"] != 2)
