#!/usr/bin/env node
/**
 * `errand-runner`: offers the functions that a module exports.
 */
import { readFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

import type { JobContext } from "../runner/context.js";
import { Runner, type RunnerOptions } from "../runner/runner.js";

const USAGE = `Usage: errand-runner [OPTIONS] MODULE

Runs jobs by the functions that MODULE exports, and by nothing else: a job names one as its func.
The default export may be an object of functions, for names that are no identifiers.

  --channel C       a channel to take jobs from, repeatable or separated by commas; "default" unless given
  --capacity N      how many jobs to execute at once; 10 unless given
  --prefix P        put before the names of the exports, e.g. "myapp.jobs."
  --server URL      where the service listens for gRPC, repeatable or separated by commas (ERRAND_SERVER)
  --token T         the token to show (ERRAND_TOKEN)
  --tls-ca FILE     PEM file of the authority that signed the server's certificate (ERRAND_TLS_CA)
  --tls-cert FILE   PEM file of this runner's certificate, for mutual TLS (ERRAND_CLIENT_TLS_CERT)
  --tls-key FILE    PEM file of this runner's private key, for mutual TLS (ERRAND_CLIENT_TLS_KEY)
  --id ID           unique among live runners; made of the host's name and the process id unless given

The first SIGTERM or SIGINT drains, a second one hands back what runs.
`;

/** As for every command line that does not make sense. */
const EXIT_USAGE = 64;

class UsageError extends Error {}

async function main(): Promise<void> {
  const { values, positionals } = switches();
  if (values.help === true) {
    process.stdout.write(USAGE);
    return;
  }
  const [file, ...more] = positionals;
  if (file === undefined || more.length > 0) throw new UsageError("name one module");
  const runner = new Runner(options(values));
  const functions = await exported(file);
  if (functions.size === 0) throw new UsageError(`${file} exports no function`);
  for (const [name, run] of functions) runner.register(`${values.prefix ?? ""}${name}`, run);
  await runner.run();
}

function switches() {
  const text = { type: "string" } as const;
  const list = { type: "string", multiple: true } as const;
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        channel: list,
        capacity: text,
        prefix: text,
        server: list,
        token: text,
        "tls-ca": text,
        "tls-cert": text,
        "tls-key": text,
        id: text,
        help: { type: "boolean", short: "h" },
      },
    });
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

type Values = ReturnType<typeof switches>["values"];

function options(values: Values): RunnerOptions {
  const ca = pem(values["tls-ca"] ?? process.env["ERRAND_TLS_CA"]);
  const cert = pem(values["tls-cert"] ?? process.env["ERRAND_CLIENT_TLS_CERT"]);
  const key = pem(values["tls-key"] ?? process.env["ERRAND_CLIENT_TLS_KEY"]);
  const channels = values.channel?.flatMap((list) => list.split(",")).filter((channel) => channel !== "");
  return {
    ...(values.server === undefined ? {} : { servers: values.server.flatMap((list) => list.split(",")) }),
    ...(values.token === undefined ? {} : { token: values.token }),
    ...(values.id === undefined ? {} : { runnerId: values.id }),
    ...(values.capacity === undefined ? {} : { capacity: Number(values.capacity) }),
    ...(channels === undefined ? {} : { channels }),
    tls: {
      ...(ca === undefined ? {} : { ca }),
      ...(cert === undefined ? {} : { cert }),
      ...(key === undefined ? {} : { key }),
    },
    log: (level, message) => {
      process.stderr.write(`errand-runner: ${level === "warn" ? "warning: " : ""}${message}\n`);
    },
  };
}

function pem(file: string | undefined): string | undefined {
  if (file === undefined || file === "") return undefined;
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    throw new UsageError(`cannot read ${file}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

type Exported = (job: JobContext) => unknown;

/** The functions that the module exports by name, and those in its default export. Inherited ones are none of them. */
async function exported(file: string): Promise<Map<string, Exported>> {
  const module = (await import(pathToFileURL(path.resolve(file)).href)) as Record<string, unknown>;
  const functions = new Map<string, Exported>();
  const { default: more, ...named } = module;
  const grouped = typeof more === "object" && more !== null ? (more as Record<string, unknown>) : {};
  for (const [name, value] of [...Object.entries(grouped), ...Object.entries(named)]) {
    if (typeof value === "function" && !isClass(value)) functions.set(name, value as Exported);
  }
  return functions;
}

/** Classes are functions as well, but can only be called with `new`. */
function isClass(value: object): boolean {
  return Object.getOwnPropertyDescriptor(value, "prototype")?.writable === false;
}

try {
  await main();
  // What a module left open, or a function that did not stop, must not keep a runner that has left.
  process.exit(0);
} catch (error) {
  const isUsage = error instanceof UsageError || error instanceof TypeError;
  process.stderr.write(`errand-runner: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exit(isUsage ? EXIT_USAGE : 1);
}
