// manifest.json: made, checked as Python checks it, and compared with another.

import * as z from "zod";

import { type JobManifest, schemas } from "./documents.js";
import { BusError, type Problem, problem, refused } from "./errors.js";
import { MANIFEST } from "./lake.js";

const MAX_SIZE_BYTES = 1 << 20;
const MAX_DEPTH = 16;
const MAX_STRING_BYTES = 4096;
const MAX_TEXT_BYTES = 1024;
const ID_FIELDS = new Set(["job_id", "run_id", "producer", "kind", "artifact_id", "alias", "pin", "after"]);

let schema: z.ZodType | undefined;

/**
 * The manifest as bytes. Rejects with every problem that the validator would find in it (E102, E103,
 * E104, E107, E109, E111).
 */
export function encode(manifest: JobManifest): Buffer {
  const found: Problem[] = [];
  checkJson(manifest, MANIFEST, 1, found);
  if (found.length > 0) throw refused(found);
  schema ??= z.fromJSONSchema(schemas.JobManifest as unknown as Parameters<typeof z.fromJSONSchema>[0]);
  const parsed = schema.safeParse(manifest);
  if (!parsed.success) found.push(...parsed.error.issues.map(asProblem));
  checkWords(manifest, found);
  const data = Buffer.from(JSON.stringify(manifest));
  if (data.length > MAX_SIZE_BYTES) {
    found.push(problem("E107", MANIFEST, `${data.length} bytes; at most ${MAX_SIZE_BYTES} are read`));
  }
  if (found.length > 0) throw refused(found);
  return data;
}

/** Whether two manifests are the same job: what a restarted program writes anew does not count. */
export function sameJob(one: JobManifest, other: JobManifest): boolean {
  return canonical(core(one)) === canonical(core(other));
}

function core(manifest: JobManifest): unknown {
  const { created_at_utc: _, provenance: __, version = 1, artifacts = [], ...rest } = manifest;
  const entries = artifacts.map(({ rows: _rows, size_bytes: _size, ...entry }) => ({
    format: "parquet",
    schema_version: 1,
    tags: {},
    supersedes: [],
    ...entry,
  }));
  return { version, mutations: [], after: [], meta: {}, ...rest, artifacts: entries };
}

/** JSON with sorted keys, without fields that hold nothing. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_, held: unknown) => {
    if (typeof held !== "object" || held === null || Array.isArray(held)) return held;
    const fields = Object.entries(held).filter(([, field]) => field !== null && field !== undefined);
    return Object.fromEntries(fields.sort(([a], [b]) => (a < b ? -1 : 1)));
  });
}

/** What JSON.stringify would change or drop without a word, and what the bus does not read. */
function checkJson(value: unknown, where: string, depth: number, found: Problem[]): void {
  if (depth > MAX_DEPTH) {
    found.push(problem("E107", where, `nested deeper than ${MAX_DEPTH} levels`));
    return;
  }
  switch (typeof value) {
    case "string":
      checkString(value, where, found);
      return;
    case "number":
      if (!Number.isFinite(value)) found.push(problem("E102", where, `${value} is not JSON`));
      else if (Number.isInteger(value) && Math.abs(value) < 1e21 && BigInt.asIntN(64, BigInt(value)) !== BigInt(value)) {
        found.push(problem("E102", where, `integer ${value} does not fit 64 bits`));
      }
      return;
    case "bigint":
    case "function":
    case "symbol":
      found.push(problem("E102", where, `a ${typeof value} is not JSON`, "Write a number or a text."));
      return;
    case "object":
      break;
    default:
      return; // boolean; undefined is left out
  }
  if (value === null) return;
  if (Array.isArray(value)) {
    value.forEach((item, index) => checkJson(item, `${where}[${index}]`, depth + 1, found));
    return;
  }
  if ("toJSON" in value && typeof value.toJSON === "function") {
    checkJson((value.toJSON as () => unknown)(), where, depth, found);
    return;
  }
  for (const [key, item] of Object.entries(value)) {
    checkString(key, where, found);
    checkJson(item, `${where}.${key.slice(0, 80)}`, depth + 1, found);
  }
}

function checkString(text: string, where: string, found: Problem[]): void {
  if (!text.isWellFormed()) found.push(problem("E102", where, "text holds a lone surrogate"));
  const bytes = Buffer.byteLength(text);
  if (bytes > MAX_STRING_BYTES) found.push(problem("E107", where, `text of ${bytes} bytes; at most ${MAX_STRING_BYTES}`));
}

/** Rules for words that JSON Schema has no form for. */
function checkWords(manifest: JobManifest, found: Problem[]): void {
  const { artifacts = [], mutations = [] } = manifest;
  const names = new Set<string>();
  artifacts.forEach((entry, index) => {
    const where = `${MANIFEST}.artifacts[${index}]`;
    const { artifact_id: name, schema_hint, logical_key, inputs, tags, supersedes } = entry;
    if (names.has(name)) found.push(problem("E109", `${where}.artifact_id`, `${JSON.stringify(name)} is listed twice`));
    names.add(name);
    for (const [field, value] of Object.entries({ schema_hint, logical_key, inputs, tags, supersedes })) {
      checkText(value, `${where}.${field}`, found);
    }
  });
  mutations.forEach((mutation, index) => checkText(mutation, `${MANIFEST}.mutations[${index}]`, found));
  if (artifacts.length === 0 && mutations.length === 0) {
    found.push(problem("E111", MANIFEST, "neither artifacts nor mutations"));
  }
}

function checkText(value: unknown, where: string, found: Problem[]): void {
  if (typeof value === "string") {
    if (Buffer.byteLength(value) > MAX_TEXT_BYTES) found.push(problem("E103", where, `longer than ${MAX_TEXT_BYTES} bytes`));
    if (/\p{Cc}/u.test(value)) found.push(problem("E103", where, "holds a control character"));
  } else if (Array.isArray(value)) {
    value.forEach((item, index) => checkText(item, `${where}[${index}]`, found));
  } else if (typeof value === "object" && value !== null) {
    for (const [key, item] of Object.entries(value)) {
      checkText(key, where, found);
      checkText(item, `${where}.${key.slice(0, 80)}`, found);
    }
  }
}

function asProblem(issue: z.core.$ZodIssue): Problem {
  const path = issue.path.map((part) => (typeof part === "number" ? `[${part}]` : `.${String(part)}`)).join("");
  const field = issue.path.findLast((part) => typeof part === "string") ?? "";
  const where = `${MANIFEST}${path}`;
  if (issue.code === "invalid_format" && ID_FIELDS.has(String(field))) return problem("E104", where, "not an identifier");
  if (issue.code === "too_big" && issue.origin === "array") return problem("E107", where, issue.message);
  if (issue.code === "unrecognized_keys") {
    return problem("E103", where, `unknown field ${issue.keys.join(", ")}`, "Data of your own belongs in `meta`.");
  }
  return problem("E103", where, issue.message);
}

/** Read a manifest that lies in the lake; undefined when it is none. */
export function decode(data: Uint8Array): JobManifest | undefined {
  try {
    return JSON.parse(Buffer.from(data).toString()) as JobManifest;
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}

/** An identifier that may become the name of a directory. Rejects with E104. */
export function checkedId(id: string, where: string): string {
  const pattern = schemas.JobManifest.properties.job_id.pattern;
  if (typeof id === "string" && new RegExp(pattern).test(id) && !id.includes("\n")) return id;
  const what = id === undefined ? "nothing was given" : `${JSON.stringify(String(id).slice(0, 160))} is not an identifier`;
  throw new BusError(problem("E104", where, what));
}
