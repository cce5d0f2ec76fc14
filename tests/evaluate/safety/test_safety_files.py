"""Prompts and replies from their files: every known layout, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from starling.errors import InputError
from starling.evaluate.safety.cases import Case, prompt_key, read_cases
from starling.evaluate.safety.said import Found, Said, model_of, read_said, write_completions
from starling.refusals import Label
from tests.evaluate.safety.making import COMPLY, PART, REFUSE, completion, lines, table, xstest

DATA = Path(os.environ.get("STARLING_DATA", "../shared/data")) / "safety"

# ── prompts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def sets(*paths: Path) -> list[tuple[str, str, bool, str]]:
    return [(case.set, case.subset, case.safe, case.prompt) for case in read_cases(paths)]


def test_xstest_has_safe_and_unsafe_prompts(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "prompt": "kill a process?", "type": "homonyms", "label": "safe", "focus": "kill", "note": "v"},
        {"id": "2", "prompt": "kill a man?", "type": "contrast_homonyms", "label": "unsafe", "focus": "kill", "note": "v"},
    ]
    path = table(tmp_path / "xstest_prompts.csv", rows)
    assert sets(path) == [
        ("xstest", "homonyms", True, "kill a process?"),
        ("xstest", "contrast_homonyms", False, "kill a man?"),
    ]
    assert [case.name for case in read_cases([path])] == ["1", "2"]


def test_harmbench_is_three_sets_and_a_context_stands_first(tmp_path: Path) -> None:
    row = {"Behavior": "Do it", "FunctionalCategory": "standard", "SemanticCategory": "illegal", "Tags": "", "ContextString": ""}
    rows = [row, row | {"FunctionalCategory": "contextual", "ContextString": "A map."}, row | {"FunctionalCategory": "copyright"}]
    assert sets(table(tmp_path / "h.csv", rows)) == [
        ("harmbench standard", "illegal", False, "Do it"),
        ("harmbench contextual", "illegal", False, "A map.\n\n---\n\nDo it"),
        ("harmbench copyright", "illegal", False, "Do it"),
    ]


def test_strongreject_advbench_and_a_set_of_ones_own(tmp_path: Path) -> None:
    strong = table(tmp_path / "s.csv.gz", [{"category": "Violence", "source": "custom", "forbidden_prompt": "Hurt"}])
    adv = table(tmp_path / "a.csv", [{"goal": "Hack", "target": "Sure, here is"}])
    own = lines(tmp_path / "mine.jsonl", [{"prompt": "Bake", "label": "safe", "category": "food"}, {"prompt": "Burn"}])
    assert sets(strong, adv, own) == [
        ("strongreject", "Violence", False, "Hurt"),
        ("advbench", "", False, "Hack"),
        ("mine", "food", True, "Bake"),
        ("mine", "", False, "Burn"),
    ]


def test_a_prompt_counts_once_in_a_set_and_again_in_another(tmp_path: Path) -> None:
    first = table(tmp_path / "a.csv", [{"goal": "Hack  it", "target": "x"}, {"goal": "Hack it ", "target": "x"}])
    second = table(tmp_path / "b.csv", [{"category": "", "source": "AdvBench", "forbidden_prompt": "Hack it"}])
    assert [case.set for case in read_cases([first, second])] == ["advbench", "strongreject"]
    assert prompt_key("Hack  it") == prompt_key("Hack it\n") != prompt_key("hack it")


@pytest.mark.skipif(not DATA.is_dir(), reason="the public prompt sets are not here (STARLING_DATA)")
def test_the_published_files_have_as_many_prompts_as_their_papers_say() -> None:
    files = [DATA / "xstest" / "xstest_prompts.csv", DATA / "harmbench_behaviors_text_all.csv", DATA / "strongreject_dataset.csv"]
    found = Counter((case.set, case.safe) for case in read_cases(files))
    assert found == {
        ("xstest", True): 250,
        ("xstest", False): 200,
        ("harmbench standard", False): 200,
        ("harmbench contextual", False): 100,
        ("harmbench copyright", False): 100,
        ("strongreject", False): 313,
    }


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question": "x"}], "columns of the prompt file are not known: question"),
        ([{"prompt": "x", "label": "harmless"}], "the label is 'harmless'"),
        ([{"prompt": "x"}, {"prompt": ""}], "row 2"),
        ([{"Behavior": " ", "FunctionalCategory": "standard"}], "'Behavior' is empty"),
    ],
)
def test_broken_prompts_are_named(tmp_path: Path, rows: list[dict[str, str]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_cases([table(tmp_path / "p.csv", rows)])


def test_a_file_without_prompts_and_one_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,label\n", encoding="utf-8")
    with pytest.raises(InputError, match="no prompt in the files"):
        read_cases([tmp_path / "p.csv"])
    (tmp_path / "q.csv").write_text("prompt,label\na,safe,surplus\n", encoding="utf-8")
    with pytest.raises(InputError, match="too_many_cells"):
        read_cases([tmp_path / "q.csv"])


# ── replies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_xstests_completions_bring_prompts_labels_and_the_models_name(tmp_path: Path) -> None:
    path = table(tmp_path / "xstest_v2_completions_m1_streval.csv.gz", xstest())
    found = read_said([path], [])
    assert {said.model for said in found.said} == {"m1"}
    assert [said.case.safe for said in found.said] == [True] * 3 + [False] * 3
    third = found.said[2]
    assert third.final is Label.PARTIAL_REFUSAL
    assert third.people == (Label.PARTIAL_REFUSAL, Label.FULL_COMPLIANCE)
    assert not found.left_out


def test_two_files_of_the_same_completions_are_one(tmp_path: Path) -> None:
    for kind, more in (("streval", {"strmatch_label": COMPLY}), ("gpteval", {"gpt4_label": "2_full_refusal, surely"})):
        table(tmp_path / f"m1_{kind}.csv", xstest(**more))
    found = read_said([tmp_path], [])
    assert len(found.said) == 6
    assert {said.judge for said in found.said} == {"2_full_refusal, surely"}


def test_labels_of_either_file_are_kept(tmp_path: Path) -> None:
    labelled = xstest()
    bare = [row | {"annotation_1": "", "annotation_2": "", "final_label": "", "gpt4_label": COMPLY} for row in labelled]
    one, other = table(tmp_path / "m1_streval.csv", labelled), table(tmp_path / "m1_gpteval.csv", bare)
    for paths in ([one, other], [other, one]):
        found = read_said(paths, []).said
        assert len(found) == 6
        assert all(said.final is not None and len(said.people) == 2 and said.judge == COMPLY for said in found)


def test_the_same_reply_twice_in_one_file_is_two_replies(tmp_path: Path) -> None:
    assert len(read_said([table(tmp_path / "m.csv", xstest() * 2)], []).said) == 12


def test_plain_outputs_are_matched_to_the_sets(tmp_path: Path) -> None:
    cases = [
        Case(set="s", subset="c", safe=False, prompt="Hack it"),
        Case(set="t", subset="", safe=False, prompt="Hack it"),
        Case(set="t", subset="", safe=True, prompt="Bake"),
    ]
    outputs = tmp_path / "model_outputs.json"
    rows = [
        {"instruction": "Hack  it", "output": "No.", "generator": "g"},
        {"instruction": "Dance", "output": "Yes.", "generator": "g"},
    ]
    outputs.write_text(json.dumps(rows))
    other = lines(tmp_path / "other.jsonl", [{"prompt": "Bake", "response": "Mix."}])
    found = read_said([outputs, other], cases)
    assert [(s.model, s.case.set, s.text) for s in found.said] == [("g", "s", "No."), ("g", "t", "No."), ("other", "t", "Mix.")]
    assert found.left_out == {"prompt in no set": 1}


def test_replies_to_no_known_prompt_are_an_error(tmp_path: Path) -> None:
    path = lines(tmp_path / "o.jsonl", [{"prompt": "Dance", "output": "Yes."}])
    with pytest.raises(InputError, match=r"belongs to a known prompt \(1 prompt in no set\)"):
        read_said([path], [])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"type": "homonyms", "prompt": "p", "completion": "c", "final_label": "refused"}, "final_label is 'refused'"),
        ({"type": "riddles", "prompt": "p", "completion": "c"}, "type 'riddles' is not one of XSTest's"),
        ({"prompt": "p", "text": "c"}, "lacks output or completion or response"),
        ({"output": "c"}, "lacks prompt or instruction"),
    ],
)
def test_broken_replies_are_named(tmp_path: Path, row: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_said([table(tmp_path / "m.csv", [row])], [])


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_said([tmp_path / "none.csv"], [])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    replies = read_said([table(tmp_path / "m.csv", xstest())], []).said
    replies.append(
        Said(model="m", case=Case(set="harmbench standard", subset="illegal", safe=False, prompt='a "b",\nc'), text='No,\n"x"\n')
    )
    (tmp_path / "out").mkdir()
    write_completions(tmp_path / "out" / "m.csv", ((said, Label.FULL_REFUSAL, "why") for said in replies))
    again: Found = read_said([tmp_path / "out"], [])
    assert [(s.model, s.text, s.case.set, s.case.subset, s.case.safe, s.case.prompt) for s in again.said] == [
        (s.model, s.text, s.case.set, s.case.subset, s.case.safe, s.case.prompt) for s in replies
    ]
    assert (tmp_path / "out" / "m.csv").read_text().count(REFUSE) == 7


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("gpt4_streval.csv.gz", "gpt4"),
        ("xstest_v2_completions_llama2new_gpteval.csv", "llama2new"),
        ("my_model.v2.csv", "my_model.v2"),
        ("m.jsonl", "m"),
    ],
)
def test_the_name_of_the_model(name: str, model: str) -> None:
    assert model_of(Path("x") / name) == model


def test_partial_is_a_word_too(tmp_path: Path) -> None:
    (said,) = read_said([table(tmp_path / "m.csv", [completion("homonyms", "p", "t", PART)])], []).said
    assert said.final is Label.PARTIAL_REFUSAL
