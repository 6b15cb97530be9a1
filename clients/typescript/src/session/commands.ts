/**
 * The service's commands, and what a runner answers.
 */
import os from "node:os";

import { type Command, CommandKind, type CommandReply } from "../gen/errand/v1/runners.js";
import { CLIENT } from "../version.js";
import type { WireOutcome } from "./ledger.js";
import type { Leaving, SessionSettings } from "./messages.js";

/** How the session is doing. */
export interface Standing {
  readonly running: number;
  readonly owed: number;
  readonly paused: boolean;
  readonly leaving: boolean;
}

/** What the session has to do about a command; it sends the reply itself, except that of a reload. */
export type Order =
  | { readonly kind: "nothing"; readonly reply: CommandReply }
  | { readonly kind: "pause"; readonly paused: boolean; readonly reply: CommandReply }
  | { readonly kind: "leave"; readonly how: Leaving; readonly reply: CommandReply }
  | { readonly kind: "reload" };

/** Answers commands, and counts what the answers tell. */
export class Commands {
  readonly #settings: SessionSettings;
  readonly #started = Date.now();
  #processed = 0;
  #failed = 0;

  constructor(settings: SessionSettings) {
    this.#settings = settings;
  }

  /** An execution ended. */
  count(outcome: WireOutcome): void {
    if (outcome.$case !== "released") this.#processed += 1;
    if (outcome.$case === "failed") this.#failed += 1;
  }

  obey({ commandId, kind, graceful }: Command, standing: Standing): Order {
    const reply = (data: object): CommandReply => ({ commandId, dataJson: JSON.stringify(data), error: "" });
    switch (kind) {
      case CommandKind.COMMAND_KIND_PING:
        return { kind: "nothing", reply: reply({ pong: true }) };
      case CommandKind.COMMAND_KIND_STATUS:
        return { kind: "nothing", reply: reply(this.#status(standing)) };
      case CommandKind.COMMAND_KIND_SYSINFO:
        return { kind: "nothing", reply: reply(this.#system()) };
      case CommandKind.COMMAND_KIND_PAUSE:
        return { kind: "pause", paused: true, reply: reply({ paused: true }) };
      case CommandKind.COMMAND_KIND_RESUME:
        return { kind: "pause", paused: false, reply: reply({ paused: false }) };
      case CommandKind.COMMAND_KIND_SHUTDOWN:
        return {
          kind: "leave",
          how: graceful ? "drain" : "release",
          reply: reply({ stopping: true, running: standing.running }),
        };
      case CommandKind.COMMAND_KIND_RELOAD:
        return { kind: "reload" };
      default:
        return {
          kind: "nothing",
          reply: { commandId, dataJson: "{}", error: "this runner does not know that command" },
        };
    }
  }

  #status(standing: Standing): object {
    return {
      runner_id: this.#settings.runnerId,
      channels: this.#settings.channels,
      capacity: this.#settings.capacity,
      running: standing.running,
      results_without_receipt: standing.owed,
      paused: standing.paused,
      stopping: standing.leaving,
      jobs_processed: this.#processed,
      jobs_failed: this.#failed,
      uptime_seconds: this.#uptimeSeconds(),
    };
  }

  #system(): object {
    return {
      hostname: this.#settings.hostname,
      pid: process.pid,
      os: process.platform,
      arch: process.arch,
      cpus: os.availableParallelism(),
      load: os.loadavg()[0],
      rss_bytes: process.memoryUsage.rss(),
      runtime: `node ${process.version}`,
      client: CLIENT,
      uptime_seconds: this.#uptimeSeconds(),
    };
  }

  #uptimeSeconds(): number {
    return Math.floor((Date.now() - this.#started) / 1_000);
  }
}
