/**
 * Publishing jobs, reading them and steering them.
 */
import { setTimeout as sleep } from "node:timers/promises";

import { type CallOptions, Transport, type TransportOptions } from "../connection/transport.js";
import { BusyError, ErrandError, JobNotCompletedError, TimeoutError, UnavailableError } from "../errors.js";
import type { Job as WireJob } from "../gen/errand/v1/job.js";
import { JobsService, ListOrder } from "../gen/errand/v1/jobs.js";
import type { JsonObject, RawJson } from "../json.js";
import { type LogKind, logKindToWire } from "../log-kind.js";
import {
  eventFromWire,
  isTerminal,
  type Job,
  type JobEvent,
  jobFromWire,
  type JobLog,
  type JobStatus,
  logFromWire,
  statusToWire,
} from "./job.js";
import { type JobSpec, moment, natural, overridesToWire, type PublishOptions, specToWire } from "./spec.js";

/** Settings of a {@link Client}. */
export type ClientOptions = TransportOptions;

/** What came of publishing a job. */
export interface Receipt {
  readonly jobId: string;
  /** True where the idempotency key named a job that was there before. */
  readonly deduplicated: boolean;
}

/** A job that was published. */
export interface PublishedJob extends Job {
  /** True where the idempotency key named a job that was there before. */
  readonly deduplicated: boolean;
}

/** A job, how it came there, and where it waits. */
export interface StatusReport {
  readonly job: Job;
  /** The latest ten, oldest first. */
  readonly recentEvents: JobEvent[];
  /** 1 is next; undefined unless the job is pending. */
  readonly queuePosition: number | undefined;
}

/** Which jobs to list; filters are combined. */
export interface ListOptions {
  readonly channel?: string;
  /** One status or several. */
  readonly status?: JobStatus | readonly JobStatus[];
  readonly func?: string;
  readonly runnerId?: string;
  readonly createdFrom?: Date | string;
  readonly createdTo?: Date | string;
  /** A prefix of the id or of the function's name. */
  readonly search?: string;
  readonly broadcast?: boolean;
  /** The parts of this broadcast job; they are left out otherwise. */
  readonly parentId?: string;
  /** `-` is descending; `-created` unless given. */
  readonly order?: ListOrderName;
  /** At most 1,000; 100 unless given. */
  readonly pageSize?: number;
  /** From the last page. */
  readonly pageToken?: string;
  /** Whether to count all matches. */
  readonly count?: boolean;
}

/** What a list is sorted by. */
export type ListOrderName = `${"" | "-"}${"created" | "modified" | "startedAt" | "finishedAt" | "runAt"}`;

/** One page of a list. */
export interface JobPage {
  readonly jobs: Job[];
  /** For the next page; empty on the last. */
  readonly nextPageToken: string;
  /** Where it was asked for. */
  readonly total: number | undefined;
  /** Whether there may be more than `total`; never up to 10,000. */
  readonly totalIsEstimate: boolean;
}

/** Which log lines to read. */
export interface LogOptions {
  /** All kinds unless given. */
  readonly kinds?: readonly LogKind[];
  readonly pageSize?: number;
  readonly pageToken?: string;
}

/** One page of log lines, oldest first. */
export interface LogPage {
  readonly logs: JobLog[];
  /** For the next page; empty on the last. */
  readonly nextPageToken: string;
}

/** What came of a request to cancel. */
export interface Cancellation {
  readonly job: Job;
  /** True where its runner was gone, and the job was canceled without it. */
  readonly forced: boolean;
}

/** What came of a request to retry. */
export interface RetryReceipt {
  readonly originalJobId: string;
  readonly newJobId: string;
  readonly delayed: boolean;
}

/** Something that happened, with the job as it stood right after. */
export interface Watched {
  readonly event: JobEvent;
  readonly job: Job;
}

const ORDERS: Readonly<Record<ListOrderName, ListOrder>> = {
  created: ListOrder.LIST_ORDER_CREATED,
  "-created": ListOrder.LIST_ORDER_CREATED_DESC,
  modified: ListOrder.LIST_ORDER_MODIFIED,
  "-modified": ListOrder.LIST_ORDER_MODIFIED_DESC,
  startedAt: ListOrder.LIST_ORDER_STARTED_AT,
  "-startedAt": ListOrder.LIST_ORDER_STARTED_AT_DESC,
  finishedAt: ListOrder.LIST_ORDER_FINISHED_AT,
  "-finishedAt": ListOrder.LIST_ORDER_FINISHED_AT_DESC,
  runAt: ListOrder.LIST_ORDER_RUN_AT,
  "-runAt": ListOrder.LIST_ORDER_RUN_AT_DESC,
};
/** After a watch that saw no end. */
const LOOK_AGAIN_MS = 200;
/** How long a job is watched before it is looked at. */
const WATCH_MS = 10_000;
/** The longest that `setTimeout` takes: 24 days. */
const WAIT_MAX_MS = 0x7fff_ffff;

/**
 * Publishes jobs and follows them to their end. One client per process is enough: its calls share a connection.
 *
 * Every method takes an `AbortSignal` among its last options, and rejects with an {@link ErrandError} where the service
 * refuses.
 *
 * @example
 * ```ts
 * const client = new Client({ servers: "http://127.0.0.1:50051", token });
 * const job = await client.publish("emails.send", { to: "ada@example.com" }, { channel: "emails" });
 * console.log(await client.result(job.id));
 * ```
 */
export class Client {
  readonly #transport: Transport;

  /** Connects to nothing yet. */
  constructor(options: ClientOptions = {}) {
    this.#transport = new Transport(options);
  }

  /** Stores a job durably, then answers. */
  async publish(
    func: string,
    payload: JsonObject | RawJson = {},
    options: PublishOptions & CallOptions = {},
  ): Promise<PublishedJob> {
    const spec = specToWire({ ...options, func, payload });
    // Twice under one key is one job.
    const repeat = spec.idempotencyKey === "" ? "harmful" : "harmless";
    const answer = await this.#transport.unary(JobsService.publishJob, { spec }, options, repeat);
    return { ...given(answer.job), deduplicated: answer.deduplicated };
  }

  /** Stores up to 1,000 jobs: all of them, or none. Receipts come in the order of the jobs. */
  async publishBatch(jobs: readonly JobSpec[], options: CallOptions = {}): Promise<Receipt[]> {
    const specs = jobs.map(specToWire);
    const repeat = specs.every((spec) => spec.idempotencyKey !== "") ? "harmless" : "harmful";
    const { receipts } = await this.#transport.unary(JobsService.publishJobs, { specs }, options, repeat);
    return receipts;
  }

  /** Publishes a new job like an old one, but for what `overrides` says. Answers with its id. */
  async publishLike(
    templateJobId: string,
    overrides: Partial<JobSpec> = {},
    options: CallOptions = {},
  ): Promise<string> {
    const request = { templateJobId, overrides: overridesToWire(overrides) };
    const repeat = request.overrides.idempotencyKey === "" ? "harmful" : "harmless";
    const { jobId } = await this.#transport.unary(JobsService.cloneJob, request, options, repeat);
    return jobId;
  }

  /** Reads a job. */
  async get(jobId: string, options: CallOptions = {}): Promise<Job> {
    const answer = await this.#transport.unary(JobsService.getJob, { jobId }, options, "harmless");
    return given(answer.job);
  }

  /** Reads a job with its latest events and its place in the queue. */
  async status(jobId: string, options: CallOptions = {}): Promise<StatusReport> {
    const answer = await this.#transport.unary(JobsService.getJobStatus, { jobId }, options, "harmless");
    return {
      job: given(answer.job),
      recentEvents: answer.recentEvents.map(eventFromWire),
      queuePosition: answer.queuePosition,
    };
  }

  /** Waits until a job has ended, however it did. `timeoutMs` bounds the whole wait; none unless given. */
  async wait(jobId: string, options: CallOptions = {}): Promise<Job> {
    const { signal, timeoutMs, ...others } = options;
    const end = new AbortController();
    const abort = (): void => {
      end.abort(signal?.reason);
    };
    if (signal?.aborted === true) abort();
    signal?.addEventListener("abort", abort, { once: true });
    const giveUp = (): void => {
      end.abort(new TimeoutError(`job ${jobId} has not ended within ${timeoutMs} ms`, "DEADLINE_EXCEEDED", ""));
    };
    const outOfTime = timeoutMs === undefined ? undefined : setTimeout(giveUp, Math.min(timeoutMs, WAIT_MAX_MS));
    try {
      return await this.#ended(jobId, { ...others, signal: end.signal });
    } finally {
      clearTimeout(outOfTime);
      signal?.removeEventListener("abort", abort);
    }
  }

  /** Waits for what a job returns. Rejects with {@link JobNotCompletedError} where it ends otherwise. */
  async result<Result = unknown>(jobId: string, options: CallOptions = {}): Promise<Result> {
    const job = await this.wait(jobId, options);
    if (job.status !== "completed") throw new JobNotCompletedError(job);
    return job.result as Result;
  }

  /** One page of the jobs that match. */
  async list(filter: ListOptions = {}, options: CallOptions = {}): Promise<JobPage> {
    const statuses = filter.status === undefined ? [] : [filter.status].flat();
    const request = {
      channel: filter.channel ?? "",
      statuses: statuses.map(statusToWire),
      func: filter.func ?? "",
      runnerId: filter.runnerId ?? "",
      createdFrom: filter.createdFrom === undefined ? undefined : moment("createdFrom", filter.createdFrom),
      createdTo: filter.createdTo === undefined ? undefined : moment("createdTo", filter.createdTo),
      pageSize: natural("pageSize", filter.pageSize) ?? 0,
      pageToken: filter.pageToken ?? "",
      parentId: filter.parentId ?? "",
      offset: 0,
      search: filter.search ?? "",
      broadcast: filter.broadcast,
      order: filter.order === undefined ? ListOrder.LIST_ORDER_UNSPECIFIED : ORDERS[filter.order],
      count: filter.count ?? false,
    };
    const answer = await this.#transport.unary(JobsService.listJobs, request, options, "harmless");
    return {
      jobs: answer.jobs.map(jobFromWire),
      nextPageToken: answer.nextPageToken,
      total: answer.total,
      totalIsEstimate: answer.totalIsEstimate,
    };
  }

  /** All jobs that match, page by page as they are asked for. */
  async *listAll(filter: ListOptions = {}, options: CallOptions = {}): AsyncGenerator<Job, void, undefined> {
    let pageToken = filter.pageToken ?? "";
    do {
      const page = await this.list({ ...filter, pageToken }, options);
      yield* page.jobs;
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
  }

  /** What happened to a job, oldest first. */
  async events(jobId: string, options: CallOptions = {}): Promise<JobEvent[]> {
    const answer = await this.#transport.unary(JobsService.listJobEvents, { jobId }, options, "harmless");
    return answer.events.map(eventFromWire);
  }

  /** One page of the lines that a job's function wrote. */
  async logs(jobId: string, filter: LogOptions = {}, options: CallOptions = {}): Promise<LogPage> {
    const request = {
      jobId,
      kinds: (filter.kinds ?? []).map(logKindToWire),
      pageSize: natural("pageSize", filter.pageSize) ?? 0,
      pageToken: filter.pageToken ?? "",
    };
    const answer = await this.#transport.unary(JobsService.listJobLogs, request, options, "harmless");
    return { logs: answer.logs.map(logFromWire), nextPageToken: answer.nextPageToken };
  }

  /**
   * Events as they happen: of one job, until it has ended, or of a channel, or of all that the token may see.
   * `timeoutMs` bounds the whole watch; none unless given.
   */
  async *watch(
    what: { readonly jobId?: string; readonly channel?: string } = {},
    options: CallOptions = {},
  ): AsyncGenerator<Watched, void, undefined> {
    const request = { jobId: what.jobId ?? "", channel: what.channel ?? "" };
    for await (const message of this.#transport.stream(JobsService.watchJobs, request, options)) {
      if (message.event !== undefined) yield { event: eventFromWire(message.event), job: given(message.job) };
    }
  }

  /** Cancels a pending job at once, and asks the runner of a running one to stop. */
  async cancel(jobId: string, options: CallOptions = {}): Promise<Cancellation> {
    const answer = await this.#transport.unary(JobsService.cancelJob, { jobId }, options, "harmful");
    return { job: given(answer.job), forced: answer.forced };
  }

  /** Publishes a failed, canceled or expired job anew; the old one stays as it is. */
  async retry(jobId: string, options: { readonly delaySeconds?: number } & CallOptions = {}): Promise<RetryReceipt> {
    const request = { jobId, delaySeconds: natural("delaySeconds", options.delaySeconds) };
    return this.#transport.unary(JobsService.retryJob, request, options, "harmful");
  }

  /** Removes a job with its events and logs; a running one is refused. */
  async delete(jobId: string, options: CallOptions = {}): Promise<void> {
    await this.#transport.unary(JobsService.deleteJob, { jobId }, options, "harmful");
  }

  /** Closes the connections; calls under way fail. */
  close(): void {
    this.#transport.close();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  /**
   * Watches, and looks from time to time: a watch may break off, or end with the node that it is on. A service that is
   * away is waited for, as it keeps the job.
   */
  async #ended(jobId: string, options: CallOptions & { readonly signal: AbortSignal }): Promise<Job> {
    for (;;) {
      try {
        const job = (await this.#watchedEnd(jobId, options)) ?? (await this.get(jobId, options));
        if (isTerminal(job.status)) return job;
      } catch (error) {
        options.signal.throwIfAborted();
        if (!isPassing(error)) throw error;
      }
      await pause(LOOK_AGAIN_MS, options.signal);
    }
  }

  /** The job as the watch saw it end; undefined where it saw no end for a while. */
  async #watchedEnd(jobId: string, options: CallOptions): Promise<Job | undefined> {
    try {
      for await (const { job } of this.watch({ jobId }, { ...options, timeoutMs: WATCH_MS })) {
        if (isTerminal(job.status)) return job;
      }
    } catch (error) {
      if (!isPassing(error)) throw error;
    }
    return undefined;
  }
}

function isPassing(error: unknown): boolean {
  return error instanceof TimeoutError || error instanceof UnavailableError || error instanceof BusyError;
}

async function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  await sleep(milliseconds, undefined, { signal }).catch(() => {
    signal.throwIfAborted();
  });
}

function given(wire: WireJob | undefined): Job {
  if (wire === undefined) throw new ErrandError("the service answered without a job", "INTERNAL", "");
  return jobFromWire(wire);
}
