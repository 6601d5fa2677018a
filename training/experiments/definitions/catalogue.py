"""The eight experiments on paper A's claims (arXiv 2606.26095, Tables III and IV, Fig. 1c), by name.

Each is a file beside this one, which owns its arms, what is claimed of them and what the paper says.
"""

from __future__ import annotations

from collections.abc import Mapping

from training.experiments.definitions.copycat import copycat
from training.experiments.definitions.decay import decay
from training.experiments.definitions.low_data import low_data
from training.experiments.definitions.optimisation import optimisation
from training.experiments.definitions.prior import prior
from training.experiments.definitions.prior_kind import prior_kind
from training.experiments.definitions.scaling import scaling
from training.experiments.definitions.unseen_body import unseen_body
from training.experiments.experiment import Experiment
from training.names import unknown_name

EXPERIMENTS: Mapping[str, Experiment] = {
    made.name: made
    for made in (
        prior(),
        optimisation(),
        prior_kind(),
        scaling(),
        decay(),
        low_data(),
        unseen_body(),
        copycat(),
    )
}


def experiment(name: str) -> Experiment:
    """Raises UnknownNameError."""
    if name not in EXPERIMENTS:
        raise unknown_name("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]
