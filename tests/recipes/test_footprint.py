"""Planned memory against bytes counted while the trainer runs: weights, moments, averages, and activations at their height."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import random_cameras, randomise
from tests.live_bytes import LiveBytes
from worldline.methods.autoencoder import PixelBatch
from worldline.methods.ode import OdeBatch
from worldline.models.frugal import halve_frozen
from worldline.models.nano_vae import NanoVAE
from worldline.models.wan import WanModel
from worldline.recipes.codec import Autoencoding
from worldline.recipes.codec_plan import codec_needs
from worldline.recipes.footprint import Assessment, Costs, assess
from worldline.recipes.host import KINDS
from worldline.recipes.load import load_recipe
from worldline.rollout.plan import RolloutPlan
from worldline.schema import TextEmbedding
from worldline.train.health import Health, HealthConfig
from worldline.train.loop import Trainer

SMALL = ("model.changes.dim=64", "model.changes.ffn_dim=256", "model.changes.num_heads=2", "model.changes.num_layers=3")


class Clips:
    """Random clips of a recipe's size."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs

    def batch(self, seed: int, step: int, batch_size: int, device: str = "cpu") -> OdeBatch:
        clip, config = self.costs.clip, self.costs.config
        latents = torch.randn(batch_size, clip.frames, config.in_channels, clip.height, clip.width)
        text = prompt(batch_size, config)
        anchors = torch.stack([latents] * 3, dim=1)
        return OdeBatch(latents, text, random_cameras(batch_size, clip.frames), anchors=anchors, end=latents)


def prompt(batch, config):
    return TextEmbedding(
        torch.randn(batch, config.text_len, config.text_dim), torch.ones(batch, config.text_len).bool(), "random"
    )


def network(config, frozen=False):
    model = WanModel(config)
    randomise(model)
    if frozen:
        halve_frozen(model.requires_grad_(False))
    return model


def counted(stage, tmp_path, *overrides) -> tuple[float, Assessment]:
    """(bytes of tensors at the peak of a watched second step, what the plan says)."""
    recipe = load_recipe("nano-demo", [*SMALL, "health.every=1", f"stages.{stage}.train.steps=2", *overrides])
    section = recipe.stages[stage]
    costs = Costs(recipe, section, cameras=True, on_cpu=True)
    config, options, empty = costs.config, section.options, prompt(1, costs.config)
    with LiveBytes() as live:
        model, visibility = network(config), recipe.rollout.visibility()
        if section.method == "finetune":
            method = options.build(model, empty)
        elif section.method == "teacher_forcing":
            method = options.build(model, visibility, empty)
        elif section.method == "ode":
            method = options.build(model, visibility)
        elif section.method == "consistency":
            method = options.build(model, network(config, frozen=True), visibility, empty)
        else:
            plan = RolloutPlan.few_step(visibility, recipe.rollout.steps)
            method = options.build(model, network(config, frozen=True), network(config), plan, empty)
        health = Health(HealthConfig(every=1, samples=False), tmp_path)
        trainer = Trainer(method, Clips(costs), section.train, tmp_path, observers=[health])
        trainer.save = lambda: None
        live.peak = 0
        trainer.fit()
    return live.peak, assess(costs)


BATCH = "stages.{}.train.batch_size=4"


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("camera", ()),
        ("ar", ()),
        ("ode", ("stages.ode.train.moments=bf16",)),
        ("cd", ()),
        ("dmd", ("stages.dmd.options.critic_updates=1",)),
        ("dmd", ("stages.dmd.options.critic_updates=1", "stages.dmd.options.chunkwise_backward=true")),
        ("dmd", ("stages.dmd.options.critic_updates=1", "stages.dmd.options.regression_weight=0.5")),
        ("camera", ("stages.camera.train.recompute=true",)),
        ("camera", ("stages.camera.train.batch_size=1", "stages.camera.train.optimizer=adamw")),
        ("dmd", ("stages.dmd.options.critic_updates=1", "stages.dmd.train.batch_size=1")),
        ("camera", ("stages.camera.train.precision=fp32", "stages.camera.train.accumulation=2")),
    ],
)
def test_a_plan_counts_what_the_trainer_holds(stage, overrides, tmp_path):
    peak, plan = counted(stage, tmp_path, BATCH.format(stage), *overrides)
    planned = sum(amount for kind, amount in plan.memory.items() if kind not in KINDS)
    assert planned == pytest.approx(peak, rel=0.08)


def test_bf16_moments_save_what_the_plan_says(tmp_path):
    moments = {}
    for kind in ("fp32", "bf16"):
        recipe = load_recipe("nano-demo", [*SMALL, f"stages.cd.train.moments={kind}"])
        moments[kind] = assess(Costs(recipe, recipe.stages["cd"], cameras=True, on_cpu=False)).memory["optimizer"]
    assert moments["fp32"] == 2 * moments["bf16"] > 0


@pytest.mark.parametrize("overrides", [(), ("codec.train.precision=fp32", "codec.options.trains=decoder")])
def test_a_codec_too(overrides, tmp_path):
    small = "codec.model={encoder_widths: [16, 24, 32], decoder_widths: [16, 24, 32], blocks: 1}"
    recipe = load_recipe("nano", ["codec.train.steps=2", small, *overrides])
    section, size = recipe.codec, recipe.data.build

    class Windows:
        def batch(self, seed, step, batch_size, device="cpu"):
            video = torch.rand(batch_size, section.frames, 3, size.height, size.width)
            return PixelBatch(video, torch.zeros(batch_size, section.frames), torch.ones(4))

    with LiveBytes() as live:
        method = Autoencoding(section.options, NanoVAE(section.model))
        trainer = Trainer(method, Windows(), section.train, tmp_path)
        trainer.save = lambda: None
        live.peak = 0
        trainer.fit()
    needs = codec_needs(recipe, on_cpu=False, batch=section.train.batch_size, accumulation=1)
    assert sum(needs.memory.values()) == pytest.approx(live.peak, rel=0.08)
