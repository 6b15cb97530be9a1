/**
 * One `Attach` stream: opened with Hello, good once Welcome is there.
 */
import { Client as Channel, type ClientDuplexStream, type ServiceError, status } from "@grpc/grpc-js";

import { headers } from "../connection/headers.js";
import { channelCredentials, channelOptions, type Server, type TlsOptions } from "../connection/servers.js";
import { type ErrandError, toError } from "../errors.js";
import {
  type AttachRequest,
  type AttachResponse,
  type Hello,
  RunnersService,
  type Welcome,
} from "../gen/errand/v1/runners.js";
import type { Said } from "./ledger.js";

/** One message from the service. */
export type Told = NonNullable<AttachResponse["message"]>;

/** From dialling to Welcome. */
const WELCOME_TIMEOUT_MS = 5_000;
/** From goodbye to the end of the stream. */
const CLOSE_TIMEOUT_MS = 1_000;

/** Codes with which the same Hello would be refused again. */
const FINAL: ReadonlySet<string> = new Set(
  [status.PERMISSION_DENIED, status.UNAUTHENTICATED, status.INVALID_ARGUMENT, status.UNIMPLEMENTED].map(
    (code) => status[code],
  ),
);

/** Why there is no stream. */
export class LinkError extends Error {
  override readonly name = "LinkError";
  /**
   * `refused`: the same Hello will be refused again. `taken`: another live session bears the runner id; maybe the own
   * one, not yet lapsed. `unavailable`: worth another try, here or elsewhere.
   */
  readonly kind: "refused" | "taken" | "unavailable";
  /** The gRPC code; empty where no service answered. */
  readonly code: string;
  readonly reason: string;

  constructor(message: string, kind: LinkError["kind"], code = "", reason = "") {
    super(message);
    this.kind = kind;
    this.code = code;
    this.reason = reason;
  }

  static from(error: ErrandError): LinkError {
    const kind = FINAL.has(error.code)
      ? "refused"
      : error.code === status[status.ALREADY_EXISTS]
        ? "taken"
        : "unavailable";
    return new LinkError(error.message, kind, error.code, error.reason);
  }
}

/** Whoever listens to a stream. */
export interface Listener {
  told(message: Told): void;
  /** There is room for messages again. */
  room(): void;
  /** The stream is over; nothing comes after this. */
  lost(why: string): void;
}

type Stream = ClientDuplexStream<AttachRequest, AttachResponse>;

/** An open stream. */
export class Link {
  readonly url: string;
  readonly welcome: Welcome;
  readonly since = Date.now();
  readonly #channel: Channel;
  readonly #stream: Stream;
  #listener: Listener | undefined;
  #hasRoom = true;

  private constructor(url: string, welcome: Welcome, channel: Channel, stream: Stream) {
    this.url = url;
    this.welcome = welcome;
    this.#channel = channel;
    this.#stream = stream;
  }

  /** Dials `server` on a connection of its own, says Hello and waits for Welcome. */
  static open(server: Server, tls: TlsOptions | undefined, token: string | undefined, hello: Hello): Promise<Link> {
    const channel = new Channel(
      server.address,
      channelCredentials(server, tls),
      channelOptions(tls, {
        // The connection of a failed attempt has a backoff of its own that knows nothing of the resume window.
        "grpc.use_local_subchannel_pool": 1,
        "grpc.enable_retries": 0,
      }),
    );
    const { path, requestSerialize, responseDeserialize } = RunnersService.attach;
    const stream: Stream = channel.makeBidiStreamRequest(path, requestSerialize, responseDeserialize, headers(token));
    return new Promise<Link>((resolve, reject) => {
      const give = (error: LinkError): void => {
        clearTimeout(patience);
        stream.removeAllListeners("data");
        cutOff(stream, channel);
        reject(error);
      };
      const patience = setTimeout(() => {
        give(new LinkError(`${server.url} sends no Welcome`, "unavailable"));
      }, WELCOME_TIMEOUT_MS);
      stream.once("error", (failure: ServiceError) => {
        give(LinkError.from(toError(failure)));
      });
      stream.once("end", () => {
        give(new LinkError(`${server.url} closed the stream before its Welcome`, "unavailable"));
      });
      stream.once("data", ({ message }: AttachResponse) => {
        if (message?.$case !== "welcome") {
          const reason = message?.$case === "goAway" ? `goes away: ${message.value.reason}` : "does not say Welcome";
          give(new LinkError(`${server.url} ${reason}`, "unavailable"));
          return;
        }
        clearTimeout(patience);
        stream.pause();
        stream.removeAllListeners();
        resolve(new Link(server.url, message.value, channel, stream));
      });
      stream.write({ message: { $case: "hello", value: hello } });
    });
  }

  /** Begins to deliver what the service says. */
  listen(listener: Listener): void {
    this.#listener = listener;
    this.#stream.on("data", ({ message }: AttachResponse) => {
      // Absent for something of a later protocol.
      if (message !== undefined) this.#listener?.told(message);
    });
    this.#stream.on("drain", () => {
      this.#hasRoom = true;
      this.#listener?.room();
    });
    this.#stream.on("error", (failure: ServiceError) => {
      this.#lost(failure.details || failure.message);
    });
    this.#stream.on("end", () => {
      this.#lost("the server closed the stream");
    });
    this.#stream.resume();
  }

  /** True while the stream takes another message at once. */
  get hasRoom(): boolean {
    return this.#hasRoom;
  }

  say(message: Said): void {
    this.#hasRoom = this.#stream.write({ message });
  }

  /** Drops the stream without a goodbye. */
  drop(): void {
    this.#listener = undefined;
    cutOff(this.#stream, this.#channel);
  }

  /** Says goodbye, and waits for a while until the service has read everything. */
  async close(): Promise<void> {
    const ended = new Promise<void>((resolve) => {
      // A service that keeps its half open must not keep the runner.
      const patience = setTimeout(resolve, CLOSE_TIMEOUT_MS);
      this.#listener = {
        told: () => undefined,
        room: () => undefined,
        lost: () => {
          clearTimeout(patience);
          resolve();
        },
      };
    });
    this.#stream.end();
    await ended;
    this.drop();
  }

  #lost(why: string): void {
    const listener = this.#listener;
    this.#listener = undefined;
    listener?.lost(why);
  }
}

function cutOff(stream: Stream, channel: Channel): void {
  // What a stream that nobody wants still has to say must not end the process.
  stream.on("error", () => undefined);
  stream.cancel();
  channel.close();
}
