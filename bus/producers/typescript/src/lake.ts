// Where a lake is and what lies where in it: the part of bus/lake.py and bus/settings.py that
// producers need.

import { readFile, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";

import { parse } from "smol-toml";

import type { JobState } from "./documents.js";
import { BusError, isSystem, problem } from "./errors.js";

export const MANIFEST = "manifest.json";
export const COMMIT = "COMMIT";
export const VERDICT = "verdict.json";
export const RECEIPT = "receipt.json";
export const REJECT_REASON = "REJECT_REASON.json";

/** The states, youngest submission first, and the directories that stand for them. */
export const STATES: readonly (readonly [JobState, string])[] = [
  ["staged", "inbox"],
  ["validating", "work"],
  ["ready", "ready"],
  ["committed", "processed"],
  ["rejected", "rejected"],
];

/** A lake, and what its settings say about Redis. */
export class Lake {
  readonly inbox: string;
  readonly endpoint: string;
  readonly catalog: string;

  constructor(
    readonly root: string,
    readonly settings: Settings = {},
  ) {
    this.inbox = join(root, "bus", "inbox");
    this.endpoint = join(root, "bus", "endpoint.json");
    this.catalog = join(root, "catalog", "bus.duckdb");
  }

  /** The directory whose entries are the jobs in one state. */
  state(directory: string): string {
    return join(this.root, "bus", directory);
  }

  /** Identity, provenance and lineage of one artifact. */
  sidecar(artifactId: string): string {
    return join(this.root, "bus", "store", "sidecars", `${artifactId}.json`);
  }
}

/** What a lake's clients must know, from `BUS_*` or bus.toml. */
export interface Settings {
  redisUrl?: string;
  redisPrefix?: string;
  publicRoot?: string;
}

const found = new Map<string, Promise<Lake>>();

/**
 * The lake at `root`, or the one that Python's `bus.connect()` would choose: `BUS_LAKE`, the nearest
 * bus.toml upward, the nearest `data/` with a running bus, the bus that runs, else `./data`.
 */
export function findLake(root?: string): Promise<Lake> {
  const named = root ?? process.env["BUS_LAKE"];
  if (named === undefined) return locate(undefined); // where a bus runs may change
  const path = resolve(expanded(named));
  const key = [path, process.cwd(), ...NAMES.map((name) => process.env[name])].join("\0");
  let lake = found.get(key);
  if (lake === undefined) {
    lake = locate(path);
    found.set(key, lake);
    lake.catch(() => found.delete(key));
  }
  return lake;
}

const NAMES = ["BUS_CONFIG", "BUS_REDIS_URL", "BUS_REDIS_PREFIX", "BUS_PUBLIC_ROOT"] as const;

async function locate(named: string | undefined): Promise<Lake> {
  const config = await readConfig(named);
  const root = named ?? config.lake ?? (await runningLake()) ?? resolve("data");
  const settings: Settings = {};
  const { BUS_REDIS_URL: url, BUS_REDIS_PREFIX: prefix, BUS_PUBLIC_ROOT: shown } = process.env;
  if ((url ?? config.redisUrl) !== undefined) settings.redisUrl = (url ?? config.redisUrl) as string;
  if ((prefix ?? config.redisPrefix) !== undefined) settings.redisPrefix = (prefix ?? config.redisPrefix) as string;
  if ((shown ?? config.publicRoot) !== undefined) settings.publicRoot = (shown ?? config.publicRoot) as string;
  return new Lake(root, settings);
}

const CONFIG_NAMES = ["bus.toml", "bus_config.json", join("scripts", "bus_config.json")] as const;

interface Config extends Settings {
  lake?: string;
}

async function readConfig(lake: string | undefined): Promise<Config> {
  const named = process.env["BUS_CONFIG"];
  const paths = named === undefined
    ? [...(lake === undefined ? [] : [lake]), ...upward(process.cwd())].flatMap((folder) => CONFIG_NAMES.map((name) => join(folder, name)))
    : [resolve(expanded(named))];
  for (const path of paths) {
    const text = await readFile(path, "utf8").catch((error: unknown) => {
      if (named === undefined && isSystem(error, "ENOENT", "ENOTDIR")) return undefined;
      throw new BusError(problem("E103", path, String(error)), [], { cause: error });
    });
    if (text !== undefined) return parsed(text, path);
  }
  return {};
}

function parsed(text: string, path: string): Config {
  let values: Record<string, unknown>;
  try {
    if (path.endsWith(".json")) return ofDocuments(JSON.parse(text) as { bus_root?: unknown }, path);
    values = parse(text);
  } catch (error) {
    throw new BusError(problem("E103", path, String(error)), [], { cause: error });
  }
  const config: Config = {};
  const { lake, redis_url: url, redis_prefix: prefix, public_root: shown } = values;
  if (typeof lake === "string") config.lake = resolve(dirname(path), expanded(lake));
  if (typeof url === "string") config.redisUrl = url;
  if (typeof prefix === "string") config.redisPrefix = prefix;
  if (typeof shown === "string") config.publicRoot = shown;
  return config;
}

/** The source documents' bus_config.json: they keep it in scripts/, and name paths from above that. */
function ofDocuments({ bus_root: root }: { bus_root?: unknown }, path: string): Config {
  const folder = basename(dirname(path)) === "scripts" ? dirname(dirname(path)) : dirname(path);
  return typeof root === "string" ? { lake: dirname(resolve(folder, root)) } : {};
}

async function runningLake(): Promise<string | undefined> {
  for (const folder of upward(process.cwd())) {
    if (await exists(new Lake(join(folder, "data")).endpoint)) return join(folder, "data");
  }
  const state = process.env["XDG_STATE_HOME"] ?? join(homedir(), ".local", "state");
  const last = await readFile(join(state, "artifact-bus", "last-lake"), "utf8").catch(() => "");
  const root = last.trim();
  return root !== "" && (await exists(new Lake(root).endpoint)) ? root : undefined;
}

function upward(folder: string): string[] {
  const above = dirname(folder);
  return above === folder ? [folder] : [folder, ...upward(above)];
}

function expanded(path: string): string {
  return path === "~" || path.startsWith("~/") ? join(homedir(), path.slice(1)) : path;
}

/** Whether there is anything of that name. */
export async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
