"""How Alembic runs the registry's migrations: on the connection it is given, inside its transaction."""

from alembic import context

from service.registry.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
context.run_migrations()
