/**
 * What the service refuses with, as classes by what the caller can do about it.
 *
 * Every error bears the service's `reason`, a word that programs can match on, and its sentence for people. A call
 * whose `AbortSignal` fired rejects with the signal's reason, as everywhere in Node.js.
 */
import { type ServiceError, status } from "@grpc/grpc-js";

import { errorInfo } from "./connection/error-info.js";
import type { Job } from "./client/job.js";

/** What every refusal is. */
export class ErrandError extends Error {
  override readonly name: string = "ErrandError";
  /** The gRPC code, e.g. `NOT_FOUND`. */
  readonly code: string;
  /** The service's word for it, e.g. `JOB_NOT_FOUND`; empty where no service answered. */
  readonly reason: string;

  constructor(message: string, code: string, reason: string) {
    super(message);
    this.code = code;
    this.reason = reason;
  }
}

/** There is no such job or runner, or the token may not see it. */
export class NotFoundError extends ErrandError {
  override readonly name = "NotFoundError";
}

/** No token, or one that is invalid or has expired. */
export class UnauthenticatedError extends ErrandError {
  override readonly name = "UnauthenticatedError";
}

/** The token lacks a permission, which the message names. */
export class PermissionDeniedError extends ErrandError {
  override readonly name = "PermissionDeniedError";
}

/** A field is not as it has to be. */
export class InvalidError extends ErrandError {
  override readonly name: string = "InvalidError";
  /** The field at fault, e.g. `max_retries`; empty where none is named. */
  readonly field: string;

  constructor(message: string, code: string, reason: string, field: string) {
    super(message, code, reason);
    this.field = field;
  }
}

/** The payload, the batch or the message is over a limit. */
export class TooLargeError extends InvalidError {
  override readonly name = "TooLargeError";
}

/** The job is in a state in which that cannot be done, e.g. canceled when it has ended. */
export class RefusedError extends ErrandError {
  override readonly name = "RefusedError";
}

/** The idempotency key was used before, for a job with different content. */
export class ConflictError extends ErrandError {
  override readonly name = "ConflictError";
}

/** The service is at a limit; try again in a moment. */
export class BusyError extends ErrandError {
  override readonly name = "BusyError";
}

/** The service cannot be reached, or is shutting down. Whether it has taken in the call may be unknown. */
export class UnavailableError extends ErrandError {
  override readonly name = "UnavailableError";
}

/** The call took longer than its `timeoutMs`. */
export class TimeoutError extends ErrandError {
  override readonly name = "TimeoutError";
}

/** A job that was waited for has not completed: it failed, was canceled, or expired. */
export class JobNotCompletedError extends Error {
  override readonly name = "JobNotCompletedError";
  /** The job as it ended. */
  readonly job: Job;

  constructor(job: Job) {
    super(`job ${job.id} is ${job.status}${job.lastError === "" ? "" : `: ${job.lastError}`}`);
    this.job = job;
  }
}

type ErrorClass = new (message: string, code: string, reason: string) => ErrandError;

const CLASSES: Partial<Record<status, ErrorClass>> = {
  [status.NOT_FOUND]: NotFoundError,
  [status.UNAUTHENTICATED]: UnauthenticatedError,
  [status.PERMISSION_DENIED]: PermissionDeniedError,
  [status.FAILED_PRECONDITION]: RefusedError,
  [status.ALREADY_EXISTS]: ConflictError,
  [status.RESOURCE_EXHAUSTED]: BusyError,
  [status.UNAVAILABLE]: UnavailableError,
  [status.DEADLINE_EXCEEDED]: TimeoutError,
};

/** Reasons of RESOURCE_EXHAUSTED that trying again does not cure. */
const TOO_LARGE = new Set(["PAYLOAD_TOO_LARGE", "TOO_LARGE"]);

/** The error of a call that ended with a status other than OK. */
export function toError(failure: ServiceError): ErrandError {
  const { reason, field } = errorInfo(failure.metadata);
  const code = status[failure.code];
  const message = failure.details;
  if (TOO_LARGE.has(reason)) return new TooLargeError(message, code, reason, field);
  if (failure.code === status.INVALID_ARGUMENT) return new InvalidError(message, code, reason, field);
  return new (CLASSES[failure.code] ?? ErrandError)(message, code, reason);
}
