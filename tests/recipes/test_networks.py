"""Stages that train adapters: one base for all networks, whole models at the end, whatever the trainer saves on the way."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tests.recipes.test_pipeline import STAGES, go
from worldline.models.lora import LoRARole, adapters
from worldline.models.registry import load_model
from worldline.recipes.load import load_recipe
from worldline.recipes.networks import ADAPTER, networks
from worldline.recipes.workspace import Workspace
from worldline.schema import WorldlineError

TARGETS = "[to_q, to_k, to_v, to_out.0, prope_o]"
LORA = [
    "model.camera=branch",
    *(f"stages.{s}.lora={{rank: 2, targets: {TARGETS}}}" for s in STAGES),
    *(f"stages.{s}.train.recompute=true" for s in STAGES),
    *(f"stages.{s}.train.lr=1e-2" for s in STAGES),
]


def test_a_chain_of_adapters_leaves_whole_models_and_shares_one_base(smallest, tmp_path):
    witness, _ = go(smallest, tmp_path / "run", *LORA, until="dmd")
    assert witness.ran == ["codec", "encode", "base", *STAGES]
    ws = Workspace(load_recipe(smallest, LORA), tmp_path / "run")
    models = {stage: load_model(tmp_path / "run" / stage / "model").state_dict() for stage in STAGES}
    for before, stage in pairwise(STAGES):
        key = "blocks.0.attn1.to_q.weight"
        assert not torch.equal(models[before][key], models[stage][key]), f"{stage} learnt"
        key = "blocks.0.ffn.net.2.weight"
        assert torch.equal(models[before][key], models[stage][key]), f"{stage} left what no adapter reaches"
    assert models["camera"]["blocks.0.attn1.prope_o.weight"].any(), "the camera's branch speaks"

    nets = networks(ws, ws.recipe.stages["dmd"])
    assert len({id(net.base) for net in nets.values() if isinstance(net, LoRARole)}) == 1
    assert set(adapters(nets["real"].base)) == {"generator", "real", "fake"}
    assert sum(p.numel() for p in nets["generator"].parameters()) < 0.3 * sum(
        p.numel() for p in ws.model("cd").parameters()
    )
    assert (tmp_path / "run" / "dmd" / ADAPTER).is_file()
    assert go(smallest, tmp_path / "run", *LORA, "stages.dmd.train.recompute=false", until="dmd")[0].ran == []


def test_an_adapter_gives_the_model_that_was_saved_of_it(smallest, tmp_path):
    """Loaded on its base again, the camera stage's adapter answers as the merged model does."""
    overrides = [*LORA, "stages.ar.train.precision=fp32"]
    go(smallest, tmp_path / "run", *overrides, until="camera")
    ws = Workspace(load_recipe(smallest, overrides), tmp_path / "run")
    role, whole = networks(ws, ws.recipe.stages["ar"])["model"], ws.model("camera")
    text = ws.text_encoder().encode(["room 1"])
    x, sigma = torch.randn(1, 3, 16, 4, 4), torch.full((1, 3), 0.5)
    with torch.no_grad():
        a, b = (net(x, sigma, net.text_context(text)) for net in (role, whole))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_stage_trained_whole_ends_the_chain(smallest, tmp_path):
    """Adapters after a whole stage are on that stage; a network from elsewhere has a base of its own."""
    overrides = [o for o in LORA if "stages.ar.lora" not in o]
    recipe = load_recipe(smallest, overrides)
    assert [recipe.lora_root(s) for s in STAGES] == ["base", "ar", "ar", "ar", "ar"]
    go(smallest, tmp_path / "run", *overrides, until="cd")
    nets = networks(Workspace(recipe, tmp_path / "run"), recipe.stages["dmd"])
    assert nets["generator"].base is not nets["fake"].base
    assert nets["real"].base is nets["fake"].base


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.camera=branch", "stages.camera.lora.rank=2"], r"leave 1 silent layers .*\(blocks.0.attn1.prope_o\)"),
        (["stages.camera.lora.targets=[to_x]"], "name no linear layer"),
        (["stages.camera.lora.rank=2", "stages.ar.lora.rank=4"], "expected the same: a stage goes on with the adapter"),
        (["codec.train.recompute=true"], "NanoVAE has no blocks to recompute"),
    ],
)
def test_adapters_that_cannot_be_are_refused(smallest, tmp_path, overrides, message):
    with pytest.raises(WorldlineError, match=message):
        go(smallest, tmp_path / "run", *overrides, until="camera")
