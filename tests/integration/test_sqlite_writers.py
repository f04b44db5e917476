"""Four processes that write at once to one SQLite file, and are never told that it is locked."""

import subprocess
import sys

from service.db.session import Database
from tests.integration.story import Story

TRANSACTIONS = 150
# Each reads before it writes: such transactions are refused if they are opened deferred.
WRITER = """
import sys
from sqlalchemy import select, update
from service.db.session import Database
from service.db.tables import TrialRow

database = Database(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with database.write() as session:
        losses = session.scalars(select(TrialRow.losses).where(TrialRow.number == 0)).one()
        session.execute(update(TrialRow).where(TrialRow.number == 0).values(losses=losses + 1))
"""


def test_four_processes_write_without_a_lock_error_or_a_lost_update(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    story = Story(database)
    command = [sys.executable, "-c", WRITER, sqlite_url, str(TRANSACTIONS)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    errors = [writer.communicate()[1].decode() for writer in writers]
    assert errors == [""] * 4
    assert story.trial(0).losses == 4 * TRANSACTIONS
    database.dispose()
