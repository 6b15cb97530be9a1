/**
 * The machine-readable half of a refusal: `google.rpc.ErrorInfo` in the trailer `grpc-status-details-bin`.
 *
 * Read field by field rather than by generated code: two messages of Google's, of which two strings are wanted.
 */
import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";
import type { Metadata } from "@grpc/grpc-js";

/** Why a call was refused. */
export interface ErrorInfo {
  /** e.g. `JOB_NOT_FOUND`; empty where the trailer has none, as when no service answered. */
  readonly reason: string;
  /** The field at fault; empty where none is named. */
  readonly field: string;
}

const TRAILER = "grpc-status-details-bin";
const NONE: ErrorInfo = { reason: "", field: "" };

/** Reads the trailer; a malformed one says nothing. */
export function errorInfo(trailers: Metadata): ErrorInfo {
  const [trailer] = trailers.get(TRAILER);
  if (!Buffer.isBuffer(trailer)) return NONE;
  try {
    // google.rpc.Status: 3 is `repeated google.protobuf.Any details`.
    const details = lengthDelimited(trailer).filter(([field]) => field === 3);
    for (const [, any] of details) {
      const [url, value] = anyParts(any);
      if (url.endsWith("/google.rpc.ErrorInfo")) return readErrorInfo(value);
    }
  } catch {
    // Not from the service: some proxy's own.
  }
  return NONE;
}

/** google.protobuf.Any: 1 is `type_url`, 2 is `value`. */
function anyParts(any: Uint8Array): [url: string, value: Uint8Array] {
  const parts = new Map(lengthDelimited(any));
  return [text(parts.get(1)), parts.get(2) ?? new Uint8Array()];
}

/** google.rpc.ErrorInfo: 1 is `reason`, 3 is `map<string, string> metadata`. */
function readErrorInfo(bytes: Uint8Array): ErrorInfo {
  const fields = lengthDelimited(bytes);
  const reason = text(new Map(fields).get(1));
  const entries = fields.filter(([field]) => field === 3).map(([, entry]) => new Map(lengthDelimited(entry)));
  const entry = entries.find((parts) => text(parts.get(1)) === "field");
  return { reason, field: text(entry?.get(2)) };
}

/** The length-delimited fields of a message, in order. */
function lengthDelimited(bytes: Uint8Array): [field: number, value: Uint8Array][] {
  const reader = new BinaryReader(bytes);
  const fields: [number, Uint8Array][] = [];
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (type === WireType.LengthDelimited) fields.push([field, reader.bytes()]);
    else reader.skip(type, field);
  }
  return fields;
}

function text(bytes: Uint8Array | undefined): string {
  return bytes === undefined ? "" : Buffer.from(bytes).toString("utf8");
}
