"""A stock Celery worker: what the producer publishes to its queue ends in whatever these tasks come to.

It consumes the queue `py` until it is killed. It runs one task at a time, in its own process.
"""

import os
import signal
import time
from pathlib import Path

from celery import Celery

app = Celery("py", broker=os.environ["AMQP_URL"], backend="rpc://")
app.conf.task_default_queue = "py"
app.conf.worker_hijack_root_logger = False


class Refused(Exception):
    pass


@app.task(name="add")
def add(x, y):
    return x + y


@app.task(name="same")
def same(*args, **kwargs):
    return [args, kwargs]


@app.task(name="fail")
def fail(message, number):
    raise Refused(message, number)


@app.task(name="not_json")
def not_json():
    return float("nan")


@app.task(name="retry", bind=True, max_retries=2)
def retry(self, failures):
    if self.request.retries < failures:
        raise self.retry(exc=ValueError("not yet"), countdown=1)
    return self.request.retries


def await_file(path):
    deadline = time.monotonic() + 60
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.02)


@app.task(name="progress", bind=True)
def progress(self, path):
    """Tells how far it is, in both ways that are usual, each until the file of that name is there."""
    self.update_state(state="PROGRESS", meta={"current": 1, "total": 2})
    await_file(path + ".1")
    self.update_state(state="COUNTING", meta={"rows": [1, 2]})
    await_file(path + ".2")
    return "done"


@app.task(name="vanish")
def vanish(path):
    """Takes its worker with it the first time. A stock worker has acked it by then, so nobody hears of it again."""
    if Path(path).exists():
        return "back"
    Path(path).touch()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    app.worker_main(["worker", "--pool=solo", "--loglevel=info", "--without-gossip", "--without-mingle"])
