"""The lexical vectorizer: the same text, the same numbers, on every machine."""

from __future__ import annotations

import asyncio
import hashlib
import math
from array import array

import pytest

from fm_storage.vectors import Embedding, LexicalVectorizer, SparseVector, Vectorizer
from fm_storage.vectors.vectorizers.lexical import terms_of

TRACE = """Traceback (most recent call last):
  File "/srv/app/billing/card_service.py", line 88, in chargeCard
    await gateway.submit(HTTPRequest(card))
fm_storage.errors.PoolTimeout: pool 'postgres': no connection within 30.00 s
"""


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("payment refused", ["payment", "refused"]),
        ("chargeCard", ["chargecard", "charge", "card"]),
        ("HTTPRequest", ["httprequest", "http", "request"]),
        ("snake_case_name", ["snake_case_name", "snake", "case", "name"]),
        ("a.b", ["a.b", "a", "b"]),
        ("utf8", ["utf8", "utf", "8"]),
        ("0xdeadbeef", []),
        ("id 0b6ccd2f-6b9c-4c4c-9d4b-4a52c1a6b111 end", ["id", "end"]),
        ("code 23505", ["code", "23505"]),
        ("1234567890", []),
        ("ÉTÉ Straße", ["été", "strasse"]),
        ("错误 发生", ["错误", "发生"]),
    ],
)
def test_terms_of_a_text(text: str, terms: list[str]) -> None:
    """Identifiers count whole and by their parts; what is random does not count."""
    assert terms_of(text) == terms


async def test_same_text_gives_the_same_vector_for_ever() -> None:
    """The numbers are pinned: stored vectors must stay comparable for years."""
    (one,) = await LexicalVectorizer().embed([TRACE])
    (two,) = await LexicalVectorizer().embed([TRACE])
    assert one == two
    assert one.sparse is not None
    assert one.dense is not None
    rounded = [round(value, 4) + 0.0 for value in one.dense]
    digest = hashlib.sha256(repr((list(one.sparse.indices), rounded)).encode())
    assert digest.hexdigest()[:16] == "d56131e1292b8231"


async def test_embedding_has_the_shape_that_the_definition_says() -> None:
    """Unit length, the right size, sorted distinct terms."""
    vectorizer = LexicalVectorizer(size=64)
    assert isinstance(vectorizer, Vectorizer)
    assert vectorizer.name == "lexical-v1-64"
    assert LexicalVectorizer().name == "lexical-v1"
    assert vectorizer.spec.vectors["dense"].size == 64
    (made,) = await vectorizer.embed([TRACE])
    assert isinstance(made.dense, array)
    assert len(made.dense) == 64
    assert math.sqrt(sum(v * v for v in made.dense)) == pytest.approx(1, abs=1e-5)
    assert made.sparse is not None
    assert list(made.sparse.indices) == sorted(set(made.sparse.indices))
    assert all(value > 0 for value in made.sparse.values)


@pytest.mark.parametrize("text", ["", "   ", "0xdeadbeef", "!!!"])
async def test_text_without_words_has_no_sparse_part(text: str) -> None:
    """Its dense part is still a vector that cosine can work with."""
    (made,) = await LexicalVectorizer().embed([text])
    assert made.sparse is None
    assert made.dense is not None
    assert sum(v * v for v in made.dense) == 1.0


async def test_similar_traces_are_nearer_than_others() -> None:
    """Another line number and address is nearly the same; another error is not."""
    changed = TRACE.replace("line 88", "line 91").replace("30.00", "29.10")
    other = "KeyError: 'colour'\n  File 'render.py', line 3, in paint"
    one, near, far = await LexicalVectorizer().embed([TRACE, changed, other])

    def cosine(a: Embedding, b: Embedding) -> float:
        assert a.dense is not None
        assert b.dense is not None
        return sum(x * y for x, y in zip(a.dense, b.dense, strict=True))

    assert cosine(one, near) > 0.9
    assert cosine(one, far) < 0.6


async def test_embedding_many_keeps_the_order() -> None:
    """One embedding per text, in order, also from several tasks at once."""
    vectorizer = LexicalVectorizer()
    texts = [f"error number {i} in module{i}" for i in range(100)]
    several = await asyncio.gather(*(vectorizer.embed(texts) for _ in range(4)))
    alone = [vectorizer.embed_one(text) for text in texts]
    assert all(found == alone for found in several)


async def test_cache_of_terms_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endless vocabularies do not fill the memory, and change no vector."""
    monkeypatch.setattr("fm_storage.vectors.vectorizers.lexical._CACHE_LIMIT", 50)
    vectorizer = LexicalVectorizer()
    texts = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)}x" for i in range(300)]
    made = await vectorizer.embed(texts)
    assert len(vectorizer._features) <= 50
    assert made[0] == LexicalVectorizer().embed_one(texts[0])


def test_sparse_vectors_compare_by_value() -> None:
    """Two equal sparse vectors are equal."""
    assert SparseVector([1], [2.0]) == SparseVector([1], [2.0])
