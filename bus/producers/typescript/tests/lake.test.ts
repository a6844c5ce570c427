import { mkdir, mkdtemp, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterEach, beforeEach, expect, test, vi } from "vitest";

import { findLake } from "../src/lake.js";

let home: string;

beforeEach(async () => {
  home = await realpath(await mkdtemp(join(tmpdir(), "artifact-bus-test-")));
  for (const name of Object.keys(process.env)) if (name.startsWith("BUS_")) vi.stubEnv(name, undefined);
  vi.stubEnv("XDG_STATE_HOME", join(home, "state"));
  vi.spyOn(process, "cwd").mockReturnValue(join(home, "project", "deep"));
});
afterEach(async () => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
  await rm(home, { recursive: true, force: true });
});

async function put(path: string, text = "{}") {
  await mkdir(join(home, path, ".."), { recursive: true });
  await writeFile(join(home, path), text);
}

test("the lake is, in this order: what is said, BUS_LAKE, bus.toml, a running bus, the last one, ./data", async () => {
  expect((await findLake()).root).toBe(join(home, "project", "deep", "data"));
  await put("state/artifact-bus/last-lake", join(home, "last"));
  await put("last/bus/endpoint.json");
  expect((await findLake()).root).toBe(join(home, "last"));
  await put("data/bus/endpoint.json");
  expect((await findLake()).root).toBe(join(home, "data"));
  await put("project/bus.toml", 'lake = "lakes/one"\nredis_url = "redis://toml"\nredis_prefix = "p:"');
  expect(await findLake()).toMatchObject({ root: join(home, "project/lakes/one"), settings: { redisUrl: "redis://toml", redisPrefix: "p:" } });
  vi.stubEnv("BUS_LAKE", join(home, "env"));
  vi.stubEnv("BUS_REDIS_URL", "redis://env");
  expect(await findLake()).toMatchObject({ root: join(home, "env"), settings: { redisUrl: "redis://env" } });
  expect((await findLake(join(home, "said"))).root).toBe(join(home, "said"));
});

test("the documents' bus_config.json names the lake by its bus_root, from above scripts/", async () => {
  await put("project/scripts/bus_config.json", '{"bus_root": "data/bus", "poll_interval_s": 1.0}');
  expect((await findLake()).root).toBe(join(home, "project/data"));
  await put("project/bus_config.json", '{"bus_root": "other/bus"}');
  expect((await findLake()).root).toBe(join(home, "project/other"));
  await put("project/bus.toml", 'lake = "lakes/one"');
  expect((await findLake()).root).toBe(join(home, "project/lakes/one"));
  vi.stubEnv("BUS_CONFIG", join(home, "project/scripts/bus_config.json"));
  expect((await findLake()).root).toBe(join(home, "project/data"));
});

test("a bus.toml that cannot be read is an error, not another lake", async () => {
  await put("project/bus.toml", "lake = ");
  await expect(findLake()).rejects.toMatchObject({ code: "E103", where: join(home, "project/bus.toml") });
  vi.stubEnv("BUS_CONFIG", join(home, "nowhere.toml"));
  await expect(findLake()).rejects.toMatchObject({ code: "E103" });
});
