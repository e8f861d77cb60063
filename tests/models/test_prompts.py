"""Prompt expansion with a tiny random chat model: off by default, greedy, kept on disk."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from tests.conftest import randomise

from worldline.models.prompts import INSTRUCTION, ExpansionError, PromptExpander, tidy
from worldline.schema import WorldlineError


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    """A two-layer Llama of random weights with a tokenizer and a template; its own settings ask for sampling."""
    pytest.importorskip("tokenizers", reason="expansion needs worldline[text]")
    transformers = pytest.importorskip("transformers", reason="expansion needs worldline[text]")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("chat")
    words = ["<unk>", "</s>", "<turn>", *(f"word{i}" for i in range(60)), "hall", "red", "door", "at", "night", "a"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = (
        "{% for m in messages %}<turn> {{ m.role }} {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}<turn> {% endif %}"
    )
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    model = randomise(transformers.LlamaForCausalLM(config), seed=1, std=0.6)
    with torch.no_grad():
        model.lm_head.weight[:3] = 0  # the special tokens stay unlikely, so that answers have words
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=1.3, eos_token_id=[1, 2], max_new_tokens=2
    )
    model.save_pretrained(folder)
    return folder


def expander(folder, **options):
    return PromptExpander(folder, **{"max_new_tokens": 12, "dtype": torch.float32, **options})


def test_off_by_default(tmp_path):
    off = PromptExpander(directory=tmp_path / "kept")
    assert not off.enabled
    assert off.fingerprint == "off"
    assert off.expand(["  a hall", ""]) == ["  a hall", ""]
    assert not (tmp_path / "kept").exists()


def test_greedy_as_transformers_decodes_by_hand(chat_folder):
    """The answer is the most likely token, one after another, whatever the folder's own settings ask for."""
    import transformers

    answer = expander(chat_folder).expand(["a red hall"])[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(chat_folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(chat_folder, dtype=torch.float32).eval()
    system = INSTRUCTION.replace("{words}", "100")
    ids = tokenizer(f"<turn> system {system} <turn> user a red hall <turn> ", return_tensors="pt").input_ids
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(12):
            best = model(ids).logits[0, -1].argmax().view(1, 1)
            ids = torch.cat([ids, best], 1)
            if int(best) in (1, 2):
                break
    assert answer == tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    assert len(answer.split()) > 3


def test_deterministic_alone_or_in_company_and_across_instances(chat_folder):
    torch.manual_seed(1)
    together = expander(chat_folder).expand(["a red hall", "door at night"])
    torch.manual_seed(2)
    other = expander(chat_folder)
    assert other.expand(["door at night"]) == together[1:]
    assert other.expand(["  a   red\nhall "]) == together[:1]
    assert together[0] != together[1]


def test_kept_answers_need_no_model(chat_folder, tmp_path, monkeypatch):
    first = expander(chat_folder, directory=tmp_path).expand(["a red hall"])
    later = expander(chat_folder, directory=tmp_path)
    monkeypatch.setattr(later, "_load", lambda: pytest.fail("the model was loaded"))
    assert later.expand(["a red hall"]) == first
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"prompt": "a red hall", "expanded": "x", "sum": "0"}', b"[]", b"\xff"]
)
def test_a_damaged_answer_is_made_again_with_a_warning(chat_folder, tmp_path, caplog, damage):
    with_cache = expander(chat_folder, directory=tmp_path)
    first = with_cache.expand(["a red hall"])
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert with_cache.expand(["a red hall"]) == first
    assert "made again" in caplog.text
    assert path.read_bytes() == whole


def test_what_changes_the_answer_changes_the_fingerprint(chat_folder):
    options = [{}, {"max_words": 7}, {"max_new_tokens": 13}, {"instruction": "Say it."}, {"dtype": torch.bfloat16}]
    assert len({expander(chat_folder, **o).fingerprint for o in options}) == len(options)
    assert expander(chat_folder).fingerprint == expander(chat_folder).fingerprint


def test_limits(chat_folder):
    full = expander(chat_folder).expand(["a red hall"])[0]
    cut = expander(chat_folder, max_words=3, instruction=INSTRUCTION.replace("{words}", "100")).expand(["a red hall"])[
        0
    ]
    assert cut.split() == full.split()[:3]
    with pytest.raises(ExpansionError, match="3000 characters"):
        expander(chat_folder).expand(["x" * 3000])
    with pytest.raises(ExpansionError, match="max_words 0"):
        PromptExpander(max_words=0)


def test_the_empty_prompt_stays_empty(chat_folder, monkeypatch):
    model = expander(chat_folder)
    monkeypatch.setattr(model, "_load", lambda: pytest.fail("the model was loaded"))
    assert model.expand(["", "  "]) == ["", ""]


def test_a_template_without_a_system_role_gets_one_message(chat_folder, tmp_path):
    import shutil

    shutil.copytree(chat_folder, tmp_path, dirs_exist_ok=True)
    template = tmp_path / "chat_template.jinja"
    assert template.is_file()
    template.write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<turn> {{ m.role }} {{ m.content }} {% endfor %}<turn> "
    )
    folded = expander(tmp_path, instruction="night door")
    system, plain = folded._load()[0], folded.expand(["a red hall"])
    assert folded._conversation(system, "a red hall") == "<turn> user night door\n\na red hall <turn> "
    assert plain[0]
    template.unlink()
    with pytest.raises(ExpansionError, match="a chat model with a template"):
        expander(tmp_path).expand(["a red hall"])


def test_unusable_models_are_named(chat_folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    with pytest.raises(ExpansionError, match=r"no config\.json"):
        PromptExpander("someone/some-chat-model")
    shutil.copytree(chat_folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    gone = {key: value for key, value in weights.items() if key != "model.layers.1.mlp.up_proj.weight"}
    save_file(gone, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExpansionError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        expander(tmp_path).expand(["a red hall"])
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ExpansionError, match="cannot be loaded"):
        expander(tmp_path).expand(["a red hall"])
    with pytest.raises(ExpansionError, match="damaged"):
        expander(tmp_path, directory=tmp_path / "kept").expand(["a red hall"])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ExpansionError, match=r"no \*\.safetensors"):
        expander(tmp_path, directory=tmp_path / "kept").expand(["a red hall"])


def test_an_answer_of_nothing_is_an_error_and_is_not_kept(chat_folder, tmp_path, monkeypatch):
    model = expander(chat_folder, directory=tmp_path)
    tokenizer, network = model._load()
    monkeypatch.setattr(model, "_load", lambda: (tokenizer, network))
    monkeypatch.setattr(network, "generate", lambda ids, **_: torch.cat([ids, torch.tensor([[1]])], 1))
    with pytest.raises(ExpansionError, match="nothing usable"):
        model.expand(["a red hall"])
    assert list(tmp_path.iterdir()) == []


def test_tidy():
    assert tidy('"A hall of brick.\nIt is dim. And red"', 100) == "A hall of brick. It is dim. And red"
    assert tidy("A hall of brick. It is dim. And th", 100, ended=False) == "A hall of brick. It is dim."
    assert tidy("<think>what now. yes.</think>\n A hall", 100) == "A hall"
    assert tidy("<think>never ends. so", 100, ended=False) == ""
    assert tidy("one two three four", 3) == "one two three"
    assert tidy("One two. Three four five.", 4) == "One two."
    assert tidy("A wall of 3.5 metres and a", 5) == "A wall of 3.5 metres"
    assert tidy('A sign says "Stop." and then more', 5) == 'A sign says "Stop."'
    assert tidy("\u4e00\u5ea7\u3002\u7ea2", 5, ended=False) == "\u4e00\u5ea7\u3002"


def test_offload_lets_the_model_go_and_reads_it_again(chat_folder):
    model = expander(chat_folder, offload_after_use=True)
    first = model.expand(["a red hall"])
    assert model._loaded is None
    assert model.expand(["a red hall"]) == first


def test_prompts_are_a_list_of_strings(chat_folder):
    for wrong in ("a red hall", [], [None]):
        with pytest.raises(WorldlineError, match="expected a list"):
            expander(chat_folder).expand(wrong)
    assert expander(chat_folder).expand(["hall \ud800"])[0]


def test_entries_can_be_read_by_eye(chat_folder, tmp_path):
    answer = expander(chat_folder, directory=tmp_path).expand(["a red hall"])[0]
    (path,) = tmp_path.iterdir()
    entry = json.loads(path.read_text())
    assert (entry["prompt"], entry["expanded"]) == ("a red hall", answer)
