"""Bring the schema of MLflow's database up to date before a server starts, one pod at a time: migrate.py URI.

An empty database gets its tables. Runs in MLflow's image. Ends with 1 and a sentence when the database can't be
reached or has the schema of a newer MLflow.
"""

import sys

import sqlalchemy
from alembic.util import CommandError
from mlflow.db import upgrade

# Alembic takes no lock, and replicas start at the same time. The number means nothing to anybody else.
ADVISORY_LOCK = 7_236_059_114


def migrate(uri: str) -> None:
    """Wait for those that migrate already, then see that nothing is left to do. The lock ends with the connection."""
    engine = sqlalchemy.create_engine(uri, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:number)"), {"number": ADVISORY_LOCK})
        upgrade.callback(uri)


def main(uri: str) -> int:
    """The exit code."""
    try:
        migrate(uri)
    except sqlalchemy.exc.OperationalError as error:
        # `orig` is the driver's own message, which has no password in it.
        print(f"MLflow's database can't be used, see mlflow.backendStoreUri: {error.orig}", file=sys.stderr)
        return 1
    except CommandError as error:
        print(f"MLflow's database has a schema that this MLflow doesn't know, a newer one's: {error}", file=sys.stderr)
        return 1
    print("the schema of MLflow's database is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
