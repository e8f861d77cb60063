"""Where the parts of a run are, on disk and as objects."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from worldline.models.backbone import INJECTED, Backbone
from worldline.models.diffusers_teacher import is_diffusers_folder
from worldline.models.registry import BackboneConfig, build_backbone, load_codec, load_model, load_state, weights_hash
from worldline.models.text import HashTextEncoder
from worldline.models.text_readers import Reader, open_image_reader, open_reader
from worldline.models.wan import CameraMode
from worldline.recipes.assets import ASSETS, LINE, located
from worldline.recipes.schema import is_directory
from worldline.schema import WorldlineError

if TYPE_CHECKING:
    from worldline.data.dataset import ClipDataset
    from worldline.models.codec import Codec
    from worldline.models.image_cache import ImageEncoder
    from worldline.models.text_cache import TextEncoder
    from worldline.recipes.schema import Recipe


@dataclass(frozen=True)
class Workspace:
    """A recipe and its run directory. Parts (`data`, `codec`, `base`) are made by the run or come from outside.
    track: trackers that training logs to beside its own files."""

    recipe: Recipe
    run_dir: Path
    track: tuple[str, ...] = ()

    def outside(self, part: str) -> str | None:
        """The recipe's path of a part from outside the run; None where the run makes it."""
        paths = {"data": self.recipe.data.path, "codec": self.recipe.codec.path, "base": self.recipe.base.path}
        return paths[part]

    def internal(self, *parts: str) -> tuple[str, ...]:
        """Those parts that are stages of this run."""
        return tuple(part for part in parts if self.outside(part) is None)

    def external(self, *parts: str) -> dict[str, str]:
        """Content hashes of those parts that come from outside. Raises WorldlineError where one is missing."""
        hashes = {}
        for part in parts:
            if self.outside(part) is not None:
                hashes[part] = self._fingerprint() if part == "data" else weights_hash(self.part(part))
        return hashes

    def initial(self, part: str) -> dict[str, str]:
        """Content hash of the weights that training `codec` or `base` goes on from, if the recipe names any."""
        path = {"codec": self.recipe.codec.init, "base": self.recipe.base.init}[part]
        return {} if path is None else {f"{part} init": weights_hash(located(path, part))}

    def _fingerprint(self) -> str:
        path = self.part("data") / "dataset.json"
        if not path.is_file():
            raise WorldlineError(f"data.path: {path.parent} is no finished dataset; run `worldline data build`")
        info = json.loads(path.read_text())
        return f"{info['fingerprint']}-{info['clips']}"

    def part(self, part: str) -> Path:
        """Directory of `data`, or model directory of `codec` or `base`."""
        path = self.outside(part)
        if path is None:
            return self.run_dir / part if part == "data" else self.run_dir / part / "model"
        return Path(path) if part == "data" else located(path, part)

    def plain_base(self) -> bool:
        """Whether the base is a video model without controls, and not a world model to go on from."""
        if self.recipe.base.path is None:
            return True
        config = json.loads((self.part("base") / "config.json").read_text()).get("config", {})
        return config.get("camera", "none") == "none" and not config.get("motion") and not config.get("actions")

    def model_dir(self, stage: str) -> Path:
        """Model directory of a stage, of the base, or of what a role names from elsewhere."""
        if is_directory(stage):
            if is_diffusers_folder(stage):
                raise WorldlineError(
                    f"{stage} is a diffusers folder; expected a model directory: make one (worldline convert), or, for "
                    f"`real` of dmd, say real: {{diffusers: {stage}}}"
                )
            return located(stage, "init")
        return self.part("base") if stage == "base" else self.run_dir / stage / "model"

    def model(self, stage: str, camera: CameraMode | None = None) -> Backbone:
        """A stage's weights in the recipe's backbone (`camera` overrides how it takes cameras). A base without camera
        projections gets silent ones."""
        return self.weights(self.model_dir(stage), self.recipe.model.config(camera))

    @staticmethod
    def weights(directory: Path, config: BackboneConfig) -> Backbone:
        """The weights in `directory` in a backbone of `config`. Raises WorldlineError where sizes differ."""
        trained = load_model(directory)
        if not isinstance(trained, Backbone):
            raise WorldlineError(f"{directory} holds a {type(trained).__name__}; expected a video model")
        if trained.config == config:
            return trained
        steering = {name: getattr(config, name) for name in config.FREE}
        if type(trained.config) is not type(config):
            raise WorldlineError(
                f"{directory} holds a {type(trained).__name__}; expected the recipe's variant, {type(config).__name__}: "
                "another model, or model.variant"
            )
        if replace(trained.config, **steering) != config:
            have, want = vars(trained.config), vars(config)
            unlike = [f"{k} {have[k]} (recipe: {want[k]})" for k in want if k not in steering and have[k] != want[k]]
            raise WorldlineError(
                f"{directory} has {', '.join(unlike)}; expected the same sizes: another model, or model.changes"
            )
        model = build_backbone(config)
        load_state(model, trained.state_dict(), may_miss=INJECTED)
        return model.eval()

    def codec(self) -> Codec:
        """The codec, ready to encode and decode."""
        return load_codec(self.part("codec"))

    def text_encoder(self) -> TextEncoder:
        """The prompt encoder that the recipe names. Raises WorldlineError where its files are missing or do not fit."""
        config, text = self.recipe.model.config(), self.recipe.text
        if text.kind == "hash" or text.path is None:
            return HashTextEncoder(config.text_dim, config.text_len)
        return _reader(text.kind, text.path, text.cache or str(self.run_dir / "text"), config)

    def image_encoder(self) -> ImageEncoder | None:
        """The encoder of start images, None where the recipe's model is told nothing of them. Raises WorldlineError where its
        files are missing or do not fit."""
        text = self.recipe.text
        if not text.images or text.path is None:
            return None
        return _image_reader(text.path, text.cache or str(self.run_dir / "text"), self.recipe.model.config())

    def clips(self) -> ClipDataset:
        """The rendered clips."""
        from worldline.data.dataset import open_dataset

        return open_dataset(self.part("data"))

    def few_step(self, stage: str | None) -> bool:
        """Whether a stage's model is a student that answers in a few steps."""
        return stage in self.recipe.stages and self.recipe.stages[stage].method in ("ode", "consistency", "dmd")

    def first(self, *methods: str) -> str | None:
        """The first stage of any of these methods: how reports find the bidirectional and the multi-step causal model."""
        return next((name for name, stage in self.recipe.stages.items() if stage.method in methods), None)

    @property
    def last(self) -> str | None:
        """The last conversion stage: the world's weights."""
        return list(self.recipe.stages)[-1] if self.recipe.stages else None

    @staticmethod
    def bundled_world() -> Path | None:
        """The bundled world, where the package has one."""
        world = ASSETS / LINE / "world"
        return world if (world / "world.json").is_file() else None


@lru_cache(maxsize=4)
def _reader(kind: Reader, folder: str, cache: str, config: BackboneConfig) -> TextEncoder:
    """A large encoder behind its cache. Made once: its name alone reads a page of every tensor."""
    import torch

    from worldline.models.text_cache import CachedTextEncoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return CachedTextEncoder.of(open_reader(kind, folder, config, device), cache)


@lru_cache(maxsize=4)
def _image_reader(folder: str, cache: str, config: BackboneConfig) -> ImageEncoder:
    """SigLIP behind its cache, as `_reader`."""
    import torch

    from worldline.models.image_cache import CachedImageEncoder

    made = open_image_reader(folder, config, "cuda" if torch.cuda.is_available() else "cpu")
    return CachedImageEncoder(lambda: made, cache, fingerprint=made.fingerprint)
