//! What a person sees at a first start: how to get a token, and a request that works as it stands.

use std::{net::SocketAddr, path::Path};

/// The lines, for an address to call and the directory whose key signs.
pub(super) fn first_start(program: &str, data_dir: &Path, http: SocketAddr, tls: bool) -> String {
    let (program, data_dir) = (quoted(program), quoted(&data_dir.display().to_string()));
    let (scheme, insecure) = if tls { ("https", " --insecure") } else { ("http", "") };
    let http = reachable(http);
    format!(
        "\nThis is a first start. A token for yourself, and a job to begin with:\n\n  \
         TOKEN=$({program} token --data-dir {data_dir} --subject me --permission manage_jobs)\n  \
         curl{insecure} {scheme}://{http}/api/jobs/publish -H \"Authorization: Bearer $TOKEN\" \
         -H 'Content-Type: application/json' -d '{{\"func\": \"hello\", \"payload\": {{\"name\": \"world\"}}}}'\n"
    )
}

/// A service that listens everywhere is called on this machine.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    address
}

/// For a shell.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+:@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_fit_a_shell() {
        let text = first_start("errand", Path::new("/tmp/it's here"), SocketAddr::from(([0, 0, 0, 0], 8080)), false);
        assert!(text.contains(r"--data-dir '/tmp/it'\''s here' --subject me"), "{text}");
        assert!(text.contains("curl http://127.0.0.1:8080/api/jobs/publish "), "{text}");
    }
}
