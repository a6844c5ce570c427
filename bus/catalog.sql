-- bus.duckdb: a view of the manifest for readers who want SQL. Delete it and it is made again.
--
-- Schema `held` is how the rows lie, schema `catalog` what readers see, schema `canon` the tables
-- themselves (its views are made in canon.py). Rows lie in two places: in bulk in tables of bytes
-- (half the size of their texts: every publication copies them), and the newest few in
-- `held.fresh`, one row of JSON for each publication, because DuckDB takes about a millisecond for
-- each statement and a tenth for each column that a publication touches, however few the rows.
--
-- `*_facts` say what became true at `added_seq` and stopped being true at `ended_seq`; the `*_f`
-- views over them show the present.

-- name: tables
CREATE SCHEMA held;
CREATE SCHEMA catalog;
CREATE SCHEMA canon;

-- One row: the commit that the tables in bulk have come to, the last artifact_no they know, and the
-- layout this file was made with.
CREATE TABLE held.meta(
  applied_seq BIGINT, applied_sha256 VARCHAR, artifact_no BIGINT, layout VARCHAR);

-- What later commits added: {table: [row]}, rows as the manifest has them. Every publication writes
-- all of it again, half a megabyte at most: to try compressions out on it would take longer than the
-- rest of a checkpoint.
CREATE TABLE held.fresh(
  applied_seq BIGINT USING COMPRESSION uncompressed,
  applied_sha256 VARCHAR USING COMPRESSION uncompressed,
  artifact_no BIGINT USING COMPRESSION uncompressed,
  data VARCHAR USING COMPRESSION uncompressed);

CREATE TABLE held.runs(
  run_id VARCHAR, producer VARCHAR, created_at_utc TIMESTAMPTZ, first_seen_at TIMESTAMPTZ,
  last_seen_at TIMESTAMPTZ, first_seq BIGINT, last_seq BIGINT, meta_json VARCHAR);
CREATE TABLE held.uses(
  use_no BIGINT, run_id VARCHAR, name VARCHAR, artifact_id UUID, producer VARCHAR, kind VARCHAR,
  schema_version INTEGER, rows BIGINT, schema_hint VARCHAR, file_digest BLOB,
  content_scheme VARCHAR, content_digest BLOB, created_at_utc TIMESTAMPTZ,
  ingested_at TIMESTAMPTZ, seq BIGINT, again INTEGER, meta_json VARCHAR, logical_key VARCHAR,
  min_ts TIMESTAMPTZ, max_ts TIMESTAMPTZ);
CREATE TABLE held.jobs(
  job_no BIGINT, job_id VARCHAR, seq BIGINT, outcome VARCHAR, first_seq BIGINT, run_id VARCHAR,
  producer VARCHAR, kind VARCHAR, created_at_utc TIMESTAMPTZ, committed_at_utc TIMESTAMPTZ,
  artifacts INTEGER, problems_json VARCHAR);
CREATE TABLE held.lineage_facts(
  artifact_id UUID, input_artifact_id UUID, added_seq BIGINT, ended_seq BIGINT);
CREATE TABLE held.tag_facts(
  artifact_id UUID, k VARCHAR, v VARCHAR, added_seq BIGINT, ended_seq BIGINT);
CREATE TABLE held.supersede_facts(
  artifact_id UUID, supersedes_artifact_id UUID, added_seq BIGINT, ended_seq BIGINT);
CREATE TABLE held.tombstone_facts(
  artifact_id UUID, reason VARCHAR, added_seq BIGINT, ended_seq BIGINT);
CREATE TABLE held.damage_facts(
  file_hash VARCHAR, found VARCHAR, added_seq BIGINT, ended_seq BIGINT);
CREATE TABLE held.purge_facts(
  file_hash VARCHAR, reason VARCHAR, added_seq BIGINT, ended_seq BIGINT);
CREATE TABLE held.policy_facts(
  kind VARCHAR, keep_last BIGINT, keep_days BIGINT, added_seq BIGINT, ended_seq BIGINT);
CREATE TABLE held.alias_facts(
  kind VARCHAR, alias VARCHAR, artifact_id UUID, added_seq BIGINT, ended_seq BIGINT);
CREATE TABLE held.pin_facts(
  pin VARCHAR, artifact_id UUID, added_seq BIGINT, ended_seq BIGINT);

-- The identities of those few artifacts that were ever purged, damaged or revived. Every other
-- artifact is simply there. `file_digest`: the bytes that it stood on in between.
CREATE TABLE catalog.identity_facts(
  artifact_no BIGINT, artifact_id UUID, file_digest BLOB, added_seq BIGINT, ended_seq BIGINT);

-- Every column, with every type, that tables without a full contract have had; in order of
-- appearance. What canon.<kind> shows is made of it.
CREATE TABLE catalog.columns_d(
  kind VARCHAR, schema_version INTEGER, ordinal INTEGER, name VARCHAR, type VARCHAR,
  first_seq BIGINT);

-- The views of schema canon, which kind each reads, and their text.
CREATE TABLE catalog.views_d(view_name VARCHAR, kind VARCHAR, sql VARCHAR);

-- The schema that read_parquet wants, made of '{"name": "type", …}'. The views of schema canon say no
-- more than that of each column: every publication writes all of them, every reader reads them.
CREATE MACRO held.shape(types) AS map_from_entries(list_transform(
  map_entries(types::JSON::MAP(VARCHAR, VARCHAR)),
  lambda c: (c['key'], {'name': c['key'], 'type': c['value'], 'default_value': NULL::VARCHAR})));

-- name: pick_runs
SELECT run_id, producer, created_at_utc::TIMESTAMPTZ AS created_at_utc,
       first_seen_at::TIMESTAMPTZ AS first_seen_at, last_seen_at::TIMESTAMPTZ AS last_seen_at,
       first_seq, last_seq, meta_json
FROM {incoming}

-- name: pick_uses
SELECT use_no, run_id, name, artifact_id::UUID AS artifact_id, producer, kind,
       schema_version::INTEGER AS schema_version, rows, schema_hint,
       unhex(file_hash[-64:]) AS file_digest, content_hash[:-66] AS content_scheme,
       unhex(content_hash[-64:]) AS content_digest, created_at_utc::TIMESTAMPTZ AS created_at_utc,
       ingested_at::TIMESTAMPTZ AS ingested_at, seq, again::INTEGER AS again, meta_json, logical_key,
       min_ts::TIMESTAMPTZ AS min_ts, max_ts::TIMESTAMPTZ AS max_ts
FROM {incoming}

-- name: pick_jobs
SELECT job_no, job_id, seq, outcome, first_seq, run_id, producer, kind,
       created_at_utc::TIMESTAMPTZ AS created_at_utc,
       committed_at_utc::TIMESTAMPTZ AS committed_at_utc, artifacts::INTEGER AS artifacts,
       problems_json
FROM {incoming}

-- name: pick_lineage_facts
SELECT artifact_id::UUID AS artifact_id, input_artifact_id::UUID AS input_artifact_id, added_seq,
       ended_seq
FROM {incoming}

-- name: pick_tag_facts
SELECT artifact_id::UUID AS artifact_id, k, v, added_seq, ended_seq FROM {incoming}

-- name: pick_supersede_facts
SELECT artifact_id::UUID AS artifact_id, supersedes_artifact_id::UUID AS supersedes_artifact_id,
       added_seq, ended_seq
FROM {incoming}

-- name: pick_tombstone_facts
SELECT artifact_id::UUID AS artifact_id, reason, added_seq, ended_seq FROM {incoming}

-- name: pick_damage_facts
SELECT file_hash, found, added_seq, ended_seq FROM {incoming}

-- name: pick_purge_facts
SELECT file_hash, reason, added_seq, ended_seq FROM {incoming}

-- name: pick_policy_facts
SELECT kind, keep_last, keep_days, added_seq, ended_seq FROM {incoming}

-- name: pick_alias_facts
SELECT kind, alias, artifact_id::UUID AS artifact_id, added_seq, ended_seq FROM {incoming}

-- name: pick_pin_facts
SELECT pin, artifact_id::UUID AS artifact_id, added_seq, ended_seq FROM {incoming}

-- name: views
-- Bulk and fresh rows together. {…} stands for the fresh ones, picked out of their JSON.
CREATE VIEW catalog.uses AS FROM held.uses UNION ALL {uses};
CREATE VIEW catalog.jobs_f AS FROM held.jobs UNION ALL {jobs};
CREATE VIEW catalog.lineage_facts AS FROM held.lineage_facts UNION ALL {lineage_facts};
CREATE VIEW catalog.tag_facts AS FROM held.tag_facts UNION ALL {tag_facts};
CREATE VIEW catalog.supersede_facts AS FROM held.supersede_facts UNION ALL {supersede_facts};
CREATE VIEW catalog.tombstone_facts AS FROM held.tombstone_facts UNION ALL {tombstone_facts};
CREATE VIEW catalog.damage_facts AS FROM held.damage_facts UNION ALL {damage_facts};
CREATE VIEW catalog.purge_facts AS FROM held.purge_facts UNION ALL {purge_facts};
CREATE VIEW catalog.policy_facts AS FROM held.policy_facts UNION ALL {policy_facts};
CREATE VIEW catalog.alias_facts AS FROM held.alias_facts UNION ALL {alias_facts};
CREATE VIEW catalog.pin_facts AS FROM held.pin_facts UNION ALL {pin_facts};

-- One row a run. A run that goes on is among the fresh rows again: the newest counts.
CREATE VIEW catalog.runs_d AS
SELECT * FROM (FROM held.runs UNION ALL {runs})
QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY last_seq DESC) = 1;

-- One row: the commit this file has come to.
CREATE VIEW catalog.applied_v AS
SELECT applied_seq, applied_sha256
FROM (SELECT applied_seq, applied_sha256 FROM held.meta
      UNION ALL SELECT applied_seq, applied_sha256 FROM held.fresh)
ORDER BY applied_seq DESC LIMIT 1;

CREATE VIEW catalog.lineage_f AS
SELECT artifact_id::VARCHAR AS artifact_id, input_artifact_id::VARCHAR AS input_artifact_id,
       added_seq
FROM catalog.lineage_facts WHERE ended_seq IS NULL;

CREATE VIEW catalog.tags_f AS
SELECT artifact_id::VARCHAR AS artifact_id, k, v, added_seq
FROM catalog.tag_facts WHERE ended_seq IS NULL;

CREATE VIEW catalog.supersedes_f AS
SELECT artifact_id::VARCHAR AS artifact_id,
       supersedes_artifact_id::VARCHAR AS supersedes_artifact_id, added_seq
FROM catalog.supersede_facts WHERE ended_seq IS NULL;

CREATE VIEW catalog.tombstones_f AS
SELECT artifact_id::VARCHAR AS artifact_id, reason, added_seq
FROM catalog.tombstone_facts WHERE ended_seq IS NULL;

-- What stands on objects whose bytes are gone or changed. canon.* and the exports leave it out.
CREATE VIEW catalog.damaged_v AS
SELECT DISTINCT u.artifact_id::VARCHAR AS artifact_id, u.kind, d.file_hash, d.found, d.added_seq
FROM catalog.uses u JOIN catalog.damage_facts d ON u.file_digest = unhex(d.file_hash[-64:])
WHERE d.ended_seq IS NULL;

-- What stood on objects whose bytes were given up on purpose (`bus gc`).
CREATE VIEW catalog.purged_v AS
SELECT DISTINCT u.artifact_id::VARCHAR AS artifact_id, u.kind, p.file_hash, p.reason, p.added_seq
FROM catalog.uses u JOIN catalog.purge_facts p ON u.file_digest = unhex(p.file_hash[-64:])
WHERE p.ended_seq IS NULL;

CREATE VIEW catalog.policies_f AS
SELECT kind, keep_last, keep_days, added_seq FROM catalog.policy_facts WHERE ended_seq IS NULL;

CREATE VIEW catalog.aliases_f AS
SELECT kind, alias, artifact_id::VARCHAR AS artifact_id, added_seq
FROM catalog.alias_facts WHERE ended_seq IS NULL;

CREATE VIEW catalog.pins_f AS
SELECT pin, artifact_id::VARCHAR AS artifact_id, added_seq
FROM catalog.pin_facts WHERE ended_seq IS NULL;

-- The artifacts of all runs: one row for each delivery. canonical_path is the immutable object:
-- readable from the moment the row is visible, whatever becomes of links and trees.
CREATE VIEW catalog.artifacts_f AS SELECT {artifact} FROM catalog.uses;

-- Each artifact once, as it was first delivered, with the status it has. (Not a column of
-- artifacts_f: looking status up costs more than all that most queries of that view do.)
CREATE VIEW catalog.artifacts_d AS
SELECT {artifact}, {status_now} AS status FROM catalog.uses
WHERE use_no IN (SELECT min(use_no) FROM catalog.uses GROUP BY artifact_id);

-- Artifacts nobody should start from: tombstoned, purged or damaged.
CREATE VIEW catalog.withdrawn_v AS
SELECT artifact_id FROM catalog.tombstone_facts WHERE ended_seq IS NULL
UNION
SELECT artifact_id FROM catalog.uses WHERE file_digest IN (
  SELECT unhex(file_hash[-64:]) FROM catalog.damage_facts WHERE ended_seq IS NULL
  UNION ALL SELECT unhex(file_hash[-64:]) FROM catalog.purge_facts WHERE ended_seq IS NULL)
UNION
SELECT artifact_id FROM catalog.identity_facts
GROUP BY artifact_id HAVING count(*) = count(ended_seq);

-- Artifacts in good standing: what canon.<kind> reads. `use_no` tells which was submitted last.
CREATE VIEW catalog.active_v AS
SELECT artifact_id, kind, max(use_no) AS use_no FROM catalog.uses
WHERE artifact_id NOT IN (SELECT artifact_id FROM catalog.withdrawn_v)
  AND artifact_id NOT IN (
    SELECT supersedes_artifact_id FROM catalog.supersede_facts WHERE ended_seq IS NULL)
GROUP BY artifact_id, kind;

-- The newest artifact of each producer, kind and name, by commit; newest first.
CREATE VIEW catalog.latest_artifacts_v AS
SELECT {artifact} FROM catalog.uses
WHERE use_no IN (
  SELECT max(use_no) FROM catalog.uses
  WHERE artifact_id NOT IN (SELECT artifact_id FROM catalog.withdrawn_v)
  GROUP BY producer, kind, name)
ORDER BY use_no DESC;

-- artifacts_f as it stood after commit `as_of`, with the status each artifact had then.
CREATE MACRO catalog.artifacts_asof(as_of) AS TABLE
SELECT {artifact}, {status_then} AS status FROM (
  SELECT u.* REPLACE (coalesce(i.file_digest, u.file_digest) AS file_digest)
  FROM catalog.uses u LEFT JOIN (
    SELECT artifact_id, file_digest FROM catalog.identity_facts
    WHERE added_seq <= as_of AND coalesce(ended_seq > as_of, true)) i USING (artifact_id)
  WHERE u.seq <= as_of);

-- name: status
-- The status of a row of `uses`, by the facts that have begun and those that have ended.
CASE
WHEN file_digest IN (
  SELECT unhex(file_hash[-64:]) FROM catalog.purge_facts WHERE {begun} AND NOT {ended})
  THEN 'purged'
WHEN artifact_id IN (SELECT artifact_id FROM catalog.tombstone_facts WHERE {begun} AND NOT {ended})
  THEN 'tombstoned'
WHEN file_digest IN (
  SELECT unhex(file_hash[-64:]) FROM catalog.damage_facts WHERE {begun} AND NOT {ended})
  THEN 'damaged'
WHEN artifact_id IN (
  SELECT supersedes_artifact_id FROM catalog.supersede_facts WHERE {begun} AND NOT {ended})
  THEN 'superseded'
ELSE 'active' END

-- name: artifact
-- The columns of artifacts_f, spelled out of a row of `uses`. {objects} is the published root of
-- objects/. `again` counts repetitions of one name in one run and commit.
run_id || ':' || name || ':' || seq || CASE WHEN again > 0 THEN ':' || again ELSE '' END
  AS artifact_key,
run_id, name, artifact_id::VARCHAR AS artifact_id, producer, kind, schema_version,
'parquet' AS format,
{objects} || '/' || lower(hex(file_digest[1:1])) || '/' || lower(hex(file_digest)) || '.parquet'
  AS canonical_path,
rows, schema_hint, 'sha256:' || lower(hex(file_digest)) AS file_hash,
content_scheme || ':' || lower(hex(content_digest)) AS content_hash, created_at_utc, ingested_at,
seq, meta_json, logical_key, min_ts, max_ts

-- name: fresh
-- The fresh rows of one table, as `pick_…` wants them.
(SELECT unnest(from_json(data -> '$.{table}', '[{{{structure}}}]'), recursive := true)
 FROM held.fresh)

-- name: how_fresh
-- How much is kept as fresh rows, and the last artifact_no that is known.
SELECT count(data), coalesce(sum(length(data)), 0), max(artifact_no)
FROM (SELECT artifact_no, data FROM held.fresh
      UNION ALL SELECT artifact_no, NULL FROM held.meta)

-- name: forget_fresh
DELETE FROM held.fresh

-- name: forget_runs
DELETE FROM held.runs WHERE run_id IN (SELECT run_id FROM incoming)

-- name: change_revived
UPDATE held.uses SET file_digest = unhex(i.file_hash[-64:])
FROM incoming i WHERE uses.artifact_id = i.artifact_id::UUID

-- name: forget_identities
DELETE FROM catalog.identity_facts
WHERE artifact_id IN (SELECT artifact_id::UUID FROM incoming)

-- name: add_identities
INSERT INTO catalog.identity_facts
SELECT artifact_no, artifact_id::UUID, unhex(file_hash[-64:]), added_seq, ended_seq FROM incoming

-- name: digest
-- Order-independent over the rows of one relation.
SELECT '{name}', count(*), sum(md5_number_lower(t::VARCHAR)::HUGEINT),
       sum(md5_number_upper(t::VARCHAR)::HUGEINT)
FROM catalog.{name} t

-- ── read from manifest.sqlite ───────────────────────────────────────────────────────────────────

-- name: read_runs
-- Runs that a commit of the window touched last.
SELECT run_id, producer, created_at_utc, first_seen_at, last_seen_at, first_seq, last_seq,
       meta_json
FROM runs WHERE last_seq > :low AND last_seq <= :high

-- name: read_uses
-- A use shows the bytes that its artifact has now, which differ after a revival.
SELECT use_no, run_id, name, u.artifact_id, producer, kind, u.schema_version, rows, schema_hint,
       f.file_hash, u.content_hash, created_at_utc, ingested_at, seq, meta_json, f.logical_key,
       f.min_ts, f.max_ts
FROM run_artifacts u CROSS JOIN artifact_facts f ON f.artifact_no = (
  SELECT max(n.artifact_no) FROM artifact_facts n WHERE n.artifact_id = u.artifact_id)
WHERE use_no > ifnull((SELECT last_use_no FROM commits WHERE seq = :low), 0)
  AND use_no <= (SELECT last_use_no FROM commits WHERE seq = :high)
ORDER BY use_no

-- name: read_jobs
SELECT job_no, job_id, seq, outcome, first_seq, run_id, producer, kind, created_at_utc,
       committed_at_utc, artifacts, problems_json
FROM jobs WHERE seq > :low AND seq <= :high ORDER BY job_no

-- name: read_facts
-- Facts that began in the window.
SELECT {columns}, added_seq, ended_seq FROM {table} WHERE added_seq > :low AND added_seq <= :high

-- name: read_ended
-- Facts that are older than the window and ended in it or since.
SELECT {columns}, added_seq, ended_seq FROM {table}
WHERE ended_seq > :low AND +added_seq <= :low

-- name: read_revived
-- Artifacts that got other bytes since: their newest, where they had some before.
SELECT artifact_id, file_hash FROM artifact_facts f NOT INDEXED
WHERE artifact_no > :artifact_no AND EXISTS (
  SELECT 1 FROM artifact_facts g
  WHERE g.artifact_id = f.artifact_id AND g.artifact_no < f.artifact_no)
AND NOT EXISTS (
  SELECT 1 FROM artifact_facts g
  WHERE g.artifact_id = f.artifact_id AND g.artifact_no > f.artifact_no)

-- name: read_identities
-- All identities of artifacts one of whose identities ended, or followed on one that had.
SELECT artifact_no, artifact_id, file_hash, added_seq, ended_seq FROM artifact_facts
WHERE artifact_id IN (
  SELECT artifact_id FROM artifact_facts WHERE ended_seq > :low
  UNION
  SELECT n.artifact_id FROM artifact_facts n NOT INDEXED
  WHERE n.artifact_no > :artifact_no AND EXISTS (
    SELECT 1 FROM artifact_facts e
    WHERE e.artifact_id = n.artifact_id AND e.ended_seq IS NOT NULL))

-- name: read_columns
-- The column lists of new tables of kinds that have no full contract, first use first.
SELECT artifact_type, schema_version, columns_json, min(added_seq)
FROM artifact_facts NOT INDEXED
WHERE artifact_no > :artifact_no
  AND artifact_type || ' ' || schema_version NOT IN (SELECT value FROM json_each(:known))
GROUP BY artifact_type, schema_version, columns_json ORDER BY min(artifact_no)

-- name: read_window
-- Where a window of about `size` uses ends: with a whole commit.
SELECT seq FROM run_artifacts
WHERE use_no > ifnull((SELECT last_use_no FROM commits WHERE seq = :low), 0) AND seq < :high
ORDER BY use_no LIMIT 1 OFFSET :size

-- name: read_last
SELECT coalesce(max(artifact_no), 0) FROM artifact_facts

-- name: read_sha256
SELECT sha256 FROM commits WHERE seq = :seq
