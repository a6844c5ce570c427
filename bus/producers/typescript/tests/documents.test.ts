import { readFile } from "node:fs/promises";

import { expect, test } from "vitest";

// @ts-expect-error: a script without types
import { documents } from "../scripts/documents.mjs";

test("the types are those of the schemas that Python made (else: npm run documents)", async () => {
  const committed = await readFile(new URL("../src/documents.ts", import.meta.url), "utf8");
  expect(committed).toBe(await (documents as () => Promise<string>)());
});
