-- The attempt that its latest replay began with, and when that was asked for: reports of earlier attempts and revocations
-- from before are of an earlier life. 0 and NULL for a task that was never replayed.
ALTER TABLE tasks ADD COLUMN replayed_from INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN replayed_at INTEGER;
-- Since when a task that was given up is no dead letter any more.
ALTER TABLE tasks ADD COLUMN dismissed_at INTEGER;

-- Dead letters by their end, alone and within what a filter may name. Each index ends in the rowid.
CREATE INDEX dead_letters ON tasks (finished_at) WHERE state = 'FAILURE' AND dismissed_at IS NULL;
CREATE INDEX dead_letters_by_task ON tasks (task, finished_at) WHERE state = 'FAILURE' AND dismissed_at IS NULL;
CREATE INDEX dead_letters_by_queue ON tasks (queue, finished_at)
    WHERE state = 'FAILURE' AND dismissed_at IS NULL AND queue <> 'default';
CREATE INDEX dead_letters_by_error ON tasks (error ->> 'type', finished_at)
    WHERE state = 'FAILURE' AND dismissed_at IS NULL;
CREATE INDEX dead_letters_by_owner ON tasks (owner, finished_at)
    WHERE state = 'FAILURE' AND dismissed_at IS NULL AND owner IS NOT NULL;

-- Which attempt was asked for by a replay, by which route, and what it was called with before where that was edited.
CREATE TABLE replays (
    task_seq INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    at INTEGER NOT NULL,
    route TEXT NOT NULL CHECK (route IN ('task', 'dead-letter', 'dead-letters')),
    args TEXT,
    kwargs TEXT,
    PRIMARY KEY (task_seq, attempt)
) STRICT;

-- Older attempts are not kept either.
CREATE TRIGGER replays_bounded AFTER INSERT ON replays BEGIN
    DELETE FROM replays WHERE task_seq = new.task_seq AND attempt <= new.attempt - 50;
END;
CREATE TRIGGER replays_forgotten AFTER DELETE ON tasks BEGIN
    DELETE FROM replays WHERE task_seq = old.seq;
END;
