"""While nobody needs a token, loopback is asked by a name that is nobody else's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client import CollectorRegistry

from service.admin import create_admin_app

ASKED = ("/", "/metrics", "/v1/policies", "/healthz")


@pytest.fixture
def ask(kit, desk) -> Callable[..., Awaitable[httpx.Response]]:
    """Asks an app that listens on `listen_host` by the name `host`; None leaves the name out."""

    async def get(path: str, host: str | None, *, listen_host: str = "127.0.0.1", **headers: str) -> httpx.Response:
        registry = CollectorRegistry()
        app = create_admin_app(
            policies=kit.policies,
            backend=kit.backend(),
            metrics_registry=registry,
            # What these routes ask of it.
            fleet=SimpleNamespace(registry=SimpleNamespace(fleet=lambda: None)),  # pyright: ignore[reportArgumentType]
            credentials=desk.credentials(registry),
            listen_host=listen_host,
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            request = client.build_request("GET", path, headers={"host": host or "", **headers})
            if host is None:
                del request.headers["host"]
            return await client.send(request)

    return get


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "[bad"])
async def test_a_name_that_somebody_points_at_loopback_is_refused_everywhere(ask, path, host):
    answer = await ask(path, host)
    assert answer.status_code == 403
    assert "ask for localhost" in answer.json()["message"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "localhost.:8080", "127.0.0.1:8080", "[::1]:8080", None]
)
async def test_loopbacks_own_names_and_programs_that_give_none_are_answered(ask, host):
    assert (await ask("/healthz", host)).status_code == 200


async def test_the_name_that_it_listens_on_is_its_own(ask):
    assert (await ask("/healthz", "127.0.0.7:80", listen_host="127.0.0.7")).status_code == 200


async def test_with_tokens_or_beyond_loopback_the_name_is_nobodys_business(ask, desk):
    assert (await ask("/healthz", "premotor.example", listen_host="0.0.0.0")).status_code == 200
    token = desk.give("observe")
    assert (await ask("/v1/policies", "premotor.example", authorization=f"Bearer {token}")).status_code == 200
    assert (await ask("/v1/policies", "premotor.example")).status_code == 401


async def test_an_origin_that_is_no_address_is_another_sites(kit):
    app = create_admin_app(
        policies=kit.policies,
        backend=kit.backend(),
        metrics_registry=CollectorRegistry(),
        fleet=None,  # pyright: ignore[reportArgumentType]  # refused before it is asked
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin") as client:
        answer = await client.post("/v1/fleet/policies/tabletop:rollBack", headers={"origin": "http://[bad"})
    assert answer.status_code == 403
