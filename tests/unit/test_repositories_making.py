"""Records made of rows: what the written code does is what the model would do."""

from __future__ import annotations

import enum
import gc
import pickle
from dataclasses import FrozenInstanceError, dataclass, field, replace
from typing import Annotated, Any

import pytest

from fm_storage.errors import InvalidRecord
from fm_storage.repositories import Column
from fm_storage.repositories.model.entity import Entity


class Colour(enum.Enum):
    """Stored by value."""

    RED = "red"


@dataclass(slots=True)
class Slotted:
    """The usual model."""

    id: int
    colour: Colour
    other: Colour | None = None


@dataclass
class Open:
    """With a dictionary, so that it can carry more than its fields."""

    id: int
    colour: Colour
    other: Colour | None = None


@dataclass(frozen=True, slots=True)
class Frozen:
    """Whose fields cannot be set."""

    id: int
    colour: Colour
    other: Colour | None = None


@dataclass(frozen=True)
class Fixed(Frozen):
    """Whose fields cannot be set, in a dictionary, and its parent's in slots."""


@dataclass(kw_only=True)
class Named:
    """Whose constructor wants names."""

    id: int
    colour: Colour
    other: Colour | None = None


@dataclass
class Child(Open):
    """Whose constructor has its parent's fields too."""

    third: Annotated[int, Column(type="int4")] = 3


@dataclass
class Checked:
    """Which looks at itself when it is made."""

    id: int
    colour: Colour
    other: Colour | None = None
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seen = [*self.seen, "looked"]


@dataclass
class Own:
    """Which has its own constructor."""

    id: int
    colour: Colour
    other: Colour | None = None

    def __init__(self, id: int, colour: Colour, other: Colour | None = None) -> None:
        self.id = id * 10
        self.colour = colour
        self.other = other


class Heir(Slotted):
    """Which is no dataclass of its own, but has a constructor."""

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self.made = True


class Guarded:
    """A parent that makes its children in its own way."""

    def __new__(cls, *_values: Any) -> Any:
        """Mark what is made."""
        made = super().__new__(cls)
        made.marked = True  # type: ignore[attr-defined]  # that is the test
        return made


@dataclass
class Ward(Guarded):
    """Whose parent must be asked."""

    id: int
    colour: Colour
    other: Colour | None = None


MODELS: list[type[Any]] = [
    *(Slotted, Open, Frozen, Fixed, Named, Child, Own, Heir, Ward)
]
PLAIN = (1, "red", None)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_row_becomes_what_the_constructor_makes(model):
    """One by one and many at once, for every shape that a dataclass can have."""
    entity: Entity[Any] = Entity(model, table="t")
    row = PLAIN + (3,) * (model is Child)
    names = [item.field for item in entity.stored]
    values: list[Any] = [1, Colour.RED, None, *row[3:]]
    by_name = dict(zip(names, values, strict=True))
    expected = model(**by_name) if model.__match_args__ == () else model(*values)

    for made in (entity.from_row(row), *entity.from_rows([row, row])):
        assert made == expected
        assert type(made) is model
        assert getattr(made, "made", None) == getattr(expected, "made", None)
        assert getattr(made, "marked", None) == getattr(expected, "marked", None)


@pytest.mark.parametrize("model", [Frozen, Fixed])
def test_a_frozen_record_stays_frozen(model):
    """Also when it was made without its constructor."""
    (made,) = Entity(model, table="t").from_rows([PLAIN])

    with pytest.raises(FrozenInstanceError):
        made.id = 2
    with pytest.raises(FrozenInstanceError):
        del made.id
    assert replace(made, id=2).id == 2
    assert pickle.loads(pickle.dumps(made)) == made
    assert hash(made) == hash(model(1, Colour.RED, None))


def test_records_share_the_places_of_their_fields():
    """None has a dictionary of its own, which takes three times as long to fill."""

    @dataclass
    class Fresh:
        """Of which no record was made before."""

        id: int
        name: str

    made = Entity(Fresh, table="t").from_rows([(n, "a") for n in range(100)])

    assert not [
        part for one in made for part in gc.get_referents(one) if type(part) is dict
    ]


@pytest.mark.parametrize("wanted", [True, False])
def test_collecting_garbage_goes_on_as_it_was(wanted):
    """Making many records pauses it, also where a row is none."""
    entity: Entity[Any] = Entity(Slotted, table="t")
    before = gc.isenabled()
    (gc.enable if wanted else gc.disable)()
    try:
        entity.from_rows([PLAIN])
        with pytest.raises(InvalidRecord):
            entity.from_rows([(7, "blue", None)])
        assert gc.isenabled() is wanted
    finally:
        (gc.enable if before else gc.disable)()


def test_a_record_that_looks_at_itself_still_does():
    """``__post_init__()`` runs for each record."""
    entity: Entity[Any] = Entity(Checked, table="t")

    for made in (
        entity.from_row((1, "red", None, [])),
        *entity.from_rows([(1, "red", None, [])]),
    ):
        assert made.seen == ["looked"]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_row_that_is_no_record_is_named(model):
    """By its key, whether read alone or among others."""
    entity: Entity[Any] = Entity(model, table="t")
    more = (3,) * (model is Child)
    good, bad = PLAIN + more, (7, "blue", None, *more)

    for read in (lambda: entity.from_row(bad), lambda: entity.from_rows([good, bad])):
        with pytest.raises(InvalidRecord, match=r"key 7 .*blue"):
            read()


def test_a_model_of_one_field():
    """A row of one value is a row all the same."""

    @dataclass
    class Single:
        """Only a key."""

        id: int

    entity: Entity[Any] = Entity(Single, table="t")

    assert entity.from_row((4,)) == Single(4)
    assert entity.from_rows([(4,), (5,)]) == [Single(4), Single(5)]
