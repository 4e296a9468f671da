-- What a client's Idempotency-Key stood for. A key outlives a task whose result expired, so there is no foreign key.
CREATE TABLE idempotency_keys (
    key TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    task_id TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_expiring ON idempotency_keys (expires_at);
CREATE INDEX idempotency_keys_task ON idempotency_keys (task_id);

-- Attempts that ended while the task went on, in the order of their ends. The one that runs or ended the task is in its
-- row: a task that succeeds at once costs no second one.
CREATE TABLE attempts (
    task_seq INTEGER NOT NULL,
    place INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    worker TEXT,
    started_at INTEGER,
    ended_at INTEGER NOT NULL,
    -- RETRY, or LOST when the broker gave the message back.
    state TEXT NOT NULL,
    error TEXT,
    retry_at INTEGER,
    PRIMARY KEY (task_seq, place)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER attempts_bounded AFTER INSERT ON attempts BEGIN
    DELETE FROM attempts WHERE task_seq = new.task_seq AND place <= new.place - 50;
END;

-- A list by what is rare finds it at once: successes and the default queue are found along the way.
CREATE INDEX tasks_by_state ON tasks (state) WHERE state <> 'SUCCESS';
CREATE INDEX tasks_by_task ON tasks (task);
CREATE INDEX tasks_by_queue ON tasks (queue) WHERE queue <> 'default';

-- Where a task is in its life, in one word: its stage, `running`, or the state that it ended in.
ALTER TABLE tasks ADD COLUMN place TEXT GENERATED ALWAYS AS
    (iif(stage = 'done', state, iif(stage = 'queued' AND state = 'STARTED', 'running', stage))) VIRTUAL;

-- How many tasks are in each place. Those that ended stay counted when they are forgotten.
CREATE TABLE counts (place TEXT PRIMARY KEY, tasks INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO counts VALUES ('scheduled', 0), ('waiting', 0), ('queued', 0), ('running', 0), ('retrying', 0),
    ('SUCCESS', 0), ('FAILURE', 0), ('REVOKED', 0), ('forgotten', 0);
INSERT INTO counts SELECT place, count(*) FROM tasks WHERE true GROUP BY place
    ON CONFLICT (place) DO UPDATE SET tasks = excluded.tasks;

-- Triggers, so that whatever statement moves a row counts it in its own transaction.
CREATE TRIGGER tasks_counted AFTER INSERT ON tasks BEGIN
    UPDATE counts SET tasks = tasks + 1 WHERE place = new.place;
END;
CREATE TRIGGER tasks_moved AFTER UPDATE OF stage, state ON tasks WHEN new.place <> old.place BEGIN
    UPDATE counts SET tasks = tasks - 1 WHERE place = old.place;
    UPDATE counts SET tasks = tasks + 1 WHERE place = new.place;
END;
CREATE TRIGGER tasks_forgotten AFTER DELETE ON tasks BEGIN
    UPDATE counts SET tasks = tasks + 1 WHERE place = 'forgotten';
    DELETE FROM attempts WHERE task_seq = old.seq;
END;
