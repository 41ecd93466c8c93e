"""How the settings of ``sst2_tuning.py`` were chosen: by simulation in the linearised model, on dev.tsv rows only.

    s(θ₀ + δ) ≈ s(θ₀) + J δ        s: a row's score difference between its two answers, J its gradient

One backward pass per row gives J; after that a run of thousands of ZO steps costs seconds, so a grid over mask scope,
steps, batch and step length is affordable. Trained on 1,000 rows of train.tsv, judged on 1,000 rows of dev.tsv, four
seeds of perturbations each; a first-order curve (plain gradient descent) stands beside it. Good for comparing settings;
what they really do is measured by ``sst2_tuning.py``. Writes ``results/sst2_choice.json``; takes about five minutes.
With ``--sentences`` the judged rows have ten words or more, as those of validation.tsv do, and training on any rows is
compared with training on such rows: ``results/sst2_choice_sentences.json``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import torch  # noqa: E402
from recording import write_result  # noqa: E402
from sst2_tuning import FEWEST_WORDS, DifferentiableModel, encode, open_bundle, prepare_bundle  # noqa: E402
from torch import Tensor  # noqa: E402

from device_client.model.loader import load_model  # noqa: E402
from device_client.tasks.layout import lay_out  # noqa: E402
from device_client.tasks.scoring import answer_scores  # noqa: E402
from shared.bundle.read import Bundle  # noqa: E402
from shared.tasks.examples import Example  # noqa: E402

Scope = Literal["per_tensor", "global"]
BUDGETS = ((3000, 16), (1500, 32), (700, 64))
STEP_LENGTHS = (0.03, 0.1, 0.3)
SEEDS = range(4)


class Rows(NamedTuple):
    """Linearised rows: scores (n,), gradients (n, k), signs ±1 (n,) of the right answer."""

    scores: Tensor
    gradients: Tensor
    signs: Tensor

    def margins(self, change: Tensor) -> Tensor:
        """Return how far the right answer is ahead at θ₀ + change."""
        return (self.scores + self.gradients @ change) * self.signs

    def loss(self, change: Tensor) -> float:
        """Return the mean cross-entropy over the two answers, nats."""
        return float(torch.nn.functional.softplus(-self.margins(change)).mean())

    def part(self, indices: Tensor) -> Rows:
        """Return some of the rows."""
        return Rows(self.scores[indices], self.gradients[indices], self.signs[indices])

    def gradient(self, change: Tensor) -> Tensor:
        """Return the gradient of the loss (k,)."""
        return -(torch.sigmoid(-self.margins(change)) * self.signs) @ self.gradients / len(self.scores)


def main() -> None:
    """Run the grid for both mask scopes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for scope in get_args(Scope):
        parser.add_argument(f"--{scope.replace('_', '-')}-bundle", dest=scope, type=Path, help="image layout, prepared")
    parser.add_argument("--sentences", action="store_true", help="judge on rows of ten words or more; global mask only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.sentences:
            layout = getattr(arguments, "global") or prepare_bundle(Path(folder) / "global", "global")
            print(write_result("sst2_choice_sentences", sentences(open_bundle(layout))).read_text())
            return
        found = {}
        for scope in get_args(Scope):
            layout = getattr(arguments, scope) or prepare_bundle(Path(folder) / scope, scope)
            found[scope] = grid(open_bundle(layout))
    print(write_result("sst2_choice", {"scopes": found}).read_text())


def grid(bundle: Bundle) -> dict[str, Any]:
    """Return the grid's outcome for one bundle."""
    model = load_model(bundle, device="cpu")
    differentiable = DifferentiableModel(bundle, model)
    training = linearise(differentiable, encode(model, "train.tsv", 1000, seed=7))
    judged = linearise(differentiable, encode(model, "dev.tsv", 1000))
    start = torch.zeros(model.sensitive_count)
    runs = [
        {"steps": steps, "batch": batch, "step_length": length, **summary(training, judged, steps, batch, length)}
        for steps, batch in BUDGETS
        for length in STEP_LENGTHS
    ]
    ours, theirs = training.gradient(start), judged.gradient(start)
    return {
        "bundle": bundle.digest,
        "loss_at_start": {"training": training.loss(start), "judged": judged.loss(start)},
        "gradient_norm": {"training": float(ours.norm()), "judged": float(theirs.norm())},
        "gradient_cosine": float(torch.cosine_similarity(ours, theirs, dim=0)),
        "zeroth_order": runs,
        "first_order": descent(training, judged),
    }


def sentences(bundle: Bundle) -> dict[str, Any]:
    """Return what training on any rows, and on rows of ten words or more, does for such rows."""
    model = load_model(bundle, device="cpu")
    differentiable = DifferentiableModel(bundle, model)
    judged = linearise(differentiable, encode(model, "dev.tsv", 1000, fewest_words=FEWEST_WORDS))
    start = torch.zeros(model.sensitive_count)
    found: dict[str, Any] = {"judged_loss_at_start": judged.loss(start)}
    for draw, fewest in (("any rows", 0), ("ten words or more", FEWEST_WORDS)):
        training = linearise(differentiable, encode(model, "train.tsv", 1000, seed=7, fewest_words=fewest))
        cosine = torch.cosine_similarity(training.gradient(start), judged.gradient(start), dim=0)
        found[draw] = {
            "gradient_cosine": float(cosine),
            "zeroth_order": {str(length): summary(training, judged, 2000, 16, length) for length in (0.03, 0.07, 0.15)},
            "first_order": descent(training, judged),
        }
    return found


def linearise(differentiable: DifferentiableModel, examples: list[Example]) -> Rows:
    """Return scores and gradients of every row, one backward pass each."""
    scores, gradients = [], []
    for example in examples:
        first, second = answer_scores(differentiable, lay_out([example], micro_batch_rows=1))[0]
        difference = second - first
        gradients.append(torch.autograd.grad(difference, differentiable.theta)[0])
        scores.append(float(difference.detach()))
    signs = torch.tensor([1.0 if example.right == 1 else -1.0 for example in examples])
    return Rows(torch.tensor(scores), torch.stack(gradients), signs)


def summary(training: Rows, judged: Rows, steps: int, batch: int, step_length: float) -> dict[str, float]:
    """Return what four seeds of a setting come to."""
    ends = [zeroth_order(training, steps, batch, step_length, seed) for seed in SEEDS]
    losses = [judged.loss(end) for end in ends]
    return {
        "training_loss": statistics.fmean(training.loss(end) for end in ends),
        "judged_loss": statistics.fmean(losses),
        "judged_loss_std": statistics.stdev(losses),
    }


def zeroth_order(training: Rows, steps: int, batch: int, step_length: float, seed: int) -> Tensor:
    """Return the change after a ZO run as the product makes it: normalised steps, linear decay."""
    generator = torch.Generator().manual_seed(seed)
    change, mean_square = torch.zeros(training.gradients.shape[1]), 0.0
    for step in range(steps):
        rows = training.part(torch.randperm(len(training.scores), generator=generator)[:batch])
        z = torch.randn(len(change), generator=generator)
        g = float(rows.gradient(change) @ z)
        mean_square = 0.98 * mean_square + 0.02 * g * g
        rms = math.sqrt(mean_square / (1 - 0.98 ** (step + 1)))
        change -= step_length / (math.sqrt(len(z)) * rms) * (1 - step / steps) * g * z
    return change


def descent(training: Rows, judged: Rows, *, steps: int = 400, lr: float = 0.05) -> list[dict[str, float]]:
    """Return the losses along plain gradient descent on all training rows."""
    change, points = torch.zeros(training.gradients.shape[1]), []
    for step in range(steps + 1):
        if step % 100 == 0:
            points.append({"steps": step, "training_loss": training.loss(change), "judged_loss": judged.loss(change)})
        change -= lr * training.gradient(change)
    return points


if __name__ == "__main__":
    main()
