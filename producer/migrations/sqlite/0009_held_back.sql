-- What was revoked in a relay's hands and did not get to the broker; and what the broker lost and waits to be published
-- again. Both are few, and looked for often.
CREATE INDEX tasks_held_back ON tasks (seq)
    WHERE revoked_at IS NOT NULL AND finished_at IS NULL AND stage IN ('scheduled', 'waiting');
CREATE INDEX tasks_lost ON tasks (queue) WHERE stage = 'scheduled' AND lost > 0;
