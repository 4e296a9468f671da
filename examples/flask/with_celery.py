"""The routes on a stock Celery client: nothing of Errand's is imported."""

import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from celery import Celery

from routes import create

celery = Celery("shop", broker=os.environ["AMQP_URL"])
celery.conf.result_backend = "rpc://"
celery.conf.task_routes = {"*": {"exchange": "errand.tasks", "routing_key": "default"}}

# To Celery an id that nobody ever sent is PENDING, so what was sent is written down: the last ones.
KEPT = 10_000
sent = OrderedDict()
# A reply queue of rpc:// belongs to the thread that sent the task, and every request has a thread of its own.
client = ThreadPoolExecutor(1)


def start(task, kwargs):
    result = celery.send_task(task, kwargs=kwargs)
    sent[result.id] = result
    if len(sent) > KEPT:
        sent.popitem(last=False)[1].forget()
    # Takes in what was reported of others: the client gives up on a reply queue that holds a thousand messages.
    result.state
    return result.id


def look(task_id):
    result = sent.get(task_id)
    return result and (result.state, result.info)


def on_the_clients_thread(function):
    return lambda *args: client.submit(function, *args).result(timeout=60)


app = create(on_the_clients_thread(start), on_the_clients_thread(look))
