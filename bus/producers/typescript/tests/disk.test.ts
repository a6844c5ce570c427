import { appendFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";

import { expect, test, vi } from "vitest";

import { submitArtifact } from "../src/index.js";
import { inbox, MINE, newLake, rejection, ROWS } from "./lakes.js";

const fs = vi.hoisted(() => ({
  afterCopy: undefined as undefined | ((source: string) => Promise<void>),
  full: "",
  log: [] as string[],
}));

vi.mock("node:fs/promises", async (original) => {
  const real = await original<typeof import("node:fs/promises")>();
  return {
    ...real,
    copyFile: async (source: string, target: string, mode?: number) => {
      await real.copyFile(source, target, mode);
      await fs.afterCopy?.(source);
    },
    open: async (path: string, flags?: string) => {
      if (fs.full !== "" && path.endsWith(fs.full)) {
        throw Object.assign(new Error("ENOSPC: no space left on device, open"), { code: "ENOSPC", syscall: "open", path });
      }
      const file = await real.open(path, flags);
      const sync = file.sync.bind(file);
      file.sync = async () => {
        await sync();
        fs.log.push(`sync ${path}`);
      };
      return file;
    },
    rename: async (source: string, target: string) => {
      await real.rename(source, target);
      fs.log.push(`rename ${source} ${target}`);
    },
  };
});

async function newFile(lake: string): Promise<string> {
  const parquetPath = join(dirname(lake), "mine.parquet");
  await writeFile(parquetPath, "bytes");
  return parquetPath;
}

test("everything is durable before the rename shows it, and the rename before the job is acknowledged", async () => {
  const lake = await newLake();
  await submitArtifact({ ...MINE, lake, rows: ROWS, jobId: "job-0" });
  const parquetPath = await newFile(lake);
  fs.log.length = 0;
  await submitArtifact({ ...MINE, lake, parquetPath, jobId: "job-1" });
  const inbox = join(lake, "bus", "inbox");
  const said = fs.log.map((line) => line.replaceAll(inbox, "inbox").replace(/\.staging-job-1-[0-9a-f]{12}/, "staging"));
  expect(said.slice(1, 3).sort()).toEqual(["sync inbox/staging/COMMIT", "sync inbox/staging/manifest.json"]);
  expect([said[0], ...said.slice(3)]).toEqual([
    "sync inbox/staging/000.parquet",
    "sync inbox/staging",
    "rename inbox/staging inbox/job-1",
    "sync inbox",
  ]);
});

test("the directories of a lake that nobody has served yet are durable too", async () => {
  const lake = await newLake();
  fs.log.length = 0;
  await submitArtifact({ ...MINE, lake, rows: ROWS });
  const above = [dirname(lake), lake, join(lake, "bus")].map((path) => `sync ${path}`);
  expect(fs.log.slice(0, 3).sort()).toEqual(above.sort());
});

test("a file that is written to while it is copied is refused", async () => {
  const lake = await newLake();
  await mkdir(lake, { recursive: true });
  const parquetPath = await newFile(lake);
  fs.afterCopy = (source) => appendFile(source, "more");
  try {
    const error = await rejection(submitArtifact({ ...MINE, lake, parquetPath }));
    expect(error).toMatchObject({ code: "E304", where: parquetPath });
  } finally {
    fs.afterCopy = undefined;
  }
  expect(await inbox(lake)).toEqual([]);
  await submitArtifact({ ...MINE, lake, parquetPath });
});

test.each(["000.parquet", "manifest.json", "COMMIT"])("a disk that is full at %s is E504, and nothing is left behind", async (name) => {
  const lake = await newLake();
  await mkdir(lake, { recursive: true });
  const parquetPath = await newFile(lake);
  fs.full = name;
  try {
    expect(await rejection(submitArtifact({ ...MINE, lake, rows: ROWS, required: true }))).toMatchObject({ code: "E504" });
    if (name !== "000.parquet") expect(await rejection(submitArtifact({ ...MINE, lake, parquetPath, required: true }))).toMatchObject({ code: "E504" });
  } finally {
    fs.full = "";
  }
  expect(await inbox(lake)).toEqual([]);
  expect(await readFile(parquetPath, "utf8")).toBe("bytes");
});
