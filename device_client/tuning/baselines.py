"""What the bundle's own values reach without a step: the figures that a gain from tuning has to be compared with.

    prior                  p̄_c = (1/N) Σ_i softmax(s(x_i))_c                       N prompts; no label is looked at
    calibrated zero-shot   s'_c(x) = s_c(x) − log p̄_c                              what the labels' words alone explain
    in context             s_c(x_1 y_1 ⏎⏎ … x_k y_k ⏎⏎ x)                          k rows with their answers before each

A model prefers some label words whatever the row says. Tuning learns that preference away first, which takes the loss
down to ln(number of labels) or below and says nothing about rows; the calibrated figure is what is left of such a gain.
It is Batch Calibration (Zhou et al. 2023), with training prompts where the rows are not all at hand; Contextual
Calibration (Zhao et al. 2021) estimates the same prior from one prompt without content, which few templates have.
Where each row has answers of its own there is no common prior, and no calibrated figure. Of an answer that does not
fit into the prompt's room as many rows are shown as fit.

Costs one pass over the rows, one over N training prompts, and one over at most ``IN_CONTEXT_ROWS`` rows that are k + 1
times as long. Knows nothing about models or runs.

Symbols: s_c mean log-probability of candidate c · N ``PRIOR_ROWS`` · k ``SHOWN_ROWS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from device_client.tuning.evaluation import Evaluation
from device_client.tuning.figures import CALIBRATED, IN_CONTEXT
from shared.perturbation import random_generator
from shared.tasks.examples import Example, TextEncoder

PRIOR_ROWS = 64
SHOWN_ROWS = 4
IN_CONTEXT_ROWS = 200
_SHOWN_STREAM = (1 << 62) + 1
"""Step number of the draw of shown rows: no step and no other draw shares its random words."""


ScoreRows = Callable[[Sequence[Example], int], Tensor]
"""(rows, micro-batch) → what each candidate scores with the bundle's own values, as ``evaluation.choice_scores``."""


@dataclass(frozen=True, slots=True)
class Room:
    """How much may run at once.

    Attributes:
        sequences: Of ``columns`` tokens each, side by side.
        columns: Tokens of the longest sequence that was planned for.
    """

    sequences: int
    columns: int

    def columns_for(self, encoder: TextEncoder) -> int:
        """Return the longest sequence that may run alone: attention is computed in blocks, so tokens alone count."""
        return min(encoder.context_length, max(self.columns, self.sequences * self.columns))

    def sequences_of(self, columns: int) -> int:
        """Return how many sequences of so many tokens may run side by side."""
        return max(1, min(self.sequences, self.sequences * self.columns // columns))


def has_baselines(examples: Sequence[Example]) -> bool:
    """Return whether every row offers a choice."""
    return not any(example.is_free for example in examples)


def has_common_answers(examples: Sequence[Example]) -> bool:
    """Return whether all rows choose between the same answers, so that there is a prior to speak of."""
    return len({example.candidates for example in examples}) == 1


def calibrated(scores: Tensor, prompts: Tensor) -> Tensor:
    """Return scores without the preference for an answer that a model has whatever the prompt.

    Args:
        scores: float64 (rows, answers).
        prompts: The scores of the prompts whose mean is the preference, float64 (N, answers).
    """
    prior = torch.softmax(prompts, dim=1).mean(dim=0)
    return scores - prior.log()


def evaluation_of(scores: Tensor, examples: Sequence[Example]) -> Evaluation:
    """Return loss and accuracy of choosing by the scores.

    Args:
        scores: float64 (rows, most candidates).
        examples: The rows.
    """
    right = torch.tensor([example.right for example in examples])
    losses = torch.logsumexp(scores, dim=1) - scores.gather(1, right[:, None])[:, 0]
    hits = int((scores.argmax(dim=1) == right).sum())
    return Evaluation(float(losses.mean()), hits / len(examples), len(examples))


def rows_to_show(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Return ``count`` rows drawn by ``seed``, the answers in turn, so that none is missing for want of luck."""
    order = random_generator(seed, _SHOWN_STREAM).permutation(len(examples)).tolist()
    waiting: dict[int, list[Example]] = {}
    for index in order:
        waiting.setdefault(examples[index].right, []).append(examples[index])
    shown: list[Example] = []
    while len(shown) < count and any(waiting.values()):
        shown += [rows.pop(0) for _, rows in sorted(waiting.items()) if rows]
    return shown[:count]


def with_rows_before(
    examples: Sequence[Example], shown: Sequence[Example], encoder: TextEncoder, columns: int
) -> tuple[list[Example], tuple[int, int]]:
    """Return the rows with answered rows before their prompts, and how many rows at least and at most.

    Args:
        examples: Rows to ask.
        shown: Rows to show, the nearest to the prompt last; the first are left out where not all fit.
        encoder: Of the model.
        columns: The longest sequence.
    """
    bos, gap = encoder.bos_ids, encoder.encode("\n\n")
    pieces = [[*row.prompt[len(bos) :], *row.candidates[row.right], *gap] for row in shown]
    asked, counts = [], []
    for example in examples:
        room, fitting = columns - example.token_count, 0
        for piece in reversed(pieces):
            if len(piece) > room:
                break
            room, fitting = room - len(piece), fitting + 1
        before = [token for piece in pieces[len(pieces) - fitting :] for token in piece]
        asked.append(replace(example, prompt=(*bos, *before, *example.prompt[len(bos) :])))
        counts.append(fitting)
    return asked, (min(counts), max(counts))


def in_context(
    score: ScoreRows, examples: Sequence[Example], shown: Sequence[Example], encoder: TextEncoder, room: Room
) -> dict[str, Any]:
    """Return what the model reaches on the first ``IN_CONTEXT_ROWS`` rows with answered rows before each."""
    some = list(examples[:IN_CONTEXT_ROWS])
    asked, (least, most) = with_rows_before(some, shown, encoder, room.columns_for(encoder))
    longest = max(example.token_count for example in asked)
    found = evaluation_of(score(asked, room.sequences_of(longest)), asked)
    return {**found.as_json(), "shown_rows": [least, most]}


def baselines(
    score: ScoreRows,
    training: Sequence[Example],
    judged: Sequence[Example],
    encoder: TextEncoder,
    room: Room,
    *,
    seed: int,
) -> dict[str, Any]:
    """Return what no tuning reaches on the rows that a run is judged by, by the names of the figures.

    Args:
        score: With the bundle's own values.
        training: Rows that prior and shown rows come from.
        judged: Rows to measure on.
        encoder: Of the model.
        room: What may run at once.
        seed: Of the draw of shown rows.
    """
    everything = [*training, *judged]
    if not has_baselines(everything):
        return {}
    found = {}
    if has_common_answers(everything):
        prompts = score(training[:PRIOR_ROWS], room.sequences)
        found[CALIBRATED] = evaluation_of(calibrated(score(judged, room.sequences), prompts), judged).as_json()
    found[IN_CONTEXT] = in_context(score, judged, rows_to_show(training, SHOWN_ROWS, seed), encoder, room)
    return found


def baselines_of_rows(
    own: Tensor, score: ScoreRows, examples: Sequence[Example], encoder: TextEncoder, room: Room, *, seed: int
) -> dict[str, dict[str, Any]]:
    """Return what no tuning reaches on rows that have no training rows beside them, by the names of the figures.

    The prior is that of the rows themselves, and some of them are shown before the others.

    Args:
        own: The rows' scores with the bundle's own values.
        score: Scores other rows with those values.
        examples: The rows, each with a choice.
        encoder: Of the model.
        room: What may run at once.
        seed: Of the draw of shown rows.
    """
    found = {}
    if has_common_answers(examples):
        found[CALIBRATED] = evaluation_of(calibrated(own, own), examples).as_json()
    shown = rows_to_show(examples, SHOWN_ROWS, seed)
    others = [example for example in examples if not any(example is row for row in shown)]
    if others:
        found[IN_CONTEXT] = in_context(score, others, shown, encoder, room)
    return found
