//! Whether a worker would take the arguments of a submit.

use super::Api;
use super::problem::FieldError;
use crate::store::NewTask;

impl Api {
    /// What no living worker would take, and a task that nobody has announced when only known ones are accepted. What is
    /// in a queue of Celery's workers is theirs to judge.
    pub fn argument_faults(&self, task: &NewTask) -> Vec<FieldError> {
        if self.queues.iter().any(|route| route.foreign && route.queue == task.queue) {
            return Vec::new();
        }
        if self.require_known_tasks && !self.workers.is_known(&task.task) {
            let detail = "no worker has announced a task of this name".to_owned();
            return vec![FieldError { pointer: "/task".to_owned(), detail }];
        }
        let faults = self.workers.faults(&task.task, &task.args, &task.kwargs);
        faults.into_iter().map(|fault| FieldError { pointer: fault.pointer, detail: fault.detail }).collect()
    }
}
