import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";

import { Client, Runner, type TlsOptions, UnavailableError } from "errand-client";

import { QUICK, Service } from "./service.js";

const folder = mkdtempSync(path.join(os.tmpdir(), "errand-tls-"));
let service: Service;
let token: string;

function file(name: string): string {
  return path.join(folder, name);
}

function openssl(...words: string[]): void {
  execFileSync("openssl", words, { cwd: folder, stdio: "pipe" });
}

/** An authority, and what it signed for the server and for a client. */
function issue(): void {
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  const authority = ["-subj", "/CN=test authority", "-addext", "basicConstraints=critical,CA:TRUE"];
  openssl("req", "-x509", ...key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", ...authority);
  for (const [name, names] of [
    ["server", "DNS:jobs.test,IP:127.0.0.1"],
    ["client", "DNS:client.test"],
  ] as const) {
    writeFileSync(file(`${name}.ext`), `subjectAltName=${names}\nbasicConstraints=CA:FALSE\n`);
    openssl("req", ...key, "-keyout", `${name}.key`, "-out", `${name}.csr`, "-subj", `/CN=${name}`);
    const signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", `${name}.ext`];
    openssl("x509", "-req", "-in", `${name}.csr`, "-out", `${name}.pem`, ...signed);
  }
}

function tls(): Required<Omit<TlsOptions, "serverName">> {
  return {
    ca: readFileSync(file("ca.pem")),
    cert: readFileSync(file("client.pem")),
    key: readFileSync(file("client.key")),
  };
}

function secure(): string {
  return `https://${service.grpc}`;
}

before(async () => {
  issue();
  const certificates = ["--tls-cert", file("server.pem"), "--tls-key", file("server.key")];
  service = await Service.start(...QUICK, ...certificates, "--tls-client-ca", file("ca.pem"));
  token = await service.operator();
});
after(async () => {
  await service.remove();
  rmSync(folder, { recursive: true });
});

test("publisher and runner work over mutual TLS", async () => {
  const client = new Client({ servers: secure(), token, tls: tls() });
  const runner = new Runner({ servers: secure(), token, tls: { ...tls(), serverName: "jobs.test" } });
  await runner.register("f", () => "secret").start();
  assert.equal(await client.result((await client.publish("f")).id), "secret");
  await runner.drain();
  client.close();
});

test("a client without a certificate is refused", async () => {
  const client = new Client({ servers: secure(), token, tls: { ca: tls().ca } });
  await assert.rejects(client.list(), UnavailableError);
  client.close();
});

test("a server whose certificate nobody vouches for is refused, and the reason told", async () => {
  const client = new Client({ servers: secure(), token });
  await assert.rejects(client.list(), (error) => {
    assert.ok(error instanceof UnavailableError);
    assert.match(error.message, /cannot reach https:.*certificate/);
    return true;
  });
  client.close();
});

test("the environment names the certificates where the program does not", async () => {
  const named = { ERRAND_TLS_CA: "ca.pem", ERRAND_CLIENT_TLS_CERT: "client.pem", ERRAND_CLIENT_TLS_KEY: "client.key" };
  for (const [variable, name] of Object.entries(named)) process.env[variable] = file(name);
  try {
    const client = new Client({ servers: secure(), token });
    assert.ok(Array.isArray((await client.list()).jobs));
    client.close();
    delete process.env["ERRAND_CLIENT_TLS_KEY"];
    assert.throws(() => new Client({ servers: secure(), token }), /needs its key/);
    assert.throws(() => new Runner({ servers: secure(), token }), /needs its key/);
  } finally {
    for (const variable of Object.keys(named)) Reflect.deleteProperty(process.env, variable);
  }
});
