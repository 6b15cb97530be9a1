/**
 * A service that the test plays by hand: for what a real one does at moments that cannot be arranged.
 */
import { Server, ServerCredentials, type ServerDuplexStream, status } from "@grpc/grpc-js";

import { Job } from "#dist/gen/errand/v1/job.js";
import {
  type AttachRequest,
  type AttachResponse,
  type Hello,
  type Result,
  RunnersService,
} from "#dist/gen/errand/v1/runners.js";

import { eventually } from "./waiting.js";

type Said = NonNullable<AttachRequest["message"]>;
type Told = NonNullable<AttachResponse["message"]>;
type Stream = ServerDuplexStream<AttachRequest, AttachResponse>;

/** One stream of one runner. */
export class Session {
  readonly said: Said[] = [];
  readonly #stream: Stream;
  ended = false;

  constructor(stream: Stream) {
    this.#stream = stream;
    stream.on("data", ({ message }: AttachRequest) => {
      if (message !== undefined) this.said.push(message);
    });
    for (const end of ["end", "cancelled", "error"]) {
      stream.on(end, () => {
        this.ended = true;
        stream.end();
      });
    }
  }

  tell(message: Told): void {
    this.#stream.write({ message });
  }

  async hello(): Promise<Hello> {
    return (await this.next("hello")).value as Hello;
  }

  /** The first message of that kind. */
  next(kind: Said["$case"]): Promise<Said> {
    return eventually(`the runner says ${kind}`, () => this.said.find((message) => message.$case === kind));
  }

  async welcome(sessionId = "s1"): Promise<Hello> {
    const hello = await this.hello();
    const heartbeatInterval = { seconds: 0, nanos: 50_000_000 };
    const [acceptTimeout, leaseTtl, resumeWindow] = [undefined, undefined, undefined];
    const value = { sessionId, nodeId: "fake", heartbeatInterval, acceptTimeout, leaseTtl, resumeWindow, lost: [] };
    this.tell({ $case: "welcome", value });
    return hello;
  }

  assign(...ids: string[]): void {
    const assignments = ids.map((id) => ({
      lease: { jobId: id, attempt: 1 },
      job: Job.fromPartial({ id, func: "f", channel: "c", attempt: 1, payloadJson: "{}", metadataJson: "{}" }),
    }));
    this.tell({ $case: "assignments", value: { assignments } });
  }

  accept(...ids: string[]): void {
    const receipts = ids.map((jobId) => ({ lease: { jobId, attempt: 1 }, accepted: true }));
    this.tell({ $case: "resultsAccepted", value: { receipts } });
  }

  get results(): Result[] {
    return this.said.flatMap((message) => (message.$case === "results" ? message.value.results : []));
  }

  /** What became of a job, once the runner has said so. */
  outcome(id: string): Promise<string | undefined> {
    return eventually(
      `the runner reports ${id}`,
      () => this.results.find(({ lease }) => lease?.jobId === id)?.outcome?.$case,
    );
  }

  cut(): void {
    this.#stream.emit("error", { code: status.UNAVAILABLE, details: "the test cut the stream" });
  }
}

/** A server on a port of its own. */
export class FakeService {
  readonly sessions: Session[] = [];
  readonly #server = new Server();
  /** Refuses the next streams with this code. */
  refusal: status | undefined;
  url = "";

  async start(): Promise<this> {
    const unary = (): never => {
      throw new Error("nobody calls this");
    };
    this.#server.addService(RunnersService, {
      attach: (stream: Stream) => {
        if (this.refusal === undefined) this.sessions.push(new Session(stream));
        else stream.emit("error", { code: this.refusal, details: "refused by the test" });
      },
      listRunners: unary,
      pingRunner: unary,
      shutdownRunner: unary,
      broadcastCommand: unary,
    });
    const port = await new Promise<number>((resolve, reject) => {
      this.#server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) => {
        if (error === null) resolve(port);
        else reject(error);
      });
    });
    this.url = `http://127.0.0.1:${port}`;
    return this;
  }

  /** The stream with that number, from 0. */
  session(number: number): Promise<Session> {
    return eventually(`stream ${number} is opened`, () => this.sessions[number]);
  }

  stop(): void {
    this.#server.forceShutdown();
  }
}
