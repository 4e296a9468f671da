-- When a task was handed to stock Celery workers, or they last reported it; NULL for those of ours. Their silence counts
-- once its time limit has passed as well.
ALTER TABLE tasks ADD COLUMN heard_at INTEGER;
ALTER TABLE tasks ADD COLUMN silent_since INTEGER
    GENERATED ALWAYS AS (heard_at + CAST(coalesce(time_limit, 0) * 1000 AS INTEGER)) VIRTUAL;
CREATE INDEX tasks_silent ON tasks (silent_since) WHERE heard_at IS NOT NULL AND stage IN ('queued', 'retrying');
