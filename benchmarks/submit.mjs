// What the TypeScript client's submit adds to writing its files: `node benchmarks/submit.mjs LAKE ROUNDS`
// prints `{plain_ms, submit_ms, added_ms}`, medians over the rounds. The package must be built, and a
// bus should run on the lake, so that the bell is part of it.

import { randomBytes } from "node:crypto";
import { copyFile, mkdir, mkdtemp, open, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const built = new URL("../bus/producers/typescript/dist/", import.meta.url);
const { submitArtifact } = await import(new URL("index.js", built));
const { parquet } = await import(new URL("table.js", built));

const [lake, rounds] = process.argv.slice(2);
const inbox = join(lake, "bus", "inbox");
const folder = await mkdtemp(join(tmpdir(), "artifact-bus-bench-"));
const source = join(folder, "table.parquet");
await writeFile(source, parquet(Array.from({ length: 5000 }, (_, n) => ({ a: n, b: n / 3, c: `text ${n}`, d: BigInt(n), e: n % 2 === 0 }))));

/** What any program must do that hands in a job: three files, synced, and a rename. */
async function byHand() {
  const path = join(inbox, `.staging-${randomBytes(6).toString("hex")}`);
  await mkdir(path);
  await copyFile(source, join(path, "000.parquet"));
  await synced(join(path, "000.parquet"));
  for (const name of ["manifest.json", "COMMIT"]) {
    const file = await open(join(path, name), "wx");
    await file.writeFile("x".repeat(400));
    await file.sync();
    await file.close();
  }
  await synced(path);
  await rename(path, `${path}-done`);
  await synced(inbox);
  return `${path}-done`;
}

async function synced(path) {
  const file = await open(path, "r");
  await file.sync();
  await file.close();
}

async function timed(action) {
  const begun = performance.now();
  const result = await action();
  return [performance.now() - begun, result];
}

const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
const submit = (n) => submitArtifact({ lake, runId: "bench", producer: "bench", kind: "bench_node", logicalKey: `round=${n}`, parquetPath: source });

await submit("warm");
const plain = [];
const submits = [];
for (let round = 0; round < Number(rounds); round++) {
  const [handMs, path] = await timed(byHand);
  plain.push(handMs);
  await rm(path, { recursive: true });
  submits.push((await timed(() => submit(round)))[0]);
}
const added = submits.map((ms, round) => ms - plain[round]);
await rm(folder, { recursive: true });
console.log(JSON.stringify({ plain_ms: median([...plain]), submit_ms: median([...submits]), added_ms: median(added) }));
