"""The database behind the registry: connecting, bringing its schema up to date, and what an outage looks like.

SQLite for one machine, PostgreSQL for a fleet of gateways. Owns the engine's settings and the migrations' start. Does
not own what is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import ClauseElement, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.sql.compiler import SQLCompiler

from service.errors import InvalidRequestError

MIGRATIONS = Path(__file__).parent / "migrations"
# Every wait ends: for a connection, for a lock, for a statement.
_WAIT_S = 5
_READ_ONLY = "premotor_read_only"
# One number for all gateways that start at once; only one of them migrates.
_MIGRATION_LOCK = 7_066_726


class RegistryUnavailableError(Exception):
    """The database does not answer. What was served goes on; changes have to wait."""


class WrongRegistryError(ValueError):
    """What was given for the registry's URL is none, or names one that this version cannot read."""


def open_database(url: str) -> Engine:
    """Connects and migrates.

    Raises RegistryUnavailableError, or WrongRegistryError for a URL that is none or a registry of a newer premotor.
    """
    engine = _engine(url)
    with unavailable_if_lost(), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATION_LOCK})
        _check_version(connection)
        migrate(connection)
    return engine


def reader_of(engine: Engine) -> Engine:
    """For transactions that only read: each sees one state of the database, and waits for none that writes."""
    if engine.dialect.name == "postgresql":
        # There each statement would see what was committed before it.
        return engine.execution_options(isolation_level="REPEATABLE READ")
    return engine.execution_options(**{_READ_ONLY: True})


def migrate(connection: Connection, revision: str = "head") -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _check_version(connection: Connection) -> None:
    found = MigrationContext.configure(connection).get_current_revision()
    known = [script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]
    if found is not None and found not in known:
        raise WrongRegistryError(
            f"the registry at {connection.engine.url.render_as_string()} is of version {found!r}, expected at most "
            f"{known[0]!r}: a newer premotor has written it; run that one, or give another registry"
        )


@contextmanager
def unavailable_if_lost() -> Iterator[None]:
    """Turns every way in which a database can be away into RegistryUnavailableError.

    What it is there for and refuses, such as a text with a NUL, becomes InvalidRequestError.
    """
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        raise RegistryUnavailableError(f"the registry's database does not answer: {_cause(error)}") from error
    except DataError as error:
        raise InvalidRequestError("", f"the registry's database takes no such value: {_cause(error)}") from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise RegistryUnavailableError(f"the registry's database went away: {_cause(error)}") from error


class BareStatement:
    """A statement that gives at most one row, asked of the driver itself: for what is asked all the time."""

    def __init__(self, statement: ClauseElement, engine: Engine) -> None:
        compiled = statement.compile(engine)
        assert isinstance(compiled, SQLCompiler)
        self._compiled, self._sql = compiled, str(compiled)

    def row(self, connection: Connection, **values: Any) -> tuple[Any, ...] | None:
        """In a transaction of its own, so `connection` must have done nothing before.

        `values` are the statement's parameters by name. Raises as the connection's own methods do.
        """
        driver = connection.dialect.loaded_dbapi
        parameters: Any = self._compiled.construct_params(values)
        if self._compiled.positiontup is not None:
            parameters = [parameters[name] for name in self._compiled.positiontup]
        try:
            with closing(connection.connection.cursor()) as cursor:
                cursor.execute(self._sql, parameters)
                row = cursor.fetchone()
            connection.connection.commit()
            return row
        except driver.Error as error:
            connection.invalidate(error)
            raise DBAPIError.instance(self._sql, parameters, error, driver.Error) from error


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise WrongRegistryError(
            f"the registry's URL is {url!r}, expected sqlite:///FILE or postgresql://..."
        ) from None
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, connect_args={"timeout": _WAIT_S})
        event.listen(engine, "connect", _set_up_sqlite)
        # A transaction that reads and then writes must hold the lock from the start, or two of them deadlock.
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.get_backend_name() == "postgresql":
        milliseconds = _WAIT_S * 1000
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            connect_args={
                "connect_timeout": _WAIT_S,
                # A network that swallows what is sent to it says nothing either.
                "tcp_user_timeout": milliseconds,
                "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}",
            },
            pool_size=4,
            max_overflow=4,
            pool_timeout=_WAIT_S,
            pool_pre_ping=True,
        )
    raise WrongRegistryError(f"the registry's URL is for {parsed.get_backend_name()!r}, expected sqlite or postgresql")


def _begin_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get(_READ_ONLY)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transactions begin too late; ours begin with BEGIN IMMEDIATE.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _cause(error: Exception) -> str:
    original = getattr(error, "orig", None)
    return str(original or error).splitlines()[0]
