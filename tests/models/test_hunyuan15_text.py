"""The three readers against diffusers' pipeline, on random models of a few kilobytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldline.models.hunyuan15_text import SYSTEM, HunyuanTextEncoder, quoted_words
from worldline.schema import ShapeError, WorldlineError

transformers = pytest.importorskip("transformers")
LENS = (40, 24, 4)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A diffusers folder of tiny random models."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    root = tmp_path_factory.mktemp("hunyuan")
    torch.manual_seed(0)
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<|endoftext|>", additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    fast.chat_template = CHAT
    fast.save_pretrained(root / "tokenizer")
    qwen = transformers.Qwen2_5_VLTextConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    )  # fmt: skip
    randomised(transformers.Qwen2_5_VLTextModel(qwen)).save_pretrained(root / "text_encoder")
    transformers.ByT5Tokenizer().save_pretrained(root / "tokenizer_2")
    t5 = transformers.T5Config(
        vocab_size=384, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    randomised(transformers.T5EncoderModel(t5)).save_pretrained(root / "text_encoder_2")
    siglip = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    randomised(transformers.SiglipVisionModel(siglip)).save_pretrained(root / "image_encoder")
    transformers.SiglipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(root / "feature_extractor")
    return root


def randomised(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.fixture(scope="module")
def template(folder):
    """Tokens before the prompt's own, with this tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    lengths = [
        len(tokenizer.apply_chat_template(
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}], tokenize=True, return_dict=True
        )["input_ids"])
        for user in ("a", "ab")
    ]  # fmt: skip
    assert lengths[1] == lengths[0] + 1
    return lengths[0] - 2


@pytest.fixture(scope="module")
def encoder(folder, template):
    return HunyuanTextEncoder(folder, lens=LENS, template=template, dtype=torch.float32)


PROMPTS = ['a wall that says "exit" and "way"', "a room"]


def test_equals_diffusers(folder, template, encoder):
    pipeline = pytest.importorskip("diffusers").HunyuanVideo15ImageToVideoPipeline
    own = encoder.encode(PROMPTS)
    model = transformers.Qwen2_5_VLTextModel.from_pretrained(folder / "text_encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    words, mask = pipeline._get_mllm_prompt_embeds(
        model, tokenizer, PROMPTS, "cpu", tokenizer_max_length=LENS[0], crop_start=template
    )
    assert torch.equal(own.mask[:, : LENS[0]], mask.bool())
    wanted = words * mask[..., None]
    assert wanted.std() > 0.1
    torch.testing.assert_close(own.tokens[:, : LENS[0]], wanted, atol=1e-5, rtol=1e-5)

    byt5 = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder_2")
    bytes_tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer_2")
    quoted, quoted_mask = pipeline._get_byt5_prompt_embeds(bytes_tokenizer, byt5, PROMPTS, "cpu", LENS[1])
    place = slice(LENS[0], LENS[0] + LENS[1])
    assert torch.equal(own.mask[:, place], quoted_mask.bool())
    assert own.mask[0, place].any()
    assert not own.mask[1, place].any()
    torch.testing.assert_close(own.tokens[:, place, :16], quoted * quoted_mask[..., None], atol=1e-5, rtol=1e-5)
    assert not own.tokens[:, place, 16:].any()


def test_images_are_read_as_diffusers_reads_them(folder, encoder):
    from PIL import Image

    pipeline = pytest.importorskip("diffusers").HunyuanVideo15ImageToVideoPipeline
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    own = encoder.encode(["a room"], [image])
    siglip = transformers.SiglipVisionModel.from_pretrained(folder / "image_encoder")
    processor = transformers.SiglipImageProcessor.from_pretrained(folder / "feature_extractor")
    wanted = pipeline._get_image_embeds(siglip, processor, Image.fromarray(image), "cpu")[0]
    assert own.mask[0, -4:].all()
    torch.testing.assert_close(own.tokens[0, -4:, :16], wanted, atol=1e-5, rtol=1e-5)


def test_quoted_words():
    assert quoted_words("a room") is None
    assert quoted_words('says "exit"') == 'Text "exit". '
    assert quoted_words('"a" \u201cb\u201d "a"') == 'Text "a". Text "b". '


def test_an_answer_does_not_depend_on_its_company(encoder):
    together, alone = encoder.encode(PROMPTS), encoder.encode(PROMPTS[1:])
    assert torch.equal(together.tokens[1], alone.tokens[0])


def test_a_long_prompt_is_cut(encoder):
    found = encoder.encode(["word " * 100])
    assert found.tokens.shape == (1, sum(LENS), 32)
    assert int(found.mask.sum()) == LENS[0]


def test_the_fingerprint_names_weights_and_lengths(folder, template, encoder, tmp_path):
    import shutil

    assert (
        HunyuanTextEncoder(folder, lens=LENS, template=template, dtype=torch.float32).fingerprint == encoder.fingerprint
    )
    assert HunyuanTextEncoder(folder, lens=(39, 24, 4), template=template).fingerprint != encoder.fingerprint
    shutil.copytree(folder, tmp_path / "other")
    model = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder_2")
    randomised(model).save_pretrained(tmp_path / "other" / "text_encoder_2")
    other = HunyuanTextEncoder(tmp_path / "other", lens=LENS, template=template, dtype=torch.float32)
    assert other.fingerprint != encoder.fingerprint


def test_wrong_folders_and_images_are_refused(folder, template, encoder, tmp_path):
    import shutil

    with pytest.raises(WorldlineError, match="text_encoder, tokenizer"):
        HunyuanTextEncoder(tmp_path)
    for part in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"):
        shutil.copytree(folder / part, tmp_path / "blind" / part)
    blind = HunyuanTextEncoder(tmp_path / "blind", lens=LENS, template=template)
    with pytest.raises(WorldlineError, match="image-to-video"):
        blind.encode(["a"], [np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(ShapeError, match="uint8"):
        encoder.encode(["a"], [np.zeros((4, 4, 3), np.float32)])
    with pytest.raises(WorldlineError, match="list"):
        encoder.encode("a room")
