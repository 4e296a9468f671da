-- Who may call. A key is revoked and never deleted: once there was one, one is needed. Of the secret only its SHA-256 is
-- here. A limit that is NULL is none.
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    hash BLOB NOT NULL,
    -- Words, separated by spaces.
    scopes TEXT NOT NULL,
    max_requests INTEGER,
    max_open_tasks INTEGER,
    max_waiting_bytes INTEGER,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER,
    -- Unfinished tasks of the key, and the bytes of their arguments.
    open_tasks INTEGER NOT NULL DEFAULT 0,
    waiting_bytes INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- The key that submitted it, or its family's first task; NULL for what was submitted without keys.
ALTER TABLE tasks ADD COLUMN owner TEXT;
CREATE INDEX tasks_by_owner ON tasks (owner) WHERE owner IS NOT NULL;
CREATE INDEX tasks_by_owner_state ON tasks (owner, state) WHERE owner IS NOT NULL AND state <> 'SUCCESS';

-- Triggers, so that whatever statement opens or ends a row counts it in its own transaction.
CREATE TRIGGER tasks_owned AFTER INSERT ON tasks WHEN new.owner IS NOT NULL AND new.finished_at IS NULL BEGIN
    UPDATE api_keys SET open_tasks = open_tasks + 1,
        waiting_bytes = waiting_bytes + octet_length(new.args) + octet_length(new.kwargs)
    WHERE id = new.owner;
END;
CREATE TRIGGER tasks_owned_moved AFTER UPDATE OF finished_at, args, kwargs ON tasks WHEN new.owner IS NOT NULL
    AND (new.finished_at IS NOT old.finished_at OR new.args <> old.args OR new.kwargs <> old.kwargs)
BEGIN
    UPDATE api_keys SET open_tasks = open_tasks + (new.finished_at IS NULL) - (old.finished_at IS NULL),
        waiting_bytes = waiting_bytes
            + (new.finished_at IS NULL) * (octet_length(new.args) + octet_length(new.kwargs))
            - (old.finished_at IS NULL) * (octet_length(old.args) + octet_length(old.kwargs))
    WHERE id = new.owner;
END;
CREATE TRIGGER tasks_owned_forgotten AFTER DELETE ON tasks WHEN old.owner IS NOT NULL AND old.finished_at IS NULL BEGIN
    UPDATE api_keys SET open_tasks = open_tasks - 1,
        waiting_bytes = waiting_bytes - octet_length(old.args) - octet_length(old.kwargs)
    WHERE id = old.owner;
END;

-- An idempotency key is its API key's own; the owner is empty for what was submitted without keys.
CREATE TABLE owned_idempotency_keys (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    task_id TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;
INSERT INTO owned_idempotency_keys SELECT '', key, fingerprint, task_id, expires_at FROM idempotency_keys;
DROP TABLE idempotency_keys;
ALTER TABLE owned_idempotency_keys RENAME TO idempotency_keys;
CREATE INDEX idempotency_keys_expiring ON idempotency_keys (expires_at);
CREATE INDEX idempotency_keys_task ON idempotency_keys (task_id);
