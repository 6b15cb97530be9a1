/**
 * The headers of a call.
 */
import { Metadata, type MetadataValue } from "@grpc/grpc-js";

const ACCEPT_ENCODING = "grpc-accept-encoding";

/**
 * Headers that ask for answers as they are. grpc-js accepts gzip for every call and has no setting against it, and the
 * service packs what is accepted packed: several times the work, and the wait, that a small message takes otherwise.
 */
class PlainMetadata extends Metadata {
  override set(key: string, value: MetadataValue): void {
    super.set(key, key === ACCEPT_ENCODING ? "identity" : value);
  }

  // The copies that grpc-js makes on the way have to be of this kind.
  override clone(): PlainMetadata {
    const copy = new PlainMetadata(this.getOptions());
    copy.merge(this);
    return copy;
  }
}

/** The token and the trace context, where there are any. */
export function headers(token: string | undefined, traceparent?: string): Metadata {
  const metadata = new PlainMetadata();
  if (token !== undefined) metadata.set("authorization", `Bearer ${token}`);
  if (traceparent !== undefined && traceparent !== "") metadata.set("traceparent", traceparent);
  return metadata;
}
