"""Which hyper-parameters mattered: two of Optuna's answers, from the candidates of one budget.

fANOVA: the share of the loss's variance that each explains, by a random forest. PED-ANOVA: how far
the best candidates' values are from all candidates' values.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optuna.samplers import RandomSampler

from search.report import Importance
from search.spec import SearchSpec
from search.study import distributions, empty_study, tell, tellable
from search.trial import FinishedTrial

if TYPE_CHECKING:
    from optuna.importance import BaseImportanceEvaluator

FEWEST = 4  # candidates below which the answers would be noise alone
BEST = 0.25  # the share of the candidates that PED-ANOVA compares with all


def importances(
    spec: SearchSpec, candidates: Sequence[FinishedTrial], *, budget_index: int
) -> tuple[Importance, ...]:
    """Return what each drawn setting mattered, the most important first; nothing from too few."""
    complete = [trial for trial in candidates if trial.state == "COMPLETE"]
    told = len(list(tellable(complete, spec)))
    drawn = [name for name, values in distributions(spec).items() if not values.single()]
    if told < FEWEST or not drawn:
        return ()
    # This loads scikit-learn and pandas: a third of a process' start, which one trial of all needs.
    from optuna.importance import (  # noqa: PLC0415
        FanovaImportanceEvaluator,
        PedAnovaImportanceEvaluator,
        get_param_importances,
    )

    study = empty_study(RandomSampler(seed=0))
    tell(study, complete, spec, objectives=("validation_loss",))

    def shares(evaluator: "BaseImportanceEvaluator") -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_param_importances(study, evaluator=evaluator, params=drawn)

    variance = shares(FanovaImportanceEvaluator(seed=spec.seed))
    best = shares(PedAnovaImportanceEvaluator(target_quantile=BEST))
    found = [
        Importance(
            budget_index=budget_index,
            name=name,
            fanova=float(variance[name]),
            ped_anova=float(best[name]),
        )
        for name in drawn
    ]
    return tuple(sorted(found, key=lambda one: (-one.fanova, one.name)))
