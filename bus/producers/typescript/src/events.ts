// The stream bus:events: one entry for each job that the writer has answered.

import { setTimeout as sleep } from "node:timers/promises";

import { Broker, type Connection, hold, type RedisClient, type RedisOptions } from "./broker.js";
import type { ErrorCode } from "./documents.js";
import { BusError, problem, Unavailable } from "./errors.js";
import { findLake } from "./lake.js";

/** What happened to one job. */
export interface BusEvent {
  /** The entry's place in the stream; give it as `from` to go on after it. */
  id: string;
  jobId: string;
  outcome: "committed" | "rejected" | "repeated";
  seq: number;
  runId: string | undefined;
  producer: string | undefined;
  kind: string | undefined;
  at: string;
  artifacts: readonly { artifactId: string; name: string; kind: string }[];
  problems: readonly ErrorCode[];
}

/** Which events: every field that is given must be equal. `kind` may be the job's or an artifact's. */
export interface EventFilter {
  kind?: string;
  producer?: string;
  runId?: string;
  jobId?: string;
  /** Default: committed. */
  outcome?: BusEvent["outcome"] | "any";
}

export interface SubscribeOptions extends RedisOptions {
  lake?: string;
  signal?: AbortSignal;
  /** Begin after this entry instead of now; `"0"` for all that the stream still holds. */
  from?: string;
  /** Told what the handler threw; default: the subscription ends and `done` rejects with it. */
  onError?: (error: unknown, event: BusEvent) => void;
}

/** A subscription that listens since it was returned. */
export interface Subscription {
  close(): Promise<void>;
  /** Settles when the subscription has ended, however it did. */
  readonly done: Promise<void>;
}

const BLOCK_MS = 5000;
const FIRST_PAUSE_MS = 100;
const LAST_PAUSE_MS = 5000;

/**
 * Call `handler` for each job that is committed from now on, one after the other, in order.
 *
 * Resolves when it listens; rejects with E501 when there is no Redis. A server that goes away later
 * is waited for, and what happened meanwhile is caught up with. The stream keeps the newest 10,000
 * entries: who must miss nothing compares with the catalog.
 */
export async function onCommitted(
  filter: EventFilter,
  handler: (event: BusEvent) => unknown,
  options: SubscribeOptions = {},
): Promise<Subscription> {
  const lake = await findLake(options.lake);
  const feed = new EventFeed(new Broker(lake, options));
  await feed.start(options.from);
  const stop = () => feed.stop();
  options.signal?.addEventListener("abort", stop, { once: true });
  if (options.signal?.aborted === true) stop();
  const done = feed
    .run(async (event) => {
      if (!matches(event, filter)) return;
      try {
        await handler(event);
      } catch (error) {
        if (options.onError === undefined) throw error;
        options.onError(error, event);
      }
    })
    .finally(() => options.signal?.removeEventListener("abort", stop));
  return {
    done,
    async close() {
      feed.stop();
      await done;
    },
  };
}

function matches(event: BusEvent, { kind, producer, runId, jobId, outcome = "committed" }: EventFilter): boolean {
  return (
    (outcome === "any" || event.outcome === outcome) &&
    (kind === undefined || event.kind === kind || event.artifacts.some((artifact) => artifact.kind === kind)) &&
    (producer === undefined || event.producer === producer) &&
    (runId === undefined || event.runId === runId) &&
    (jobId === undefined || event.jobId === jobId)
  );
}

/** One reader of the stream, on a connection of its own. */
export class EventFeed {
  #stopping = new AbortController();
  #last = "";
  #connection: Connection | undefined;
  #held = true;

  constructor(private readonly broker: Broker) {}

  /** Connect, and note where the stream ends now. Rejects with E501 when Redis is away. */
  async start(from?: string): Promise<void> {
    try {
      const { client, prefix } = await this.#connected();
      this.#last = from ?? (await lastId(client, `${prefix}bus:events`));
    } catch (error) {
      this.stop();
      throw error instanceof BusError ? error : new Unavailable(problem("E501", "redis", String(error)), [], { cause: error });
    }
  }

  /** Read on until `stop`; resolves then. Rejects with what `handler` rejects with. */
  async run(handler: (event: BusEvent) => unknown): Promise<void> {
    let pauseMs = FIRST_PAUSE_MS;
    try {
      while (!this.#stopping.signal.aborted) {
        let entries: Entries;
        try {
          entries = await this.#read();
          pauseMs = FIRST_PAUSE_MS;
        } catch {
          this.#disconnect();
          await sleep(pauseMs, undefined, { signal: this.#stopping.signal }).catch(() => undefined);
          pauseMs = Math.min(2 * pauseMs, LAST_PAUSE_MS);
          continue;
        }
        for (const [id, fields] of entries) {
          if (this.#stopping.signal.aborted) return;
          const event = parsed(id, fields);
          if (event !== undefined) await handler(event);
          this.#last = id;
        }
      }
    } finally {
      this.stop();
    }
  }

  stop(): void {
    this.#stopping.abort();
    this.#disconnect();
  }

  async #read(): Promise<Entries> {
    const { client, prefix } = await this.#connected();
    const command = ["COUNT", "100", "BLOCK", String(BLOCK_MS), "STREAMS", `${prefix}bus:events`, this.#last];
    return entriesOf(await client.call("xread", ...command));
  }

  /** Whether Redis was there when last heard of. */
  get connected(): boolean {
    return this.#connection !== undefined;
  }

  /** Whether listening keeps the program alive. */
  hold(due: boolean): void {
    this.#held = due;
    if (this.#connection !== undefined) hold(this.#connection, due);
  }

  async #connected(): Promise<Connection> {
    this.#connection ??= await this.broker.blocking();
    this.hold(this.#held);
    if (this.#stopping.signal.aborted) this.#disconnect();
    return this.#connection ?? Promise.reject(new Error("stopped"));
  }

  #disconnect(): void {
    this.#connection?.client.disconnect();
    this.#connection = undefined;
  }
}

type Entries = [string, string[]][];

/** Entries of the one stream we read, whichever protocol the client speaks; none in time is null. */
function entriesOf(reply: unknown): Entries {
  if (reply === null || typeof reply !== "object") return [];
  const [first] = Array.isArray(reply) ? (reply as unknown[]) : Object.entries(reply);
  const paired = Array.isArray(first) ? (first as unknown[])[1] : (reply as unknown[])[1];
  return (paired ?? []) as Entries;
}

async function lastId(client: RedisClient, key: string): Promise<string> {
  const found = (await client.call("xrevrange", key, "+", "-", "COUNT", "1")) as Entries;
  return found[0]?.[0] ?? "0";
}

/** Texts are as they are, everything else is JSON; undefined for what is no event of a job. */
function parsed(id: string, fields: readonly string[]): BusEvent | undefined {
  const found = new Map<string, string>();
  for (let i = 0; i + 1 < fields.length; i += 2) found.set(fields[i] as string, fields[i + 1] as string);
  const jobId = found.get("job_id");
  const outcome = found.get("outcome");
  if (jobId === undefined || outcome === undefined) return undefined;
  const text = (name: string) => (found.get(name) === "null" ? undefined : found.get(name));
  const artifacts = json(found.get("artifacts")) as { artifact_id: string; name: string; kind: string }[];
  return {
    id,
    jobId,
    outcome: outcome as BusEvent["outcome"],
    seq: Number(found.get("seq")),
    runId: text("run_id"),
    producer: text("producer"),
    kind: text("kind"),
    at: found.get("at") ?? "",
    artifacts: artifacts.map(({ artifact_id: artifactId, name, kind }) => ({ artifactId, name, kind })),
    problems: json(found.get("problems")) as ErrorCode[],
  };
}

function json(text: string | undefined): unknown[] {
  try {
    const value: unknown = JSON.parse(text ?? "[]");
    return Array.isArray(value) ? value : [];
  } catch {
    return [];
  }
}
