/**
 * One call to the service: its deadline, its headers, and which server it goes to.
 *
 * A call goes to the server that answered last. Where that one cannot be reached or is shutting down, the next one is
 * tried, once around. A call whose fate is unknown, because the connection broke under it, is repeated only if doing it
 * twice is the same as doing it once.
 */
import { Client as Channel, type ServiceError, status } from "@grpc/grpc-js";

import { type ErrandError, toError, UnavailableError } from "../errors.js";
import { currentTraceparent } from "../runner/current.js";
import { headers } from "./headers.js";
import {
  channelCredentials,
  channelOptions,
  type ConnectionOptions,
  currentTls,
  currentToken,
  parseServers,
  type Server,
  type TlsOptions,
} from "./servers.js";

/** What every call takes beside its own arguments. */
export interface CallOptions {
  /** Ends the call early; it rejects with the signal's reason. */
  readonly signal?: AbortSignal;
  /** How long the call may take; 30 s unless given. */
  readonly timeoutMs?: number;
  /**
   * W3C trace context to send along, in place of the client's own `traceparent` or of the running job's. A published
   * job keeps it, and its function finds it as `job.traceparent`.
   */
  readonly traceparent?: string;
}

/** Settings of a transport. */
export interface TransportOptions extends ConnectionOptions {
  /**
   * Asked for the trace context of each call, e.g. from an OpenTelemetry span. Unless it gives one, calls made inside a
   * job's function carry the trace context of the job.
   */
  readonly traceparent?: () => string | undefined;
}

/** Whether a call may reach the service twice. */
export type Repeat = "harmless" | "harmful";

/** How a method is called, as generated code has it. */
export interface Method<Request, Response> {
  readonly path: string;
  readonly requestSerialize: (value: Request) => Buffer;
  readonly responseDeserialize: (value: Buffer) => Response;
}

const TIMEOUT_MS = 30_000;
/** What grpc-js says of a call that never left: it is safe to send it elsewhere. */
const NOT_SENT = "No connection established";
const NOT_RESOLVED = "Name resolution failed";

/** The connections of one client. */
export class Transport {
  readonly #options: TransportOptions;
  readonly #servers: readonly Server[];
  readonly #tls: TlsOptions | undefined;
  readonly #channels: (Channel | undefined)[] = [];
  /** The server that answered last. */
  #current = 0;
  #closed = false;

  constructor(options: TransportOptions) {
    this.#options = options;
    this.#servers = parseServers(options.servers);
    this.#tls = currentTls(options.tls, this.#servers);
  }

  /** Calls a method that takes one message and answers with one. */
  async unary<Request, Response>(
    method: Method<Request, Response>,
    request: Request,
    options: CallOptions,
    repeat: Repeat,
  ): Promise<Response> {
    const deadline = Date.now() + (options.timeoutMs ?? TIMEOUT_MS);
    for (let tried = 1; ; tried++) {
      const index = this.#current;
      try {
        return await this.#callOnce(index, method, request, options, deadline);
      } catch (failure) {
        if (!isServiceError(failure)) throw failure;
        const error = this.#explain(failure, index);
        if (!worthAnotherServer(failure, error, repeat) || tried >= this.#servers.length) throw error;
        this.#leave(index);
      }
    }
  }

  /** Calls a method that answers with a stream. Ends with the stream; leaving the loop early ends the call. */
  async *stream<Request, Response>(
    method: Method<Request, Response>,
    request: Request,
    options: CallOptions,
  ): AsyncGenerator<Response, void, undefined> {
    const { signal, timeoutMs } = options;
    const index = this.#current;
    const metadata = await this.#headers(options);
    signal?.throwIfAborted();
    const call = this.#channel(index).makeServerStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      metadata,
      timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs },
    );
    const abort = (): void => {
      call.cancel();
    };
    signal?.addEventListener("abort", abort, { once: true });
    try {
      for await (const message of call) yield message as Response;
    } catch (failure) {
      signal?.throwIfAborted();
      if (!isServiceError(failure)) throw failure;
      const error = this.#explain(failure, index);
      if (error instanceof UnavailableError) this.#leave(index);
      throw error;
    } finally {
      signal?.removeEventListener("abort", abort);
      call.cancel();
    }
  }

  /** Closes every connection; calls under way fail. */
  close(): void {
    this.#closed = true;
    for (const channel of this.#channels) channel?.close();
    this.#channels.length = 0;
  }

  async #callOnce<Request, Response>(
    index: number,
    method: Method<Request, Response>,
    request: Request,
    options: CallOptions,
    deadline: number,
  ): Promise<Response> {
    const { signal } = options;
    const metadata = await this.#headers(options);
    signal?.throwIfAborted();
    const channel = this.#channel(index);
    return new Promise((resolve, reject) => {
      const call = channel.makeUnaryRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        request,
        metadata,
        { deadline },
        (failure, response) => {
          signal?.removeEventListener("abort", abort);
          if (signal?.aborted === true) reject(signal.reason as Error);
          else if (failure !== null) reject(failure);
          // There is a response where there is no failure.
          else resolve(response as Response);
        },
      );
      const abort = (): void => {
        call.cancel();
      };
      signal?.addEventListener("abort", abort, { once: true });
    });
  }

  async #headers(options: CallOptions): Promise<ReturnType<typeof headers>> {
    const traceparent = options.traceparent ?? this.#options.traceparent?.() ?? currentTraceparent();
    return headers(await currentToken(this.#options.token), traceparent);
  }

  #channel(index: number): Channel {
    if (this.#closed) throw new UnavailableError("the client is closed", "UNAVAILABLE", "");
    const server = this.#server(index);
    return (this.#channels[index] ??= new Channel(
      server.address,
      channelCredentials(server, this.#tls),
      channelOptions(this.#tls, {
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 2_000,
        // Two clients with different certificates must not share a connection.
        "grpc.use_local_subchannel_pool": 1,
      }),
    ));
  }

  #server(index: number): Server {
    const server = this.#servers[index];
    // The index only moves modulo their number.
    if (server === undefined) throw new Error(`there is no server ${index}`);
    return server;
  }

  /** Turns to the next server, unless another call has done so already. */
  #leave(index: number): void {
    if (this.#current === index) this.#current = (index + 1) % this.#servers.length;
  }

  #explain(failure: ServiceError, index: number): ErrandError {
    const error = toError(failure);
    const server = this.#server(index);
    if (error instanceof UnavailableError && error.reason === "") {
      return new UnavailableError(`cannot reach ${server.url}: ${cause(failure.details)}`, error.code, "");
    }
    return error;
  }
}

function isServiceError(failure: unknown): failure is ServiceError {
  return failure instanceof Error && "code" in failure && "details" in failure && "metadata" in failure;
}

function worthAnotherServer(failure: ServiceError, error: ErrandError, repeat: Repeat): boolean {
  if (failure.code !== status.UNAVAILABLE) return false;
  const notTakenIn =
    error.reason === "DRAINING" || failure.details.startsWith(NOT_SENT) || failure.details.startsWith(NOT_RESOLVED);
  return notTakenIn || repeat === "harmless";
}

/** "connect ECONNREFUSED 127.0.0.1:1" tells more than the sentence around it. */
function cause(details: string): string {
  const inner = /Last error: (?:Error: )?(.*?)(?:\. Resolution note:.*)?$/s.exec(details);
  return inner?.[1] ?? details;
}
