/**
 * The service under test: `errand serve` on ports and in a folder of its own.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

/** Short enough for a test to wait out, long enough for a busy machine. */
export const QUICK = ["--heartbeat-interval=500ms", "--accept-timeout=2s", "--lease-ttl=3s", "--resume-window=1s"];

const READY = /^errand ready http=(\S+) grpc=(\S+)/;
const READY_MS = 30_000;

function binary(): string {
  const program = process.env["ERRAND_BIN"];
  if (program === undefined) throw new Error("ERRAND_BIN must name the errand program to test against");
  return program;
}

/** No ERRAND_ variable of whoever runs the tests reaches the program. */
function cleanEnvironment(): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("ERRAND_")));
}

/** One service on one data directory; it can be stopped, killed, and started again where it was. */
export class Service {
  readonly folder: string;
  readonly #switches: readonly string[];
  readonly #tokens = new Map<string, Promise<string>>();
  #process: ChildProcess | undefined;
  /** `host:port` of REST. */
  http = "127.0.0.1:0";
  /** `host:port` of gRPC. */
  grpc = "127.0.0.1:0";

  private constructor(folder: string, switches: readonly string[]) {
    this.folder = folder;
    this.#switches = switches;
  }

  static async start(...switches: readonly string[]): Promise<Service> {
    const service = new Service(await mkdtemp(path.join(os.tmpdir(), "errand-client-")), switches);
    await service.start();
    return service;
  }

  /** Starts it, on the ports that it had before. */
  async start(): Promise<void> {
    const log = await open(this.#log, "a");
    const { http, grpc } = this;
    const child = spawn(
      binary(),
      ["serve", "--http", http, "--grpc", grpc, "--data-dir", this.#dataDir, ...this.#switches],
      { cwd: this.folder, env: cleanEnvironment(), stdio: ["ignore", "pipe", log.fd] },
    );
    this.#process = child;
    if (child.stdout === null) throw new Error("the service has no standard output");
    const patience = setTimeout(() => child.kill("SIGKILL"), READY_MS);
    try {
      for await (const line of createInterface({ input: child.stdout })) {
        const ready = READY.exec(line);
        if (ready?.[1] === undefined || ready[2] === undefined) continue;
        [this.http, this.grpc] = [ready[1], ready[2]];
        child.stdout.resume();
        return;
      }
      throw new Error(`the service did not get ready\n${await readFile(this.#log, "utf8")}`);
    } finally {
      clearTimeout(patience);
      await log.close();
    }
  }

  get url(): string {
    return `http://${this.grpc}`;
  }

  token(subject: string, ...permissions: readonly string[]): Promise<string> {
    const key = [subject, ...permissions].join(" ");
    const known = this.#tokens.get(key);
    if (known !== undefined) return known;
    const switches = permissions.flatMap((permission) => ["--permission", permission]);
    const token = promisify(execFile)(
      binary(),
      ["token", "--data-dir", this.#dataDir, "--subject", subject, ...switches],
      { env: cleanEnvironment() },
    ).then(({ stdout }) => stdout.trim());
    this.#tokens.set(key, token);
    return token;
  }

  /** One who may do everything, runners' work too. */
  operator(): Promise<string> {
    return this.token("operator", "manage_jobs", "run_jobs");
  }

  /** One REST call as the operator. */
  async rest(method: string, route: string, body?: object): Promise<Record<string, unknown>> {
    const headers = { authorization: `Bearer ${await this.operator()}`, "content-type": "application/json" };
    const answer = await fetch(`http://${this.http}/api/jobs${route}`, {
      method,
      headers,
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    return (await answer.json()) as Record<string, unknown>;
  }

  signal(signal: NodeJS.Signals): void {
    this.#process?.kill(signal);
  }

  /** Ends it, and waits for its end. */
  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    const child = this.#process;
    if (child?.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill(signal);
    const patience = setTimeout(() => child.kill("SIGKILL"), 15_000);
    await ended;
    clearTimeout(patience);
  }

  /** Ends it for good, and removes its folder. */
  async remove(): Promise<void> {
    await this.stop();
    await rm(this.folder, { recursive: true, force: true });
  }

  get #dataDir(): string {
    return path.join(this.folder, "data");
  }

  get #log(): string {
    return path.join(this.folder, "stderr.log");
  }
}
