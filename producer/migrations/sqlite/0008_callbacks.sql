-- Where a task's end is to be posted, NULL for most tasks; and what became of it, NULL before the first attempt. JSON.
ALTER TABLE tasks ADD COLUMN callback TEXT;
ALTER TABLE tasks ADD COLUMN callback_standing TEXT;

-- Ends to be posted: written in the commit that records the end, gone once delivered or given up. The outcome is kept as
-- it was then, for a task may be run again before it is delivered.
CREATE TABLE callbacks (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    task_id TEXT NOT NULL,
    receiver TEXT NOT NULL,
    next_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL,
    retries INTEGER NOT NULL,
    worker TEXT,
    progress TEXT,
    result TEXT,
    error TEXT,
    started_at INTEGER,
    finished_at INTEGER NOT NULL
) STRICT;
CREATE INDEX callbacks_due ON callbacks (next_at);
CREATE INDEX callbacks_by_receiver ON callbacks (receiver, next_at);
CREATE INDEX callbacks_failing ON callbacks (receiver) WHERE attempts > 0;
CREATE INDEX callbacks_by_task ON callbacks (task_id);

-- A trigger, so that whatever statement ends a task leaves no end out.
CREATE TRIGGER tasks_called_back AFTER UPDATE OF finished_at ON tasks
    WHEN new.callback IS NOT NULL AND new.finished_at IS NOT NULL AND old.finished_at IS NULL
        AND EXISTS (SELECT 1 FROM json_each(new.callback, '$.events') WHERE value = new.state)
BEGIN
    INSERT INTO callbacks (id, task_id, receiver, next_at, state, retries, worker, progress, result, error, started_at,
            finished_at)
        VALUES ('msg_' || lower(hex(randomblob(16))), new.id, new.callback ->> '$.receiver', new.finished_at, new.state,
            new.retries, new.worker, new.progress, new.result, new.error, new.started_at, new.finished_at);
    UPDATE tasks SET callback_standing = NULL WHERE seq = new.seq AND callback_standing IS NOT NULL;
END;
CREATE TRIGGER tasks_callbacks_forgotten AFTER DELETE ON tasks WHEN old.callback IS NOT NULL BEGIN
    DELETE FROM callbacks WHERE task_id = old.id;
END;

-- What callbacks are signed with, by whose they are: the empty owner's tasks are those of nobody in particular. One
-- secret of an owner retires at no time; one that was replaced signs beside it until it does.
CREATE TABLE callback_secrets (
    seq INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,
    secret BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    retires_at INTEGER
) STRICT;
CREATE UNIQUE INDEX callback_secrets_current ON callback_secrets (owner) WHERE retires_at IS NULL;
CREATE INDEX callback_secrets_owner ON callback_secrets (owner);
