"""A recipe reads HunyuanVideo's prompts from a local folder: Qwen and byT5 for every caption, once, kept on disk."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.models.test_hunyuan15_text import folder  # noqa: F401  (a fixture)
from worldline.data.loader import LatentDataset
from worldline.models.hunyuan15_text import HunyuanTextEncoder
from worldline.recipes.load import load_recipe
from worldline.recipes.pipeline import run

SIZES = (
    "{dim: 32, ffn_dim: 48, num_heads: 2, num_layers: 1, rope_dims: [4, 6, 6], refiner_ffn_dim: 32, text_dim: 32, "
    "text_lens: [1000, 24, 0], byt5_dim: 16, byt5_hidden: 16}"
)


def test_the_encode_stage_reads_quoted_words_and_never_twice(smallest, tmp_path, folder, monkeypatch):  # noqa: F811
    manifest = tmp_path / "clips" / "manifest.parquet"
    rows = pq.read_table(manifest)
    captions = ['a sign says "exit"' if i % 2 else f"room {i}" for i in range(rows.num_rows)]
    at = rows.schema.get_field_index("caption")
    pq.write_table(rows.set_column(at, "caption", [captions]), manifest)
    recipe = load_recipe(smallest, ["model.variant=nano-hy", f"model.changes={SIZES}", "base.train.steps=1"])
    recipe = replace(recipe, text=replace(recipe.text, kind="hunyuan15", path=str(folder)))
    read: list[str] = []
    row = HunyuanTextEncoder._row

    def counted(self, prompt, image):
        read.append(prompt)
        return row(self, prompt, image)

    monkeypatch.setattr(HunyuanTextEncoder, "_row", counted)
    out = tmp_path / "run"
    run(recipe, out, until="base")
    assert sorted(read) == sorted({"", *captions})  # each once, and no prompt at all for guidance
    clips = LatentDataset(out / "encode" / "latents")
    stored = load_file(out / "encode" / "latents" / "text.safetensors")
    for i in range(len(clips)):
        text = clips.select([i]).text
        quoted = text.mask[0, 1000:]
        assert quoted.any() == ("exit" in captions[i])
        assert text.tokens[0, 1000:][quoted].abs().sum() > 0 or not quoted.any()
        assert text.mask[0, :1000].any()
        assert torch.equal(text.tokens[0][~text.mask[0]], torch.zeros_like(text.tokens[0][~text.mask[0]]))
    assert stored["mask"].shape[1] == 1024
    read.clear()
    run(recipe, tmp_path / "run", from_="encode", until="encode")
    assert read == []  # from the folder of embeddings


def test_a_folder_of_another_family_is_refused(smallest, tmp_path, folder):  # noqa: F811
    recipe = load_recipe(smallest)
    recipe = replace(recipe, text=replace(recipe.text, kind="hunyuan15", path=str(folder)))
    with pytest.raises(ValueError, match="'hunyuan15' for a WanConfig; expected 'umt5'"):
        run(recipe, tmp_path / "run", until="encode")
