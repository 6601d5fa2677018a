"""When a policy first served."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("policies", sa.Column("first_served_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(
        "UPDATE policies SET first_served_at = (SELECT min(audit.at) FROM audit WHERE audit.policy = policies.name "
        "AND audit.outcome = 'succeeded' AND audit.action = 'promote')"
    )


def downgrade() -> None:
    op.drop_column("policies", "first_served_at")
