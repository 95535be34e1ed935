"""Migrates a journal one version further and kills itself at its n-th step: `python migration.py JOURNAL STEP`."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from workload import dying_at

from openlora_node.journal.database import connect
from openlora_node.journal.schema import Migration, bundled, migrate
from support.journal import NOW

NEXT = Migration(
    bundled()[-1].version + 1,
    "CREATE TABLE extra (n INTEGER NOT NULL);\n"
    "INSERT INTO extra SELECT seq FROM receipts;\n"
    "ALTER TABLE receipts ADD COLUMN note TEXT;\n"
    "UPDATE receipts SET note = 'migrated';\n",
)

if __name__ == "__main__":
    path = Path(sys.argv[1])
    with closing(connect(path, "rw")) as connection:
        migrate(connection, path, NOW, dying_at(int(sys.argv[2])), (*bundled(), NEXT))
