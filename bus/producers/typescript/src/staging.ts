// Step 1, as bus/staging.py does it: a job is built in inbox/.staging-*, every file synced, and
// renamed into the inbox. When `stage` resolves the job survives a power cut and needs no broker.

import { randomBytes } from "node:crypto";
import { mkdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";

import { adopt, makeDirectory, sha256, sync, syncedDigest, writeDurable } from "./disk.js";
import type { ArtifactEntry, CommitMarker, JobManifest } from "./documents.js";
import { BusError, isSystem, ofSystem, problem } from "./errors.js";
import { COMMIT, exists, type Lake, MANIFEST } from "./lake.js";
import { checkedId, decode, encode, sameJob } from "./manifest.js";
import { type Columns, parquet, type Row } from "./table.js";

/** A table of a job, and what its manifest says of it besides the file's own facts. */
export interface Table {
  source: { path: string } | { rows: readonly Row[]; columns?: Columns };
  entry: Omit<ArtifactEntry, "relpath" | "format" | "size_bytes" | "sha256">;
}

/** An acknowledged submission: it lies in the inbox, whole and durable. */
export interface Staged {
  jobId: string;
  submissionId: string;
}

/** `2026-01-08T05-12-33Z__baseline__alerts__3f9a1c0e`: sorts by time, never repeats. */
export function newJobId(producer: string, kind: string): string {
  const moment = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
  return `${`${moment}Z__${producer}__${kind}`.slice(0, 118)}__${randomBytes(4).toString("hex")}`;
}

/**
 * Write a job and put it into the inbox. Rejects with E105 when another job of that id waits there;
 * the same job again is acknowledged without a second copy. Nothing half made stays behind.
 */
export async function stage(lake: Lake, tables: readonly Table[], head: JobManifest): Promise<Staged> {
  const jobId = checkedId(head.job_id, "jobId");
  const path = join(lake.inbox, `.staging-${jobId.slice(0, 80)}-${randomBytes(6).toString("hex")}`);
  try {
    await newDirectory(path, lake.inbox);
    try {
      return await fill(lake, path, tables, head);
    } catch (error) {
      // On a failing disk this fails too; the bus sweeps what is left after a day.
      await rm(path, { recursive: true, force: true }).catch(() => undefined);
      throw error;
    }
  } catch (error) {
    throw ofSystem(error);
  }
}

async function newDirectory(path: string, inbox: string): Promise<void> {
  try {
    await mkdir(path);
  } catch (error) {
    if (!isSystem(error, "ENOENT")) throw error;
    await makeDirectory(inbox); // a lake that no bus has served yet
    await mkdir(path);
  }
}

async function fill(lake: Lake, path: string, tables: readonly Table[], head: JobManifest): Promise<Staged> {
  const artifacts: ArtifactEntry[] = [];
  for (const [index, table] of tables.entries()) artifacts.push(await add(path, index, table));
  const manifest: JobManifest = { ...head, artifacts };
  const data = encode(manifest);
  const marker: CommitMarker = {
    version: 1,
    manifest_sha256: sha256(data),
    submission_id: randomBytes(12).toString("hex"),
  };
  await Promise.all([
    writeDurable(join(path, MANIFEST), data),
    writeDurable(join(path, COMMIT), Buffer.from(JSON.stringify(marker))),
  ]);
  await sync(path);
  return publish(lake, path, manifest, marker);
}

async function add(path: string, index: number, { source, entry }: Table): Promise<ArtifactEntry> {
  const relpath = `${String(index).padStart(3, "0")}.parquet`;
  const target = join(path, relpath);
  if ("path" in source) {
    await adopt(source.path, target);
    const { sha256, sizeBytes } = await syncedDigest(target);
    return { ...entry, format: "parquet", relpath, size_bytes: sizeBytes, sha256 };
  }
  const data = parquet(source.rows, source.columns);
  await writeDurable(target, data);
  const rows = entry.rows ?? source.rows.length;
  return { ...entry, format: "parquet", relpath, rows, size_bytes: data.length, sha256: sha256(data) };
}

async function publish(lake: Lake, path: string, manifest: JobManifest, marker: CommitMarker): Promise<Staged> {
  const target = join(lake.inbox, manifest.job_id);
  for (;;) {
    try {
      await rename(path, target);
      break;
    } catch (error) {
      if (!isSystem(error, "ENOTEMPTY", "EEXIST", "ENOTDIR")) throw error;
    }
    const waiting = await sameJobWaiting(target, manifest);
    if (waiting !== undefined) {
      await sync(lake.inbox);
      await rm(path, { recursive: true, force: true });
      return { jobId: manifest.job_id, submissionId: waiting };
    }
    if (await exists(target)) {
      throw new BusError(problem("E105", manifest.job_id, `${manifest.job_id} waits in the inbox already`));
    } // else a validator took it while we looked: there is room now
  }
  await sync(lake.inbox);
  return { jobId: manifest.job_id, submissionId: marker.submission_id };
}

/** The submission that waits in the inbox under our id, when it holds the same files and fields. */
async function sameJobWaiting(target: string, manifest: JobManifest): Promise<string | undefined> {
  try {
    const theirs = decode(await readFile(join(target, MANIFEST)));
    const marker = JSON.parse(await readFile(join(target, COMMIT), "utf8")) as Partial<CommitMarker>;
    return theirs !== undefined && sameJob(theirs, manifest) ? marker.submission_id : undefined;
  } catch (error) {
    if (isSystem(error) || error instanceof SyntaxError) return undefined;
    throw error;
  }
}
