-- When its revocation was first asked for, and what its end says then.
ALTER TABLE tasks ADD COLUMN revoked_at INTEGER;
ALTER TABLE tasks ADD COLUMN revoke_reason TEXT;
-- It was ended here though a message of it may be at the broker: workers are told of it for as long as it is kept.
ALTER TABLE tasks ADD COLUMN revoked_in_doubt INTEGER NOT NULL DEFAULT 0;

CREATE INDEX tasks_revoked ON tasks (seq) WHERE revoked_at IS NOT NULL AND (finished_at IS NULL OR revoked_in_doubt = 1);
CREATE INDEX tasks_retrying ON tasks (queue) WHERE stage = 'retrying';

CREATE TABLE paused_queues (queue TEXT PRIMARY KEY, paused_at INTEGER NOT NULL) STRICT;
