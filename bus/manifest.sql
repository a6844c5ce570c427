-- manifest.sqlite: a view of the journal. Delete it and `bus rebuild` makes it again.
--
-- A `*_facts` row says what became true at `added_seq` and, once `ended_seq` is set, what stopped
-- being true then; `ended_seq IS NULL` is the present. The documents' tables are views over facts.

-- name: tables
-- Identity of this view: schema version, applied commit, the lake's public root.
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;

-- Every commit that was applied, with the hash of its record. `last_use_no`: uses up to this one had
-- been noted when it was made, so that uses of a span of commits are a span of their numbers.
CREATE TABLE commits(
  seq INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, committed_at_utc TEXT NOT NULL,
  writer TEXT NOT NULL, jobs INTEGER NOT NULL, artifacts INTEGER NOT NULL,
  last_use_no INTEGER NOT NULL);

-- Identities. An artifact that is revived has one more, on other bytes. `node` is the number of its
-- first one: what other tables know an artifact by. In order of arrival new rows lie side by side,
-- while a row filed by the id, which is a hash, costs a page of its own in a large table.
CREATE TABLE artifact_facts(
  artifact_no INTEGER PRIMARY KEY, node INTEGER NOT NULL, artifact_id TEXT NOT NULL,
  artifact_type TEXT NOT NULL, schema_version INTEGER NOT NULL, logical_key TEXT NOT NULL,
  file_hash TEXT NOT NULL, content_hash TEXT NOT NULL, row_count INTEGER NOT NULL,
  size_bytes INTEGER NOT NULL, min_ts TEXT, max_ts TEXT, columns_json TEXT NOT NULL,
  created_at TEXT NOT NULL, duckdb_readable INTEGER NOT NULL, added_seq INTEGER NOT NULL,
  ended_seq INTEGER);
CREATE INDEX artifact_facts_id ON artifact_facts(artifact_id);

-- The artifacts behind the numbers. These rows are short, so that naming 100,000 artifacts reads few
-- pages; those of artifact_facts hold a list of columns each. Numbers below 0 stand for ids that no
-- record creates; there are none, or it is our error.
CREATE TABLE nodes(node INTEGER PRIMARY KEY, artifact_id TEXT NOT NULL, artifact_type TEXT);

-- Which contract tables of a kind and version are held to, since the first that was: it never changes.
CREATE TABLE contracts(
  artifact_type TEXT NOT NULL, schema_version INTEGER NOT NULL, fingerprint TEXT NOT NULL,
  added_seq INTEGER NOT NULL, PRIMARY KEY (artifact_type, schema_version)) WITHOUT ROWID;

-- Statistics of each column of each artifact, as validators read them: a JSON text, because a row
-- for each column would be most of the rows and most of the time that indexing a commit takes.
CREATE TABLE column_stats_facts(artifact_no INTEGER PRIMARY KEY, stats_json TEXT NOT NULL);

-- Runs: one row a run id, widened by every job that names it.
CREATE TABLE runs(
  run_id TEXT PRIMARY KEY, producer TEXT NOT NULL, created_at_utc TEXT NOT NULL,
  first_seen_at TEXT NOT NULL, last_seen_at TEXT NOT NULL, first_seq INTEGER NOT NULL,
  last_seq INTEGER NOT NULL, meta_json TEXT NOT NULL);

-- Uses: which run delivered or used which artifact under which name.
CREATE TABLE run_artifacts(
  use_no INTEGER PRIMARY KEY, run_id TEXT NOT NULL, name TEXT NOT NULL, artifact_id TEXT NOT NULL,
  job_id TEXT NOT NULL, seq INTEGER NOT NULL, producer TEXT NOT NULL, kind TEXT NOT NULL,
  schema_version INTEGER NOT NULL, schema_hint TEXT, rows INTEGER NOT NULL,
  file_hash TEXT NOT NULL, content_hash TEXT NOT NULL, deduped INTEGER NOT NULL, mode TEXT,
  created_at_utc TEXT NOT NULL, ingested_at TEXT NOT NULL, meta_json TEXT NOT NULL,
  node INTEGER NOT NULL);

-- Submissions: each verdict once, with its outcome.
CREATE TABLE jobs(
  job_no INTEGER PRIMARY KEY, job_id TEXT NOT NULL, verdict_id TEXT NOT NULL UNIQUE,
  submission_id TEXT, seq INTEGER NOT NULL, outcome TEXT NOT NULL, first_seq INTEGER,
  job_digest TEXT, run_id TEXT, producer TEXT, kind TEXT, created_at_utc TEXT,
  committed_at_utc TEXT NOT NULL, artifacts INTEGER NOT NULL, problems_json TEXT);

-- What a node was made from. That never ends, whatever becomes of the two.
CREATE TABLE lineage_edges(
  node INTEGER NOT NULL, input INTEGER NOT NULL, added_seq INTEGER NOT NULL,
  PRIMARY KEY (node, input)) WITHOUT ROWID;
CREATE VIEW lineage_facts AS
SELECT n.artifact_id, i.artifact_id AS input_artifact_id, e.added_seq, NULL AS ended_seq
FROM lineage_edges e JOIN artifact_facts n ON n.artifact_no = e.node
JOIN artifact_facts i ON i.artifact_no = e.input;

CREATE TABLE tag_marks(
  node INTEGER NOT NULL, k TEXT NOT NULL, v TEXT NOT NULL,
  added_seq INTEGER NOT NULL, ended_seq INTEGER,
  PRIMARY KEY (node, k, v, added_seq)) WITHOUT ROWID;
CREATE VIEW tag_facts AS
SELECT a.artifact_id, t.k, t.v, t.added_seq, t.ended_seq
FROM tag_marks t JOIN artifact_facts a ON a.artifact_no = t.node;

CREATE TABLE supersede_facts(
  artifact_id TEXT NOT NULL, supersedes_artifact_id TEXT NOT NULL,
  added_seq INTEGER NOT NULL, ended_seq INTEGER,
  PRIMARY KEY (artifact_id, supersedes_artifact_id, added_seq)) WITHOUT ROWID;

CREATE TABLE tombstone_facts(
  artifact_id TEXT NOT NULL, reason TEXT NOT NULL,
  added_seq INTEGER NOT NULL, ended_seq INTEGER,
  PRIMARY KEY (artifact_id, added_seq)) WITHOUT ROWID;

-- Objects whose bytes are gone or changed; `found` says how. Everything that stands on them is damaged.
CREATE TABLE damage_facts(
  file_hash TEXT NOT NULL, found TEXT NOT NULL,
  added_seq INTEGER NOT NULL, ended_seq INTEGER,
  PRIMARY KEY (file_hash, added_seq)) WITHOUT ROWID;

-- Objects whose bytes were given up on purpose. Everything that stands on them is purged.
CREATE TABLE purge_facts(
  file_hash TEXT NOT NULL, reason TEXT NOT NULL,
  added_seq INTEGER NOT NULL, ended_seq INTEGER,
  PRIMARY KEY (file_hash, added_seq)) WITHOUT ROWID;

-- How long withdrawn versions of a kind keep their bytes; without a row: as `bus.retention` says.
CREATE TABLE policy_facts(
  kind TEXT NOT NULL, keep_last INTEGER, keep_days INTEGER,
  added_seq INTEGER NOT NULL, ended_seq INTEGER,
  PRIMARY KEY (kind, added_seq)) WITHOUT ROWID;

-- Directories of jobs that ended so, and were answered before then, are not kept any more.
CREATE TABLE discard_facts(
  jobs TEXT NOT NULL, before TEXT NOT NULL,
  added_seq INTEGER NOT NULL, ended_seq INTEGER,
  PRIMARY KEY (jobs, added_seq)) WITHOUT ROWID;

CREATE TABLE alias_facts(
  kind TEXT NOT NULL, alias TEXT NOT NULL, artifact_id TEXT NOT NULL,
  added_seq INTEGER NOT NULL, ended_seq INTEGER,
  PRIMARY KEY (kind, alias, added_seq)) WITHOUT ROWID;

-- Every move of every alias, in order; without an artifact_id it was taken away. Facts show how a
-- commit left an alias, this table each step and, by its verdict, whose step it was.
CREATE TABLE alias_moves(
  move_no INTEGER PRIMARY KEY, kind TEXT NOT NULL, alias TEXT NOT NULL, artifact_id TEXT,
  seq INTEGER NOT NULL, verdict_id TEXT NOT NULL);

CREATE TABLE pin_facts(
  pin TEXT NOT NULL, artifact_id TEXT NOT NULL,
  added_seq INTEGER NOT NULL, ended_seq INTEGER,
  PRIMARY KEY (pin, artifact_id, added_seq)) WITHOUT ROWID;

-- How far the views behind this one have come; not part of the truth, only a hint where to go on.
CREATE TABLE progress(view TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;

-- The documents' tables, as they stand now.
CREATE VIEW artifacts AS
SELECT artifact_id, artifact_type, schema_version, logical_key,
       CASE WHEN EXISTS (SELECT 1 FROM purge_facts p
                         WHERE p.file_hash = a.file_hash AND p.ended_seq IS NULL)
            THEN 'purged'
            WHEN EXISTS (SELECT 1 FROM tombstone_facts t
                         WHERE t.artifact_id = a.artifact_id AND t.ended_seq IS NULL)
            THEN 'tombstoned'
            WHEN EXISTS (SELECT 1 FROM damage_facts d
                         WHERE d.file_hash = a.file_hash AND d.ended_seq IS NULL)
            THEN 'damaged'
            WHEN EXISTS (SELECT 1 FROM supersede_facts s
                         WHERE s.supersedes_artifact_id = a.artifact_id AND s.ended_seq IS NULL)
            THEN 'superseded' ELSE 'active' END AS status,
       (SELECT value FROM meta WHERE key = 'objects_root') || '/' || substr(file_hash, 8, 2) || '/'
         || substr(file_hash, 8) || '.parquet' AS path_parquet,
       (SELECT value FROM meta WHERE key = 'sidecars_root') || '/' || artifact_id || '.json'
         AS path_sidecar,
       file_hash, content_hash, row_count, min_ts, max_ts, created_at
FROM artifact_facts a WHERE ended_seq IS NULL;

-- The Parquet files that artifacts stand on; several artifacts may share one.
CREATE VIEW objects AS
SELECT file_hash, max(size_bytes) AS size_bytes, min(added_seq) AS added_seq
FROM artifact_facts WHERE ended_seq IS NULL GROUP BY file_hash;

-- What `artifacts/`, and so canon.<kind>, shows: active artifacts that DuckDB can read.
CREATE VIEW linked AS
SELECT artifact_type, schema_version, artifact_id, file_hash FROM artifacts
WHERE status = 'active' AND artifact_id NOT IN (
  SELECT artifact_id FROM artifact_facts WHERE duckdb_readable = 0 AND ended_seq IS NULL);

-- What stands on damaged objects.
CREATE VIEW damaged AS
SELECT a.artifact_id, a.artifact_type, a.logical_key, d.file_hash, d.found, d.added_seq
FROM damage_facts d JOIN artifact_facts a USING (file_hash)
WHERE d.ended_seq IS NULL AND a.ended_seq IS NULL;

CREATE VIEW policies AS
SELECT kind, keep_last, keep_days, added_seq FROM policy_facts WHERE ended_seq IS NULL;

CREATE VIEW artifact_lineage AS
SELECT artifact_id, input_artifact_id FROM lineage_facts WHERE ended_seq IS NULL;

CREATE VIEW artifact_tags AS SELECT artifact_id, k, v FROM tag_facts WHERE ended_seq IS NULL;

CREATE VIEW artifact_supersedes AS
SELECT artifact_id, supersedes_artifact_id FROM supersede_facts WHERE ended_seq IS NULL;

CREATE VIEW aliases AS
SELECT kind, alias, artifact_id, added_seq FROM alias_facts WHERE ended_seq IS NULL;

CREATE VIEW pins AS SELECT pin, artifact_id, added_seq FROM pin_facts WHERE ended_seq IS NULL;

CREATE VIEW column_stats AS
SELECT a.artifact_id, s.key AS ordinal, json_extract(s.value, '$.name') AS name,
       coalesce((SELECT json_extract(c.value, '$.type') FROM json_each(a.columns_json) c
                 WHERE json_extract(c.value, '$.name') = json_extract(s.value, '$.name')), '')
         AS type,
       json_extract(s.value, '$.nulls') AS nulls, json_extract(s.value, '$.min') AS min,
       json_extract(s.value, '$.max') AS max
FROM artifact_facts a JOIN column_stats_facts f USING (artifact_no), json_each(f.stats_json) s
WHERE a.ended_seq IS NULL;

-- name: indexes
-- What readers and the writer search by. Made after a rebuild, because filling a table that has them
-- costs half as much again; `artifact_facts_id` alone is needed while commits are written down.
CREATE INDEX IF NOT EXISTS idx_artifacts_type_key ON artifact_facts(artifact_type, logical_key);
CREATE INDEX IF NOT EXISTS idx_artifacts_content_hash ON artifact_facts(content_hash);
CREATE INDEX IF NOT EXISTS idx_artifacts_type_key_content
  ON artifact_facts(artifact_type, schema_version, logical_key, content_hash);
CREATE INDEX IF NOT EXISTS artifact_facts_created ON artifact_facts(created_at);
CREATE INDEX IF NOT EXISTS artifact_facts_unreadable
  ON artifact_facts(artifact_id) WHERE duckdb_readable = 0;
CREATE INDEX IF NOT EXISTS artifact_facts_file ON artifact_facts(file_hash);
CREATE INDEX IF NOT EXISTS runs_last_seq ON runs(last_seq);
CREATE INDEX IF NOT EXISTS run_artifacts_run ON run_artifacts(run_id, name);
CREATE INDEX IF NOT EXISTS run_artifacts_job ON run_artifacts(job_id, name);
CREATE INDEX IF NOT EXISTS run_artifacts_node ON run_artifacts(node);
CREATE INDEX IF NOT EXISTS run_artifacts_kind ON run_artifacts(kind);
CREATE INDEX IF NOT EXISTS run_artifacts_kind_name ON run_artifacts(kind, name);
CREATE INDEX IF NOT EXISTS jobs_id ON jobs(job_id, outcome);
CREATE INDEX IF NOT EXISTS jobs_seq ON jobs(seq);
CREATE INDEX IF NOT EXISTS lineage_edges_input ON lineage_edges(input, added_seq);
CREATE INDEX IF NOT EXISTS tag_marks_kv ON tag_marks(k, v);
CREATE INDEX IF NOT EXISTS supersede_facts_old ON supersede_facts(supersedes_artifact_id);
CREATE INDEX IF NOT EXISTS artifact_facts_ended ON artifact_facts(ended_seq) WHERE ended_seq IS NOT NULL;
CREATE INDEX IF NOT EXISTS lineage_edges_added ON lineage_edges(added_seq);
CREATE INDEX IF NOT EXISTS tag_marks_added ON tag_marks(added_seq);
CREATE INDEX IF NOT EXISTS tag_marks_ended ON tag_marks(ended_seq) WHERE ended_seq IS NOT NULL;
CREATE INDEX IF NOT EXISTS supersede_facts_added ON supersede_facts(added_seq);
CREATE INDEX IF NOT EXISTS supersede_facts_ended ON supersede_facts(ended_seq) WHERE ended_seq IS NOT NULL;
CREATE INDEX IF NOT EXISTS tombstone_facts_added ON tombstone_facts(added_seq);
CREATE INDEX IF NOT EXISTS tombstone_facts_ended ON tombstone_facts(ended_seq) WHERE ended_seq IS NOT NULL;
CREATE INDEX IF NOT EXISTS purge_facts_added ON purge_facts(added_seq);
CREATE INDEX IF NOT EXISTS purge_facts_ended ON purge_facts(ended_seq) WHERE ended_seq IS NOT NULL;
CREATE INDEX IF NOT EXISTS alias_facts_added ON alias_facts(added_seq);
CREATE INDEX IF NOT EXISTS alias_facts_ended ON alias_facts(ended_seq) WHERE ended_seq IS NOT NULL;
CREATE INDEX IF NOT EXISTS alias_moves_name ON alias_moves(kind, alias);
CREATE INDEX IF NOT EXISTS pin_facts_added ON pin_facts(added_seq);
CREATE INDEX IF NOT EXISTS pin_facts_ended ON pin_facts(ended_seq) WHERE ended_seq IS NOT NULL;

-- name: advance
-- Move to the next commit, but only from the one it follows.
UPDATE meta SET value = CASE key WHEN 'applied_seq' THEN :seq ELSE :sha256 END
WHERE key IN ('applied_seq', 'applied_sha256')
  AND (SELECT value FROM meta WHERE key = 'applied_seq') = :seq - 1
  AND (SELECT value FROM meta WHERE key = 'applied_sha256') = :prev;

-- name: move
-- The lake lies elsewhere than when this file was made: (key, value).
UPDATE meta SET value = ?2 WHERE key = ?1;

-- name: entries
-- Jobs and artifacts; numbers are given in order, and no row is ever deleted.
SELECT (SELECT coalesce(max(job_no), 0) FROM jobs)
     + (SELECT coalesce(max(artifact_no), 0) FROM artifact_facts);

-- name: add_run
-- A run begins with its first job and is widened by later ones; the newest meta wins by key.
INSERT INTO runs(run_id, producer, created_at_utc, meta_json, first_seen_at, last_seen_at,
                 first_seq, last_seq)
VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?6)
ON CONFLICT (run_id) DO UPDATE SET
  last_seen_at = excluded.last_seen_at, last_seq = excluded.last_seq,
  meta_json = json_patch(meta_json, excluded.meta_json);

-- name: node_of
-- The number of an artifact; NULL when there is none.
SELECT min(artifact_no) FROM artifact_facts WHERE artifact_id = ?;

-- name: add_unknown
-- Number an id that no record has created.
INSERT INTO nodes(node, artifact_id) SELECT min(ifnull(min(node), 0), 0) - 1, ? FROM nodes;

-- name: end_identity
-- A revived artifact stands on other bytes from now on; its earlier row stays as history.
UPDATE artifact_facts SET ended_seq = ? WHERE artifact_id = ? AND ended_seq IS NULL;

-- name: newest_moment
-- When the newest commit was made; later ones have later moments.
SELECT committed_at_utc FROM commits ORDER BY seq DESC LIMIT 1;

-- name: known_verdicts
-- Which of these verdicts were decided already, and how.
SELECT verdict_id, seq FROM jobs WHERE verdict_id IN (SELECT value FROM json_each(?));

-- name: committed_jobs
-- Which of these job ids were committed, with what digest.
SELECT job_id, job_digest, seq FROM jobs
WHERE outcome = 'committed' AND job_id IN (SELECT value FROM json_each(?));

-- name: known_artifacts
-- The present bytes of these artifacts, why they are tombstoned, and whether they are damaged or
-- purged.
SELECT artifact_id, file_hash,
       (SELECT reason FROM tombstone_facts t
        WHERE t.artifact_id = a.artifact_id AND t.ended_seq IS NULL),
       EXISTS (SELECT 1 FROM damage_facts d
               WHERE d.file_hash = a.file_hash AND d.ended_seq IS NULL)
       OR EXISTS (SELECT 1 FROM purge_facts p
                  WHERE p.file_hash = a.file_hash AND p.ended_seq IS NULL)
FROM artifact_facts a
WHERE ended_seq IS NULL AND artifact_id IN (SELECT value FROM json_each(?));

-- name: known_contracts
-- The contract that tables of this kind and version are held to.
SELECT fingerprint FROM contracts WHERE artifact_type = ? AND schema_version = ?;

-- name: bytes_back
-- Objects whose bytes are back since this commit.
SELECT file_hash FROM damage_facts WHERE ended_seq = ?1
UNION SELECT file_hash FROM purge_facts WHERE ended_seq = ?1 AND file_hash NOT IN (
  SELECT file_hash FROM purge_facts WHERE ended_seq IS NULL);

-- name: places_of_object
-- Artifacts in good standing, and deliveries of runs, that show this object.
SELECT 'artifact', artifact_type, schema_version, artifact_id FROM artifacts
WHERE file_hash = ?1 AND status IN ('active', 'damaged') AND artifact_id NOT IN (
  SELECT artifact_id FROM artifact_facts WHERE duckdb_readable = 0 AND ended_seq IS NULL)
UNION ALL
SELECT 'run', run_id, name, NULL FROM run_artifacts u
WHERE node IN (SELECT node FROM artifact_facts WHERE file_hash = ?1 AND ended_seq IS NULL)
  AND use_no = (SELECT max(use_no) FROM run_artifacts n WHERE n.run_id = u.run_id AND n.name = u.name);

-- name: linked_anew
-- Artifacts whose links may still show the bytes that they stood on before they were revived.
SELECT artifact_type, schema_version, artifact_id, file_hash FROM linked
WHERE artifact_id IN (SELECT artifact_id FROM artifact_facts WHERE ended_seq IS NOT NULL);

-- name: purged_since
-- Objects that these commits gave up, and none has brought back.
SELECT file_hash FROM purge_facts WHERE ended_seq IS NULL AND added_seq > ? AND added_seq <= ?;

-- name: discarded_since
-- How jobs ended whose directories these commits gave up, and before when they were answered.
SELECT jobs, before FROM discard_facts WHERE ended_seq IS NULL AND added_seq > ? AND added_seq <= ?;

-- name: still_purged
-- Which of these objects are given up at this moment.
SELECT file_hash FROM purge_facts
WHERE ended_seq IS NULL AND file_hash IN (SELECT value FROM json_each(?));

-- name: shown_in_runs
-- Deliveries of runs that show this object, or showed it before their artifact got other bytes.
SELECT run_id, name FROM run_artifacts u
WHERE file_hash = ?1
  AND node IN (SELECT node FROM artifact_facts WHERE file_hash = ?1)
  AND use_no = (SELECT max(use_no) FROM run_artifacts n WHERE n.run_id = u.run_id AND n.name = u.name);

-- name: still_needed
-- On which of these objects something stands that was not given up.
SELECT DISTINCT file_hash FROM artifact_facts
WHERE ended_seq IS NULL AND file_hash IN (SELECT value FROM json_each(?))
  AND file_hash NOT IN (SELECT file_hash FROM purge_facts WHERE ended_seq IS NULL);

-- name: artifacts_of_job
-- What `job:<job_id>/<name>` means.
SELECT artifact_id FROM run_artifacts WHERE job_id = ? AND name = ? ORDER BY use_no DESC LIMIT 1;

-- name: inputs_of
-- (artifact, what it was made from) for these artifacts.
SELECT l.artifact_id, l.input_artifact_id
FROM json_each(?) n CROSS JOIN lineage_facts l ON l.artifact_id = n.value;

-- name: users_of
-- (artifact, what was made from it) for these artifacts.
SELECT l.input_artifact_id, l.artifact_id
FROM json_each(?) n CROSS JOIN lineage_facts l ON l.input_artifact_id = n.value;

-- name: words_for
-- What people call these artifacts.
SELECT artifact_id, artifact_type, logical_key FROM artifact_facts
WHERE ended_seq IS NULL AND artifact_id IN (SELECT value FROM json_each(?));

-- name: superseders
-- What supersedes these artifacts.
SELECT supersedes_artifact_id, artifact_id FROM supersede_facts
WHERE ended_seq IS NULL AND supersedes_artifact_id IN (SELECT value FROM json_each(?));

-- name: tags
-- The tags that these artifacts carry.
SELECT artifact_id, k, v FROM tag_facts
WHERE ended_seq IS NULL AND artifact_id IN (SELECT value FROM json_each(?));

-- name: pinned
-- The members of these pins.
SELECT pin, artifact_id FROM pin_facts
WHERE ended_seq IS NULL AND pin IN (SELECT value FROM json_each(?));

-- name: aliased
-- What `<kind>:<alias>` means.
SELECT artifact_id FROM alias_facts WHERE ended_seq IS NULL AND kind = ? AND alias = ?;

-- ── looking, also into the past ────────────────────────────────────────────────────────────────
-- A fact held after commit :as_of when it had begun and not ended by then; of the newest commit that
-- is the present. So one text serves both, and all that is read at one :as_of fits together.

-- name: artifacts_then
-- Artifacts as they stood after :as_of, newest first. What is listed of each, its tags above all, is
-- put together only for those that are listed.
SELECT a.artifact_id, a.artifact_type, a.schema_version, a.logical_key, {status} AS status,
       a.file_hash, a.content_hash, a.row_count, a.size_bytes, a.min_ts, a.max_ts, a.created_at,
       a.added_seq,
       (SELECT json_group_array(json_array(t.k, t.v)) FROM tag_marks t
        WHERE t.node = a.node
          AND t.added_seq <= :as_of AND ifnull(t.ended_seq > :as_of, 1))
FROM artifact_facts a
WHERE a.artifact_no IN (
  SELECT a.artifact_no FROM artifact_facts a
  WHERE {where} AND a.added_seq <= :as_of AND ifnull(a.ended_seq > :as_of, 1)
    AND (:status IS NULL OR {status} = :status)
  ORDER BY a.artifact_no DESC LIMIT :limit)
ORDER BY a.artifact_no DESC

-- name: status_then
CASE WHEN EXISTS (SELECT 1 FROM purge_facts p
                  WHERE p.file_hash = a.file_hash
                    AND p.added_seq <= :as_of AND ifnull(p.ended_seq > :as_of, 1))
     THEN 'purged'
     WHEN EXISTS (SELECT 1 FROM tombstone_facts t
                  WHERE t.artifact_id = a.artifact_id
                    AND t.added_seq <= :as_of AND ifnull(t.ended_seq > :as_of, 1))
     THEN 'tombstoned'
     WHEN EXISTS (SELECT 1 FROM damage_facts d
                  WHERE d.file_hash = a.file_hash
                    AND d.added_seq <= :as_of AND ifnull(d.ended_seq > :as_of, 1))
     THEN 'damaged'
     WHEN EXISTS (SELECT 1 FROM supersede_facts s
                  WHERE s.supersedes_artifact_id = a.artifact_id
                    AND s.added_seq <= :as_of AND ifnull(s.ended_seq > :as_of, 1))
     THEN 'superseded' ELSE 'active' END

-- name: latest
-- The active artifact that was delivered last, up to :as_of.
SELECT u.artifact_id FROM run_artifacts u
CROSS JOIN artifact_facts a ON a.artifact_id = u.artifact_id
WHERE {where}
  AND u.use_no <= ifnull((SELECT last_use_no FROM commits WHERE seq = :as_of), 0)
  AND a.added_seq <= :as_of AND ifnull(a.ended_seq > :as_of, 1) AND {status} = 'active'
ORDER BY u.use_no DESC LIMIT 1

-- name: relations_then
-- What one artifact had to do with others, by the name of the relation.
SELECT 'inputs', input_artifact_id FROM lineage_facts
WHERE artifact_id = :id AND added_seq <= :as_of AND ifnull(ended_seq > :as_of, 1)
UNION ALL SELECT 'used_by', artifact_id FROM lineage_facts
WHERE input_artifact_id = :id AND added_seq <= :as_of AND ifnull(ended_seq > :as_of, 1)
UNION ALL SELECT 'supersedes', supersedes_artifact_id FROM supersede_facts
WHERE artifact_id = :id AND added_seq <= :as_of AND ifnull(ended_seq > :as_of, 1)
UNION ALL SELECT 'superseded_by', artifact_id FROM supersede_facts
WHERE supersedes_artifact_id = :id AND added_seq <= :as_of AND ifnull(ended_seq > :as_of, 1)
UNION ALL SELECT 'aliases', kind || ':' || alias FROM alias_facts
WHERE artifact_id = :id AND added_seq <= :as_of AND ifnull(ended_seq > :as_of, 1)
UNION ALL SELECT 'pins', pin FROM pin_facts
WHERE artifact_id = :id AND added_seq <= :as_of AND ifnull(ended_seq > :as_of, 1)
UNION ALL SELECT 'tombstoned', reason FROM tombstone_facts
WHERE artifact_id = :id AND added_seq <= :as_of AND ifnull(ended_seq > :as_of, 1)
UNION ALL SELECT 'purged', p.reason
FROM artifact_facts a CROSS JOIN purge_facts p ON p.file_hash = a.file_hash
WHERE a.artifact_id = :id AND a.added_seq <= :as_of AND ifnull(a.ended_seq > :as_of, 1)
  AND p.added_seq <= :as_of AND ifnull(p.ended_seq > :as_of, 1)
ORDER BY 1, 2

-- name: statistics_then
-- The columns of one artifact and what is known of each.
SELECT columns_json, stats_json FROM artifact_facts JOIN column_stats_facts USING (artifact_no)
WHERE artifact_id = :id AND added_seq <= :as_of AND ifnull(ended_seq > :as_of, 1)

-- name: kinds
-- Every kind there ever was: one step of the index for each.
WITH RECURSIVE kinds(kind) AS (
  SELECT min(artifact_type) FROM artifact_facts
  UNION ALL
  SELECT (SELECT min(artifact_type) FROM artifact_facts WHERE artifact_type > kind) FROM kinds
  WHERE kind IS NOT NULL)
SELECT kind FROM kinds WHERE kind IS NOT NULL

-- name: rarest_tag
-- Of these [key, value] pairs the one that the fewest artifacts carry, or ever did.
SELECT json_extract(j.value, '$[0]'), json_extract(j.value, '$[1]') FROM json_each(:tags) j
ORDER BY (SELECT count(*) FROM (
  SELECT 1 FROM tag_marks WHERE k = json_extract(j.value, '$[0]')
    AND v = json_extract(j.value, '$[1]') LIMIT :rare)) LIMIT 1

-- name: is_rare
-- Whether a kind has so few artifacts that sorting them costs less than walking the others by.
SELECT count(*) < :rare FROM (SELECT 1 FROM artifact_facts WHERE artifact_type = :kind LIMIT :rare)

-- name: commit_at
-- The newest commit at a moment or before it.
SELECT seq FROM commits WHERE committed_at_utc <= ? ORDER BY seq DESC LIMIT 1

-- name: meant_by_run
-- What `<run_id>/<name>` meant: the run's newest delivery under that name.
SELECT artifact_id FROM run_artifacts
WHERE run_id = :first AND name = :second
  AND use_no <= ifnull((SELECT last_use_no FROM commits WHERE seq = :as_of), 0)
ORDER BY use_no DESC LIMIT 1

-- name: meant_by_job
-- What `job:<job_id>/<name>` meant.
SELECT artifact_id FROM run_artifacts
WHERE job_id = :first AND name = :second
  AND use_no <= ifnull((SELECT last_use_no FROM commits WHERE seq = :as_of), 0)
ORDER BY use_no DESC LIMIT 1

-- name: meant_by_alias
-- What `<kind>:<alias>` meant.
SELECT artifact_id FROM alias_facts
WHERE kind = :first AND alias = :second AND added_seq <= :as_of AND ifnull(ended_seq > :as_of, 1)

-- name: meant_by_version
-- What `<kind>@<version>/<prefix>` may have meant; ids are looked up, they tell apart best.
SELECT artifact_id FROM artifact_facts
WHERE artifact_id >= :second AND artifact_id < :second || '~'
  AND artifact_type || '@' || schema_version = :first
  AND added_seq <= :as_of AND ifnull(ended_seq > :as_of, 1) LIMIT 100

-- name: meant_by_prefix
-- What the beginning of an id may have meant.
SELECT artifact_id FROM artifact_facts
WHERE artifact_id >= :second AND artifact_id < :second || '~'
  AND added_seq <= :as_of AND ifnull(ended_seq > :as_of, 1) LIMIT 100

-- name: names_like_run
-- References to deliveries, those of run :first before the others, the newest first.
SELECT * FROM (SELECT run_id || '/' || name FROM run_artifacts WHERE run_id = :first LIMIT 200)
UNION SELECT * FROM (SELECT run_id || '/' || name FROM run_artifacts ORDER BY use_no DESC LIMIT 1000)

-- name: names_like_job
-- The same by jobs.
SELECT * FROM (SELECT 'job:' || job_id || '/' || name FROM run_artifacts
               WHERE job_id = :first LIMIT 200)
UNION SELECT * FROM (SELECT 'job:' || job_id || '/' || name FROM run_artifacts
                     ORDER BY use_no DESC LIMIT 1000)

-- name: names_like_alias
-- Aliases that hold after :as_of.
SELECT kind || ':' || alias FROM alias_facts
WHERE added_seq <= :as_of AND ifnull(ended_seq > :as_of, 1) LIMIT 1000

-- name: ids_beside
-- The ids before and after a text: of all ids they share the longest beginning with it.
SELECT * FROM (SELECT artifact_id FROM artifact_facts WHERE artifact_id >= :second
               ORDER BY artifact_id LIMIT 1)
UNION SELECT * FROM (SELECT artifact_id FROM artifact_facts WHERE artifact_id < :second
                     ORDER BY artifact_id DESC LIMIT 1)

-- ── the change feed ────────────────────────────────────────────────────────────────────────────

-- name: window_of_changes
-- Where a span of commits after :low ends that holds about :size artifacts, or one commit.
SELECT ifnull(max(seq) FILTER (WHERE total <= :size), min(seq)) FROM (
  SELECT seq, sum(artifacts) OVER (ORDER BY seq) AS total
  FROM (SELECT seq, artifacts FROM commits WHERE seq > :low ORDER BY seq LIMIT 200))

-- name: changes
-- Every fact that commits :low+1 … :high began or ended, in an order that a rebuild does not change.
SELECT seq, committed_at_utc, change, kind, artifact_id, job_id, details FROM (
  SELECT seq, 0 AS part, job_no AS number, outcome AS change, kind, NULL AS artifact_id, job_id,
         json_object('run_id', run_id, 'producer', producer, 'artifacts', artifacts, 'first_seq',
           first_seq, 'codes', CASE WHEN problems_json IS NOT NULL THEN
             (SELECT json_group_array(json_extract(value, '$.code')) FROM json_each(problems_json)) END)
           AS details
  FROM jobs WHERE seq > :low AND seq <= :high
  UNION ALL
  SELECT seq, 1, use_no,
         CASE WHEN deduped THEN 'deduped'
              WHEN EXISTS (SELECT 1 FROM run_artifacts e
                           WHERE e.node = u.node AND e.use_no < u.use_no)
              THEN 'revived' ELSE 'created' END,
         kind, artifact_id, job_id,
         json_object('run_id', run_id, 'name', name, 'producer', producer, 'schema_version',
           schema_version, 'rows', rows, 'file_hash', file_hash, 'mode', mode)
  FROM run_artifacts u
  WHERE use_no > ifnull((SELECT last_use_no FROM commits WHERE seq = :low), 0)
    AND use_no <= (SELECT last_use_no FROM commits WHERE seq = :high)
  UNION ALL
  SELECT seq, part, NULL, change,
         (SELECT artifact_type FROM artifact_facts a WHERE a.artifact_id = f.artifact_id LIMIT 1),
         artifact_id, NULL, details
  FROM (
    SELECT added_seq AS seq, 2 AS part, 'derived' AS change, artifact_id,
           json_object('input', input_artifact_id) AS details
    FROM lineage_facts WHERE added_seq > :low AND added_seq <= :high
    UNION ALL
    SELECT ended_seq, 3, 'untagged', artifact_id, json_object('k', k, 'v', v)
    FROM tag_facts WHERE ended_seq > :low AND ended_seq <= :high
    UNION ALL
    SELECT added_seq, 4, 'tagged', artifact_id, json_object('k', k, 'v', v)
    FROM tag_facts WHERE added_seq > :low AND added_seq <= :high
    UNION ALL
    SELECT ended_seq, 5, 'unsuperseded', supersedes_artifact_id, json_object('by', artifact_id)
    FROM supersede_facts WHERE ended_seq > :low AND ended_seq <= :high
    UNION ALL
    SELECT added_seq, 6, 'superseded', supersedes_artifact_id, json_object('by', artifact_id)
    FROM supersede_facts WHERE added_seq > :low AND added_seq <= :high
    UNION ALL
    SELECT ended_seq, 7, 'untombstoned', artifact_id, json_object('reason', reason)
    FROM tombstone_facts WHERE ended_seq > :low AND ended_seq <= :high
    UNION ALL
    SELECT added_seq, 8, 'tombstoned', artifact_id, json_object('reason', reason)
    FROM tombstone_facts WHERE added_seq > :low AND added_seq <= :high
    UNION ALL
    SELECT d.ended_seq, 9, 'restored', a.artifact_id, json_object('file_hash', d.file_hash)
    FROM damage_facts d CROSS JOIN artifact_facts a ON a.file_hash = d.file_hash
    WHERE d.ended_seq > :low AND d.ended_seq <= :high
      AND a.added_seq <= d.ended_seq AND ifnull(a.ended_seq > d.ended_seq, 1)
    UNION ALL
    SELECT d.added_seq, 10, 'damaged', a.artifact_id,
           json_object('file_hash', d.file_hash, 'found', d.found)
    FROM damage_facts d CROSS JOIN artifact_facts a ON a.file_hash = d.file_hash
    WHERE d.added_seq > :low AND d.added_seq <= :high
      AND a.added_seq <= d.added_seq AND ifnull(a.ended_seq > d.added_seq, 1)
    UNION ALL
    SELECT g.ended_seq, 11, 'unpurged', a.artifact_id,
           json_object('file_hash', g.file_hash, 'reason', g.reason)
    FROM purge_facts g CROSS JOIN artifact_facts a ON a.file_hash = g.file_hash
    WHERE g.ended_seq > :low AND g.ended_seq <= :high
      AND a.added_seq <= g.ended_seq AND ifnull(a.ended_seq > g.ended_seq, 1)
    UNION ALL
    SELECT g.added_seq, 12, 'purged', a.artifact_id,
           json_object('file_hash', g.file_hash, 'reason', g.reason)
    FROM purge_facts g CROSS JOIN artifact_facts a ON a.file_hash = g.file_hash
    WHERE g.added_seq > :low AND g.added_seq <= :high
      AND a.added_seq <= g.added_seq AND ifnull(a.ended_seq > g.added_seq, 1)
    UNION ALL
    SELECT ended_seq, 13, 'unpinned', artifact_id, json_object('pin', pin)
    FROM pin_facts WHERE ended_seq > :low AND ended_seq <= :high
    UNION ALL
    SELECT added_seq, 14, 'pinned', artifact_id, json_object('pin', pin)
    FROM pin_facts WHERE added_seq > :low AND added_seq <= :high) f
  UNION ALL
  SELECT ended_seq, 15, NULL, 'unaliased', kind, artifact_id, NULL, json_object('alias', alias)
  FROM alias_facts a WHERE ended_seq > :low AND ended_seq <= :high AND NOT EXISTS (
    SELECT 1 FROM alias_facts n
    WHERE n.kind = a.kind AND n.alias = a.alias AND n.added_seq = a.ended_seq)
  UNION ALL
  SELECT added_seq, 16, NULL, 'aliased', kind, artifact_id, NULL,
         json_object('alias', alias, 'was', (
           SELECT o.artifact_id FROM alias_facts o
           WHERE o.kind = a.kind AND o.alias = a.alias AND o.ended_seq = a.added_seq))
  FROM alias_facts a WHERE added_seq > :low AND added_seq <= :high
  UNION ALL
  SELECT ended_seq, 17, NULL, 'policy_removed', kind, NULL, NULL, '{}'
  FROM policy_facts WHERE ended_seq > :low AND ended_seq <= :high AND NOT EXISTS (
    SELECT 1 FROM policy_facts n
    WHERE n.kind = policy_facts.kind AND n.added_seq = policy_facts.ended_seq)
  UNION ALL
  SELECT added_seq, 18, NULL, 'policy_set', kind, NULL, NULL,
         json_object('keep_last', keep_last, 'keep_days', keep_days)
  FROM policy_facts WHERE added_seq > :low AND added_seq <= :high
  UNION ALL
  SELECT added_seq, 19, NULL, 'discarded', NULL, NULL, NULL,
         json_object('jobs', jobs, 'before', before)
  FROM discard_facts WHERE added_seq > :low AND added_seq <= :high)
JOIN commits USING (seq)
WHERE :kind IS NULL OR kind = :kind
ORDER BY seq, part, number, artifact_id, details
