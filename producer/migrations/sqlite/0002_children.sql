-- Whose child a task is, NULL for one that came over HTTP. No foreign keys: a parent may be forgotten before its children.
ALTER TABLE tasks ADD COLUMN parent_id TEXT;
ALTER TABLE tasks ADD COLUMN root_id TEXT;

CREATE INDEX tasks_children ON tasks (parent_id) WHERE parent_id IS NOT NULL;
