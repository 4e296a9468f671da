"""The routes on a stock Celery client: nothing of Errand's is imported."""

import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from celery import Celery

from routes import create

celery = Celery("shop", broker=os.environ["AMQP_URL"])
celery.conf.result_backend = "rpc://"
celery.conf.task_routes = {"*": {"exchange": "errand.tasks", "routing_key": "default"}}

# To Celery an id that nobody ever sent is PENDING, and what was told of a task is told once. So this is written down:
# what was sent, the last ones, each with what was told of it last.
KEPT = 10_000
sent = OrderedDict()
# A reply queue of rpc:// belongs to the thread that sent the task, and every request has a thread of its own.
client = ThreadPoolExecutor(1)


def start(task, kwargs):
    task_id = celery.send_task(task, kwargs=kwargs).id
    sent[task_id] = ("PENDING", None)
    if len(sent) > KEPT:
        sent.popitem(last=False)
    # The client gives up on a reply queue that holds a thousand messages, so they are taken in now and then.
    take_in(task_id)
    return task_id


def look(task_id):
    if task_id in sent:
        take_in(task_id)
    return sent.get(task_id)


def take_in(task_id):
    meta = celery.backend.get_task_meta(task_id)
    if meta["status"] != "PENDING":
        sent[task_id] = (meta["status"], meta["result"])


def on_the_clients_thread(function):
    return lambda *args: client.submit(function, *args).result(timeout=60)


app = create(on_the_clients_thread(start), on_the_clients_thread(look))
