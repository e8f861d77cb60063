"""Wan's prompt encoder, UMT5-XXL (encoder only, 5.68 B weights, 4096 wide), from files on this machine.

A prompt is cleaned, cut to 512 tokens (its end token included) and encoded alone at its true length; the rest of the 512
places are zeros, which Wan's cross-attention does attend to. Alone, because UMT5 masks padding: a padded batch gives
the same numbers up to rounding for up to 512 tokens of work, and an embedding would then depend on its company.
Two layouts of the published weights are read: diffusers' (`text_encoder/`, `tokenizer/`) and the original one.
"""

from __future__ import annotations

import html
import importlib.util
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldline.models.text_cache import check_prompts, digest, sample_digest, writable
from worldline.schema import TextEmbedding, WorldlineError

logger = logging.getLogger(__name__)

WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"  # noqa: RUF001
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"  # noqa: RUF001
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"  # noqa: RUF001
)
"""What Wan 2.1 and 2.2 are guided away from: the published text, 137 characters."""

ORIGINAL_WEIGHTS = "models_t5_umt5-xxl-enc-bf16.pth"
ORIGINAL_TOKENIZER = "google/umt5-xxl"

_TIED = "encoder.embed_tokens.weight"
_OUTSIDE = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
_INSIDE = {
    "norm1.weight": "layer.0.layer_norm.weight",
    **{f"attn.{x}.weight": f"layer.0.SelfAttention.{x}.weight" for x in "qkvo"},
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_CONFIG = {
    "vocab_size": 250112,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
}
"""What of a UMT5 config changes its answers, with the values that a file leaves out."""


class TextWeightsError(WorldlineError):
    """Weights that are not the ones this encoder is made of; the message lists the keys."""


def clean_prompt(prompt: str) -> str:
    """Wan's cleaning: ftfy, HTML entities resolved twice, one space for every run of white space.

    ftfy mends broken encodings and makes curly quotes and full-width punctuation plain. Wan's code always runs it; here it
    is left out where it is not installed, and a prompt with such characters then gives other tokens.
    """
    if importlib.util.find_spec("ftfy") is not None:
        import ftfy

        prompt = ftfy.fix_text(prompt)
    return writable(re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip())


def transformers_key(original: str) -> str | None:
    """Name in transformers of a weight of Wan's own T5 encoder; None for a name that encoder does not have."""
    if original in _OUTSIDE:
        return _OUTSIDE[original]
    inside = _BLOCK.fullmatch(original)
    if inside is None or inside[2] not in _INSIDE:
        return None
    return f"encoder.block.{inside[1]}.{_INSIDE[inside[2]]}"


def original_config(state: dict[str, Tensor]) -> dict[str, Any]:
    """The sizes of Wan's own encoder, read off its weights; what shapes do not say is fixed by its code."""
    try:
        vocab, width = state["token_embedding.weight"].shape
        buckets, heads = state["blocks.0.pos_embedding.embedding.weight"].shape
        inner, hidden = state["blocks.0.attn.q.weight"].shape[0], state["blocks.0.ffn.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise TextWeightsError(
            f"no Wan T5 encoder: {error} is absent or misshapen; its keys begin {sorted(state)[:5]}"
        ) from error
    sizes = {"vocab_size": vocab, "d_model": width, "d_kv": inner // heads, "d_ff": hidden, "num_heads": heads}
    layers = 1 + max(int(m[1]) for m in map(_BLOCK.fullmatch, state) if m)
    return {**_CONFIG, **sizes, "num_layers": layers, "relative_attention_num_buckets": buckets}


@dataclass(frozen=True)
class UMT5Weights:
    """Weights on disk under transformers' names, read one at a time; opening them reads headers only."""

    config: dict[str, Any]
    readers: dict[str, Callable[[], Tensor]]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for key in sorted(self.readers):
            yield key, self.readers[key]()


def open_original(path: Path) -> UMT5Weights:
    """Wan's `.pth`, mapped into memory and unpickled as plain tensors only. Raises TextWeightsError on unknown keys."""
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged or foreign file fails in as many ways as there are files
        raise TextWeightsError(
            f"{path} cannot be read as weights alone: {error}; expected {ORIGINAL_WEIGHTS}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TextWeightsError(f"{path} holds {type(state).__name__}; expected a flat dict of tensors")
    if unknown := sorted(key for key in state if transformers_key(key) is None):
        raise TextWeightsError(f"{path}: {len(unknown)} keys that Wan's T5 encoder does not have: {unknown[:20]}")
    config = original_config(state)
    return UMT5Weights(config, {str(transformers_key(key)): partial(state.__getitem__, key) for key in state})


def open_diffusers(folder: Path) -> UMT5Weights:
    """A `text_encoder/` folder: config.json and safetensors, in one file or shards."""
    from safetensors import SafetensorError, safe_open

    described = _config_of(folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise TextWeightsError(f"{folder} has no *.safetensors; expected the weights of UMT5EncoderModel")
    readers: dict[str, Callable[[], Tensor]] = {}
    for file in files:
        try:
            handle = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise TextWeightsError(f"{file} is damaged: {error}; fetch it again") from error
        if twice := sorted(set(handle.keys()) & set(readers)):
            raise TextWeightsError(
                f"{file} repeats keys of another file in {folder}: {twice[:5]}; keep one of the two sets"
            )
        readers |= {key: partial(handle.get_tensor, key) for key in list(handle.keys())}
    return UMT5Weights(described, readers)


def _config_of(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TextWeightsError(f"{path} cannot be read: {error}; expected the config of UMT5EncoderModel") from error
    if described.get("model_type") != "umt5":
        raise TextWeightsError(f"{path} describes {described.get('model_type')!r}; expected 'umt5'")
    return {key: described.get(key, default) for key, default in _CONFIG.items()}


def _find(folder: Path) -> tuple[Callable[[], UMT5Weights], Path]:
    """How to open the weights of a folder, and its tokenizer file."""
    if (folder / "text_encoder").is_dir():
        opener = partial(open_diffusers, folder / "text_encoder")
        tokenizer = folder / "tokenizer" / "tokenizer.json"
    elif (folder / ORIGINAL_WEIGHTS).is_file():
        opener = partial(open_original, folder / ORIGINAL_WEIGHTS)
        tokenizer = folder / ORIGINAL_TOKENIZER / "tokenizer.json"
    else:
        raise TextWeightsError(
            f"{folder} has neither text_encoder/ (diffusers' layout) nor {ORIGINAL_WEIGHTS} (the original one); name a "
            "local folder of Wan weights, nothing is downloaded"
        )
    if not tokenizer.is_file():
        raise TextWeightsError(
            f"{tokenizer} is absent; both layouts of Wan's weights come with it, fetch it beside them"
        )
    return opener, tokenizer


class UMT5Encoder:
    """encode(prompts) -> TextEmbedding [B, length, D] fp32. Making one reads a few pages; weights load at the first prompt.

    folder: Wan weights in diffusers' or the original layout. dtype: bfloat16 as published, or float32 (float16 overflows
    in this family and is refused). offload_after_use: let go of the weights after every `encode`, so that a GPU has its
    11 GB back; the next call reads them again. Safe to call from several threads.
    """

    clean = staticmethod(clean_prompt)

    def __init__(
        self,
        folder: str | Path,
        *,
        length: int = 512,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        offload_after_use: bool = False,
    ) -> None:
        if dtype not in (torch.bfloat16, torch.float32):
            raise WorldlineError(f"text encoder dtype is {dtype}; expected torch.bfloat16 or torch.float32")
        if length < 2:
            raise WorldlineError(f"text length is {length}; expected at least 2 tokens (Wan: 512)")
        self._open, self._tokenizer_file = _find(Path(folder))
        self.folder, self.length, self.dtype, self.device = Path(folder), length, dtype, torch.device(device)
        self.offload_after_use = offload_after_use
        self.fingerprint: str = self._name()
        self._model: nn.Module | None = None
        self._lock = threading.Lock()

    def _name(self) -> str:
        """Names what this encoder answers, on any machine and for either layout: sizes, tokenizer, weights, length, dtype.

        The weights enter by `sample_digest` (three pages a tensor); the tokenizer file (16 MB) whole.
        """
        weights = self._open()
        named = ((key, tensor) for key, tensor in weights if key != _TIED or "shared.weight" not in weights.readers)
        sampled = sample_digest((("shared.weight" if key == _TIED else key, t) for key, t in named), self.dtype)
        config = json.dumps(weights.config, sort_keys=True)
        whole = digest("v1", config, self._tokenizer_file.read_bytes(), sampled)
        return f"umt5-v1-{whole[:16]}-{self.length}-{str(self.dtype).removeprefix('torch.')}"

    @cached_property
    def _tokenizer(self) -> Any:
        """The published tokenizer exactly as its file says; transformers 5 builds its T5 tokenizer by rules of its own."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise WorldlineError("prompts for Wan need tokenizers; install worldline[text]") from error
        try:
            tokenizer = Tokenizer.from_file(str(self._tokenizer_file))
        except Exception as error:  # tokenizers raises bare Exception
            raise TextWeightsError(f"{self._tokenizer_file} cannot be read: {error}; fetch it again") from error
        if (ends := tokenizer.encode("").tokens)[-1:] != ["</s>"]:
            raise TextWeightsError(
                f"{self._tokenizer_file} makes {ends} of an empty prompt; expected its end token, </s>"
            )
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.length)
        return tokenizer

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        """prompts: B strings -> tokens [B, length, D] on the CPU, zeros past each prompt's end, and their mask [B, length]."""
        prompts = check_prompts(prompts)
        with self._lock:
            try:
                return self._encode([self.clean(prompt) for prompt in prompts])
            finally:
                if self.offload_after_use:
                    self._let_go()

    def offload(self) -> None:
        """Let go of the weights now; the next `encode` reads them again."""
        with self._lock:
            self._let_go()

    def _encode(self, prompts: list[str]) -> TextEmbedding:
        encoded = [self._tokenizer.encode(prompt) for prompt in prompts]
        if self._model is None:
            self._model = self._load()
        model: Any = self._model
        tokens = torch.zeros(len(prompts), self.length, model.config.d_model)
        mask = torch.zeros(len(prompts), self.length, dtype=torch.bool)
        for b, one in enumerate(encoded):
            if one.overflowing:
                logger.warning("a prompt is cut to %d tokens: %r ...", self.length, prompts[b][:60])
            ids = torch.tensor([one.ids], device=self.device)
            hidden = model(input_ids=ids).last_hidden_state[0].float()
            if not torch.isfinite(hidden).all():
                raise WorldlineError(
                    f"the text encoder gave non-finite values for {prompts[b][:60]!r}; check its weights"
                )
            tokens[b, : len(hidden)], mask[b, : len(hidden)] = hidden.cpu(), True
        return TextEmbedding(tokens, mask, self.fingerprint)

    def _let_go(self) -> None:
        self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self) -> nn.Module:
        """transformers' UMT5EncoderModel around the weights, which pass one at a time from the file to the device."""
        try:
            from transformers import UMT5Config, UMT5EncoderModel
        except ImportError as error:
            raise WorldlineError("prompts for Wan need transformers; install worldline[text]") from error
        weights = self._open()
        with torch.device("meta"):
            model = UMT5EncoderModel(UMT5Config(**weights.config))
        expected = {key: p.shape for key, p in model.state_dict().items()}
        _check(weights, expected)
        for key, tensor in weights:
            if tensor.shape != expected[key]:
                raise TextWeightsError(f"{key} is {tuple(tensor.shape)}; the config expects {tuple(expected[key])}")
            path, _, name = key.rpartition(".")
            # copied even where nothing changes: matrix kernels round by the alignment of memory, and a mapped file's is its own
            value = nn.Parameter(tensor.to(self.device, self.dtype, copy=True), requires_grad=False)
            setattr(model.get_submodule(path), name, value)
        table = model.shared if "shared.weight" in weights.readers else model.encoder.embed_tokens
        model.shared.weight = model.encoder.embed_tokens.weight = table.weight
        if left := [key for key, p in (*model.named_parameters(), *model.named_buffers()) if p.is_meta]:
            raise TextWeightsError(
                f"{left} have no values after loading; this version of transformers is not understood"
            )
        if self._tokenizer.get_vocab_size() > weights.config["vocab_size"]:
            raise TextWeightsError(
                f"the tokenizer knows {self._tokenizer.get_vocab_size()} tokens, the weights {weights.config['vocab_size']}; "
                "they are of two encoders"
            )
        return model.eval()


def _check(weights: UMT5Weights, expected: dict[str, torch.Size]) -> None:
    """Every key is one the model has and none is missing; the embedding table may be stored once or twice, alike."""
    have, tied = set(weights.readers), {_TIED, "shared.weight"}
    missing, unknown = sorted(set(expected) - have - tied), sorted(have - set(expected))
    if not have & tied:
        missing.append("shared.weight")
    if missing or unknown:
        raise TextWeightsError(
            f"weights do not fit the UMT5 encoder: {len(missing)} missing {missing[:20]}, {len(unknown)} unknown {unknown[:20]}"
        )
    if tied <= have and not torch.equal(*(weights.readers[key]() for key in sorted(tied))):
        raise TextWeightsError(f"{sorted(tied)} differ; one embedding table is expected, stored once or twice alike")
