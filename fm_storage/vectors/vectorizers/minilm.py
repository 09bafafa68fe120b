"""A BERT encoder in numpy, for all-MiniLM-L6-v2: tokens, six layers, their mean.

Torch would be gigabytes for what takes a hundred lines; numpy releases the
interpreter while it multiplies, so that an event loop beside it goes on.

Loaded only with the extra ``minilm``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

_LONGEST = 256  # tokens; what the model was trained on
_FAR = -1e9


class MiniLm:
    """The encoder of one folder.

    Attributes:
        size: Length of its vectors.

    Raises:
        FileNotFoundError: The folder lacks one of its three files.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(2, "no such file", str(folder / name))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.size = int(config["hidden_size"])
        self._heads = int(config["num_attention_heads"])
        self._layers = int(config["num_hidden_layers"])
        self._tiny = float(config.get("layer_norm_eps", 1e-12))
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        longest = min(_LONGEST, int(config["max_position_embeddings"]))
        self._tokenizer.enable_truncation(longest)
        self._tokenizer.enable_padding()
        weights = load_file(str(folder / "model.safetensors"))
        # Some exports put the model's name in front.
        self._weights: Mapping[str, Any] = {
            key.removeprefix("bert."): value.astype(np.float32)
            for key, value in weights.items()
            if value.dtype.kind == "f"
        }

    def embed(self, texts: Sequence[str]) -> Any:
        """Return one unit vector per text."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([one.ids for one in encoded], dtype=np.int64)
        mask = np.array([one.attention_mask for one in encoded], dtype=np.float32)
        if not ids.size:
            return np.zeros((len(texts), self.size), dtype=np.float32)
        weights = self._weights
        state = (
            weights["embeddings.word_embeddings.weight"][ids]
            + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        state = self._normal(state, "embeddings.LayerNorm")
        unseen = ((1.0 - mask) * _FAR)[:, None, None, :]
        for number in range(self._layers):
            state = self._layer(state, unseen, f"encoder.layer.{number}")
        total = (state * mask[:, :, None]).sum(axis=1)
        mean = total / np.maximum(mask.sum(axis=1, keepdims=True), 1.0)
        length = np.linalg.norm(mean, axis=1, keepdims=True)
        return (mean / np.maximum(length, 1e-12)).astype(np.float32)

    def _layer(self, state: Any, unseen: Any, name: str) -> Any:
        many, long, size = state.shape
        each = size // self._heads

        def split(part: str) -> Any:
            whole = self._dense(state, f"{name}.attention.self.{part}")
            return whole.reshape(many, long, self._heads, each).transpose(0, 2, 1, 3)

        query, key, value = split("query"), split("key"), split("value")
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(each**0.5) + unseen
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares = scores / scores.sum(axis=-1, keepdims=True)
        seen = (shares @ value).transpose(0, 2, 1, 3).reshape(many, long, size)
        seen = self._dense(seen, f"{name}.attention.output.dense")
        state = self._normal(state + seen, f"{name}.attention.output.LayerNorm")
        inner = _gelu(self._dense(state, f"{name}.intermediate.dense"))
        inner = self._dense(inner, f"{name}.output.dense")
        return self._normal(state + inner, f"{name}.output.LayerNorm")

    def _dense(self, state: Any, name: str) -> Any:
        return state @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _normal(self, state: Any, name: str) -> Any:
        centred = state - state.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self._tiny)
        scaled = centred / spread
        return scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def _gelu(given: Any) -> Any:
    """Return ``x·Φ(x)``; numpy has no erf: Abramowitz and Stegun 7.1.26, ±1.5e-7."""
    scaled = np.abs(given) * np.float32(0.5**0.5)
    step = 1.0 / (1.0 + np.float32(0.3275911) * scaled)
    terms = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    sum_: Any = np.float32(0.0)
    for term in terms:
        sum_ = (sum_ + np.float32(term)) * step
    erf = np.sign(given) * (1.0 - sum_ * np.exp(-(scaled**2)))
    return 0.5 * given * (1.0 + erf)
