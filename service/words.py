"""Times and forms in a few words, the same for terminals and for pages."""

from typing import assert_never

from models.forms import Form


def duration(seconds: float) -> str:
    """`45 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def form_in_words(form: Form | None) -> str:
    """How a layer is run, where that is not by its structure as it is: `run dense`."""
    match form:
        case None | "structured":
            return ""
        case "dense" | "packed" | "sliced":
            return f"run {form}"
        case "factors":
            return "run as two factors"
        case _:
            assert_never(form)
