-- Times are microseconds since 1970 in UTC; enums are the codes in src/store/codes.rs; ids are UUIDv7, which sort by time.
-- What compares texts does so by their bytes, whatever the database's collation.
--
-- Nodes of different versions share this schema while they are upgraded. A column that a later version adds has a default,
-- and must bear that an older node moves a finished job without it; a change that cannot bear this raises `works_with`.

-- Unfinished jobs. They are few beside the finished ones, so whatever runs jobs never wades through history.
CREATE TABLE errand.jobs (
    id                  uuid NOT NULL PRIMARY KEY,
    parent_id           uuid,
    version             bigint NOT NULL,
    created             bigint NOT NULL,
    modified            bigint NOT NULL,
    ready_at            bigint NOT NULL,
    expires_at          bigint NOT NULL,
    run_at              bigint,
    started_at          bigint,
    finished_at         bigint,
    overrun_at          bigint,
    expiry_value        bigint,
    attempt             bigint NOT NULL,
    releases            bigint NOT NULL,
    max_retries         bigint NOT NULL,
    backoff_max_seconds bigint NOT NULL,
    max_exec_seconds    bigint,
    event_seq           bigint NOT NULL,
    backoff_base        double precision NOT NULL,
    priority            integer NOT NULL,
    status              integer NOT NULL,
    expiry_kind         integer NOT NULL,
    broadcast           boolean NOT NULL,
    cancel_requested    boolean NOT NULL,
    fingerprint         bytea NOT NULL,
    channel             text COLLATE "C" NOT NULL,
    func                text COLLATE "C" NOT NULL,
    owner               text COLLATE "C" NOT NULL,
    runner_id           text COLLATE "C",
    idempotency_key     text COLLATE "C",
    traceparent         text NOT NULL,
    payload             text NOT NULL,
    metadata            text NOT NULL,
    result              text NOT NULL,
    last_error          text NOT NULL,
    stack_trace         text NOT NULL,
    -- The first events, a line each, as src/store/postgres/events.rs writes them. A row of its own for each event costs as
    -- much as the job itself.
    events              text NOT NULL
) WITH (
    -- Every job dies here within minutes: what it leaves is collected often and without pause.
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0
);

-- A job enters and leaves each of these once, so there are no more than running jobs takes, and all but one are partial.
-- The order to run, broadcast jobs among it.
CREATE INDEX jobs_ready ON errand.jobs (channel, priority DESC, ready_at, id) WHERE status = 0;
-- What comes due.
CREATE INDEX jobs_due ON errand.jobs (ready_at, id) WHERE status = 0;
CREATE INDEX jobs_expiry ON errand.jobs (expires_at, id) WHERE status = 0;
CREATE INDEX jobs_overrun ON errand.jobs (overrun_at, id) WHERE overrun_at IS NOT NULL;
CREATE INDEX jobs_running ON errand.jobs (id) INCLUDE (channel, parent_id) WHERE status = 1;
CREATE INDEX jobs_broadcast ON errand.jobs (ready_at, id) WHERE broadcast;
CREATE INDEX jobs_parent ON errand.jobs (parent_id, id) WHERE parent_id IS NOT NULL;

-- Finished jobs. A row comes once and hardly ever changes. Partitions are days by the job's id, that is, by its creation: an
-- id then leads to one partition, ids stay unique, and lists by age read partition after partition. Days by the time of the
-- end would make each look-up by id ask every partition.
CREATE TABLE errand.finished (LIKE errand.jobs, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE errand.finished_rest PARTITION OF errand.finished DEFAULT;

CREATE INDEX finished_owner ON errand.finished (owner, id);
CREATE INDEX finished_channel ON errand.finished (channel, id);
CREATE INDEX finished_unsuccessful ON errand.finished (status, id) WHERE status > 2;
CREATE INDEX finished_parent ON errand.finished (parent_id, id) WHERE parent_id IS NOT NULL;

-- What was promised to publishers: it outlives the job's end, so it cannot be an index of one of the tables.
CREATE TABLE errand.keys (
    owner           text COLLATE "C" NOT NULL,
    idempotency_key text COLLATE "C" NOT NULL,
    job_id          uuid NOT NULL,
    PRIMARY KEY (owner, idempotency_key)
);
CREATE INDEX keys_job ON errand.keys (job_id);

-- Events behind those that a job's row has room for.
CREATE TABLE errand.late_events (
    job_id uuid NOT NULL,
    seq    bigint NOT NULL,
    line   text NOT NULL,
    PRIMARY KEY (job_id, seq)
);

CREATE SEQUENCE errand.log_id;

-- Partitioned like the finished jobs, to go with them.
CREATE TABLE errand.logs (
    job_id  uuid NOT NULL,
    id      bigint NOT NULL,
    created bigint NOT NULL,
    kind    integer NOT NULL,
    channel text COLLATE "C" NOT NULL,
    message text NOT NULL,
    meta    text NOT NULL,
    PRIMARY KEY (job_id, id)
) PARTITION BY RANGE (job_id);
CREATE TABLE errand.logs_rest PARTITION OF errand.logs DEFAULT;

-- The shapes in which src/store/postgres/columns.rs hands over rows. They never change; another shape is another type.
CREATE TYPE errand.new_job AS (
    id uuid, channel text, func text, payload text, expiry_kind integer, expiry_value bigint, max_retries bigint,
    backoff_base double precision, backoff_max_seconds bigint, broadcast boolean, max_exec_seconds bigint,
    idempotency_key text, fingerprint bytea, owner text, priority integer, created bigint, traceparent text, parent_id uuid,
    version bigint, status integer, run_at bigint, ready_at bigint, expires_at bigint, attempt bigint, releases bigint,
    cancel_requested boolean, overrun_at bigint, runner_id text, last_error text, stack_trace text, metadata text,
    result text, modified bigint, started_at bigint, finished_at bigint, event_seq bigint, events text
);
CREATE TYPE errand.job_change AS (
    job_id uuid, expected bigint,
    version bigint, status integer, run_at bigint, ready_at bigint, expires_at bigint, attempt bigint, releases bigint,
    cancel_requested boolean, overrun_at bigint, runner_id text, last_error text, stack_trace text, metadata text,
    result text, modified bigint, started_at bigint, finished_at bigint, event_seq bigint, events text
);

-- How many jobs that are no parts there are, and how many ended how: counting millions takes too long to be asked often.
-- The sum of a channel's slots is its count; several slots, so that commits at the same time need not wait for each other.
CREATE TABLE errand.tallies (
    channel   text COLLATE "C" NOT NULL,
    slot      integer NOT NULL,
    live      bigint NOT NULL,
    completed bigint NOT NULL,
    failed    bigint NOT NULL,
    canceled  bigint NOT NULL,
    expired   bigint NOT NULL,
    PRIMARY KEY (channel, slot)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- One row: what tells this database from every other, to whatever is kept outside of it.
CREATE TABLE errand.identity (id uuid NOT NULL);
INSERT INTO errand.identity (id) VALUES (gen_random_uuid());

-- One row, written to prove that the database takes writes.
CREATE TABLE errand.pulse (beats bigint NOT NULL) WITH (fillfactor = 10);
INSERT INTO errand.pulse (beats) VALUES (0);
