"""Lets every event stream end: it does when its task has, and some tasks would not for years."""

import requests
import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    path = case.formatted_path
    if case.method == "GET" and path.endswith("/events"):
        requests.post(case.operation.base_url.rstrip("/") + path.removesuffix("events") + "revoke", timeout=30)
