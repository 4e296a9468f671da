-- Until when a task at the broker is known to be somewhere: when its publish was confirmed or a report of it came, or when
-- the wait is over that a worker sent it into. What is older is asked for.
ALTER TABLE tasks ADD COLUMN alive_at INTEGER NOT NULL DEFAULT 0;
UPDATE tasks SET alive_at = coalesce(retry_at, 0) + 5000 WHERE stage = 'retrying';
CREATE INDEX tasks_at_broker ON tasks (queue, alive_at) WHERE stage IN ('queued', 'retrying');
