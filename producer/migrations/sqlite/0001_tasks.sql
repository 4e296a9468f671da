-- Which store this is: replicas that share it share one reply queue.
CREATE TABLE store (id TEXT NOT NULL) STRICT;

-- One row a task. Times are milliseconds since 1970, UTC; JSON columns hold text as it came.
CREATE TABLE tasks (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    task TEXT NOT NULL,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    args TEXT NOT NULL,
    kwargs TEXT NOT NULL,
    retry TEXT NOT NULL,
    time_limit REAL,
    soft_time_limit REAL,
    created_at INTEGER NOT NULL,
    eta INTEGER,
    expires INTEGER,

    -- Where it is on its way: scheduled (not due), waiting (due, for the relay), queued (at the broker or running),
    -- retrying (at the broker, waiting for its next attempt), done.
    stage TEXT NOT NULL CHECK (stage IN ('scheduled', 'waiting', 'queued', 'retrying', 'done')),
    due_at INTEGER NOT NULL,
    -- How often it was handed to the broker, and how often the broker gave it back as lost.
    publishes INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,

    -- What its workers reported, ordered by (retries, rank, report_seq) until it has ended.
    state TEXT NOT NULL DEFAULT 'PENDING',
    retries INTEGER NOT NULL DEFAULT 0,
    rank INTEGER NOT NULL DEFAULT 0,
    report_seq INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    progress TEXT,
    result TEXT,
    error TEXT,
    retry_at INTEGER,
    started_at INTEGER,
    finished_at INTEGER
) STRICT;

-- The relay reads by priority; rows that are not due stand in no index that it reads.
CREATE INDEX tasks_waiting ON tasks (queue, priority DESC, seq) WHERE stage = 'waiting';
CREATE INDEX tasks_queued ON tasks (queue) WHERE stage = 'queued';
CREATE INDEX tasks_scheduled ON tasks (due_at) WHERE stage = 'scheduled';
CREATE INDEX tasks_expiring ON tasks (expires) WHERE expires IS NOT NULL AND stage IN ('scheduled', 'waiting');
CREATE INDEX tasks_finished ON tasks (finished_at) WHERE finished_at IS NOT NULL;
