// Durable files: what is written here survives a power cut once the promise resolves.

import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { copyFile, type FileHandle, mkdir, open, stat } from "node:fs/promises";
import { dirname } from "node:path";

import { BusError, problem } from "./errors.js";

const CHUNK_BYTES = 1 << 20;

/** Create a file that is not there yet, with these bytes, synced. */
export async function writeDurable(path: string, data: Uint8Array): Promise<void> {
  const file = await open(path, "wx");
  try {
    await file.writeFile(data);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Make a file's bytes, or a directory's names, durable. */
export async function sync(path: string): Promise<void> {
  const file = await open(path, "r");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Make a directory and those above it, durably. */
export async function makeDirectory(path: string): Promise<void> {
  const first = await mkdir(path, { recursive: true });
  if (first === undefined) return;
  for (let made = path; made.length >= first.length; made = dirname(made)) await sync(dirname(made));
}

/** Sync a file, and meanwhile find the SHA-256 of its bytes, in hex, and how many there are. */
export async function syncedDigest(path: string): Promise<{ sha256: string; sizeBytes: number }> {
  const hash = createHash("sha256");
  const file = await open(path, "r");
  try {
    const [sizeBytes] = await Promise.all([read(file, (chunk) => hash.update(chunk)), file.sync()]);
    return { sha256: hash.digest("hex"), sizeBytes };
  } finally {
    await file.close();
  }
}

async function read(file: FileHandle, take: (chunk: Uint8Array) => void): Promise<number> {
  const buffer = Buffer.allocUnsafe(CHUNK_BYTES);
  for (let sizeBytes = 0; ; ) {
    const { bytesRead } = await file.read(buffer, 0, CHUNK_BYTES, sizeBytes);
    if (bytesRead === 0) return sizeBytes;
    take(buffer.subarray(0, bytesRead));
    sizeBytes += bytesRead;
  }
}

/** SHA-256 of bytes, in hex. */
export function sha256(data: Uint8Array | string): string {
  return createHash("sha256").update(data).digest("hex");
}

/**
 * Copy a producer's file, sharing its blocks where the file system can.
 *
 * Rejects with E301 (no such file), E302 (a directory or another thing that is no file), E304 (it was
 * written to while we copied) or E601 (we may not read it).
 */
export async function adopt(source: string, target: string): Promise<void> {
  const before = await facts(source);
  await copyFile(source, target, constants.COPYFILE_FICLONE | constants.COPYFILE_EXCL).catch(unreadable(source));
  if ((await facts(source)) !== before) {
    throw new BusError(problem("E304", source, "the file changed while it was copied", "Submit it when it is complete."));
  }
}

/** What keeps us from a producer's file is the producer's to mend, and no fault of the lake's disk. */
function unreadable(path: string): (error: unknown) => never {
  return (error) => {
    const named = error instanceof Error && "code" in error ? String(error.code) : "";
    // ERR_INVALID_ARG_VALUE: a NUL in the name
    if (["ENOENT", "ENOTDIR", "ENAMETOOLONG", "ELOOP", "ERR_INVALID_ARG_VALUE"].includes(named)) {
      throw new BusError(problem("E301", path, "no such file"), [], { cause: error });
    }
    if (named === "EACCES" || named === "EPERM") {
      const hint = "Give the user who runs this the right to read it.";
      throw new BusError(problem("E601", path, "may not be read", hint), [], { cause: error });
    }
    throw error;
  };
}

async function facts(path: string): Promise<string> {
  const found = await stat(path, { bigint: true }).catch(unreadable(path));
  if (!found.isFile()) throw new BusError(problem("E302", path, "not a regular file"));
  return [found.ino, found.size, found.mtimeNs].join(" ");
}
