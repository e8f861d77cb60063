"""What SigLIP sees in the start image, from the encode stage through training to a stream: the same tokens everywhere."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import randomise
from tests.models.test_hunyuan15_text import folder  # noqa: F401  (a fixture)
from tests.recipes.conftest import SMALLEST, write_dataset
from worldline.data.loader import LatentDataset
from worldline.models.hunyuan15_image import HunyuanImageEncoder
from worldline.recipes.builder import RecipeError
from worldline.recipes.graph import hashes
from worldline.recipes.load import load_recipe
from worldline.recipes.measuring import player
from worldline.recipes.pipeline import plan, run
from worldline.recipes.workspace import Workspace
from worldline.schema import Controls, WorldlineError
from worldline.stream.engine import Engine
from worldline.stream.session import Session
from worldline.stream.text import ENVIRONMENT
from worldline.stream.world import WorldConfig

TOKENS, WIDTH = 4, 16
SIZES = {
    "dim": 32, "ffn_dim": 48, "num_heads": 2, "num_layers": 1, "rope_dims": [4, 6, 6], "refiner_ffn_dim": 32, "text_dim": 32,
    "text_lens": [1000, 24, TOKENS], "byt5_dim": 16, "byt5_hidden": 16, "image_dim": WIDTH, "motion": True,
}  # fmt: skip


def write_recipe(root, encoders, **text):
    data = yaml.safe_load(SMALLEST)
    data |= {
        "data": {"path": str(root / "clips")},
        "model": {"variant": "nano-hy", "changes": SIZES},
        "text": {"kind": "hunyuan15", "path": str(encoders), **text},
        "stages": {"ar": {"method": "teacher_forcing", "init": "base", "train": {"steps": 2, "batch_size": 2}}},
    }
    data["base"]["train"]["steps"] = 1
    (root / "recipe.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return load_recipe(root / "recipe.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, folder):  # noqa: F811
    """(recipe, run directory) of base, one causal stage and a world that reads start images."""
    root = tmp_path_factory.mktemp("images")
    write_dataset(root / "clips")
    recipe = write_recipe(root, folder, images=True)
    run(recipe, root / "run", until="world")
    return recipe, root / "run"


@pytest.fixture
def engine(finished, tmp_path):
    """Of a copy of the world whose encoders are gone, with weights that listen."""
    shutil.copytree(finished[1] / "world", tmp_path / "world")
    path = tmp_path / "world" / "world.json"
    described = json.loads(path.read_text())
    described["text"]["path"] = "gone"
    path.write_text(json.dumps(described))
    made = Engine.load(tmp_path / "world", dtype="float32", threads=1, warm=False)
    randomise(made.model, std=0.2)
    return made


def test_clips_carry_what_the_encoder_sees_in_their_first_frames(finished, folder):  # noqa: F811
    recipe, out = finished
    ws = Workspace(recipe, out)
    clips, frames = LatentDataset(out / "encode" / "latents"), ws.clips().split("train")
    stored = load_file(out / "encode" / "latents" / "shard-00000.safetensors")["image"]
    assert stored.dtype == torch.bfloat16
    wanted = HunyuanImageEncoder(folder).encode([np.asarray(frames[i].frames[0]) for i in range(len(frames))])
    assert wanted.float().std() > 0.1
    text = clips.batch(0, 0, 3).text
    order = [clips.ids.index(name) for name in clips.batch(0, 0, 3).ids]
    assert text.image == TOKENS
    assert torch.equal(text.tokens[:, -TOKENS:, :WIDTH], wanted[order].float())
    assert not text.tokens[:, -TOKENS:, WIDTH:].any()
    assert text.mask[:, -TOKENS:].all()


def test_evaluations_feed_what_training_was_fed(finished):
    recipe, out = finished
    ws = Workspace(recipe, out)
    held, clips = ws.clips().split("heldout"), LatentDataset(out / "encode" / "latents", "heldout")
    played = player(ws, "ar")
    request = played.request(np.asarray(held[0].frames[:1]), [held[0].cameras], [held[0].caption])
    assert torch.equal(request.text.tokens, clips.select([0]).text.tokens)
    assert torch.equal(request.text.mask, clips.select([0]).text.mask)
    assert request.negative is not None
    assert not request.negative.image


def test_interrupted_encoding_goes_on_and_asks_for_no_picture_twice(finished, tmp_path, monkeypatch):
    recipe, out = finished
    shutil.copytree(out, tmp_path / "run")
    read: list[int] = []
    monkeypatch.setattr(HunyuanImageEncoder, "_one", lambda self, image: read.append(1))
    run(recipe, tmp_path / "run", from_="encode", until="encode")
    assert read == []  # from the folder of embeddings
    for name in ("shard-00000",):
        a, b = (load_file(root / "encode" / "latents" / f"{name}.safetensors") for root in (out, tmp_path / "run"))
        assert torch.equal(a["image"], b["image"])


def test_the_option_is_in_the_hash_only_where_it_is_on(finished, folder, tmp_path):  # noqa: F811
    write_dataset(tmp_path / "clips")
    node = {}
    for name, more in (("none", {}), ("off", {"images": False}), ("on", {"images": True})):
        nodes = plan(write_recipe(tmp_path, folder, **more), tmp_path / "run")
        node[name] = (next(n for n in nodes if n.name == "encode").config, hashes(nodes)["encode"])
    assert node["none"] == node["off"]
    assert set(node["off"][0]) == {"text", "format"}
    assert node["on"][1] != node["off"][1]
    deaf = load_recipe(tmp_path / "recipe.yaml", ["model.changes.text_lens=[1000, 24, 0]"])
    with pytest.raises(WorldlineError, match="without image tokens"):
        plan(deaf, tmp_path / "run")
    with pytest.raises(RecipeError, match="expected 1"):
        load_recipe(tmp_path / "recipe.yaml", ["rollout.prefix=0"])
    with pytest.raises(RecipeError, match="hunyuan15"):
        write_recipe(tmp_path, folder, images=True, kind="umt5")


def test_a_world_plays_its_starts_without_the_encoder_and_others_with_it(engine, folder, monkeypatch):  # noqa: F811
    assert WorldConfig.read(engine_world(engine)).text.images == HunyuanImageEncoder(folder).fingerprint
    start = next(iter(engine.starts))
    session = engine.session(start, seed=1)
    assert session._now.text.image == TOKENS
    first = session.step(Controls.still(engine.frames_per_chunk))
    assert np.isfinite(first).all()
    engine._time_chunks(1)  # a black picture
    other = 255 - engine.starts[start].image
    with pytest.raises(WorldlineError, match=f"needs its image encoder: gone has no .* Set {ENVIRONMENT}"):
        engine.session(other, engine.starts[start].caption)
    monkeypatch.setenv(ENVIRONMENT, str(folder))
    session = engine.session(other, engine.starts[start].caption)
    wanted = HunyuanImageEncoder(folder).encode([other])[0].float()
    assert torch.equal(session._now.text.tokens[0, -TOKENS:, :WIDTH], wanted)


def engine_world(engine):
    return engine.images.directory.parent


class Inverted:
    """Sees the opposite."""

    fingerprint = "inverted"

    def __init__(self, encoder):
        self.encoder = encoder

    def encode(self, images):
        return -self.encoder.encode(images)


def latents_of(engine, chunks=2):
    session = engine.session(seed=3)
    for _ in range(chunks):
        session.step(Controls.still(engine.frames_per_chunk))
    return torch.stack(session.log.latents)


def test_a_stream_hears_what_is_seen(engine):
    plain, again = latents_of(engine), latents_of(engine)
    assert torch.equal(plain, again)
    engine.images = Inverted(engine.images)
    assert (latents_of(engine) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["keep", "recache", "blend", "cut"])
def test_prompts_change_and_walks_come_back_to_the_bit(mode, engine, folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv(ENVIRONMENT, str(folder))
    still, session = Controls.still(engine.frames_per_chunk), engine.session(seed=3)
    seen = session._now.text.tokens[0, -TOKENS:].clone()
    session.step(still)
    before = session.last_frame
    session.set_prompt("a red door", mode, 2)
    frames = [session.step(still) for _ in range(3)]
    now = session._now.text.tokens[0, -TOKENS:]
    if mode == "cut":  # the walk starts again from the last picture
        assert torch.equal(now[:, :WIDTH], HunyuanImageEncoder(folder).encode([before])[0].float())
        assert not torch.equal(now, seen)
    else:
        assert torch.equal(now, seen)
    for kept in (True, False):
        session.save(tmp_path / f"{kept}.walk", latents=kept)
        loaded = Session.load(engine, tmp_path / f"{kept}.walk")
        assert all(torch.equal(a, b) for a, b in zip(loaded.log.latents, session.log.latents, strict=True))
        assert torch.equal(loaded._now.text.tokens, session._now.text.tokens)
        assert np.array_equal(loaded.last_frame, frames[-1][-1])
    after = session.step(still)
    assert np.array_equal(loaded.step(still), after)
