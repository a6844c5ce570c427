// Tests against the running bus of BUS_LAKE; tests/integration/test_typescript.py starts one.
import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["tests/live/*.test.ts"],
    pool: "threads",
    maxWorkers: 1,
    testTimeout: 60_000,
  },
});
