/**
 * What a runner holds and owes: leases, results without a receipt, and what is to be said next.
 *
 * Pure bookkeeping. No clock, no timers, no sockets: the session performs what the ledger decides. A lease is held from
 * its assignment until the receipt of its result, and every regular heartbeat names exactly the held ones; an execution
 * whose lease is lost is stopped, and its result goes nowhere.
 *
 * New assignments are accepted at once, by a heartbeat that names only them. It must not name the others: a lease whose
 * receipt is on its way would be answered as lost, one message for each, and a busy runner always has some.
 */
import type { Lease } from "../gen/errand/v1/job.js";
import type { AttachRequest, CommandReply, LogLine, Result, ResultReceipt } from "../gen/errand/v1/runners.js";
import { Outbox } from "./outbox.js";
import { type LeaseKey, leaseKey } from "./messages.js";

/** One message to the service. */
export type Said = NonNullable<AttachRequest["message"]>;

/** What to do with an assignment: `duplicate` is held or done already, `released` found no room and is handed back. */
export type Decision = "start" | "duplicate" | "released";

/** `releasing`: the runner leaves. `lost`: the lease is gone, and nobody wants the result. */
type Execution = "running" | "releasing" | "lost";

/** How an execution ended, as the wire has it. */
export type WireOutcome = NonNullable<Result["outcome"]>;

/** Accepted attempts remembered, so that a repeated assignment is recognised. */
const SPENT_MAX = 4_096;

/** See the module. */
export class Ledger {
  readonly #executions = new Map<LeaseKey, Execution>();
  readonly #leases = new Map<LeaseKey, Lease>();
  readonly #unreceipted = new Map<LeaseKey, Result>();
  readonly #spent = new Set<LeaseKey>();
  /** The same in the order in which they were spent: to look for a set's oldest member costs more than all else here. */
  readonly #spentRing: LeaseKey[] = [];
  /** Where the next one goes, in the place of the oldest. */
  #spentNext = 0;
  readonly #outbox: Outbox;
  /** Assigned since the last heartbeat. */
  #toAccept: LeaseKey[] = [];
  #lost = 0;
  /** What the service was told last. */
  #announced: number;
  /** What it should know. */
  #capacity: number;

  /** `forgotten` hears how many bytes of progress have left the queue, sent or not. */
  constructor(capacity: number, forgotten: (bytes: number) => void = () => undefined) {
    this.#capacity = capacity;
    this.#announced = capacity;
    this.#outbox = new Outbox(forgotten);
  }

  /** Every lease held: running, or ended without a receipt so far. */
  leases(): Lease[] {
    return [...this.#leases.values()];
  }

  /** Executions that hold a lease. */
  get running(): number {
    return this.#executions.size - this.#lost;
  }

  /** Results without a receipt. */
  get owed(): number {
    return this.#unreceipted.size;
  }

  /** True while something executes, even without a lease. */
  get isBusy(): boolean {
    return this.#executions.size > 0;
  }

  /** True once nothing runs and nothing is left to say. */
  get isSettled(): boolean {
    return !this.isBusy && this.#unreceipted.size === 0 && !this.#outbox.hasReplies;
  }

  /** How many executions it may hold. */
  get capacity(): number {
    return this.#capacity;
  }

  setCapacity(capacity: number): void {
    this.#capacity = capacity;
  }

  /** The leases have to be named again. */
  heartbeatDue(): void {
    this.#outbox.heartbeatDue = true;
  }

  /** A stream is up, and was opened with `capacity`. Returns the executions to stop. */
  welcomed(capacity: number, lost: readonly Lease[]): LeaseKey[] {
    this.#announced = capacity;
    this.heartbeatDue();
    const stopped = lost.map(keyOf).filter((key) => this.lose(key));
    // Whatever was said on the stream before may not have been heard.
    this.#outbox.repeatResults(this.#unreceipted.keys());
    return stopped;
  }

  /** Takes an assignment, or says why not. */
  assign(lease: Lease): Decision {
    const key = keyOf(lease);
    if (this.#unreceipted.has(key)) {
      // Still owed: say it again rather than run it again.
      this.#outbox.result(key);
      return "duplicate";
    }
    if (this.#spent.has(key)) return "duplicate";
    const execution = this.#executions.get(key);
    if (execution !== undefined && execution !== "lost") return "duplicate";
    // Where its first execution is still ending, it cannot start here.
    if (execution === undefined && this.running < this.#capacity) {
      this.#executions.set(key, "running");
      this.#leases.set(key, lease);
      // At once: an assignment that no heartbeat names goes to another runner.
      this.#toAccept.push(key);
      return "start";
    }
    this.#owe(key, lease, { $case: "released", value: {} }, undefined);
    return "released";
  }

  /** An execution ended. Returns what is owed for it; undefined where nobody wants it. */
  finished(key: LeaseKey, outcome: WireOutcome, metadataJson: string | undefined): WireOutcome | undefined {
    const execution = this.#executions.get(key);
    const lease = this.#leases.get(key);
    if (execution === undefined) return undefined;
    this.#executions.delete(key);
    if (execution === "lost") this.#lost -= 1;
    if (execution === "lost" || lease === undefined) return undefined;
    const handsBack = execution === "releasing" && outcome.$case !== "completed";
    const owed: WireOutcome = handsBack ? { $case: "released", value: {} } : outcome;
    this.#owe(key, lease, owed, metadataJson);
    return owed;
  }

  #owe(key: LeaseKey, lease: Lease, outcome: WireOutcome, metadataJson: string | undefined): void {
    this.#leases.set(key, lease);
    this.#unreceipted.set(key, { lease, outcome, metadataJson });
    this.#outbox.result(key);
  }

  /** The service has these results. */
  receipted(receipts: readonly ResultReceipt[]): void {
    for (const receipt of receipts) {
      if (receipt.lease === undefined) continue;
      const key = keyOf(receipt.lease);
      const result = this.#unreceipted.get(key);
      if (result === undefined) continue;
      this.#unreceipted.delete(key);
      this.#leases.delete(key);
      // A released attempt may come again under the same number; a discarded one might.
      if (receipt.accepted && result.outcome?.$case !== "released") this.#spend(key);
    }
  }

  #spend(key: LeaseKey): void {
    const oldest = this.#spentRing[this.#spentNext];
    if (oldest !== undefined) this.#spent.delete(oldest);
    this.#spentRing[this.#spentNext] = key;
    this.#spentNext = (this.#spentNext + 1) % SPENT_MAX;
    this.#spent.add(key);
  }

  /** The lease is gone. True where an execution has to be stopped. */
  lose(key: LeaseKey): boolean {
    this.#unreceipted.delete(key);
    this.#leases.delete(key);
    const execution = this.#executions.get(key);
    if (execution === undefined || execution === "lost") return false;
    this.#executions.set(key, "lost");
    this.#lost += 1;
    return true;
  }

  /** True where the lease's execution runs. */
  holds(key: LeaseKey): boolean {
    return this.#leases.has(key);
  }

  /** The runner leaves at once: what ends without a result is handed back. Returns the executions to stop. */
  release(): LeaseKey[] {
    for (const [key, execution] of this.#executions) {
      if (execution === "running") this.#executions.set(key, "releasing");
    }
    return [...this.#executions.keys()];
  }

  /** Hands back what has not stopped by itself; what it returns then is nobody's. */
  handBack(): void {
    for (const [key, execution] of [...this.#executions]) {
      if (execution === "releasing") this.finished(key, { $case: "released", value: {} }, undefined);
    }
    this.#executions.clear();
    this.#lost = 0;
  }

  /** What a function reported; `bytes` is what the queue counts it as. */
  progressed(key: LeaseKey, metadataJson: string | undefined, logs: readonly LogLine[], bytes: number): void {
    const lease = this.#leases.get(key);
    this.#outbox.progress(key, lease, metadataJson, logs, bytes);
  }

  /** What a command of the service is answered with. */
  replied(reply: CommandReply): void {
    this.#outbox.reply(reply);
  }

  /** True where there is something to say. */
  get hasOutgoing(): boolean {
    return this.#toAccept.length > 0 || this.#announced !== this.#capacity || !this.#outbox.isEmpty;
  }

  /** The next message to send, most urgent first; undefined where there is none. */
  nextOutgoing(): Said | undefined {
    if (this.#outbox.heartbeatDue) {
      this.#outbox.heartbeatDue = false;
      this.#toAccept = [];
      return { $case: "heartbeat", value: { leases: this.leases() } };
    }
    const accepted = this.#takeAccepted();
    if (accepted.length > 0) return { $case: "heartbeat", value: { leases: accepted } };
    if (this.#announced !== this.#capacity) {
      this.#announced = this.#capacity;
      return { $case: "setCapacity", value: { capacity: this.#capacity } };
    }
    return this.#outbox.next(this.#leases, this.#unreceipted);
  }

  /** The leases of new assignments that were not lost meanwhile. */
  #takeAccepted(): Lease[] {
    if (this.#toAccept.length === 0) return [];
    const keys = this.#toAccept;
    this.#toAccept = [];
    return keys.map((key) => this.#leases.get(key)).filter((lease) => lease !== undefined);
  }
}

function keyOf(lease: Lease): LeaseKey {
  return leaseKey(lease.jobId, lease.attempt);
}
