"""Times and forms in a few words, the same for terminals and for pages."""

from collections.abc import Sequence
from typing import assert_never

from models.cost import UNITS, Quantity
from models.forms import Form
from search.latency_table import WHOLE
from search.report import Execution


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


def price(value: int, quantity: Quantity) -> str:
    """`12,345` of what is counted; of time `12.3 %`, of what all searched layers take dense."""
    return f"{100 * value / WHOLE:.1f} %" if quantity == "latency" else f"{value:,}"


def budget_in_words(budgets: Sequence[int], dense_cost: int, quantity: Quantity) -> str:
    """What a search's budgets are, beside the dense cost: `10 or 20 of 100 MACs`."""
    prices = " or ".join(price(budget, quantity) for budget in budgets)
    if quantity == "latency":
        return f"{prices} of the dense layers' latency"
    return f"{prices} of {dense_cost:,} {UNITS[quantity]}"


def training_in_words(execution: Execution) -> str:
    """On what a search's networks were trained, and why in that precision: `cpu in float32`."""
    words = f"{execution.device} in {execution.precision}"
    if execution.bfloat16_over_float32 is not None:
        words += f" (a step in bfloat16 takes {execution.bfloat16_over_float32[0]:.2f} of the time)"
    if execution.compiled:
        words += ", by generated code"
    if execution.processes > 1:
        words += f", on {execution.processes} processes"
    return words
