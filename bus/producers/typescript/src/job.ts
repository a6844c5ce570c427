// A submission and its answer. The answer is a file; Redis only says when to look.

import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import type { Broker } from "./broker.js";
import type { JobState, Receipt, RejectReason } from "./documents.js";
import { isSystem, problem, Rejected, type Unavailable, WaitTimeout } from "./errors.js";
import { EventFeed } from "./events.js";
import { exists, type Lake, RECEIPT, REJECT_REASON, STATES, VERDICT } from "./lake.js";

const FIRST_LOOK_MS = 10;
const LAST_LOOK_MS = 500;
const PAUSE_AFTER_FAILURE_MS = 1000;
const LINGER_MS = 5000;

export interface WaitOptions {
  signal?: AbortSignal;
  timeoutMs?: number;
}

/** A submitted job; or one that could not be submitted and was not required, then `error` says why. */
export class Job {
  readonly #lake: Lake;
  readonly #broker: Broker;

  constructor(
    readonly jobId: string,
    readonly submissionId: string,
    lake: Lake,
    broker: Broker,
    readonly error?: Unavailable,
  ) {
    this.#lake = lake;
    this.#broker = broker;
  }

  /** Whether it was submitted: then it is safe, whatever happens. */
  get success(): boolean {
    return this.error === undefined;
  }

  /** Where the job is now. */
  async status(): Promise<JobState> {
    if (this.error !== undefined) return "unknown";
    for (const [state, directory] of STATES) {
      if (await isDirectory(join(this.#lake.state(directory), this.jobId))) return state;
    }
    return "unknown";
  }

  /**
   * The receipt, as soon as the job is committed. Rejects with `Rejected` and every problem, with
   * `WaitTimeout` (E506; the job is safe) after `timeoutMs`, with the signal's reason, or at once with
   * `error` where nothing was submitted.
   */
  async done({ signal, timeoutMs = Number.POSITIVE_INFINITY }: WaitOptions = {}): Promise<Receipt> {
    if (this.error !== undefined) throw this.error;
    const deadline = performance.now() + timeoutMs;
    const listener = listenersOf(this.#broker).add(this.jobId);
    let pauseMs = FIRST_LOOK_MS;
    try {
      for (;;) {
        signal?.throwIfAborted();
        const heard = listener.next();
        const answer = await this.answer();
        if (answer !== undefined) return receiptOf(answer);
        const leftMs = deadline - performance.now();
        if (leftMs <= 0) {
          throw new WaitTimeout(problem("E506", this.jobId, `job is ${await this.status()} after ${timeoutMs} ms`));
        }
        await pause(Math.min(pauseMs, leftMs), heard, signal);
        pauseMs = Math.min(2 * pauseMs, LAST_LOOK_MS);
      }
    } finally {
      listener.remove();
    }
  }

  /** The answer that lies in the job's directory: to this submission, or undefined so far. */
  async answer(): Promise<Receipt | RejectReason | undefined> {
    if (this.error !== undefined) return undefined;
    for (const [directory, name] of [["processed", RECEIPT], ["rejected", REJECT_REASON]] as const) {
      for await (const path of this.#submissions(this.#lake.state(directory))) {
        const found = (await json(join(path, name))) as Receipt | RejectReason | undefined;
        if (found === undefined) continue;
        if (found.submission_id === this.submissionId) return found;
        // An equal job that came later carries the first one's receipt, beside its own verdict.
        const verdict = (await json(join(path, VERDICT))) as { submission_id?: string } | undefined;
        if (verdict?.submission_id === this.submissionId) return found;
      }
    }
    return undefined;
  }

  /** Every directory of this id: `<job>`, then `<job>~2` and so on. */
  async *#submissions(base: string): AsyncGenerator<string> {
    yield join(base, this.jobId);
    for (let number = 2; await exists(join(base, `${this.jobId}~${number}`)); number++) {
      yield join(base, `${this.jobId}~${number}`);
    }
  }
}

function receiptOf(answer: Receipt | RejectReason): Receipt {
  if ("artifacts" in answer) return answer;
  throw new Rejected(answer);
}

async function isDirectory(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
}

async function json(path: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, "utf8"));
  } catch (error) {
    if (error instanceof SyntaxError || isSystem(error)) return undefined;
    throw error;
  }
}

async function pause(pauseMs: number, heard: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  const stop = new AbortController();
  const signals = signal === undefined ? [stop.signal] : [stop.signal, signal];
  const late = sleep(pauseMs, undefined, { signal: AbortSignal.any(signals) }).catch(() => undefined);
  await Promise.race([heard, late]);
  stop.abort();
}

/**
 * Who waits for which job on one broker: one connection for all of them. It stays a moment longer than
 * the last of them, who may be back with the next job, and keeps no program alive for that.
 */
class Listeners {
  #waiting = new Map<string, Set<() => void>>();
  #feed: EventFeed | undefined;
  #ending: NodeJS.Timeout | undefined;
  #pauseUntil = 0;

  constructor(private readonly broker: Broker) {}

  add(jobId: string): { next: () => Promise<void>; remove: () => void } {
    const here = this.#waiting.get(jobId) ?? new Set();
    this.#waiting.set(jobId, here);
    let wake = () => {};
    const hear = () => wake();
    here.add(hear);
    this.#listen();
    return {
      next: () => new Promise((resolve) => (wake = resolve)),
      remove: () => {
        here.delete(hear);
        if (here.size === 0 && this.#waiting.get(jobId) === here) this.#waiting.delete(jobId);
        if (this.#waiting.size === 0) this.#linger();
      },
    };
  }

  #linger(): void {
    clearTimeout(this.#ending);
    if (this.#feed?.connected !== true) return this.#end(this.#feed);
    this.#feed.hold(false);
    this.#ending = setTimeout(() => this.#end(this.#feed), LINGER_MS).unref();
  }

  #listen(): void {
    clearTimeout(this.#ending);
    this.#feed?.hold(true);
    if (this.#feed !== undefined || performance.now() < this.#pauseUntil) return;
    const feed = new EventFeed(this.broker);
    this.#feed = feed;
    feed
      .start()
      .then(() => feed.run(({ jobId }) => this.#waiting.get(jobId)?.forEach((wake) => wake())))
      .catch(() => {
        // Without Redis everybody looks at the files by themselves.
        this.#pauseUntil = performance.now() + PAUSE_AFTER_FAILURE_MS;
      })
      .finally(() => this.#end(feed));
  }

  #end(feed: EventFeed | undefined): void {
    feed?.stop();
    if (this.#feed === feed) this.#feed = undefined;
  }
}

const listeners = new WeakMap<Broker, Listeners>();

function listenersOf(broker: Broker): Listeners {
  let found = listeners.get(broker);
  if (found === undefined) {
    found = new Listeners(broker);
    listeners.set(broker, found);
  }
  return found;
}
