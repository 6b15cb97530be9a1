/**
 * What a publisher says of a job, and how it is put on the wire.
 */
import type { JobSpec as WireSpec } from "../gen/errand/v1/jobs.js";
import { type JsonObject, objectText, type RawJson } from "../json.js";

/** Everything about a job but what it runs. Times are Dates, or texts that `Date` reads. */
export interface PublishOptions {
  /** Whose runners may take it; `default` unless given. */
  readonly channel?: string;
  /** Start no sooner than this from now. */
  readonly delaySeconds?: number;
  /** Start no sooner than this time; wins over `delaySeconds`. */
  readonly runAt?: Date | string;
  /** Give up where it has not started this long after its run time; 900 unless given. */
  readonly expiresInSeconds?: number;
  /** Give up where it has not started by this time; wins over `expiresInSeconds`. */
  readonly expiresAt?: Date | string;
  /** Retries after the first execution; 3 unless given. */
  readonly maxRetries?: number;
  /** The delay before retry k is this to the power of k, in seconds; 2 unless given. */
  readonly backoffBase?: number;
  /** The longest delay before a retry; 3,600 unless given. */
  readonly backoffMaxSeconds?: number;
  /** Every runner of the channel executes it. */
  readonly broadcast?: boolean;
  /** The hard limit of one execution; none unless given. */
  readonly maxExecSeconds?: number;
  /** The same key again answers with the first job; with different content it is a {@link ConflictError}. */
  readonly idempotencyKey?: string;
  /** Higher goes first within a channel; 0 unless given. */
  readonly priority?: number;
}

/** A job to be published. */
export interface JobSpec extends PublishOptions {
  /** What to run, e.g. `emails.send`. */
  readonly func: string;
  /** What the function gets. */
  readonly payload: JsonObject | RawJson;
}

/** Writes a job to be published. */
export function specToWire(spec: JobSpec): WireSpec {
  return overridesToWire(spec);
}

/** Writes what is given and leaves the rest unset. */
export function overridesToWire(spec: Partial<JobSpec>): WireSpec {
  return {
    func: spec.func ?? "",
    payloadJson: spec.payload === undefined ? "" : objectText("payload", spec.payload),
    channel: spec.channel ?? "",
    start: start(spec),
    expiry: expiry(spec),
    maxRetries: natural("maxRetries", spec.maxRetries),
    backoffBase: spec.backoffBase,
    backoffMaxSeconds: natural("backoffMaxSeconds", spec.backoffMaxSeconds),
    broadcast: spec.broadcast,
    maxExecSeconds: natural("maxExecSeconds", spec.maxExecSeconds),
    idempotencyKey: spec.idempotencyKey ?? "",
    priority: spec.priority,
  };
}

function start(spec: PublishOptions): WireSpec["start"] {
  if (spec.runAt !== undefined) return { $case: "runAt", value: moment("runAt", spec.runAt) };
  const value = natural("delaySeconds", spec.delaySeconds);
  return value === undefined ? undefined : { $case: "delaySeconds", value };
}

function expiry(spec: PublishOptions): WireSpec["expiry"] {
  if (spec.expiresAt !== undefined) return { $case: "expiresAt", value: moment("expiresAt", spec.expiresAt) };
  const value = natural("expiresInSeconds", spec.expiresInSeconds);
  return value === undefined ? undefined : { $case: "expiresInSeconds", value };
}

/** Reads a time. */
export function moment(what: string, value: Date | string): Date {
  const date = new Date(value);
  if (Number.isNaN(date.getTime())) throw new TypeError(`${what} must be a time`);
  return date;
}

/** Checks a whole number: the wire would silently cut off a fraction or turn a negative one around. */
export function natural(what: string, value: number | undefined): number | undefined {
  if (value !== undefined && !(Number.isInteger(value) && value >= 0 && value <= 0xffff_ffff)) {
    throw new TypeError(`${what} must be a whole number, 0 or more`);
  }
  return value;
}
