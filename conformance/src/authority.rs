//! Certificates for scenarios over TLS: an authority in the scenario's folder, and what it signs.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use crate::scenario::Verdict;

/// A certificate and its private key, as PEM files.
#[derive(Clone, Debug)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Signs certificates. Nobody vouches for it but whoever is given its file.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
    /// Its own certificate, in PEM.
    pub file: PathBuf,
}

impl Authority {
    /// A new one; its files are in `folder`, under names that begin with `name`.
    pub fn new(folder: &Path, name: &str) -> Verdict<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let file = folder.join(format!("{name}.pem"));
        std::fs::write(&file, params.self_signed(&key)?.pem())?;
        Ok(Self { issuer: Issuer::new(params, key), folder: folder.to_owned(), file })
    }

    /// A certificate for these hosts, good for servers and for clients.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Verdict<Identity> {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let own = KeyPair::generate()?;
        let [certificate, key] = ["pem", "key"].map(|ending| self.folder.join(format!("{name}.{ending}")));
        std::fs::write(&certificate, params.signed_by(&own, &self.issuer)?.pem())?;
        std::fs::write(&key, own.serialize_pem())?;
        Ok(Identity { certificate, key })
    }
}
