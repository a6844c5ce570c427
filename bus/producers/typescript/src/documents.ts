// Made by `npm run documents` from schemas/documents.json, which Python makes. Do not edit.
/** Where a job is: the directory it lies in. */
export type JobState = "staged" | "validating" | "ready" | "committed" | "rejected" | "unknown";

/** What can be wrong; `codes` says it in words. */
export type ErrorCode = "E101" | "E102" | "E103" | "E104" | "E105" | "E106" | "E107" | "E108" | "E109" | "E110" | "E111" | "E112" | "E201" | "E202" | "E203" | "E204" | "E205" | "E206" | "E207" | "E208" | "E209" | "E210" | "E211" | "E301" | "E302" | "E303" | "E304" | "E305" | "E306" | "E307" | "E308" | "E309" | "E310" | "E311" | "E312" | "E313" | "E314" | "E315" | "E316" | "E401" | "E402" | "E403" | "E404" | "E405" | "E406" | "E407" | "E501" | "E502" | "E503" | "E504" | "E505" | "E506" | "E507" | "E508" | "E509" | "E510" | "E511" | "E512" | "E513" | "E601";

/**
 * `kind:alias` means `target` from now on; a null target removes it.
 */
export interface Alias {
  op: "alias";
  kind: string;
  alias: string;
  target?: string;
  expect?: string;
}
/**
 * One table of a job, as its producer describes it. `artifact_id` is its name in the run.
 */
export interface ArtifactEntry {
  artifact_id: string;
  kind?: string;
  format?: string;
  relpath: string;
  schema_hint?: string;
  schema_version?: number;
  logical_key?: string;
  rows?: number;
  size_bytes?: number;
  sha256?: string;
  inputs?: string[];
  tags?: {
    [k: string]: string[];
  };
  supersedes?: string[];
}
/**
 * COMMIT as our own clients write it; other producers leave the file empty.
 */
export interface CommitMarker {
  version?: 1;
  manifest_sha256: string;
  submission_id: string;
}
/**
 * Directories of jobs that ended so, and were answered `before` then, may go.
 *
 * The journal keeps what they said.
 */
export interface Discard {
  op: "discard";
  jobs: "committed" | "rejected";
  before: string;
}
/**
 * manifest.json: what a producer submits.
 */
export interface JobManifest {
  version?: 1;
  job_id: string;
  run_id: string;
  producer: string;
  kind: string;
  created_at_utc: string;
  /**
   * @maxItems 1000
   */
  artifacts?: ArtifactEntry[];
  /**
   * @maxItems 1000
   */
  mutations?: (
    Supersede | Tombstone | Tag | Untag | Alias | Pin | Unpin | MarkDamaged | Restore | Purge | SetPolicy | Discard
  )[];
  after?: string[];
  provenance?: Provenance;
  meta?: {
    [k: string]: unknown;
  };
}
/**
 * `target` is replaced by `by`; both stay readable.
 */
export interface Supersede {
  op: "supersede";
  target: string;
  by: string;
  expect?: string;
}
/**
 * `target` must not be used any more, because of `reason` (the newest counts); its bytes stay.
 */
export interface Tombstone {
  op: "tombstone";
  target: string;
  reason: string;
  expect?: string;
}
/**
 * `target` carries these tags as well.
 */
export interface Tag {
  op: "tag";
  target: string;
  tags: {
    [k: string]: string[];
  };
}
/**
 * `target` no longer carries these tags; a key without values stands for all that it has.
 */
export interface Untag {
  op: "untag";
  target: string;
  tags: {
    [k: string]: string[];
  };
}
/**
 * These artifacts belong to the named frozen set `pin`; `target` is one reference or many.
 */
export interface Pin {
  op: "pin";
  pin: string;
  target: string[];
}
/**
 * These artifacts leave the set `pin`; a null target empties it.
 */
export interface Unpin {
  op: "unpin";
  pin: string;
  target?: string[];
}
/**
 * The object's bytes are gone or changed, `found` says how; nobody shall start from them.
 *
 * The writer looks again before it takes anyone's word. Every artifact on the object is damaged.
 */
export interface MarkDamaged {
  op: "mark_damaged";
  object: string;
  found: string;
}
/**
 * The object's bytes are what they were again (from a backup, or out of the trash).
 */
export interface Restore {
  op: "restore";
  object: string;
}
/**
 * The object's bytes may go, because of `reason`; what stood on them keeps its facts.
 *
 * The writer looks again: an object that must be kept stays. Comes in a job with nothing else.
 */
export interface Purge {
  op: "purge";
  object: string;
  reason: string;
}
/**
 * How long withdrawn versions of `kind` keep their bytes; neither: as without a policy.
 *
 * `keep_last` newest versions of each logical key, and all for `keep_days` after their end.
 */
export interface SetPolicy {
  op: "set_policy";
  kind: string;
  keep_last?: number;
  keep_days?: number;
}
/**
 * Which program wrote the job, from which commit.
 */
export interface Provenance {
  writer_name?: string;
  writer_version?: string;
  git_commit?: string;
  git_branch?: string;
  git_dirty?: boolean;
  git_diff_sha256?: string;
}
/**
 * A `bus.errors.Problem` inside a document.
 */
export interface ProblemDoc {
  code: string;
  where: string;
  message: string;
  hint: string;
}
/**
 * receipt.json: the job is committed as `seq`.
 */
export interface Receipt {
  job_id: string;
  submission_id?: string;
  job_digest?: string;
  seq: number;
  status: string;
  artifacts: ReceiptArtifact[];
  committed_at_utc: string;
  warnings: string[];
}
/**
 * One artifact in a receipt; `path` is absolute and readable at once.
 */
export interface ReceiptArtifact {
  name: string;
  artifact_id: string;
  deduped: boolean;
  mode?: string;
  file_hash: string;
  content_hash: string;
  rows: number;
  path: string;
  warnings: string[];
}
/**
 * REJECT_REASON.json: why, in full; the first problem speaks for all at the top.
 */
export interface RejectReason {
  code: string;
  message: string;
  hint: string;
  problems: ProblemDoc[];
  job_id: string;
  submission_id?: string;
  rejected_at_utc: string;
  seq: number;
}

/** Every code in words, and what to do about it. */
export const codes: Record<ErrorCode, { label: string; hint: string }> = {
  "E101": {
    "label": "manifest missing",
    "hint": "Write manifest.json into the job directory before COMMIT."
  },
  "E102": {
    "label": "manifest is not strict JSON",
    "hint": "Write UTF-8 JSON without NaN or Infinity, without repeated keys, and not truncated."
  },
  "E103": {
    "label": "manifest field invalid",
    "hint": "Correct the named field; data of your own belongs in `meta`."
  },
  "E104": {
    "label": "bad identifier",
    "hint": "Use 1 to 128 of A-Z a-z 0-9 . _ : + = @ ~ - and begin with a letter or a digit."
  },
  "E105": {
    "label": "job id already used for other content",
    "hint": "Submit under a new job_id: a committed job is never changed."
  },
  "E106": {
    "label": "job id differs from the directory",
    "hint": "Name the directory after `job_id`."
  },
  "E107": {
    "label": "manifest exceeds a limit",
    "hint": "Split the job, or move bulky data from the manifest into an artifact."
  },
  "E108": {
    "label": "relpath leaves the job directory",
    "hint": "Give a plain relative path below the job directory, such as trades.parquet."
  },
  "E109": {
    "label": "artifact listed twice",
    "hint": "Give each artifact its own artifact_id and relpath."
  },
  "E110": {
    "label": "unknown format",
    "hint": "Write Parquet and say \"format\": \"parquet\"."
  },
  "E111": {
    "label": "job has nothing to do",
    "hint": "List at least one artifact or one mutation."
  },
  "E112": {
    "label": "COMMIT does not fit the manifest",
    "hint": "Create COMMIT last, and empty: nothing needs to stand in it."
  },
  "E201": {
    "label": "unknown kind",
    "hint": "Declare a spec for the kind in bus.toml, or turn `strict_kinds` off."
  },
  "E202": {
    "label": "missing column",
    "hint": "Write the column; `bus show --kind KIND` lists the contract."
  },
  "E203": {
    "label": "column has the wrong type",
    "hint": "Write the column with the contract's type."
  },
  "E204": {
    "label": "check failed",
    "hint": "Correct the rows that break the named rule."
  },
  "E205": {
    "label": "NULL where none may be",
    "hint": "Fill the column, or drop the rows without a value."
  },
  "E206": {
    "label": "key not unique",
    "hint": "Write one row for each key."
  },
  "E207": {
    "label": "unknown schema version",
    "hint": "Use a schema_version that the kind declares, or declare the new one."
  },
  "E208": {
    "label": "value does not fit the contract's type",
    "hint": "Write values that convert without loss."
  },
  "E209": {
    "label": "wrong number of rows for this kind",
    "hint": "Write as many rows as the contract says."
  },
  "E210": {
    "label": "contract changed under its version",
    "hint": "Restore the contract in bus.toml, or declare the changed one as a new version."
  },
  "E211": {
    "label": "versions of a contract do not follow",
    "hint": "Declare a migration in the new version: migrate_from_v1 = \"SELECT … FROM old\"."
  },
  "E301": {
    "label": "file missing",
    "hint": "Correct the path; in a job directory, the file lies under its relpath."
  },
  "E302": {
    "label": "not a regular file",
    "hint": "Write plain files: no links, directories, FIFOs, devices."
  },
  "E303": {
    "label": "the validator could not survive this file",
    "hint": "Rewrite the file with a current Parquet writer; keep the original for the bug report."
  },
  "E304": {
    "label": "sha256 mismatch",
    "hint": "Submit the file again: its bytes changed after it was hashed."
  },
  "E305": {
    "label": "row count mismatch",
    "hint": "Write the true number of rows, or leave `rows` out."
  },
  "E306": {
    "label": "job incomplete",
    "hint": "Copy every listed file before COMMIT, then `bus retry JOB`."
  },
  "E307": {
    "label": "not a Parquet file",
    "hint": "Write the table as Parquet."
  },
  "E308": {
    "label": "Parquet file is corrupt",
    "hint": "Write or copy the file again."
  },
  "E309": {
    "label": "Parquet file is encrypted",
    "hint": "Write the file without encryption."
  },
  "E310": {
    "label": "declared or decoded size exceeds the limit",
    "hint": "Split the table, or raise the limit in bus.toml if the file is honest."
  },
  "E311": {
    "label": "column names collide",
    "hint": "Rename columns so that they differ by more than case or Unicode form."
  },
  "E312": {
    "label": "file has no columns",
    "hint": "Write at least one column."
  },
  "E313": {
    "label": "columns nested too deeply",
    "hint": "Flatten the table."
  },
  "E314": {
    "label": "bad column name",
    "hint": "Remove control characters from the column name."
  },
  "E315": {
    "label": "object damaged",
    "hint": "Submit the same rows again, or restore the object from backup."
  },
  "E316": {
    "label": "file still open for writing",
    "hint": "Close the file before COMMIT; the job is taken when it is closed."
  },
  "E401": {
    "label": "reference not found",
    "hint": "Submit the input first, or correct the reference."
  },
  "E402": {
    "label": "reference cycle",
    "hint": "An artifact cannot descend from itself; drop one input."
  },
  "E403": {
    "label": "mutation target not found",
    "hint": "Name an artifact that exists."
  },
  "E404": {
    "label": "reference is ambiguous",
    "hint": "Give more characters of the id."
  },
  "E405": {
    "label": "expectation not met",
    "hint": "Read the present value and submit again."
  },
  "E406": {
    "label": "artifact is tombstoned",
    "hint": "Name another artifact; submitting the same rows again revives this one."
  },
  "E407": {
    "label": "over a limit on tags or pins",
    "hint": "Take away what is not needed, or split it; bulky facts belong in an artifact."
  },
  "E501": {
    "label": "broker unavailable",
    "hint": "Start the bus with `bus up`; staged jobs are safe."
  },
  "E502": {
    "label": "bus already running",
    "hint": "Use the running bus, or stop it with `bus down`."
  },
  "E503": {
    "label": "another writer is at work",
    "hint": "Stop the other writer; one lake has one writer."
  },
  "E504": {
    "label": "disk full",
    "hint": "Free space; nothing is lost and work goes on by itself."
  },
  "E505": {
    "label": "input or output error",
    "hint": "Check the disk and its permissions."
  },
  "E506": {
    "label": "no answer yet",
    "hint": "Look at `bus status`; the job is safe and `bus wait` resumes."
  },
  "E507": {
    "label": "lake not usable",
    "hint": "Use one local file system that supports hard links and rename, owned by you."
  },
  "E508": {
    "label": "catalog not available",
    "hint": "Run `bus rebuild`; the catalog is only a view."
  },
  "E509": {
    "label": "export failed",
    "hint": "Correct the export's SQL in bus.toml; the old file stays."
  },
  "E510": {
    "label": "query refused",
    "hint": "Write one SELECT over catalog.*, canon.* or the exports."
  },
  "E511": {
    "label": "no such thing",
    "hint": "List what exists with `bus jobs`, `bus runs` or `bus show`."
  },
  "E512": {
    "label": "written by a newer release",
    "hint": "Upgrade Artifact Bus here to the release that wrote it; nothing was changed."
  },
  "E513": {
    "label": "backup or restore refused",
    "hint": "Name a backup to read from, and an empty place, or a backup of this lake, to write to."
  },
  "E601": {
    "label": "source data unreadable",
    "hint": "Correct the named line of the source file."
  }
};

/** The JSON Schemas of the documents. */
export const schemas = {"JobManifest":{"$defs":{"Alias":{"additionalProperties":false,"description":"`kind:alias` means `target` from now on; a null target removes it.","title":"Alias","type":"object","properties":{"op":{"const":"alias","type":"string"},"kind":{"pattern":"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$","type":"string"},"alias":{"pattern":"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$","type":"string"},"target":{"type":"string"},"expect":{"type":"string"}},"required":["op","kind","alias"]},"ArtifactEntry":{"additionalProperties":false,"description":"One table of a job, as its producer describes it. `artifact_id` is its name in the run.","title":"ArtifactEntry","type":"object","properties":{"artifact_id":{"pattern":"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$","type":"string"},"kind":{"pattern":"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$","type":"string"},"format":{"default":"parquet","type":"string"},"relpath":{"type":"string"},"schema_hint":{"type":"string"},"schema_version":{"default":1,"maximum":1000000,"minimum":1,"type":"integer"},"logical_key":{"type":"string"},"rows":{"minimum":0,"type":"integer"},"size_bytes":{"minimum":0,"type":"integer"},"sha256":{"type":"string"},"inputs":{"items":{"type":"string"},"type":"array"},"tags":{"additionalProperties":{"items":{"type":"string"},"type":"array"},"default":{},"type":"object"},"supersedes":{"default":[],"items":{"type":"string"},"type":"array"}},"required":["artifact_id","relpath"]},"Discard":{"additionalProperties":false,"description":"Directories of jobs that ended so, and were answered `before` then, may go.\n\nThe journal keeps what they said.","title":"Discard","type":"object","properties":{"op":{"const":"discard","type":"string"},"jobs":{"enum":["committed","rejected"],"type":"string"},"before":{"format":"date-time","type":"string"}},"required":["op","jobs","before"]},"MarkDamaged":{"additionalProperties":false,"description":"The object's bytes are gone or changed, `found` says how; nobody shall start from them.\n\nThe writer looks again before it takes anyone's word. Every artifact on the object is damaged.","title":"MarkDamaged","type":"object","properties":{"op":{"const":"mark_damaged","type":"string"},"object":{"type":"string"},"found":{"type":"string"}},"required":["op","object","found"]},"Pin":{"additionalProperties":false,"description":"These artifacts belong to the named frozen set `pin`; `target` is one reference or many.","title":"Pin","type":"object","properties":{"op":{"const":"pin","type":"string"},"pin":{"pattern":"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$","type":"string"},"target":{"items":{"type":"string"},"type":"array"}},"required":["op","pin","target"]},"Provenance":{"additionalProperties":false,"description":"Which program wrote the job, from which commit.","title":"Provenance","type":"object","properties":{"writer_name":{"type":"string"},"writer_version":{"type":"string"},"git_commit":{"type":"string"},"git_branch":{"type":"string"},"git_dirty":{"type":"boolean"},"git_diff_sha256":{"type":"string"}},"required":[]},"Purge":{"additionalProperties":false,"description":"The object's bytes may go, because of `reason`; what stood on them keeps its facts.\n\nThe writer looks again: an object that must be kept stays. Comes in a job with nothing else.","title":"Purge","type":"object","properties":{"op":{"const":"purge","type":"string"},"object":{"type":"string"},"reason":{"type":"string"}},"required":["op","object","reason"]},"Restore":{"additionalProperties":false,"description":"The object's bytes are what they were again (from a backup, or out of the trash).","title":"Restore","type":"object","properties":{"op":{"const":"restore","type":"string"},"object":{"type":"string"}},"required":["op","object"]},"SetPolicy":{"additionalProperties":false,"description":"How long withdrawn versions of `kind` keep their bytes; neither: as without a policy.\n\n`keep_last` newest versions of each logical key, and all for `keep_days` after their end.","title":"SetPolicy","type":"object","properties":{"op":{"const":"set_policy","type":"string"},"kind":{"pattern":"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$","type":"string"},"keep_last":{"maximum":1000000,"minimum":1,"type":"integer"},"keep_days":{"maximum":100000,"minimum":0,"type":"integer"}},"required":["op","kind"]},"Supersede":{"additionalProperties":false,"description":"`target` is replaced by `by`; both stay readable.","title":"Supersede","type":"object","properties":{"op":{"const":"supersede","type":"string"},"target":{"type":"string"},"by":{"type":"string"},"expect":{"type":"string"}},"required":["op","target","by"]},"Tag":{"additionalProperties":false,"description":"`target` carries these tags as well.","title":"Tag","type":"object","properties":{"op":{"const":"tag","type":"string"},"target":{"type":"string"},"tags":{"additionalProperties":{"items":{"type":"string"},"type":"array"},"type":"object"}},"required":["op","target","tags"]},"Tombstone":{"additionalProperties":false,"description":"`target` must not be used any more, because of `reason` (the newest counts); its bytes stay.","title":"Tombstone","type":"object","properties":{"op":{"const":"tombstone","type":"string"},"target":{"type":"string"},"reason":{"type":"string"},"expect":{"type":"string"}},"required":["op","target","reason"]},"Unpin":{"additionalProperties":false,"description":"These artifacts leave the set `pin`; a null target empties it.","title":"Unpin","type":"object","properties":{"op":{"const":"unpin","type":"string"},"pin":{"pattern":"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$","type":"string"},"target":{"items":{"type":"string"},"type":"array"}},"required":["op","pin"]},"Untag":{"additionalProperties":false,"description":"`target` no longer carries these tags; a key without values stands for all that it has.","title":"Untag","type":"object","properties":{"op":{"const":"untag","type":"string"},"target":{"type":"string"},"tags":{"additionalProperties":{"items":{"type":"string"},"type":"array"},"type":"object"}},"required":["op","target","tags"]}},"additionalProperties":false,"description":"manifest.json: what a producer submits.","title":"JobManifest","type":"object","properties":{"version":{"const":1,"default":1,"type":"integer"},"job_id":{"pattern":"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$","type":"string"},"run_id":{"pattern":"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$","type":"string"},"producer":{"pattern":"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$","type":"string"},"kind":{"pattern":"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$","type":"string"},"created_at_utc":{"format":"date-time","type":"string"},"artifacts":{"default":[],"items":{"$ref":"#/$defs/ArtifactEntry"},"maxItems":1000,"type":"array"},"mutations":{"default":[],"items":{"discriminator":{"mapping":{"alias":"#/$defs/Alias","discard":"#/$defs/Discard","mark_damaged":"#/$defs/MarkDamaged","pin":"#/$defs/Pin","purge":"#/$defs/Purge","restore":"#/$defs/Restore","set_policy":"#/$defs/SetPolicy","supersede":"#/$defs/Supersede","tag":"#/$defs/Tag","tombstone":"#/$defs/Tombstone","unpin":"#/$defs/Unpin","untag":"#/$defs/Untag"},"propertyName":"op"},"oneOf":[{"$ref":"#/$defs/Supersede"},{"$ref":"#/$defs/Tombstone"},{"$ref":"#/$defs/Tag"},{"$ref":"#/$defs/Untag"},{"$ref":"#/$defs/Alias"},{"$ref":"#/$defs/Pin"},{"$ref":"#/$defs/Unpin"},{"$ref":"#/$defs/MarkDamaged"},{"$ref":"#/$defs/Restore"},{"$ref":"#/$defs/Purge"},{"$ref":"#/$defs/SetPolicy"},{"$ref":"#/$defs/Discard"}]},"maxItems":1000,"type":"array"},"after":{"default":[],"items":{"pattern":"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$","type":"string"},"type":"array"},"provenance":{"$ref":"#/$defs/Provenance"},"meta":{"additionalProperties":true,"default":{},"type":"object"}},"required":["job_id","run_id","producer","kind","created_at_utc"]},"CommitMarker":{"additionalProperties":false,"description":"COMMIT as our own clients write it; other producers leave the file empty.","title":"CommitMarker","type":"object","properties":{"version":{"const":1,"default":1,"type":"integer"},"manifest_sha256":{"type":"string"},"submission_id":{"pattern":"^[A-Za-z0-9][A-Za-z0-9._:+=@~-]{0,127}$","type":"string"}},"required":["manifest_sha256","submission_id"]},"Receipt":{"$defs":{"ReceiptArtifact":{"additionalProperties":false,"description":"One artifact in a receipt; `path` is absolute and readable at once.","title":"ReceiptArtifact","type":"object","properties":{"name":{"type":"string"},"artifact_id":{"type":"string"},"deduped":{"type":"boolean"},"mode":{"type":"string"},"file_hash":{"type":"string"},"content_hash":{"type":"string"},"rows":{"type":"integer"},"path":{"type":"string"},"warnings":{"default":[],"items":{"type":"string"},"type":"array"}},"required":["name","artifact_id","deduped","file_hash","content_hash","rows","path","warnings"]}},"additionalProperties":false,"description":"receipt.json: the job is committed as `seq`.","title":"Receipt","type":"object","properties":{"job_id":{"type":"string"},"submission_id":{"type":"string"},"job_digest":{"type":"string"},"seq":{"type":"integer"},"status":{"type":"string"},"artifacts":{"items":{"$ref":"#/$defs/ReceiptArtifact"},"type":"array"},"committed_at_utc":{"type":"string"},"warnings":{"default":[],"items":{"type":"string"},"type":"array"}},"required":["job_id","seq","status","artifacts","committed_at_utc","warnings"]},"RejectReason":{"$defs":{"ProblemDoc":{"additionalProperties":false,"description":"A `bus.errors.Problem` inside a document.","title":"ProblemDoc","type":"object","properties":{"code":{"type":"string"},"where":{"type":"string"},"message":{"type":"string"},"hint":{"type":"string"}},"required":["code","where","message","hint"]}},"additionalProperties":false,"description":"REJECT_REASON.json: why, in full; the first problem speaks for all at the top.","title":"RejectReason","type":"object","properties":{"code":{"type":"string"},"message":{"type":"string"},"hint":{"type":"string"},"problems":{"items":{"$ref":"#/$defs/ProblemDoc"},"type":"array"},"job_id":{"type":"string"},"submission_id":{"type":"string"},"rejected_at_utc":{"type":"string"},"seq":{"type":"integer"}},"required":["code","message","hint","problems","job_id","rejected_at_utc","seq"]}} as const;
