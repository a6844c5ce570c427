import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { DuckDBInstance } from "@duckdb/node-api";
import { expect, onTestFinished, test } from "vitest";

import { type Columns, parquet, type Row } from "../src/table.js";

async function readBack(rows: readonly Row[], columns?: Columns) {
  const folder = await mkdtemp(join(tmpdir(), "artifact-bus-test-"));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  const path = join(folder, "t.parquet");
  await writeFile(path, parquet(rows, columns));
  const db = await (await DuckDBInstance.create()).connect();
  const types = await db.runAndReadAll(`DESCRIBE FROM '${path}'`);
  const found = await db.runAndReadAll(`FROM '${path}'`);
  return {
    types: Object.fromEntries(types.getRowObjectsJS().map((row) => [row["column_name"], row["column_type"]])),
    rows: found.getRowObjectsJS(),
  };
}

test("a column's type follows from the types of its values, not from their size", async () => {
  const at = new Date("2026-01-08T05:12:33.123Z");
  const row = { n: 3, i: 2n ** 62n, s: "é🚀", b: true, t: at, x: new Uint8Array([0, 255]) };
  const { types, rows } = await readBack([row, { n: 3.5 }, { s: null }]);
  expect(types).toEqual({ n: "DOUBLE", i: "BIGINT", s: "VARCHAR", b: "BOOLEAN", t: "TIMESTAMP WITH TIME ZONE", x: "BLOB" });
  expect(rows[0]).toMatchObject({ n: 3, i: 2n ** 62n, s: "é🚀", b: true, t: at });
  expect(rows[1]).toMatchObject({ n: 3.5, i: null, s: null, b: null, t: null, x: null });
});

test("named types are written, in the named order", async () => {
  const columns = { z: "int32", f: "float32", day: "date", ms: "timestamp[ms]", ns: "timestamp[ns, UTC]", i: "int64", e: "string" } as const;
  const { types, rows } = await readBack([{ i: 7, z: -5, f: 0.5, day: new Date("2026-01-08T23:00:00Z"), ms: 1000n, ns: new Date(1) }], columns);
  expect(Object.entries(types)).toEqual([
    ["z", "INTEGER"],
    ["f", "FLOAT"],
    ["day", "DATE"],
    ["ms", "TIMESTAMP"],
    ["ns", "TIMESTAMP WITH TIME ZONE"],
    ["i", "BIGINT"],
    ["e", "VARCHAR"],
  ]);
  expect(rows[0]).toMatchObject({ z: -5, f: 0.5, day: new Date("2026-01-08"), i: 7n, e: null });
});

test("a table without rows has the columns that are named", async () => {
  expect(await readBack([], { a: "int64", b: "string" })).toEqual({ types: { a: "BIGINT", b: "VARCHAR" }, rows: [] });
});

test("150,000 rows are as many, in two row groups", async () => {
  const { rows } = await readBack(Array.from({ length: 150_000 }, (_, n) => ({ n, s: `text ${n % 100}` })));
  expect([rows.length, rows[149_999]]).toEqual([150_000, { n: 149_999, s: "text 99" }]);
});

test.each<[string, readonly unknown[], Columns | undefined, string]>([
  ["no columns", [], undefined, "rows"],
  ["a column of NULLs only", [{ a: null }], undefined, "a"],
  ["numbers and bigints in one column", [{ a: 1 }, { a: 1n }], undefined, "a"],
  ["a nested value", [{ a: {} }], undefined, "rows[0].a"],
  ["a row that is no object", [1], undefined, "rows[0]"],
  ["an invalid date", [{ a: new Date("x") }], undefined, "rows[0].a"],
  ["text that is no Unicode", [{ a: "\udc00" }], undefined, "rows[0].a"],
  ["an unknown type", [{ a: 1 }], { a: "int7" as never }, "columns.a"],
  ["a fraction as an integer", [{ a: 1 }, { a: 1.5 }], { a: "int64" }, "rows[1].a"],
  ["an integer that a double cannot hold", [{ a: 2 ** 60 }], { a: "int64" }, "rows[0].a"],
  ["an integer out of range", [{ a: 2 ** 31 }], { a: "int32" }, "rows[0].a"],
  ["a bigint out of range", [{ a: 2n ** 63n }], undefined, "rows[0].a"],
  ["text as a number", [{ a: "1" }], { a: "float64" }, "rows[0].a"],
])("%s is refused, and the place is named", (_, rows, columns, where) => {
  expect(() => parquet(rows as Row[], columns)).toThrow(expect.objectContaining({ code: "E601", where }));
});
