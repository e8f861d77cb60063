"""A world, or a model alone, written again with 8-bit layers: half the bytes, and nothing to round when it is loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from worldline.models.backbone import Backbone
from worldline.models.registry import load_model, save_model, weights_hash
from worldline.nn.quant import SKIP, Quantised, Scheme, quantise
from worldline.schema import WorldlineError
from worldline.stream.text import EMBEDDINGS
from worldline.stream.world import WorldConfig


def write_quantised(source: str | Path, out: str | Path, scheme: Scheme, skip: tuple[str, ...] = ()) -> Quantised:
    """Write the model directory `source` to `out` with its linear layers in `scheme`, but for those that SKIP or `skip` name;
    what is not rounded stays as it is. A world's codec and starts are copied into `out`, which so needs nothing beside it.

    A world written so streams what the original does with `Engine.load(quantise=scheme)`, to the bit. Its weights have another
    hash, so saved walks of the one are not of the other. Raises WorldlineError where `source` holds no video model, `out`
    exists, or the layers are rounded already.
    """
    source, out = Path(source), Path(out)
    if out.exists():
        raise WorldlineError(f"{out} exists; expected a folder that does not exist yet")
    model = load_model(source)
    if not isinstance(model, Backbone):
        raise WorldlineError(f"{source} holds a {type(model).__name__}; expected a video model or a world")
    done = quantise(model, scheme, (*SKIP, *skip))
    card = json.loads((source / "card.json").read_text()) if (source / "card.json").is_file() else {}
    card["quantised"] = {"scheme": scheme, "layers": len(done.layers), "from": weights_hash(source)}
    # Whatever fails on the way leaves nothing under the name that was asked for.
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    save_model(model, part, card)
    if (source / "world.json").is_file():
        config = WorldConfig.read(source)
        for name, folder in (("codec", config.codec), ("starts", config.starts), (EMBEDDINGS, EMBEDDINGS)):
            if (source / folder).is_dir():
                shutil.copytree(source / folder, part / name)
        replace(config, codec="codec", starts="starts").write(part)
    part.rename(out)
    return done
