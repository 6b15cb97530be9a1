/**
 * A runner: takes jobs from channels and executes them by the functions that were registered.
 */
import os from "node:os";
import { MessageChannel, type MessagePort, receiveMessageOnPort, Worker } from "node:worker_threads";

import {
  type ConnectionOptions,
  currentTls,
  currentToken,
  parseServers,
  type Server,
  type TlsOptions,
} from "../connection/servers.js";
import { ErrandError } from "../errors.js";
import type { FromSession, Leaving, SessionSettings, ToSession } from "../session/messages.js";
import type { JobFunction } from "./context.js";
import { type AnyFunction, type Around, Crew } from "./crew.js";

/** Settings of a {@link Runner}. */
export interface RunnerOptions extends ConnectionOptions {
  /** The channels to take jobs from; `default` unless given. */
  readonly channels?: readonly string[];
  /** How many jobs to execute at once; 10 unless given. */
  readonly capacity?: number;
  /** Unique among live runners; made of the host's name and the process id unless given. */
  readonly runnerId?: string;
  /** Wraps every execution, e.g. to open a span that continues `job.traceparent`. It has to return what `next` does. */
  readonly around?: Around;
  /** Carries out the service's reload command: reads the configuration again. */
  readonly onReload?: () => void | Promise<void>;
  /** Hears how the connection is doing; warnings go to standard error unless given. */
  readonly log?: (level: "info" | "warn", message: string) => void;
}

const CAPACITY_DEFAULT = 10;
const CAPACITY_MAX = 10_000;
const RUNNER_ID = /^[A-Za-z0-9._-]{1,64}$/;
const SIGNALS = ["SIGTERM", "SIGINT"] as const;

let runnersMade = 0;

/**
 * Takes jobs and executes them.
 *
 * The functions execute on the thread that made the runner. The connection to the service and its heartbeats live on a
 * thread of their own: a function that computes for minutes without giving way holds up the other functions, but costs
 * no job its lease.
 *
 * @example
 * ```ts
 * await new Runner({ servers: "http://127.0.0.1:50051", token, channels: ["emails"], capacity: 20 })
 *   .register("emails.send", async (job: JobContext<{ to: string }>) => send(job.payload.to, { signal: job.signal }))
 *   .run();
 * ```
 */
export class Runner {
  /** The name under which the service knows this runner. */
  readonly runnerId: string;
  /**
   * Settles when the runner has left: fulfilled after a drain or a release, rejected where the service refused it, or
   * its thread died.
   */
  readonly closed: Promise<void>;
  readonly #options: RunnerOptions;
  readonly #servers: readonly Server[];
  readonly #tls: TlsOptions | undefined;
  readonly #channels: readonly string[];
  readonly #capacity: number;
  readonly #functions = new Map<string, AnyFunction>();
  readonly #connected: Promise<void>;
  #port: MessagePort | undefined;
  #crew: Crew | undefined;
  #worker: Worker | undefined;
  #started = false;
  /** What was asked for, should it be before there is a session to tell. */
  #leaving: Leaving | undefined;
  // Both are set by the promises' constructors, which call back at once.
  #settleConnected!: { resolve: () => void; reject: (reason: Error) => void };
  #settleClosed!: { resolve: () => void; reject: (reason: Error) => void };

  /** Checks the settings; connects to nothing yet. */
  constructor(options: RunnerOptions = {}) {
    this.#options = options;
    this.#channels = options.channels ?? ["default"];
    this.#capacity = options.capacity ?? CAPACITY_DEFAULT;
    this.runnerId = options.runnerId ?? madeUpId();
    this.#servers = parseServers(options.servers);
    this.#tls = currentTls(options.tls, this.#servers);
    if (this.#channels.length === 0) throw new TypeError("channels must name at least one channel");
    if (!(Number.isInteger(this.#capacity) && this.#capacity >= 1 && this.#capacity <= CAPACITY_MAX)) {
      throw new TypeError(`capacity must be a whole number from 1 to ${CAPACITY_MAX}`);
    }
    if (!RUNNER_ID.test(this.runnerId)) throw new TypeError("runnerId must be 1 to 64 of A-Z a-z 0-9 . _ -");
    this.#connected = new Promise((resolve, reject) => {
      this.#settleConnected = { resolve, reject };
    });
    this.closed = new Promise((resolve, reject) => {
      this.#settleClosed = { resolve, reject };
    });
    // Whoever waits hears of it; a runner that nobody waits for must not end the process twice.
    this.#connected.catch(() => undefined);
    this.closed.catch(() => undefined);
  }

  /** Offers a function. Jobs that name one which nobody registered fail for good. */
  register<Payload = Record<string, unknown>, Result = unknown>(name: string, run: JobFunction<Payload, Result>): this {
    if (this.#functions.has(name)) throw new TypeError(`function ${name} is registered already`);
    this.#functions.set(name, run);
    return this;
  }

  /**
   * Connects and begins to work. Fulfilled once the service has taken the runner in; rejected where it refuses, as with
   * a token that may not run jobs. A service that cannot be reached is tried for ever.
   */
  async start(): Promise<void> {
    if (this.#started) throw new Error("the runner was started already");
    this.#started = true;
    try {
      this.#begin(await this.#settings());
    } catch (error) {
      this.#left(error instanceof Error ? error : new Error(String(error)));
    }
    await this.#connected;
  }

  #begin(settings: SessionSettings): void {
    const { port1: port, port2 } = new MessageChannel();
    this.#port = port;
    const tell = (message: ToSession): void => {
      port.postMessage(message);
    };
    this.#crew = new Crew(this.#functions, this.#options.around, settings.progressBytes, tell);
    port.on("message", (message: FromSession) => {
      this.#take(message);
    });
    this.#worker = new Worker(new URL("../session/thread.js", import.meta.url), {
      name: "errand session",
      workerData: { settings, port: port2 },
      transferList: [port2],
    });
    this.#worker.on("error", (error) => {
      this.#left(error instanceof Error ? error : new Error(String(error)));
    });
    this.#worker.on("exit", () => {
      // Its last words may wait behind its end.
      this.#takeWaiting();
      this.#left(new Error("the session's thread ended"));
    });
    if (this.#leaving !== undefined) tell({ kind: "leave", how: this.#leaving });
  }

  /**
   * Works until it is told to leave: the first SIGTERM or SIGINT drains, a second one releases, and so does the
   * service's shutdown command. A function that never gives way is not interrupted by a signal: Node.js hears signals
   * between functions only.
   */
  async run(): Promise<void> {
    let asked = 0;
    const leave = (): void => {
      void (asked++ === 0 ? this.drain() : this.release());
    };
    for (const signal of SIGNALS) process.on(signal, leave);
    try {
      await this.start();
      await this.closed;
    } finally {
      for (const signal of SIGNALS) process.off(signal, leave);
    }
  }

  /** Takes nothing more, finishes what runs, hands in the results, and leaves. */
  drain(): Promise<void> {
    return this.#leave("drain");
  }

  /** Stops what runs, hands back what does not end within half a second, and leaves. */
  release(): Promise<void> {
    return this.#leave("release");
  }

  /** Takes nothing more until {@link resume}; what runs goes on. */
  pause(): void {
    this.#port?.postMessage({ kind: "pause", paused: true } satisfies ToSession);
  }

  /** Takes jobs again. */
  resume(): void {
    this.#port?.postMessage({ kind: "pause", paused: false } satisfies ToSession);
  }

  async #leave(how: Leaving): Promise<void> {
    if (!this.#started) this.#left(undefined);
    this.#started = true;
    this.#leaving = how;
    this.#port?.postMessage({ kind: "leave", how } satisfies ToSession);
    await this.closed;
  }

  async #settings(): Promise<SessionSettings> {
    const { token } = this.#options;
    return {
      servers: this.#servers,
      token: await currentToken(token),
      asksForToken: typeof token === "function",
      tls: this.#tls,
      runnerId: this.runnerId,
      channels: this.#channels,
      capacity: this.#capacity,
      hostname: os.hostname(),
      progressBytes: new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT),
    };
  }

  /** Takes in this message and all that wait behind it, so that no job is started that was taken back meanwhile. */
  #take(first: FromSession): void {
    this.#heed(first);
    this.#takeWaiting();
  }

  #takeWaiting(): void {
    for (;;) {
      const next = this.#port === undefined ? undefined : receiveMessageOnPort(this.#port);
      if (next === undefined) break;
      this.#heed(next.message as FromSession);
    }
    this.#crew?.startWaiting();
  }

  #heed(message: FromSession): void {
    switch (message.kind) {
      case "assigned":
        this.#crew?.assign(message.jobs);
        break;
      case "stop":
        for (const key of message.keys) this.#crew?.stop(key, message.how);
        break;
      case "connected":
        this.#log("info", `connected to ${message.url} as ${this.runnerId}, session ${message.sessionId}`);
        this.#settleConnected.resolve();
        break;
      case "disconnected":
        this.#log("warn", `no connection, trying again: ${message.why}`);
        break;
      case "token":
        void this.#answerToken();
        break;
      case "reload":
        void this.#reload(message.commandId);
        break;
      case "leaving":
        this.#log("info", `the service asked for a ${message.how}`);
        break;
      case "refused":
        this.#left(new ErrandError(message.message, message.code, message.reason));
        break;
      case "left":
        if (message.owed > 0) this.#log("warn", `left without a receipt for ${message.owed} results`);
        this.#left(undefined);
        break;
    }
  }

  async #answerToken(): Promise<void> {
    try {
      const token = await currentToken(this.#options.token);
      this.#port?.postMessage({ kind: "token", token } satisfies ToSession);
    } catch (error) {
      this.#log("warn", `no fresh token, the last one is used again: ${String(error)}`);
    }
  }

  async #reload(commandId: string): Promise<void> {
    const { onReload } = this.#options;
    let error = "";
    try {
      await onReload?.();
    } catch (thrown) {
      error = thrown instanceof Error ? thrown.message : String(thrown);
    }
    const data = JSON.stringify(error === "" ? { reloaded: onReload !== undefined } : {});
    this.#port?.postMessage({ kind: "reloaded", commandId, data, error } satisfies ToSession);
  }

  #left(error: Error | undefined): void {
    this.#crew?.disband();
    this.#crew = undefined;
    this.#port?.close();
    this.#port = undefined;
    this.#worker?.removeAllListeners().on("error", () => undefined);
    void this.#worker?.terminate();
    this.#worker = undefined;
    if (error === undefined) {
      this.#settleConnected.resolve();
      this.#settleClosed.resolve();
    } else {
      this.#settleConnected.reject(error);
      this.#settleClosed.reject(error);
    }
  }

  #log(level: "info" | "warn", message: string): void {
    if (this.#options.log !== undefined) this.#options.log(level, message);
    else if (level === "warn") console.warn(`errand runner: ${message}`);
  }
}

/** Host and process id; runners beyond the first of a process are numbered. */
function madeUpId(): string {
  runnersMade += 1;
  const tail = runnersMade === 1 ? `-${process.pid}` : `-${process.pid}-${runnersMade}`;
  const host = os.hostname().replace(/[^A-Za-z0-9._-]/g, "-");
  return host.slice(0, 64 - tail.length) + tail;
}
