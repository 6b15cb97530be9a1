/**
 * JSON values, and text that is JSON already.
 *
 * The service keeps payloads and results as the text they came in, so numbers beyond 2^53 survive it. `JSON.parse` and
 * `JSON.stringify` would change them; {@link RawJson} goes around both.
 */

/** Whatever `JSON.stringify` makes text of. `unknown` members are checked when they are sent, not by the compiler. */
export type JsonObject = Readonly<Record<string, unknown>>;

/**
 * Text that is JSON already, to be sent as it stands: as a payload, as a result, or as metadata.
 *
 * @example
 * ```ts
 * await client.publish("ledger.add", new RawJson('{"amount": 9007199254740993}'));
 * ```
 */
export class RawJson {
  /** The JSON text. */
  readonly text: string;

  /** Takes the text without checking it; the service refuses what is not JSON. */
  constructor(text: string) {
    this.text = text;
  }
}

/** The JSON text of a payload or of metadata, which have to be objects. */
export function objectText(what: string, value: unknown): string {
  if (value instanceof RawJson) return value.text;
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new TypeError(`${what} must be an object`);
  }
  return JSON.stringify(value);
}

/** The JSON text of a result; empty where there is none. */
export function resultText(value: unknown): string {
  if (value === undefined) return "";
  if (value instanceof RawJson) return value.text;
  // Undefined for what JSON has no word for, such as a function.
  const text = JSON.stringify(value) as string | undefined;
  if (text === undefined) throw new TypeError(`a ${typeof value} is no JSON value`);
  return text;
}

/** The value of a text that the service keeps; undefined for an empty one. */
export function parsed(text: string): unknown {
  return text === "" ? undefined : JSON.parse(text);
}

/** The object of a text that the service keeps; empty for an empty one. */
export function parsedObject(text: string): Record<string, unknown> {
  return text === "" ? {} : (JSON.parse(text) as Record<string, unknown>);
}
