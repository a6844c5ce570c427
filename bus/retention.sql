-- What may go: read from manifest.sqlite by `bus.retention`, for a plan and again by the writer.

-- name: all_withdrawn
-- The scope of a plan: every artifact that was superseded or tombstoned.
SELECT supersedes_artifact_id FROM supersede_facts WHERE ended_seq IS NULL
UNION SELECT artifact_id FROM tombstone_facts WHERE ended_seq IS NULL

-- name: on_objects
-- The scope of a second look: what stands on these objects, and all that was made from it.
SELECT artifact_id FROM artifact_facts
WHERE ended_seq IS NULL AND file_hash IN (SELECT 'sha256:' || value FROM json_each(:objects))
UNION SELECT l.artifact_id FROM scope s CROSS JOIN lineage_facts l ON l.input_artifact_id = s.id
WHERE l.ended_seq IS NULL

-- name: fates
-- The artifacts of a scope with their objects (SHA-256), and why each is kept; NULL: it may go.
-- An artifact that nothing keeps by itself is `loose`; one that something kept was made from is
-- `needed`, and so on upwards.
WITH RECURSIVE
scope(id) AS ({scope}),
present AS MATERIALIZED (
  SELECT a.artifact_id AS id, a.artifact_type AS kind, a.logical_key, a.file_hash, a.size_bytes,
         a.created_at,
         (SELECT max(c.committed_at_utc) FROM tombstone_facts f JOIN commits c ON c.seq = f.added_seq
          WHERE f.artifact_id = a.artifact_id AND f.ended_seq IS NULL) AS tombstoned_at,
         (SELECT max(c.committed_at_utc) FROM supersede_facts f JOIN commits c ON c.seq = f.added_seq
          WHERE f.supersedes_artifact_id = a.artifact_id AND f.ended_seq IS NULL) AS superseded_at,
         EXISTS (SELECT 1 FROM purge_facts f
                 WHERE f.file_hash = a.file_hash AND f.ended_seq IS NULL) AS purged
  FROM scope JOIN artifact_facts a ON a.artifact_id = scope.id WHERE a.ended_seq IS NULL),
aliased AS MATERIALIZED (
  SELECT artifact_id AS id, min(kind || ':' || alias) AS alias FROM aliases GROUP BY artifact_id),
pinned AS MATERIALIZED (
  SELECT artifact_id AS id, min(pin) AS pin FROM pins GROUP BY artifact_id),
-- Which version of its logical key each is, counted from the newest; withdrawn bytes do not count.
versions AS MATERIALIZED (
  SELECT a.artifact_id AS id, row_number() OVER (
           PARTITION BY a.artifact_type, a.logical_key ORDER BY a.artifact_no DESC) AS place
  FROM artifact_facts a JOIN policies p ON p.kind = a.artifact_type AND p.keep_last IS NOT NULL
  WHERE a.ended_seq IS NULL
    AND (a.artifact_type, a.logical_key) IN (SELECT kind, logical_key FROM present)
    AND a.artifact_id NOT IN (SELECT artifact_id FROM tombstone_facts WHERE ended_seq IS NULL)
    AND a.file_hash NOT IN (SELECT file_hash FROM purge_facts WHERE ended_seq IS NULL)),
own AS MATERIALIZED (
  SELECT a.*, max(coalesce(tombstoned_at, ''), coalesce(superseded_at, '')) AS since,
         CASE
           WHEN tombstoned_at IS NULL AND superseded_at IS NULL THEN 'active'
           WHEN alias IS NOT NULL THEN 'aliased'
           WHEN pin IS NOT NULL THEN 'pinned'
           WHEN purged THEN NULL
           WHEN tombstoned_at IS NULL AND p.kind IS NULL THEN 'no policy'
           WHEN max(coalesce(tombstoned_at, ''), coalesce(superseded_at, '')) > :young THEN 'lately'
           WHEN tombstoned_at IS NULL AND v.place <= p.keep_last THEN 'keep_last'
           WHEN julianday(:now) - julianday(max(coalesce(tombstoned_at, ''),
                                                coalesce(superseded_at, ''))) < p.keep_days
             THEN 'keep_days'
         END AS kept,
         coalesce(alias, pin) AS mark
  FROM present a
  LEFT JOIN aliased USING (id) LEFT JOIN pinned USING (id) LEFT JOIN versions v USING (id)
  LEFT JOIN policies p ON p.kind = a.kind),
loose AS MATERIALIZED (SELECT id FROM own WHERE kept IS NULL),
needed(id) AS (
  SELECT l.input_artifact_id FROM loose CROSS JOIN lineage_facts l ON l.input_artifact_id = loose.id
  WHERE l.ended_seq IS NULL AND l.artifact_id NOT IN (SELECT id FROM loose)
  UNION SELECT l.input_artifact_id FROM needed n CROSS JOIN lineage_facts l ON l.artifact_id = n.id
  WHERE l.ended_seq IS NULL AND l.input_artifact_id IN (SELECT id FROM loose)),
going AS MATERIALIZED (SELECT id FROM loose WHERE id NOT IN (SELECT id FROM needed)),
-- Bytes that an artifact which stays stands on, too.
shared AS MATERIALIZED (
  SELECT a.file_hash, min(a.artifact_id) AS other FROM artifact_facts a
  WHERE a.ended_seq IS NULL AND a.artifact_id NOT IN (SELECT id FROM going)
    AND a.file_hash IN (SELECT file_hash FROM own WHERE id IN (SELECT id FROM going))
  GROUP BY a.file_hash)
SELECT substr(own.file_hash, 8), own.id, own.kind, own.logical_key, own.size_bytes, own.since,
       CASE WHEN own.tombstoned_at IS NULL THEN 'superseded' ELSE 'tombstoned: ' || (
         SELECT reason FROM tombstone_facts f
         WHERE f.artifact_id = own.id AND f.ended_seq IS NULL) END AS withdrawn,
       CASE
         WHEN own.kept IS NOT NULL THEN own.kept
         WHEN own.id IN (SELECT id FROM needed) THEN 'input'
         WHEN shared.other IS NOT NULL THEN 'shared'
       END AS kept,
       CASE
         WHEN own.kept IS NOT NULL THEN own.mark
         WHEN own.id IN (SELECT id FROM needed) THEN (
           SELECT c.artifact_type || ' ' || c.logical_key
           FROM lineage_facts l JOIN artifact_facts c ON c.artifact_id = l.artifact_id
           WHERE l.input_artifact_id = own.id AND l.ended_seq IS NULL AND c.ended_seq IS NULL
             AND l.artifact_id NOT IN (SELECT id FROM going) LIMIT 1)
         WHEN shared.other IS NOT NULL THEN (
           SELECT o.artifact_type || ' ' || o.logical_key
           FROM artifact_facts o WHERE o.artifact_id = shared.other AND o.ended_seq IS NULL)
       END AS whom
FROM own LEFT JOIN shared USING (file_hash)
WHERE NOT own.purged

-- name: live_objects
-- Objects that artifacts stand on, and whether their bytes were given up.
SELECT substr(file_hash, 8), max(size_bytes), file_hash IN (
         SELECT file_hash FROM purge_facts WHERE ended_seq IS NULL)
FROM artifact_facts WHERE ended_seq IS NULL GROUP BY file_hash

-- name: once_on_objects
-- What stood on objects that nothing stands on any more.
SELECT substr(file_hash, 8), artifact_type, logical_key FROM artifact_facts
WHERE file_hash IN (SELECT 'sha256:' || value FROM json_each(?)) GROUP BY file_hash

-- name: policies
-- Those of all kinds, or of one.
SELECT kind, keep_last, keep_days, added_seq FROM policies WHERE ?1 IS NULL OR kind = ?1
ORDER BY kind
