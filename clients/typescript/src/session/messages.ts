/**
 * What the two threads of a runner tell each other.
 *
 * Functions execute on the thread that made the runner. The session with the service, its stream and its heartbeats,
 * lives on a thread of its own, so that a function which never gives way costs no lease. Everything here survives a
 * structured clone, and comes in batches: a message costs far more than what is in it.
 */
import type { LogKind } from "../log-kind.js";
import type { Server, TlsOptions } from "../connection/servers.js";

/** Names one attempt of one job: the attempt, a colon, and the job's id. */
export type LeaseKey = string;

/** What the session's thread is started with. */
export interface SessionSettings {
  readonly servers: readonly Server[];
  readonly token: string | undefined;
  /** True where the token has to be asked for anew at each connection. */
  readonly asksForToken: boolean;
  readonly tls: TlsOptions | undefined;
  readonly runnerId: string;
  readonly channels: readonly string[];
  readonly capacity: number;
  readonly hostname: string;
  /** One counter: bytes of log lines and metadata that were handed to the session and not sent so far. */
  readonly progressBytes: SharedArrayBuffer;
}

/** How far the runner should go in leaving. */
export type Leaving = "drain" | "release";

/** How an execution should stop. */
export type Stop = "cancel" | "expire" | "lose" | "release";

/** A job as the session hands it to its function. */
export interface Assigned {
  readonly key: LeaseKey;
  readonly id: string;
  readonly func: string;
  readonly channel: string;
  readonly attempt: number;
  readonly maxRetries: number;
  /** When the service ends the execution, by this machine's clock. */
  readonly deadlineMs: number | undefined;
  readonly payloadText: string;
  readonly metadataText: string;
  readonly traceparent: string;
  readonly owner: string;
  readonly priority: number;
  readonly parentId: string;
}

/** How an execution ended. */
export type Outcome =
  | { readonly kind: "completed"; readonly resultText: string }
  | {
      readonly kind: "failed";
      readonly error: string;
      readonly stackTrace: string;
      readonly permanent: boolean;
      readonly retryAfterSeconds: number | undefined;
    }
  | { readonly kind: "canceled" };

/** An execution that ended. */
export interface Ended {
  readonly key: LeaseKey;
  readonly outcome: Outcome;
  /** The final metadata; undefined where the function never touched it. */
  readonly metadataText: string | undefined;
}

/** One line of a job's log. */
export interface Line {
  readonly at: Date;
  readonly kind: LogKind;
  readonly message: string;
  readonly metaText: string;
}

/** What a function reported while it runs. */
export interface Progress {
  readonly key: LeaseKey;
  readonly metadataText: string | undefined;
  readonly lines: readonly Line[];
  /** What it was counted as. */
  readonly bytes: number;
}

/** From the thread of the functions. */
export type ToSession =
  | { readonly kind: "ended"; readonly ended: readonly Ended[] }
  | { readonly kind: "progress"; readonly progress: Progress }
  | { readonly kind: "leave"; readonly how: Leaving }
  | { readonly kind: "pause"; readonly paused: boolean }
  | { readonly kind: "token"; readonly token: string | undefined }
  | { readonly kind: "reloaded"; readonly commandId: string; readonly data: string; readonly error: string };

/** From the thread of the session. */
export type FromSession =
  | { readonly kind: "connected"; readonly url: string; readonly sessionId: string }
  | { readonly kind: "disconnected"; readonly why: string }
  | { readonly kind: "assigned"; readonly jobs: readonly Assigned[] }
  | { readonly kind: "stop"; readonly keys: readonly LeaseKey[]; readonly how: Stop }
  | { readonly kind: "token" }
  | { readonly kind: "reload"; readonly commandId: string; readonly data: string }
  | { readonly kind: "leaving"; readonly how: Leaving }
  | { readonly kind: "refused"; readonly message: string; readonly code: string; readonly reason: string }
  | { readonly kind: "left"; readonly owed: number };

/** Most bytes of progress that may wait for the session; functions drop lines beyond it. */
export const PROGRESS_BYTES_MAX = 8 * 1024 * 1024;

/** The key of a lease. */
export function leaseKey(jobId: string, attempt: number): LeaseKey {
  return `${attempt}:${jobId}`;
}
