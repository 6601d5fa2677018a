"""How a revision that a guard judges did in each gateway."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("placements", sa.Column("tally", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("placements", "tally")
