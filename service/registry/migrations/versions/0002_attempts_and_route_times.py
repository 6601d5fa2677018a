"""When a route last changed, and which attempt at a revision a placement speaks of."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# What changes who takes new episodes, as the audit log calls it.
_CHANGES = ("promote", "roll back", "split", "drain")


def upgrade() -> None:
    op.add_column("policies", sa.Column("route_changed_at", sa.DateTime(timezone=True), nullable=True))
    for table in ("revisions", "placements"):
        op.add_column(table, sa.Column("attempt", sa.Integer(), nullable=False, server_default="0"))
    names = ", ".join(f"'{name}'" for name in _CHANGES)
    op.execute(
        "UPDATE policies SET route_changed_at = (SELECT max(audit.at) FROM audit WHERE audit.policy = policies.name "
        f"AND audit.outcome = 'succeeded' AND audit.action IN ({names})) WHERE route IS NOT NULL"
    )


def downgrade() -> None:
    for table in ("placements", "revisions"):
        op.drop_column(table, "attempt")
    op.drop_column("policies", "route_changed_at")
