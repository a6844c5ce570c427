// The published catalog, read through @duckdb/node-api. It is replaced by rename: a reader attaches
// the newest file and never meets the writer.

import { stat } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

import type { DuckDBConnection, DuckDBInstance } from "@duckdb/node-api";

import { BusError, problem, Unavailable } from "./errors.js";
import type { Lake } from "./lake.js";

type Duck = typeof import("@duckdb/node-api");
type Bound = string | number | null;

const VISIBLE_WITHIN_MS = 10_000;

/** One DuckDB in memory with the newest snapshot attached. Queries run one after the other. */
export class Catalog {
  #turn: Promise<unknown> = Promise.resolve();
  #instance: DuckDBInstance | undefined;
  #connection: DuckDBConnection | undefined;
  #shown = "";
  #wantedSeq = 0;

  constructor(private readonly lake: Lake) {}

  /** Answer later queries only from a snapshot that knows this commit. */
  wantSeq(seq: number): void {
    this.#wantedSeq = Math.max(this.#wantedSeq, seq);
  }

  /** Rows of one SELECT over `catalog.*` and `canon.*`. Rejects with E508 without a catalog. */
  select<T>(sql: string, values: Record<string, Bound> = {}): Promise<T[]> {
    return this.#inTurn(async () => {
      const db = await this.#newest();
      return (await db.runAndReadAll(sql, values)).getRowObjectsJS() as T[];
    });
  }

  /** Let DuckDB go; the next query starts it again. */
  close(): Promise<void> {
    return this.#inTurn(async () => this.#drop());
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work);
    this.#turn = result.catch(() => undefined);
    return result;
  }

  async #newest(): Promise<DuckDBConnection> {
    const deadline = performance.now() + VISIBLE_WITHIN_MS;
    for (;;) {
      const db = await this.#attached();
      if (this.#wantedSeq === 0) return db;
      const reader = await db.runAndReadAll("SELECT applied_seq::DOUBLE FROM catalog.applied_v");
      if (Number(reader.getRowsJS()[0]?.[0] ?? 0) >= this.#wantedSeq) {
        this.#wantedSeq = 0;
        return db;
      }
      if (performance.now() > deadline) {
        throw new Unavailable(problem("E508", this.lake.catalog, `the catalog does not show commit ${this.#wantedSeq} yet`));
      }
      await sleep(10);
    }
  }

  async #attached(): Promise<DuckDBConnection> {
    try {
      const published = await identity(this.lake.catalog);
      if (this.#connection === undefined) {
        this.#instance = await (await duckdb()).DuckDBInstance.create(":memory:", {
          threads: "2",
          memory_limit: "1GB",
          temp_directory: "",
          autoinstall_known_extensions: "false",
          autoload_known_extensions: "false",
        });
        this.#connection = await this.#instance.connect();
        await this.#connection.run("SET TimeZone = 'UTC'");
      } else if (this.#shown === published) {
        return this.#connection;
      } else {
        await this.#connection.run("USE memory");
        await this.#connection.run("DETACH bus");
      }
      await this.#connection.run(`ATTACH ${literal(this.lake.catalog)} AS bus (READ_ONLY)`);
      await this.#connection.run("USE bus");
      this.#shown = published; // what was there before we opened it: at worst it is opened again
      return this.#connection;
    } catch (error) {
      this.#drop();
      if (error instanceof BusError) throw error;
      throw new Unavailable(problem("E508", this.lake.catalog, String(error)), [], { cause: error });
    }
  }

  #drop(): void {
    this.#connection?.closeSync();
    this.#instance?.closeSync();
    this.#connection = this.#instance = undefined;
    this.#shown = "";
  }
}

/** Write a CSV file as Parquet; types are what all of its rows allow, or what `types` says. */
export async function csvToParquet(source: string, target: string, types: Readonly<Record<string, string>>): Promise<void> {
  const instance = await (await duckdb()).DuckDBInstance.create(":memory:", { threads: "2" });
  const connection = await instance.connect();
  const told = Object.entries(types).map(([name, type]) => `${literal(name)}: ${literal(type)}`);
  const more = told.length > 0 ? `, types = {${told.join(", ")}}` : "";
  try {
    await connection.run(
      `COPY (FROM read_csv(${literal(unglobbed(source))}, header = true, sample_size = -1${more})) TO ${literal(target)} (FORMAT parquet)`,
    );
  } catch (error) {
    throw new BusError(problem("E601", source, String(error)), [], { cause: error });
  } finally {
    connection.closeSync();
    instance.closeSync();
  }
}

async function duckdb(): Promise<Duck> {
  try {
    return await import("@duckdb/node-api");
  } catch (error) {
    const hint = "Run `npm install @duckdb/node-api`.";
    throw new Unavailable(problem("E508", "@duckdb/node-api", "not installed", hint), [], { cause: error });
  }
}

async function identity(path: string): Promise<string> {
  const { dev, ino, size, mtimeNs } = await stat(path, { bigint: true });
  return [dev, ino, size, mtimeNs].join(" ");
}

function literal(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}

/** A path as a pattern that means only itself. */
function unglobbed(path: string): string {
  return path.replace(/[*?[]/g, "[$&]");
}
