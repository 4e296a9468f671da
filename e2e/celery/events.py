"""What a worker tells Celery's tools, as it lies on the exchange of events, and how it obeys what switches that on and off."""

import json
import socket
import time

import kombu
from celery.events.event import get_exchange

from cases import BROKER, WAIT, app, raised

TASKS = 30
COMMANDS = 8


class Events:
    """Every message on the exchange from now on, as it came."""

    def __init__(self, connection):
        self.connection, self.messages = connection, []
        queue = kombu.Queue("", exchange=get_exchange(connection), routing_key="#", exclusive=True, auto_delete=True)
        self.consumer = kombu.Consumer(connection, queues=[queue], on_message=self.take, no_ack=True)
        self.consumer.consume()

    def take(self, message):
        body = json.loads(message.body)
        key, headers = message.delivery_info["routing_key"], message.headers
        self.messages.append({"key": key, "headers": headers, "is_list": isinstance(body, list), "body": body})

    def all(self, since=0):
        bodies = (message["body"] for message in self.messages[since:])
        return [event for body in bodies for event in (body if isinstance(body, list) else [body])]

    def until(self, enough):
        """Whether it came to that in time."""
        deadline = time.monotonic() + WAIT
        while not enough() and time.monotonic() < deadline:
            try:
                self.connection.drain_events(timeout=0.1)
            except socket.timeout:
                pass
        return enough()

    def count(self, kind, since=0):
        return sum(event["type"] == kind for event in self.all(since))

    def are_told_after(self, command):
        """What is told of tasks up to the worker's answer to a heartbeat that is asked for after a task has run."""
        since = len(self.messages)
        told = command()
        app.send_task("add", (1, 2)).get(timeout=WAIT)
        # Longer than events gather, and then behind them on the same connection.
        time.sleep(0.5)
        beats = self.count("worker-heartbeat", since)
        app.control.heartbeat(destination=[worker])
        self.until(lambda: self.count("worker-heartbeat", since) > beats)
        return {"answer": told, "of_tasks": sum(event["type"].startswith("task-") for event in self.all(since))}


def answer(told):
    """Of the one worker."""
    return [value for worker in told or [] for value in worker.values()]


with kombu.Connection(BROKER) as connection:
    events = Events(connection)
    worker = next(iter(app.control.inspect(timeout=WAIT, limit=1).ping()))
    control = {"reply": True, "timeout": WAIT, "limit": 1, "destination": [worker]}
    outcome = {"worker": worker, "off": events.are_told_after(lambda: None)}

    since = len(events.messages)
    for _ in range(COMMANDS):
        app.control.heartbeat(destination=[worker])
    start = time.monotonic()
    outcome["obeyed"] = events.until(lambda: events.count("worker-heartbeat", since) >= COMMANDS)
    outcome["seconds"] = time.monotonic() - start

    since = len(events.messages)
    outcome["enabled"] = answer(app.control.enable_events(**control))
    outcome["online"] = events.until(lambda: events.count("worker-online", since) == 1)
    since = len(events.messages)
    results = [app.send_task("add", (number, 1)) for number in range(TASKS)]
    failed = app.send_task("always_fails", ("as asked",), retries=3)
    for result in results:
        result.get(timeout=WAIT)
    raised(failed.get, WAIT)
    outcome["told"] = events.until(
        lambda: events.count("task-succeeded", since) >= TASKS and events.count("task-failed", since) >= 1
    )
    outcome["messages"] = events.messages[since:]
    outcome["uuids"] = sorted(result.id for result in results)
    outcome["failed"] = failed.id

    outcome["disabled"] = events.are_told_after(lambda: answer(app.control.disable_events(**control)))
    app.control.revoke("never-sent", reply=True, timeout=WAIT, limit=1)
    inspect = app.control.inspect([worker], timeout=WAIT, limit=1)
    outcome["hello"] = inspect.hello("celery@other", {})
    outcome["hello_itself"] = inspect.hello(worker, {})
    outcome["clock"] = max(event["clock"] for event in events.all())
print(json.dumps(outcome))
