// Redis, which makes things fast and nothing possible: where it is, the bell, the event stream.

import { createHash } from "node:crypto";
import { readFile, realpath } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

import { problem, Unavailable } from "./errors.js";
import type { Lake } from "./lake.js";

/** What we need of an ioredis client; give your own to share its settings. */
export interface RedisClient {
  call(command: string, ...args: string[]): Promise<unknown>;
  duplicate(): RedisClient;
  disconnect(): void;
  on?(event: "error", listener: (error: Error) => void): unknown;
}

/** How to reach Redis: a URL, a client, or `false` for not at all. Default: the lake's own. */
export interface RedisOptions {
  redis?: string | RedisClient | false;
  redisPrefix?: string;
}

/** A producer waits for Redis no longer than this. */
export const RING_MS = 200;
const PAUSE_AFTER_FAILURE_MS = 1000;

/** A client and the prefix of the lake's keys on its server. */
export interface Connection {
  client: RedisClient;
  prefix: string;
  /** Ours to close; and its socket must not keep a program alive that has nothing else to do. */
  own: boolean;
}

/** Connections to one lake's Redis. */
export class Broker {
  #open: Promise<Connection | undefined> | undefined;
  #pauseUntil = 0;

  constructor(
    private readonly lake: Lake,
    private readonly options: RedisOptions = {},
  ) {}

  /** Begin to connect, so that the bell need not wait for it. */
  warm(): void {
    void this.#connection().catch(() => undefined);
  }

  /** Tell the bus to look at a job. At most 200 ms, never a rejection: false when Redis is away. */
  async ring(jobId: string): Promise<boolean> {
    const until = performance.now() + RING_MS;
    const fresh = this.#open === undefined;
    if (await this.#push(jobId, until)) return true;
    if (fresh || performance.now() >= until || this.options.redis === false) return false;
    this.#pauseUntil = 0; // the server was restarted under an idle connection: it may be back, or moved
    return this.#push(jobId, until);
  }

  async #push(jobId: string, until: number): Promise<boolean> {
    const pushed = (async () => {
      const connection = await this.#connection();
      if (connection === undefined) return false;
      hold(connection, true);
      try {
        await connection.client.call("lpush", `${connection.prefix}bus:notify`, JSON.stringify({ job_id: jobId }));
      } finally {
        hold(connection, false);
      }
      return true;
    })().catch(() => undefined);
    const rung = await within(pushed, until - performance.now());
    if (rung === undefined) await this.#failed();
    return rung ?? false;
  }

  /** A connection of its own, for commands that block. Rejects when there is no Redis. */
  async blocking(): Promise<Connection> {
    const connection = await connect(this.lake, this.options, true);
    if (connection === undefined) {
      throw new Unavailable(problem("E501", this.lake.root, "no Redis: no bus runs on this lake, or ioredis is not installed"));
    }
    return connection;
  }

  #connection(): Promise<Connection | undefined> {
    if (performance.now() < this.#pauseUntil) return Promise.resolve(undefined);
    this.#open ??= connect(this.lake, this.options, false).then((connection) => {
      if (connection === undefined) this.#open = undefined; // no bus runs: one may be started later
      return connection;
    });
    return this.#open;
  }

  async #failed(): Promise<void> {
    this.#pauseUntil = performance.now() + PAUSE_AFTER_FAILURE_MS;
    const opened = this.#open;
    this.#open = undefined;
    void opened?.then((connection) => connection?.own === true && connection.client.disconnect()).catch(() => undefined);
  }

  /** Drop the connection; the next bell opens another. */
  close(): void {
    void this.#failed();
    this.#pauseUntil = 0;
  }
}

const shared = new Map<string, Broker>();
const given = new WeakMap<RedisClient, Map<string, Broker>>();

/** The broker of a lake: one for all submissions that reach Redis in the same way. */
export function brokerOf(lake: Lake, { redis, redisPrefix }: RedisOptions): Broker {
  const brokers = typeof redis === "object" ? (given.get(redis) ?? new Map<string, Broker>()) : shared;
  if (typeof redis === "object") given.set(redis, brokers);
  const key = JSON.stringify([lake.root, lake.settings, typeof redis === "object" ? null : redis, redisPrefix]);
  let broker = brokers.get(key);
  if (broker === undefined) {
    broker = new Broker(lake, { ...(redis !== undefined && { redis }), ...(redisPrefix !== undefined && { redisPrefix }) });
    brokers.set(key, broker);
  }
  return broker;
}

async function connect(lake: Lake, options: RedisOptions, blocking: boolean): Promise<Connection | undefined> {
  const { redis } = options;
  if (redis === false) return undefined;
  const running = await endpoint(lake);
  if (typeof redis === "object") {
    const client = blocking ? redis.duplicate() : redis;
    if (blocking) client.on?.("error", () => undefined);
    return { client, prefix: options.redisPrefix ?? lake.settings.redisPrefix ?? running?.prefix ?? "", own: blocking };
  }
  const url = redis ?? lake.settings.redisUrl ?? running?.url;
  if (url === undefined) return undefined;
  const known = running?.url === url ? running.prefix : await defaultPrefix(lake);
  const client = await open(url, blocking);
  if (client === undefined) return undefined;
  return { client, prefix: options.redisPrefix ?? lake.settings.redisPrefix ?? known, own: true };
}

async function open(url: string, blocking: boolean): Promise<RedisClient | undefined> {
  const ioredis = await import("ioredis").catch(() => undefined);
  if (ioredis === undefined) return undefined;
  const client = new ioredis.Redis(url, {
    connectTimeout: blocking ? 5000 : RING_MS,
    maxRetriesPerRequest: 0,
    retryStrategy: () => null, // where the server is may have changed: we look again ourselves
    enableReadyCheck: false,
    protocol: 2, // with no greeting the first command comes at once
    disableClientInfo: true,
    connectionName: "artifact-bus",
  });
  client.on("error", () => undefined); // the command that fails says so
  return client as unknown as RedisClient;
}

/** Keep the program alive while an answer is due, and not longer. */
export function hold({ client, own }: Connection, due: boolean): void {
  const { stream } = client as { stream?: { ref?: () => void; unref?: () => void } };
  if (own) (due ? stream?.ref : stream?.unref)?.call(stream);
}

async function within<T>(work: Promise<T>, timeoutMs: number): Promise<T | undefined> {
  const stop = new AbortController();
  const late = sleep(Math.max(0, timeoutMs), undefined, { signal: stop.signal }).catch(() => undefined);
  try {
    return await Promise.race([work, late]);
  } finally {
    stop.abort();
  }
}

/** What the running bus says of itself; undefined when none runs, or for another user. */
async function endpoint(lake: Lake): Promise<{ url: string; prefix: string } | undefined> {
  try {
    const { url, prefix } = JSON.parse(await readFile(lake.endpoint, "utf8")) as Record<string, unknown>;
    return typeof url === "string" && typeof prefix === "string" ? { url, prefix } : undefined;
  } catch {
    return undefined;
  }
}

/** The prefix on a server that is not this lake's own. */
async function defaultPrefix(lake: Lake): Promise<string> {
  const shown = lake.settings.publicRoot ?? (await realpath(lake.root).catch(() => lake.root));
  return `bus-${createHash("sha256").update(shown).digest("hex").slice(0, 8)}:`;
}
