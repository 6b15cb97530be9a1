-- Jobs that other programs publish in transactions of their own: errand.publish writes an arrival, and once its transaction
-- has committed, a node takes it in, as a job with the same id.
--
-- It does not write the job itself, because whatever it locked would be locked until somebody else's transaction ends: a
-- channel's counts or an idempotency key, and with them the commits of every node. Nothing that a node does waits for a row
-- of this table. And a job that SQL made would have a second state machine behind it.
CREATE TABLE errand.arrivals (
    id                  uuid NOT NULL PRIMARY KEY,
    -- When it was published, by the database's clock.
    made                bigint NOT NULL,
    -- When to start: at a time, or so many seconds after the commit, or at once.
    run_at              bigint CHECK (run_at >= 0),
    delay               bigint CHECK (delay BETWEEN 0 AND 4294967295),
    expiry_value        bigint CHECK (expiry_value >= 0),
    max_retries         bigint NOT NULL CHECK (max_retries BETWEEN 0 AND 4294967295),
    backoff_max_seconds bigint NOT NULL CHECK (backoff_max_seconds BETWEEN 0 AND 4294967295),
    max_exec_seconds    bigint CHECK (max_exec_seconds BETWEEN 0 AND 4294967295),
    backoff_base        double precision NOT NULL,
    priority            integer NOT NULL,
    expiry_kind         integer NOT NULL CHECK (
        CASE expiry_kind
            WHEN 0 THEN expiry_value IS NULL
            WHEN 1 THEN expiry_value <= 4294967295
            WHEN 2 THEN expiry_value IS NOT NULL
        END IS TRUE
    ),
    broadcast           boolean NOT NULL,
    channel             text COLLATE "C" NOT NULL,
    func                text COLLATE "C" NOT NULL,
    owner               text COLLATE "C" NOT NULL,
    idempotency_key     text COLLATE "C",
    traceparent         text NOT NULL,
    payload             text NOT NULL
) WITH (
    -- Every row dies within moments.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);

-- Of two transactions with the same key, the second waits here until the first has ended.
CREATE UNIQUE INDEX arrivals_key ON errand.arrivals (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- One row: the limits that the nodes were started with, as far as errand.publish has to know them.
CREATE TABLE errand.limits (payload_max_bytes bigint NOT NULL);
INSERT INTO errand.limits (payload_max_bytes) VALUES (1048576);

-- Refuses a value, in the words that the REST API has for it.
CREATE FUNCTION errand.refuse(field text, wanted text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('Invalid %s: %s', field, wanted),
        COLUMN = field;
END $$;

-- A UUIDv7 of this moment. The 12 bits behind the version are the part of the millisecond, so that ids that one session makes
-- one after the other sort so.
CREATE FUNCTION errand.new_job_id(micros bigint) RETURNS uuid
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    -- 7 << 12 is the version; 4096 parts in 1000 microseconds.
    SELECT encode(
        substring(int8send(micros / 1000) FROM 3)
            || substring(int4send(28672 + (micros % 1000 * 4096 / 1000)::integer) FROM 3)
            || substring(uuid_send(gen_random_uuid()) FROM 9),
        'hex')::uuid
$$;

-- A time as the tables have it, in whole microseconds since 1970.
CREATE FUNCTION errand.micros(at timestamptz) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT trunc(extract(epoch FROM at) * 1000000)::bigint
$$;

-- The job under an arrival's idempotency key, or the arrival that will be one, if it has the same content; none where nothing
-- has the key. A key with other content is an error.
CREATE FUNCTION errand.earlier(wanted errand.arrivals) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stored_key text := replace(wanted.idempotency_key, chr(26), chr(26) || '1');
    stored_owner text := replace(wanted.owner, chr(26), chr(26) || '1');
    found_id uuid;
    is_same boolean;
BEGIN
    SELECT k.job_id INTO found_id FROM errand.keys AS k WHERE k.owner = stored_owner AND k.idempotency_key = stored_key;
    IF FOUND THEN
        BEGIN
            SELECT j.func = wanted.func AND j.channel = wanted.channel AND j.broadcast = wanted.broadcast
                AND j.priority = wanted.priority AND j.max_retries = wanted.max_retries
                AND j.backoff_base = wanted.backoff_base AND j.backoff_max_seconds = wanted.backoff_max_seconds
                AND j.max_exec_seconds IS NOT DISTINCT FROM wanted.max_exec_seconds
                AND j.expiry_kind = wanted.expiry_kind AND j.expiry_value IS NOT DISTINCT FROM wanted.expiry_value
                AND j.payload::jsonb = wanted.payload::jsonb
                -- A retry moves the run time of a job that has begun: what it once was is not known then.
                AND (j.attempt > 0 OR j.run_at IS NOT DISTINCT FROM
                    coalesce(wanted.run_at, j.created + nullif(wanted.delay, 0) * 1000000))
            INTO is_same
            FROM (
                SELECT * FROM errand.jobs WHERE id = found_id UNION ALL SELECT * FROM errand.finished WHERE id = found_id
            ) AS j;
        EXCEPTION WHEN data_exception THEN
            -- JSON that jsonb cannot hold is none that errand.publish was given.
            is_same := false;
        END;
        IF is_same IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
                MESSAGE = 'the job of the idempotency key was just removed; try again';
        END IF;
    ELSE
        SELECT a.id,
            (a.func, a.channel, a.broadcast, a.priority, a.max_retries, a.backoff_base, a.backoff_max_seconds, a.expiry_kind)
                = (wanted.func, wanted.channel, wanted.broadcast, wanted.priority, wanted.max_retries, wanted.backoff_base,
                    wanted.backoff_max_seconds, wanted.expiry_kind)
            AND a.max_exec_seconds IS NOT DISTINCT FROM wanted.max_exec_seconds
            AND a.expiry_value IS NOT DISTINCT FROM wanted.expiry_value
            AND a.run_at IS NOT DISTINCT FROM wanted.run_at AND coalesce(a.delay, 0) = coalesce(wanted.delay, 0)
            AND a.payload = wanted.payload
        INTO found_id, is_same
        FROM errand.arrivals AS a
        WHERE a.owner = wanted.owner AND a.idempotency_key = wanted.idempotency_key AND a.id <> wanted.id;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    IF NOT is_same THEN
        RAISE EXCEPTION USING ERRCODE = 'unique_violation', COLUMN = 'idempotency_key',
            MESSAGE = format('Idempotency key "%s" was used for a job with other content', wanted.idempotency_key),
            HINT = 'Use another key for another job.';
    END IF;
    RETURN found_id;
END $$;

-- Publishes a job in the caller's transaction: it exists exactly when that commits. Answers the job's id. Rules, defaults and
-- limits are those of the REST API; an argument that is NULL is one that was not given.
CREATE FUNCTION errand.publish(
    func             text,
    payload          jsonb,
    channel          text DEFAULT 'default',
    delay            bigint DEFAULT NULL,
    run_at           timestamptz DEFAULT NULL,
    max_retries      bigint DEFAULT 3,
    expires_in       bigint DEFAULT NULL,
    expires_at       timestamptz DEFAULT NULL,
    broadcast        boolean DEFAULT false,
    max_exec_seconds bigint DEFAULT NULL,
    idempotency_key  text DEFAULT NULL,
    priority         integer DEFAULT 0,
    backoff_base     double precision DEFAULT 2.0,
    backoff_max      bigint DEFAULT 3600,
    traceparent      text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- 100 years of 365 days.
    seconds_max CONSTANT bigint := 3153600000;
    -- 9999-12-31T23:59:59Z.
    time_max CONSTANT bigint := 253402300799000000;
    tries_max CONSTANT integer := 10;
    size_max bigint;
    ready_at bigint;
    earlier_id uuid;
    wanted errand.arrivals;
BEGIN
    wanted.func := coalesce(publish.func, '');
    wanted.channel := coalesce(nullif(publish.channel, ''), 'default');
    wanted.max_retries := coalesce(publish.max_retries, 3);
    wanted.broadcast := coalesce(publish.broadcast, false);
    wanted.max_exec_seconds := publish.max_exec_seconds;
    wanted.idempotency_key := nullif(publish.idempotency_key, '');
    wanted.priority := coalesce(publish.priority, 0);
    wanted.backoff_base := coalesce(publish.backoff_base, 2.0);
    wanted.backoff_max_seconds := coalesce(publish.backoff_max, 3600);
    -- A trace that has not the form of version 00 is left out, as a header is.
    wanted.traceparent := coalesce(
        substring(publish.traceparent FROM '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$'), '');

    IF wanted.func = '' OR publish.payload IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'missing required parameters: '
            || concat_ws(', ', CASE WHEN wanted.func = '' THEN 'func' END, CASE WHEN publish.payload IS NULL THEN 'payload' END),
            COLUMN = CASE WHEN wanted.func = '' THEN 'func' ELSE 'payload' END;
    END IF;
    -- Every space and control character of Unicode, whatever the collation says.
    IF char_length(wanted.func) > 255 OR wanted.func COLLATE "C"
        ~ '[\u0001-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]' THEN
        PERFORM errand.refuse('func', 'must be 1 to 255 characters without spaces or control characters');
    END IF;
    IF jsonb_typeof(publish.payload) <> 'object' THEN
        PERFORM errand.refuse('payload', 'must be a JSON object');
    END IF;
    wanted.payload := publish.payload::text;
    SELECT l.payload_max_bytes INTO size_max FROM errand.limits AS l;
    IF octet_length(wanted.payload) > size_max THEN
        RAISE EXCEPTION USING ERRCODE = 'program_limit_exceeded', COLUMN = 'payload',
            MESSAGE = format('Payload exceeds maximum size of %s bytes', size_max),
            HINT = 'Keep what is large elsewhere and publish where it is.';
    END IF;
    IF wanted.channel !~ '^[A-Za-z0-9_.-]{1,100}$' THEN
        PERFORM errand.refuse('channel', 'must be 1 to 100 of the characters A-Z a-z 0-9 _ . -');
    END IF;
    IF wanted.max_retries NOT BETWEEN 0 AND 1000000 THEN
        PERFORM errand.refuse('max_retries', 'must be 0 to 1000000');
    END IF;
    -- NaN is above infinity here.
    IF NOT (wanted.backoff_base >= 0 AND wanted.backoff_base < 'Infinity') THEN
        PERFORM errand.refuse('backoff_base', 'must be a number of at least 0');
    END IF;
    IF wanted.backoff_max_seconds NOT BETWEEN 0 AND seconds_max THEN
        PERFORM errand.refuse('backoff_max', format('must be 0 to %s seconds', seconds_max));
    END IF;
    IF wanted.max_exec_seconds NOT BETWEEN 1 AND seconds_max THEN
        PERFORM errand.refuse('max_exec_seconds', format('must be 1 to %s seconds', seconds_max));
    END IF;
    IF char_length(wanted.idempotency_key) > 255 THEN
        PERFORM errand.refuse('idempotency_key', 'must be 1 to 255 characters');
    END IF;

    wanted.made := errand.micros(clock_timestamp());
    IF publish.run_at IS NOT NULL THEN
        -- A past run time runs at once, however long past.
        IF publish.run_at > to_timestamp(time_max / 1000000) THEN
            PERFORM errand.refuse('run_at', 'must be a time between 1970 and 9999');
        END IF;
        wanted.run_at := errand.micros(greatest(publish.run_at, to_timestamp(0)));
    ELSIF publish.delay IS NOT NULL THEN
        IF publish.delay NOT BETWEEN 0 AND seconds_max THEN
            PERFORM errand.refuse('delay', format('must be 0 to %s seconds', seconds_max));
        END IF;
        wanted.delay := publish.delay;
    END IF;
    ready_at := least(greatest(wanted.made, wanted.run_at, wanted.made + wanted.delay * 1000000), time_max);
    IF publish.expires_at IS NOT NULL THEN
        IF publish.expires_at NOT BETWEEN to_timestamp(0) AND to_timestamp(time_max / 1000000) THEN
            PERFORM errand.refuse('expires_at', 'must be a time between 1970 and 9999');
        END IF;
        wanted.expiry_kind := 2;
        wanted.expiry_value := errand.micros(publish.expires_at);
        IF wanted.expiry_value <= ready_at THEN
            PERFORM errand.refuse('expires_at', 'must be after the run time');
        END IF;
    ELSIF publish.expires_in IS NOT NULL THEN
        IF publish.expires_in NOT BETWEEN 1 AND seconds_max THEN
            PERFORM errand.refuse('expires_in', format('must be 1 to %s seconds', seconds_max));
        END IF;
        wanted.expiry_kind := 1;
        wanted.expiry_value := publish.expires_in;
    ELSE
        wanted.expiry_kind := 0;
    END IF;
    IF ready_at >= time_max THEN
        PERFORM errand.refuse('run_at', 'must be before the end of 9999');
    END IF;

    -- The role that the session works as. This function runs as another.
    wanted.owner := CASE current_setting('role') WHEN 'none' THEN session_user::text ELSE current_setting('role') END;

    -- Each statement sees what has been committed until then. A key is first taken, against other transactions, and then
    -- looked up: whoever held it before has either made way by becoming a job, which the look-up finds, or is still here.
    FOR try IN 1 .. tries_max LOOP
        wanted.id := errand.new_job_id(errand.micros(clock_timestamp()));
        IF wanted.idempotency_key IS NOT NULL THEN
            earlier_id := errand.earlier(wanted);
            IF earlier_id IS NOT NULL THEN
                RETURN replace(earlier_id::text, '-', '');
            END IF;
        END IF;
        INSERT INTO errand.arrivals SELECT (wanted).* ON CONFLICT DO NOTHING;
        IF FOUND THEN
            IF wanted.idempotency_key IS NOT NULL THEN
                earlier_id := errand.earlier(wanted);
                IF earlier_id IS NOT NULL THEN
                    DELETE FROM errand.arrivals AS a WHERE a.id = wanted.id;
                    RETURN replace(earlier_id::text, '-', '');
                END IF;
            END IF;
            -- Delivered when the transaction commits, and once for all that it published.
            PERFORM pg_notify('errand_arrivals', '');
            RETURN replace(wanted.id::text, '-', '');
        END IF;
    END LOOP;
    RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
        MESSAGE = 'other transactions use the same idempotency key; try again';
END $$;

COMMENT ON FUNCTION errand.publish IS
    'Publishes a job in the caller''s transaction: it exists exactly when that commits. Answers the job''s id.';

-- Nobody may publish until a role is granted it.
REVOKE ALL ON FUNCTION errand.publish, errand.refuse, errand.new_job_id, errand.micros, errand.earlier FROM PUBLIC;
