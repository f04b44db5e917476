"""An object store of the test's own that can be closed: its library's error is then no OSError."""

from typing import Any, final
from uuid import uuid4

from fsspec.implementations.memory import MemoryFileSystem

from service.storage import FsspecStorage


class Unreachable(Exception):
    """As botocore's EndpointConnectionError: of a family of its own."""


@final
class Closing(MemoryFileSystem):  # type: ignore[misc]  # fsspec tells no types
    """Objects in memory, behind a door."""

    cachable = False
    closed = False

    def put_file(self, *given: Any, **named: Any) -> Any:
        self._knock()
        return super().put_file(*given, **named)

    def find(self, *given: Any, **named: Any) -> Any:
        self._knock()
        return super().find(*given, **named)

    def rm_file(self, *given: Any, **named: Any) -> Any:
        self._knock()
        return super().rm_file(*given, **named)

    def open(self, *given: Any, **named: Any) -> Any:
        self._knock()
        return super().open(*given, **named)

    def _knock(self) -> None:
        if self.closed:
            raise Unreachable("could not connect to the endpoint")


def closing_storage() -> tuple[FsspecStorage, Closing]:
    """An empty storage, and what closes it."""
    storage = FsspecStorage(f"memory://{uuid4().hex}")
    storage._files = files = Closing()
    return storage, files
