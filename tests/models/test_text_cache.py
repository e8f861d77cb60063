"""Embeddings on disk: same bytes as the encoder's, no encoder on hits, no bad entry after a crash."""

from __future__ import annotations

import ast
import inspect
import logging
import os
import threading

import pytest
import torch

from worldline.models import prompts, text_cache, umt5
from worldline.models.text import HashTextEncoder
from worldline.models.text_cache import CachedTextEncoder, digest, sample_digest
from worldline.schema import TextEmbedding, WorldlineError

PROMPTS = ["a long hall of red bricks", "", "a door", "a long hall of red bricks"]


class Counted(HashTextEncoder):
    """A hash encoder that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(dim=8, length=6)
        self.asked: list[list[str]] = []

    def encode(self, prompts: list[str]) -> TextEmbedding:
        self.asked.append(prompts)
        return super().encode(prompts)


def never():
    raise AssertionError("the encoder was built")


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def hits_only(directory):
    return CachedTextEncoder(never, directory, fingerprint=HashTextEncoder(8, 6).fingerprint)


def test_same_bytes_as_the_encoder_at_the_miss_and_at_the_hit(tmp_path):
    encoder = Counted()
    wanted = HashTextEncoder(8, 6).encode(PROMPTS)
    first = CachedTextEncoder.of(encoder, tmp_path).encode(PROMPTS)
    again = hits_only(tmp_path).encode(PROMPTS)
    for got in (first, again):
        assert torch.equal(got.tokens, wanted.tokens)
        assert torch.equal(got.mask, wanted.mask)
        assert got.fingerprint == wanted.fingerprint
    assert encoder.asked == [PROMPTS[:3]]  # one call, each prompt once
    assert len(files(tmp_path)) == 3
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in files(tmp_path)} == {(tmp_path / "plain").stat().st_mode}  # others may read


def test_the_encoder_is_built_once_and_only_for_what_is_missing(tmp_path):
    built = []

    def make():
        built.append(Counted())
        return built[-1]

    cached = CachedTextEncoder(make, tmp_path, fingerprint=Counted().fingerprint)
    assert not built
    cached.encode(["one"])
    cached.encode(["one", "two"])
    cached.encode(["three", "one"])
    assert [encoder.asked for encoder in built] == [[["one"], ["two"], ["three"]]]


def test_prompts_that_clean_to_the_same_text_share_an_entry_but_the_encoder_gets_the_words_as_said(tmp_path):
    encoder = Counted()
    cached = CachedTextEncoder(
        lambda: encoder, tmp_path, fingerprint=encoder.fingerprint, clean=lambda prompt: " ".join(prompt.split())
    )
    cached.encode(["  a   door "])
    assert encoder.asked == [["  a   door "]]
    cached.encode(["a door", "a\ndoor"])
    assert len(encoder.asked) == 1
    assert cached.path("a door") == cached.path(" a  door")


def test_another_encoder_has_other_entries(tmp_path):
    CachedTextEncoder.of(HashTextEncoder(8, 6), tmp_path).encode(["a"])
    wider = CachedTextEncoder.of(HashTextEncoder(16, 6), tmp_path).encode(["a"])
    assert wider.tokens.shape == (1, 6, 16)
    assert torch.equal(hits_only(tmp_path).encode(["a"]).tokens, HashTextEncoder(8, 6).encode(["a"]).tokens)
    assert len(files(tmp_path)) == 2
    with pytest.raises(WorldlineError, match="its cache was opened for"):
        CachedTextEncoder(lambda: HashTextEncoder(8, 6), tmp_path, fingerprint="other").encode(["a"])
    with pytest.raises(WorldlineError, match="empty fingerprint"):
        CachedTextEncoder(never, tmp_path, fingerprint="")


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "mask", "swap", "noise"])
def test_a_damaged_entry_is_made_again_with_a_warning(tmp_path, caplog, damage):
    encoder = Counted()
    cached = CachedTextEncoder.of(encoder, tmp_path)
    wanted = cached.encode(["a door", "a wall"])
    path = cached.path("a door")
    whole = path.read_bytes()
    flipped, masked = bytearray(whole), bytearray(whole)
    flipped[-9] ^= 1  # a bit of a token: the mask is the last 6 bytes
    masked[-1] ^= 1
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "flip": bytes(flipped),
            "mask": bytes(masked),
            "swap": cached.path("a wall").read_bytes(),
            "noise": os.urandom(200),
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        again = cached.encode(["a door", "a wall"])
    assert torch.equal(again.tokens, wanted.tokens)
    assert encoder.asked == [["a door", "a wall"], ["a door"]]
    assert "made again" in caplog.text
    assert path.read_bytes() == whole


def test_an_interrupted_write_leaves_no_entry(tmp_path, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(text_cache.os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            CachedTextEncoder.of(Counted(), tmp_path).encode(["a"])
    assert files(tmp_path) == []
    encoder = Counted()
    CachedTextEncoder.of(encoder, tmp_path).encode(["a"])
    assert encoder.asked == [["a"]]


def test_a_process_killed_in_the_middle_of_a_write_leaves_no_entry(tmp_path):
    """Killed between bytes: what it leaves is never read as an entry."""
    child = os.fork()
    if child == 0:
        text_cache.os.fsync = lambda _: os._exit(9)
        CachedTextEncoder.of(HashTextEncoder(8, 6), tmp_path).encode(["a"])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert [path.suffix for path in files(tmp_path)] == [".tmp"]
    encoder = Counted()
    CachedTextEncoder.of(encoder, tmp_path).encode(["a"])
    assert encoder.asked == [["a"]]
    assert torch.equal(hits_only(tmp_path).encode(["a"]).tokens, HashTextEncoder(8, 6).encode(["a"]).tokens)


def test_writers_at_the_same_time_leave_whole_entries(tmp_path):
    prompts = [f"prompt {i}" for i in range(12)]
    failed = []

    def work():
        try:
            CachedTextEncoder.of(HashTextEncoder(8, 6), tmp_path).encode(prompts)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(files(tmp_path)) == len(prompts)
    assert torch.equal(hits_only(tmp_path).encode(prompts).tokens, HashTextEncoder(8, 6).encode(prompts).tokens)


def test_only_what_the_mask_shows_is_stored_and_in_half_the_bytes_where_nothing_is_lost(tmp_path):
    class Half(HashTextEncoder):
        """As an encoder run in bfloat16 answers; whatever it leaves under the mask does not reach anyone."""

        def encode(self, prompts):
            embedding = super().encode(prompts)
            tokens = embedding.tokens.bfloat16().float().masked_fill(~embedding.mask[..., None], float("nan"))
            return TextEmbedding(tokens, embedding.mask, self.fingerprint)

    half = CachedTextEncoder.of(Half(512, 400), tmp_path / "half")
    full = CachedTextEncoder.of(HashTextEncoder(512, 400), tmp_path / "full")
    text = "nine words " * 4
    given, again = half.encode([text]), half.encode([text])
    assert torch.equal(given.tokens, again.tokens)
    assert torch.isfinite(given.tokens).all()
    assert torch.equal(again.tokens, full.encode([text]).tokens.bfloat16().float())
    small, large = half.path(text).stat().st_size, full.path(text).stat().st_size
    assert 9 * 512 * 2 < small < 9 * 512 * 2 + 1500
    assert 9 * 512 * 4 < large < 9 * 512 * 4 + 1500


def test_a_folder_that_cannot_be_written_still_answers(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(text_cache.os, "replace", full)
    with caplog.at_level(logging.WARNING):
        got = CachedTextEncoder.of(HashTextEncoder(8, 6), tmp_path).encode(["a"])
    assert torch.equal(got.tokens, HashTextEncoder(8, 6).encode(["a"]).tokens)
    assert "No space left" in caplog.text
    (tmp_path / "file").write_text("")
    with pytest.raises(WorldlineError, match="choose another"):
        CachedTextEncoder.of(HashTextEncoder(8, 6), tmp_path / "file" / "inside")


def test_prompts_are_a_list_of_strings(tmp_path):
    for wrong in ([], "a door", [None]):
        with pytest.raises(WorldlineError, match="expected a list"):
            hits_only(tmp_path).encode(wrong)
    odd = CachedTextEncoder.of(HashTextEncoder(8, 6), tmp_path).encode(["door \ud800"])
    assert torch.equal(hits_only(tmp_path).encode(["door \ud800"]).tokens, odd.tokens)


def test_nothing_non_finite_is_kept(tmp_path):
    class Broken(HashTextEncoder):
        def encode(self, prompts):
            embedding = super().encode(prompts)
            return TextEmbedding(embedding.tokens / 0, embedding.mask, self.fingerprint)

    with pytest.raises(WorldlineError, match="non-finite"):
        CachedTextEncoder.of(Broken(8, 6), tmp_path).encode(["a"])
    assert files(tmp_path) == []


def test_digests_do_not_run_together():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a", "") != digest("a")
    weight = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    base = sample_digest([("a", weight), ("b", weight[:7])], torch.bfloat16)
    assert sample_digest([("b", weight[:7]), ("a", weight)], torch.bfloat16) == base
    assert sample_digest([("a", weight.bfloat16()), ("b", weight[:7])], torch.bfloat16) == base
    assert sample_digest([("a", weight * 1.05), ("b", weight[:7])], torch.bfloat16) != base
    assert sample_digest([("a", weight.view(50, 100)), ("b", weight[:7])], torch.bfloat16) != base
    for place in (0, 2600, 4999):
        other = weight.clone()
        other[place] += 1
        assert sample_digest([("a", other), ("b", weight[:7])], torch.bfloat16) != base


def test_text_modules_import_nothing_heavy():
    """transformers, tokenizers and ftfy belong inside the functions that use them."""
    for module in (text_cache, prompts, umt5):
        tree = ast.parse(inspect.getsource(module))
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in imports if isinstance(node, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in names} & {"transformers", "tokenizers", "ftfy", "safetensors"}
