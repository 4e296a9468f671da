"""Says of each message on standard input whether the package of Standard Webhooks takes it: [[secret, headers, body], …]."""

import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError


def is_genuine(secret, headers, body):
    try:
        Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return False
    return True


json.dump([is_genuine(*message) for message in json.load(sys.stdin)], sys.stdout)
