"""What a statement may leave behind on its connection, and how it is removed.

The server's answer does not show it: ``SELECT set_config(…, false)``, an advisory
lock and a function that does SET ROLE all answer ``SELECT 1``. So a statement
counts as lean only when this conservative classifier can prove it from the
text; everything else makes the connection *dirty*, and a dirty connection is
reset between two borrowers, off the caller's path.

A name in the text may be a user's: a function ``set``, an operator ``+``. Which of
the names that are known here users have defined too is asked in the catalogue, once
for each generation of connections (``UserNames``). What a view, rule, trigger,
policy, default or domain constraint calls cannot be seen from the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import TYPE_CHECKING, Any

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.sql import sendable
from fm_storage.postgres.tokens import fold, split, tokens

if TYPE_CHECKING:
    import asyncpg

RESET_SQL = (
    # First what decides how the rest is read: role, search_path.
    "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; "
    "SELECT pg_catalog.pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; "
    "DISCARD TEMP; DISCARD SEQUENCES; "
    # Else a former borrower that called setseed() knows what random() gives.
    "SELECT pg_catalog.setseed(('x' || pg_catalog.left(pg_catalog.gen_random_uuid()"
    "::text, 8))::bit(32)::int / 2147483648.0)"
)
"""DISCARD ALL without DEALLOCATE: the driver's prepared statements stay good.

See https://www.postgresql.org/docs/current/sql-discard.html."""
PREPARED_SQL = (
    "SELECT string_agg(format('DEALLOCATE %I', name), '; ') FILTER (WHERE from_sql),"
    " count(*) FILTER (WHERE NOT from_sql) FROM pg_catalog.pg_prepared_statements"
)
"""What deallocates the statements that were made with PREPARE, or null; and how many
of the driver's there are."""


class Effect(IntEnum):
    """What a statement can do beyond answering; false when anything."""

    ANYTHING = 0
    WRITES = 1
    """Changes rows, leaves nothing on the connection."""
    READS = 2
    """Changes nothing at all: harmless to run again."""


_LONGEST = 20_000
_REMEMBERED = 2_000

# Data, not code. A function that is missing here only costs a reset; one that is
# here by mistake lets a borrower's state through. Names are those of pg_catalog, and
# none of them leaves anything behind on a connection, whatever its arguments are.

_STARTS = frozenset({"select", "values", "table", "with", "show"})
"""First words of statements that may be plain reading."""

_WRITERS = frozenset({"insert", "update", "delete", "merge"})
"""Words that change rows, wherever they stand; before a parenthesis, names."""

_VERBS = _WRITERS | {"select", "values", "table", "with"}
"""Words that begin a query or a change, also behind WITH."""

_HARMLESS_WRITERS = frozenset({"nextval", "pg_notify", "txid_current"})
"""Functions that change something, yet nothing on the connection."""

_REFUSED_NAMES_TEXT = """
    all analyse analyze and any array as asc asymmetric both case cast check collate
    column constraint current_catalog current_date current_role current_time
    current_timestamp current_user default desc distinct do else end except false
    fetch for from group having in intersect into lateral leading limit localtime
    localtimestamp not null offset on only or order placing primary references
    returning select session_user some symmetric table then to trailing true union
    unique user using variadic when where window with between bigint bit boolean
    char character coalesce dec decimal exists extract float greatest grouping int
    integer interval least national nchar none normalize nullif numeric position
    precision real row setof smallint time timestamp treat trim values varchar
    xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse
    xmlpi xmlroot xmlserialize xmltable
"""
_REFUSED_NAMES = frozenset(_REFUSED_NAMES_TEXT.split())
"""Keywords that the server refuses as the name of a function: reserved ones, and
those that may name a column but no function or type. ``substring`` and ``overlay``
are such, too, but with commas between their arguments they call what users define.
See https://www.postgresql.org/docs/current/sql-keywords-appendix.html."""

_CLAUSES_TEXT = """
    by conflict cube escape filter ilike join materialized over overlaps partition
    range rollup set sets varying within zone
"""
_CLAUSES = frozenset(_CLAUSES_TEXT.split())
"""Other words that stand before a parenthesis in a clause, unless a user has a
function of that name."""

_TYPES = frozenset({"bpchar", "timestamptz", "timetz", "varbit"})
"""Types that take a size in parentheses and are no keywords."""

_READERS_TEXT = """
    abs age array_agg array_append array_cat array_length array_lower array_position
    array_prepend array_remove array_replace array_to_string array_upper avg bit_and
    bit_count bit_length bit_or bool_and bool_or btrim bytea cardinality cbrt ceil
    ceiling char_length character_length chr clock_timestamp concat concat_ws
    convert_from convert_to corr cos count covar_pop cume_dist current_database
    current_schema current_schemas current_setting date date_bin date_part
    date_trunc daterange decode degrees dense_rank div encode every exp first_value
    floor format format_type gen_random_uuid generate_series generate_subscripts
    get_byte has_any_column_privilege has_column_privilege has_database_privilege
    has_function_privilege has_schema_privilege has_table_privilege hashtext initcap
    int2 int4 int4range int8 int8range isempty isfinite json json_agg
    json_array_elements json_array_elements_text json_array_length json_build_array
    json_build_object json_each json_each_text json_extract_path
    json_extract_path_text json_object_agg json_object_keys json_populate_record
    json_populate_recordset json_strip_nulls json_to_record json_to_recordset
    json_typeof jsonb jsonb_agg jsonb_array_elements jsonb_array_elements_text
    jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each
    jsonb_each_text jsonb_exists jsonb_extract_path jsonb_extract_path_text
    jsonb_insert jsonb_object_agg jsonb_object_keys jsonb_path_exists
    jsonb_path_match jsonb_path_query jsonb_path_query_array jsonb_path_query_first
    jsonb_populate_record jsonb_populate_recordset jsonb_pretty jsonb_set
    jsonb_set_lax jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_typeof
    justify_days justify_hours justify_interval lag last_value lead left length like
    ln log lower lower_inc lpad ltrim make_date make_interval make_time
    make_timestamp make_timestamptz max md5 min mod mode notlike now nth_value ntile
    num_nonnulls num_nulls numrange obj_description octet_length overlay
    percent_rank percentile_cont percentile_disc pg_backend_pid pg_column_size
    pg_database_size pg_get_constraintdef pg_get_expr pg_get_indexdef pg_get_viewdef
    pg_indexes_size pg_is_in_recovery pg_postmaster_start_time pg_relation_size
    pg_size_pretty pg_sleep pg_table_is_visible pg_table_size pg_total_relation_size
    pg_typeof pi plainto_tsquery power quote_ident quote_literal quote_nullable
    random range_agg range_merge rank regexp_count regexp_instr regexp_like
    regexp_match regexp_matches regexp_replace regexp_split_to_array
    regexp_split_to_table regexp_substr repeat replace reverse right round
    row_number row_to_json rpad rtrim scale sha224 sha256 sha384 sha512
    shobj_description sign sin split_part sqrt starts_with statement_timestamp
    stddev stddev_pop stddev_samp string_agg string_to_array string_to_table strpos
    substr substring sum tan text timeofday to_char to_date to_hex to_json to_jsonb
    to_number to_regclass to_regtype to_timestamp to_tsquery to_tsvector
    transaction_timestamp translate trim_array trim_scale trunc ts_headline ts_rank
    ts_rank_cd tsrange tstzrange txid_current_if_assigned unnest upper upper_inc
    uuid uuid_extract_timestamp uuidv4 uuidv7 var_pop var_samp variance version
    websearch_to_tsquery width_bucket
"""
_READERS = frozenset(_READERS_TEXT.split())
"""Functions that change nothing, on the connection or elsewhere."""

_VOCABULARY = _READERS | _HARMLESS_WRITERS | _CLAUSES | _TYPES
_COMPARING = frozenset(
    {"=", "<>", "<", ">", "<=", ">=", "~~", "!~~", "~~*", "!~~*", "~", "!~"}
)
"""Operators that IN, BETWEEN, LIKE, CASE, DISTINCT, USING and others call unnamed."""
_DEFINES = frozenset(
    {
        "function",
        "procedure",
        "routine",
        "aggregate",
        "operator",
        "cast",
        "extension",
        "do",
        "call",
    }
)
"""Words of statements behind which users may have defined other names."""

_USER_NAMES = """
WITH member AS (
  SELECT objid, refobjid AS extension FROM pg_catalog.pg_depend
  WHERE classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND deptype = 'e'
), mine AS MATERIALIZED (
  SELECT p.oid, p.proname, p.pronargs, p.pronargdefaults, p.proargtypes
  FROM pg_catalog.pg_proc p
  LEFT JOIN member m ON m.objid = p.oid
  WHERE p.oid >= 16384 AND NOT EXISTS (
    SELECT FROM member other
    JOIN pg_catalog.pg_proc c ON c.oid = other.objid
    JOIN pg_catalog.pg_language l ON l.oid = c.prolang AND l.lanname = 'c'
    WHERE other.extension = m.extension)
)
SELECT
  ARRAY(SELECT DISTINCT proname::pg_catalog.text FROM mine
        WHERE proname = ANY ($1::pg_catalog.text[])),
  ARRAY(SELECT DISTINCT m.proname::pg_catalog.text FROM mine m
        JOIN pg_catalog.pg_type t ON t.oid = m.proargtypes[0]
        WHERE m.pronargs - m.pronargdefaults <= 1 AND t.typtype IN ('c', 'd', 'p')),
  ARRAY(SELECT DISTINCT o.oprname::pg_catalog.text FROM pg_catalog.pg_operator o
        JOIN mine ON mine.oid = o.oprcode),
  EXISTS (SELECT FROM pg_catalog.pg_cast c JOIN mine ON mine.oid = c.castfunc)
  OR EXISTS (SELECT FROM pg_catalog.pg_amproc x JOIN mine ON mine.oid = x.amproc)
"""


@dataclass(frozen=True, slots=True)
class UserNames:
    """What users have defined that a statement may call under a known name.

    Members of an extension that is written in C, as a whole or in part, count as the
    server's own: citext alone has 17 functions and 32 operators that share their name
    with one of the server's.

    Attributes:
        functions: Known names that users have functions of, too.
        attributes: Functions of a row, which ``row.name`` calls.
        operators: Operators whose function is a user's.
        unseen: Users have casts or comparisons, which a statement calls unnamed.
    """

    functions: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset()
    unseen: bool = False

    @classmethod
    async def read(cls, raw: asyncpg.Connection[Any], timeout: float) -> UserNames:
        """Ask the catalogue on *raw*; within *timeout* seconds."""
        row = await raw.fetchrow(_USER_NAMES, list(_VOCABULARY), timeout=timeout)
        assert row is not None
        functions, attributes, operators = map(frozenset, row[:3])
        unseen = row[3] or not operators.isdisjoint(_COMPARING)
        return cls(functions, attributes, operators, unseen)


class Classifier:
    """Judges statements, and remembers what it found.

    Attributes:
        known: What was found; a hot path looks here first.
        stale: Whether users may have defined other names since ``learn()``.
    """

    def __init__(self) -> None:
        self.known: dict[str, Effect] = {}
        self.stale = False
        self._names = UserNames()
        self._defining: set[str] = set()  # of what is known
        self._ending: dict[str, bool] = {}  # by those of which it was asked

    def learn(self, names: UserNames) -> None:
        """Judge by *names* from now on."""
        self.stale = False
        if names != self._names:
            self._names = names
            self._forget()

    def classify(self, sql: str) -> Effect:
        """Return what *sql* can do, ANYTHING when that cannot be decided.

        Raises:
            InvalidRecord: It cannot be sent; see ``sendable()``.
        """
        effect = self.known.get(sql)
        if effect is None:
            effect = classify(sql, self._names)
            if len(self.known) >= _REMEMBERED:
                self._forget()
            defines = not effect and not _DEFINES.isdisjoint(
                sql[:_LONGEST].lower().split()
            )
            self.stale = self.stale or defines
            if len(sql) <= _LONGEST:
                text = sql if type(sql) is str else str(sql)
                self.known[text] = effect
                if defines:
                    self._defining.add(text)
        elif sql in self._defining:
            self.stale = True
        return effect

    def ends_transaction(self, sql: str) -> bool:
        """Return whether *sql*, which was classified, ends the open transaction."""
        ends = self._ending.get(sql)
        if ends is None:
            ends = ends_transaction(sql)
            if len(sql) <= _LONGEST:
                self._ending[sql] = ends
        return ends

    def _forget(self) -> None:
        self.known.clear()
        self._defining.clear()
        self._ending.clear()


def classify(sql: str, names: UserNames | None = None) -> Effect:
    """Return what *sql* can do where users have defined *names*.

    Raises:
        InvalidRecord: It cannot be sent; see ``sendable()``.
    """
    sendable(sql)
    if len(sql) > _LONGEST:
        return Effect.ANYTHING
    names = names or UserNames()
    try:
        statement = _Statement(sql, names)
    except InvalidRecord:  # a string, name or comment that does not end
        return Effect.ANYTHING
    return Effect.ANYTHING if names.unseen else statement.effect()


# Most texts have none of these words at the start of a line or a statement.
_ENDING = re.compile(
    r"(?:\A|[;/\n\r])\s*(?:commit|end|abort|rollback|prepare)\b", re.IGNORECASE
)


def ends_transaction(sql: str) -> bool:
    """Return whether a statement in *sql* ends the transaction that is open.

    With AND CHAIN, or a BEGIN behind it, the server still has one open afterwards.
    """
    if _ENDING.search(sql) is None:
        return False
    try:
        return any(map(_ends, split(sql)))
    except InvalidRecord:  # the server refuses it as well
        return False


def _ends(statement: str) -> bool:
    match [fold(token.text) for token in islice(tokens(statement), 3)]:
        case ["rollback", "to", *_] | ["rollback", "work" | "transaction", "to"]:
            return False
        case [_, "prepared", *_]:
            return False
        case ["prepare", "transaction", *_]:
            return True
        case ["commit" | "end" | "abort" | "rollback", *_]:
            return True
    return False


class _Level:
    """What is known of one pair of parentheses, or of the whole statement."""

    __slots__ = ("begun", "in_with")

    def __init__(self) -> None:
        self.begun = False
        self.in_with = False


class _Statement:
    """The tokens of one statement, and the judgement of each.

    A name is a pair of its text as the server sees it and whether it was quoted: a
    quoted name is never a keyword.
    """

    def __init__(self, sql: str, names: UserNames) -> None:
        self._names = names
        self._kinds: list[str] = []
        self._texts: list[str] = []
        for found, text, _ in tokens(sql):
            kind = found
            if kind == "word":
                name = fold(text)
            elif kind == "quoted" and text[0] == '"':
                name = text[1:-1].replace('""', '"')
            elif kind in {"operator", "mark"}:
                name = text
            else:
                # Its meaning depends on standard_conforming_strings, or on escapes.
                unclear = kind == "quoted" or (
                    kind == "string" and "\\" in text and text[0] not in "eE"
                )
                name = ""
                kind = "unclear" if unclear else "value"
            self._kinds.append(kind)
            self._texts.append(name)
        while self._texts and self._texts[-1] == ";":
            self._texts.pop()
            self._kinds.pop()
        self._targets: set[int] = set()  # where a table's name behind INTO begins

    def effect(self) -> Effect:
        """Return the least of what its tokens can do."""
        if not self._texts or not self._word(0, _STARTS | _WRITERS):
            return Effect.ANYTHING
        least = Effect.READS
        levels = [_Level()]
        for at, kind in enumerate(self._kinds):
            text = self._texts[at]
            level = levels[-1]
            behind_query = level.in_with and self._mark(at - 1, ")")
            if kind == "mark" and text == "(":
                level.in_with = level.in_with and not behind_query
                levels.append(_Level())
            elif kind == "mark" and text == ")" and len(levels) > 1:
                levels.pop()
            elif (not level.begun or behind_query) and self._word(at, _VERBS):
                level.in_with = text == "with"
                if text in {"insert", "merge"} and self._word(at + 1, {"into"}):
                    self._targets.add(at + 2)
            level.begun = True
            least = min(least, self._judge(at, level))
            if not least:
                break
        return least

    def _judge(self, at: int, level: _Level) -> Effect:
        kind, text = self._kinds[at], self._texts[at]
        if kind == "unclear" or (kind == "mark" and text == ";"):
            return Effect.ANYTHING
        if kind == "operator":
            mine = text in self._names.operators
            return Effect.ANYTHING if mine else Effect.READS
        if kind not in {"word", "quoted"}:
            return Effect.READS
        if self._mark(at + 1, "("):
            return self._called(at, level)
        if self._mark(at - 1, "."):
            mine = text in self._names.attributes
            return Effect.ANYTHING if mine else Effect.READS
        if kind == "quoted":
            return Effect.READS
        if text == "into" and at + 1 not in self._targets:
            return Effect.ANYTHING  # SELECT INTO makes a table
        if text in _WRITERS and not self._word(at - 1, {"for", "key"}):
            return Effect.WRITES  # else it locks rows: FOR [NO KEY] UPDATE
        return Effect.READS

    def _called(self, at: int, level: _Level) -> Effect:
        """Judge the name at *at*, which stands before a parenthesis."""
        text = self._texts[at]
        first = at
        while first > 1 and self._mark(first - 1, "."):
            first -= 2
        if first in self._targets or self._is_alias(first, at, level):
            return Effect.READS
        if first != at:
            if first != at - 2 or self._texts[first] != "pg_catalog":
                return Effect.ANYTHING
        elif self._kinds[at] == "word" and text in _REFUSED_NAMES:
            return Effect.READS
        if text in self._names.functions or text not in _VOCABULARY:
            return Effect.ANYTHING
        return Effect.WRITES if text in _HARMLESS_WRITERS else Effect.READS

    def _is_alias(self, first: int, at: int, level: _Level) -> bool:
        """Whether a name with columns is defined here: ``AS u(x)``, ``WITH q(x)``."""
        if first != at:
            return False
        return (
            self._word(at - 1, {"as"})
            or (level.in_with and self._mark(at - 1, ","))
            or (level.in_with and self._word(at - 1, {"with"}))
            or (self._word(at - 1, {"recursive"}) and self._word(at - 2, {"with"}))
        )

    def _word(self, at: int, texts: frozenset[str] | set[str]) -> bool:
        return self._is(at, "word") and self._texts[at] in texts

    def _mark(self, at: int, text: str) -> bool:
        return self._is(at, "mark") and self._texts[at] == text

    def _is(self, at: int, kind: str) -> bool:
        return 0 <= at < len(self._kinds) and self._kinds[at] == kind
