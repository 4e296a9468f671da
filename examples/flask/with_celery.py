"""The routes on a stock Celery client: nothing of Errand's is imported."""

import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from celery import Celery
from celery.exceptions import TimeoutError

from routes import create

celery = Celery("shop", broker=os.environ["AMQP_URL"])
celery.conf.result_backend = "rpc://"
celery.conf.task_routes = {"*": {"exchange": "errand.tasks", "routing_key": "default"}}

# To Celery an id that nobody ever sent is PENDING, and what is told of a task is told once. So this is written down: what
# was sent, the last ones, each with what was told of it last.
KEPT = 10_000
results = OrderedDict()
told = {}
# A reply queue of rpc:// belongs to the thread that sent the task, and every request has a thread of its own.
client = ThreadPoolExecutor(1)


def start(task, kwargs):
    result = celery.send_task(task, kwargs=kwargs)
    results[result.id], told[result.id] = result, ("PENDING", None)
    if len(results) > KEPT:
        told.pop(results.popitem(last=False)[0])
    return result.id


def look(task_id):
    if task_id in results:
        try:
            # Takes in what has come, of whichever task it is.
            results[task_id].get(timeout=0.05, propagate=False, on_message=note)
        except TimeoutError:
            pass
    return told.get(task_id)


def note(message):
    if message["task_id"] in told:
        told[message["task_id"]] = (message["status"], words(message["result"]))


def words(result):
    """Of an exception its message, of anything else itself."""
    is_exception = isinstance(result, dict) and "exc_type" in result
    return " ".join(map(str, result["exc_message"])) if is_exception else result


def on_the_clients_thread(function):
    return lambda *args: client.submit(function, *args).result(timeout=60)


app = create(on_the_clients_thread(start), on_the_clients_thread(look))
