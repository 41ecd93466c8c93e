"""SST-2 on the picollama-sentiment bundle: zeroth-order tuning beside first-order training of the same values.

Per seed: 1,000 training rows drawn from train.tsv, 500 other rows of it to choose the best values by, the 872 rows of
validation.tsv to report on; prompt ``<text> It was terrible/great``. Rows of train.tsv are mostly fragments of two to
nine words while those of validation.tsv are whole sentences, so only rows of ten words or more are drawn: trained on
fragments, the loss on other fragments falls and that on sentences does not (``sst2_choice.py``). Seeds are paired: both
methods see the same rows and batches. First order is Adam through the same forward (a benchmark only: it needs a
backward pass and its memory); one of its steps counts as three forward passes.

    python tests/benchmarks/sst2_tuning.py [--bundle DIR]         results/sst2_tuning.json and the headlines

Without ``--bundle`` the bundle is prepared first, calibrated on C4 documents 200 … 999. Mask scope, batch and step
length were chosen by ``sst2_choice.py`` on dev.tsv rows, the number of steps by the time and by the curve on held-out
rows of train.tsv. That only sentences are drawn was prompted by a run on fragments whose loss on validation.tsv did not
fall; the choice itself was then judged on dev.tsv rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import torch  # noqa: E402
import transformers  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402
from torch import Tensor  # noqa: E402

from device_client.model.loader import load_model  # noqa: E402
from device_client.model.sparse_model import SparseModel  # noqa: E402
from device_client.model.token_batch import TokenBatch  # noqa: E402
from device_client.tasks.layout import lay_out  # noqa: E402
from device_client.tasks.scoring import Objective, answer_losses, answer_scores  # noqa: E402
from device_client.tasks.task_data import DataOptions  # noqa: E402
from device_client.tuning.batches import BatchIndices  # noqa: E402
from device_client.tuning.evaluation import Evaluation, evaluate  # noqa: E402
from device_client.tuning.journal import StepRecord  # noqa: E402
from device_client.tuning.planned_run import plan_run  # noqa: E402
from device_client.tuning.run_directory import RunDirectory, load_theta  # noqa: E402
from device_client.tuning.settings import TuneSettings  # noqa: E402
from device_client.tuning.tune_run import MachineSettings, tune  # noqa: E402
from shared.architecture import family_of, safe_config  # noqa: E402
from shared.bundle.layout import ImageLayout  # noqa: E402
from shared.bundle.read import Bundle, read_bundle  # noqa: E402
from shared.tasks.datasets import draw_rows, read_records  # noqa: E402
from shared.tasks.examples import Example, encode_rows  # noqa: E402
from shared.tasks.named_tasks import named_task  # noqa: E402

DATA = Path(os.environ.get("ZO_DATA_DIR", HERE.parents[2] / "shared" / "data")).resolve()
MICRO_BATCH = 16
TASKS = "tasks"
DECODED_CACHE_BYTES = 1 << 30
FORWARDS_PER_BACKWARD = 2
CHOSEN = TuneSettings(steps=800, batch_size=16, step_length=0.07, decay="linear", validate_every=160)
FEWEST_WORDS = 10
CHOSEN_SCOPE: Literal["global", "per_tensor"] = "global"
FIRST_ORDER_STEPS = 150
FIRST_ORDER_LR = 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="image layout with one bundle")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=CHOSEN.steps)
    parser.add_argument("--first-order-steps", type=int, default=FIRST_ORDER_STEPS)
    parser.add_argument("--dry-run", action="store_true", help="print the summary and write nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        bundle = open_bundle(arguments.bundle or prepare_bundle(workspace / "prepared"))
        settings = replace(CHOSEN, steps=arguments.steps, validate_every=max(1, arguments.steps // 5))
        result = measure(bundle, workspace, settings, arguments.seeds, arguments.first_order_steps)
    if arguments.dry_run:
        print(json.dumps(result["summary"], indent=1))
        return 0
    path = write_result("sst2_tuning", result)
    record_headlines(path, headlines(result))
    print(json.dumps(result["summary"], indent=1))
    return 0


def prepare_bundle(output: Path, scope: Literal["global", "per_tensor"] = CHOSEN_SCOPE) -> Path:
    """Prepare picollama-sentiment as the product does, and return the image layout."""
    from cloud_service.pipeline.opening.planned_model import Means
    from cloud_service.pipeline.prepare import prepare
    from cloud_service.progress import SilentProgress
    from cloud_service.sources import SourcePolicy
    from shared.api import CalibrationSpec, EvaluationSpec, PrepareRequest

    model = DATA / "models" / "picollama-sentiment"
    documents = (DATA / "text" / "c4" / "c4-en-1000.jsonl").read_text().splitlines(keepends=True)
    output.mkdir(parents=True)
    text = output / "c4-200-999.jsonl"
    text.write_text("".join(documents[200:]))
    request = PrepareRequest(
        model=str(model),
        scope=scope,
        embedding_bits=16,  # first order goes through a twin network, which needs the embedding as a parameter
        calibration=CalibrationSpec(text=str(text)),
        evaluation=EvaluationSpec(documents=0),
    )
    layout = ImageLayout.create(output)
    sources = SourcePolicy(model_roots=(model.parent,), text_roots=(text.parent,))
    made = prepare(
        request,
        workspace=output / ".workspace",
        layout=layout,
        progress=SilentProgress(),
        sources=sources,
        means=Means(device="cpu"),
    )
    layout.tag(f"{made.name}:{made.tag}", made.manifest)
    return output


def open_bundle(folder: Path) -> Bundle:
    layout = ImageLayout(folder)
    (manifest,) = [found for name, found in layout.references().items() if not name.endswith(".sig")]
    return read_bundle(layout, manifest.digest)


def encode(
    bundle_model: SparseModel, name: str, rows: int | None, seed: int = 0, *, fewest_words: int = 0
) -> list[Example]:
    """Draw rows of one of SST-2's files, put them into the prompt, and return them in tokens."""
    everything = read_records(DATA / "tasks" / "SST-2" / name)
    long_enough = [record for record in everything if len(record.fields["sentence"].split()) >= fewest_words]
    records = draw_rows(long_enough, rows, seed)
    task = named_task("SST-2")
    return encode_rows([task.render(record, "opt") for record in records], bundle_model.tokenizer)


def write_sentences(folder: Path) -> None:
    """Write SST-2's files as the named task expects them, with the sentences of train.tsv only."""
    source, target = DATA / "tasks" / "SST-2", folder / "SST-2"
    target.mkdir(parents=True)
    header, *lines = (source / "train.tsv").read_text().splitlines()
    sentences = [line for line in lines if len(line.split("\t")[0].split()) >= FEWEST_WORDS]
    (target / "train.tsv").write_text("\n".join([header, *sentences]) + "\n")
    for name in ("dev.tsv", "validation.tsv"):
        (target / name).symlink_to(source / name)


def options(tasks: Path, seed: int) -> DataOptions:
    return DataOptions(
        task="SST-2", data_dir=tasks, prompt_style="opt", train_rows=1000, validation_rows=500, test_rows=1,
        seed=seed,
    )  # fmt: skip


class CurveKeeper:
    """Evaluates the report rows at every validation: the curve, never the choice."""

    def __init__(self, model: SparseModel, run: RunDirectory, rows: Sequence[Example], objective: Objective) -> None:
        self._model, self._run, self._rows, self._objective = model, run, rows, objective
        self.points: list[dict[str, Any]] = []
        self.seconds = 0.0

    def stepped(self, record: StepRecord) -> None:
        pass

    def validated(self, steps_done: int, evaluation: Evaluation, *, is_best: bool) -> None:
        began = time.monotonic()
        snapshot = self._run.read_theta("last.safetensors")
        if snapshot is None:
            raise RuntimeError("a validation without a snapshot")
        found = score(self._model, snapshot.theta, self._rows, self._objective)
        self.points.append(
            {
                "steps": steps_done,
                "forward_passes": 2 * steps_done,
                "choice_rows": evaluation.as_json(),
                "report_rows": found.as_json(),
                "is_best": is_best,
            }
        )
        self.seconds += time.monotonic() - began

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)


def score(model: SparseModel, theta: Tensor, rows: Sequence[Example], objective: Objective) -> Evaluation:
    model.write_theta(theta)
    return evaluate(model, rows, objective, micro_batch_rows=MICRO_BATCH)


def zeroth_order(
    bundle: Bundle, model: SparseModel, settings: TuneSettings, rows: Sequence[Example], folder: Path
) -> dict[str, Any]:
    planned = plan_run(bundle, settings, options(folder.parent / TASKS, settings.seed), runs=folder)
    keeper = CurveKeeper(model, planned.directory, rows, planned.objective)
    machine = MachineSettings(device="cpu", memory_budget_bytes=8 << 30, micro_batch_rows=MICRO_BATCH)
    began = time.monotonic()
    report = tune(planned, machine, keeper, time.monotonic)
    seconds = time.monotonic() - began - keeper.seconds
    final = score(model, load_theta(report.run), rows, planned.objective)
    return {
        "curve": keeper.points,
        "best_step": report.result["best_step"],
        "median_loss_difference": report.result["median_loss_difference"],
        "clipped_steps": report.result["clipped_steps"],
        "seconds_per_step": seconds / settings.steps,
        "peak_memory_bytes": report.resources["peak_memory_bytes"],
        "tuned": final.as_json(),
    }


class DifferentiableModel:
    """The same forward in plain transformers, with the sensitive values as a leaf that has a gradient."""

    device = torch.device("cpu")

    def __init__(self, bundle: Bundle, model: SparseModel) -> None:
        fields = safe_config(bundle.config.architecture)
        network_class = getattr(transformers, family_of(fields).architecture)
        self._network = network_class(network_class.config_class(**fields)).eval().requires_grad_(False)
        model.write_theta(model.initial_theta())
        weights = {name: parameter.clone() for name, parameter in model.network.named_parameters()}
        for entry in bundle.config.tensors:
            layer: Any = model.network.get_submodule(entry.name.removesuffix(".weight"))
            weights[entry.name] = layer.effective_weight().clone().float()
        self._base = {entry.name: weights[entry.name] for entry in bundle.config.tensors}
        missing = self._network.load_state_dict(weights, strict=False).missing_keys
        if [name for name in missing if name != "lm_head.weight"]:
            raise RuntimeError(f"no values for {missing}")
        self._indices = {
            entry.name: torch.from_numpy(bundle.sensitive(entry.name)[0].indices).long()
            for entry in bundle.config.tensors
        }
        self._slices = model.tensor_slices
        self.theta = model.initial_theta().requires_grad_(True)

    def logits(self, batch: TokenBatch) -> Tensor:
        weights = {
            name: base.view(-1).index_put((self._indices[name],), self.theta[self._slices[name]]).view_as(base)
            for name, base in self._base.items()
        }
        arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        found: Tensor = torch.func.functional_call(self._network, weights, (), arguments).logits
        return found[batch.logit_rows, batch.logit_columns].float()[None]


def first_order(
    bundle: Bundle, model: SparseModel, settings: TuneSettings, rows: Sequence[Example], folder: Path, steps: int
) -> dict[str, Any]:
    """Train the same values by Adam on the same batches; the best are chosen on the same rows."""
    data = plan_run(bundle, settings, options(folder.parent / TASKS, settings.seed), runs=folder).data
    objective: Objective = settings.objective or "candidates"
    differentiable = DifferentiableModel(bundle, model)
    disagreement = forward_disagreement(model, differentiable, data.training[:16])
    indices = BatchIndices(len(data.training), settings.batch_size, settings.seed)
    optimizer = torch.optim.Adam([differentiable.theta], lr=FIRST_ORDER_LR)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    points: list[dict[str, Any]] = []
    best: tuple[float, Tensor] | None = None
    for step in range(steps + 1):
        if step % max(1, steps // 5) == 0:
            theta = differentiable.theta.detach().clone()
            choice = score(model, theta, data.validation, objective)
            best = (choice.loss, theta) if best is None or choice.loss < best[0] else best
            points.append(
                {
                    "steps": step,
                    "forward_passes": step * (1 + FORWARDS_PER_BACKWARD),
                    "choice_rows": choice.as_json(),
                    "report_rows": score(model, theta, rows, objective).as_json(),
                }
            )
        batch = lay_out([data.training[index] for index in indices(step)], micro_batch_rows=MICRO_BATCH)
        optimizer.zero_grad()
        answer_losses(answer_scores(differentiable, batch), batch, objective).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()
    if best is None:
        raise RuntimeError("no step was made")
    tuned = score(model, best[1], rows, objective)
    return {"curve": points, "tuned": tuned.as_json(), "largest_logit_difference_at_start": disagreement}


@torch.no_grad()
def forward_disagreement(model: SparseModel, differentiable: DifferentiableModel, rows: Sequence[Example]) -> float:
    """Return how far the scores of both forwards are apart at θ₀: they are meant to be the same function."""
    model.write_theta(model.initial_theta())
    batch = lay_out(rows, micro_batch_rows=MICRO_BATCH)
    return float((answer_scores(model, batch) - answer_scores(differentiable, batch)).abs().max())


class SixteenBitModel:
    """The original checkpoint in plain transformers, float32 arithmetic."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        folder = DATA / "models" / "picollama-sentiment"
        self._network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def logits(self, batch: TokenBatch) -> Tensor:
        found: Tensor = self._network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return found[batch.logit_rows, batch.logit_columns].float()[None]


def sixteen_bit(rows: Sequence[Example]) -> Evaluation:
    """Return what the original checkpoint scores."""
    return evaluate(SixteenBitModel(), rows, "candidates", micro_batch_rows=MICRO_BATCH)


def measure(
    bundle: Bundle, workspace: Path, settings: TuneSettings, seeds: int, first_order_steps: int
) -> dict[str, Any]:
    model = load_model(bundle, device="cpu")
    model.keep_decoded(DECODED_CACHE_BYTES)
    rows = encode(model, "validation.tsv", None)
    zero_shot = score(model, model.initial_theta(), rows, "candidates")
    write_sentences(workspace / TASKS)
    runs = []
    for seed in range(seeds):
        seeded = replace(settings, seed=seed)
        run = {
            "seed": seed,
            "zeroth_order": zeroth_order(bundle, model, seeded, rows, workspace / "runs"),
            "first_order": first_order(bundle, model, seeded, rows, workspace / "plans", first_order_steps),
        }
        print(seed, run["zeroth_order"]["tuned"], run["first_order"]["tuned"], file=sys.stderr, flush=True)
        runs.append(run)
    return {
        "bundle": bundle.digest,
        "sensitive_values": model.sensitive_count,
        "settings": asdict(settings),
        "first_order_settings": {"steps": first_order_steps, "lr": FIRST_ORDER_LR, "optimizer": "Adam"},
        "zero_shot": zero_shot.as_json(),
        "zero_shot_16bit": sixteen_bit(rows).as_json(),
        "runs": runs,
        "summary": summarise(zero_shot, runs),
    }


def summarise(zero_shot: Evaluation, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"zero_shot": zero_shot.as_json()}
    for method in ("zeroth_order", "first_order"):
        losses = [run[method]["tuned"]["loss"] for run in runs]
        accuracies = [run[method]["tuned"]["accuracy"] for run in runs]
        changes = [loss - zero_shot.loss for loss in losses]
        passes = [run[method]["curve"][-1]["forward_passes"] for run in runs]
        summary[method] = {
            "loss_mean": statistics.fmean(losses),
            "loss_std": spread(losses),
            "loss_changes": changes,
            # One seed has no spread to compare with.
            "loss_falls_by_more_than_the_spread": -statistics.fmean(changes) > spread(losses)
            if len(runs) > 1
            else None,
            "accuracy_mean": statistics.fmean(accuracies),
            "accuracy_std": spread(accuracies),
            "accuracy_changes": [accuracy - (zero_shot.accuracy or 0.0) for accuracy in accuracies],
            "forward_passes": passes,
            "loss_change_per_thousand_forward_passes": 1000 * statistics.fmean(changes) / statistics.fmean(passes),
        }
    return summary


def spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def headlines(result: dict[str, Any]) -> dict[str, tuple[float | int | bool, str]]:
    tuned = result["summary"]["zeroth_order"]
    return {
        "sst2.picollama.zero_shot": (result["zero_shot"]["accuracy"], "accuracy, 4-bit bundle"),
        "sst2.picollama.tuned_mean": (tuned["accuracy_mean"], "accuracy"),
        "sst2.picollama.tuned_std": (tuned["accuracy_std"], "accuracy"),
    }


if __name__ == "__main__":
    sys.exit(main())
