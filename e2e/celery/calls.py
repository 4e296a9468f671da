"""Single tasks: every way to call one, and every way it can end."""

import time
from datetime import datetime, timedelta, timezone

from cases import WAIT, app, case, main, raised


def add(**options):
    return app.send_task("add", (1, 2), **options)


def timed(result):
    start = time.monotonic()
    value = result.get(timeout=WAIT)
    return {"value": value, "seconds": time.monotonic() - start}


def soon(seconds):
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


@case
def arguments():
    by_name = app.send_task("add", kwargs={"x": 1, "y": 2})
    mixed = app.send_task("add", (1,), {"y": 2})
    return [result.get(timeout=WAIT) for result in (add(), by_name, mixed)]


@case
def countdown():
    return timed(add(countdown=1.5))


@case
def eta_aware():
    return timed(add(eta=soon(1.5)))


@case
def eta_naive():
    return timed(add(eta=soon(1.5).replace(tzinfo=None)))


@case
def expires_later():
    return add(expires=60).get(timeout=WAIT)


@case
def expired():
    return [
        # Not so soon that the broker might drop it before a worker has it.
        raised(add(countdown=2, expires=1.5).get, WAIT),
        raised(add(countdown=2, expires=soon(1.5).replace(tzinfo=None)).get, WAIT),
        raised(add(expires=soon(-1)).get, WAIT),
    ]


@case
def priority():
    return add(priority=9).get(timeout=WAIT)


@case
def time_limits():
    return [
        raised(app.send_task("sleep", (20,), time_limit=1).get, WAIT),
        raised(app.send_task("sleep", (20,), time_limit=9, soft_time_limit=1).get, WAIT),
    ]


@case
def retries_used_up():
    start = time.monotonic()
    ends = [raised(app.send_task("always_fails", ("as asked",), retries=made).get, WAIT) for made in (3, 40)]
    return {"ends": ends, "seconds": time.monotonic() - start}


@case
def ignored():
    result = add(ignore_result=True, task_id="ignored-1")
    return {"value": result.get(timeout=WAIT), "id": result.id}


@case
def own_id():
    result = add(task_id="my-id-1")
    return [result.id, result.get(timeout=WAIT)]


@case
def own_headers():
    return add(headers={"x-tenant": "a", "nested": {"list": [1, None, True]}}).get(timeout=WAIT)


@case
def zlib():
    return [app.send_task("echo", ("ä" * 10000,), compression="zlib").get(timeout=WAIT) == "ä" * 10000]


@case
def failures():
    return [
        raised(app.send_task("always_fails", ("as asked",), retries=3).get, WAIT),
        raised(app.send_task("nobody_knows_it").get, WAIT),
        raised(app.send_task("add", ("one", 2)).get, WAIT),
    ]


@case
def failed_state():
    result = app.send_task("always_fails", ("as asked",), retries=3)
    raised(result.get, WAIT)
    return [result.state, str(result.result), result.failed()]


@case
def reports():
    """Everything that the client is told while it waits."""
    told = []
    result = app.send_task("long_running_task", (21, 2))
    value = result.get(timeout=WAIT, on_message=lambda message: told.append([message["status"], message["result"]]))
    return {"value": value, "told": told}


@case
def last_words():
    """The last that is told of each of many tasks that report as they end."""
    last = {}
    results = [app.send_task("long_running_task", (1, 1)) for _ in range(200)]
    for result in results:
        result.get(timeout=WAIT, on_message=lambda message: last.update({message["task_id"]: message["status"]}))
    # What was sent after the last result, if anything was.
    app.send_task("add", (1, 1)).get(
        timeout=WAIT, on_message=lambda message: last.update({message["task_id"]: message["status"]})
    )
    return sorted(set(last.values())), len(last)


@case
def retried():
    told = []
    result = app.send_task("flaky", (1,))
    value = result.get(timeout=WAIT, on_message=lambda message: told.append([message["status"], message["result"]]))
    return {"value": value, "told": told}


@case
def many():
    results = [app.send_task("add", (number, 1)) for number in range(100)]
    return [result.get(timeout=WAIT) for result in results] == list(range(1, 101))


main()
