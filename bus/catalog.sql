-- bus.duckdb: a view of the manifest for readers who want SQL. Delete it and it is made again.
--
-- `*_facts` say what became true at `added_seq` and stopped being true at `ended_seq`; the `*_f`
-- views over them show the present. Ids and hashes are kept as bytes, which halves the file that
-- every publication copies; the views spell them out. {objects} is the published root of objects/.

-- name: schema
CREATE SCHEMA catalog;
CREATE SCHEMA canon;

-- One row: the commit this view has come to, the last artifact_no it saw, the layout it was made
-- with.
CREATE TABLE catalog.meta(
  applied_seq BIGINT, applied_sha256 VARCHAR, artifact_no BIGINT, layout VARCHAR);

-- One row a run.
CREATE TABLE catalog.runs_d(
  run_id VARCHAR, producer VARCHAR, created_at_utc TIMESTAMPTZ, first_seen_at TIMESTAMPTZ,
  last_seen_at TIMESTAMPTZ, first_seq BIGINT, last_seq BIGINT, meta_json VARCHAR);

-- One row for each artifact a run delivered or used. `again` counts repetitions of one name in one
-- run and commit, so that artifact_key is unique.
CREATE TABLE catalog.uses(
  use_no BIGINT, run_id VARCHAR, name VARCHAR, artifact_id UUID, producer VARCHAR, kind VARCHAR,
  schema_version INTEGER, rows BIGINT, schema_hint VARCHAR, file_digest BLOB,
  content_scheme VARCHAR, content_digest BLOB, created_at_utc TIMESTAMPTZ,
  ingested_at TIMESTAMPTZ, seq BIGINT, again INTEGER, meta_json VARCHAR);

-- One row for each submission that was decided.
CREATE TABLE catalog.jobs_f(
  job_no BIGINT, job_id VARCHAR, seq BIGINT, outcome VARCHAR, first_seq BIGINT, run_id VARCHAR,
  producer VARCHAR, kind VARCHAR, created_at_utc TIMESTAMPTZ, committed_at_utc TIMESTAMPTZ,
  artifacts INTEGER, problems_json VARCHAR);

CREATE TABLE catalog.lineage_facts(
  artifact_id UUID, input_artifact_id UUID, added_seq BIGINT, ended_seq BIGINT);
CREATE TABLE catalog.tag_facts(
  artifact_id UUID, k VARCHAR, v VARCHAR, added_seq BIGINT, ended_seq BIGINT);
CREATE TABLE catalog.supersede_facts(
  artifact_id UUID, supersedes_artifact_id UUID, added_seq BIGINT, ended_seq BIGINT);
CREATE TABLE catalog.tombstone_facts(
  artifact_id UUID, reason VARCHAR, added_seq BIGINT, ended_seq BIGINT);
CREATE TABLE catalog.alias_facts(
  kind VARCHAR, alias VARCHAR, artifact_id UUID, added_seq BIGINT, ended_seq BIGINT);
CREATE TABLE catalog.pin_facts(
  pin VARCHAR, artifact_id UUID, added_seq BIGINT, ended_seq BIGINT);

-- The identities of those few artifacts that were ever purged, damaged or revived. Every other
-- artifact is simply there.
CREATE TABLE catalog.identity_facts(
  artifact_no BIGINT, artifact_id UUID, added_seq BIGINT, ended_seq BIGINT);

-- Every column, with every type, that tables without a full contract have had; in order of
-- appearance. What canon.<kind> shows is made of it.
CREATE TABLE catalog.columns_d(
  kind VARCHAR, schema_version INTEGER, ordinal INTEGER, name VARCHAR, type VARCHAR,
  first_seq BIGINT);

-- The views of schema canon, which kind each reads, and their text.
CREATE TABLE catalog.views_d(view_name VARCHAR, kind VARCHAR, sql VARCHAR);

-- name: views
CREATE OR REPLACE VIEW catalog.lineage_f AS
SELECT artifact_id::VARCHAR AS artifact_id, input_artifact_id::VARCHAR AS input_artifact_id,
       added_seq
FROM catalog.lineage_facts WHERE ended_seq IS NULL;

CREATE OR REPLACE VIEW catalog.tags_f AS
SELECT artifact_id::VARCHAR AS artifact_id, k, v, added_seq
FROM catalog.tag_facts WHERE ended_seq IS NULL;

CREATE OR REPLACE VIEW catalog.supersedes_f AS
SELECT artifact_id::VARCHAR AS artifact_id,
       supersedes_artifact_id::VARCHAR AS supersedes_artifact_id, added_seq
FROM catalog.supersede_facts WHERE ended_seq IS NULL;

CREATE OR REPLACE VIEW catalog.tombstones_f AS
SELECT artifact_id::VARCHAR AS artifact_id, reason, added_seq
FROM catalog.tombstone_facts WHERE ended_seq IS NULL;

CREATE OR REPLACE VIEW catalog.aliases_f AS
SELECT kind, alias, artifact_id::VARCHAR AS artifact_id, added_seq
FROM catalog.alias_facts WHERE ended_seq IS NULL;

CREATE OR REPLACE VIEW catalog.pins_f AS
SELECT pin, artifact_id::VARCHAR AS artifact_id, added_seq
FROM catalog.pin_facts WHERE ended_seq IS NULL;

-- The artifacts of all runs. canonical_path is the immutable object: readable from the moment the
-- row is visible, whatever becomes of links and trees.
CREATE OR REPLACE VIEW catalog.artifacts_f AS
SELECT {artifact} FROM catalog.uses;

-- Artifacts nobody should start from: tombstoned, purged or damaged.
CREATE OR REPLACE VIEW catalog.withdrawn_v AS
SELECT artifact_id FROM catalog.tombstone_facts WHERE ended_seq IS NULL
UNION
SELECT artifact_id FROM catalog.identity_facts
GROUP BY artifact_id HAVING count(*) = count(ended_seq);

-- Artifacts in good standing: what canon.<kind> reads.
CREATE OR REPLACE VIEW catalog.active_v AS
SELECT artifact_id, kind, max(use_no) AS use_no FROM catalog.uses
WHERE artifact_id NOT IN (SELECT artifact_id FROM catalog.withdrawn_v)
  AND artifact_id NOT IN (
    SELECT supersedes_artifact_id FROM catalog.supersede_facts WHERE ended_seq IS NULL)
GROUP BY artifact_id, kind;

-- The newest artifact of each producer, kind and name, by commit; newest first.
CREATE OR REPLACE VIEW catalog.latest_artifacts_v AS
SELECT {artifact} FROM catalog.uses
WHERE use_no IN (
  SELECT max(use_no) FROM catalog.uses
  WHERE artifact_id NOT IN (SELECT artifact_id FROM catalog.withdrawn_v)
  GROUP BY producer, kind, name)
ORDER BY use_no DESC;

-- artifacts_f as it stood after commit `as_of`, with the status each artifact had then.
CREATE OR REPLACE MACRO catalog.artifacts_asof(as_of) AS TABLE
SELECT {artifact},
       CASE
         WHEN artifact_id IN (
           SELECT artifact_id FROM catalog.identity_facts WHERE added_seq <= as_of
           GROUP BY artifact_id HAVING count(*) = count(ended_seq) FILTER (ended_seq <= as_of))
           THEN 'unavailable'
         WHEN artifact_id IN (
           SELECT artifact_id FROM catalog.tombstone_facts
           WHERE added_seq <= as_of AND coalesce(ended_seq > as_of, true)) THEN 'tombstoned'
         WHEN artifact_id IN (
           SELECT supersedes_artifact_id FROM catalog.supersede_facts
           WHERE added_seq <= as_of AND coalesce(ended_seq > as_of, true)) THEN 'superseded'
         ELSE 'active' END AS status
FROM catalog.uses WHERE seq <= as_of;

-- name: artifact
-- The columns of artifacts_f, spelled out of a row of `uses`.
run_id || ':' || name || ':' || seq || CASE WHEN again > 0 THEN ':' || again ELSE '' END
  AS artifact_key,
run_id, name, artifact_id::VARCHAR AS artifact_id, producer, kind, schema_version,
'parquet' AS format,
{objects} || '/' || lower(hex(file_digest[1:1])) || '/' || lower(hex(file_digest)) || '.parquet'
  AS canonical_path,
rows, schema_hint, 'sha256:' || lower(hex(file_digest)) AS file_hash,
content_scheme || ':' || lower(hex(content_digest)) AS content_hash, created_at_utc, ingested_at,
seq, meta_json

-- name: read_runs
-- (SQLite) Runs that a commit of the window touched last.
SELECT run_id, producer, created_at_utc, first_seen_at, last_seen_at, first_seq, last_seq,
       meta_json
FROM runs WHERE last_seq > :low AND last_seq <= :high ORDER BY first_seq, run_id

-- name: forget_runs
DELETE FROM catalog.runs_d WHERE run_id IN (SELECT run_id FROM incoming)

-- name: add_runs
INSERT INTO catalog.runs_d
SELECT run_id, producer, created_at_utc, first_seen_at, last_seen_at, first_seq, last_seq,
       meta_json
FROM incoming

-- name: read_uses
-- (SQLite) A use shows the bytes that its artifact has now, which differ after a revival.
SELECT use_no, run_id, name, artifact_id, producer, kind, schema_version, rows, schema_hint,
       coalesce((SELECT f.file_hash FROM artifact_facts f WHERE f.artifact_id = u.artifact_id
                 ORDER BY f.artifact_no DESC LIMIT 1), file_hash) AS file_hash,
       content_hash, created_at_utc, ingested_at, seq, meta_json
FROM run_artifacts u WHERE seq > :low AND seq <= :high ORDER BY use_no

-- name: add_uses
INSERT INTO catalog.uses
SELECT use_no, run_id, name, artifact_id::UUID, producer, kind, schema_version, rows, schema_hint,
       unhex(file_hash[-64:]), content_hash[:-66], unhex(content_hash[-64:]), created_at_utc,
       ingested_at, seq, again, meta_json
FROM incoming

-- name: read_jobs
-- (SQLite)
SELECT job_no, job_id, seq, outcome, first_seq, run_id, producer, kind, created_at_utc,
       committed_at_utc, artifacts, problems_json
FROM jobs WHERE seq > :low AND seq <= :high ORDER BY job_no

-- name: add_jobs
INSERT INTO catalog.jobs_f
SELECT job_no, job_id, seq, outcome, first_seq, run_id, producer, kind,
       created_at_utc, committed_at_utc, artifacts, problems_json
FROM incoming

-- name: read_revived
-- (SQLite) Artifacts that got other bytes since: their newest, where they had some before.
SELECT artifact_id, file_hash FROM artifact_facts f
WHERE artifact_no > :artifact_no AND EXISTS (
  SELECT 1 FROM artifact_facts g
  WHERE g.artifact_id = f.artifact_id AND g.artifact_no < f.artifact_no)
AND NOT EXISTS (
  SELECT 1 FROM artifact_facts g
  WHERE g.artifact_id = f.artifact_id AND g.artifact_no > f.artifact_no)

-- name: change_revived
UPDATE catalog.uses SET file_digest = unhex(i.file_hash[-64:])
FROM incoming i WHERE uses.artifact_id = i.artifact_id::UUID

-- name: read_identities
-- (SQLite) All identities of artifacts one of whose identities ended or followed on another.
SELECT artifact_no, artifact_id, added_seq, ended_seq FROM artifact_facts
WHERE artifact_id IN (
  SELECT artifact_id FROM artifact_facts WHERE ended_seq IS NOT NULL AND ended_seq > :applied
  UNION
  SELECT n.artifact_id FROM artifact_facts n
  WHERE n.artifact_no > :artifact_no AND EXISTS (
    SELECT 1 FROM artifact_facts e
    WHERE e.artifact_id = n.artifact_id AND e.ended_seq IS NOT NULL))
ORDER BY artifact_no

-- name: forget_identities
DELETE FROM catalog.identity_facts
WHERE artifact_id IN (SELECT artifact_id::UUID FROM incoming)

-- name: add_identities
INSERT INTO catalog.identity_facts
SELECT artifact_no, artifact_id::UUID, added_seq, ended_seq FROM incoming

-- name: read_columns
-- (SQLite) The column lists of new tables of kinds that have no full contract, first use first.
SELECT artifact_type, schema_version, columns_json, min(added_seq)
FROM artifact_facts NOT INDEXED
WHERE artifact_no > :artifact_no
  AND artifact_type || ' ' || schema_version NOT IN (SELECT value FROM json_each(:known))
GROUP BY artifact_type, schema_version, columns_json ORDER BY min(artifact_no)
