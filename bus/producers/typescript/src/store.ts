// The artifact store as its documents describe it, without a Python process in between.

import { randomUUID } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import type { RedisOptions } from "./broker.js";
import { Catalog, csvToParquet } from "./catalog.js";
import type { JobManifest, Receipt } from "./documents.js";
import { BusError, isSystem, problem, Unavailable } from "./errors.js";
import type { WaitOptions } from "./job.js";
import { findLake, type Lake } from "./lake.js";
import { newJobId } from "./staging.js";
import { type Submission, submitArtifact, submitJob } from "./submit.js";
import type { Columns, Row } from "./table.js";

/** `damaged`: its bytes are gone or changed; `purged`: given up on purpose. Do not start from either. */
export type ArtifactStatus = "active" | "superseded" | "tombstoned" | "damaged" | "purged";

/** One artifact: an immutable table. */
export interface Artifact {
  artifactId: string;
  artifactType: string;
  schemaVersion: number;
  logicalKey: string;
  status: ArtifactStatus;
  pathParquet: string;
  pathSidecar: string;
  fileHash: string;
  contentHash: string;
  rowCount: number;
  /** The bounds of its time column, ISO 8601 UTC, where its kind has one. */
  minTs?: string;
  maxTs?: string;
  /** When it was committed first, ISO 8601 UTC. */
  createdAt: string;
  runId: string;
  producer: string;
  name: string;
}

/** Which artifacts: every field that is given must be equal. */
export interface ArtifactFilter {
  artifactType?: string;
  schemaVersion?: number;
  logicalKey?: string;
  status?: ArtifactStatus;
  producer?: string;
  runId?: string;
  name?: string;
  tags?: Readonly<Record<string, string>>;
  createdAfter?: Date;
  createdBefore?: Date;
  /** The newest so many; default 1,000. */
  limit?: number;
}

/** Where an artifact comes from. */
export interface ArtifactLineage {
  artifact: Artifact;
  /** What it was made from. */
  inputs: Artifact[];
  /** Everything that it descends from, inputs included. */
  ancestors: Artifact[];
  edges: { artifactId: string; inputArtifactId: string }[];
}

export interface PublishRequest {
  artifactType: string;
  schemaVersion: number;
  logicalKey: string;
  /** Rows, or the path of a CSV or Parquet file. */
  dataFrame: readonly Row[] | string;
  /** Types of columns that do not follow from the rows. */
  columns?: Columns;
  tags?: Readonly<Record<string, string>>;
  inputArtifactIds?: readonly string[];
  writerName: string;
  writerVersion: string;
  gitCommit: string;
  gitDirty: boolean;
  params?: Record<string, unknown>;
}

export interface PublishResult {
  /** Whether the same table was there already: then nothing was added. */
  deduped: boolean;
  /** By what it was recognised. */
  mode?: "file_hash" | "content_hash";
  existingArtifactId?: string;
  artifactId?: string;
  sidecar?: Record<string, unknown>;
}

export interface StoreOptions extends RedisOptions {
  /** Default: as for `submitArtifact`. */
  lake?: string;
  /** How long `publishDataFrame`, `supersede` and other changes wait for the bus; default: a minute. */
  timeoutMs?: number;
}

/** Read what is committed, through DuckDB; publish, through the bus. */
export class ArtifactStoreClient {
  readonly #runId = randomUUID();
  #opened: Promise<{ lake: Lake; catalog: Catalog }> | undefined;

  private readonly options: StoreOptions;

  constructor(options?: StoreOptions);
  /** As the documents make one: LAKE/manifest/manifest.sqlite, LAKE/artifacts. No Python is needed. */
  constructor(manifestDb: string, artifactsRoot: string, pythonEnv?: string);
  constructor(options: StoreOptions | string = {}, artifactsRoot?: string, _pythonEnv?: string) {
    this.options = typeof options === "string" ? { lake: lakeOf(options, artifactsRoot) } : options;
  }

  /** Rejects with E511 when there is none of that id. */
  async getArtifact(artifactId: string): Promise<Artifact> {
    const [found] = await this.#artifacts("artifact_id = $id", { id: artifactId }, 1);
    if (found === undefined) throw new BusError(problem("E511", "artifactId", `no artifact ${JSON.stringify(artifactId)}`));
    return found;
  }

  /** The newest first. */
  listArtifacts(filter: ArtifactFilter = {}): Promise<Artifact[]> {
    const values: Record<string, string | number> = {};
    const conditions: string[] = [];
    const where = (value: string | number | undefined, condition: (bound: string) => string) => {
      if (value === undefined) return;
      const name = `v${Object.keys(values).length}`;
      values[name] = value;
      conditions.push(condition(`$${name}`));
    };
    where(filter.artifactType, (v) => `kind = ${v}`);
    where(filter.schemaVersion, (v) => `schema_version = ${v}`);
    where(filter.logicalKey, (v) => `logical_key = ${v}`);
    where(filter.status, (v) => `status = ${v}`);
    where(filter.producer, (v) => `producer = ${v}`);
    where(filter.runId, (v) => `run_id = ${v}`);
    where(filter.name, (v) => `name = ${v}`);
    where(filter.createdAfter?.toISOString(), (v) => `ingested_at > ${v}::TIMESTAMPTZ`);
    where(filter.createdBefore?.toISOString(), (v) => `ingested_at < ${v}::TIMESTAMPTZ`);
    for (const [key, value] of Object.entries(filter.tags ?? {})) {
      where(key, (k) => {
        values["t" + k.slice(1)] = value;
        return `artifact_id IN (SELECT artifact_id FROM catalog.tags_f WHERE k = ${k} AND v = $t${k.slice(1)})`;
      });
    }
    return this.#artifacts(conditions.join(" AND ") || "true", values, filter.limit ?? 1000);
  }

  /** Every version of one table, the newest first. */
  findByLogicalKey(artifactType: string, logicalKey: string): Promise<Artifact[]> {
    return this.listArtifacts({ artifactType, logicalKey });
  }

  /** What the artifact was made from, and what that was made from. Rejects with E511. */
  async getLineage(artifactId: string): Promise<ArtifactLineage> {
    const artifact = await this.getArtifact(artifactId);
    const { catalog } = await this.#open();
    const edges = await catalog.select<{ artifactId: string; inputArtifactId: string }>(
      `WITH RECURSIVE above AS (
         SELECT artifact_id, input_artifact_id FROM catalog.lineage_f WHERE artifact_id = $id
         UNION SELECT l.artifact_id, l.input_artifact_id
         FROM catalog.lineage_f l JOIN above a ON l.artifact_id = a.input_artifact_id)
       SELECT artifact_id AS "artifactId", input_artifact_id AS "inputArtifactId" FROM above`,
      { id: artifactId },
    );
    const ancestors = await this.#byId(edges.map((edge) => edge.inputArtifactId));
    const direct = new Set(edges.filter((edge) => edge.artifactId === artifactId).map((edge) => edge.inputArtifactId));
    return { artifact, inputs: ancestors.filter((one) => direct.has(one.artifactId)), ancestors, edges };
  }

  /** Everything that was made from the artifact, directly or not. */
  async getDownstream(artifactId: string): Promise<Artifact[]> {
    const { catalog } = await this.#open();
    const found = await catalog.select<{ id: string }>(
      `WITH RECURSIVE below AS (
         SELECT artifact_id FROM catalog.lineage_f WHERE input_artifact_id = $id
         UNION SELECT l.artifact_id
         FROM catalog.lineage_f l JOIN below b ON l.input_artifact_id = b.artifact_id)
       SELECT artifact_id AS id FROM below`,
      { id: artifactId },
    );
    return this.#byId(found.map((row) => row.id));
  }

  /** Publish a table and wait until it is committed. Rejects as `submitArtifact` and `Job.done` do. */
  async publishDataFrame(request: PublishRequest, options: WaitOptions = {}): Promise<PublishResult> {
    const { dataFrame } = request;
    if (typeof dataFrame !== "string" || !/\.csv(\.gz)?$/i.test(dataFrame)) return this.#publish(request, dataFrame, options);
    const folder = await mkdtemp(join(tmpdir(), "artifact-bus-"));
    try {
      const path = join(folder, "table.parquet");
      await csvToParquet(dataFrame, path, sqlTypes(request.columns ?? {}));
      return await this.#publish(request, path, options);
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  }

  async #publish(request: PublishRequest, data: readonly Row[] | string, options: WaitOptions): Promise<PublishResult> {
    const { lake } = await this.#open();
    const columns = request.columns === undefined ? {} : { columns: request.columns };
    const submission: Submission = {
      ...this.#reach(lake),
      runId: this.#runId,
      producer: request.writerName,
      kind: request.artifactType,
      schemaVersion: request.schemaVersion,
      logicalKey: request.logicalKey,
      inputs: request.inputArtifactIds ?? [],
      tags: request.tags ?? {},
      meta: request.params === undefined ? {} : { params: request.params },
      provenance: {
        writer_name: request.writerName,
        writer_version: request.writerVersion,
        git_commit: request.gitCommit,
        git_dirty: request.gitDirty,
      },
      ...(typeof data === "string" ? { parquetPath: data } : { rows: data, ...columns }),
    };
    const receipt = await (await submitArtifact(submission)).done(this.#waiting(options));
    await this.#visible(receipt.seq);
    const [made] = receipt.artifacts;
    if (made === undefined) throw new Unavailable(problem("E505", receipt.job_id, "a receipt without an artifact"));
    const mode = made.mode as NonNullable<PublishResult["mode"]> | undefined;
    if (made.deduped) {
      return { deduped: true, ...(mode !== undefined && { mode }), existingArtifactId: made.artifact_id };
    }
    const sidecar = await readSidecar(lake.sidecar(made.artifact_id));
    return { deduped: false, artifactId: made.artifact_id, ...(sidecar !== undefined && { sidecar }) };
  }

  /** The new artifact replaces the old one; both stay readable. Resolves when that is committed. */
  async supersede(newArtifactId: string, oldArtifactId: string, options: WaitOptions = {}): Promise<void> {
    await this.getArtifact(oldArtifactId);
    await this.change([{ op: "supersede", target: oldArtifactId, by: newArtifactId }], options);
  }

  /** Nobody shall start from the artifact any more; its bytes stay. */
  async tombstone(artifactId: string, reason: string, options: WaitOptions = {}): Promise<void> {
    await this.change([{ op: "tombstone", target: artifactId, reason }], options);
  }

  /** The artifact carries these tags as well. */
  async tag(artifactId: string, tags: Readonly<Record<string, readonly string[]>>, options: WaitOptions = {}): Promise<void> {
    const copied = Object.fromEntries(Object.entries(tags).map(([key, values]) => [key, [...values]]));
    await this.change([{ op: "tag", target: artifactId, tags: copied }], options);
  }

  /**
   * `kind:alias` means the artifact from now on; without one it means nothing. `expect` is the artifact
   * that it must mean at this moment, "" for none: else E405.
   */
  async alias(kind: string, alias: string, artifactId?: string, options: WaitOptions & { expect?: string } = {}): Promise<void> {
    const { expect, ...waiting } = options;
    const meaning = { ...(artifactId !== undefined && { target: artifactId }), ...(expect !== undefined && { expect }) };
    await this.change([{ op: "alias", kind, alias, ...meaning }], waiting);
  }

  /** The artifacts belong to the frozen set `pin`, which is kept and which jobs take as `pin:NAME`. */
  async pin(pin: string, artifactIds: readonly string[], options: WaitOptions = {}): Promise<void> {
    await this.change([{ op: "pin", pin, target: [...artifactIds] }], options);
  }

  /**
   * Changes as they stand in manifest.json, all together or not at all; the receipt's warnings tell what
   * was so already. Rejects with what the writer refuses (E402 to E407).
   */
  async change(mutations: NonNullable<JobManifest["mutations"]>, options: WaitOptions = {}): Promise<Receipt> {
    const { lake } = await this.#open();
    const [kind, producer] = ["mutations", "artifact-store-client"];
    const head = {
      version: 1 as const,
      job_id: newJobId(producer, kind),
      run_id: this.#runId,
      producer,
      kind,
      created_at_utc: new Date().toISOString(),
      mutations,
    };
    const receipt = await (await submitJob([], head, this.#reach(lake))).done(this.#waiting(options));
    await this.#visible(receipt.seq);
    return receipt;
  }

  /** Let DuckDB go. The client opens it again when it is used again. */
  async close(): Promise<void> {
    await (await this.#opened)?.catalog.close();
  }

  #open() {
    this.#opened ??= findLake(this.options.lake).then((lake) => ({ lake, catalog: new Catalog(lake) }));
    return this.#opened;
  }

  /** What this client has done, its later queries see. */
  async #visible(seq: number): Promise<void> {
    (await this.#open()).catalog.wantSeq(seq);
  }

  #reach(lake: Lake) {
    const { lake: _, timeoutMs: __, ...redis } = this.options;
    return { ...redis, lake: lake.root, required: true };
  }

  #waiting(options: WaitOptions): WaitOptions {
    return { timeoutMs: this.options.timeoutMs ?? 60_000, ...options };
  }

  #byId(ids: readonly string[]): Promise<Artifact[]> {
    return this.#artifacts("artifact_id IN (SELECT unnest(from_json($ids, '[\"VARCHAR\"]')))", { ids: JSON.stringify(ids) }, ids.length);
  }

  async #artifacts(condition: string, values: Record<string, string | number>, limit: number): Promise<Artifact[]> {
    const { catalog } = await this.#open();
    const rows = await catalog.select<Found>(`${SELECT_ARTIFACTS} WHERE ${condition} ${NEWEST_FIRST} LIMIT ${Math.trunc(limit)}`, values);
    return rows.map(asArtifact);
  }
}

/** The lake that the documents' two paths belong to. Throws E103 where they are not of one lake. */
function lakeOf(manifestDb: string, artifactsRoot: string | undefined): string {
  const lake = dirname(dirname(resolve(manifestDb)));
  if (artifactsRoot === undefined || dirname(resolve(artifactsRoot)) === lake) return lake;
  const hint = "Give LAKE/manifest/manifest.sqlite and LAKE/artifacts.";
  throw new BusError(problem("E103", "artifactsRoot", `${manifestDb} and ${artifactsRoot} are not of one lake`, hint));
}

/** A row of SELECT_ARTIFACTS. */
interface Found {
  artifact_id: string;
  kind: string;
  schema_version: number;
  logical_key: string;
  status: ArtifactStatus;
  canonical_path: string;
  file_hash: string;
  content_hash: string;
  rows: bigint;
  min_ts: string | null;
  max_ts: string | null;
  created_us: bigint;
  run_id: string;
  producer: string;
  name: string;
}

const ISO = (column: string) => `strftime(make_timestamp(epoch_us(${column})), '%Y-%m-%dT%H:%M:%S.%fZ') AS ${column}`;

// An artifact is listed once, as its first run delivered it.
const SELECT_ARTIFACTS = `
  SELECT artifact_id, kind, schema_version, logical_key, status, canonical_path, file_hash, content_hash, rows,
         ${ISO("min_ts")}, ${ISO("max_ts")}, epoch_us(ingested_at) AS created_us, run_id, producer, name
  FROM catalog.artifacts_f JOIN (SELECT artifact_id, status FROM catalog.artifacts_d) USING (artifact_id)`;
const NEWEST_FIRST = `
  QUALIFY row_number() OVER (PARTITION BY artifact_id ORDER BY seq, artifact_key) = 1
  ORDER BY seq DESC, name, artifact_id`;

function asArtifact(row: Found): Artifact {
  const { artifact_id: artifactId, canonical_path: pathParquet } = row;
  return {
    artifactId,
    artifactType: row.kind,
    schemaVersion: row.schema_version,
    logicalKey: row.logical_key,
    status: row.status,
    pathParquet,
    pathSidecar: join(dirname(pathParquet), "..", "..", "sidecars", `${artifactId}.json`),
    fileHash: row.file_hash,
    contentHash: row.content_hash,
    rowCount: Number(row.rows),
    ...(row.min_ts !== null && { minTs: row.min_ts }),
    ...(row.max_ts !== null && { maxTs: row.max_ts }),
    createdAt: new Date(Number(row.created_us / 1000n)).toISOString(),
    runId: row.run_id,
    producer: row.producer,
    name: row.name,
  };
}

const SIDECAR_WITHIN_MS = 5000;

/** Sidecars are views: they come a moment after the receipt. */
async function readSidecar(path: string): Promise<Record<string, unknown> | undefined> {
  for (const deadline = performance.now() + SIDECAR_WITHIN_MS; ; await sleep(20)) {
    try {
      return JSON.parse(await readFile(path, "utf8")) as Record<string, unknown>;
    } catch (error) {
      if (!isSystem(error, "ENOENT") && !(error instanceof SyntaxError)) throw error;
      if (performance.now() > deadline) return undefined;
    }
  }
}

const SQL_TYPES: Readonly<Record<string, string>> = {
  bool: "BOOLEAN",
  int32: "INTEGER",
  int64: "BIGINT",
  float32: "FLOAT",
  float64: "DOUBLE",
  string: "VARCHAR",
  binary: "BLOB",
  date: "DATE",
};

function sqlTypes(columns: Columns): Record<string, string> {
  const sql = (type: string) => SQL_TYPES[type] ?? (type.endsWith(", UTC]") ? "TIMESTAMPTZ" : "TIMESTAMP");
  return Object.fromEntries(Object.entries(columns).map(([name, type]) => [name, sql(type)]));
}
