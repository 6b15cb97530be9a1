/**
 * What the client calls itself.
 */
import { createRequire } from "node:module";

const manifest = createRequire(import.meta.url)("../package.json") as { name: string; version: string };

/** Told to the service, e.g. `errand-client/0.1.0`. */
export const CLIENT = `${manifest.name}/${manifest.version}`;
