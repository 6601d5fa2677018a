"""A revision that the registry knows, as these tests want one."""

from __future__ import annotations

from service.registry import Registry


def register(registry: Registry, revision: str) -> None:
    registry.register(
        policy="tabletop",
        revision=revision,
        manifest_sha256=revision + "f" * 52,
        location=f"tabletop/{revision}",
        variant="history",
        schema_digest="a" * 64,
        num_bytes=1000,
        actor="ada",
    )
