"""Chains, groups, callbacks and error callbacks.

What goes to the queue `elsewhere`, which no worker serves, is taken out there and shown as it came.
"""

import threading
import time

import kombu
from celery import chain, group

from cases import BROKER, WAIT, app, case, main, raised, task

ELSEWHERE = "elsewhere"


def elsewhere(called, /, *args, **kwargs):
    return task(called, *args, **kwargs).set(queue=ELSEWHERE)


class Mailbox:
    """Everything that comes to `elsewhere`, by the task's name."""

    def __init__(self):
        self.arrival = threading.Condition()
        self.messages = []
        self.opened = threading.Event()
        threading.Thread(target=self.drain, daemon=True).start()
        self.opened.wait()

    def drain(self):
        with kombu.Connection(BROKER) as connection:
            queue = kombu.Queue(ELSEWHERE, durable=True, queue_arguments={"x-queue-type": "quorum"})
            with connection.Consumer(queue, callbacks=[self.keep], accept=["json"]):
                self.opened.set()
                while True:
                    connection.drain_events()

    def keep(self, content, message):
        message.ack()
        with self.arrival:
            self.messages.append(message)
            self.arrival.notify_all()

    def find(self, wanted):
        return next((message for message in self.messages if message.headers["task"] == wanted), None)

    def take(self, wanted):
        with self.arrival:
            if not self.arrival.wait_for(lambda: self.find(wanted), WAIT):
                raise TimeoutError(wanted)
            message = self.find(wanted)
            self.messages.remove(message)
        args, kwargs, embed = message.payload
        properties = {name: message.properties.get(name) for name in ("priority", "reply_to", "correlation_id")}
        return {"headers": message.headers, "args": args, "kwargs": kwargs, "embed": embed, **properties}

    def has_none(self, wanted):
        """Of those that came before now, which a message of our own comes after."""
        marker = f"after {wanted}"
        with kombu.Connection(BROKER) as connection:
            connection.Producer().publish([[], {}, None], routing_key=ELSEWHERE, headers={"task": marker})
        self.take(marker)
        with self.arrival:
            return self.find(wanted) is None


mailbox = Mailbox()


@case
def a_chain():
    last = chain(task("add", 1, 2), task("add", 4), task("add", 8)).apply_async()
    value = last.get(timeout=WAIT)
    return [value, last.parent.get(timeout=WAIT), last.parent.parent.get(timeout=WAIT)]


@case
def children():
    """The graph of a chain as the client knows it from the results."""
    last = chain(task("add", 1, 2), task("add", 4)).apply_async()
    last.get(timeout=WAIT)
    first = last.parent
    first.get(timeout=WAIT)
    return [child.id for child in first.children] == [last.id]


@case
def over_a_retry():
    return chain(task("flaky", 1), task("add", 10)).apply_async().get(timeout=WAIT)


@case
def immutable():
    return chain(task("add", 1, 2), task("add", 5, 5).set(immutable=True)).apply_async().get(timeout=WAIT)


@case
def delayed():
    start = time.monotonic()
    value = chain(task("add", 1, 2), task("add", 4).set(countdown=1.5)).apply_async().get(timeout=WAIT)
    return {"value": value, "seconds": time.monotonic() - start}


@case
def a_failing_chain():
    """Who waits for the end of it hears of it, although the end never ran."""
    last = chain(task("always_fails", "as asked").set(retries=3), task("add", 1), task("add", 2)).apply_async()
    return [raised(last.get, WAIT), raised(last.parent.get, WAIT)]


@case
def an_expired_chain():
    last = chain(task("add", 1, 2).set(countdown=2, expires=1.5), task("add", 1)).apply_async()
    return raised(last.get, WAIT)


@case
def a_group():
    return group(task("add", number, number) for number in range(5)).apply_async().get(timeout=WAIT)


@case
def a_group_of_chains():
    chains = [chain(task("add", number, 1), task("add", 10)) for number in range(3)]
    return group(chains).apply_async().get(timeout=WAIT)


@case
def a_group_at_the_end():
    members = group(task("add", 4), task("add", 5), chain(task("add", 6), task("add", 7)))
    return chain(task("add", 1, 2), members).apply_async().get(timeout=WAIT)


@case
def a_successor_elsewhere():
    """The strictest reader of a successor is a stock worker: all that it gets is there."""
    first = task("add", 1, 2).set(priority=3, headers={"x-first": 1})
    second = elsewhere("second", 4, name="b").set(
        priority=7, headers={"x-second": [1, {"a": None}]}, time_limit=30, soft_time_limit=20, expires=600,
        countdown=60, shadow="shown", link=task("linked"), link_error=task("failed"),
    )
    second.stamp(tenant="a")
    third = task("third")
    last = chain(first, second, third).apply_async()
    sent = mailbox.take("second")
    return {
        "sent": sent,
        "ids": [last.parent.parent.id, last.parent.id, last.id],
        "reply_to": app.thread_oid,
        "link": [signature["task"] for signature in sent["embed"]["callbacks"]],
        "link_error": [signature["task"] for signature in sent["embed"]["errbacks"]],
        "chain": [[signature["task"], signature["options"]["task_id"]] for signature in sent["embed"]["chain"]],
    }


@case
def a_callback():
    result = app.send_task("add", (1, 2), link=elsewhere("called_back", "own"))
    sent = mailbox.take("called_back")
    result.get(timeout=WAIT)
    return {
        "args": sent["args"],
        "reply_to": sent["reply_to"],
        "parent": [sent["headers"]["parent_id"], sent["headers"]["root_id"]] == [result.id] * 2,
        "child": [child.id for child in result.children] == [sent["headers"]["id"]],
    }


@case
def several_callbacks():
    links = [elsewhere("first_of_two"), elsewhere("second_of_two"), chain(elsewhere("of_a_chain"), task("behind_it"))]
    result = app.send_task("add", (1, 2), link=links)
    result.get(timeout=WAIT)
    sent = [mailbox.take(name) for name in ("first_of_two", "second_of_two", "of_a_chain")]
    groups = {message["headers"]["group"] for message in sent[:2]}
    [family] = result.children
    return {
        "args": [message["args"] for message in sent],
        "group": groups == {family.id},
        "places": [message["headers"]["group_index"] for message in sent[:2]],
        "members": [member.id for member in family.results][:2] == [message["headers"]["id"] for message in sent[:2]],
        "rest": [signature["task"] for signature in sent[2]["embed"]["chain"]],
    }


@case
def a_callback_over_a_retry():
    """It is called once, and the error callback not at all."""
    result = app.send_task("flaky", (1,), link=elsewhere("after_retry"), link_error=elsewhere("never_called"))
    told = []
    result.get(timeout=WAIT, on_message=lambda message: told.append(message["status"]))
    sent = mailbox.take("after_retry")
    return {"told": told, "args": sent["args"], "once": mailbox.has_none("after_retry"), "no_error": mailbox.has_none("never_called")}


@case
def an_error_callback():
    options = {"link": elsewhere("not_on_failure"), "link_error": elsewhere("on_failure", "own")}
    result = app.send_task("always_fails", ("as asked",), retries=2, **options)
    told = []
    end = raised(lambda: result.get(timeout=WAIT, on_message=lambda message: told.append(message["status"])))
    sent = mailbox.take("on_failure")
    return {
        "end": end,
        "told": told,
        "args": sent["args"] == [result.id, "own"],
        "parent": sent["headers"]["parent_id"] == result.id,
        "no_success": mailbox.has_none("not_on_failure"),
    }


@case
def nobody_takes_it():
    """A successor without a queue fails, and so does what was to come after it; what came before stands."""
    lost = task("add", 4).set(queue="no-such-queue", link_error=elsewhere("told_of_the_loss"))
    last = chain(task("add", 1, 2), lost, task("add", 8)).apply_async()
    ends = [raised(result.get, WAIT) for result in (last, last.parent, last.parent.parent)]
    return {"ends": ends, "told": mailbox.take("told_of_the_loss")["args"] == [last.parent.id]}


@case
def no_such_exchange():
    lost = task("add", 4).set(exchange="no-such-exchange", routing_key="x")
    unbound = task("add", 4).set(exchange="errand.tasks", routing_key="no-such-queue")
    return [raised(chain(task("add", 1, 2), end).apply_async().get, WAIT) for end in (lost, unbound)]


@case
def by_our_names():
    """Two ways to name the queue of the worker."""
    ends = [{"queue": "errand.default"}, {"exchange": "errand.tasks", "routing_key": "default"}]
    return [chain(task("add", 1, 2), task("add", 4).set(**end)).apply_async().get(timeout=WAIT) for end in ends]


@case
def chords():
    """This backend's client refuses to make one, so these are what other backends' clients send."""
    body = {"task": "add", "args": [1], "kwargs": {}, "options": {"task_id": "chord-body"}, "subtask_type": None}
    within = {"task": "celery.chord", "args": [], "kwargs": {"header": {}, "body": body}, "options": {},
              "subtask_type": "chord", "immutable": False}
    tail = {"task": "celery.group", "args": [], "kwargs": {"tasks": [body]}, "options": {}, "subtask_type": "group"}
    sent = [
        app.send_task("add", (1, 2), task_id="in-a-chord", chord=body),
        app.send_task("add", (1, 2), task_id="before-a-chord", chain=[within]),
        app.send_task("add", (1, 2), task_id="before-a-group", chain=[body, tail]),
    ]
    return [raised(result.get, WAIT) for result in sent]


@case
def no_signatures():
    sent = [
        app.send_task("add", (1, 2), task_id="strange-link", link=[17]),
        app.send_task("add", (1, 2), task_id="strange-option", link=[task("add").set(countdown="soon")]),
    ]
    return [raised(result.get, WAIT) for result in sent]


main()
