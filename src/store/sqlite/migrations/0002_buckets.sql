-- A bucket has the jobs that lists cannot tell apart: what they filter by is the same for all of them. There are few buckets,
-- and each knows how many jobs it has, so that any filter is a choice of buckets, and one index serves them all.

CREATE TABLE buckets (
    id        INTEGER PRIMARY KEY,
    owner     TEXT NOT NULL,
    channel   TEXT NOT NULL,
    func      TEXT NOT NULL,
    broadcast INTEGER NOT NULL,
    -- How they ended; 0 for all that have not.
    status    INTEGER NOT NULL,
    -- Who ran those that have ended; empty where nobody did.
    runner_id TEXT NOT NULL,
    jobs      INTEGER NOT NULL,
    -- Between these lie the ids of its jobs.
    oldest    BLOB NOT NULL,
    newest    BLOB NOT NULL,
    UNIQUE (owner, channel, func, broadcast, status, runner_id)
);

-- The bucket for what finds no other, once there are too many of them: its jobs have to be looked at one by one.
INSERT INTO buckets (id, owner, channel, func, broadcast, status, runner_id, jobs, oldest, newest)
VALUES (0, '', '', '', 0, 0, '', 0, zeroblob(16), zeroblob(16));

INSERT INTO buckets (owner, channel, func, broadcast, status, runner_id, jobs, oldest, newest)
SELECT owner, channel, func, broadcast, iif(status > 1, status, 0), iif(status > 1, coalesce(runner_id, ''), ''),
    COUNT(*), MIN(id), MAX(id)
FROM jobs WHERE parent_id IS NULL GROUP BY 1, 2, 3, 4, 5, 6;

-- None for parts of broadcast jobs, which are listed by their parent.
ALTER TABLE jobs ADD COLUMN bucket INTEGER;

UPDATE jobs SET bucket = (
    SELECT buckets.id FROM buckets
    WHERE buckets.owner = jobs.owner AND buckets.channel = jobs.channel AND buckets.func = jobs.func
        AND buckets.broadcast = jobs.broadcast AND buckets.status = iif(jobs.status > 1, jobs.status, 0)
        AND buckets.runner_id = iif(jobs.status > 1, coalesce(jobs.runner_id, ''), '')
)
WHERE parent_id IS NULL;

CREATE INDEX jobs_bucket ON jobs (bucket, id) WHERE bucket IS NOT NULL;

DROP INDEX jobs_owner;
DROP INDEX jobs_channel;
DROP INDEX jobs_unsuccessful;
