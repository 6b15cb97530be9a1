/**
 * What the service is told of an error that a function threw.
 */
import type { Outcome } from "../session/messages.js";
import { Permanent, RetryAfter } from "./context.js";

/** The longest error text, in characters; the service cuts at as many bytes. */
const ERROR_MAX = 16 * 1024;
/** The longest stack trace, in characters; the service cuts at as many bytes. */
const STACK_TRACE_MAX = 64 * 1024;
/** Causes of causes that are told. */
const CAUSES_MAX = 10;

/** The outcome of a function that threw; `permanently` whatever it threw. */
export function failed(error: unknown, permanently = false): Outcome {
  const retryAfterSeconds = isNamed(error, RetryAfter) ? error.seconds : undefined;
  return {
    kind: "failed",
    error: sentence(error).slice(0, ERROR_MAX),
    stackTrace: stackOf(error).slice(0, STACK_TRACE_MAX),
    permanent: permanently || isNamed(error, Permanent),
    retryAfterSeconds,
  };
}

/**
 * By name as well: a module may have loaded its own copy of this package, and its classes are then others.
 */
function isNamed<E extends Error>(
  error: unknown,
  type: { new (...args: never[]): E; readonly name: string },
): error is E {
  return error instanceof type || (error instanceof Error && error.name === type.name);
}

function sentence(error: unknown): string {
  if (!(error instanceof Error)) return typeof error === "string" ? error : `thrown: ${show(error)}`;
  return error.message === "" ? error.name : error.message;
}

function stackOf(error: unknown): string {
  const stacks: string[] = [];
  let cause = error;
  while (cause instanceof Error && stacks.length < CAUSES_MAX) {
    stacks.push(cause.stack ?? `${cause.name}: ${cause.message}`);
    cause = cause.cause;
  }
  return stacks.join("\nCaused by: ");
}

function show(value: unknown): string {
  try {
    // Undefined for what JSON has no word for.
    const text = JSON.stringify(value) as string | undefined;
    if (text !== undefined) return text;
  } catch {
    // Circular, or a BigInt.
  }
  return String(value);
}
