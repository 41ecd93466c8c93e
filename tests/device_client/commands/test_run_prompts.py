"""``eval --run`` and ``generate --run`` take from the run what decides the tokens, and refuse what contradicts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from byte_ids import byte_ids

from device_client.tuning.run_directory import RunDirectory
from shared.bundle.layout import ImageLayout
from shared.errors import IntegrityError

QUICK = ("--device", "cpu", "--backend", "reference")
KINDS: dict[str, list[dict[str, Any]]] = {
    "labelled": [{"text": f"{word} {i}", "label": word} for i in range(4) for word in ("good", "bad")],
    "completion": [{"prompt": f"Once {i} ", "completion": "Tim"} for i in range(8)],
    "messages": [
        {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "Lily"}]}
        for i in range(8)
    ],
}


@pytest.fixture
def tuned(request: pytest.FixtureRequest, store: ImageLayout, command: Any, tmp_path: Path) -> tuple[Path, str]:
    """The rows of a kind and the run that was tuned on them, with a longest sequence of its own."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in KINDS[request.param]))
    longest = {"labelled": "18", "completion": "20", "messages": "24"}[request.param]
    words = ("--max-tokens", longest, "--steps", "2", "--batch", "2", "--seed", "3")
    outcome = command("tune", "--data", str(rows), *words, *QUICK)
    assert outcome.code == 0, outcome.told
    return rows, Path(outcome.result["run"]).name


@pytest.mark.parametrize("tuned", ["labelled"], indirect=True)
def test_eval_measures_with_the_runs_own_prompts_and_refuses_others(tuned: tuple[Path, str], command: Any) -> None:
    rows, run = tuned
    scored = command("eval", "--data", str(rows), "--run", run, *QUICK)
    agreeing = ("--max-tokens", "18", "--loss", "candidates", "--label-words", "good=good,bad=bad")
    again = command("eval", "--data", str(rows), "--run", run, *agreeing, *QUICK)
    assert (scored.code, again.code) == (0, 0), again.told
    assert scored.result["loss"] == again.result["loss"]
    assert scored.result["truncated_rows"] == again.result["truncated_rows"] > 0
    assert set(scored.result["without_tuning"]) == {"bundle", "calibrated_zero_shot", "in_context"}

    for option, value in (
        ("--max-tokens", "19"), ("--template", "{text}: {label}"), ("--label-words", "good=fine,bad=poor"),
        ("--loss", "vocabulary"), ("--control-tokens", "tokens"), ("--prompt-style", "opt"),
    ):  # fmt: skip
        refused = command("eval", "--data", str(rows), "--run", run, option, value, *QUICK)
        assert refused.code == 2, option
        assert f"{option} {value}, but the run {run} was tuned with" in refused.told
        assert f"leave {option} out" in refused.told


@pytest.mark.parametrize("tuned", ["completion"], indirect=True)
def test_generate_asks_a_run_of_completions_as_its_rows_ask(tuned: tuple[Path, str], command: Any) -> None:
    words = ("--run", tuned[1], "--max-new-tokens", "1", *QUICK)
    for prompt in ("Once 1 ", "Once 1", "<s>Once 1 "):
        assert command("generate", "tiny", prompt, *words).result["prompt_tokens"] == 1 + len("Once 1")
    assert command("generate", "tiny", "Once 1 ", "--raw", *words).result["prompt_tokens"] == 1 + len("Once 1 ")
    assert command("generate", "tiny", "a</s>", *words).result["prompt_tokens"] == 1 + len(byte_ids("a</s>"))
    assert command("generate", "tiny", "a</s>", "--raw", *words).result["prompt_tokens"] == 3
    long = command("generate", "tiny", "x" * 30, *words)
    assert long.result["prompt_tokens"] == 19
    assert "first 12 tokens are left out" in long.told
    refused = command("generate", "tiny", "x", "--system", "S", *words)
    assert (refused.code, "--system with prompts that are completion rows" in refused.told) == (2, True)


@pytest.mark.parametrize("tuned", ["messages"], indirect=True)
def test_generate_asks_a_run_of_conversations_as_a_user(tuned: tuple[Path, str], command: Any, tmp_path: Path) -> None:
    words = ("--max-new-tokens", "1", *QUICK)
    asked = command("generate", "tiny", "Hi", "--run", tuned[1], *words).result["prompt_tokens"]
    assert asked == 1 + len("User: Hi\nAssistant:")
    conversation = tmp_path / "asked.json"
    conversation.write_text(json.dumps([{"role": "user", "content": "Hi"}]))
    for source in (("--messages", str(conversation)), ("--messages", str(conversation), "--run", tuned[1])):
        assert command("generate", "tiny", *source, *words).result["prompt_tokens"] == asked
    conversation.write_text('{"messages": [{"role": "assistant", "content": "Hi"}]}')
    assert command("generate", "tiny", "--messages", str(conversation), *words).code == 9
    conversation.write_text("[")
    assert command("generate", "tiny", "--messages", str(conversation), *words).code == 9
    assert command("generate", "tiny", "--messages", str(tmp_path / "absent"), *words).code == 9


@pytest.mark.parametrize(
    "words", [(), ("Hi", "--messages", "a.json"), ("Hi", "--raw", "--system", "S"), ("--system", "S"), ("--raw",)]
)
def test_generate_takes_one_source_of_its_prompt(store: ImageLayout, command: Any, words: tuple[str, ...]) -> None:
    refused = command("generate", "tiny", *words)
    assert (refused.code, "PROMPT, alone or with --system or --raw; or --messages" in refused.told) == (2, True)


def test_a_run_whose_configuration_is_cut_is_named_as_damaged(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.create()
    run.write_json("config.json", {"bundle_digest": "sha256:" + "0" * 64, "settings": {"steps": 3}})

    with pytest.raises(IntegrityError, match=r"config\.json does not say"):
        run.read_config()
