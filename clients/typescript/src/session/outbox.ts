/**
 * What waits to be said, in order: an execution's progress goes before its result.
 *
 * Bounded by what it is fed: results by the runner's capacity, progress by the bytes that functions may have waiting,
 * replies by a limit of their own.
 */
import type { Lease } from "../gen/errand/v1/job.js";
import type { CommandReply, LogLine, Progress, Result } from "../gen/errand/v1/runners.js";
import type { Said } from "./ledger.js";
import type { LeaseKey } from "./messages.js";

/** Results in one message. */
const BATCH_MAX = 256;
/** Bytes of results in one message: below the 4 MiB that gRPC takes by default, with one large result to spare. */
const BATCH_BYTES_MAX = 2 * 1024 * 1024;
/** Lines in one message; the service takes no more. */
const LINES_MAX = 1_000;
/** Bytes of progress in one message. */
const PROGRESS_BYTES_MAX = 1024 * 1024;
/** Replies kept for a service that stopped reading. */
const REPLIES_MAX = 64;
/** Messages taken from the front before the list is shortened. */
const COMPACT_AT = 1_024;

type Item = { readonly result: LeaseKey } | { readonly progress: QueuedProgress };

interface QueuedProgress {
  readonly key: LeaseKey;
  readonly message: Progress;
  bytes: number;
}

/** See the module. */
export class Outbox {
  /** Whether the leases have to be named. */
  heartbeatDue = false;
  readonly #forgotten: (bytes: number) => void;
  #items: Item[] = [];
  /** The first of the items that has not been taken. */
  #front = 0;
  readonly #replies: CommandReply[] = [];
  /** The latest progress of each execution, as long as it waits and there is room in its message. */
  readonly #open = new Map<LeaseKey, QueuedProgress>();

  /** `forgotten` hears how many bytes of progress have left the queue, sent or not. */
  constructor(forgotten: (bytes: number) => void) {
    this.#forgotten = forgotten;
  }

  get hasReplies(): boolean {
    return this.#replies.length > 0;
  }

  get isEmpty(): boolean {
    return !this.heartbeatDue && !this.hasReplies && this.#front === this.#items.length;
  }

  result(key: LeaseKey): void {
    this.#open.delete(key);
    this.#items.push({ result: key });
  }

  /** Forgets which results were to be said, and lines up these. */
  repeatResults(keys: Iterable<LeaseKey>): void {
    const progress = this.#items.slice(this.#front).filter((item) => "progress" in item);
    this.#items = progress;
    this.#front = 0;
    for (const key of keys) this.#items.push({ result: key });
  }

  /** Lines up what an execution reported, in one message with what waits already where it fits. */
  progress(
    key: LeaseKey,
    lease: Lease | undefined,
    metadataJson: string | undefined,
    logs: readonly LogLine[],
    bytes: number,
  ): void {
    if (lease === undefined) {
      this.#forgotten(bytes);
      return;
    }
    const open = this.#open.get(key);
    if (open !== undefined && this.#fits(open, logs.length, bytes)) {
      open.message.logs.push(...logs);
      if (metadataJson !== undefined) open.message.metadataJson = metadataJson;
      open.bytes += bytes;
      return;
    }
    const queued = { key, message: { lease, metadataJson, logs: [...logs] }, bytes };
    this.#open.set(key, queued);
    this.#items.push({ progress: queued });
  }

  #fits(open: QueuedProgress, lines: number, bytes: number): boolean {
    return open.message.logs.length + lines <= LINES_MAX && open.bytes + bytes <= PROGRESS_BYTES_MAX;
  }

  /** A reply more than can be kept is dropped: whoever asked has stopped waiting. */
  reply(reply: CommandReply): void {
    if (this.#replies.length < REPLIES_MAX) this.#replies.push(reply);
  }

  /** The next message; what concerns a lease that is not held is left out. */
  next(held: ReadonlyMap<LeaseKey, Lease>, unreceipted: ReadonlyMap<LeaseKey, Result>): Said | undefined {
    const reply = this.#replies.shift();
    if (reply !== undefined) return { $case: "commandReply", value: reply };
    for (let item = this.#take(); item !== undefined; item = this.#take()) {
      if ("progress" in item) {
        const { key, message, bytes } = item.progress;
        if (this.#open.get(key) === item.progress) this.#open.delete(key);
        this.#forgotten(bytes);
        if (held.has(key)) return { $case: "progress", value: message };
      } else {
        const results = this.#batch(item.result, unreceipted);
        if (results.length > 0) return { $case: "results", value: { results } };
      }
    }
    return undefined;
  }

  #take(): Item | undefined {
    const item = this.#items[this.#front];
    if (item === undefined) return undefined;
    this.#front += 1;
    if (this.#front === this.#items.length || this.#front >= COMPACT_AT) {
      this.#items.splice(0, this.#front);
      this.#front = 0;
    }
    return item;
  }

  /** The result of `first` and those that follow it directly. */
  #batch(first: LeaseKey, unreceipted: ReadonlyMap<LeaseKey, Result>): Result[] {
    const results: Result[] = [];
    let bytes = 0;
    for (let key: LeaseKey | undefined = first; key !== undefined; key = this.#takeResult()) {
      const result = unreceipted.get(key);
      if (result !== undefined) {
        results.push(result);
        bytes += sizeOf(result);
      }
      if (results.length >= BATCH_MAX || bytes >= BATCH_BYTES_MAX) break;
    }
    return results;
  }

  #takeResult(): LeaseKey | undefined {
    const item = this.#items[this.#front];
    if (item === undefined || !("result" in item)) return undefined;
    this.#take();
    return item.result;
  }
}

/** About what a result takes on the wire; texts count three bytes a character where they might. */
function sizeOf({ outcome, metadataJson }: Result): number {
  const texts =
    outcome?.$case === "completed"
      ? outcome.value.resultJson.length
      : outcome?.$case === "failed"
        ? outcome.value.error.length + outcome.value.stackTrace.length
        : 0;
  return 64 + texts + (metadataJson?.length ?? 0);
}
