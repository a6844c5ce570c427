// Against a real bus. Python starts it, has put in the artifact `from-python` before, and looks
// afterwards at what is left in the catalog.

import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { DuckDBInstance } from "@duckdb/node-api";
import { afterAll, expect, test, vi } from "vitest";

import { ArtifactStoreClient, type BusEvent, onCommitted, Rejected, submitArtifact, submitArtifacts } from "../../src/index.js";
import { parquet, type Row } from "../../src/table.js";

const MINE = { runId: "typescript", producer: "ts", kind: "ts_things" } as const;
const PATIENCE = { timeoutMs: 30_000 };
const store = new ArtifactStoreClient();
const folder = await mkdtemp(join(tmpdir(), "artifact-bus-live-"));
afterAll(async () => {
  await store.close();
  await rm(folder, { recursive: true, force: true });
});

/** The rows that Python wrote with pyarrow, and put in as kind `hashed`. */
const SHARED: Row[] = Array.from({ length: 1000 }, (_, n) => ({
  i: BigInt(n) * 10_000_000_000n,
  price: n % 7 === 0 ? null : n / 8,
  text: n % 5 === 0 ? null : `é ${n}`,
  flag: n % 2 === 0,
  at: new Date(Date.UTC(2026, 0, 1) + n * 1001),
}));

async function sql(query: string): Promise<Record<string, unknown>[]> {
  const db = await (await DuckDBInstance.create()).connect();
  return (await db.runAndReadAll(query)).getRowObjectsJS();
}

test("a job is committed, its receipt is typed, and a listener hears of it", async () => {
  let hear = (_: BusEvent) => {};
  const heard = new Promise<BusEvent>((resolve) => (hear = resolve));
  const subscription = await onCommitted({ kind: "ts_things", runId: "typescript" }, (event) => hear(event));
  const rows = [
    { n: 1, text: "a", big: 2n ** 60n },
    { n: 2, text: "é🚀", big: null },
  ];
  const job = await submitArtifact({ ...MINE, rows, artifactId: "table", tags: { token: "SOL" }, meta: { params: { x: 1 } } });
  const receipt = await job.done(PATIENCE);
  expect(receipt).toMatchObject({ job_id: job.jobId, submission_id: job.submissionId, status: "committed" });
  expect(receipt.artifacts[0]).toMatchObject({ name: "table", rows: 2, deduped: false });
  expect(await sql(`FROM '${receipt.artifacts[0]?.path}'`)).toEqual(rows);
  expect(await job.status()).toBe("committed");
  expect(await heard).toMatchObject({ jobId: job.jobId, seq: receipt.seq, artifacts: [{ artifactId: receipt.artifacts[0]?.artifact_id }] });
  await subscription.close();
});

test("several tables are committed as one job", async () => {
  const rows = [{ a: 1 }];
  const job = await submitArtifacts([{ ...MINE, rows, artifactId: "fills" }, { ...MINE, rows, artifactId: "positions", kind: "ts_others" }]);
  expect((await job.done(PATIENCE)).artifacts.map((artifact) => artifact.name)).toEqual(["fills", "positions"]);
});

test("a table that breaks its contract is rejected with every code and hint", async () => {
  const job = await submitArtifact({ ...MINE, kind: "ohlcv_slice", rows: [{ open: 1 }] });
  const error = (await job.done(PATIENCE).catch((reason: unknown) => reason)) as Rejected;
  expect(error).toBeInstanceOf(Rejected);
  expect(error.code).toBe("E202");
  expect(error.problems.length).toBeGreaterThan(1);
  for (const problem of error.problems) expect(problem.hint).not.toBe("");
  expect(await job.status()).toBe("rejected");
});

test("a job of which nobody was told arrives all the same", async () => {
  const job = await submitArtifact({ ...MINE, artifactId: "silent", rows: [{ a: 2 }], redis: false });
  expect((await job.done(PATIENCE)).status).toBe("committed");
});

test("two jobs of one millisecond are two commits", async () => {
  vi.useFakeTimers({ now: new Date(), toFake: ["Date"] });
  const jobs = await Promise.all([1, 2].map((a) => submitArtifact({ ...MINE, artifactId: `twin-${a}`, rows: [{ a }] })));
  vi.useRealTimers();
  const receipts = await Promise.all(jobs.map((job) => job.done(PATIENCE)));
  expect(new Set(receipts.map((receipt) => receipt.artifacts[0]?.artifact_id)).size).toBe(2);
});

test("the same job again gets the first receipt, another one under its id is rejected", async () => {
  const mine = { ...MINE, jobId: "typescript-again", artifactId: "again", rows: [{ a: 3 }] };
  const first = await (await submitArtifact(mine)).done(PATIENCE);
  const second = await (await submitArtifact(mine)).done(PATIENCE);
  expect([second.seq, second.artifacts]).toEqual([first.seq, first.artifacts]);
  const other = await submitArtifact({ ...mine, rows: [{ a: 4 }] });
  await expect(other.done(PATIENCE)).rejects.toMatchObject({ code: "E105" });
});

test("the same rows have one content hash, written by pyarrow, by DuckDB and in JavaScript", async () => {
  const path = join(folder, "javascript.parquet");
  const byDuckDB = join(folder, "duckdb.parquet");
  await writeFile(path, parquet(SHARED));
  await sql(`COPY (FROM '${path}' ORDER BY i DESC) TO '${byDuckDB}' (FORMAT parquet, COMPRESSION zstd)`);
  const mine = { ...MINE, kind: "hashed", logicalKey: "shared" };
  const receipts = [];
  for (const parquetPath of [path, byDuckDB]) receipts.push(await (await submitArtifact({ ...mine, parquetPath })).done(PATIENCE));
  const [theirs] = await store.findByLogicalKey("hashed", "shared");
  expect(theirs?.producer).toBe("python");
  for (const receipt of receipts) {
    expect(receipt.artifacts[0]).toMatchObject({ deduped: true, mode: "content_hash", artifact_id: theirs?.artifactId, content_hash: theirs?.contentHash });
  }
});

test("what Python wrote is found and read", async () => {
  const [found, ...more] = await store.findByLogicalKey("from_python", 'token="SOL"/é');
  expect(more).toEqual([]);
  expect(found).toMatchObject({ artifactType: "from_python", logicalKey: 'token="SOL"/é', status: "active", rowCount: 2, producer: "python" });
  expect(await sql(`FROM '${found?.pathParquet}'`)).toEqual([{ n: 1n, text: "a" }, { n: 2n, text: "b" }]);
  expect(await store.getArtifact(found?.artifactId as string)).toEqual(found);
  expect(await store.listArtifacts({ producer: "python", tags: { from: "python" } })).toEqual([found]);
  expect(await store.listArtifacts({ tags: { from: "elsewhere" } })).toEqual([]);
  await expect(store.getArtifact("nothing")).rejects.toMatchObject({ code: "E511" });
});

const request = { artifactType: "published", schemaVersion: 1, logicalKey: "k", writerName: "w", writerVersion: "1", gitCommit: "abc", gitDirty: true };

test("tables are published, recognised, followed and superseded", async () => {
  const first = await store.publishDataFrame({ ...request, dataFrame: [{ x: 1 }], params: { p: 1 }, tags: { t: "1" } });
  const id = first.artifactId as string;
  expect(first).toMatchObject({ deduped: false, sidecar: { artifact_id: id, tags: { t: ["1"] }, provenance: { writer: { git_commit: "abc", git_dirty: true }, meta: { params: { p: 1 } } } } });
  expect(await store.publishDataFrame({ ...request, dataFrame: [{ x: 1 }] })).toMatchObject({ deduped: true, existingArtifactId: id });

  const second = await store.publishDataFrame({ ...request, dataFrame: [{ x: 2 }], inputArtifactIds: [id] });
  const third = await store.publishDataFrame({ ...request, logicalKey: "other", dataFrame: [{ x: 3 }], inputArtifactIds: [second.artifactId as string] });
  const ids = (artifacts: { artifactId: string }[]) => artifacts.map((artifact) => artifact.artifactId);
  const lineage = await store.getLineage(third.artifactId as string);
  expect([ids(lineage.inputs), ids(lineage.ancestors)]).toEqual([[second.artifactId], [second.artifactId, id]]);
  expect(lineage.edges.length).toBe(2);
  expect(ids(await store.getDownstream(id))).toEqual([third.artifactId, second.artifactId]);

  await store.supersede(second.artifactId as string, id);
  expect((await store.findByLogicalKey("published", "k")).map(({ artifactId, status }) => [artifactId, status])).toEqual([
    [second.artifactId, "active"],
    [id, "superseded"],
  ]);
  await expect(store.supersede(id, second.artifactId as string)).rejects.toMatchObject({ code: "E402" });
});

test("artifacts are tagged, named, pinned and tombstoned", async () => {
  const { artifactId } = await store.publishDataFrame({ ...request, logicalKey: "said", dataFrame: [{ x: 9 }] });
  const id = artifactId as string;
  await store.tag(id, { desk: ["fx", "rates"] });
  await store.alias("published", "best", id, { expect: "" });
  await store.pin("paper", [id]);
  expect((await store.listArtifacts({ tags: { desk: "rates" } })).map(({ artifactId }) => artifactId)).toEqual([id]);
  expect((await store.change([{ op: "pin", pin: "paper", target: [id] }])).warnings).toEqual([`pin: paper holds ${id} already`]);
  await expect(store.alias("published", "best", id, { expect: "" })).rejects.toMatchObject({ code: "E405" });
  await store.tombstone(id, "wrong venue");
  expect((await store.getArtifact(id)).status).toBe("tombstoned");
});

test("an artifact tells what time it covers", async () => {
  const rows = ["2026-01-08T05:12:33.500Z", "2026-01-08T05:12:34Z"].map((ts) => ({ run_id: "r", metric_name: "m", metric_value: 1.5, ts: new Date(ts) }));
  const { artifactId } = await store.publishDataFrame({ ...request, artifactType: "run_metrics", dataFrame: rows });
  const times = { minTs: "2026-01-08T05:12:33.500000Z", maxTs: "2026-01-08T05:12:34.000000Z" };
  expect(await store.getArtifact(artifactId as string)).toMatchObject(times);
});

test("a CSV file is published with the types that all of its rows allow, or that are named", async () => {
  const path = join(folder, "t[1].csv");
  await writeFile(path, "a,b,c\n1,007,2026-01-08T05:12:33Z\n2.5,008,2026-01-08T05:12:34Z\n");
  const { artifactId } = await store.publishDataFrame({ ...request, artifactType: "from_csv", dataFrame: path, columns: { b: "string" } });
  const { pathParquet } = await store.getArtifact(artifactId as string);
  expect(await sql(`SELECT a, b, c FROM '${pathParquet}'`)).toEqual([
    { a: 1, b: "007", c: new Date("2026-01-08T05:12:33Z") },
    { a: 2.5, b: "008", c: new Date("2026-01-08T05:12:34Z") },
  ]);
  await writeFile(path, "a\n1\nx\n");
  const bad = store.publishDataFrame({ ...request, dataFrame: path, columns: { a: "int64" } });
  await expect(bad).rejects.toMatchObject({ code: "E601", where: path });
});
