"""Python runs this before anything else: trials are then the stand-in's, which needs no torch."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

STAND_IN = Path(__file__).parents[1] / "stand_in.py"


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """Find another file for the one module that trains."""
        return spec_from_file_location(fullname, STAND_IN) if fullname == "search.run" else None


sys.meta_path.insert(0, _Finder())
