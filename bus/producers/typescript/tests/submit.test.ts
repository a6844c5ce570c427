import { createHash } from "node:crypto";
import { chmod, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { expect, test, vi } from "vitest";

import { submitArtifact, submitArtifacts } from "../src/index.js";
import { inbox, MINE, newLake, read, rejection, ROWS } from "./lakes.js";

test("a job lies whole in the inbox when the promise resolves", async () => {
  const lake = await newLake();
  const job = await submitArtifact({ ...MINE, lake, rows: ROWS, artifactId: "mine", tags: { token: "SOL" }, meta: { a: [1] } });
  expect(await inbox(lake)).toEqual([job.jobId]);
  const { path, manifest, manifestBytes, marker } = await read(lake, job.jobId);
  expect((await readdir(path)).sort()).toEqual(["000.parquet", "COMMIT", "manifest.json"]);
  const data = await readFile(join(path, "000.parquet"));
  expect(manifest).toMatchObject({ job_id: job.jobId, run_id: "run-1", producer: "tester", kind: "things", meta: { a: [1] } });
  expect(manifest.artifacts).toEqual([
    {
      artifact_id: "mine",
      schema_version: 1,
      tags: { token: ["SOL"] },
      supersedes: [],
      format: "parquet",
      relpath: "000.parquet",
      rows: 2,
      size_bytes: data.length,
      sha256: createHash("sha256").update(data).digest("hex"),
    },
  ]);
  const manifest_sha256 = createHash("sha256").update(manifestBytes).digest("hex");
  expect(marker).toEqual({ version: 1, manifest_sha256, submission_id: job.submissionId });
  expect(await job.status()).toBe("staged");
});

test("a Parquet file is copied, and its rows are counted by the bus", async () => {
  const lake = await newLake();
  await mkdir(lake, { recursive: true });
  const parquetPath = join(lake, "mine.parquet");
  await writeFile(parquetPath, "bytes");
  const { jobId } = await submitArtifact({ ...MINE, lake, parquetPath });
  const { path, manifest } = await read(lake, jobId);
  expect(await readFile(join(path, "000.parquet"), "utf8")).toBe("bytes");
  expect(await readFile(parquetPath, "utf8")).toBe("bytes");
  expect(manifest.artifacts[0]).not.toHaveProperty("rows");
});

test("several tables are one job", async () => {
  const lake = await newLake();
  const job = await submitArtifacts([
    { ...MINE, lake, rows: ROWS, artifactId: "fills" },
    { ...MINE, lake, rows: ROWS, kind: "others", meta: { a: 1 } },
  ]);
  const { manifest } = await read(lake, job.jobId);
  expect(manifest.meta).toEqual({ a: 1 });
  expect(manifest.artifacts.map(({ artifact_id, kind, relpath }) => [artifact_id, kind, relpath])).toEqual([
    ["fills", undefined, "000.parquet"],
    ["others", "others", "001.parquet"],
  ]);
});

test("a hundred jobs in one millisecond are a hundred jobs", async () => {
  const lake = await newLake();
  vi.useFakeTimers({ now: new Date("2026-01-08T05:12:33.123Z"), toFake: ["Date"] });
  try {
    const jobs = await Promise.all(Array.from({ length: 100 }, () => submitArtifact({ ...MINE, lake, rows: ROWS })));
    expect(new Set(jobs.map((job) => job.jobId)).size).toBe(100);
    expect((await inbox(lake)).sort()).toEqual(jobs.map((job) => job.jobId).sort());
    expect(jobs[0]?.jobId).toMatch(/^2026-01-08T05-12-33Z__tester__things__[0-9a-f]{8}$/);
  } finally {
    vi.useRealTimers();
  }
});

test("the same job again is acknowledged without a second copy", async () => {
  const lake = await newLake();
  const mine = { ...MINE, lake, rows: ROWS, jobId: "job-1", meta: { b: 1, a: { c: null } } };
  const [first, ...others] = await Promise.all([1, 2, 3, 4].map(() => submitArtifact(mine)));
  const later = await submitArtifact({ ...mine, meta: { a: { c: null }, b: 1 }, provenance: { git_commit: "abc" } });
  for (const job of [...others, later]) expect(job.submissionId).toBe(first?.submissionId);
  expect(await inbox(lake)).toEqual(["job-1"]);
});

test("a job as Python writes it is recognised", async () => {
  const lake = await newLake();
  const job = await submitArtifact({ ...MINE, lake, rows: ROWS, jobId: "job-1" });
  const { path, manifest } = await read(lake, "job-1");
  const entries = manifest.artifacts.map((entry) => ({ ...entry, rows: null }));
  const theirs = { ...manifest, created_at_utc: "2026-01-01T00:00:00.000000Z", artifacts: entries, mutations: [], after: [] };
  await writeFile(join(path, "manifest.json"), JSON.stringify(theirs));
  expect((await submitArtifact({ ...MINE, lake, rows: ROWS, jobId: "job-1" })).submissionId).toBe(job.submissionId);
});

test.each([
  ["rows", { rows: [{ n: 3, text: "c" }] }],
  ["meta", { meta: { other: true } }],
  ["logical key", { logicalKey: "about=that" }],
])("the same jobId with other %s is a conflict", async (_, other) => {
  const lake = await newLake();
  await submitArtifact({ ...MINE, lake, rows: ROWS, jobId: "job-1" });
  const before = await read(lake, "job-1");
  const error = await rejection(submitArtifact({ ...MINE, lake, rows: ROWS, jobId: "job-1", ...other }));
  expect(error).toMatchObject({ name: "BusError", code: "E105", where: "job-1" });
  expect(await read(lake, "job-1")).toEqual(before);
  expect(await inbox(lake)).toEqual(["job-1"]);
});

const long = "x".repeat(300);
test.each([
  ["a job id with a slash", { jobId: "a/b" }, "E104", "jobId"],
  ["a job id with NUL", { jobId: "a\0b" }, "E104", "jobId"],
  ["a job id of 300 characters", { jobId: long }, "E104", "jobId"],
  ["a job id that ends in a newline", { jobId: "job\n" }, "E104", "jobId"],
  ["an emoji for a kind", { kind: "🚀" }, "E104", "kind"],
  ["no kind", { kind: undefined as never }, "E104", "kind"],
  ["a producer with a slash", { producer: "a/b" }, "E104", "producer"],
  ["a lake by two names", { busRoot: "x/bus" }, "E103", "busRoot"],
  ["a name with a slash", { artifactId: "a/b" }, "E104", "manifest.json.artifacts[0].artifact_id"],
  ["a name of 300 characters", { artifactId: long }, "E104", "manifest.json.artifacts[0].artifact_id"],
  ["an empty run id", { runId: "" }, "E104", "manifest.json.run_id"],
  ["no run id", { runId: undefined as never }, "E103", "manifest.json.run_id"],
  ["a number for a producer", { producer: 5 as never, jobId: "job-1" }, "E103", "manifest.json.producer"],
  ["half a schema version", { schemaVersion: 1.5 }, "E103", "manifest.json.artifacts[0].schema_version"],
  ["a key with a control character", { logicalKey: "a\nb" }, "E103", "manifest.json.artifacts[0].logical_key"],
  ["a long tag", { tags: { token: "x".repeat(1025) } }, "E103", "manifest.json.artifacts[0].tags.token[0]"],
  ["NaN in meta", { meta: { a: [NaN] } }, "E102", "manifest.json.meta.a[0]"],
  ["a bigint in meta", { meta: { a: 1n } }, "E102", "manifest.json.meta.a"],
  ["half a surrogate pair in meta", { meta: { a: "\ud800" } }, "E102", "manifest.json.meta.a"],
  ["a megabyte in meta", { meta: Object.fromEntries([...Array(300).keys()].map((n) => [n, "x".repeat(4000)])) }, "E107", "manifest.json"],
  ["rows that are none", { rows: "x" as never }, "E601", "rows"],
  ["a missing file", { rows: 1, parquetPath: "/nowhere/x.parquet" }, "E301", "/nowhere/x.parquet"],
  ["a directory", { rows: undefined as never, parquetPath: "/" }, "E302", "/"],
  ["a file's name of 300 characters", { rows: 1, parquetPath: `/${long}` }, "E301", `/${long}`],
  ["a file's name with NUL", { rows: 1, parquetPath: "/a\0b" }, "E301", "/a\0b"],
])("%s is refused, with nothing left behind", async (_, bad, code, where) => {
  const lake = await newLake();
  const error = await rejection(submitArtifact({ ...MINE, lake, rows: ROWS, ...bad } as Parameters<typeof submitArtifact>[0]));
  expect(error).toMatchObject({ name: "BusError", code, where });
  expect((error as { hint: string }).hint).not.toBe("");
  expect(await inbox(lake)).toEqual([]);
});

test("every problem of a manifest is told at once", async () => {
  const lake = await newLake();
  const error = await rejection(submitArtifact({ ...MINE, lake, rows: ROWS, runId: "a b", artifactId: "/", jobId: "j" }));
  expect((error as { problems: { where: string }[] }).problems.map((problem) => problem.where)).toEqual([
    "manifest.json.run_id",
    "manifest.json.artifacts[0].artifact_id",
  ]);
});

test("a name that is listed twice, and tables that disagree about their job, are refused", async () => {
  const lake = await newLake();
  const mine = { ...MINE, lake, rows: ROWS };
  expect(await rejection(submitArtifacts([mine, mine]))).toMatchObject({ code: "E109" });
  const other = { ...mine, artifactId: "b", runId: "run-2" };
  expect(await rejection(submitArtifacts([mine, other]))).toMatchObject({ code: "E103", where: "submissions[1].runId" });
  expect(await rejection(submitArtifacts([]))).toMatchObject({ code: "E111" });
  expect(await inbox(lake)).toEqual([]);
});

test.skipIf(process.getuid?.() === 0)("a file that may not be read is E601, and is named", async () => {
  const lake = await newLake();
  await mkdir(lake, { recursive: true });
  const parquetPath = join(lake, "mine.parquet");
  await writeFile(parquetPath, "bytes");
  await chmod(parquetPath, 0);
  expect(await rejection(submitArtifact({ ...MINE, lake, parquetPath }))).toMatchObject({ code: "E601", where: parquetPath });
  expect(await inbox(lake)).toEqual([]);
});
