"""Runs cases on a stock Celery client, each on a thread of its own, and prints what each came to as one JSON object.

Nothing of Errand's is imported: what points the client at it are the three lines below.
"""

import json
import os
import threading

from celery import Celery

BROKER = os.environ["AMQP_URL"]

app = Celery("shop", broker=BROKER, backend="rpc://")
app.conf.task_routes = {"*": {"exchange": "errand.tasks", "routing_key": "default"}}
# A case that does not end is a failure that says so.
WAIT = 30

_cases = []


def case(function):
    _cases.append(function)
    return function


def raised(function, *args):
    """How a call fails: the exception's module, type and words."""
    try:
        return {"returned": function(*args)}
    except Exception as error:
        return {"module": type(error).__module__, "type": type(error).__name__, "message": str(error)}


def task(name, /, *args, **kwargs):
    return app.signature(name, args, kwargs)


def _run(function, outcomes):
    try:
        outcomes[function.__name__] = function()
    except BaseException as error:
        outcomes[function.__name__] = {"crashed": repr(error)}


def main():
    outcomes = {}
    # A reply queue belongs to a thread.
    threads = [threading.Thread(target=_run, args=(function, outcomes)) for function in _cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(outcomes))
