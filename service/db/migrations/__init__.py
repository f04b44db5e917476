"""The way from an empty database, or an older one, to the tables of today: Alembic's, called here.

`alembic -c service/db/migrations/alembic.ini revision --autogenerate -m ...` writes the next step.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from service.db.session import Database


def upgrade(url: str) -> None:
    """Bring a database to the newest tables, in one transaction; harmless to repeat."""
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
    found = MigrationContext.configure(connection).get_current_revision()
    return found == ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config
