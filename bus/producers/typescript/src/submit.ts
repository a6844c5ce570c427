// Handing in tables: durable when the promise resolves, whether or not a bus runs.

import { dirname, resolve } from "node:path";
import { isDeepStrictEqual } from "node:util";

import { brokerOf, type RedisOptions } from "./broker.js";
import type { JobManifest, Provenance } from "./documents.js";
import { BusError, problem, Unavailable } from "./errors.js";
import { Job } from "./job.js";
import { findLake } from "./lake.js";
import { newJobId, stage, type Staged, type Table } from "./staging.js";
import { checkedId } from "./manifest.js";
import type { Columns, Row } from "./table.js";

/** One table, and the job it belongs to. */
export type Submission = Described & (FromFile | FromRows);

interface FromFile {
  /** A Parquet file; it is copied. */
  parquetPath: string;
  /** How many rows it has: the bus checks it. */
  rows?: number;
}

interface FromRows {
  /** The table itself. */
  rows: readonly Row[];
  /** Names and types of columns, where they do not follow from the rows. */
  columns?: Columns;
  parquetPath?: never;
}

interface Described extends JobOptions {
  runId: string;
  producer: string;
  kind: string;
  /** The artifact's name in its run; default: the kind. */
  artifactId?: string;
  schemaHint?: string;
  schemaVersion?: number;
  /** What the table is about; default: its name in its run. */
  logicalKey?: string;
  /** Artifacts it was made from; `[]` must be said for derived kinds. */
  inputs?: readonly string[];
  tags?: Readonly<Record<string, string | readonly string[]>>;
  /** Artifacts that it replaces. */
  supersedes?: string | readonly string[];
}

/** What concerns the job as a whole. */
export interface JobOptions extends RedisOptions {
  /** Data of your own. */
  meta?: Readonly<Record<string, unknown>>;
  /** Default: a new one. The same id with the same content again is the same job. */
  jobId?: string;
  /** Default: `BUS_LAKE`, bus.toml, a running bus, `./data`. */
  lake?: string;
  /** The documents' name for `LAKE/bus`. */
  busRoot?: string;
  provenance?: Provenance;
  /**
   * Whether a job that cannot even be written (a full or a failing disk) is an error. Default: what
   * `BUS_REQUIRED` says, else false: the program is warned and goes on.
   */
  required?: boolean;
}

/**
 * Hand in one table as a job of its own.
 *
 * Rejects with `BusError`: what is no table (E601), no file (E301, E302), a bad field (E102 to E109),
 * a jobId that waits with other content (E105). Then nothing was submitted and nothing is left behind.
 * A bus that is not running is no error: the job waits. A full or failing disk (E504, E505) is one
 * where the job is `required`, or `BUS_REQUIRED` says so; else the program is warned (NotSubmitted),
 * and gets a job whose `error` says what was wrong and whose `done()` rejects with it.
 */
export function submitArtifact(submission: Submission): Promise<Job> {
  return submitArtifacts([submission]);
}

/** Hand in several tables as one job: all are committed, or none. They must agree on the job. */
export async function submitArtifacts(submissions: readonly Submission[], options: JobOptions = {}): Promise<Job> {
  const [first] = submissions;
  if (first === undefined) throw new BusError(problem("E111", "submissions", "no table"));
  const job = agreed(submissions, options);
  const { runId: run_id, producer, kind } = first;
  const head: JobManifest = {
    version: 1,
    job_id: job.jobId ?? newJobId(checkedId(producer, "producer"), checkedId(kind, "kind")),
    run_id,
    producer,
    kind,
    created_at_utc: new Date().toISOString(),
    meta: { ...job.meta },
    ...(job.provenance !== undefined && { provenance: job.provenance }),
  };
  return submitJob(submissions.map((submission) => table(submission, kind)), head, job);
}

/** Stage a job, then ring. */
export async function submitJob(tables: readonly Table[], head: JobManifest, options: JobOptions): Promise<Job> {
  const lake = await findLake(lakeOf(options));
  const broker = brokerOf(lake, options);
  broker.warm(); // connects while the files are written
  let staged: Staged;
  try {
    staged = await stage(lake, tables, head);
  } catch (error) {
    if (!(error instanceof Unavailable) || isRequired(options)) throw error;
    process.emitWarning(`not submitted, the program goes on without: ${error.message}`, "NotSubmitted");
    return new Job(head.job_id, "", lake, broker, error);
  }
  await broker.ring(staged.jobId);
  return new Job(staged.jobId, staged.submissionId, lake, broker);
}

function lakeOf({ lake, busRoot }: JobOptions): string | undefined {
  if (busRoot === undefined) return lake;
  if (lake !== undefined) throw new BusError(problem("E103", "busRoot", "`lake` names the same thing", "Give one of them."));
  return dirname(resolve(busRoot));
}

function isRequired({ required }: JobOptions): boolean {
  return required ?? ["1", "true", "yes", "on"].includes((process.env["BUS_REQUIRED"] ?? "").toLowerCase());
}

const OF_THE_JOB = [
  ...(["runId", "producer", "meta", "jobId", "provenance", "required"] as const),
  ...(["lake", "busRoot", "redis", "redisPrefix"] as const),
];

/** What the job as a whole is said to be; who says it twice must say the same. */
function agreed(submissions: readonly Submission[], options: JobOptions): JobOptions {
  const found: Record<string, unknown> = { ...options };
  submissions.forEach((submission, index) => {
    for (const field of OF_THE_JOB) {
      const value = submission[field];
      if (value === undefined) continue;
      if (found[field] === undefined) found[field] = value;
      else if (found[field] !== value && !isDeepStrictEqual(found[field], value)) {
        const message = "differs from what is said of the job elsewhere";
        throw new BusError(problem("E103", `submissions[${index}].${field}`, message, "One job has one of it."));
      }
    }
  });
  return found as JobOptions;
}

function table(submission: Submission, jobKind: string): Table {
  const { kind, artifactId, schemaHint, schemaVersion, logicalKey, inputs, tags, supersedes } = submission;
  const entry: Table["entry"] = {
    artifact_id: artifactId ?? kind,
    ...(kind !== jobKind && { kind }),
    ...(schemaHint !== undefined && { schema_hint: schemaHint }),
    schema_version: schemaVersion ?? 1,
    ...(logicalKey !== undefined && { logical_key: logicalKey }),
    ...(inputs !== undefined && { inputs: [...inputs] }),
    tags: Object.fromEntries(Object.entries(tags ?? {}).map(([key, value]) => [key, listed(value)])),
    supersedes: listed(supersedes ?? []),
  };
  if (submission.parquetPath !== undefined) {
    const { parquetPath: path, rows } = submission;
    return { source: { path }, entry: rows === undefined ? entry : { ...entry, rows: rows as number } };
  }
  const { rows, columns } = submission as FromRows;
  if (!Array.isArray(rows)) {
    throw new BusError(problem("E601", "rows", "no table", "Give `rows` as an array of objects, or a `parquetPath`."));
  }
  return { source: columns === undefined ? { rows } : { rows, columns }, entry };
}

function listed(value: string | readonly string[]): string[] {
  return typeof value === "string" ? [value] : [...value];
}
