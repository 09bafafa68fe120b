"""What a statement may leave behind on its connection, and how it is removed.

The server's answer does not show it: ``SELECT set_config(…, false)``, an advisory
lock and a function that does SET ROLE all answer ``SELECT 1``. So a statement
counts as lean only when this conservative classifier can prove it from the
text; everything else makes the connection *dirty*, and a dirty connection is
reset between two borrowers, off the caller's path.
"""

from __future__ import annotations

from enum import IntEnum

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.sql import sendable
from fm_storage.postgres.tokens import fold, tokens

__all__ = ["RESET_SQL", "Effect", "classify", "known"]

RESET_SQL = (
    "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; "
    "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DISCARD TEMP; DISCARD SEQUENCES"
)
"""DISCARD ALL without DEALLOCATE: the driver's prepared statements stay good.

See https://www.postgresql.org/docs/current/sql-discard.html."""


class Effect(IntEnum):
    """What a statement can do beyond answering; false when anything."""

    ANYTHING = 0
    WRITES = 1
    """Changes rows, leaves nothing on the connection."""
    READS = 2
    """Changes nothing at all: harmless to run again."""


_LONGEST = 20_000
_REMEMBERED = 2_000
_VALUES = frozenset({"string", "dollar", "number", "parameter"})
known: dict[str, Effect] = {}
"""What ``classify()`` has found; a hot path looks here first."""


# The words that are known. They are data: a function that is missing here only costs
# a reset, one that is here by mistake lets a borrower's state through. Names are those
# of the server's own schema pg_catalog; none of them leaves anything behind on a
# connection, whatever its arguments are.

STARTS = frozenset({"select", "values", "table", "with", "show"})
"""First words of statements that may be plain reading."""

WRITERS = frozenset({"insert", "update", "delete", "merge"})
"""Words that change rows, wherever they stand."""

HARMLESS_WRITERS = frozenset({"nextval", "pg_notify", "txid_current"})
"""Functions that change something, yet nothing on the connection."""

_SYNTAX = """
    all and any array as between by case cast check coalesce conflict cube
    current_time current_timestamp distinct else except exists extract fetch filter
    from greatest group having ilike in intersect into is join key lateral least
    like limit localtime localtimestamp materialized not nullif offset on only or
    order over overlaps partition position range returning rollup row rows select
    set sets share similar skip some substring table then trim union update using
    values when where with within xmlagg
"""
SYNTAX = frozenset(_SYNTAX.split())
"""Words that may stand before a parenthesis without being a call."""

_SIZED_TYPES = """
    bit bpchar char character dec decimal float interval nchar numeric time
    timestamp timestamptz timetz varbit varchar varying
"""
SIZED_TYPES = frozenset(_SIZED_TYPES.split())
"""Types that take a size in parentheses."""

_READERS = """
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
    justify_days justify_hours justify_interval lag last_value lead left length ln
    log lower lower_inc lpad ltrim make_date make_interval make_time make_timestamp
    make_timestamptz max md5 min mod mode now nth_value ntile num_nonnulls num_nulls
    numrange obj_description octet_length overlay percent_rank percentile_cont
    percentile_disc pg_backend_pid pg_column_size pg_database_size
    pg_get_constraintdef pg_get_expr pg_get_indexdef pg_get_viewdef pg_indexes_size
    pg_is_in_recovery pg_postmaster_start_time pg_relation_size pg_size_pretty
    pg_sleep pg_table_is_visible pg_table_size pg_total_relation_size pg_typeof pi
    plainto_tsquery power quote_ident quote_literal quote_nullable random range_agg
    range_merge rank regexp_count regexp_instr regexp_like regexp_match
    regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table
    regexp_substr repeat replace reverse right round row_number row_to_json rpad
    rtrim scale sha224 sha256 sha384 sha512 shobj_description sign sin split_part
    sqrt starts_with statement_timestamp stddev stddev_pop stddev_samp string_agg
    string_to_array string_to_table strpos substr sum tan text timeofday to_char
    to_date to_hex to_json to_jsonb to_number to_regclass to_regtype to_timestamp
    to_tsquery to_tsvector transaction_timestamp translate trim_array trim_scale
    trunc ts_headline ts_rank ts_rank_cd tsrange tstzrange txid_current_if_assigned
    unnest upper upper_inc uuid uuid_extract_timestamp uuidv4 uuidv7 var_pop
    var_samp variance version websearch_to_tsquery width_bucket
"""
READERS = frozenset(_READERS.split())
"""Functions that change nothing, on the connection or elsewhere."""


def classify(sql: str) -> Effect:
    """Return what *sql* can do, ANYTHING when that cannot be decided.

    Raises:
        InvalidRecord: It cannot be sent; see ``sendable()``.
    """
    effect = known.get(sql)
    if effect is None:
        sendable(sql)
        if len(known) >= _REMEMBERED:
            known.clear()
        effect = _classify(sql)
        if len(sql) <= _LONGEST:
            known[sql if type(sql) is str else str(sql)] = effect
    return effect


def _classify(sql: str) -> Effect:
    words = _words(sql)
    if not words or (words[0] not in STARTS and words[0] not in WRITERS):
        return Effect.ANYTHING
    least = Effect.READS
    before = ""
    for at, word in enumerate(words):
        least = min(least, _effect_of(words, at, before))
        before = word
    return least


def _effect_of(words: list[str], at: int, before: str) -> Effect:
    word = words[at]
    if word in {";", "?"} or (word == "into" and before not in {"insert", "merge"}):
        return Effect.ANYTHING  # several statements; SELECT INTO makes a table
    if word in WRITERS:
        return Effect.READS if _locks_rows(before) else Effect.WRITES
    if words[at + 1 : at + 2] == ["("] and _is_name(word):
        return _called(words, at)
    return Effect.READS


def _locks_rows(before: str) -> bool:
    """Whether an UPDATE after *before* is that of FOR [NO KEY] UPDATE."""
    return before in {"for", "key"}


def _is_name(word: str) -> bool:
    return word[0].isalpha() or word[0] in '_"' or not word.isascii()


def _called(words: list[str], at: int) -> Effect:
    """Judge the name at *at*, which stands before a parenthesis."""
    word = words[at]
    before = words[at - 1] if at else ""
    if before == ".":
        schema = words[at - 2] if at > 1 else ""
        if _follows_into(words, at):
            return Effect.READS
        if schema != "pg_catalog" or words[at - 3 : at - 2] == ["."]:
            return Effect.ANYTHING
    elif before in {"into", "as", "with", "recursive"} or word in SYNTAX:
        return Effect.READS  # a table or an alias with its columns; syntax
    elif word in SIZED_TYPES:
        return Effect.READS
    if word in READERS:
        return Effect.READS
    return Effect.WRITES if word in HARMLESS_WRITERS else Effect.ANYTHING


def _follows_into(words: list[str], at: int) -> bool:
    """Whether ``schema.name`` or ``db.schema.name`` at *at* follows INTO."""
    start = at
    while start >= len(("schema", ".")) and words[start - 1] == ".":
        start -= 2
    return start > 0 and words[start - 1] == "into"


def _words(sql: str) -> list[str]:
    """Split into lower-case words and marks; ``?`` stands for what is unclear.

    A backslash makes an ordinary string unclear: its meaning depends on
    standard_conforming_strings.
    """
    words: list[str] = []
    if len(sql) > _LONGEST:
        return words
    try:
        for kind, text, _ in tokens(sql):
            if kind == "word":
                words.append(fold(text))
            elif kind == "string" and "\\" in text and text[0] not in "eE":
                return ["?"]
            else:
                words.append("0" if kind in _VALUES else text)
    except InvalidRecord:
        return ["?"]
    while words and words[-1] == ";":
        words.pop()
    return words
