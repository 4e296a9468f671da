"""An SMTP server for tests. What it accepts becomes a file; what it refuses is in the recipient's name."""

import asyncio
import email
import email.policy
import json
import os
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult


class Handler:
    def __init__(self, directory):
        self.directory = directory
        self.mails = 0
        self.seen = set()

    def is_first(self, address):
        first = address not in self.seen
        self.seen.add(address)
        return first

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("refused@"):
            return "550 5.1.1 no such mailbox"
        if address.startswith("deferred@") and self.is_first(address):
            return "451 4.7.1 not now"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.store(session, envelope)
        # Accepted, but the client does not hear of it.
        if envelope.rcpt_tos[0].startswith("unanswered@") and self.is_first(envelope.rcpt_tos[0]):
            await asyncio.Future()
        return f"250 OK, mail {self.mails}"

    def store(self, session, envelope):
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        parts = [part for part in mail.walk() if not part.is_multipart()]
        self.mails += 1
        path = os.path.join(self.directory, f"{self.mails}.json")
        with open(path + ".new", "w") as file:
            json.dump(
                {
                    "message_id": mail["Message-ID"],
                    "subject": mail["Subject"],
                    "from": mail["From"],
                    "to": mail["To"],
                    "type": mail.get_content_type(),
                    "parts": [{"type": part.get_content_type(), "text": part.get_content()} for part in parts],
                    "recipients": envelope.rcpt_tos,
                    "peer": session.peer,
                },
                file,
            )
        os.rename(path + ".new", path)


async def main():
    config = json.loads(sys.argv[1])
    handler = Handler(config["directory"])
    options, tls = {}, None
    if config["login"]:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain("certificate.pem", "key.pem")
        expected = [part.encode() for part in config["login"]]

        def authenticate(server, session, envelope, mechanism, data):
            return AuthResult(success=[data.login, data.password] == expected, handled=False)

        options = {"authenticator": authenticate, "auth_required": True, "auth_require_tls": False}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(handler, **options), "127.0.0.1", config["port"], ssl=tls)
    await server.serve_forever()


asyncio.run(main())
