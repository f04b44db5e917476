"""How often something has happened, counted in the transaction in which it does."""

from sqlalchemy.orm import Session

from service.db.queries import add_one


def count(session: Session, name: str) -> None:
    """Count one more; of what happens often, its row would be what all wait for."""
    add_one(session, name)
