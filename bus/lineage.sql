-- What was made from what, read from manifest.sqlite. Walks go by numbers (`nodes`), a level at a
-- time; each statement takes a whole level, or a whole set, as a JSON list.

-- name: ids_of
-- (number, artifact_id) of these nodes.
SELECT g.node, g.artifact_id FROM json_each(?) n CROSS JOIN nodes g ON g.node = n.value;

-- name: up
-- (node, what it was made from) for these nodes, by commit ?2.
SELECT e.node, e.input FROM json_each(?1) n CROSS JOIN lineage_edges e ON e.node = n.value
WHERE e.added_seq <= ?2;

-- name: down
-- (node, what was made from it) for these nodes, by commit ?2.
SELECT e.input, e.node FROM json_each(?1) n CROSS JOIN lineage_edges e ON e.input = n.value
WHERE e.added_seq <= ?2;

-- name: describe
-- These artifacts as they stood after :as_of, in this order, and the delivery that brought each
-- first. Braces stand for the status of `a` (`status_then`).
SELECT n.value, a.artifact_type, a.logical_key, u.run_id, u.name, u.seq,
       CASE WHEN a.artifact_no IS NULL THEN 'missing' ELSE {status} END
FROM json_each(:ids) n
LEFT JOIN artifact_facts a ON a.artifact_id = n.value
  AND a.added_seq <= :as_of AND ifnull(a.ended_seq > :as_of, 1)
LEFT JOIN run_artifacts u ON u.use_no = (
  SELECT min(use_no) FROM run_artifacts r WHERE r.node = a.node)
ORDER BY n.key;

-- name: kinds_among
-- How many of these nodes are of each kind, the most first.
SELECT g.artifact_type, count(*) FROM json_each(?) n CROSS JOIN nodes g ON g.node = n.value
GROUP BY 1 ORDER BY 2 DESC, 1;

-- name: active_of_kind
-- Where in this list the first active artifact of a kind stands; without ORDER BY, to end there.
SELECT n.key FROM json_each(:nodes) n CROSS JOIN nodes g ON g.node = n.value
CROSS JOIN artifact_facts a ON a.artifact_id = g.artifact_id AND a.ended_seq IS NULL
WHERE g.artifact_type = :kind AND {status} = 'active' LIMIT 1;

-- name: pointers
-- What points at artifacts by name, at which artifact, and its node.
SELECT what, name, p.artifact_id,
       (SELECT min(artifact_no) FROM artifact_facts a WHERE a.artifact_id = p.artifact_id)
FROM (SELECT 'alias' AS what, kind || ':' || alias AS name, artifact_id FROM aliases
      UNION ALL SELECT 'pin', pin, artifact_id FROM pins) p
ORDER BY what, name;

-- name: orphans
-- (active artifact, what it was made from and nobody shall start from any more).
WITH withdrawn AS MATERIALIZED (
  SELECT g.node, g.artifact_id FROM nodes g
  LEFT JOIN artifact_facts a ON a.artifact_id = g.artifact_id AND a.ended_seq IS NULL
  WHERE EXISTS (SELECT 1 FROM lineage_edges e WHERE e.input = g.node)
    AND (a.artifact_no IS NULL OR {status} NOT IN ('active', 'superseded')))
SELECT g.artifact_id, w.artifact_id
FROM withdrawn w CROSS JOIN lineage_edges e ON e.input = w.node
CROSS JOIN nodes g ON g.node = e.node
CROSS JOIN artifact_facts a ON a.artifact_id = g.artifact_id AND a.ended_seq IS NULL
WHERE {status} = 'active' ORDER BY a.artifact_no DESC, w.artifact_id;

-- name: newest_versions
-- (superseded node that something was made from, its newest version, the node of that): what
-- superseded it and was not superseded itself, straight on or after others between.
WITH RECURSIVE newest(old, newest) AS (
  SELECT s.supersedes_artifact_id, s.artifact_id FROM artifact_supersedes s
  WHERE NOT EXISTS (SELECT 1 FROM artifact_supersedes n
                    WHERE n.supersedes_artifact_id = s.artifact_id)
  UNION
  SELECT s.supersedes_artifact_id, v.newest
  FROM newest v CROSS JOIN artifact_supersedes s ON s.artifact_id = v.old)
SELECT g.node, v.newest, h.node
FROM newest v CROSS JOIN artifact_facts g ON g.artifact_id = v.old AND g.artifact_no = g.node
CROSS JOIN artifact_facts h ON h.artifact_id = v.newest AND h.artifact_no = h.node
WHERE EXISTS (SELECT 1 FROM lineage_edges e WHERE e.input = g.node)
ORDER BY g.node, v.newest;
