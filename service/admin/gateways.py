"""The gateways of the fleet, and how far each is with what the fleet wants."""

from __future__ import annotations

from fastapi import status

from service.admin.authentication import Actor, ProtectedRouter
from service.admin.dependencies import Reader
from service.admin.fleet_models import GatewayDescription, GatewayList, PlacementDescription, PlacementList
from service.registry import Registry

router = ProtectedRouter(prefix="/v1/gateways", tags=["gateways"])


@router.get("")
async def list_gateways(reader: Reader) -> GatewayList:
    gateways = await reader.ask(lambda registry: registry.gateways())
    return GatewayList(gateways=[GatewayDescription.model_validate(gateway) for gateway in gateways])


@router.get("/placements")
async def list_placements(policy: str, revision: str, reader: Reader) -> PlacementList:
    placements = await reader.ask(lambda registry: registry.placements(policy, revision))
    return PlacementList(placements=[PlacementDescription.model_validate(placement) for placement in placements])


@router.delete("/{gateway}", status_code=status.HTTP_204_NO_CONTENT)
async def remove_gateway(gateway: str, reader: Reader, actor: Actor) -> None:
    """Says that a gateway is dead, so that nobody waits for it. One that lives comes back by itself."""

    def remove(registry: Registry) -> None:
        registry.leave(gateway)
        registry.note(actor=actor, action="remove gateway", detail={"gateway": gateway}, outcome="succeeded")

    await reader.ask(remove)
