"""Sends what is due in years, or in minutes, and ends: what lies at the broker is the test's to look at."""

import json
from datetime import datetime

from cases import app

app.send_task("add", (1, 2), task_id="far", eta=datetime(2099, 1, 1))
app.send_task(
    "fetch_url", ("http://127.0.0.1:1/",), {"headers": {"authorization": "s3cret-1"}},
    task_id="waits", countdown=600, headers={"x-tenant": "a"},
)
app.send_task(
    "fetch_url", ("http://127.0.0.1:1/", "GET", {"authorization": "s3cret-2"}), task_id="fails", retries=3,
    argsrepr="(" + "x" * 5000,
)
app.send_task("add", ("x" * 5000, 2), task_id="long", argsrepr="x" * 5000)
print(json.dumps({}))
