"""Prompt embeddings: from a file, from umT5, or a seeded placeholder for random weights.

The model sees `text_len` rows per prompt: the real ones, then zeros. Those zeros are part of the
trained recipe (they pass through the text MLP and are attended to), hence `context_lens` says
where they begin instead of a mask that hides them.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidk._files import atomic_path

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_KEY = "prompt_embeds"


class TextError(ValueError):
    """A prompt, an embedding file or an encoder that does not fit, told in one sentence."""


@dataclass(frozen=True)
class PromptEmbeds:
    """Embeddings of B prompts.

    Attributes
    ----------
    embeds : float `[B, text_len, text_dim]`, zero after each prompt's real rows.
    context_lens : int32 `[B]`, the number of real rows.
    """

    embeds: Tensor
    context_lens: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> PromptEmbeds:
        """Return them on a device and in a float type."""
        return PromptEmbeds(self.embeds.to(device, dtype), self.context_lens.to(device))

    @classmethod
    def from_tensor(
        cls, embeds: Tensor, text_len: int, context_lens: Tensor | Sequence[int] | None = None
    ) -> PromptEmbeds:
        """Pad `[L, D]` or `[B, L, D]` with zeros to `[B, text_len, D]`.

        Parameters
        ----------
        embeds : float32, bfloat16, float16 or float64 (which becomes float32).
        text_len : rows the model takes, at least L.
        context_lens : `[B]` integers in 0..L; rows after them become zero. If None, the rows up to
            the last one that is not all zero are real.

        Raises
        ------
        TextError : wrong rank, dtype or lengths.
        """
        shape = list(embeds.shape)
        if embeds.dim() not in (2, 3) or 0 in (shape[0], shape[-1]):
            raise TextError(f"embeds: got shape {shape}, expected [L, D] or [B, L, D]")
        if embeds.dtype not in _FLOATS:
            raise TextError(f"embeds: got dtype {embeds.dtype}, expected a float type")
        rows = embeds.detach() if embeds.dim() == 3 else embeds.detach()[None]
        rows = rows.float() if rows.dtype == torch.float64 else rows
        batch, length, _ = rows.shape
        if length > text_len:
            raise TextError(f"embeds: got {length} rows, expected at most {text_len} (text_len)")
        place = torch.arange(1, length + 1, device=rows.device)
        if context_lens is None:
            lens = ((rows != 0).any(-1) * place).amax(1) if length else place.new_zeros(batch)
        else:
            lens = torch.as_tensor(context_lens, device=rows.device)
            bad = lens.shape != (batch,) or lens.is_floating_point()
            if bad or bool(((lens < 0) | (lens > length)).any()):
                raise TextError(
                    f"context_lens: got {lens.tolist()}, expected {batch} integers in 0..{length}"
                )
        padded = rows.new_zeros(batch, text_len, rows.shape[2])
        # where, not a product: NaN behind the end must not survive as NaN * 0.
        padded[:, :length] = rows.where((place <= lens[:, None])[..., None], 0)
        return cls(padded, lens.to(torch.int32))


def load_prompt_embeds(path: str | os.PathLike[str], text_len: int, text_dim: int) -> PromptEmbeds:
    """Read the embeddings of one prompt, `[L, D]` or `[1, L, D]`, from .safetensors or .pt.

    The file holds one tensor, or one named `prompt_embeds`. A .pt file is read with
    `weights_only=True`: nothing in it is executed.

    Raises
    ------
    TextError : the file is missing, damaged or of another kind, or the tensor does not fit.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".safetensors", ".pt", ".pth"):
        got = f"suffix '{suffix}'" if suffix else "no suffix"
        raise TextError(f"{path}: got {got}, expected .safetensors or .pt")
    if not os.path.isfile(path):
        raise TextError(f"{path}: there is no such file")
    try:
        if suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0][:200]
        raise TextError(f"{path}: cannot be read as {suffix}: {reason}") from error
    embeds = _only_tensor(path, content)
    shape = list(embeds.shape)
    if shape[-1:] != [text_dim] or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
        raise TextError(
            f"{path}: got shape {shape}, expected [L, {text_dim}] or [1, L, {text_dim}]"
        )
    try:
        prompt = PromptEmbeds.from_tensor(embeds, text_len)
    except TextError as error:
        raise TextError(f"{path}: {error}") from error
    if not bool(prompt.embeds.isfinite().all()):
        raise TextError(f"{path}: got NaN or infinity in the embeddings, expected finite numbers")
    return prompt


def seeded_embeds(prompt: str, text_len: int, text_dim: int) -> PromptEmbeds:
    """Return placeholder embeddings `[1, text_len, text_dim]` float32 of a prompt.

    One Gaussian row per word, drawn from a hash of the word; words after `text_len` are dropped.
    They mean nothing to a trained model: this is for configurations with random weights, where a
    prompt should still change the result, the same way on every run.
    """
    rows = []
    for word in clean_text(prompt).casefold().split()[:text_len]:
        digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        rows.append(torch.randn(text_dim, generator=generator))
    embeds = torch.stack(rows) if rows else torch.zeros(1, text_dim)
    return PromptEmbeds.from_tensor(embeds, text_len, [len(rows)])


def clean_text(text: str) -> str:
    """Return the text as umT5's training saw it: mojibake mended, HTML unescaped, spaces single.

    Mending needs the package ftfy and is left out without it.
    """
    try:
        import ftfy  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        pass
    else:
        text = ftfy.fix_text(text)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()


class UMT5Encoder:
    """The umT5 text encoder of Wan, through transformers; nothing is loaded before it is needed.

    Parameters
    ----------
    path_or_id : folder of a pipeline with `tokenizer` and `text_encoder`, or its id on the hub.
    max_length : rows per prompt, 512 for Wan.
    dtype, device : of the encoder and of its result. umT5-xxl takes 11 GB in bfloat16.
    cache : folder of embeddings that were computed before, created on the first miss. A prompt
        found there needs neither the encoder nor the package transformers.
    """

    def __init__(
        self,
        path_or_id: str | os.PathLike[str],
        max_length: int = 512,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        name = os.fspath(path_or_id)
        self.encoder_id = os.path.realpath(name) if os.path.isdir(name) else name
        self.max_length = max_length
        self.dtype = dtype
        self.device = torch.device(device)
        self.cache = None if cache is None else EmbedsCache(cache)
        self._models: tuple[Any, Any] | None = None

    @classmethod
    def from_models(
        cls, tokenizer: Any, model: Any, encoder_id: str, **options: Any
    ) -> UMT5Encoder:
        """Wrap a tokenizer and an encoder that are loaded already, such as those of a pipeline."""
        encoder = cls(encoder_id, **options)
        encoder._models = (tokenizer, model)
        return encoder

    def encode(self, prompts: str | Sequence[str]) -> PromptEmbeds:
        """Return the embeddings `[B, max_length, D]` of one prompt or several.

        Each row is cut to the tokenizer's real length and zero-padded. Raises TextError.
        """
        texts = [clean_text(text) for text in ([prompts] if isinstance(prompts, str) else prompts)]
        if not texts:
            raise TextError("prompts: got none, expected at least 1")
        keys = [self._key(text) for text in texts]
        known: dict[str, Tensor] = {}
        missing: dict[str, str] = {}
        for key, text in zip(keys, texts, strict=True):
            rows = self.cache.load(key) if self.cache else None
            if rows is None:
                missing[key] = text
            else:
                known[key] = rows
        if missing:
            fresh = dict(zip(missing, self._run(list(missing.values())), strict=True))
            known |= fresh
            for key, rows in fresh.items():
                if self.cache:
                    self.cache.store(key, rows)
        each = [known[key] for key in keys]
        embeds = torch.nn.utils.rnn.pad_sequence(each, batch_first=True).to(self.device)
        return PromptEmbeds.from_tensor(embeds, self.max_length, [len(rows) for rows in each])

    def _key(self, text: str) -> str:
        parts = [text, self.encoder_id, self.max_length, str(self.dtype)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @torch.no_grad()
    def _run(self, texts: list[str]) -> list[Tensor]:
        self._models = self._models or _load_umt5(self.encoder_id, self.dtype, self.device)
        tokenizer, model = self._models
        tokens = tokenizer(
            texts,
            padding="max_length",
            max_length=self.max_length,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids, mask = (tokens[name].to(self.device) for name in ("input_ids", "attention_mask"))
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.to("cpu", self.dtype)
        lens = mask.gt(0).sum(dim=1).tolist()
        return [rows[:n].clone() for rows, n in zip(hidden, lens, strict=True)]


class EmbedsCache:
    """A folder with one .safetensors file `[L, D]` per key, each a valid --prompt-embeds file."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def load(self, key: str) -> Tensor | None:
        """Return the rows stored under `key`, or None; a damaged file costs a warning."""
        path = self.folder / f"{key}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                stored = (file.metadata() or {}).get("key")
                rows: Tensor = file.get_tensor(_KEY)
        except FileNotFoundError:
            return None
        except Exception as error:
            return self._damaged(path, str(error))
        if stored != key or rows.dim() != 2:
            return self._damaged(path, "it belongs to another prompt or encoder")
        return rows

    def store(self, key: str, rows: Tensor) -> None:
        """Store rows; a folder that cannot be written costs a warning, not the result."""
        path = self.folder / f"{key}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temp:
                save_file({_KEY: rows.contiguous()}, temp, metadata={"key": key})
        except Exception as error:
            warnings.warn(f"{path}: embeddings were not cached: {error}", stacklevel=3)

    @staticmethod
    def _damaged(path: Path, reason: str) -> None:
        warnings.warn(f"{path}: ignored, and written anew: {reason}", stacklevel=4)


def _only_tensor(path: str | os.PathLike[str], content: Any) -> Tensor:
    if isinstance(content, dict):
        tensors = [value for value in content.values() if isinstance(value, Tensor)]
        content = content.get(_KEY, tensors[0] if len(tensors) == 1 == len(content) else content)
    if isinstance(content, Tensor):
        return content
    got = type(content).__name__
    if isinstance(content, dict):
        got = f"the entries {', '.join(sorted(map(str, content))[:4]) or 'none'}"
    raise TextError(f"{path}: got {got}, expected one tensor, or one named {_KEY}")


def _load_umt5(name: str, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    try:
        from transformers import AutoTokenizer, UMT5EncoderModel
    except ImportError as error:
        raise TextError(
            "UMT5Encoder: the package transformers is missing (pip install vidk[wan])"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, subfolder="tokenizer")
        model = UMT5EncoderModel.from_pretrained(
            name, subfolder="text_encoder", torch_dtype=dtype
        ).to(device)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise TextError(f"UMT5Encoder: {name}: cannot be loaded: {reason}") from error
    return tokenizer, model.eval()
