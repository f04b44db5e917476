"""How laws are tested: by the same examples each time, so that who breaks one is who changed it.

`make proof` draws others. Without a deadline, as the first tensor of a process takes long.
"""

import os

from hypothesis import settings

settings.register_profile("matnas", deadline=None, derandomize="FULL_PROOF" not in os.environ)
settings.load_profile("matnas")
