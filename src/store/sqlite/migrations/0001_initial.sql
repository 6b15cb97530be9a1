-- Times are microseconds since 1970 in UTC; enums are the codes in row.rs; ids are 16 bytes that sort by creation time.

CREATE TABLE jobs (
    id                  BLOB NOT NULL PRIMARY KEY,
    version             INTEGER NOT NULL,
    channel             TEXT NOT NULL,
    func                TEXT NOT NULL,
    payload             TEXT NOT NULL,
    status              INTEGER NOT NULL,
    run_at              INTEGER,
    ready_at            INTEGER NOT NULL,
    expires_at          INTEGER NOT NULL,
    expiry_kind         INTEGER NOT NULL,
    expiry_value        INTEGER,
    attempt             INTEGER NOT NULL,
    releases            INTEGER NOT NULL,
    max_retries         INTEGER NOT NULL,
    backoff_base        REAL NOT NULL,
    backoff_max_seconds INTEGER NOT NULL,
    broadcast           INTEGER NOT NULL,
    cancel_requested    INTEGER NOT NULL,
    max_exec_seconds    INTEGER,
    overrun_at          INTEGER,
    runner_id           TEXT,
    last_error          TEXT NOT NULL,
    stack_trace         TEXT NOT NULL,
    metadata            TEXT NOT NULL,
    result              TEXT NOT NULL,
    idempotency_key     TEXT,
    fingerprint         BLOB NOT NULL,
    owner               TEXT NOT NULL,
    priority            INTEGER NOT NULL,
    created             INTEGER NOT NULL,
    modified            INTEGER NOT NULL,
    started_at          INTEGER,
    finished_at         INTEGER,
    traceparent         TEXT NOT NULL,
    parent_id           BLOB,
    event_seq           INTEGER NOT NULL
);

-- Every index costs each job's way through the house, so an index that covers few jobs at a time is partial. Where such an
-- index ends with the columns of its own condition, SQLite counts from it alone, without a look at each job.

-- The order to run.
CREATE INDEX jobs_ready ON jobs (channel, priority DESC, ready_at, id, status, broadcast) WHERE status = 0 AND broadcast = 0;
-- What comes due.
CREATE INDEX jobs_due ON jobs (ready_at, id) WHERE status = 0;
CREATE INDEX jobs_expiry ON jobs (expires_at, id) WHERE status = 0;
CREATE INDEX jobs_overrun ON jobs (overrun_at, id) WHERE overrun_at IS NOT NULL;
CREATE INDEX jobs_running ON jobs (id, channel, status) WHERE status = 1;
CREATE INDEX jobs_broadcast ON jobs (status, ready_at, id, channel) WHERE broadcast = 1 AND status < 2;
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
    channel   TEXT NOT NULL,
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
