/**
 * Where the service is and how to speak to it: URLs, TLS, and the token.
 */
import { readFileSync } from "node:fs";

import { type ChannelOptions, type ChannelCredentials, credentials } from "@grpc/grpc-js";

/** Certificates, as PEM text or bytes. */
export interface TlsOptions {
  /** The authority that signed the server's certificate; the ones that Node.js knows unless given. */
  readonly ca?: string | Uint8Array;
  /** This client's certificate, for mutual TLS. */
  readonly cert?: string | Uint8Array;
  /** This client's private key, for mutual TLS. */
  readonly key?: string | Uint8Array;
  /** The name that the server's certificate bears, where it is not the host of the URL. */
  readonly serverName?: string;
}

/** A token, or what gets one whenever it is needed, for tokens that expire. */
export type Token = string | (() => string | Promise<string>);

/** How to reach the service. */
export interface ConnectionOptions {
  /**
   * One URL, several separated by commas, or a list: `http://host:port`, `https://host:port`, or a bare `host:port`,
   * which means plain HTTP. Several are nodes of one service and are tried in turn. `ERRAND_SERVER` unless given, and
   * `http://127.0.0.1:50051` where that is not set either.
   */
  readonly servers?: string | readonly string[];
  /** What `errand token` printed, or your identity provider issued; `ERRAND_TOKEN` unless given. */
  readonly token?: Token;
  /**
   * Certificates, for `https` servers; unless given, those in the files that `ERRAND_TLS_CA`, `ERRAND_CLIENT_TLS_CERT`
   * and `ERRAND_CLIENT_TLS_KEY` name.
   */
  readonly tls?: TlsOptions;
}

/** One server, ready to be dialled. */
export interface Server {
  readonly url: string;
  /** `host:port`. */
  readonly address: string;
  readonly secure: boolean;
}

const SERVER_DEFAULT = "http://127.0.0.1:50051";
/** The ports of URLs that name none. */
const PORTS: Readonly<Record<string, string>> = { "http:": "80", "https:": "443" };
/** Largest message taken: a page of 1,000 jobs with sizeable payloads fits. */
const MESSAGE_BYTES_MAX = 64 * 1024 * 1024;
/** A peer that hangs without closing is noticed after twice this, well within the default lease of 15 s. */
const KEEP_ALIVE_MS = 5_000;

/** Reads a list of servers. */
export function parseServers(servers: string | readonly string[] | undefined): Server[] {
  const list = servers ?? process.env["ERRAND_SERVER"] ?? SERVER_DEFAULT;
  const urls = (typeof list === "string" ? list.split(",") : list).map((url) => url.trim()).filter((url) => url !== "");
  if (urls.length === 0) throw new TypeError("servers must name at least one server");
  return urls.map(parseServer);
}

function parseServer(text: string): Server {
  const url = text.includes("://") ? text : `http://${text}`;
  let parts: URL;
  try {
    parts = new URL(url);
  } catch {
    throw new TypeError(`server "${text}" is not a URL`);
  }
  const defaultPort = PORTS[parts.protocol];
  if (defaultPort === undefined) throw new TypeError(`server "${text}" must begin with http:// or https://`);
  return {
    url,
    address: `${parts.hostname}:${parts.port || defaultPort}`,
    secure: parts.protocol === "https:",
  };
}

/** The token as it is at the moment; undefined where there is none. */
export async function currentToken(token: Token | undefined): Promise<string | undefined> {
  const source = token ?? process.env["ERRAND_TOKEN"];
  const text = (typeof source === "function" ? await source() : source)?.trim();
  return text === "" ? undefined : text;
}

/** The certificates for these servers; undefined where none of them speaks TLS. */
export function currentTls(tls: TlsOptions | undefined, servers: readonly Server[]): TlsOptions | undefined {
  if (!servers.some(({ secure }) => secure)) return undefined;
  const current = tls ?? tlsOfEnvironment();
  if ((current.cert === undefined) !== (current.key === undefined)) {
    throw new TypeError("a client certificate needs its key, and a key its certificate");
  }
  return current;
}

function tlsOfEnvironment(): TlsOptions {
  const [ca, cert, key] = ["ERRAND_TLS_CA", "ERRAND_CLIENT_TLS_CERT", "ERRAND_CLIENT_TLS_KEY"].map((variable) => {
    const file = process.env[variable];
    return file === undefined || file === "" ? undefined : readFileSync(file);
  });
  return {
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
  };
}

/** What a channel to `server` is made with. */
export function channelCredentials(server: Server, tls: TlsOptions | undefined): ChannelCredentials {
  if (!server.secure) return credentials.createInsecure();
  return credentials.createSsl(pem(tls?.ca), pem(tls?.key), pem(tls?.cert));
}

/** Settings of a channel, beside those that the caller wants. */
export function channelOptions(tls: TlsOptions | undefined, more: ChannelOptions): ChannelOptions {
  return {
    "grpc.max_receive_message_length": MESSAGE_BYTES_MAX,
    "grpc.max_send_message_length": MESSAGE_BYTES_MAX,
    "grpc.keepalive_time_ms": KEEP_ALIVE_MS,
    "grpc.keepalive_timeout_ms": KEEP_ALIVE_MS,
    ...(tls?.serverName === undefined
      ? {}
      : { "grpc.ssl_target_name_override": tls.serverName, "grpc.default_authority": tls.serverName }),
    ...more,
  };
}

function pem(text: string | Uint8Array | undefined): Buffer | null {
  if (text === undefined) return null;
  return typeof text === "string" ? Buffer.from(text) : Buffer.from(text);
}
