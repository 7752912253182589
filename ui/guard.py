"""Who may talk to the page: the address rules, and a refusal of what other web sites send."""

import os
import socket

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sdlora.errors import UserError

LOCAL = ("127.0.0.1", "localhost", "::1")


class OwnPageOnly:
    """Refuses what another web site makes the browser send: Gradio's upload takes a plain form post."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The request goes on to the page unless a foreign site caused it and it is more than a reading."""
        headers = dict(scope.get("headers") or ())
        foreign = headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
        if scope["type"] == "http" and foreign and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            await PlainTextResponse("Only sdlora's own page may send this.", status_code=403)(
                scope, receive, send
            )
        else:
            await self.app(scope, receive, send)


def middleware(*, host: str, has_password: bool) -> list[Middleware]:
    """The checks that every request passes.

    Without a password only the machine's own names are answered, so that a foreign name that points here (DNS
    rebinding) is refused; with one the login's cookie, which belongs to a name, does the same.
    """
    names = ["*"] if has_password else [*LOCAL, host, *machine_names()]
    return [Middleware(TrustedHostMiddleware, allowed_hosts=names), Middleware(OwnPageOnly)]


def machine_names() -> list[str]:
    """What other machines of the network may call this one."""
    name = socket.gethostname()
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None)}
    except OSError:
        addresses = set()
    return [name, f"{name}.local", *sorted(addresses)]


def password(auth: str | None, *, listen: str, share: bool, no_auth: bool) -> tuple[str, str] | None:
    """The user and password to ask for.

    Raises UserError when others could reach the page and no password was given.
    """
    if auth is not None:
        user, colon, word = auth.partition(":")
        if not (user and colon and word):
            raise UserError("--auth needs USER:PASSWORD.", "For example --auth me:correct-horse.")
        return user, word
    if (share or listen not in LOCAL) and not no_auth:
        raise UserError(
            "With --listen or --share other people can reach this page, and no password is set.",
            "Add --auth USER:PASSWORD, or --no-auth if everyone may use it.",
        )
    return None


def check_port(host: str, port: int) -> None:
    """The port is free. Raises UserError that names a free one otherwise."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # elsewhere it would let two programs share a port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"Port {port} of {host} cannot be used: {reason}.",
                f"Another sdlora may be running there. Or choose another port: --port {port + 1}.",
            ) from None
