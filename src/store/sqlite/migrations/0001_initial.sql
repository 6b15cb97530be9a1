-- Times are microseconds since 1970 in UTC; enums are the codes in codes.rs; ids are 16 bytes that sort by creation time.

-- The texts that may be large stand last, so that the other columns are read without them.
CREATE TABLE jobs (
    id                  BLOB NOT NULL PRIMARY KEY,
    version             INTEGER NOT NULL,
    status              INTEGER NOT NULL,
    broadcast           INTEGER NOT NULL,
    channel             TEXT NOT NULL,
    priority            INTEGER NOT NULL,
    run_at              INTEGER,
    ready_at            INTEGER NOT NULL,
    expires_at          INTEGER NOT NULL,
    -- When time alone will end what is going on: the expiry of a pending job, the limit of a running one.
    due_at              INTEGER,
    attempt             INTEGER NOT NULL,
    releases            INTEGER NOT NULL,
    cancel_requested    INTEGER NOT NULL,
    modified            INTEGER NOT NULL,
    started_at          INTEGER,
    finished_at         INTEGER,
    runner_id           TEXT,
    event_seq           INTEGER NOT NULL,
    created             INTEGER NOT NULL,
    owner               TEXT NOT NULL,
    func                TEXT NOT NULL,
    expiry_kind         INTEGER NOT NULL,
    expiry_value        INTEGER,
    max_retries         INTEGER NOT NULL,
    backoff_base        REAL NOT NULL,
    backoff_max_seconds INTEGER NOT NULL,
    max_exec_seconds    INTEGER,
    idempotency_key     TEXT,
    fingerprint         BLOB NOT NULL,
    traceparent         TEXT NOT NULL,
    parent_id           BLOB,
    -- The first, short events, as codec.rs writes them; the others are in job_events.
    events              BLOB NOT NULL,
    payload             TEXT NOT NULL,
    metadata            TEXT NOT NULL,
    result              TEXT NOT NULL,
    last_error          TEXT NOT NULL,
    stack_trace         TEXT NOT NULL
) WITHOUT ROWID;

-- Every index costs each job's way through the house, so an index that covers few jobs at a time is partial. Where such an
-- index ends with the columns of its own condition, SQLite counts from it alone, without a look at each job.

-- Unfinished jobs: the pending ones of a channel in the order to run, and the running ones.
CREATE INDEX jobs_live ON jobs (status, broadcast, channel, priority DESC, ready_at, id) WHERE status < 2;
-- What comes due.
CREATE INDEX jobs_due ON jobs (status, due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX jobs_waiting ON jobs (ready_at, id) WHERE status = 0 AND broadcast = 0;
CREATE INDEX jobs_broadcast ON jobs (status, ready_at, id) WHERE broadcast = 1 AND status < 2;
-- What was promised to publishers.
CREATE UNIQUE INDEX jobs_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
-- What is looked at. Completed jobs are most of all jobs, so a list of them finds enough without an index.
CREATE INDEX jobs_owner ON jobs (owner, id);
CREATE INDEX jobs_channel ON jobs (channel, id);
CREATE INDEX jobs_unsuccessful ON jobs (status, id) WHERE status > 2;
CREATE INDEX jobs_parent ON jobs (parent_id, id) WHERE parent_id IS NOT NULL;

CREATE TABLE job_events (
    job_id    BLOB NOT NULL,
    seq       INTEGER NOT NULL,
    kind      INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    runner_id TEXT,
    attempt   INTEGER NOT NULL,
    details   TEXT NOT NULL,
    PRIMARY KEY (job_id, seq)
) WITHOUT ROWID;

CREATE TABLE job_logs (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id  BLOB NOT NULL,
    channel TEXT NOT NULL,
    created INTEGER NOT NULL,
    kind    INTEGER NOT NULL,
    message TEXT NOT NULL,
    meta    TEXT NOT NULL
);

CREATE INDEX job_logs_job ON job_logs (job_id, id);

-- One row: how many jobs that are no parts ended how. Counting millions of jobs takes too long to be asked often.
CREATE TABLE totals (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    completed INTEGER NOT NULL,
    failed    INTEGER NOT NULL,
    canceled  INTEGER NOT NULL,
    expired   INTEGER NOT NULL
);

INSERT INTO totals (id, completed, failed, canceled, expired) VALUES (1, 0, 0, 0, 0);

-- What is stored and not in the tables yet; see journal.rs.
CREATE TABLE journal (
    record INTEGER PRIMARY KEY,
    steps  BLOB NOT NULL
);
