"""Which strings may name a model or a text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cloud_service.sources import (
    HubModel,
    LocalModel,
    SourcePolicy,
    TextSource,
    locate_calibration,
    locate_model,
    locate_text,
)
from shared.api import CalibrationSpec
from shared.errors import InvalidModelId, InvalidRequest


@pytest.fixture
def policy(tmp_path: Path) -> SourcePolicy:
    (tmp_path / "models" / "org" / "tiny").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "models" / "escape").symlink_to(tmp_path / "secret")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "texts" / "model.bin").write_bytes(b"no text")
    (tmp_path / "texts" / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "secret" / "b.jsonl").write_text('{"text": "b"}\n')
    return SourcePolicy(model_roots=(tmp_path / "models",), text_roots=(tmp_path / "texts",))


@pytest.mark.parametrize(
    "model", ["gpt2", "facebook/opt-125m", "meta-llama/Llama-2-7b-hf", "a_/b", "a/b_", "a/b.c_d-e"]
)
def test_a_hub_id_is_a_hub_model_where_it_is_said_to_be_one(policy: SourcePolicy, model: str) -> None:
    assert locate_model(f"hub:{model}", "main", policy) == HubModel(model, "main")
    assert locate_model(model, "main", replace(policy, hub_namespaces=("*",))) == HubModel(model, "main")
    assert locate_model(model, "main", SourcePolicy(allow_any_local=True)) == HubModel(model, "main")


@pytest.mark.attack
@pytest.mark.parametrize("model", ["team/unmounted", "gpt2", "meta-llama/Llama-2-7b-hf"])
def test_the_name_of_a_folder_that_is_not_there_is_not_asked_of_the_hub(policy: SourcePolicy, model: str) -> None:
    with pytest.raises(InvalidModelId, match=f"there is no folder '{model}' under a model root") as caught:
        locate_model(model, None, policy)
    assert caught.value.next_step.startswith(f"give hub:{model}, or allow such names: zo-cloud serve --hub-namespace '")
    assert caught.value.param == "model"


def test_namespaces_say_which_hub_ids_need_no_prefix(policy: SourcePolicy) -> None:
    policy = replace(policy, hub_namespaces=("meta-llama/*", "gpt2"))
    assert locate_model("meta-llama/Llama-2-7b-hf", None, policy) == HubModel("meta-llama/Llama-2-7b-hf")
    assert locate_model("gpt2", None, policy) == HubModel("gpt2")
    for model in ("Meta-Llama/x", "meta-llama-2/x", "gpt2/x"):
        with pytest.raises(InvalidModelId, match="there is no folder"):
            locate_model(model, None, policy)


def test_the_prefix_names_the_hubs_model_although_there_is_such_a_folder(policy: SourcePolicy, tmp_path: Path) -> None:
    everything = replace(policy, hub_namespaces=("*",))
    assert locate_model("org/tiny", None, everything) == LocalModel(tmp_path / "models" / "org" / "tiny")
    assert locate_model("hub:org/tiny", None, everything) == HubModel("org/tiny")


@pytest.mark.parametrize("relative", [True, False])
def test_a_folder_under_a_root_is_local_by_relative_or_absolute_name(
    policy: SourcePolicy, tmp_path: Path, relative: bool
) -> None:
    folder = tmp_path / "models" / "org" / "tiny"
    assert locate_model("org/tiny" if relative else str(folder), None, policy) == LocalModel(folder)


@pytest.mark.parametrize(
    "model",
    [
        "../secret", "org/../../secret", "a..b/c", "https://example.org/model", "http:example", "file:///etc", "hf://a/b",
        "/etc", "a/b/c", "-a/b", "a b/c", "a/b.git", "a\0b", "", ".", "~/x", "a/b-", "a/b.", "a--b/c", "a//b", "a/.b",
        "a/b?x", "user@host/b", "a/b\n", "é", "x" * 97, "x" * 300, "\ud800",
        "hub:", "hub:../secret", "hub:/etc", "hub:hub:a/b", "hub://a/b", "hub:https://example.org/model",
    ],
)  # fmt: skip
def test_anything_else_is_refused(policy: SourcePolicy, model: str) -> None:
    with pytest.raises(InvalidModelId, match="a hub id such as") as caught:
        locate_model(model, None, policy)
    assert caught.value.param == "model"


def test_a_link_that_leaves_the_root_is_not_followed(policy: SourcePolicy, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelId, match="there is no folder 'escape'"):
        locate_model("escape", None, policy)
    with pytest.raises(InvalidModelId):
        locate_model(str(tmp_path / "models" / "escape"), None, policy)


def test_an_unknown_local_folder_is_refused(policy: SourcePolicy, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelId, match="not a folder that may be read, and not a hub id"):
        locate_model(str(tmp_path / "models" / "absent"), None, policy)


def test_a_person_at_a_terminal_may_name_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    policy = SourcePolicy(allow_any_local=True)
    assert locate_model("../there", None, policy) == LocalModel(tmp_path / "there")
    with pytest.raises(InvalidModelId, match=r"contains '\.\.'"):
        locate_model("../absent", None, policy)


def test_texts_come_from_c4_or_a_text_root(policy: SourcePolicy, tmp_path: Path) -> None:
    assert locate_text("c4", policy, param="calibration.text") == TextSource()
    assert locate_text("a.jsonl", policy, param="calibration.text").path == tmp_path / "texts" / "a.jsonl"


@pytest.mark.parametrize(
    "text",
    [
        "../secret/b.jsonl", "absent.txt", "https://example.org/a.txt", "/etc/passwd", "x" * 300, "a\0b", "model.bin",
        "loop.txt",
    ],
)  # fmt: skip
def test_other_texts_are_refused(policy: SourcePolicy, text: str) -> None:
    with pytest.raises(InvalidRequest, match="no file that may be read") as caught:
        locate_text(text, policy, param="evaluation.text")
    assert caught.value.param == "evaluation.text"


@pytest.fixture
def task_rows(policy: SourcePolicy, tmp_path: Path) -> Path:
    """The training rows of SST-2 under the text root; RTE's are a link that leaves it."""
    for task in ("SST-2", "RTE"):
        (tmp_path / "texts" / "tasks" / task).mkdir(parents=True)
    (tmp_path / "texts" / "tasks" / "RTE" / "train.jsonl").symlink_to(tmp_path / "secret" / "b.jsonl")
    rows = tmp_path / "texts" / "tasks" / "SST-2" / "train.tsv"
    rows.write_text("sentence\tlabel\n")
    return rows


@pytest.mark.parametrize("text", ["tasks", "tasks/SST-2", "tasks/SST-2/train.tsv"])
def test_a_named_tasks_rows_are_found_by_folder_or_file(policy: SourcePolicy, task_rows: Path, text: str) -> None:
    source = locate_calibration(CalibrationSpec(text=text, task="SST-2"), policy)
    assert source == TextSource(task_rows, "SST-2")
    assert source.name == "SST-2/train.tsv"


def test_own_rows_are_a_file_under_a_text_root(policy: SourcePolicy, tmp_path: Path) -> None:
    source = locate_calibration(CalibrationSpec(text="a.jsonl", task="rows"), policy)
    assert source == TextSource(tmp_path / "texts" / "a.jsonl", "rows")
    assert source.name == "a.jsonl"


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("tasks", "RTE"), ("tasks", "CB"), ("../secret", "SST-2"), ("../secret/b.jsonl", "rows"), ("tasks", "rows"),
        ("model.bin", "rows"), ("https://example.org/rows.jsonl", "rows"),
    ],
)  # fmt: skip
def test_other_rows_are_refused(policy: SourcePolicy, task_rows: Path, text: str, task: str) -> None:
    spec = CalibrationSpec.model_validate({"text": text, "task": task})
    with pytest.raises(InvalidRequest, match=rf"no (rows of {task}|file of rows) that may be read") as caught:
        locate_calibration(spec, policy)
    assert caught.value.param == "calibration.text"


def test_a_calibration_without_a_task_is_a_text(policy: SourcePolicy) -> None:
    assert locate_calibration(CalibrationSpec(), policy) == TextSource()


def test_a_policy_does_not_show_its_token() -> None:
    assert "hf_secret" not in repr(SourcePolicy(hub_token="hf_secret"))


def test_a_gguf_file_under_a_root_is_a_model_named_without_its_suffix(policy: SourcePolicy, tmp_path: Path) -> None:
    (tmp_path / "models" / "org" / "tiny.Q4_1.gguf").write_bytes(b"GGUF")
    right = LocalModel(tmp_path / "models" / "org", "tiny.Q4_1.gguf")
    assert right.id == "tiny.Q4_1"
    assert locate_model("org/tiny.Q4_1.gguf", None, policy) == right
    assert locate_model(str(tmp_path / "models" / "org" / "tiny.Q4_1.gguf"), None, policy) == right


def test_a_gguf_file_of_a_folder_or_repository_is_named_beside_it(policy: SourcePolicy, tmp_path: Path) -> None:
    local = locate_model("org/tiny", None, policy, gguf_file="a.gguf")
    assert local == LocalModel(tmp_path / "models" / "org" / "tiny", "a.gguf")
    assert locate_model("hub:org/x", "main", policy, gguf_file="a.gguf") == HubModel("org/x", "main", "a.gguf")


@pytest.mark.attack
def test_a_gguf_file_out_of_the_roots_is_not_found(policy: SourcePolicy, tmp_path: Path) -> None:
    (tmp_path / "secret.gguf").write_bytes(b"GGUF")
    (tmp_path / "models" / "link.gguf").symlink_to(tmp_path / "secret.gguf")
    for name in ("link.gguf", "../secret.gguf", str(tmp_path / "secret.gguf"), "absent.gguf"):
        with pytest.raises(InvalidModelId):
            locate_model(name, None, policy)


def test_any_other_file_is_refused_with_the_folder_that_it_lies_in(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidModelId, match="is a file") as caught:
        locate_model(str(tmp_path / "model.safetensors"), None, SourcePolicy(allow_any_local=True))
    assert str(tmp_path) in caught.value.next_step


def cached_model(cache: Path, *commits: str, main: str | None = None) -> Path:
    folder = cache / "models--someone--my-llama"
    for commit in commits:
        (folder / "snapshots" / commit).mkdir(parents=True)
    if main is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(main)
    return folder


def test_a_snapshot_in_a_hubs_cache_is_named_after_the_model_and_not_the_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = cached_model(tmp_path, commit) / "snapshots" / commit
    model = locate_model(str(snapshot), None, SourcePolicy(allow_any_local=True))
    assert (model.id, model.commit) == ("someone/my-llama", commit)  # type: ignore[union-attr]
    (tmp_path / "snapshots" / commit).mkdir(parents=True)
    other = locate_model(str(tmp_path / "snapshots" / commit), None, SourcePolicy(allow_any_local=True))
    assert (other.id, other.commit) == (commit, None)  # type: ignore[union-attr]


def test_a_models_folder_in_a_hubs_cache_stands_for_the_snapshot_of_its_main_branch(tmp_path: Path) -> None:
    everything = SourcePolicy(allow_any_local=True)
    only = cached_model(tmp_path / "a", "a" * 40)
    assert locate_model(str(only), None, everything) == LocalModel(only / "snapshots" / ("a" * 40))
    several = cached_model(tmp_path / "b", "a" * 40, "b" * 40, main="b" * 40)
    assert locate_model(str(several), None, everything) == LocalModel(several / "snapshots" / ("b" * 40))
    unclear = cached_model(tmp_path / "c", "a" * 40, "b" * 40)
    assert locate_model(str(unclear), None, everything) == LocalModel(unclear)
