/**
 * How much a log line matters.
 */
import { LogKind as WireLogKind } from "./gen/errand/v1/job.js";

/** How much a log line matters. */
export type LogKind = "debug" | "info" | "warn" | "error";

/** Each kind with its number on the wire. */
export const LOG_KINDS: readonly (readonly [LogKind, WireLogKind])[] = [
  ["debug", WireLogKind.LOG_KIND_DEBUG],
  ["info", WireLogKind.LOG_KIND_INFO],
  ["warn", WireLogKind.LOG_KIND_WARN],
  ["error", WireLogKind.LOG_KIND_ERROR],
];

/** The kind on the wire; plain information for a name that JavaScript callers made up. */
export function logKindToWire(kind: LogKind): WireLogKind {
  return LOG_KINDS.find(([name]) => name === kind)?.[1] ?? WireLogKind.LOG_KIND_INFO;
}

/** The kind of a number on the wire. */
export function logKindFromWire(wire: WireLogKind): LogKind {
  return LOG_KINDS.find(([, number]) => number === wire)?.[0] ?? "info";
}
