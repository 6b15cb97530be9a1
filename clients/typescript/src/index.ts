/**
 * Publish Errand jobs from Node.js, and run them.
 *
 * {@link Client} publishes jobs and follows them; {@link Runner} executes them. Functions can be tested without a
 * service by `runFunction` of `errand-client/testing`.
 *
 * @packageDocumentation
 */
export {
  type Cancellation,
  Client,
  type ClientOptions,
  type JobPage,
  type ListOptions,
  type ListOrderName,
  type LogOptions,
  type LogPage,
  type PublishedJob,
  type Receipt,
  type RetryReceipt,
  type StatusReport,
  type Watched,
} from "./client/client.js";
export type { Job, JobEvent, JobEventName, JobLog, JobStatus } from "./client/job.js";
export type { JobSpec, PublishOptions } from "./client/spec.js";
export type { ConnectionOptions, TlsOptions, Token } from "./connection/servers.js";
export type { CallOptions, TransportOptions } from "./connection/transport.js";
export {
  BusyError,
  ConflictError,
  ErrandError,
  InvalidError,
  JobNotCompletedError,
  NotFoundError,
  PermissionDeniedError,
  RefusedError,
  TimeoutError,
  TooLargeError,
  UnauthenticatedError,
  UnavailableError,
} from "./errors.js";
export { type JsonObject, RawJson } from "./json.js";
export type { LogKind } from "./log-kind.js";
export {
  type JobContext,
  type JobFunction,
  JobStopped,
  Permanent,
  RetryAfter,
  type StopReason,
} from "./runner/context.js";
export type { Around } from "./runner/crew.js";
export { currentJob } from "./runner/current.js";
export { Runner, type RunnerOptions } from "./runner/runner.js";
