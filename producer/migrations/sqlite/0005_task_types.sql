-- The task types that workers have announced, as announced, so that they are known after a restart.
CREATE TABLE task_types (name TEXT PRIMARY KEY, announced_at INTEGER NOT NULL, type TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- How many tasks of a queue are not due, or wait out a retry.
CREATE INDEX tasks_scheduled_queue ON tasks (queue) WHERE stage = 'scheduled';
CREATE INDEX tasks_retrying ON tasks (queue) WHERE stage = 'retrying';
