//! The gRPC contract of Errand, compiled: messages, clients and servers of the package `errand.v1`.
//!
//! Nothing here is written by hand; the protos beside this crate are the source.

/// Package `errand.v1`.
pub mod v1 {
    tonic::include_proto!("errand.v1");
}

/// Every proto of the contract as an encoded `FileDescriptorSet`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
