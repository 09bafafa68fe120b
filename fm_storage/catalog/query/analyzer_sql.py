"""The statements of the analyzer.

Each is one pass over a narrow table or its indexes, and names are looked up once a
group, never once an error. ``$1`` to ``$3`` are since, until and the minimum
severity.
"""

from __future__ import annotations

from fm_storage.catalog.query.groups import COUNTED
from fm_storage.catalog.query.states import MEMBERS
from fm_storage.postgres import Sql

# An error stored by other means may have any time, infinity too: what is counted by
# time lies in the years that record() lets pass.
_RANGE = """timestamp >= COALESCE($1::timestamptz, '1970-01-01T00:00Z')
  AND timestamp < LEAST($2::timestamptz, '2200-01-01T00:00Z') AND severity >= $3"""

_COUNTED = COUNTED.format(_RANGE)
_MEMBER = "LEFT JOIN fm_storage.group_members AS m ON m.fingerprint = f.fingerprint"
_GROUP = "COALESCE(m.group_id, f.fingerprint)"
TOTALS = Sql(
    f"""SELECT COALESCE(sum(count), 0)::bigint AS errors, count(*) AS groups,
  min(first_seen) AS first, max(last_seen) AS last FROM ({_COUNTED}) AS c"""
)
# A group's text is that of its oldest member, whose name it has.
PATTERNS = Sql(
    f"""SELECT c.*, g.module, g.error_code, g.template,
  (c.count / sum(c.count) OVER ())::float8 AS share
FROM ({_COUNTED}) AS c JOIN fm_storage.fingerprints AS g USING (fingerprint)
ORDER BY c.count DESC, c.fingerprint LIMIT $4"""
)
# Grouped by fingerprint first: the name of a module is then looked up once a
# group, not once an error.
BY_NAME = {
    name: Sql(
        f"""SELECT g.{name} AS key, sum(c.count)::bigint AS count FROM (
  SELECT fingerprint, count(*) AS count
  FROM fm_storage.error_fingerprints WHERE {_RANGE} GROUP BY fingerprint
) AS c JOIN fm_storage.fingerprints AS g USING (fingerprint)
GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT $4"""
    )
    for name in ("module", "error_code")
}
_PARTS = {
    "severity": "severity::int",
    "hour": "date_part('hour', timestamp AT TIME ZONE 'UTC')::int",
    "weekday": "date_part('isodow', timestamp AT TIME ZONE 'UTC')::int",
}
BY_PART = {
    name: Sql(
        f"""SELECT {part} AS key, count(*) AS count
FROM fm_storage.error_fingerprints WHERE {_RANGE}
GROUP BY 1 ORDER BY 1 LIMIT $4"""
    )
    for name, part in _PARTS.items()
}
TIMELINE = Sql(
    f"""SELECT date_bin($4::interval, timestamp, '2000-01-01T00:00Z') AS start,
  severity, count(*) AS count
FROM fm_storage.error_fingerprints WHERE {_RANGE}
GROUP BY 1, 2 ORDER BY 1"""
)
HEAT = Sql(
    f"""WITH counted AS (
  SELECT fingerprint, {_PARTS["hour"]} AS hour, count(*) AS count
  FROM fm_storage.error_fingerprints WHERE {_RANGE} GROUP BY 1, 2
), named AS (
  SELECT g.module, c.hour, sum(c.count)::bigint AS count,
    sum(sum(c.count)) OVER (PARTITION BY g.module) AS total
  FROM counted AS c JOIN fm_storage.fingerprints AS g USING (fingerprint)
  GROUP BY 1, 2
), ranked AS (
  SELECT *, dense_rank() OVER (ORDER BY total DESC, module) AS place FROM named
)
SELECT module, hour, count FROM ranked WHERE place <= $4 ORDER BY place, hour"""
)
# One probe of an index per fingerprint finds its first error; errors are not counted.
_FIRST = f"""SELECT {_GROUP} AS fingerprint, min(first.timestamp) AS first
FROM fm_storage.fingerprints AS f {_MEMBER}
JOIN LATERAL (
  SELECT timestamp FROM fm_storage.error_fingerprints AS e
  WHERE e.fingerprint = f.fingerprint AND e.severity >= $3
  ORDER BY timestamp LIMIT 1
) AS first ON TRUE
GROUP BY 1 HAVING min(first.timestamp) >= $1
  AND ($2::timestamptz IS NULL OR min(first.timestamp) < $2)"""
NEW = Sql(f"{_FIRST} ORDER BY first DESC LIMIT $4")
NEW_COUNT = Sql(f"SELECT count(*) FROM ({_FIRST}) AS new")
# Twice the root of a count is what chance alone makes of it.
GROWTH = Sql(
    f"""WITH counted AS (
  SELECT {_GROUP} AS fingerprint, max(f.severity) AS severity,
    sum(f.now)::bigint AS now, sum(f.before)::bigint AS before
  FROM (
    SELECT fingerprint, max(severity) AS severity,
      count(*) FILTER (WHERE timestamp >= $2) AS now,
      count(*) FILTER (WHERE timestamp < $2) AS before
    FROM fm_storage.error_fingerprints
    WHERE timestamp >= $1 AND timestamp < $3 AND severity >= $4
    GROUP BY fingerprint
  ) AS f {_MEMBER}
  GROUP BY 1
)
SELECT c.*, g.module, g.error_code, g.template
FROM counted AS c JOIN fm_storage.fingerprints AS g USING (fingerprint)
WHERE c.now >= 3 AND c.now > c.before + 2 * sqrt(c.before)
ORDER BY (c.now + 1.0) / (c.before + 1.0) * ln(c.now + 1) DESC, c.now DESC
LIMIT $5"""
)
# How often each group happened in equal parts of a period, for small pictures.
SPARKS = Sql(
    f"""SELECT {_GROUP} AS fingerprint, f.slot, sum(f.count)::bigint AS count FROM (
  SELECT fingerprint, width_bucket(timestamp, $4::timestamptz[]) AS slot,
    count(*) AS count
  FROM fm_storage.error_fingerprints WHERE {_RANGE} GROUP BY 1, 2
) AS f {_MEMBER}
WHERE {_GROUP} = ANY($5::bigint[]) GROUP BY 1, 2"""
)
_RELEASE = f"""LEFT JOIN LATERAL (
  SELECT o.release FROM ({MEMBERS.format("g.fingerprint")}) AS own (fingerprint)
  CROSS JOIN LATERAL (
    SELECT f.error_id, f.timestamp FROM fm_storage.error_fingerprints AS f
    WHERE f.fingerprint = own.fingerprint ORDER BY f.timestamp {{0}} LIMIT 1
  ) AS f LEFT JOIN fm_storage.error_origins AS o USING (error_id)
  ORDER BY f.timestamp {{0}} LIMIT 1
) AS {{1}} ON TRUE"""
RELEASES = Sql(
    f"""SELECT g.fingerprint, first.release, last.release
FROM unnest($1::bigint[]) AS g (fingerprint)
{_RELEASE.format("ASC", "first")} {_RELEASE.format("DESC", "last")}
WHERE COALESCE(first.release, last.release) IS NOT NULL"""
)
# Never every error with every other: time is cut into slots, a group counts once
# in a slot, and only the groups that fill most slots are paired, so that a slot
# gives at most a few hundred pairs whatever its number of errors.
CORRELATIONS = Sql(
    f"""WITH seen AS (
  SELECT DISTINCT {_GROUP} AS fingerprint, f.slot FROM (
    SELECT DISTINCT fingerprint,
      date_bin($4::interval, timestamp, '2000-01-01T00:00Z') AS slot
    FROM fm_storage.error_fingerprints WHERE {_RANGE}
  ) AS f {_MEMBER}
), slots AS (
  SELECT count(*)::float8 AS total FROM (SELECT slot FROM seen GROUP BY slot) AS s
), busiest AS (
  SELECT fingerprint, count(*)::float8 AS slots FROM seen
  GROUP BY fingerprint HAVING count(*) >= 3
  ORDER BY count(*) DESC, fingerprint LIMIT 40
), kept AS (
  SELECT fingerprint, slot FROM seen JOIN busiest USING (fingerprint)
), pairs AS (
  SELECT a.fingerprint AS first, b.fingerprint AS second, count(*)::float8 AS together
  FROM kept AS a JOIN kept AS b ON a.slot = b.slot AND a.fingerprint < b.fingerprint
  GROUP BY 1, 2 HAVING count(*) >= 3
)
SELECT p.first, p.second, p.together::bigint,
  p.together / (a.slots + b.slots - p.together) AS overlap,
  p.together * s.total / (a.slots * b.slots) AS lift,
  ga.module AS first_module, ga.template AS first_template,
  gb.module AS second_module, gb.template AS second_template
FROM pairs AS p CROSS JOIN slots AS s
JOIN busiest AS a ON a.fingerprint = p.first
JOIN busiest AS b ON b.fingerprint = p.second
JOIN fm_storage.fingerprints AS ga ON ga.fingerprint = p.first
JOIN fm_storage.fingerprints AS gb ON gb.fingerprint = p.second
WHERE p.together * s.total > a.slots * b.slots * 1.1
ORDER BY p.together / (a.slots + b.slots - p.together) * ln(p.together + 1) DESC,
  p.first, p.second
LIMIT $5"""
)
