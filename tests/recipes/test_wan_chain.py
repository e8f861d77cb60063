"""The Wan recipes end to end in miniature: their own stages on a tiny backbone, a tiny Wan codec and a tiny UMT5."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from tests.conftest import randomise
from tests.models.test_umt5 import tiny_tokenizer
from tests.recipes.conftest import write_dataset
from tests.tiny_world import tiny_wan_vae
from worldline.cli import main
from worldline.methods.base import Rng
from worldline.models.registry import load_model, save_model
from worldline.models.wan import WanConfig, WanModel
from worldline.recipes.conversion import BUILDERS
from worldline.recipes.load import library, load_recipe
from worldline.recipes.networks import ADAPTER
from worldline.recipes.pipeline import plan, run
from worldline.recipes.workspace import Workspace
from worldline.schema import Controls, WorldlineError
from worldline.stream.engine import Engine
from worldline.stream.text import EMBEDDINGS, ENVIRONMENT
from worldline.stream.world import WorldConfig

transformers = pytest.importorskip("transformers", reason="prompts for Wan need worldline[text]")
pytest.importorskip("tokenizers", reason="prompts for Wan need worldline[text]")

STAGES = ["camera", "ar", "ode", "cd", "dmd"]
SIZES = dict(dim=32, ffn_dim=48, num_heads=2, num_layers=2, text_dim=32, text_len=16, in_channels=4, out_channels=4)


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """What a user of a Wan recipe brings: clips, codec, base, text encoder."""
    root = tmp_path_factory.mktemp("brought")
    write_dataset(root / "clips")
    save_model(randomise(tiny_wan_vae(), seed=1, std=0.12), root / "vae", {"licence": "Apache-2.0"})
    save_model(randomise(WanModel(WanConfig(**SIZES, freq_dim=16)), std=0.2), root / "base", {"licence": "Apache-2.0"})
    sizes = dict(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    encoder = randomise(transformers.UMT5EncoderModel(transformers.UMT5Config(**sizes)), seed=3).eval()
    encoder.save_pretrained(root / "text" / "text_encoder")
    tiny_tokenizer(root / "text" / "tokenizer" / "tokenizer.json")
    return root


def miniature(name: str, root) -> list[str]:
    """Overrides that leave a recipe's stages and methods as they are."""
    stages = load_recipe(name).stages
    quick = ["train.steps=1", "train.accumulation=2", "train.warmup=0", "train.lr=1e-2"]
    return [
        *(f"{part}.path={root / where}" for part, where in [("data", "clips"), ("codec", "vae"), ("base", "base")]),
        f"text.path={root / 'text'}",
        "data.latents=4",
        "model.changes=" + json.dumps({**SIZES, "freq_dim": 16}),
        "rollout.chunk=3",
        "rollout.window=4",
        "world.starts=2",
        *(f"stages.{s}.{q}" for s in stages for q in quick),
        *(f"stages.{s}.lora.rank=2" for s in stages if "-small" in name),
        *(f"stages.ode.options.{o}" for o in ("euler_steps=4", "clips=2") if "ode" in stages),
        "stages.dmd.options.critic_updates=1",
    ]


@pytest.fixture(scope="module")
def adapted(brought, tmp_path_factory):
    """A run of the LoRA recipe to its world."""
    run_dir = tmp_path_factory.mktemp("run") / "small"
    return run(load_recipe("wan-1.3b-small", miniature("wan-1.3b-small", brought)), run_dir), run_dir


def test_the_small_recipe_runs_to_a_world(adapted, brought):
    result, run_dir = adapted
    assert [r.name for r in result.records] == ["encode", *STAGES, "world", "report"]
    assert all(r.status == "done" for r in result.records)
    assert all((run_dir / stage / ADAPTER).is_file() for stage in STAGES)
    models = [load_model(run_dir / stage / "model") for stage in STAGES]
    weights = [m.state_dict()["blocks.0.attn1.to_q.weight"] for m in models]
    assert len({float(w.sum()) for w in weights}) == len(STAGES), "every stage learnt"
    assert models[0].state_dict()["blocks.0.attn1.prope_o.weight"].any()
    embedded = load_model(result.world / "codec")
    assert type(embedded).__name__ == "WanVAE"
    text = WorldConfig.read(result.world).text
    assert text is not None
    assert text.fingerprint == Workspace(load_recipe(run_dir / "recipe.yaml"), run_dir).text_encoder().fingerprint


def test_its_world_plays_its_starts_without_the_text_encoder(adapted, brought, tmp_path, monkeypatch):
    world = tmp_path / "world"
    shutil.copytree(adapted[0].world, world)
    described = json.loads((world / "world.json").read_text())
    described["text"]["path"] = "gone"
    (world / "world.json").write_text(json.dumps(described))
    engine = Engine.load(world, threads=1, warm=False)
    start = next(iter(engine.starts))
    frames = engine.session(start, seed=1).step(Controls.still(12))
    assert frames.shape == (12, 32, 32, 3)
    assert np.isfinite(frames).all()
    assert len(list((world / EMBEDDINGS).rglob("*.safetensors"))) == 1 + len(engine.starts)
    with pytest.raises(WorldlineError, match=f"needs its text encoder: gone has neither .* Set {ENVIRONMENT}"):
        engine.session(start, prompt="a red door")
    monkeypatch.setenv(ENVIRONMENT, str(brought / "text"))
    other = engine.session(start, prompt="a red door", seed=1).step(Controls.still(12))
    assert not np.array_equal(other, frames), "the prompt is heard"

    (world / "world.json").write_text(json.dumps({**described, "text": {**described["text"], "fingerprint": "other"}}))
    with pytest.raises(WorldlineError, match="this world was made with other"):
        Engine.load(world, threads=1, warm=False).session(start, prompt="a blue door")


@pytest.mark.parametrize("mode", ["few-step", "ar", "bidirectional"])
def test_its_run_makes_videos_in_every_mode(mode, adapted, brought, tmp_path, monkeypatch):
    """From a prompt or a picture along a string, poses or a key log; a seed is a file, to the byte."""
    from PIL import Image

    monkeypatch.setenv(ENVIRONMENT, str(brought / "text"))
    _, run_dir = adapted
    trained = {"few-step": "dmd", "ar": "ar", "bidirectional": "camera"}[mode]
    few = ["--steps", "2"] if mode != "few-step" else []
    said = ["--mode", mode, "--weights", str(run_dir / trained / "model"), *few, "--scale", "2"]
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, 2, 3] = 0.08 * np.arange(4)
    (tmp_path / "poses.json").write_text(json.dumps(poses.tolist()))
    (tmp_path / "keys.csv").write_text("w\n" * 6 + "w left\n" * 6)

    def video(*argv: str) -> bytes:
        out = tmp_path / "out.mp4"
        assert main(["generate", "--model", str(run_dir), *said, *argv, "--out", str(out)]) == 0
        return out.read_bytes()

    walk = ["--trajectory", "w*3"]
    first = video(*walk)
    assert video(*walk) == first, "the same seed"
    assert video("--trajectory", str(tmp_path / "poses.json")) == first, "the same walk in other words"
    others = [
        video(*walk, "--seed", "1"),
        video(*walk, "--prompt", "a red door"),
        video(*walk, "--overlay"),
        video("--trajectory", str(tmp_path / "keys.csv"), "--start", str(tmp_path / "picture.png")),
    ]
    assert len({first, *others}) == 5


def test_prompts_are_encoded_once_and_stay_what_they_were(adapted, brought):
    from worldline.data.loader import LatentDataset
    from worldline.models.umt5 import UMT5Encoder

    data = LatentDataset(adapted[1] / "encode" / "latents", "train")
    assert data.prompts.tokens.dtype == torch.bfloat16
    fresh = UMT5Encoder(brought / "text", length=16).encode(["room 2"])
    assert torch.equal(data.select([2]).text.tokens, fresh.tokens)


@pytest.mark.parametrize("name", ["wan-1.3b-minwm", "wan-1.3b-causal-forcing"])
def test_published_recipes_run_to_their_last_stage(name, brought, tmp_path):
    result = run(load_recipe(name, miniature(name, brought)), tmp_path / "run", until="dmd")
    assert [r.name for r in result.records] == ["encode", *load_recipe(name).stages]


@pytest.mark.parametrize("name", sorted(name for name in library() if name.startswith("wan-")))
def test_every_recipe_builds_the_method_of_every_stage_and_it_learns(name, adapted, brought, tmp_path):
    recipe = load_recipe(name, miniature(name, brought))
    assert [node.name for node in plan(recipe, tmp_path)] == ["encode", *recipe.stages, "world", "report"]
    ws = Workspace(recipe, adapted[1])  # the stages before a stage are those of the small recipe's run
    for stage, section in recipe.stages.items():
        built = BUILDERS[section.method](ws, section, stage, tmp_path / stage)
        batch = built.data.batch(0, 0, 1, torch.device("cpu"))
        trained = {phase.role for phase in built.method.phases}
        assert built.role in trained
        for phase in built.method.phases:
            with torch.autocast("cpu", torch.bfloat16):
                loss = phase.loss(batch, Rng(0, 0))["loss"]
            loss.backward()
            grads = [p.grad for p in built.method.roles[phase.role].parameters() if p.grad is not None]
            assert grads, (stage, phase.name)
            assert all(g.isfinite().all() for g in grads), (stage, phase.name)


def test_what_cannot_be_streamed_is_refused_before_the_training(brought, tmp_path):
    recipe = load_recipe("wan-1.3b", [*miniature("wan-1.3b", brought), "rollout.window=null"])
    with pytest.raises(WorldlineError, match="needs a bounded past"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "camera").exists()
