//! The data directory: the lock that keeps a second process out, the signing key, and where the database lies.
//!
//! Whatever is made here is for its owner only, whatever the umask. Reading the key takes no lock, so that
//! `errand token` works beside a running service.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::config::plain;

const LOCK_FILE: &str = "errand.lock";
const KEY_FILE: &str = "auth.key";
const DATABASE_FILE: &str = "errand.db";
const KEY_BYTES: usize = 32;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("data directory {} is in use by another errand process", .0.display())]
    InUse(PathBuf),
    #[error("database {} is in use by another errand process", .0.display())]
    DatabaseInUse(PathBuf),
    #[error("signing key {} is empty; remove it to have one made", .0.display())]
    EmptyKey(PathBuf),
    #[error("{} cannot be used: {}", path.display(), plain(source))]
    Unusable { path: PathBuf, source: io::Error },
}

/// The key that signs and checks tokens.
pub struct SigningKey {
    /// The text of the file, so that the file also serves as `--auth-secret-file` elsewhere.
    pub secret: Vec<u8>,
    /// Whether it was made by this call, as on a first start.
    pub created: bool,
}

/// A directory that exists.
#[derive(Debug, Clone)]
pub struct DataDir {
    path: PathBuf,
}

/// Held for as long as the process uses the data; the operating system lets go of it when the process ends, however it does.
#[derive(Debug)]
pub struct Locks {
    _files: Vec<File>,
}

impl DataDir {
    /// Makes the directory if it is absent, with mode 0700.
    pub fn open(path: &Path) -> Result<DataDir, DataDirError> {
        let unusable = |source| DataDirError::Unusable { path: path.to_owned(), source };
        if !path.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
            std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(unusable)?;
        }
        Ok(DataDir { path: path.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn database(&self) -> PathBuf {
        self.path.join(DATABASE_FILE)
    }

    /// Keeps other processes out of the directory, and out of a database elsewhere.
    pub fn lock(&self, database: Option<&Path>) -> Result<Locks, DataDirError> {
        let mut files = vec![lock(&self.path.join(LOCK_FILE), || DataDirError::InUse(self.path.clone()))?];
        if let Some(database) = database {
            let mut name = database.as_os_str().to_owned();
            name.push(".lock");
            files.push(lock(Path::new(&name), || DataDirError::DatabaseInUse(database.to_owned()))?);
        }
        Ok(Locks { _files: files })
    }

    /// The signing key, made if it is absent. Two processes that make it at once end up with the same one.
    pub fn signing_key(&self) -> Result<SigningKey, DataDirError> {
        let path = self.path.join(KEY_FILE);
        let unusable = |source| DataDirError::Unusable { path: path.clone(), source };
        let created = !path.exists() && create_key(&path).map_err(unusable)?;
        let secret = std::fs::read(&path).map_err(unusable)?.trim_ascii().to_vec();
        if secret.is_empty() {
            return Err(DataDirError::EmptyKey(path));
        }
        Ok(SigningKey { secret, created })
    }
}

fn lock(path: &Path, in_use: impl FnOnce() -> DataDirError) -> Result<File, DataDirError> {
    let unusable = |source| DataDirError::Unusable { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(path).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(in_use()),
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}

/// Writes a key beside its place and links it there: the name appears with its whole contents or not at all, and a key that
/// another process made meanwhile is never replaced. False where that happened.
#[expect(clippy::disallowed_methods, reason = "a name that must differ between processes, before there are dice")]
fn create_key(path: &Path) -> io::Result<bool> {
    let beside = path.with_extension(format!("key.{}", uuid::Uuid::new_v4().simple()));
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&beside)?;
    let placed = file
        .set_permissions(Permissions::from_mode(0o600))
        .and_then(|()| writeln!(file, "{}", random_hex()?))
        .and_then(|()| file.sync_all())
        .and_then(|()| match std::fs::hard_link(&beside, path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            // A file system without links.
            Err(_) => std::fs::rename(&beside, path).map(|()| true),
        });
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => placed,
    }
}

fn random_hex() -> io::Result<String> {
    let mut bytes = [0u8; KEY_BYTES];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the operating system gives no randomness"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().expect("metadata").permissions().mode() & 0o777
    }

    #[test]
    fn what_is_made_is_for_its_owner_only() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let dir = DataDir::open(&parent.path().join("a/b")).expect("made");
        let key = dir.signing_key().expect("key");
        assert!(key.created);
        assert_eq!(key.secret.len(), 2 * KEY_BYTES);
        assert_eq!(mode(dir.path()), 0o700);
        assert_eq!(mode(&dir.path().join(KEY_FILE)), 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1, "nothing is left beside the key");
    }

    #[test]
    fn a_key_stays_the_same() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let dir = DataDir::open(parent.path()).expect("opened");
        let first = dir.signing_key().expect("key");
        let second = dir.signing_key().expect("key");
        assert!(!second.created);
        assert_eq!(first.secret, second.secret);
        assert!(!create_key(&parent.path().join(KEY_FILE)).expect("beaten"), "a key there is never replaced");
        assert_eq!(dir.signing_key().expect("key").secret, first.secret);
    }

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_gone() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let dir = DataDir::open(parent.path()).expect("opened");
        let held = dir.lock(None).expect("first");
        let refused = dir.lock(None).expect_err("second").to_string();
        assert_eq!(refused, format!("data directory {} is in use by another errand process", parent.path().display()));
        dir.signing_key().expect("the key is read beside a running service");
        drop(held);
        dir.lock(None).expect("after the first");
    }

    #[test]
    fn a_database_elsewhere_is_locked_too() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let database = parent.path().join("jobs.db");
        let one = DataDir::open(&parent.path().join("one")).expect("opened");
        let two = DataDir::open(&parent.path().join("two")).expect("opened");
        let _held = one.lock(Some(&database)).expect("first");
        assert!(matches!(two.lock(Some(&database)), Err(DataDirError::DatabaseInUse(_))));
    }
}
