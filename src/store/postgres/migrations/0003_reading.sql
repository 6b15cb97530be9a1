-- What people filter by. Finished jobs come once and hardly ever change, so an index of them costs little.
CREATE INDEX finished_func ON errand.finished (func, id);
CREATE INDEX finished_runner ON errand.finished (runner_id, id) WHERE runner_id IS NOT NULL;
CREATE INDEX finished_created ON errand.finished (created, id);
CREATE INDEX finished_broadcast ON errand.finished (id) WHERE broadcast;
