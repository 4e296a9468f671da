"""Messages that no worker can run: what becomes of each, and whether the worker lives."""

import json
import os
import time
import zlib

import kombu

from cases import BROKER, WAIT, app, raised

JSON = "application/json"
REPLIES = "hostile-replies"
NOTHING = b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


def body(args):
    return b"[" + args + b", {}, {}]"


MESSAGES = {
    "pickle": ("application/x-python-serialize", b"\x80\x04K\x01.", {}),
    "yaml": ("application/x-yaml", b"[[], {}, {}]", {}),
    "msgpack": ("application/x-msgpack", b"\x93\x90\x80\x80", {}),
    "no-content-type": (None, NOTHING, {}),
    "two-elements": (JSON, b"[[], {}]", {}),
    "no-id": (JSON, NOTHING, {"id": None}),
    "nan": (JSON, body(b"[NaN, Infinity]"), {}),
    "surrogate": (JSON, body(b'["\\ud800", 1]'), {}),
    "surrogate-echo": (JSON, body(b'["\\ud800"]'), {"task": "echo"}),
    "wide": (JSON, body(b"[%d, 1]" % 2**100), {}),
    "garbage": (JSON, os.urandom(10 * 1024 * 1024), {}),
    "headers": (JSON, NOTHING, {"x-large": "x" * 100_000}),
    "eta": (JSON, NOTHING, {"eta": "soon"}),
    "protocol-1": (JSON, json.dumps({"task": "add", "id": "protocol-1", "args": [1, 2]}).encode(), {"task": None}),
    "bomb": (JSON, zlib.compress(b" " * (64 * 1024 * 1024)), {"compression": "application/x-gzip"}),
}


def publish(channel, name, content_type, payload, headers):
    headers = {"task": "add", "id": name, "lang": "py", **headers}
    message = channel.prepare_message(
        payload, content_type=content_type, content_encoding="utf-8",
        headers={key: value for key, value in headers.items() if value is not None},
        properties={"reply_to": REPLIES, "correlation_id": name, "delivery_mode": 2},
    )
    channel.basic_publish(message, exchange="errand.tasks", routing_key="default")


def too_large_for_a_frame():
    """200 KB of headers: the broker ends the connection of who sends it."""
    with kombu.Connection(BROKER, transport_options={"confirm_publish": True}) as connection:
        return raised(publish, connection.default_channel, "frame", JSON, NOTHING, {"x-large": "x" * 200_000})


def drained(channel, queue, count):
    found, deadline = [], time.monotonic() + WAIT
    while len(found) < count and time.monotonic() < deadline:
        message = channel.basic_get(queue, no_ack=True)
        if message is None:
            time.sleep(0.02)
        else:
            found.append(message)
    return found


with kombu.Connection(BROKER) as connection:
    channel = connection.default_channel
    kombu.Queue(REPLIES, durable=True)(channel).declare()
    for name, (content_type, payload, headers) in MESSAGES.items():
        publish(channel, name, content_type, payload, headers)
    replies = [json.loads(message.body) for message in drained(channel, REPLIES, len(MESSAGES))]
    letters = [message.headers for message in drained(channel, "errand.dead-letters", len(MESSAGES))]
    outcome = {
        "sent": sorted(MESSAGES),
        "replies": {reply["task_id"]: [reply["status"], reply["result"]] for reply in replies},
        "letters": [
            {name: headers.get(name) for name in ("id", "errand-dead-type", "errand-dead-message")} for headers in letters
        ],
        "frame": too_large_for_a_frame(),
        "after": app.send_task("add", (1, 2)).get(timeout=WAIT),
        "digits": app.send_task("echo", (2**100,)).get(timeout=WAIT) == 2**100,
    }
print(json.dumps(outcome))
