"""Moments in bf16: right in the mean, half the memory, resumed to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.train.jobs import in_turn, train
from tests.train.processes import together

from worldline.recipes.training import decisive
from worldline.schema import WorldlineError
from worldline.train import parallel
from worldline.train.config import TrainConfig
from worldline.train.log import read_log
from worldline.train.optimizers import SmallAdamW, random_bits, stochastic_bf16


def test_bits_are_even_and_follow_the_place_alone():
    bits = random_bits(1 << 16, 0, 5, torch.device("cpu"))
    ones = torch.stack([(bits >> k) & 1 for k in range(32)]).float().mean(dim=1)
    assert (ones - 0.5).abs().max() < 0.01
    assert len(bits.unique()) == len(bits)
    assert torch.equal(bits[1000:3000], random_bits(2000, 1000, 5, torch.device("cpu")))
    assert not torch.equal(bits, random_bits(1 << 16, 0, 6, torch.device("cpu")))
    pair = (bits & 0xFFFF).float(), (bits >> 16).float()  # one for either moment
    assert torch.corrcoef(torch.stack(pair))[0, 1].abs() < 0.02


def test_rounding_is_right_in_the_mean():
    bits = random_bits(40000, 0, 0, torch.device("cpu"))
    for value in (1.001, -1.001, 3e-7, 0.0):
        x = torch.full((40000,), value)
        rounded = stochastic_bf16(x, bits).float()
        assert len(rounded.unique()) <= 2
        assert rounded.mean().item() == pytest.approx(value, rel=2e-4)


def test_a_second_moment_moves_where_rounding_to_nearest_would_stop_it():
    p = torch.nn.Parameter(torch.zeros(1000))
    optimizer = SmallAdamW([p], lr=0.0, betas=(0.9, 0.999))
    for _ in range(1500):
        p.grad = torch.full_like(p, 1.0)
        optimizer.step()
    expected = 1 - 0.999**1500
    assert optimizer.state[p]["exp_avg_sq"].float().mean().item() == pytest.approx(expected, rel=0.02)


def trained(optimizer_class, steps=120, resume_at=None):
    """(weights, losses, optimizer) of a regression."""
    torch.manual_seed(0)
    net, x, losses = torch.nn.Linear(8, 8), torch.randn(64, 8), []
    optimizer = optimizer_class(net.parameters(), lr=0.02, weight_decay=0.01)
    for step in range(steps):
        if step == resume_at:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = optimizer_class(net.parameters(), lr=0.02, weight_decay=0.01)
            optimizer.load_state_dict(saved)
        optimizer.zero_grad()
        loss = (net(x) - x.flip(1)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return net.weight.detach(), losses, optimizer


def test_it_follows_adamw_with_half_the_moments():
    exact, losses, whole = trained(torch.optim.AdamW)
    mine, others, optimizer = trained(SmallAdamW)
    assert losses[0] > 1
    assert losses[-1] < 1e-3
    assert max(abs(a - b) for a, b in zip(losses, others, strict=True)) < 0.01 * losses[0]
    assert (mine - exact).abs().max() < 0.02
    held, small = (
        sum(t.nbytes for s in o.state.values() for k, t in s.items() if k != "step") for o in (whole, optimizer)
    )
    assert held == 2 * small == 2 * 2 * 2 * (64 + 8)


def test_a_resumed_run_is_the_same_run():
    assert torch.equal(trained(SmallAdamW)[0], trained(SmallAdamW, resume_at=50)[0])


def test_what_it_cannot_keep_is_refused():
    with pytest.raises(WorldlineError, match="bfloat16"):
        SmallAdamW([torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))])


def test_a_trainer_takes_them_as_an_option_that_no_finished_run_knows_of(tmp_path):
    exact, small = (train(str(tmp_path / m), "finetune", moments=m, steps=6) for m in ("fp32", "bf16"))
    for a, b in zip(exact["log"], small["log"], strict=True):
        assert b["flow/loss"] == pytest.approx(a["flow/loss"], rel=2e-3)
    assert small["log"][-1] != exact["log"][-1], "they are different optimizers"
    assert "moments" not in decisive(TrainConfig())
    assert decisive(TrainConfig(moments="bf16"))["moments"] == "bf16"
    with pytest.raises(WorldlineError, match="expected optimizer adamw or moments fp32"):
        TrainConfig(moments="bf16", optimizer="muon")


def test_a_run_with_them_resumes_from_its_checkpoint(tmp_path):
    options = {"moments": "bf16", "schedule": "constant"}
    whole = train(str(tmp_path / "whole"), "finetune", **options, steps=4)
    train(str(tmp_path / "part"), "finetune", **options, steps=2)
    part = train(str(tmp_path / "part"), "finetune", **options, steps=4)
    assert whole["log"] == part["log"]


def moments_of_rows(cut: bool):
    """Moments after three steps of a 7 x 5 matrix, cut by rows over all processes or whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    p = torch.nn.Parameter(torch.linspace(-1, 1, 35).view(7, 5))
    place = lambda x: distribute_tensor(x, init_device_mesh("cpu", (2,)), [Shard(0)]) if cut else x  # noqa: E731
    p = torch.nn.Parameter(place(p.detach()))
    optimizer = SmallAdamW([p], lr=0.1)
    for step in range(3):
        p.grad = place(torch.randn(7, 5, generator=torch.Generator().manual_seed(step)))
        optimizer.step()
    return [
        parallel.whole(t).clone() for t in (p.detach(), optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"])
    ]


@pytest.mark.timeout(900)
def test_cut_by_rows_every_number_is_rounded_as_in_one_piece():
    whole = moments_of_rows(cut=False)
    for found in together(2, moments_of_rows, True):
        assert all(torch.equal(a, b) for a, b in zip(whole, found, strict=True))


@pytest.mark.timeout(900)
def test_two_processes_cut_them_round_alike_and_resume(tmp_path):
    options = {"moments": "bf16", "schedule": "constant", "sharding": "full"}
    whole, part = (str(tmp_path / name) for name in ("whole", "part"))
    runs = [(whole, "dmd", 4), (part, "dmd", 2), (part, "dmd", 4)]
    two = together(2, in_turn, [(run, kind, {**options, "steps": n}) for run, kind, n in runs])
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "part")
    one = train(str(tmp_path / "one"), "dmd", **{**options, "sharding": "auto"}, steps=4)
    for a, b in zip(one["log"], two[0][0]["log"], strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-6)
    # Two orders of a sum round apart, and a moment at the edge goes to the other side; otherwise they are the same.
    for role, weights in one["weights"].items():
        for name, value in weights.items():
            off = (value - two[0][0]["weights"][role][name]).norm() / value.norm()
            assert off < 1e-3, f"{role}.{name}: {off:.1e}"
