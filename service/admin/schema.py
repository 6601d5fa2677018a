"""What the admin plane can do, as OpenAPI: for those who may look at what it serves."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from service.admin.authentication import ProtectedRouter

router = ProtectedRouter(tags=["schema"])


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> dict[str, Any]:
    return request.app.openapi()
