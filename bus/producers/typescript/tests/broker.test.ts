import { mkdir, writeFile } from "node:fs/promises";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { join } from "node:path";

import { Redis } from "ioredis";
import { expect, onTestFinished, test } from "vitest";

import { onCommitted, type RedisClient, submitArtifact } from "../src/index.js";
import { inbox, MINE, newLake, rejection, ROWS } from "./lakes.js";

/** A Redis that remembers what was said to it, and answers with what it is given. */
function fakeRedis(reply: (command: string, args: string[]) => unknown = () => 1) {
  const said: string[][] = [];
  const client: RedisClient = {
    call: async (command, ...args) => {
      said.push([command.toLowerCase(), ...args]);
      return reply(command, args);
    },
    duplicate: () => client,
    disconnect: () => {},
  };
  return { client, said };
}

/** A server that answers 1 to every command, and writes endpoint.json of `lake` to say so. */
async function startBus(lake: string) {
  let heard = "";
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket.on("error", () => {}));
    socket.on("data", (data) => {
      heard += String(data);
      socket.write(":1\r\n".repeat(String(data).match(/^\*\d+\r$/gm)?.length ?? 0));
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const stop = () => {
    server.close();
    for (const socket of sockets) socket.destroy();
  };
  onTestFinished(stop);
  await mkdir(join(lake, "bus"), { recursive: true });
  const url = `redis://127.0.0.1:${(server.address() as AddressInfo).port}`;
  await writeFile(join(lake, "bus", "endpoint.json"), JSON.stringify({ url, prefix: "" }));
  return { stop, heard: () => heard };
}

/** A port behind which nobody ever says anything. */
async function silentServer(): Promise<string> {
  const server = createServer((socket) => socket.on("error", () => {}));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void server.close());
  return `redis://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

test("the bell is one line to bus:notify, behind the lake's prefix", async () => {
  const lake = await newLake();
  const { client, said } = fakeRedis();
  const { jobId } = await submitArtifact({ ...MINE, lake, rows: ROWS, redis: client, redisPrefix: "mine:" });
  expect(said).toEqual([["lpush", "mine:bus:notify", JSON.stringify({ job_id: jobId })]]);
});

test("endpoint.json says which prefix the running bus has", async () => {
  const lake = await newLake();
  await mkdir(join(lake, "bus"), { recursive: true });
  await writeFile(join(lake, "bus", "endpoint.json"), JSON.stringify({ url: "redis://x", prefix: "bus-1:" }));
  const { client, said } = fakeRedis();
  await submitArtifact({ ...MINE, lake, rows: ROWS, redis: client });
  expect(said[0]?.[1]).toBe("bus-1:bus:notify");
});

test("a bus that is started later, or again elsewhere, is rung", async () => {
  const lake = await newLake();
  const mine = { runId: "run-1", producer: "tester", kind: "things", rows: ROWS, lake };
  await submitArtifact(mine);
  const first = await startBus(lake);
  expect(first.heard()).not.toContain("bus:notify");
  const { jobId } = await submitArtifact(mine);
  expect(first.heard()).toContain(JSON.stringify({ job_id: jobId }));
  first.stop();
  const second = await startBus(lake);
  const later = await submitArtifact(mine);
  expect(second.heard()).toContain(JSON.stringify({ job_id: later.jobId }));
});

test("a client of ioredis will do", () => {
  const client: RedisClient = new Redis({ lazyConnect: true });
  client.disconnect();
});

test("a Redis that refuses fails no submission", async () => {
  const lake = await newLake();
  const { client } = fakeRedis(() => Promise.reject(new Error("NOPERM")));
  const { jobId } = await submitArtifact({ ...MINE, lake, rows: ROWS, redis: client });
  expect(await inbox(lake)).toEqual([jobId]);
});

test("a Redis that hangs costs a fifth of a second, once a second", async () => {
  const lake = await newLake();
  const redis = await silentServer();
  await submitArtifact({ ...MINE, lake, rows: ROWS }); // modules are loaded
  await import("ioredis");
  const took = async () => {
    const begun = performance.now();
    await submitArtifact({ ...MINE, lake, rows: ROWS, redis });
    return performance.now() - begun;
  };
  const [first, second] = [await took(), await took()];
  expect(first).toBeGreaterThan(150);
  expect(first).toBeLessThan(1000); // 200 ms on a machine that does nothing else
  expect(second).toBeLessThan(190);
});

test("a Redis that is not there fails no submission", async () => {
  const lake = await newLake();
  const { jobId } = await submitArtifact({ ...MINE, lake, rows: ROWS, redis: "redis://127.0.0.1:1" });
  expect(await inbox(lake)).toEqual([jobId]);
});

test("who listens without a Redis is told so", async () => {
  const lake = await newLake();
  expect(await rejection(onCommitted({}, () => {}, { lake }))).toMatchObject({ code: "E501" });
  const redis = "redis://127.0.0.1:1";
  expect(await rejection(onCommitted({}, () => {}, { lake, redis }))).toMatchObject({ code: "E501" });
});

const entry = (id: string, kind: string, outcome = "committed") => [
  id,
  ["job_id", `job-${id}`, "outcome", outcome, "seq", "7", "run_id", "null", "producer", "p", "kind", kind, "at", "now", "artifacts", '[{"artifact_id":"a","name":"n","kind":"inner"}]', "problems", "[]"],
];

test("a handler is told what fits its filter, in order, and an interrupted reader goes on where it was", async () => {
  const lake = await newLake();
  const replies: unknown[] = [
    [["bus:events", [entry("1", "mine"), entry("2", "other"), entry("3", "mine", "rejected")]]],
    new Error("connection lost"),
    null,
    ["bus:events", [entry("4", "mine")]], // as RESP3 is mapped by some clients
    { "bus:events": [entry("5", "mine"), ["6", ["what", "ever"]]] },
  ];
  const { client, said } = fakeRedis((command) => {
    if (command === "xrevrange") return [["0-7", []]];
    const reply = replies.shift();
    if (reply === undefined) return new Promise(() => {});
    return reply instanceof Error ? Promise.reject(reply) : reply;
  });
  const heard: string[] = [];
  const all = new Promise<void>((resolve) => {
    void onCommitted({ kind: "mine" }, (event) => {
      heard.push(event.jobId);
      expect(event).toMatchObject({ seq: 7, runId: undefined, producer: "p", artifacts: [{ artifactId: "a", name: "n", kind: "inner" }] });
      if (heard.length === 3) resolve();
    }, { lake, redis: client });
  });
  await all;
  expect(heard).toEqual(["job-1", "job-4", "job-5"]);
  expect(said.filter(([command]) => command === "xread").map((command) => command.at(-1)).slice(0, 4)).toEqual(["0-7", "3", "3", "3"]);
});

test("a handler that throws ends the subscription with what it threw", async () => {
  const lake = await newLake();
  const { client } = fakeRedis((command) => (command === "xrevrange" ? [] : [["bus:events", [entry("1", "mine")]]]));
  const wrong = new Error("wrong");
  const { done } = await onCommitted({}, () => Promise.reject(wrong), { lake, redis: client });
  expect(await rejection(done)).toBe(wrong);
});
