"""Nobody reaches the page who should not, and what goes wrong at the start is one sentence."""

import socket

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from sdlora.errors import UserError
from ui import guard
from ui.app import main


def site(*, has_password: bool) -> TestClient:
    routes = [Route("/", lambda request: PlainTextResponse("here"), methods=["GET", "POST"])]
    middleware = guard.middleware(host="127.0.0.1", has_password=has_password)
    return TestClient(Starlette(routes=routes, middleware=middleware), base_url="http://127.0.0.1")


@pytest.mark.parametrize(("listen", "share"), [("0.0.0.0", False), ("127.0.0.1", True)])
def test_others_are_let_in_only_with_a_password_or_when_told_so(listen: str, share: bool) -> None:
    with pytest.raises(UserError, match="no password"):
        guard.password(None, listen=listen, share=share, no_auth=False)
    assert guard.password(None, listen=listen, share=share, no_auth=True) is None
    assert guard.password("me:a:b", listen=listen, share=share, no_auth=False) == ("me", "a:b")


@pytest.mark.parametrize("auth", ["", "me", "me:", ":word"])
def test_half_a_password_is_refused(auth: str) -> None:
    with pytest.raises(UserError, match="USER:PASSWORD"):
        guard.password(auth, listen="127.0.0.1", share=False, no_auth=False)


def test_a_foreign_name_for_this_machine_is_refused_without_a_password() -> None:
    evil = {"host": "evil.example"}
    assert site(has_password=False).get("/", headers=evil).status_code == 400
    assert site(has_password=True).get("/", headers=evil).status_code == 200
    assert site(has_password=False).get("/").status_code == 200


def test_another_site_may_not_post() -> None:
    headers = {"sec-fetch-site": "cross-site"}
    assert site(has_password=False).post("/", headers=headers).status_code == 403
    assert site(has_password=False).get("/", headers=headers).status_code == 200
    assert site(has_password=False).post("/", headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_a_taken_port_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    told = capsys.readouterr().err
    assert "cannot be used" in told and "--port" in told and "Traceback" not in told


def test_listening_without_a_password_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--listen"]) == 2
    assert "no password is set" in capsys.readouterr().err
