// Rows as Parquet, in JavaScript. A column's type follows from the JavaScript types of its values,
// never from their size: a price of 3 in one table and 3.5 in the next is a float64 in both.

import { type BasicType, parquetWriteBuffer } from "hyparquet-writer";

import { BusError, problem } from "./errors.js";

/** A value of a row; null and undefined are NULL. */
export type Value = string | number | bigint | boolean | Date | Uint8Array | null | undefined;
export type Row = Readonly<Record<string, Value>>;

/**
 * A column's type, written as in bus.toml. Timestamps take `Date` (milliseconds) or a bigint in the
 * named unit; a date takes a `Date`, of which the UTC day counts.
 */
export type ColumnType =
  | "bool"
  | "int32"
  | "int64"
  | "float32"
  | "float64"
  | "string"
  | "binary"
  | "date"
  | "timestamp[ms, UTC]"
  | "timestamp[us, UTC]"
  | "timestamp[ns, UTC]"
  | "timestamp[ms]"
  | "timestamp[us]"
  | "timestamp[ns]";

/** The columns of a table in their order, where their names and types are not left to the rows. */
export type Columns = Readonly<Record<string, ColumnType>>;

const ROW_GROUP_ROWS = 131_072;
const UNITS = { ms: "MILLIS", us: "MICROS", ns: "NANOS" } as const;

/**
 * A Parquet file of these rows. `columns` names types that JavaScript cannot tell (an int32, a column
 * of NULLs only, a table without rows); others follow from the values: number is float64, bigint
 * int64, string, boolean, Date timestamp[us, UTC], Uint8Array binary.
 *
 * Rejects with E601 what is no table.
 */
export function parquet(rows: readonly Row[], columns: Columns = {}): Uint8Array {
  const types = new Map<string, ColumnType | undefined>(Object.entries(columns));
  rows.forEach((row, index) => {
    if (typeof row !== "object" || row === null || Array.isArray(row)) throw bad(`rows[${index}]`, "is no object");
    for (const name of Object.keys(row)) if (!types.has(name)) types.set(name, undefined);
  });
  if (types.size === 0) throw bad("rows", "no columns: name them in `columns` for a table without rows");
  const found = [...types].map(([name, type]) => column(name, type, rows));
  const schema = [{ name: "root", num_children: found.length }, ...found.map((one) => one.element)];
  const columnData = found.map(({ name, data }) => ({ name, data }));
  try {
    const bytes = parquetWriteBuffer({ columnData, schema, rowGroupSize: ROW_GROUP_ROWS, createdBy: "artifact-bus" });
    return new Uint8Array(bytes);
  } catch (error) {
    throw bad("rows", error instanceof Error ? error.message : String(error), error);
  }
}

type Element = { name: string; repetition_type: "OPTIONAL"; type: Physical; [more: string]: unknown };
type Physical = Exclude<BasicType, "STRING" | "JSON" | "TIMESTAMP" | "UUID" | "FLOAT16" | "GEOMETRY" | "GEOGRAPHY" | "VARIANT">;

function column(name: string, told: ColumnType | undefined, rows: readonly Row[]) {
  const values = rows.map((row) => row[name] ?? null);
  const type = told ?? typeOf(name, values);
  const data = values.map((value, index) => (value === null ? null : converted(value, type, `rows[${index}].${name}`)));
  return { name, data, element: element(name, type) };
}

function element(name: string, type: ColumnType): Element {
  const made = (physical: Physical, more: object = {}): Element => ({
    name,
    repetition_type: "OPTIONAL",
    type: physical,
    ...more,
  });
  switch (type) {
    case "bool":
      return made("BOOLEAN");
    case "int32":
      return made("INT32");
    case "int64":
      return made("INT64");
    case "float32":
      return made("FLOAT");
    case "float64":
      return made("DOUBLE");
    case "string":
      return made("BYTE_ARRAY", { converted_type: "UTF8", logical_type: { type: "STRING" } });
    case "binary":
      return made("BYTE_ARRAY");
    case "date":
      return made("INT32", { converted_type: "DATE", logical_type: { type: "DATE" } });
  }
  const unit = unitOf(type);
  if (unit === undefined) throw bad(`columns.${name}`, `no type ${JSON.stringify(type)}`);
  const isAdjustedToUTC = type.endsWith(", UTC]");
  return made("INT64", { logical_type: { type: "TIMESTAMP", isAdjustedToUTC, unit: UNITS[unit] } });
}

function unitOf(type: string): keyof typeof UNITS | undefined {
  return /^timestamp\[(ms|us|ns)(?:, UTC)?\]$/.exec(type)?.[1] as keyof typeof UNITS | undefined;
}

function typeOf(name: string, values: readonly Value[]): ColumnType {
  const types = new Set<ColumnType>();
  values.forEach((value, index) => {
    if (value !== null) types.add(typeOfValue(value, `rows[${index}].${name}`));
  });
  const [only, another] = types;
  if (only === undefined) throw bad(name, "no value says what type the column has: name it in `columns`");
  if (another !== undefined) throw bad(name, `holds both ${only} and ${another}: convert them, or name one in \`columns\``);
  return only;
}

function typeOfValue(value: Value, where: string): ColumnType {
  switch (typeof value) {
    case "string":
      return "string";
    case "number":
      return "float64";
    case "bigint":
      return "int64";
    case "boolean":
      return "bool";
  }
  if (value instanceof Date) return "timestamp[us, UTC]";
  if (value instanceof Uint8Array) return "binary";
  throw bad(where, "neither text, number, bigint, boolean, Date nor Uint8Array: write nested values as JSON text, or as Parquet");
}

function converted(value: Value, type: ColumnType, where: string): unknown {
  switch (type) {
    case "bool":
      return typeof value === "boolean" ? value : mismatch(value, type, where);
    case "string":
      return typeof value === "string" ? text(value, where) : mismatch(value, type, where);
    case "binary":
      return value instanceof Uint8Array ? value : mismatch(value, type, where);
    case "float32":
    case "float64":
      return typeof value === "number" ? value : mismatch(value, type, where);
    case "int32":
      return Number(integer(value, 32, type, where));
    case "int64":
      return integer(value, 64, type, where);
    case "date":
      return value instanceof Date ? moment(value, where) : mismatch(value, type, where);
  }
  if (!(value instanceof Date)) return integer(value, 64, type, where);
  const unit = unitOf(type) ?? "us";
  const scaled = BigInt(moment(value, where).getTime()) * { ms: 1n, us: 1_000n, ns: 1_000_000n }[unit];
  return integer(scaled, 64, type, where);
}

function integer(value: Value, bits: number, type: ColumnType, where: string): bigint {
  if (typeof value !== "bigint" && !Number.isSafeInteger(value)) return mismatch(value, type, where);
  const whole = BigInt(value as bigint | number);
  return BigInt.asIntN(bits, whole) === whole ? whole : mismatch(value, type, where);
}

function moment(value: Date, where: string): Date {
  if (Number.isNaN(value.getTime())) throw bad(where, "an invalid Date");
  return value;
}

function text(value: string, where: string): string {
  if (!value.isWellFormed()) throw bad(where, "text holds a lone surrogate");
  return value;
}

function mismatch(value: Value, type: ColumnType, where: string): never {
  const shown = typeof value === "object" ? Object.prototype.toString.call(value) : `${typeof value} ${String(value).slice(0, 80)}`;
  throw bad(where, `${shown} is no ${type}`);
}

function bad(where: string, message: string, cause?: unknown): BusError {
  return new BusError(problem("E601", where, message, "Give an array of flat objects, or the path of a Parquet file."), [], { cause });
}
