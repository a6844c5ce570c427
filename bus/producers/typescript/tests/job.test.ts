import { join } from "node:path";
import { rename } from "node:fs/promises";
import { expect, test } from "vitest";

import { BusError, Rejected, submitArtifact, WaitTimeout } from "../src/index.js";
import { answer, MINE, newLake, rejection, ROWS } from "./lakes.js";

const receipt = (submission_id: string) => ({
  job_id: "job-1",
  submission_id,
  seq: 1,
  status: "committed",
  artifacts: [],
  committed_at_utc: "2026-01-08T05:12:33.000000Z",
  warnings: [],
});
const problems = [
  { code: "E202", where: "000.parquet:ts", message: "missing", hint: "Write the column." },
  { code: "E205", where: "000.parquet:x", message: "NULL", hint: "Fill it." },
];

async function submitted() {
  const lake = await newLake();
  return { lake, job: await submitArtifact({ ...MINE, lake, rows: ROWS, jobId: "job-1" }) };
}

test("without Redis an answer is found in its file", async () => {
  const { lake, job } = await submitted();
  const done = job.done({ timeoutMs: 10_000 });
  await answer(lake, "processed/job-1", { "receipt.json": receipt(job.submissionId) });
  expect(await done).toEqual(receipt(job.submissionId));
});

test("a rejection carries every problem with code and hint", async () => {
  const { lake, job } = await submitted();
  const reason = { code: "E202", message: "missing", hint: "Write the column.", problems, job_id: "job-1", submission_id: job.submissionId, rejected_at_utc: "", seq: 2 };
  await answer(lake, "rejected/job-1~2", { "REJECT_REASON.json": reason });
  await answer(lake, "rejected/job-1", { "REJECT_REASON.json": { ...reason, submission_id: "earlier" } });
  const error = await rejection(job.done({ timeoutMs: 10_000 }));
  expect(error).toBeInstanceOf(Rejected);
  expect(error).toBeInstanceOf(BusError);
  expect(error).toMatchObject({ code: "E202", hint: "Write the column.", problems, reason });
});

test("the answer to an earlier submission of the same id is not ours, unless the bus says so", async () => {
  const { lake, job } = await submitted();
  await answer(lake, "processed/job-1", { "receipt.json": receipt("earlier") });
  expect(await rejection(job.done({ timeoutMs: 100 }))).toMatchObject({ code: "E506" });
  await answer(lake, "processed/job-1~2", { "receipt.json": receipt("earlier"), "verdict.json": { submission_id: job.submissionId } });
  expect(await job.done({ timeoutMs: 10_000 })).toEqual(receipt("earlier"));
});

test("who waits too long is told where the job is, and that it is safe", async () => {
  const { lake, job } = await submitted();
  await answer(lake, "work", {});
  await rename(join(lake, "bus", "inbox", "job-1"), join(lake, "bus", "work", "job-1"));
  const error = await rejection(job.done({ timeoutMs: 50 }));
  expect(error).toBeInstanceOf(WaitTimeout);
  expect((error as Error).message).toContain("job is validating after 50 ms");
});

test("an aborted wait rejects with the signal's reason", async () => {
  const { job } = await submitted();
  const reason = new Error("enough");
  const stop = new AbortController();
  const done = job.done({ signal: stop.signal });
  stop.abort(reason);
  expect(await rejection(done)).toBe(reason);
  expect(await rejection(job.done({ signal: stop.signal }))).toBe(reason);
});
