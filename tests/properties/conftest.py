"""How laws are tested: without a deadline, as the first tensor of a process takes long."""

from hypothesis import settings

settings.register_profile("matnas", deadline=None)
settings.load_profile("matnas")
