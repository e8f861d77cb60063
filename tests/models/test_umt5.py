"""Wan's prompt encoder against transformers, on a tiny model and tokenizer built here."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from tests.conftest import randomise

from worldline.models.text_cache import CachedTextEncoder
from worldline.models.umt5 import (
    ORIGINAL_TOKENIZER,
    ORIGINAL_WEIGHTS,
    WAN_NEGATIVE_PROMPT,
    TextWeightsError,
    UMT5Encoder,
    clean_prompt,
    transformers_key,
)
from worldline.schema import WorldlineError

pytest.importorskip("tokenizers", reason="prompts for Wan need worldline[text]")
transformers = pytest.importorskip("transformers", reason="prompts for Wan need worldline[text]")

PROMPTS = ["a long hall of red bricks", "", "door " * 3 + "lamp"]
WORDS = ["a", "long", "hall", "of", "red", "bricks", "door", "lamp"]


def tiny_tokenizer(path: Path) -> None:
    """A Unigram tokenizer of a few words that ends prompts as UMT5's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{w}" for w in WORDS), *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    path.parent.mkdir(parents=True)
    tokenizer.save(str(path))


@pytest.fixture(scope="module")
def model():
    """A two-layer UMT5 encoder with every weight drawn anew."""
    config = transformers.UMT5Config(
        vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.1
    )
    return randomise(transformers.UMT5EncoderModel(config), seed=3).eval()


@pytest.fixture(scope="module")
def diffusers_folder(model, tmp_path_factory) -> Path:
    """The tiny model in diffusers' layout."""
    folder = tmp_path_factory.mktemp("diffusers")
    model.save_pretrained(folder / "text_encoder")
    tiny_tokenizer(folder / "tokenizer" / "tokenizer.json")
    return folder


def original_state(model) -> dict[str, torch.Tensor]:
    """The tiny model's weights under the names of Wan's own code, written down here a second time."""
    state = {"token_embedding.weight": model.shared.weight, "norm.weight": model.encoder.final_layer_norm.weight}
    for i, block in enumerate(model.encoder.block):
        attention, ffn = block.layer[0], block.layer[1]
        state |= {
            f"blocks.{i}.norm1.weight": attention.layer_norm.weight,
            f"blocks.{i}.attn.q.weight": attention.SelfAttention.q.weight,
            f"blocks.{i}.attn.k.weight": attention.SelfAttention.k.weight,
            f"blocks.{i}.attn.v.weight": attention.SelfAttention.v.weight,
            f"blocks.{i}.attn.o.weight": attention.SelfAttention.o.weight,
            f"blocks.{i}.pos_embedding.embedding.weight": attention.SelfAttention.relative_attention_bias.weight,
            f"blocks.{i}.norm2.weight": ffn.layer_norm.weight,
            f"blocks.{i}.ffn.gate.0.weight": ffn.DenseReluDense.wi_0.weight,
            f"blocks.{i}.ffn.fc1.weight": ffn.DenseReluDense.wi_1.weight,
            f"blocks.{i}.ffn.fc2.weight": ffn.DenseReluDense.wo.weight,
        }
    return {key: value.detach().clone() for key, value in state.items()}


def original_folder(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    tiny_tokenizer(folder / ORIGINAL_TOKENIZER / "tokenizer.json")
    torch.save(state, folder / ORIGINAL_WEIGHTS)
    return folder


def wan_t5(state: dict[str, torch.Tensor], ids: torch.Tensor, heads: int) -> torch.Tensor:
    """Wan's encoder as its formulas say, on its own weight names: ids [L] -> [L, D]."""

    def norm(x, w):
        return w * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    length, x = len(ids), state["token_embedding.weight"][ids]
    far = torch.arange(length)[None] - torch.arange(length)[:, None]  # key - query
    log = 8 + (torch.log(far.abs().float() / 8) / torch.log(torch.tensor(128 / 8)) * 8).clamp(min=-99).long()
    bucket = (far > 0).long() * 16 + torch.where(far.abs() < 8, far.abs(), log.clamp(max=15))
    layers = sum(key.endswith("norm1.weight") for key in state)
    for i in range(layers):
        w = {k.removeprefix(f"blocks.{i}."): v for k, v in state.items() if k.startswith(f"blocks.{i}.")}
        h = norm(x, w["norm1.weight"])
        q, k, v = ((h @ w[f"attn.{n}.weight"].T).unflatten(-1, (heads, -1)).transpose(0, 1) for n in "qkv")
        bias = w["pos_embedding.embedding.weight"][bucket].permute(2, 0, 1)
        mixed = torch.softmax(q @ k.transpose(1, 2) + bias, -1) @ v  # T5 does not scale the product
        x = x + mixed.transpose(0, 1).flatten(1) @ w["attn.o.weight"].T
        h = norm(x, w["norm2.weight"])
        gate = torch.nn.functional.gelu(h @ w["ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (h @ w["ffn.fc1.weight"].T)) @ w["ffn.fc2.weight"].T
    return norm(x, state["norm.weight"])


def test_equals_transformers_with_its_own_padding(model, diffusers_folder):
    """The reference pads to the full length, masks, encodes the batch and zeros the padding, as diffusers does."""
    length = 16
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(diffusers_folder / "tokenizer" / "tokenizer.json"), pad_token="<pad>", eos_token="</s>"
    )
    batch = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        hidden = model(batch.input_ids, batch.attention_mask).last_hidden_state * batch.attention_mask[..., None]
    ours = UMT5Encoder(diffusers_folder, length=length, dtype=torch.float32).encode(PROMPTS)
    assert torch.equal(ours.mask, batch.attention_mask.bool())
    assert ours.mask.sum(1).tolist() == [7, 1, 5]
    assert (ours.tokens - hidden).abs().max() <= 1e-6 * hidden.abs().max()  # float64 brings it to 1e-15: rounding
    assert hidden.abs().max() > 0.5
    for b, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            alone = model(tokenizer(prompt, return_tensors="pt").input_ids).last_hidden_state[0]
        assert torch.equal(ours.tokens[b, : len(alone)], alone)


def test_padding_is_zeros_and_a_prompt_does_not_depend_on_its_company(diffusers_folder):
    encoder = UMT5Encoder(diffusers_folder, length=16, dtype=torch.float32)
    together = encoder.encode(PROMPTS)
    assert not together.tokens[~together.mask].any()
    assert together.tokens[together.mask].abs().sum(-1).min() > 0
    assert together.tokens.shape == (3, 16, 32)
    assert together.tokens.dtype == torch.float32
    for b, prompt in enumerate(PROMPTS):
        assert torch.equal(encoder.encode([prompt]).tokens[0], together.tokens[b])


def test_original_weights_give_the_same_bytes(model, diffusers_folder, tmp_path):
    state = original_state(model)
    folder = original_folder(tmp_path, state)
    for dtype in (torch.float32, torch.bfloat16):
        ours = UMT5Encoder(folder, length=16, dtype=dtype)
        theirs = UMT5Encoder(diffusers_folder, length=16, dtype=dtype)
        assert torch.equal(ours.encode(PROMPTS).tokens, theirs.encode(PROMPTS).tokens)
        assert ours.fingerprint == theirs.fingerprint


def test_equals_wans_own_formulas(model, tmp_path):
    """Wan's encoder, written out on its own names, at a length that reaches the logarithmic buckets."""
    state = original_state(model)
    encoder = UMT5Encoder(original_folder(tmp_path, state), length=64, dtype=torch.float32)
    prompt = "a long hall of red bricks " * 8
    ours = encoder.encode([prompt])
    ids = torch.tensor([*[4 + WORDS.index(w) for w in prompt.split()], 1])
    assert int(ours.mask.sum()) == len(ids) == 49
    wanted = wan_t5(state, ids, heads=4)
    assert (ours.tokens[0, :49] - wanted).abs().max() <= 5e-6 * wanted.abs().max()


def test_long_prompts_are_cut_with_a_warning_and_keep_the_end_token(diffusers_folder, caplog):
    encoder = UMT5Encoder(diffusers_folder, length=6, dtype=torch.float32)
    with caplog.at_level(logging.WARNING):
        cut = encoder.encode(["red " * 40])
    assert "cut to 6 tokens" in caplog.text
    assert cut.mask.all()
    assert torch.equal(cut.tokens, encoder.encode(["red " * 5]).tokens)


def test_the_table_of_embeddings_is_one(diffusers_folder):
    """transformers 5 once left one of the two tied names with random values (issue 43992)."""
    encoder = UMT5Encoder(diffusers_folder, dtype=torch.float32)
    encoder.encode(["a"])
    assert encoder._model.shared.weight is encoder._model.encoder.embed_tokens.weight


def test_published_file_in_bfloat16_stays_bfloat16(model, tmp_path):
    state = {key: value.bfloat16() for key, value in original_state(model).items()}
    encoder = UMT5Encoder(original_folder(tmp_path, state), length=16)
    tokens = encoder.encode(PROMPTS).tokens
    assert {p.dtype for p in encoder._model.parameters()} == {torch.bfloat16}
    assert torch.equal(tokens, tokens.bfloat16().float())


def test_the_same_weights_stored_wider_are_the_same_encoder(model, diffusers_folder, tmp_path):
    """diffusers' copies store in float32 what Wan published in bfloat16."""
    from safetensors.torch import save_file

    state = {key: value.bfloat16() for key, value in original_state(model).items()}
    published = UMT5Encoder(original_folder(tmp_path / "a", state), length=16)
    shutil.copytree(diffusers_folder, tmp_path / "b")
    wide = {str(transformers_key(key)): value.float() for key, value in state.items()}
    save_file(wide, tmp_path / "b" / "text_encoder" / "model.safetensors")
    copied = UMT5Encoder(tmp_path / "b", length=16)
    assert copied.fingerprint == published.fingerprint
    assert torch.equal(copied.encode(PROMPTS).tokens, published.encode(PROMPTS).tokens)


def test_offload_lets_the_weights_go_and_reads_them_again(diffusers_folder):
    encoder = UMT5Encoder(diffusers_folder, length=16, dtype=torch.float32, offload_after_use=True)
    first = encoder.encode(PROMPTS)
    assert encoder._model is None
    assert torch.equal(encoder.encode(PROMPTS).tokens, first.tokens)
    kept = UMT5Encoder(diffusers_folder, length=16, dtype=torch.float32)
    kept.encode(PROMPTS)
    assert kept._model is not None
    kept.offload()
    assert kept._model is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.update({"decoder.norm.weight": torch.ones(1)}), r"decoder\.norm\.weight"),
        (lambda s: s.pop("blocks.1.ffn.fc2.weight"), r"encoder\.block\.1\.layer\.1\.DenseReluDense\.wo\.weight"),
        (lambda s: s.pop("token_embedding.weight"), "token_embedding"),
        (lambda s: s.update({"norm.weight": torch.ones(5)}), r"final_layer_norm\.weight is \(5,\)"),
        (lambda s: s.update({"step": 3}), "flat dict of tensors"),
    ],
)
def test_weights_that_do_not_fit_are_named(model, tmp_path, change, said):
    state = original_state(model)
    change(state)
    with pytest.raises(TextWeightsError, match=said):
        UMT5Encoder(original_folder(tmp_path, state), dtype=torch.float32).encode(["a"])


def test_a_pickle_with_code_in_it_is_refused(model, tmp_path):
    state = original_state(model) | {"norm.weight": Path("somewhere")}
    with pytest.raises(TextWeightsError, match="cannot be read as weights alone"):
        UMT5Encoder(original_folder(tmp_path, state)).encode(["a"])


def test_embedding_table_under_either_name(model, diffusers_folder, tmp_path):
    from safetensors.torch import save_file

    wanted = UMT5Encoder(diffusers_folder, length=16, dtype=torch.float32)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for i, drop in enumerate(({"shared.weight"}, {"encoder.embed_tokens.weight"}, set())):
        folder = tmp_path / str(i)
        shutil.copytree(diffusers_folder, folder)
        save_file({k: v for k, v in state.items() if k not in drop}, folder / "text_encoder" / "model.safetensors")
        encoder = UMT5Encoder(folder, length=16, dtype=torch.float32)
        assert torch.equal(encoder.encode(PROMPTS).tokens, wanted.encode(PROMPTS).tokens)
        assert encoder.fingerprint == wanted.fingerprint
    state["shared.weight"] = state["shared.weight"] + 1
    save_file(state, folder / "text_encoder" / "model.safetensors")
    with pytest.raises(TextWeightsError, match="differ"):
        UMT5Encoder(folder).encode(["a"])


def test_shards_are_one_model_and_a_missing_shard_is_named(model, diffusers_folder, tmp_path):
    shutil.copytree(diffusers_folder / "tokenizer", tmp_path / "tokenizer")
    model.save_pretrained(tmp_path / "text_encoder", max_shard_size="40KB")
    shards = sorted((tmp_path / "text_encoder").glob("*.safetensors"))
    assert len(shards) > 1
    whole = UMT5Encoder(diffusers_folder, length=16, dtype=torch.float32)
    sharded = UMT5Encoder(tmp_path, length=16, dtype=torch.float32)
    assert torch.equal(sharded.encode(PROMPTS).tokens, whole.encode(PROMPTS).tokens)
    assert sharded.fingerprint == whole.fingerprint
    shards[-1].unlink()
    with pytest.raises(TextWeightsError, match="missing"):
        UMT5Encoder(tmp_path).encode(["a"])


def test_fingerprint_says_what_changes_the_answer(model, diffusers_folder, tmp_path):
    base = UMT5Encoder(diffusers_folder, length=16)
    assert base._model is None
    assert base.fingerprint == UMT5Encoder(diffusers_folder, length=16, offload_after_use=True).fingerprint
    prints = {base.fingerprint, UMT5Encoder(diffusers_folder, length=17).fingerprint}
    prints.add(UMT5Encoder(diffusers_folder, length=16, dtype=torch.float32).fingerprint)

    def copied(name: str) -> Path:
        return Path(shutil.copytree(diffusers_folder, tmp_path / name))

    moved = copied("moved")
    assert UMT5Encoder(moved, length=16).fingerprint == base.fingerprint
    tuned = copied("tuned")
    model.save_pretrained(
        tuned / "text_encoder", state_dict={k: v * 1.01 for k, v in model.state_dict().items()}, safe_serialization=True
    )
    words = copied("words") / "tokenizer" / "tokenizer.json"
    words.write_text(words.read_text().replace("▁lamp", "▁lantern"))
    config = copied("config") / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"relative_attention_max_distance": 64}))
    prints |= {UMT5Encoder(tmp_path / name, length=16).fingerprint for name in ("tuned", "words", "config")}
    assert len(prints) == 6


def test_cache_on_top_loads_no_weights_when_every_prompt_hits(diffusers_folder, tmp_path):
    made = CachedTextEncoder.of(UMT5Encoder(diffusers_folder, length=16), tmp_path).encode(PROMPTS)
    later = UMT5Encoder(diffusers_folder, length=16)
    again = CachedTextEncoder.of(later, tmp_path).encode([f"  {PROMPTS[0]}\n", *PROMPTS[1:]])
    assert later._model is None
    assert torch.equal(again.tokens, made.tokens)
    assert torch.equal(again.mask, made.mask)
    assert again.fingerprint == later.fingerprint


def test_feeds_the_backbone_and_padding_is_attended(diffusers_folder, tiny_wan):
    """Cross-attention gets a key for all 16 places, those past the prompt alike and not zero (the MLP has a bias)."""
    wan = tiny_wan(text_dim=32, text_len=16)
    context = wan.text_context(UMT5Encoder(diffusers_folder, length=16).encode(["a door"]))
    keys, _ = context.layers[0]
    assert keys.shape[2] == 16
    assert keys[:, :, 3:].abs().sum() > 0
    assert torch.equal(keys[:, :, 3], keys[:, :, 15])


def test_wrong_folders_and_options_are_named(diffusers_folder, tmp_path):
    with pytest.raises(TextWeightsError, match="neither text_encoder/"):
        UMT5Encoder(tmp_path)
    (tmp_path / "text_encoder").mkdir()
    with pytest.raises(TextWeightsError, match=r"tokenizer\.json is absent"):
        UMT5Encoder(tmp_path)
    with pytest.raises(WorldlineError, match="float16"):
        UMT5Encoder(diffusers_folder, dtype=torch.float16)
    with pytest.raises(WorldlineError, match="at least 2"):
        UMT5Encoder(diffusers_folder, length=1)
    with pytest.raises(WorldlineError, match="expected a list"):
        UMT5Encoder(diffusers_folder).encode("a string")
    shutil.copytree(diffusers_folder / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "text_encoder" / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "text_encoder" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(TextWeightsError, match="'t5'; expected 'umt5'"):
        UMT5Encoder(tmp_path).encode(["a"])
    (tmp_path / "text_encoder" / "config.json").write_text('{"model_type": "umt5"}')
    with pytest.raises(TextWeightsError, match="damaged"):
        UMT5Encoder(tmp_path).encode(["a"])


def test_a_tokenizer_of_another_model_is_refused(diffusers_folder, tmp_path):
    from tokenizers import Tokenizer, models

    shutil.copytree(diffusers_folder, tmp_path / "a")
    path = tmp_path / "a" / "tokenizer" / "tokenizer.json"
    Tokenizer(models.Unigram([("<unk>", 0.0)], unk_id=0)).save(str(path))
    with pytest.raises(TextWeightsError, match="expected its end token"):
        UMT5Encoder(tmp_path / "a").encode(["a"])
    path.unlink()
    path.parent.rmdir()
    tiny_tokenizer(path)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(400)])
    tokenizer.save(str(path))
    with pytest.raises(TextWeightsError, match="two encoders"):
        UMT5Encoder(tmp_path / "a").encode(["a"])


def test_every_original_name_of_the_published_depth_maps_once():
    names = ["token_embedding.weight", "norm.weight"]
    parts = [
        "norm1",
        *(f"attn.{x}" for x in "qkvo"),
        "pos_embedding.embedding",
        "norm2",
        "ffn.gate.0",
        "ffn.fc1",
        "ffn.fc2",
    ]
    names += [f"blocks.{i}.{part}.weight" for i in range(24) for part in parts]
    mapped = {transformers_key(name) for name in names}
    assert len(mapped) == len(names) == 242
    assert None not in mapped
    assert transformers_key("blocks.0.attn.q.bias") is None
    assert transformers_key("blocks.0.norm3.weight") is None


def test_the_published_sizes_fit_transformers_model():
    """Names and shapes of Wan's 242 weights at full size, on no memory: 5.68 B values."""
    from worldline.models.umt5 import original_config

    with torch.device("meta"):
        state = {"token_embedding.weight": torch.empty(256384, 4096), "norm.weight": torch.empty(4096)}
        for i in range(24):
            state |= {f"blocks.{i}.{n}.weight": torch.empty(4096) for n in ("norm1", "norm2")}
            state |= {f"blocks.{i}.attn.{x}.weight": torch.empty(4096, 4096) for x in "qkvo"}
            state |= {f"blocks.{i}.ffn.{n}.weight": torch.empty(10240, 4096) for n in ("gate.0", "fc1")}
            state[f"blocks.{i}.ffn.fc2.weight"] = torch.empty(4096, 10240)
            state[f"blocks.{i}.pos_embedding.embedding.weight"] = torch.empty(32, 64)
        full = transformers.UMT5EncoderModel(transformers.UMT5Config(**original_config(state)))
    wanted = {key: p.shape for key, p in full.state_dict().items() if key != "encoder.embed_tokens.weight"}
    assert {transformers_key(key): value.shape for key, value in state.items()} == wanted
    assert sum(value.numel() for value in state.values()) == 5_680_910_336


def test_cleaning_and_the_negative_prompt():
    assert clean_prompt("  a&amp;lt;b \n\t c&nbsp;d  ") == "a<b c d"
    assert clean_prompt("") == ""
    assert clean_prompt("a \ud800") in ("a ?", "a \ufffd")  # without ftfy, with it
    assert len(WAN_NEGATIVE_PROMPT) == 137
    assert hashlib.sha256(WAN_NEGATIVE_PROMPT.encode()).hexdigest().startswith("ce96e0324e4b54ce")
    # ftfy, which Wan's own code always runs, makes the full-width commas plain ones
    assert clean_prompt(WAN_NEGATIVE_PROMPT).replace("\uff0c", ",") == WAN_NEGATIVE_PROMPT.replace("\uff0c", ",")


def test_cleaning_with_ftfy_mends_encodings():
    pytest.importorskip("ftfy", reason="optional in worldline[text]")
    assert clean_prompt("a caf\u00c3\u00a9 \u201cred\u201d\uff0c dim") == 'a caf\u00e9 "red", dim'
