/**
 * Jobs, events and log lines as publishers and operators read them.
 */
import {
  type Job as WireJob,
  type JobEvent as WireEvent,
  JobEventKind,
  type JobLog as WireLog,
  JobStatus as WireStatus,
} from "../gen/errand/v1/job.js";
import { parsed, parsedObject } from "../json.js";
import { type LogKind, logKindFromWire } from "../log-kind.js";

/** Where a job stands; the four last are its end. */
export type JobStatus = "pending" | "running" | "completed" | "failed" | "canceled" | "expired";

/** A job as the service keeps it. */
export interface Job {
  /** 32 hex digits; they sort by creation time. */
  readonly id: string;
  readonly func: string;
  readonly channel: string;
  readonly status: JobStatus;
  /** The payload; see {@link payloadText} for numbers beyond 2^53. */
  readonly payload: Record<string, unknown>;
  /** The payload as the publisher spelt it. */
  readonly payloadText: string;
  /** What the function reported. */
  readonly metadata: Record<string, unknown>;
  /** What the function returned; null where that was nothing, undefined until it completed. */
  readonly result: unknown;
  /** The result as the function spelt it; empty until it completed. */
  readonly resultText: string;
  /** Executions started so far. */
  readonly attempt: number;
  /** Retries after the first execution. */
  readonly maxRetries: number;
  readonly backoffBase: number;
  readonly backoffMaxSeconds: number;
  readonly broadcast: boolean;
  /** The broadcast job that this one is a part of; empty for others. */
  readonly parentId: string;
  readonly cancelRequested: boolean;
  readonly maxExecSeconds: number | undefined;
  readonly priority: number;
  readonly owner: string;
  readonly idempotencyKey: string;
  /** The runner that has it or had it last; empty before the first. */
  readonly runnerId: string;
  /** Why the last execution failed; empty where none did. */
  readonly lastError: string;
  readonly stackTrace: string;
  readonly traceparent: string;
  readonly created: Date;
  readonly modified: Date;
  /** Set for a delayed job and for one that waits for its next retry. */
  readonly runAt: Date | undefined;
  readonly expiresAt: Date | undefined;
  readonly startedAt: Date | undefined;
  readonly finishedAt: Date | undefined;
}

/** What happened to a job. */
export type JobEventName =
  | "created"
  | "queued"
  | "scheduled"
  | "claimed"
  | "running"
  | "completed"
  | "failed"
  | "retry"
  | "canceled"
  | "expired"
  | "released"
  | "unknown";

/** One line of a job's history. */
export interface JobEvent {
  /** Grows within one job. */
  readonly seq: number;
  readonly jobId: string;
  readonly channel: string;
  readonly event: JobEventName;
  readonly at: Date;
  readonly runnerId: string;
  readonly attempt: number;
  readonly details: Record<string, unknown>;
}

/** A line that a job's function wrote. */
export interface JobLog {
  readonly id: number;
  readonly jobId: string;
  readonly channel: string;
  readonly at: Date;
  readonly kind: LogKind;
  readonly message: string;
  readonly meta: Record<string, unknown>;
}

const STATUSES: Readonly<Record<JobStatus, WireStatus>> = {
  pending: WireStatus.JOB_STATUS_PENDING,
  running: WireStatus.JOB_STATUS_RUNNING,
  completed: WireStatus.JOB_STATUS_COMPLETED,
  failed: WireStatus.JOB_STATUS_FAILED,
  canceled: WireStatus.JOB_STATUS_CANCELED,
  expired: WireStatus.JOB_STATUS_EXPIRED,
};
const STATUS_NAMES = new Map(Object.entries(STATUSES).map(([name, wire]) => [wire, name as JobStatus]));

const EVENT_NAMES: Readonly<Partial<Record<JobEventKind, JobEventName>>> = {
  [JobEventKind.JOB_EVENT_KIND_CREATED]: "created",
  [JobEventKind.JOB_EVENT_KIND_QUEUED]: "queued",
  [JobEventKind.JOB_EVENT_KIND_SCHEDULED]: "scheduled",
  [JobEventKind.JOB_EVENT_KIND_CLAIMED]: "claimed",
  [JobEventKind.JOB_EVENT_KIND_RUNNING]: "running",
  [JobEventKind.JOB_EVENT_KIND_COMPLETED]: "completed",
  [JobEventKind.JOB_EVENT_KIND_FAILED]: "failed",
  [JobEventKind.JOB_EVENT_KIND_RETRY]: "retry",
  [JobEventKind.JOB_EVENT_KIND_CANCELED]: "canceled",
  [JobEventKind.JOB_EVENT_KIND_EXPIRED]: "expired",
  [JobEventKind.JOB_EVENT_KIND_RELEASED]: "released",
};

/** True where a job of that status has ended. */
export function isTerminal(status: JobStatus): boolean {
  return status !== "pending" && status !== "running";
}

/** The status on the wire. */
export function statusToWire(status: JobStatus): WireStatus {
  return STATUSES[status];
}

/** Reads a job. */
export function jobFromWire(wire: WireJob): Job {
  const status = STATUS_NAMES.get(wire.status) ?? "pending";
  return {
    id: wire.id,
    func: wire.func,
    channel: wire.channel,
    status,
    payload: parsedObject(wire.payloadJson),
    payloadText: wire.payloadJson,
    metadata: parsedObject(wire.metadataJson),
    result: status === "completed" ? (parsed(wire.resultJson) ?? null) : undefined,
    resultText: wire.resultJson,
    attempt: wire.attempt,
    maxRetries: wire.maxRetries,
    backoffBase: wire.backoffBase,
    backoffMaxSeconds: wire.backoffMaxSeconds,
    broadcast: wire.broadcast,
    parentId: wire.parentId,
    cancelRequested: wire.cancelRequested,
    maxExecSeconds: wire.maxExecSeconds,
    priority: wire.priority,
    owner: wire.owner,
    idempotencyKey: wire.idempotencyKey,
    runnerId: wire.runnerId,
    lastError: wire.lastError,
    stackTrace: wire.stackTrace,
    traceparent: wire.traceparent,
    created: wire.created ?? new Date(0),
    modified: wire.modified ?? new Date(0),
    runAt: wire.runAt,
    expiresAt: wire.expiresAt,
    startedAt: wire.startedAt,
    finishedAt: wire.finishedAt,
  };
}

/** Reads an event. */
export function eventFromWire(wire: WireEvent): JobEvent {
  return {
    seq: wire.seq,
    jobId: wire.jobId,
    channel: wire.channel,
    event: EVENT_NAMES[wire.kind] ?? "unknown",
    at: wire.at ?? new Date(0),
    runnerId: wire.runnerId,
    attempt: wire.attempt,
    details: parsedObject(wire.detailsJson),
  };
}

/** Reads a log line. */
export function logFromWire(wire: WireLog): JobLog {
  return {
    id: wire.id,
    jobId: wire.jobId,
    channel: wire.channel,
    at: wire.created ?? new Date(0),
    kind: logKindFromWire(wire.kind),
    message: wire.message,
    meta: parsedObject(wire.metaJson),
  };
}
