"""LoRA: silent at first, alone in being trained, merged without a trace, in names that other programs read."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from tests.conftest import random_cameras, randomise

from worldline.functional.masks import Visibility
from worldline.methods.base import Phase, Rng
from worldline.methods.dmd import DMDConfig
from worldline.models.lora import (
    AdaptedLinear,
    LoRAError,
    LoRARole,
    adapters,
    adapters_off,
    add_lora,
    load_lora,
    lora_state,
    merge_lora,
    use_adapter,
)
from worldline.models.wan import WanModel
from worldline.rollout.plan import RolloutPlan
from worldline.schema import LatentBatch, TextEmbedding
from worldline.train.loop import TrainConfig, Trainer

QUICK = TrainConfig(steps=12, batch_size=2, warmup=1, precision="fp32", lr=2e-2, log_every=1, ema_decay=0.9)


def asked(model: torch.nn.Module, text: TextEmbedding) -> torch.Tensor:
    """One forward with cameras, at another level in every frame."""
    g = torch.Generator().manual_seed(3)
    x, sigma = torch.randn(1, 3, 4, 4, 6, generator=g), torch.rand(1, 3, generator=g)
    with torch.no_grad():
        return model(x, sigma, model.text_context(text), cameras=random_cameras(1, 3))


def stirred(model: torch.nn.Module, seed: int = 0, adapter: str = "default") -> torch.nn.Module:
    """An adapter with all of its weights redrawn: zero B hides everything."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith((f"lora_A.{adapter}.weight", f"lora_B.{adapter}.weight")):
                p.copy_(0.2 * torch.randn(p.shape, generator=g))
    return model


@pytest.mark.parametrize("targets", ["attention", "all-linear", ["attn1.to_q", "ffn.net.2"]])
@pytest.mark.parametrize("camera", ["none", "branch", "cross"])
def test_starts_silent_learns_alone_and_merges(tiny_wan, tiny_text, targets, camera):
    model, text = tiny_wan(camera), tiny_text()
    names, base = set(model.state_dict()), asked(model, text)
    assert add_lora(model, 3, 6.0, targets) is model
    assert torch.equal(asked(model, text), base)
    assert names <= set(model.state_dict())  # the base keeps its keys

    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in n for n in trained)
    stirred(model)
    out = model(torch.randn(1, 2, 4, 4, 6), torch.rand(1, 2), model.text_context(text), cameras=random_cameras(1, 2))
    out.square().mean().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0} == trained

    changed = asked(model, text)
    assert (changed - base).abs().max() > 1e-2
    with adapters_off(model):
        assert torch.equal(asked(model, text), base)
    merge_lora(model)
    assert set(model.state_dict()) == names
    assert not any(isinstance(m, AdaptedLinear) for m in model.modules())
    torch.testing.assert_close(asked(model, text), changed, atol=1e-5, rtol=0)
    assert all(p.requires_grad for p in model.requires_grad_().parameters())


def test_which_layers_are_chosen(tiny_wan):
    attention = [n for n, m in add_lora(tiny_wan("branch"), 2).named_modules() if isinstance(m, AdaptedLinear)]
    assert len(attention) == 2 * 2 * 4  # blocks, attentions, q k v out; the camera's own output is not among them
    assert not any("prope_o" in n for n in attention)
    everything = add_lora(tiny_wan("branch"), 2, targets="all-linear")
    assert not any(isinstance(m, torch.nn.Linear) and "lora_" not in n for n, m in everything.named_modules())


@pytest.mark.parametrize("targets", ["attn", ["to_query"], ["to_q", "norm_q"], []])
def test_wrong_targets_are_told_the_right_ones(tiny_wan, targets):
    model = tiny_wan()
    before = set(model.state_dict())
    with pytest.raises(LoRAError, match=r"attn1\.to_q.*ffn\.net\.0\.proj"):
        add_lora(model, 2, targets=targets)
    assert set(model.state_dict()) == before


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(rank=0), "rank is 0"),
        (dict(rank=2.5), "rank is 2.5"),
        (dict(rank=2, alpha=-1.0), "alpha is -1"),
        (dict(rank=2, alpha=float("nan")), "alpha is nan"),
        (dict(rank=2, adapter="a.b"), "without dots"),
    ],
)
def test_wrong_numbers_are_refused(tiny_wan, wrong, said):
    with pytest.raises(LoRAError, match=said):
        add_lora(tiny_wan(), **wrong)


def test_what_is_not_there_is_said(tiny_wan):
    model = tiny_wan()
    with pytest.raises(LoRAError, match="carries no adapter"), adapters_off(model):
        pass
    add_lora(model, 2, adapter="critic")
    with pytest.raises(LoRAError, match="already"):
        add_lora(model, 2, adapter="critic")
    for use in (lora_state, merge_lora):
        with pytest.raises(LoRAError, match=r"no adapter 'default'.*critic"):
            use(model)


def test_trained_parameters_are_fp32_on_a_bf16_base(tiny_wan):
    model = tiny_wan().bfloat16()
    add_lora(model, 2, targets="all-linear")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    layer = stirred(model).blocks[0].attn1.to_q
    x = torch.randn(5, 32).bfloat16()
    adapted = layer(x)
    assert adapted.dtype == torch.bfloat16
    torch.testing.assert_close(merge_lora(model).blocks[0].attn1.to_q(x), adapted, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("naming", ["diffusers", "comfyui"])
def test_state_round_trips(tiny_wan, tiny_text, naming):
    text = tiny_text()
    model = stirred(add_lora(tiny_wan(), 2, 8.0, "all-linear"))
    changed, state = asked(model, text), lora_state(model, naming=naming)
    torch.testing.assert_close(
        asked(load_lora(tiny_wan(), state), text), changed, atol=1e-6, rtol=0
    )  # made as the file says
    torch.testing.assert_close(
        asked(load_lora(add_lora(tiny_wan(), 2, 4.0, "all-linear"), state), text), changed, atol=1e-6, rtol=0
    )
    again = lora_state(load_lora(tiny_wan(), state), naming=naming)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], v) for k, v in state.items())
    key = {"diffusers": "transformer.blocks.1.attn2.to_out.0", "comfyui": "diffusion_model.blocks.1.cross_attn.o"}[
        naming
    ]
    assert {f"{key}.lora_A.weight", f"{key}.lora_B.weight"} <= state.keys()


def test_reads_down_up_and_alpha(tiny_wan, tiny_text):
    state = {
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.randn(2, 32),
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.randn(32, 2),
        "diffusion_model.blocks.0.self_attn.q.alpha": torch.tensor(1.0),
    }
    down, up, _ = state.values()
    model = tiny_wan()
    before = model.blocks[0].attn1.to_q.weight.clone()
    merge_lora(load_lora(model, state))
    torch.testing.assert_close(model.blocks[0].attn1.to_q.weight, before + 0.5 * up @ down, atol=1e-6, rtol=0)


def test_files_that_do_not_fit_change_nothing(tiny_wan):
    model = add_lora(tiny_wan(), 2)
    state = lora_state(stirred(add_lora(tiny_wan(), 2)))
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    some = next(iter(state))
    wrong = [
        ({**state, "transformer.blocks.0.attn1.to_q.diff_b": torch.zeros(32)}, "diff_b"),
        ({**state, "transformer.blocks.7.attn1.to_q.lora_A.weight": torch.zeros(2, 32)}, "blocks.7"),
        ({k: v for k, v in state.items() if k != some}, "expected both"),
        ({**state, some: torch.zeros(2, 33)}, "another size"),
        ({k: v for k, v in state.items() if "attn2" not in k}, "other layers or ranks"),
        (lora_state(add_lora(tiny_wan(), 3)), "other layers or ranks"),
        ({}, "0 of 0 keys"),
        ({"diffusion_model.blocks.7.self_attn.q.lora_A.weight": torch.zeros(2, 32)}, "blocks.7"),
        ({**state, "transformer.blocks.0.attn1.to_q.alpha": torch.ones(2)}, "one number"),
        ({**state, some: torch.tensor(1.0)}, "another size"),
    ]
    for bad, said in wrong:
        with pytest.raises(LoRAError, match=said):
            load_lora(model, bad)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    with pytest.raises(LoRAError, match="no name in the original Wan"):
        lora_state(add_lora(tiny_wan("cross"), 2, targets=["attn3.to_q"]), naming="comfyui")


@pytest.mark.parametrize("naming", ["diffusers", "comfyui"])
def test_diffusers_loads_what_we_save(tiny_wan, tiny_text, naming, diffusers):
    from diffusers.loaders import WanLoraLoaderMixin

    from worldline.models.diffusers_teacher import DiffusersTeacher

    model, text = tiny_wan(), tiny_text()
    theirs = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8, freq_dim=16, ffn_dim=48,
        num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    theirs.load_state_dict(model.state_dict())
    base = asked(model, text)
    state = lora_state(stirred(add_lora(model, 2, 6.0, "all-linear")), naming=naming)
    theirs.load_lora_adapter(WanLoraLoaderMixin.lora_state_dict(state), prefix="transformer")
    out = asked(DiffusersTeacher(theirs, per_frame=True), text)
    assert (out - base).abs().max() > 1e-2
    torch.testing.assert_close(out, asked(model, text), atol=1e-5, rtol=0)


def test_a_copy_is_independent(tiny_wan, tiny_text):
    model = stirred(add_lora(tiny_wan(), 2))
    twin, before = copy.deepcopy(model), asked(model, tiny_text())
    with adapters_off(model):
        assert torch.equal(asked(twin, tiny_text()), before)
    twin.requires_grad_(False)
    assert any(p.requires_grad for p in model.parameters())
    merge_lora(twin)
    assert torch.equal(asked(model, tiny_text()), before)


@dataclass
class Imitate:
    """Regress a fixed random target, so that the loss must fall."""

    model: torch.nn.Module

    def __post_init__(self) -> None:
        self.roles, self.phases = {"model": self.model}, (Phase("toy", "model", self.loss),)

    def loss(self, batch: LatentBatch, rng: Rng) -> dict[str, torch.Tensor]:
        sigma = torch.full(batch.latents.shape[:2], 0.5)
        out = self.model(batch.latents, sigma, self.model.text_context(batch.text))
        return {"loss": (out - batch.latents).square().mean()}

    def after_step(self, step: int) -> None:
        pass


class OneBatch:
    """The same clips at every step."""

    def batch(self, seed: int, step: int, batch_size: int, device: torch.device | str = "cpu") -> LatentBatch:
        g = torch.Generator().manual_seed(0)
        text = TextEmbedding(torch.randn(2, 6, 8, generator=g), torch.ones(2, 6, dtype=torch.bool), "random")
        return LatentBatch(torch.randn(2, 3, 4, 4, 6, generator=g), text, random_cameras(2, 3))


@pytest.mark.parametrize("as_role", [False, True])
def test_trainer_lowers_the_loss_and_leaves_the_base(tiny_wan, tmp_path, as_role):
    model = randomise(tiny_wan(), std=0.1)
    base = {k: v.clone() for k, v in model.state_dict().items()}
    add_lora(model, 4, targets="all-linear")
    method = Imitate(LoRARole(model, "default") if as_role else model)
    with torch.no_grad():
        first = float(method.loss(OneBatch().batch(0, 0, 2), Rng(0, 0))["loss"])
    trainer = Trainer(method, OneBatch(), QUICK, tmp_path)
    assert trainer.fit().last["toy/loss"] < 0.8 * first
    assert all(torch.equal(model.state_dict()[k], v) for k, v in base.items())
    averaged = trainer.trained_state("model")
    assert any(not torch.equal(v, trainer.trained_state("model", ema=False)[k]) for k, v in averaged.items())

    fresh = add_lora(randomise(tiny_wan(), std=0.1), 4, targets="all-linear")
    resumed = Trainer(Imitate(LoRARole(fresh, "default") if as_role else fresh), OneBatch(), QUICK, tmp_path)
    assert resumed.fit().step == QUICK.steps
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in model.state_dict().items())


def three_roles(base: WanModel) -> tuple[LoRARole, LoRARole, LoRARole]:
    """Student, teacher, critic of one base, as a distillation takes them."""
    for name in ("student", "critic"):
        stirred(add_lora(base, 2, adapter=name), len(name), name)
    return LoRARole(base, "student"), LoRARole(base, None), LoRARole(base, "critic")


def test_three_roles_share_one_base(tiny_wan, tiny_text):
    base, text = tiny_wan("fused"), tiny_text()
    alone = asked(base, text)
    student, teacher, critic = three_roles(base)
    assert adapters(base) == ["critic", "student"]
    assert torch.equal(asked(teacher, text), alone)
    with use_adapter(base, "critic"):
        assert torch.equal(asked(critic, text), asked(base, text))
    assert len({float(asked(role, text).sum()) for role in (student, teacher, critic)}) == 3
    sizes = [sum(p.numel() for p in role.parameters()) for role in (student, teacher, critic)]
    assert sum(sizes) == sum(p.numel() for p in base.parameters())  # every parameter in one role, none in two
    assert set(critic.state_dict()) == {k.removeprefix("transformer.") for k in lora_state(base, adapter="critic")}
    with pytest.raises(LoRAError, match="frozen base"):
        teacher.requires_grad_()


def test_distillation_on_one_base_equals_three_models(tiny_wan, clip_batch, empty_prompt):
    """Losses and gradients of both phases: a switch that touched gradients would lose the student's."""
    roles = three_roles(tiny_wan("fused"))
    separate = three_roles(tiny_wan("fused"))[0], tiny_wan("fused"), three_roles(tiny_wan("fused"))[2]
    plan = RolloutPlan.few_step(Visibility(chunk=1, prefix=1))
    grads = []
    for nets in (roles, separate):
        method, found = DMDConfig().build(*nets, plan, empty_prompt), []
        for phase in method.phases:
            loss = phase.loss(clip_batch, Rng(0, 0))["loss"]
            loss.backward()
            found += [loss, *(p.grad for p in method.roles[phase.role].parameters())]
            method.roles[phase.role].zero_grad(set_to_none=True)
        grads.append(found)
    assert all(g.abs().max() > 0 for g in grads[0])
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-5)


def test_trainer_trains_the_roles_of_one_base(tiny_wan, clip_batch, empty_prompt, tmp_path):
    base = tiny_wan("fused")
    before = {k: v.clone() for k, v in base.state_dict().items()}
    method = DMDConfig(critic_updates=2).build(
        *three_roles(base), RolloutPlan.few_step(Visibility(chunk=1, prefix=1)), empty_prompt
    )
    cfg = TrainConfig(steps=2, batch_size=2, warmup=1, log_every=1)
    adapted = {k: v.clone() for k, v in base.state_dict().items() if ".lora_" in k}

    class Same:
        def batch(self, *_: object) -> LatentBatch:
            return clip_batch

    Trainer(method, Same(), cfg, tmp_path).fit()
    after = base.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    for name in ("student", "critic"):
        assert any(not torch.equal(after[k], v) for k, v in adapted.items() if f".{name}." in k), name
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "checkpoints" / "step-00000002" / "generator.safetensors")
    assert saved.keys() == method.roles["generator"].state_dict().keys()


@pytest.fixture(scope="module")
def diffusers():
    """diffusers with peft, which are slow to import."""
    pytest.importorskip("peft", reason="peft is not installed")
    return pytest.importorskip("diffusers", reason="diffusers is not installed")


@pytest.fixture
def clip_batch() -> LatentBatch:
    """Two clips of 3 latents."""
    return OneBatch().batch(0, 0, 2)


@pytest.fixture
def empty_prompt() -> TextEmbedding:
    """The unconditional prompt."""
    return TextEmbedding(torch.zeros(1, 6, 8), torch.ones(1, 6, dtype=torch.bool), "random")
