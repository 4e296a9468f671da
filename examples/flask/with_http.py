"""The routes on Errand's HTTP API: no broker, no thread, nothing to write down, and as many processes as it takes."""

import json
import os
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

from routes import create

TASKS = os.environ["ERRAND_URL"] + "/v1/tasks"
HEADERS = {"authorization": f"Bearer {os.environ['ERRAND_API_KEY']}", "content-type": "application/json"}


def call(url, body=None):
    with urlopen(Request(url, body and json.dumps(body).encode(), HEADERS), timeout=10) as answer:
        return json.load(answer)


def start(task, kwargs):
    return call(TASKS, {"task": task, "kwargs": kwargs})["task_id"]


def look(task_id):
    try:
        task = call(f"{TASKS}/{quote(task_id, safe='')}")
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    told = task["error"]["message"] if task["error"] else task["progress"]
    return task["state"], task["result"] if task["state"] == "SUCCESS" else told


app = create(start, look)
