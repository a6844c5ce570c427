export type { RedisClient, RedisOptions } from "./broker.js";
export { ArtifactStoreClient } from "./store.js";
export type {
  Artifact,
  ArtifactFilter,
  ArtifactLineage,
  ArtifactStatus,
  PublishRequest,
  PublishResult,
  StoreOptions,
} from "./store.js";
export { codes } from "./documents.js";
export type { ErrorCode, JobManifest, JobState, Provenance, Receipt, ReceiptArtifact, RejectReason } from "./documents.js";
export { BusError, Rejected, Unavailable, WaitTimeout } from "./errors.js";
export type { Problem } from "./errors.js";
export { onCommitted } from "./events.js";
export type { BusEvent, EventFilter, SubscribeOptions, Subscription } from "./events.js";
export type { Job, WaitOptions } from "./job.js";
export { submitArtifact, submitArtifacts } from "./submit.js";
export type { JobOptions, Submission } from "./submit.js";
export type { Columns, ColumnType, Row, Value } from "./table.js";
