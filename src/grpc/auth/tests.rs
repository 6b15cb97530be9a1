//! Tokens good and bad. The `.der` files beside this are keys of these tests and of nothing else.

use jsonwebtoken::jwk::Jwk;
use serde_json::{Value, json};

use super::*;

const SECRET: &[u8] = b"a secret of thirty-two bytes, no less";
const NOW: Timestamp = Timestamp(1_000_000_000_000_000);
const LATER: i64 = 1_000_000_060;

fn token(claims: &Value, algorithm: Algorithm, key: &EncodingKey) -> String {
    jsonwebtoken::encode(&Header::new(algorithm), claims, key).expect("signs")
}

fn hs256(claims: &Value) -> String {
    token(claims, Algorithm::HS256, &EncodingKey::from_secret(SECRET))
}

fn check(token: &str) -> Result<Caller, Unauthenticated> {
    Authenticator::from_secret(SECRET).caller(token, NOW)
}

fn private_keys() -> [(Algorithm, EncodingKey); 3] {
    [
        (Algorithm::RS256, EncodingKey::from_rsa_der(include_bytes!("rs256.der"))),
        (Algorithm::ES256, EncodingKey::from_ec_der(include_bytes!("es256.der"))),
        (Algorithm::EdDSA, EncodingKey::from_ed_der(include_bytes!("ed25519.der"))),
    ]
}

fn key_set(keys: &[(Algorithm, EncodingKey)]) -> String {
    let jwks: Vec<Jwk> =
        keys.iter().map(|(algorithm, key)| Jwk::from_encoding_key(key, *algorithm).expect("a public key")).collect();
    json!({ "keys": jwks }).to_string()
}

#[test]
fn a_minted_token_names_its_caller() {
    let permissions = ["run_jobs".to_owned(), "fly".to_owned()];
    let channels = ["emails".to_owned()];
    let token = mint(SECRET, "ann", &permissions, Some(&channels), LATER).expect("signs");
    let caller = check(&token).expect("a good token");
    assert_eq!(&*caller.subject, "ann");
    assert_eq!(caller.permissions, [Permission::RunJobs]);
    assert_eq!(caller.channels.as_deref(), Some(&channels[..]));
}

#[test]
fn claims_beyond_sub_and_exp_are_optional() {
    let caller = check(&hs256(&json!({ "sub": "ann", "exp": LATER, "aud": "anything" }))).expect("a good token");
    assert_eq!((caller.permissions.len(), caller.channels), (0, None));
}

#[test]
fn tokens_without_sub_or_exp_name_nobody() {
    for claims in [json!({ "exp": LATER }), json!({ "sub": "", "exp": LATER }), json!({ "sub": "ann" })] {
        assert_eq!(check(&hs256(&claims)), Err(Unauthenticated::Invalid), "{claims}");
    }
}

#[test]
fn a_token_expires_on_the_second_even_if_remembered() {
    let token = hs256(&json!({ "sub": "ann", "exp": LATER }));
    let authenticator = Authenticator::from_secret(SECRET);
    assert!(authenticator.caller(&token, Timestamp(LATER * 1_000_000 - 1)).is_ok());
    assert_eq!(authenticator.caller(&token, Timestamp(LATER * 1_000_000)), Err(Unauthenticated::Expired));
    assert_eq!(check(&hs256(&json!({ "sub": "ann", "exp": 1 }))), Err(Unauthenticated::Expired));
}

#[test]
fn a_token_is_not_good_before_its_time() {
    let token = hs256(&json!({ "sub": "ann", "exp": LATER, "nbf": LATER - 1 }));
    assert_eq!(check(&token), Err(Unauthenticated::Invalid));
    assert!(Authenticator::from_secret(SECRET).caller(&token, Timestamp((LATER - 1) * 1_000_000)).is_ok());
}

#[test]
fn unsigned_and_foreign_tokens_name_nobody() {
    let claims = json!({ "sub": "ann", "exp": LATER });
    let good = hs256(&claims);
    let mut parts = good.split('.');
    let (_, payload, signature) = (parts.next(), parts.next().expect("a payload"), parts.next().expect("a signature"));
    // {"alg":"none","typ":"JWT"}
    let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.");
    let unsigned_with_rest = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.{signature}");
    let foreign = token(&claims, Algorithm::HS256, &EncodingKey::from_secret(b"another secret"));
    let longer = token(&claims, Algorithm::HS512, &EncodingKey::from_secret(SECRET));
    let header = Header { crit: Some(vec!["b64".to_owned()]), ..Header::new(Algorithm::HS256) };
    let asks = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(SECRET)).expect("signs");
    for bad in [unsigned, unsigned_with_rest, foreign, longer, asks, String::new(), "a.b.c".to_owned()] {
        assert_eq!(check(&bad), Err(Unauthenticated::Invalid), "{bad}");
    }
}

#[test]
fn a_key_set_verifies_each_kind_it_holds() {
    let keys = private_keys();
    let authenticator = Authenticator::from_jwks(&key_set(&keys)).expect("usable keys");
    for (algorithm, key) in &keys {
        let token = token(&json!({ "sub": "ann", "exp": LATER }), *algorithm, key);
        assert!(authenticator.caller(&token, NOW).is_ok(), "{algorithm:?}");
    }
}

#[test]
fn a_key_set_refuses_secrets_and_keys_it_does_not_hold() {
    let keys = private_keys();
    let set = key_set(&keys[..1]);
    let authenticator = Authenticator::from_jwks(&set).expect("usable keys");
    let claims = json!({ "sub": "ann", "exp": LATER });
    // The classic confusion: the public key, which everybody has, as the secret of an HS256 token.
    let confused = token(&claims, Algorithm::HS256, &EncodingKey::from_secret(set.as_bytes()));
    let absent = token(&claims, Algorithm::ES256, &keys[1].1);
    for bad in [hs256(&claims), confused, absent] {
        assert_eq!(authenticator.caller(&bad, NOW), Err(Unauthenticated::Invalid));
    }
}

#[test]
fn unusable_key_sets_are_refused() {
    let secret = json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" }, { "kty": "strange" }] });
    assert!(matches!(Authenticator::from_jwks(&secret.to_string()), Err(AuthConfigError::NoUsableKey)));
    assert!(matches!(Authenticator::from_jwks("[]"), Err(AuthConfigError::NotAKeySet(_))));
}

#[test]
fn the_header_is_a_bearer_of_either_case() {
    let authenticator = Authenticator::from_secret(SECRET);
    let token = hs256(&json!({ "sub": "ann", "exp": LATER }));
    let with = |value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().expect("a header"));
        authenticator.authenticate(&headers, NOW).map(|_| ())
    };
    assert_eq!(with(&format!("Bearer {token}")), Ok(()));
    assert_eq!(with(&format!("bearer {token}")), Ok(()));
    assert_eq!(with("Basic YTpi"), Err(Unauthenticated::Missing));
    assert_eq!(with("Bearer x"), Err(Unauthenticated::Invalid));
    assert_eq!(authenticator.authenticate(&HeaderMap::new(), NOW), Err(Unauthenticated::Missing));
}
