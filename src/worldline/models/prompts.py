"""Short prompts made long by a local chat model, the way the captions of training data are long.

Off unless a model folder is given. Decoding is greedy, answers are kept on disk under the hash of model, instruction,
limits and prompt, and nothing is downloaded.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.models.text_cache import check_prompts, digest, open_folder, sample_digest, writable, write_whole
from worldline.schema import WorldlineError

logger = logging.getLogger(__name__)

INSTRUCTION = (
    "You write the scene description that a video model renders as a world someone walks through. Rewrite the user's "
    "words as one paragraph of at most {words} words in plain English. Keep every fact the user gives and contradict "
    "none. Add what can be seen: the place, its layout near and far, materials, light, weather, the time of day, the "
    "visual style. Describe the place, not a film: no camera moves, no cuts, no sounds, no feelings, no story. Write "
    "only the paragraph, without a title, quotes or remarks."
)
"""What the chat model is told; part of the cache key."""

_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_SENTENCES = re.compile(r".*(?:[.!?][\"')\]\u201d\u2019]*(?=\s|\Z)|[\u3002\uff01\uff1f])")
_NAMED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class ExpansionError(WorldlineError):
    """A prompt that could not be expanded: no usable model, a prompt too long, or an empty answer."""


class PromptExpander:
    """expand(prompts) -> longer prompts. With `folder` None it is off and returns them as they are.

    folder: a chat model in transformers' layout (safetensors, tokenizer with a chat template). directory: where answers
    are kept (None: nowhere). max_words bounds an answer, max_new_tokens the work for it, max_prompt the characters of a
    prompt. The model loads at the first prompt without an answer; `offload_after_use` lets it go after every `expand`.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        directory: str | Path | None = None,
        max_words: int = 100,
        max_new_tokens: int = 256,
        max_prompt: int = 2000,
        instruction: str = INSTRUCTION,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        offload_after_use: bool = False,
    ) -> None:
        if min(max_words, max_new_tokens, max_prompt) < 1:
            raise ExpansionError(
                f"limits are max_words {max_words}, max_new_tokens {max_new_tokens}, max_prompt {max_prompt}; expected "
                "whole numbers of at least 1"
            )
        if folder is not None and not (Path(folder) / "config.json").is_file():
            raise ExpansionError(f"{folder} has no config.json; expected the local folder of a chat model")
        self.folder = None if folder is None else Path(folder)
        self.directory = None if directory is None or folder is None else open_folder(directory)
        self.max_words, self.max_new_tokens, self.max_prompt = max_words, max_new_tokens, max_prompt
        self.instruction = instruction.replace("{words}", str(max_words))
        self.dtype, self.device, self.offload_after_use = dtype, torch.device(device), offload_after_use
        self._loaded: tuple[Any, Any] | None = None
        self._lock = threading.Lock()

    @property
    def enabled(self) -> bool:
        """Whether prompts are changed at all."""
        return self.folder is not None

    @cached_property
    def fingerprint(self) -> str:
        """Names what this expander answers: model, tokenizer, template, instruction, limits and dtype; "off" when off."""
        if self.folder is None:
            return "off"
        sampled = sample_digest(_weights(self.folder), self.dtype)
        files = [(self.folder / name).read_bytes() if (self.folder / name).is_file() else b"" for name in _NAMED]
        whole = digest("v1", sampled, *files, self.instruction, str((self.max_words, self.max_new_tokens, self.dtype)))
        return f"expand-v1-{whole[:16]}"

    def expand(self, prompts: list[str]) -> list[str]:
        """One longer prompt for each; the same prompt gives the same answer. Raises ExpansionError, see there."""
        prompts = check_prompts(prompts)
        if not self.enabled:
            return prompts
        for prompt in prompts:
            if len(prompt) > self.max_prompt:
                raise ExpansionError(
                    f"a prompt of {len(prompt)} characters: {prompt[:60]!r} ...; expected at most {self.max_prompt}, shorten it"
                )
        try:
            return [self._expand(" ".join(writable(prompt).split())) for prompt in prompts]
        finally:
            if self.offload_after_use:
                self.offload()

    def offload(self) -> None:
        """Let go of the model now; the next prompt without an answer reads it again."""
        with self._lock:
            self._loaded = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _expand(self, prompt: str) -> str:
        if not prompt:
            return prompt  # the empty prompt means "no prompt" to guidance; a scene would be an invention
        path = None if self.directory is None else self.directory / f"{digest(self.fingerprint, prompt)}.json"
        if path is not None and (kept := _read(path, prompt)) is not None:
            return kept
        with self._lock:
            expanded = self._answer(prompt)
        if path is not None:
            entry = {"prompt": prompt, "expanded": expanded, "sum": digest(prompt, expanded)}
            try:
                write_whole(path, json.dumps(entry, ensure_ascii=False).encode())
            except OSError as error:
                logger.warning("could not keep the expansion of %r in %s: %s", prompt[:60], self.directory, error)
        return expanded

    @torch.no_grad()
    def _answer(self, prompt: str) -> str:
        """Greedy decoding of one conversation; alone, so that an answer does not depend on its company."""
        if self._loaded is None:
            self._loaded = self._load()
        tokenizer, model = self._loaded
        asked = tokenizer(self._conversation(tokenizer, prompt), add_special_tokens=False, return_tensors="pt")
        ids = asked["input_ids"].to(self.device)
        out = model.generate(ids, attention_mask=torch.ones_like(ids))
        said = out[0, ids.shape[1] :]
        ended = len(said) > 0 and int(said[-1]) in model.generation_config.eos_token_id
        answer = tidy(tokenizer.decode(said, skip_special_tokens=True), self.max_words, ended=ended)
        if not answer:
            raise ExpansionError(
                f"{self.folder} answered {prompt[:60]!r} with nothing usable in {self.max_new_tokens} tokens; raise "
                "max_new_tokens, use another model, or turn expansion off"
            )
        return answer

    def _conversation(self, tokenizer: Any, prompt: str) -> str:
        """The prompt under the instruction, in the model's own template; some templates know no system role."""
        system, user = {"role": "system", "content": self.instruction}, {"role": "user", "content": prompt}
        folded = {"role": "user", "content": f"{self.instruction}\n\n{prompt}"}
        # `enable_thinking` is read by the templates that have it and ignored by the others
        render = partial(
            tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        try:
            return str(render([system, user]))
        except Exception:  # the template's own refusal, of any type
            try:
                return str(render([folded]))
            except Exception as error:
                raise ExpansionError(
                    f"{self.folder} cannot render a conversation: {error}; expected a chat model with a template"
                ) from error

    def _load(self) -> tuple[Any, Any]:
        from safetensors import SafetensorError

        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
        except ImportError as error:
            raise ExpansionError("prompt expansion needs transformers; install worldline[text]") from error
        local = dict(local_files_only=True, trust_remote_code=False)
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, **local)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(self.folder), **local, dtype=self.dtype, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise ExpansionError(f"{self.folder} cannot be loaded as a chat model: {error}") from error
        model, report = loaded
        if bad := sorted(report["missing_keys"]):
            raise ExpansionError(f"{self.folder} lacks {len(bad)} weights of its model: {bad[:10]}; fetch it again")
        ends = _ends(tokenizer, model)
        # in place of the folder's own, which may ask for sampling, beams or penalties and would fill what ours leaves open
        model.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens, eos_token_id=ends, pad_token_id=ends[0]
        )
        return tokenizer, model.to(self.device).eval()


def tidy(answer: str, max_words: int, *, ended: bool = True) -> str:
    """A model's answer as a prompt: no thoughts, no wrapping quotes, one line, at most `max_words`.

    An answer that is cut here, or was cut by the token limit (not `ended`), stops at its last whole sentence if it has one.
    """
    words = _THOUGHT.sub(" ", answer).strip().strip("\"'“”`").split()
    text = " ".join(words[:max_words])
    whole = None if ended and len(words) <= max_words else _SENTENCES.match(text)
    return whole[0] if whole else text


def _weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ExpansionError(f"{folder} has no *.safetensors; expected the weights of a chat model")
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                for key in list(handle.keys()):
                    yield key, handle.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ExpansionError(f"{file} is damaged: {error}; fetch it again") from error


def _ends(tokenizer: Any, model: Any) -> list[int]:
    """Every token that ends an answer: chat models list the end of a turn in their generation config."""
    said = model.generation_config.eos_token_id
    ends = sorted({tokenizer.eos_token_id, *(said if isinstance(said, list) else [said])} - {None})
    if not ends:
        raise ExpansionError(f"{tokenizer.name_or_path} names no end token; expected a chat model")
    return ends


def _read(path: Path, prompt: str) -> str | None:
    """The kept answer; None where there is none or its file is damaged."""
    try:
        entry = json.loads(path.read_bytes())
        if entry["prompt"] == prompt and entry["sum"] == digest(prompt, entry["expanded"]):
            return str(entry["expanded"])
        problem = "it does not check"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = str(error)
    logger.warning("the kept expansion %s is unusable and is made again: %s", path, problem)
    return None
