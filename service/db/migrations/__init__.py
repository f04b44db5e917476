"""The way from an empty database, or an older one, to the tables of today: Alembic's, called here.

`alembic -c service/db/migrations/alembic.ini revision --autogenerate -m ...` writes the next step.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from service.db.session import Database

# Alembic is imported where it is called: the API starts without it.
if TYPE_CHECKING:
    from alembic.config import Config


def upgrade(url: str) -> None:
    """Bring a database to the newest tables, in one transaction; harmless to repeat."""
    from alembic import command  # noqa: PLC0415

    database = Database(url)
    try:
        with database.engine.begin() as connection:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        database.dispose()


def at_head(connection: Connection) -> bool:
    """Whether the database has the tables that this code expects."""
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    found = MigrationContext.configure(connection).get_current_revision()
    return found == ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> "Config":
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config
