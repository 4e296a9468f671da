"""A client that polls, in a process of its own: whoever waits in another thread may take what it would see."""

import time

from cases import WAIT, app, case, main


@case
def polled():
    """What a client that polls sees, one entry a change."""
    seen = []
    result = app.send_task("long_running_task", (21, 2))
    deadline = time.monotonic() + WAIT
    while not result.ready() and time.monotonic() < deadline:
        now = [result.state, result.info if result.state == "PROGRESS" else None]
        if now not in seen:
            seen.append(now)
        time.sleep(0.01)
    return {"seen": seen, "end": [result.state, result.get(timeout=WAIT)]}


main()
