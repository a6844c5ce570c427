// schemas/documents.json, which Python writes, as src/documents.ts: types, schemas, error codes.
// `npm run documents` writes the file; tests/documents.test.ts fails when it is not up to date.
import { readFile, writeFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

import { compile } from "json-schema-to-typescript";

const at = (path) => new URL(`../${path}`, import.meta.url);

/** The text of src/documents.ts. */
export async function documents() {
  const { documents, states, codes } = JSON.parse(await readFile(at("schemas/documents.json"), "utf8"));
  const parts = [
    "// Made by `npm run documents` from schemas/documents.json, which Python makes. Do not edit.",
    `/** Where a job is: the directory it lies in. */\nexport type JobState = ${states.map((s) => `"${s}"`).join(" | ")};\n`,
    `/** What can be wrong; \`codes\` says it in words. */\nexport type ErrorCode = ${Object.keys(codes).map((c) => `"${c}"`).join(" | ")};\n`,
  ];
  // One schema for all, so that a part which two documents share becomes one type.
  const defs = {};
  for (const [name, { $defs, ...schema }] of Object.entries(documents)) Object.assign(defs, $defs, { [name]: schema });
  const names = Object.keys(defs).sort();
  const all = { title: "Documents", $defs: defs, type: "object", additionalProperties: false };
  all.properties = Object.fromEntries(names.map((name) => [name, { $ref: `#/$defs/${name}` }]));
  const types = await compile(all, "Documents", { bannerComment: "", format: true, ignoreMinAndMaxItems: true });
  parts.push(types.replace(/export interface Documents \{.*?\n\}\n/s, ""));
  parts.push("/** Every code in words, and what to do about it. */");
  parts.push(`export const codes: Record<ErrorCode, { label: string; hint: string }> = ${JSON.stringify(codes, null, 2)};\n`);
  parts.push("/** The JSON Schemas of the documents. */");
  parts.push(`export const schemas = ${JSON.stringify(documents)} as const;\n`);
  return parts.join("\n");
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  await writeFile(at("src/documents.ts"), await documents());
}
