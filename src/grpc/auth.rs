//! Who is calling: JSON web tokens, verified with the algorithm the key is for and no other.
//!
//! It promises that an unsigned token, one signed with another algorithm than the key's, one past its `exp`, and one
//! without `sub` or `exp` name nobody. Deliberately absent: leeway, audiences, and fetching keys over the network.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use http::{HeaderMap, header::AUTHORIZATION};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde::{Deserialize, Serialize};

use crate::model::{Caller, Timestamp, access::Permission};

/// Verified tokens remembered; the memory is cleared when it is full.
const REMEMBERED_MAX: usize = 10_000;

/// The keys given cannot verify any token.
#[derive(Debug, thiserror::Error)]
pub enum AuthConfigError {
    #[error("the key set is not a JSON object with a list `keys`")]
    NotAKeySet(#[source] serde_json::Error),
    #[error("the key set has no signing key for RS256, ES256 or EdDSA")]
    NoUsableKey,
}

/// Why a call names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    #[error("Authentication required")]
    Missing,
    #[error("Invalid token")]
    Invalid,
    #[error("Token expired")]
    Expired,
}

/// A token could not be signed.
#[derive(Debug, thiserror::Error)]
#[error("the token cannot be signed")]
pub struct MintError(#[source] jsonwebtoken::errors::Error);

/// Tells who holds a token.
pub struct Authenticator {
    keys: Vec<Key>,
    remembered: RwLock<HashMap<Box<str>, Verified>>,
}

/// One key and the one algorithm it verifies.
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

#[derive(Clone)]
struct Verified {
    caller: Caller,
    /// Seconds since 1970, as the token spells them.
    expires_at: f64,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
    nbf: Option<f64>,
    #[serde(default)]
    permissions: Option<Vec<String>>,
    #[serde(default)]
    channels: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct KeySet {
    /// Kept raw, so that one key of a kind unknown here spoils no other.
    keys: Vec<serde_json::Value>,
}

impl Authenticator {
    /// Verifies HS256 with this secret.
    pub fn from_secret(secret: &[u8]) -> Authenticator {
        let decoding = DecodingKey::from_secret(secret);
        Authenticator::from_keys(vec![Key { id: None, algorithm: Algorithm::HS256, decoding }])
    }

    /// Verifies RS256, ES256 and EdDSA with the public keys of a JSON web key set. Keys of other kinds are passed over.
    pub fn from_jwks(json: &str) -> Result<Authenticator, AuthConfigError> {
        let set: KeySet = serde_json::from_str(json).map_err(AuthConfigError::NotAKeySet)?;
        let keys: Vec<Key> = set.keys.into_iter().filter_map(Key::from_json).collect();
        if keys.is_empty() {
            return Err(AuthConfigError::NoUsableKey);
        }
        Ok(Authenticator::from_keys(keys))
    }

    fn from_keys(keys: Vec<Key>) -> Authenticator {
        Authenticator { keys, remembered: RwLock::default() }
    }

    /// The caller named by the `authorization` header.
    pub fn authenticate(&self, headers: &HeaderMap, now: Timestamp) -> Result<Caller, Unauthenticated> {
        let header = headers.get(AUTHORIZATION).ok_or(Unauthenticated::Missing)?;
        let header = header.to_str().map_err(|_| Unauthenticated::Invalid)?;
        match header.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => self.caller(token.trim(), now),
            _ => Err(Unauthenticated::Missing),
        }
    }

    /// The caller named by a token.
    pub fn caller(&self, token: &str, now: Timestamp) -> Result<Caller, Unauthenticated> {
        if let Some(known) = self.remembered.read().unwrap_or_else(PoisonError::into_inner).get(token) {
            return known.at(now);
        }
        let claims = self.verify(token)?;
        if claims.sub.is_empty() {
            return Err(Unauthenticated::Invalid);
        }
        let not_before = claims.nbf;
        let verified = Verified::from(claims);
        let caller = verified.at(now)?;
        if not_before.is_some_and(|nbf| seconds(now) < nbf) {
            return Err(Unauthenticated::Invalid);
        }
        let mut remembered = self.remembered.write().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(token.into(), verified);
        Ok(caller)
    }

    fn verify(&self, token: &str) -> Result<Claims, Unauthenticated> {
        // An algorithm that does not exist here, `none` among them, does not parse as a header.
        let header = jsonwebtoken::decode_header(token).map_err(|_| Unauthenticated::Invalid)?;
        if header.crit.is_some() {
            // It asks for something that must be understood to be believed, and nothing of the kind is.
            return Err(Unauthenticated::Invalid);
        }
        let mut candidates = self.keys.iter().filter(|key| {
            key.algorithm == header.alg && (key.id.is_none() || header.kid.is_none() || key.id == header.kid)
        });
        candidates
            .find_map(|key| {
                let mut validation = Validation::new(key.algorithm);
                // Presence and times are checked here, against the service's clock and without leeway.
                validation.required_spec_claims.clear();
                validation.validate_exp = false;
                validation.validate_aud = false;
                jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation).ok()
            })
            .map(|data| data.claims)
            .ok_or(Unauthenticated::Invalid)
    }
}

impl Key {
    fn from_json(json: serde_json::Value) -> Option<Key> {
        // The member `alg`, where it is there, must not contradict the kind of the key.
        let said = json.get("alg").and_then(|alg| alg.as_str()).map(str::to_owned);
        let jwk: Jwk = serde_json::from_value(json).ok()?;
        if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
            return None;
        }
        let (algorithm, name) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, "RS256"),
            AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, "ES256")
            }
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, "EdDSA")
            }
            _ => return None,
        };
        if said.is_some_and(|said| said != name) {
            return None;
        }
        let decoding = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Key { id: jwk.common.key_id, algorithm, decoding })
    }
}

impl Verified {
    fn at(&self, now: Timestamp) -> Result<Caller, Unauthenticated> {
        // Expired on the very second, as RFC 7519 says: "on or after".
        if seconds(now) >= self.expires_at { Err(Unauthenticated::Expired) } else { Ok(self.caller.clone()) }
    }
}

impl From<Claims> for Verified {
    fn from(claims: Claims) -> Verified {
        let names = claims.permissions.unwrap_or_default();
        let permissions = names.iter().filter_map(|name| Permission::from_name(name)).collect();
        let caller = Caller { subject: claims.sub.into(), permissions, channels: claims.channels };
        Verified { caller, expires_at: claims.exp }
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.0 as f64 / 1e6
}

/// Signs an HS256 token; `expires_at` is in seconds since 1970.
pub fn mint(
    secret: &[u8],
    subject: &str,
    permissions: &[String],
    channels: Option<&[String]>,
    expires_at: i64,
) -> Result<String, MintError> {
    #[derive(Serialize)]
    struct Minted<'a> {
        sub: &'a str,
        exp: i64,
        permissions: &'a [String],
        #[serde(skip_serializing_if = "Option::is_none")]
        channels: Option<&'a [String]>,
    }
    let claims = Minted { sub: subject, exp: expires_at, permissions, channels };
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret)).map_err(MintError)
}

#[cfg(test)]
mod tests;
