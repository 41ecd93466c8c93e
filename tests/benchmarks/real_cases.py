"""Runs the cases of model folders as people have them, and counts those whose outcome is right.

A case (``m…`` in the folder of cases) is a script and a text that says what is right. The text is for people; below it
is written as what can be compared: the exit codes in order, and what must be found in the output. Any of a case's
expectations is enough. A case whose model is missing is skipped with the reason and not counted. Never edits the cases.
Takes about half a minute a case; ``--only m07,m08`` runs some, and records nothing.
Writes ``results/real_cases.json`` and ``real.cases_right``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from recording import record_headlines, write_result  # noqa: E402

_SECONDS = 900
_CRASH = re.compile(r"Traceback \(most recent call last\)|unexpected \w*Error")
_AGREEING = re.compile(r"same argmax at ([\d.]+) %")
_LEAST_AGREEMENT = 95.0
"""Percent. The cases' networks are random, their logits close to each other, and weights and embeddings in eight bits:
right ones agree at 97.5 to 99.5, ones with a wrong position or shape at far less."""

# Cases were written when these modules lay elsewhere.
_MOVED = {
    "cloud_service.pipeline.tokenization": "cloud_service.pipeline.model.tokenization",
    "device_client.model.tokenizer": "shared.model.tokenizer",
}
_RENAMED = {"device_client.model.sparse_model": {"SparseModel": {"_head": "head", "_hidden_states": "hidden_states"}}}


@dataclass(frozen=True, slots=True)
class Expectation:
    """What makes an outcome right.

    Attributes:
        codes: Expression that all exit codes, in order and separated by spaces, match from the beginning.
        found: Expressions that the output must have.
        agreements: Comparisons with transformers' logits that there must be, each with most positions alike.
    """

    codes: str
    found: tuple[str, ...] = ()
    agreements: int = 0

    def holds(self, output: str) -> bool:
        """Whether an output is as expected."""
        codes = " ".join(re.findall(r"rc=(\d+)", output))
        shares = [float(share) for share in _AGREEING.findall(output)]
        return (
            re.match(self.codes + r"(?:\s|$)", codes) is not None
            and all(re.search(pattern, output, re.MULTILINE) for pattern in self.found)
            and len(shares) >= self.agreements
            and all(share >= _LEAST_AGREEMENT for share in shares)
            and _CRASH.search(output) is None
        )


def _refused(codes: str, *found: str) -> tuple[Expectation, ...]:
    return (Expectation(codes, found),)


_SAME_TOKENS = r"transformers: (.*)\nzo-device   : \1"

EXPECTATIONS: dict[str, tuple[Expectation, ...]] = {
    "m01": (Expectation("2", ("512", "resize_token_embeddings|drop|remove")), Expectation("0 0 0 0")),
    "m02": (Expectation("0 0 0", (r"⟧: (<s> )?<\|im_start\|>user",)),),
    "m03": (Expectation("0 0 0", (r"'eos_token_ids': \[2\]",)),),
    "m04": (Expectation("0 0 0", ("⟧: (<s> )?USER: Hello",)),),
    "m05": (Expectation("2", ("save_pretrained",)), Expectation("0 0 0", (_SAME_TOKENS,))),
    "m06": _refused("2", r"model\.safetensors", r"model\.safetensors\.index\.json", "two sets of weights"),
    "m07": _refused("2 2 2 2 2", r"m\.gguf is not complete"),  # the file of the case is a beginning of one
    "m08": _refused("2 2 0", "adapter .*of someone/base-llama", "merge_and_unload"),
    "m09": _refused("2 2", "already quantised: MLX", "original"),
    "m10": _refused("2", "already quantised: GPTQ", "original"),
    "m11": _refused("2 2", r"model\.safetensors is a git-lfs pointer", r"tokenizer\.json is a git-lfs", "git lfs pull"),
    "m12": _refused("0 0 2", r"base_model\.model\.", "merge_and_unload"),
    "m13": _refused("2", r"AutoTokenizer|save_pretrained"),
    "m14": (Expectation("", (_SAME_TOKENS,)),),
    "m15": (Expectation("0 0 0 0 2 2", ("rope", "llama3.*yarn|yarn.*llama3"), agreements=4),),
    "m16": (Expectation("0 0", agreements=2),),
    "m17": (Expectation("0 0 0 0 0 0 0", agreements=7),),
    "m18": _refused(r"(?:[02] ){16}2 2 2", "classifi|score"),
    "m19": _refused("0 2", r"model-00002-of-00003\.safetensors"),
    "m20": _refused("2 2 2 0", r"model\.layers\.2\.mlp\.down_proj\.weight holds"),
    "m21": _refused("0 [02] [02] 2 2", r"v_head\.summary\.weight", "k_scale"),
    "m22": _refused("0"),
    "m23": _refused("0 0", "someone/my-llama"),
    "m24": _refused("0 2", "tie"),
    "m25": _refused("2 2", "tie_word_embeddings: true"),
    "m26": (Expectation("", (r"native (.*)\nreference \1",)),),
}
"""Number of a case → what is right, any of them."""

_NEEDS_SMOLLM2 = frozenset({"m14"})


def cases_folder() -> Path:
    """Return the folder of the cases: ``ZO_CASES_DIR``, or the one beside the project."""
    return Path(os.environ.get("ZO_CASES_DIR", PROJECT.parent / "shared" / "cases"))


def run_case(cases: Path, name: str, work: Path) -> str:
    """Return what a case prints; exit codes are in it as ``rc=``."""
    shim = work / "shim"
    shim.mkdir(parents=True, exist_ok=True)
    (shim / "sitecustomize.py").write_text(_alias_program())
    environment = {
        **os.environ,
        "PYTHONPATH": f"{shim}:{PROJECT}",
        "WORK": str(work / "work"),
        "BIN": str(Path(sys.executable).parent),
    }
    script = f'. "{cases}/env.sh"; bash "$CASES/setup.sh" >/dev/null 2>&1; bash "$CASES/{name}/cmd.sh" 2>&1'
    finished = subprocess.run(
        ["bash", "-c", script], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=_SECONDS
    )
    return finished.stdout + finished.stderr


def _alias_program() -> str:
    """Return a program that lets modules and members be reached by the names that they had."""
    return (
        f"MOVED = {_MOVED!r}\nRENAMED = {_RENAMED!r}\n"
        + """
import importlib, importlib.abc, importlib.util, operator, sys

class Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name in MOVED:
            return importlib.util.spec_from_loader(name, self)
        for class_name, members in RENAMED.pop(name, {}).items():
            spec = importlib.util.find_spec(name)
            run = spec.loader.exec_module
            def exec_module(module):
                run(module)
                for old, new in members.items():
                    setattr(getattr(module, class_name), old, property(operator.attrgetter(new)))
            spec.loader.exec_module = exec_module
            return spec
    def create_module(self, spec):
        return importlib.import_module(MOVED[spec.name])
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Alias())
"""
    )


@dataclass(frozen=True, slots=True)
class Collection:
    """Cases that are counted together.

    Attributes:
        expectations: Number of a case → what is right, any of them.
        result: Name of the result file.
        headline: Key of the number of right cases.
        around: Prepares a case, by its number, in the folder that it works in, and tidies up.
    """

    expectations: Mapping[str, tuple[Expectation, ...]]
    result: str
    headline: str
    around: Callable[[str, Path], AbstractContextManager[object]] = lambda _number, _work: nullcontext()


def run_collection(collection: Collection, description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run the cases, print a line for each, and record the number that are right; 0 where all are."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="LIST", help="numbers of cases, separated by commas")
    arguments = parser.parse_args(argv)
    cases = cases_folder()
    if not cases.is_dir():
        print(f"skipped: there is no folder {cases}; ZO_CASES_DIR names another")
        return 0
    chosen = set(arguments.only.split(",")) if arguments.only else set(collection.expectations)
    outcomes: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for folder in sorted(path for path in cases.iterdir() if path.name.partition("-")[0] in chosen):
        number = folder.name.partition("-")[0]
        expected = collection.expectations[number]
        with tempfile.TemporaryDirectory() as work, collection.around(number, Path(work) / "work"):
            outcomes[folder.name], outputs[folder.name] = _judged(cases, folder.name, expected, Path(work))
        print(f"{outcomes[folder.name]:<28} {folder.name}", flush=True)
    right = sum(outcome == "right" for outcome in outcomes.values())
    judged = sum(not outcome.startswith("skipped") for outcome in outcomes.values())
    print(f"{right} of {judged} cases are right")
    if not arguments.only:
        path = write_result(collection.result, {"outcomes": outcomes, "right": right, "judged": judged})
        record_headlines(path, {collection.headline: (right, f"of {judged} cases")})
    if right < judged:
        print("\n".join(f"=== {name}\n{outputs[name]}" for name, outcome in outcomes.items() if outcome == "wrong"))
    return 0 if right == judged else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases of model folders."""
    return run_collection(Collection(EXPECTATIONS, "real_cases", "real.cases_right"), __doc__, argv)


def _judged(cases: Path, name: str, expected: tuple[Expectation, ...], work: Path) -> tuple[str, str]:
    if name.partition("-")[0] in _NEEDS_SMOLLM2 and not os.environ.get("SMOLLM2"):
        return "skipped: SMOLLM2 is not set", ""
    try:
        output = run_case(cases, name, work)
    except subprocess.TimeoutExpired:
        return "wrong", f"no end within {_SECONDS} seconds"
    return "right" if any(each.holds(output) for each in expected) else "wrong", output


if __name__ == "__main__":
    sys.exit(main())
