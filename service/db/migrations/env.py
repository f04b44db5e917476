"""What Alembic runs: the migrations, over the connection it is given or the one in the settings."""

from alembic import context
from sqlalchemy import Connection

from service.db.session import Database
from service.db.tables import Base
from service.settings import get_settings


def _migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _migrate(given)
else:
    with Database(get_settings().database).engine.begin() as opened:
        _migrate(opened)
