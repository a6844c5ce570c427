// What can go wrong. The codes and their hints are Python's, see documents.ts.
//
//   BusError          everything this package rejects with
//   ├── Rejected      the bus refused the job; carries every problem
//   ├── WaitTimeout   no answer yet: the job is safe, ask again later
//   └── Unavailable   the disk, Redis or the catalog is away: nothing is lost, try again

import { codes, type ErrorCode, type RejectReason } from "./documents.js";

/** One finding: `code` what, `where` in which place, `message` in detail, `hint` what to do. */
export interface Problem {
  code: ErrorCode;
  where: string;
  message: string;
  hint: string;
}

/** A `Problem` whose hint defaults to the code's own. */
export function problem(code: ErrorCode, where: string, message: string, hint?: string): Problem {
  return { code, where, message, hint: hint ?? codes[code].hint };
}

/** An error with a code, a place, a hint, and all problems that were found. */
export class BusError extends Error {
  override readonly name: string = "BusError";
  readonly code: ErrorCode;
  readonly where: string;
  readonly hint: string;
  readonly problems: readonly Problem[];

  /** The first problem speaks for all. */
  constructor(first: Problem, more: readonly Problem[] = [], options?: ErrorOptions) {
    super(`${first.code}${first.where && ` at ${first.where}`}: ${first.message} (${first.hint})`, options);
    this.code = first.code;
    this.where = first.where;
    this.hint = first.hint;
    this.problems = [first, ...more];
  }
}

/** The bus refused the job: nothing of it is in the store. */
export class Rejected extends BusError {
  override readonly name = "Rejected";
  /** REJECT_REASON.json. */
  readonly reason: RejectReason;

  constructor(reason: RejectReason) {
    const [first, ...more] = reason.problems as Problem[];
    super(first ?? problem(reason.code as ErrorCode, "", reason.message, reason.hint), more);
    this.reason = reason;
  }
}

/** The answer did not come in time; the job itself is safe. */
export class WaitTimeout extends BusError {
  override readonly name = "WaitTimeout";
}

/** Infrastructure is away; what was handed in before is safe. */
export class Unavailable extends BusError {
  override readonly name = "Unavailable";
}

/** An error made of problems, of which there is at least one. */
export function refused(found: readonly Problem[]): BusError {
  const [first, ...more] = found;
  return new BusError(first as Problem, more);
}

const FULL = new Set(["ENOSPC", "EDQUOT"]);

/** What the operating system refused as `Unavailable` (E504 full disk, E505); others as they are. */
export function ofSystem(error: unknown): unknown {
  if (error instanceof BusError || !isSystem(error)) return error;
  const code = FULL.has(error.code ?? "") ? "E504" : "E505";
  return new Unavailable(problem(code, error.path ?? "", error.message), [], { cause: error });
}

/** Whether `error` came from the operating system, with one of these codes if any are given. */
export function isSystem(error: unknown, ...only: string[]): error is NodeJS.ErrnoException {
  if (!(error instanceof Error) || !("syscall" in error)) return false;
  return only.length === 0 || only.includes(String((error as NodeJS.ErrnoException).code));
}
