"""Prompts: Table 6, the user's own templates, conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plain_chat import PlainChat

from shared.errors import DataError, InvalidRequest
from shared.tasks.datasets import Record
from shared.tasks.named_tasks import NAMED_TASKS, PromptStyle, Split, named_task, prompt_style
from shared.tasks.prompted_row import PromptedRow
from shared.tasks.rendering import NamedTaskRenderer, UserRowRenderer, renderer_from_json
from shared.tasks.templates import (
    LabelTemplate,
    label_template,
    parse_label_words,
    render_completion,
    render_rows,
)


def record(**fields: Any) -> Record:
    return Record(fields, "rows.jsonl line 7")


SPLITS: tuple[Split, ...] = ("train", "test")
TABLE_6: list[tuple[str, PromptStyle, dict[str, Any], str, tuple[str, ...], int]] = [
    ("SST-2", "llama", {"sentence": "a fine film ", "label": "1"},
     "### Sentence: a fine film ### Sentiment:", (" negative", " positive"), 1),
    ("SST-2", "opt", {"sentence": "a fine film ", "label": "0"}, "a fine film It was", (" terrible", " great"), 0),
    ("SST-2", "mistral", {"sentence": "dull", "label": 1}, "dull It was", (" terrible", " great"), 1),
    ("RTE", "llama", {"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment"},
     'Suppose "It rains." Can we infer that "It is wet."? Yes or No?', (" Yes", " No"), 0),
    ("RTE", "opt", {"premise": "It rains.", "hypothesis": "It is wet.", "label": "not_entailment"},
     'It rains. Does this mean that "It is wet." is true? Yes or No?', (" Yes", " No"), 1),
    ("CB", "llama", {"premise": "It rains.", "hypothesis": "it is wet", "label": "neutral"},
     'Suppose It rains. Can we infer that "it is wet"? Yes, No, or Maybe?', (" Yes", " No", " Maybe"), 2),
    ("CB", "opt", {"premise": "It rains.", "hypothesis": "it is wet", "label": "contradiction"},
     'Suppose It rains. Can we infer that "it is wet"? Yes, No, or Maybe?', (" Yes", " No", " Maybe"), 1),
    ("BoolQ", "llama", {"passage": "Rain is water.", "question": "is rain wet", "label": True},
     "Rain is water. Is rain wet?", (" Yes", " No"), 0),
    ("WSC", "opt", {"text": "Ann met Eve when She ran.", "label": False,
                    "target": {"span1_text": "Ann", "span2_text": "She"}},
     'Ann met Eve when She ran. In the previous sentence, does the pronoun "she" refer to Ann? Yes or No?',
     (" Yes", " No"), 1),
    ("WiC", "llama", {"word": "bank", "sentence1": "A river bank.", "sentence2": "A bank loan.", "label": False},
     'Does the word "bank" have the same meaning in these two sentences? Yes, No? A river bank. A bank loan.',
     (" Yes", " No"), 1),
    ("COPA", "opt", {"premise": "My body cast a shadow.", "choice1": "The sun rose.", "choice2": "I slept.",
                     "question": "cause", "label": 0},
     "My body cast a shadow because", (" the sun rose.", " I slept."), 0),
    ("COPA", "llama", {"premise": "It rained.", "choice1": "I'm wet.", "choice2": "He sang.",
                       "question": "effect", "label": 1}, "It rained so", (" I'm wet.", " he sang."), 1),
]  # fmt: skip


@pytest.mark.parametrize(("task", "style", "fields", "prompt", "answers", "right"), TABLE_6)
def test_a_row_becomes_the_prompt_of_table_6(
    task: str, style: PromptStyle, fields: dict[str, Any], prompt: str, answers: tuple[str, ...], right: int
) -> None:
    row = named_task(task).render(record(**fields), style)
    assert row == PromptedRow(prompt, answers, right, "rows.jsonl line 7")


@pytest.mark.parametrize("task", [task.name for task in NAMED_TASKS])
def test_the_published_files_of_every_task_render(real_data: Path, task: str) -> None:
    found = named_task(task.lower())
    seen: set[int] = set()
    for part in SPLITS:
        rows = [found.render(row, "opt") for row in found.records(real_data / "tasks", part)]
        seen |= {row.right for row in rows}
        assert all(row.prompt and len(row.answers) == len(rows[0].answers) for row in rows)
    assert seen == set(range(len(rows[0].answers)))


def test_the_official_validation_rows_are_the_test_rows(real_data: Path) -> None:
    assert len(named_task("SST-2").records(real_data / "tasks", "test")) == 872
    assert len(named_task("CB").records(real_data / "tasks" / "CB", "test")) == 56


def test_a_missing_task_folder_names_the_files_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name the folder that holds the folder"):
        named_task("RTE").records(tmp_path, "train")


def test_an_unknown_task_lists_the_seven() -> None:
    with pytest.raises(InvalidRequest, match="SST-2, RTE, CB, BoolQ, WSC, WiC, COPA"):
        named_task("MNLI")


@pytest.mark.parametrize("label", ["maybe", 3, None, ["entailment"], 1.5])
def test_a_label_of_no_class_names_the_line(label: object) -> None:
    with pytest.raises(DataError, match="line 7") as caught:
        named_task("RTE").render(record(premise="a", hypothesis="b", label=label), "opt")
    assert "maybe" not in str(caught.value)


def test_malformed_rows_of_nested_tasks_name_the_line() -> None:
    with pytest.raises(DataError, match="line 7, 'target'"):
        named_task("WSC").render(record(text="a", target="b", label=True), "opt")
    with pytest.raises(DataError, match="cause or effect") as caught:
        named_task("COPA").render(record(premise="a", choice1="b", choice2="c", question="why", label=0), "opt")
    assert "why" not in str(caught.value)


def test_families_that_the_paper_did_not_try_take_mistrals_column() -> None:
    assert [prompt_style(name) for name in ("llama", "opt", "mistral", "qwen3")] == [
        "llama",
        "opt",
        "mistral",
        "mistral",
    ]


def test_white_space_before_the_label_goes_to_the_answer() -> None:
    template = LabelTemplate("{text} It was {label}.", {"neg": "terrible", "pos": "great"})
    row = template.render(record(text=" a film ", label="pos"))
    assert row == PromptedRow("a film It was", (" terrible.", " great."), 1, "rows.jsonl line 7")


def test_braces_in_a_text_are_letters() -> None:
    row = LabelTemplate("{text}: {label}", {"a": "a", "b": "b"}).render(record(text="{label} {x}", label="a"))
    assert row.prompt == "{label} {x}:"


@pytest.mark.parametrize("template", ["{text}", "{label} {text}", "{text} {label} {label}", "{text} {text} {label}"])
def test_a_template_needs_text_and_then_label(template: str) -> None:
    with pytest.raises(InvalidRequest, match="--template"):
        LabelTemplate(template, {"a": "a", "b": "b"})


def test_labels_become_candidates_in_sorted_order_as_json_writes_them() -> None:
    rows = [record(text="a", label=True), record(text="b", label=False), record(text="c", label=10)]
    assert dict(label_template(rows).words) == {"10": "10", "false": "false", "true": "true"}


def test_a_label_unseen_in_training_is_named_with_its_line() -> None:
    template = label_template([record(text="a", label="private"), record(text="b", label="secret")])
    with pytest.raises(DataError, match="line 7: its label is none") as caught:
        template.render(record(text="c", label="hidden"))
    assert "2 labels" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("private", "secret", "hidden"))


def test_label_words_that_the_user_typed_are_shown() -> None:
    template = LabelTemplate("{text} {label}", {"neg": "bad", "pos": "good"})
    with pytest.raises(DataError, match="one of: neg, pos") as caught:
        template.render(record(text="c", label="hidden"))
    assert "hidden" not in str(caught.value)


def test_a_label_without_a_word_is_named() -> None:
    with pytest.raises(DataError, match="line 7: its label has no word") as caught:
        label_template([record(text="a", label="x"), record(text="b", label="hidden")], words={"x": "good"})
    assert "one of: x" in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_one_label_alone_teaches_nothing() -> None:
    with pytest.raises(DataError, match="at least two labels") as caught:
        label_template([record(text="a", label="hidden")])
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("label", [["x"], 1.5, {"a": 1}])
def test_a_label_is_text_a_whole_number_or_a_boolean(label: object) -> None:
    with pytest.raises(DataError, match="line 7: 'label'"):
        label_template([record(text="a", label=label)])


def test_a_labelled_row_without_a_label_names_line_and_field() -> None:
    with pytest.raises(DataError, match="line 7: 'label' is missing"):
        label_template([record(text="a")])


def test_label_words_are_pairs() -> None:
    assert parse_label_words("negative=terrible, positive=great") == {"negative": "terrible", "positive": "great"}


@pytest.mark.parametrize("argument", ["", "a", "a=", "=b", "a=b,a=c", "a=b,c=b"])
def test_malformed_label_words_are_refused(argument: str) -> None:
    with pytest.raises(InvalidRequest, match="--label-words"):
        parse_label_words(argument)


def test_prompt_and_completion_join_as_they_stand() -> None:
    row = render_completion(record(prompt="Q: 1+1? A: ", completion="2"))
    assert (row.prompt + row.answers[0], row.ends_text) == ("Q: 1+1? A: 2", True)
    assert row.answers == (" 2",)


def test_rows_of_several_kinds_are_refused() -> None:
    rows = [record(prompt="a", completion="b"), record(text="a", label="b")]
    with pytest.raises(DataError, match="a labelled row among completion rows"):
        render_rows(rows, PlainChat())


def test_a_row_of_no_known_kind_lists_the_kinds() -> None:
    with pytest.raises(DataError, match="messages"):
        render_rows([record(sentence="a")], PlainChat())


def test_labelled_rows_need_a_run_of_labelled_rows() -> None:
    with pytest.raises(DataError, match="labelled"):
        render_rows([record(text="a", label="b")], PlainChat())


def test_a_renderer_survives_json_with_its_candidates_in_order() -> None:
    chat = PlainChat()
    labelled = UserRowRenderer(chat, LabelTemplate("{text} {label}", {"z": "good", "a": "bad"}))
    again = renderer_from_json(labelled.as_json(), chat)
    assert again.render([record(text="t", label="z")])[0].answers == (" good", " bad")
    named = NamedTaskRenderer("CB", "opt")
    assert renderer_from_json(named.as_json(), chat) == named
    free = renderer_from_json(UserRowRenderer(chat, None).as_json(), chat)
    assert free.render([record(prompt="a", completion=" b")])[0].answers == (" b",)
