"""Two checkpoints that answer differently, and what each answers: so that a wrong answer is seen, not believed.

Imports torch, and so only inside a command that measures.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from policy.policy import Policy
from service.bench.requests import chunk_requests, decoded_request
from service.bench.untrained import write_untrained
from service.chaos.robots import Question
from service.local import to_chunk_request
from service.probe import read_probe
from service.revision import Revision, read_revision


@dataclass(frozen=True, kw_only=True)
class Twins:
    """`store` holds the checkpoints below the names of `locations`."""

    store: Path
    locations: tuple[str, str]
    revisions: tuple[str, str]
    questions: tuple[Question, ...]


def make_twins(checkpoint: Path, store: Path, *, policy: str) -> Twins:
    """A copy of a checkpoint, and one of its size with random weights for the same bodies."""
    locations = ("first", "second")
    shutil.copytree(checkpoint, store / locations[0])
    write_untrained(checkpoint, None, store / locations[1])
    found = [read_revision(store / location, policy=policy) for location in locations]
    return Twins(
        store=store,
        locations=locations,
        revisions=(found[0].revision, found[1].revision),
        questions=_questions(found, policy),
    )


def _questions(revisions: Sequence[Revision], policy: str) -> tuple[Question, ...]:
    case = read_probe(revisions[0])[0]
    requests = chunk_requests(revisions[0], case, policy=policy)
    models = [Policy.from_checkpoint(revision.directory) for revision in revisions]
    specs = tuple(models[0].embodiments.values())
    questions = []
    for request in requests:
        asked = to_chunk_request(specs, decoded_request(request, case, revisions[0]))
        chunks = [model.predict_chunk([asked])[0].numpy() for model in models]
        expected = {revision.revision: chunk for revision, chunk in zip(revisions, chunks, strict=True)}
        questions.append(Question(request=request, expected=expected))
    return tuple(questions)
