// A TypeScript producer: makes candles, hands them in, and prints where they lie.
//
// Copy it into a project that has the package (README, "TypeScript"), then:
// node producer.mts [LAKE]     (Node 22.18 or newer; before that: npx tsx producer.mts)

import { type Row, submitArtifact } from "artifact-bus";

const FIRST = Date.UTC(2026, 0, 8);

/** One row a minute. */
function candles(token: string, minutes = 60): Row[] {
  return Array.from({ length: minutes }, (_, n) => ({
    ts: new Date(FIRST + n * 60_000),
    token,
    close: 100 + ((n * 7) % 13),
  }));
}

const [lake] = process.argv.slice(2);
const job = await submitArtifact({
  ...(lake !== undefined && { lake }),
  runId: "example-typescript",
  producer: "typescript-example",
  kind: "example_candles",
  artifactId: "candles",
  logicalKey: "token=SOL",
  rows: candles("SOL"),
  meta: { interval: "1m" },
});
const receipt = await job.done({ timeoutMs: 60_000 });
console.log(receipt.artifacts[0]?.path);
