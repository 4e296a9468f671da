"""What both applications have: the routes, what they take, and what they say of a task."""

from flask import Flask, abort, request
from werkzeug.exceptions import HTTPException

STATUS = {"PENDING": "Waiting", "STARTED": "Running", "PROGRESS": "Running", "SUCCESS": "Success!"}


def create(start, look):
    """The application. `start` sends a task and returns its id; `look` returns a task's state and what was told with it
    (progress, result or error), or `None` for an id that is not known."""
    app = Flask(__name__)

    @app.post("/process_data")
    def process_data():
        value = field("value", (int, float, str), "a number or a text")
        return {"task_id": start("long_running_task", {"data": value, "seconds": 3})}, 202

    @app.post("/start-task")
    def start_task():
        return {"task_id": start("long_running_task", {"data": "done ", "seconds": 2})}, 202

    @app.post("/fetch_external_data")
    def fetch_external_data():
        url = field("url", str, "a text")
        return {"task_id": start("fetch_url", {"url": url, "timeout": 10})}, 202

    @app.get("/task_status/<task_id>")
    def task_status(task_id):
        return shown(*(look(task_id) or abort(404, "no such task")))

    @app.errorhandler(HTTPException)
    def refused(error):
        return {"error": error.description}, error.code

    return app


def field(name, types, wanted):
    body = request.get_json()
    value = body.get(name) if isinstance(body, dict) else None
    if not isinstance(value, types) or isinstance(value, bool):
        abort(400, f"{name}: {wanted} is wanted")
    return value


def shown(state, told):
    answer = {"state": state, "current": 0, "total": 1, "status": STATUS.get(state), "result": None}
    if state == "SUCCESS":
        return answer | {"current": 1, "result": told}
    if state in STATUS:
        is_progress = isinstance(told, dict) and "current" in told
        return answer | {"current": told["current"], "total": told["total"]} if is_progress else answer
    return answer | {"status": f"To be tried again: {told}" if state == "RETRY" else str(told)}
