/**
 * The runner's side of the `Attach` protocol.
 *
 * Losing the stream stops nothing: the session dials again, the next server first, names what it holds, and repeats
 * every result that has no receipt. Deliberately absent: how jobs are executed, and how this thread is told apart from
 * the one that executes them.
 */
import type { Lease } from "../gen/errand/v1/job.js";
import { type Command, InterruptReason, type Welcome } from "../gen/errand/v1/runners.js";
import { logKindToWire } from "../log-kind.js";
import { CLIENT } from "../version.js";
import { Backoff } from "./backoff.js";
import { Commands } from "./commands.js";
import { Ledger, type WireOutcome } from "./ledger.js";
import { Link, LinkError, type Told } from "./link.js";
import {
  type Assigned,
  type Ended,
  type FromSession,
  type Leaving,
  leaseKey,
  type LeaseKey,
  type Outcome,
  type SessionSettings,
  type Stop,
  type ToSession,
} from "./messages.js";

/**
 * Tries for a runner id that is taken: an own session of before lapses within the resume window of 2 s, and the first
 * nine delays add up to more.
 */
const TAKEN_TRIES_MAX = 9;
/** A stream that lived this long proves its server; a shorter one counts as a failed attempt. */
const STABLE_MS = 1_000;
/** How long a runner that has nothing left to run tries to hand in its results. */
const FLUSH_MAX_MS = 15_000;
/** How long functions have to stop by themselves before a runner that leaves at once hands their jobs back. */
const STOP_MAX_MS = 500;
/** How long a runner that leaves at once tries to say so. */
const RELEASE_MAX_MS = 5_000;
const HEARTBEAT_DEFAULT_MS = 5_000;
/** How long the other thread may take to get a token before the last one is used again. */
const TOKEN_MAX_MS = 5_000;

/** See the module. `tell` reaches the thread of the functions; `over` is called once, at the very end. */
export class Session {
  readonly #settings: SessionSettings;
  readonly #tell: (message: FromSession) => void;
  readonly #over: () => void;
  readonly #ledger: Ledger;
  readonly #commands: Commands;
  readonly #backoff = new Backoff();
  #link: Link | undefined;
  /** Which server is dialled next. */
  #server = 0;
  #sessionId = "";
  #takenTries = 0;
  #token: string | undefined;
  #tokenWanted: ((token: string | undefined) => void) | undefined;
  #heartbeat: NodeJS.Timeout | undefined;
  /** Accepted, and not handed to the functions so far. */
  #accepted: Assigned[] = [];
  #leaving: Leaving | undefined;
  #leaveBy: NodeJS.Timeout | undefined;
  #paused = false;
  #ended = false;

  constructor(settings: SessionSettings, tell: (message: FromSession) => void, over: () => void) {
    this.#settings = settings;
    this.#tell = tell;
    this.#over = over;
    this.#token = settings.token;
    const waiting = new Int32Array(settings.progressBytes);
    this.#ledger = new Ledger(settings.capacity, (bytes) => Atomics.sub(waiting, 0, bytes));
    this.#commands = new Commands(settings);
    void this.#dial();
  }

  /** Takes a message from the thread of the functions. */
  take(message: ToSession): void {
    switch (message.kind) {
      case "ended":
        for (const ended of message.ended) this.#finish(ended);
        break;
      case "progress": {
        const { key, metadataText, lines, bytes } = message.progress;
        const logs = lines.map(({ at, kind, message, metaText }) => ({
          at,
          kind: logKindToWire(kind),
          message,
          metaJson: metaText,
        }));
        this.#ledger.progressed(key, metadataText, logs, bytes);
        break;
      }
      case "leave":
        this.#leave(message.how);
        break;
      case "pause":
        this.#pause(message.paused);
        break;
      case "token":
        this.#tokenWanted?.(message.token);
        break;
      case "reloaded": {
        const { commandId, data, error } = message;
        this.#ledger.replied({ commandId, dataJson: data, error });
        break;
      }
    }
    this.#goOn();
  }

  /** Opens a stream, after the backoff. What is held is named as it stands: no receipt can come without a stream. */
  async #dial(): Promise<void> {
    await new Promise((resolve) => setTimeout(resolve, this.#backoff.nextMs(Math.random())));
    if (this.#isOver()) return;
    if (this.#settings.asksForToken) this.#token = await this.#freshToken();
    const { servers, tls, runnerId, channels, hostname } = this.#settings;
    const server = servers[this.#server++ % servers.length];
    // There is always a server: the list was checked when it was read.
    if (server === undefined || this.#isOver()) return;
    const hello = {
      runnerId,
      channels: [...channels],
      capacity: this.#ledger.capacity,
      hostname,
      client: CLIENT,
      sessionId: this.#sessionId,
      leases: this.#ledger.leases(),
    };
    try {
      this.#opened(await Link.open(server, tls, this.#token, hello), hello.capacity);
    } catch (error) {
      if (!(error instanceof LinkError)) throw error;
      this.#notOpened(error);
    }
  }

  /** Asked anew after every wait. */
  #isOver(): boolean {
    return this.#ended;
  }

  #freshToken(): Promise<string | undefined> {
    return new Promise((resolve) => {
      const answer = (token: string | undefined): void => {
        clearTimeout(patience);
        this.#tokenWanted = undefined;
        resolve(token);
      };
      const patience = setTimeout(answer, TOKEN_MAX_MS, this.#token);
      this.#tokenWanted = answer;
      this.#tell({ kind: "token" });
    });
  }

  #opened(link: Link, capacity: number): void {
    if (this.#ended) {
      link.drop();
      return;
    }
    this.#link = link;
    this.#sessionId = link.welcome.sessionId;
    const lost = this.#ledger.welcomed(capacity, link.welcome.lost);
    this.#stop(lost, "lose");
    const every = heartbeatMs(link.welcome);
    this.#heartbeat = setInterval(() => {
      this.#ledger.heartbeatDue();
      this.#goOn();
    }, every);
    this.#tell({ kind: "connected", url: link.url, sessionId: this.#sessionId });
    link.listen({
      told: (message) => {
        this.#told(message);
        this.#goOn();
      },
      room: () => {
        this.#goOn();
      },
      lost: (why) => {
        this.#lineLost(why);
      },
    });
    this.#goOn();
  }

  #notOpened(error: LinkError): void {
    const isFirst = this.#sessionId === "";
    const isTaken = error.kind === "taken";
    if (isTaken) this.#takenTries += 1;
    if (isFirst && (error.kind === "refused" || (isTaken && this.#takenTries > TAKEN_TRIES_MAX))) {
      this.#tell({ kind: "refused", message: error.message, code: error.code, reason: error.reason });
      this.#end();
      return;
    }
    if (!isTaken) this.#tell({ kind: "disconnected", why: error.message });
    this.#goOn();
    if (!this.#ended) void this.#dial();
  }

  #lineLost(why: string): void {
    const link = this.#link;
    if (link === undefined) return;
    this.#link = undefined;
    clearInterval(this.#heartbeat);
    link.drop();
    if (Date.now() - link.since >= STABLE_MS) this.#backoff.reset();
    this.#tell({ kind: "disconnected", why });
    this.#goOn();
    if (!this.#ended) void this.#dial();
  }

  #told(message: Told): void {
    switch (message.$case) {
      case "assignments":
        this.#assign(message.value.assignments);
        break;
      case "resultsAccepted":
        this.#ledger.receipted(message.value.receipts);
        break;
      case "interrupt":
        if (message.value.lease !== undefined) this.#interrupt(message.value.lease, message.value.reason);
        break;
      case "command":
        this.#obey(message.value);
        break;
      case "goAway":
        this.#lineLost(`the server goes away: ${message.value.reason}`);
        break;
      case "welcome":
        break;
    }
  }

  #assign(assignments: readonly Assignment[]): void {
    const wasEmpty = this.#accepted.length === 0;
    for (const { lease, job } of assignments) {
      if (lease === undefined || job === undefined) continue;
      if (this.#ledger.assign(lease) === "start") this.#accepted.push(assigned(lease, job));
    }
    if (!wasEmpty || this.#accepted.length === 0) return;
    // The heartbeat that accepts them is on the wire by then. An execution that brings the process down has thus begun
    // for the service too, and costs the job an attempt; it would bring down one runner after the other otherwise.
    setImmediate(() => {
      this.#handOver();
    });
  }

  #handOver(): void {
    const jobs = this.#accepted;
    if (jobs.length === 0) return;
    this.#accepted = [];
    this.#tell({ kind: "assigned", jobs });
  }

  #interrupt(lease: Lease, reason: InterruptReason): void {
    const key = leaseKey(lease.jobId, lease.attempt);
    if (reason === InterruptReason.INTERRUPT_REASON_TIMED_OUT) {
      if (this.#ledger.lose(key)) this.#stop([key], "expire");
    } else if (reason === InterruptReason.INTERRUPT_REASON_LEASE_LOST) {
      if (this.#ledger.lose(key)) this.#stop([key], "lose");
    } else if (this.#ledger.holds(key)) {
      this.#stop([key], "cancel");
    }
  }

  #stop(keys: readonly LeaseKey[], how: Stop): void {
    if (keys.length === 0) return;
    // What is stopped has to be known first.
    this.#handOver();
    this.#tell({ kind: "stop", keys, how });
  }

  #finish({ key, outcome, metadataText }: Ended): void {
    const owed = this.#ledger.finished(key, toWire(outcome), metadataText);
    if (owed !== undefined) this.#commands.count(owed);
  }

  #obey(command: Command): void {
    const order = this.#commands.obey(command, {
      running: this.#ledger.running,
      owed: this.#ledger.owed,
      paused: this.#paused,
      leaving: this.#leaving !== undefined,
    });
    switch (order.kind) {
      case "reload":
        this.#tell({ kind: "reload", commandId: command.commandId, data: command.dataJson });
        return;
      case "pause":
        this.#pause(order.paused);
        break;
      case "leave":
        this.#tell({ kind: "leaving", how: order.how });
        this.#leave(order.how);
        break;
      case "nothing":
        break;
    }
    this.#ledger.replied(order.reply);
  }

  #pause(paused: boolean): void {
    this.#paused = paused;
    this.#ledger.setCapacity(paused || this.#leaving !== undefined ? 0 : this.#settings.capacity);
  }

  #leave(how: Leaving): void {
    if (this.#leaving === how || this.#leaving === "release") return;
    this.#leaving = how;
    this.#ledger.setCapacity(0);
    if (how !== "release") return;
    this.#stop(this.#ledger.release(), "release");
    setTimeout(() => {
      this.#ledger.handBack();
      this.#goOn();
    }, STOP_MAX_MS);
    this.#leaveWithin(RELEASE_MAX_MS);
  }

  #leaveWithin(milliseconds: number): void {
    clearTimeout(this.#leaveBy);
    this.#leaveBy = setTimeout(() => {
      this.#end();
    }, milliseconds);
  }

  /** Says what is to be said, and leaves where that is over. */
  #goOn(): void {
    if (this.#ended) return;
    while (this.#link?.hasRoom === true) {
      const message = this.#ledger.nextOutgoing();
      if (message === undefined) break;
      this.#link.say(message);
    }
    if (this.#leaving === undefined || this.#ledger.isBusy) return;
    if (this.#ledger.isSettled) this.#end();
    else if (this.#leaveBy === undefined) this.#leaveWithin(FLUSH_MAX_MS);
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    clearInterval(this.#heartbeat);
    clearTimeout(this.#leaveBy);
    const link = this.#link;
    this.#link = undefined;
    const left = (): void => {
      this.#tell({ kind: "left", owed: this.#ledger.owed });
      this.#over();
    };
    if (link === undefined) left();
    else void link.close().then(left);
  }
}

type Assignment = Extract<Told, { $case: "assignments" }>["value"]["assignments"][number];

function assigned(lease: Lease, job: NonNullable<Assignment["job"]>): Assigned {
  return {
    key: leaseKey(lease.jobId, lease.attempt),
    id: job.id,
    func: job.func,
    channel: job.channel,
    attempt: job.attempt,
    maxRetries: job.maxRetries,
    deadlineMs: job.maxExecSeconds === undefined ? undefined : Date.now() + job.maxExecSeconds * 1_000,
    payloadText: job.payloadJson,
    metadataText: job.metadataJson,
    traceparent: job.traceparent,
    owner: job.owner,
    priority: job.priority,
    parentId: job.parentId,
  };
}

function toWire(outcome: Outcome): WireOutcome {
  switch (outcome.kind) {
    case "completed":
      return { $case: "completed", value: { resultJson: outcome.resultText } };
    case "failed": {
      const { error, stackTrace, permanent, retryAfterSeconds } = outcome;
      const retryAfter = retryAfterSeconds === undefined ? undefined : duration(retryAfterSeconds);
      return { $case: "failed", value: { error, stackTrace, permanent, retryAfter } };
    }
    case "canceled":
      return { $case: "canceled", value: {} };
  }
}

function duration(seconds: number): { seconds: number; nanos: number } {
  const whole = Math.floor(seconds);
  return { seconds: whole, nanos: Math.floor((seconds - whole) * 1e9) };
}

function heartbeatMs({ heartbeatInterval }: Welcome): number {
  if (heartbeatInterval === undefined) return HEARTBEAT_DEFAULT_MS;
  return heartbeatInterval.seconds * 1e3 + heartbeatInterval.nanos / 1e6 || HEARTBEAT_DEFAULT_MS;
}
