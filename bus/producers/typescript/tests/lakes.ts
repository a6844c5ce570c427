// A lake of its own for each test, on which no bus runs.

import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { onTestFinished } from "vitest";

import type { CommitMarker, JobManifest } from "../src/documents.js";

/** The root of a new lake, gone when the test has finished. */
export async function newLake(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "artifact-bus-test-"));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return join(folder, "lake");
}

export const MINE = { runId: "run-1", producer: "tester", kind: "things", redis: false } as const;
export const ROWS = [
  { n: 1, text: "a" },
  { n: 2, text: "b" },
];

/** Everything that lies in the inbox, half made jobs too. */
export async function inbox(lake: string): Promise<string[]> {
  return readdir(join(lake, "bus", "inbox")).catch(() => []);
}

/** What a job in the inbox says. */
export async function read(lake: string, jobId: string) {
  const path = join(lake, "bus", "inbox", jobId);
  const manifestBytes = await readFile(join(path, "manifest.json"));
  return {
    path,
    manifestBytes,
    manifest: JSON.parse(manifestBytes.toString()) as Required<JobManifest>,
    marker: JSON.parse(await readFile(join(path, "COMMIT"), "utf8")) as CommitMarker,
  };
}

/** An answer, as the writer would leave it. */
export async function answer(lake: string, directory: string, files: Record<string, unknown>): Promise<void> {
  const path = join(lake, "bus", directory);
  await mkdir(path, { recursive: true });
  for (const [name, value] of Object.entries(files)) await writeFile(join(path, name), JSON.stringify(value));
}

/** What the promise rejects with. */
export async function rejection(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    (value) => {
      throw new Error(`resolved with ${JSON.stringify(value)}`);
    },
    (error: unknown) => error,
  );
}
