"""Lets every event stream end: it does when its task has, and some tasks would not for years."""

import os

import requests
import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    path = case.formatted_path
    if case.method == "GET" and path.endswith("/events"):
        task = case.operation.base_url.rstrip("/") + path.removesuffix("/events")
        key = {"Authorization": "Bearer " + os.environ["API_KEY"]}
        requests.post(task + "/revoke", headers=key, timeout=30)
