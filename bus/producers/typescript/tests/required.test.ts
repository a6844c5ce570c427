// Where not even the inbox can be written: research goes on, unless the bus is required.

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";

import { afterEach, expect, test, vi } from "vitest";

import { ArtifactStoreClient, submitArtifact, Unavailable } from "../src/index.js";
import { MINE, newLake, rejection, ROWS } from "./lakes.js";

afterEach(() => vi.unstubAllEnvs());

/** A lake whose inbox cannot be written, not even by root: a file lies in its place. */
async function brokenLake(): Promise<string> {
  const lake = await newLake();
  await mkdir(join(lake, "bus"), { recursive: true });
  await writeFile(join(lake, "bus", "inbox"), "in the way");
  return lake;
}

test("the program is warned and goes on with a job that says what was wrong", async () => {
  const lake = await brokenLake();
  const parquetPath = join(dirname(lake), "mine.parquet");
  await writeFile(parquetPath, "bytes");
  const warned = vi.spyOn(process, "emitWarning").mockImplementation(() => {});
  const job = await submitArtifact({ ...MINE, lake, parquetPath });
  expect(warned).toHaveBeenCalledExactlyOnceWith(expect.stringMatching(/^not submitted.*E505/), "NotSubmitted");
  warned.mockRestore();
  const { success, jobId, error } = job; // as the documents' submitArtifact answers
  expect([success, jobId]).toEqual([false, expect.stringMatching(/__tester__things__/)]);
  expect(error).toBeInstanceOf(Unavailable);
  expect(error).toMatchObject({ code: "E505", hint: expect.stringMatching(/./), problems: [{ code: "E505" }] });
  expect(await rejection(job.done())).toBe(error);
  expect([await job.status(), await job.answer()]).toEqual(["unknown", undefined]);
  expect(await readFile(parquetPath, "utf8")).toBe("bytes");
});

test("required by the call or by the environment, it is an error", async () => {
  const lake = await brokenLake();
  const warned = vi.spyOn(process, "emitWarning").mockImplementation(() => {});
  expect(await rejection(submitArtifact({ ...MINE, lake, rows: ROWS, required: true }))).toBeInstanceOf(Unavailable);
  vi.stubEnv("BUS_REQUIRED", "1");
  expect(await rejection(submitArtifact({ ...MINE, lake, rows: ROWS }))).toMatchObject({ code: "E505" });
  expect((await submitArtifact({ ...MINE, lake, rows: ROWS, required: false })).success).toBe(false);
  expect(warned).toHaveBeenCalledOnce();
  warned.mockRestore();
});

test("who publishes and waits for it is always told", async () => {
  const lake = await brokenLake();
  const store = new ArtifactStoreClient({ lake, redis: false });
  const request = { artifactType: "k", schemaVersion: 1, logicalKey: "k", writerName: "w", writerVersion: "1", gitCommit: "", gitDirty: false };
  expect(await rejection(store.publishDataFrame({ ...request, dataFrame: ROWS }))).toBeInstanceOf(Unavailable);
});

test("bad input is refused however little is required", async () => {
  const lake = await newLake();
  expect(await rejection(submitArtifact({ ...MINE, lake, rows: [], required: false }))).toMatchObject({ code: "E601" });
});

test("the documents' names of a lake are understood", async () => {
  const lake = await newLake();
  const job = await submitArtifact({ ...MINE, busRoot: join(lake, "bus"), rows: ROWS });
  expect([job.success, job.error, await job.status()]).toEqual([true, undefined, "staged"]);
  expect(JSON.parse(JSON.stringify(job))).toEqual({ jobId: job.jobId, submissionId: job.submissionId }); // no password in a log
  expect(await readFile(join(lake, "bus", "inbox", job.jobId, "COMMIT"), "utf8")).toContain(job.submissionId);
  const [manifest, artifacts] = [join(lake, "manifest", "manifest.sqlite"), join(lake, "artifacts")];
  expect(await rejection(new ArtifactStoreClient(manifest, artifacts).listArtifacts())).toMatchObject({ code: "E508", where: join(lake, "catalog", "bus.duckdb") });
  expect(() => new ArtifactStoreClient(manifest, "elsewhere/artifacts", "/usr/bin/python3")).toThrow("E103");
});
