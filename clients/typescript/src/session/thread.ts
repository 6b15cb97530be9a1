/**
 * The entry of the session's thread: a session between its port and the service.
 */
import { type MessagePort, workerData } from "node:worker_threads";

import type { SessionSettings, ToSession } from "./messages.js";
import { Session } from "./session.js";

const { settings, port } = workerData as { settings: SessionSettings; port: MessagePort };

const session = new Session(
  settings,
  (message) => {
    port.postMessage(message);
  },
  () => {
    port.close();
  },
);
port.on("message", (message: ToSession) => {
  session.take(message);
});
