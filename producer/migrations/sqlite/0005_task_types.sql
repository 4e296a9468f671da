-- The task types that workers have announced, as announced, so that they are known after a restart.
CREATE TABLE task_types (name TEXT PRIMARY KEY, announced_at INTEGER NOT NULL, type TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- How many tasks of a queue are not due.
CREATE INDEX tasks_scheduled_queue ON tasks (queue) WHERE stage = 'scheduled';
