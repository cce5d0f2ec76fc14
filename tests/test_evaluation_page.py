"""The pages of benchmarks: what they say, that they are whole, that they escape, and that no table stands without its judge."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from starling.evaluate.comparison import Source, compare
from starling.evaluate.results import Part, Result
from starling.report import evaluation_comparison, evaluation_page
from starling.report.page import typeset
from tests.evaluate.made_results import JUDGE, bench, difference, model, part, spread
from tests.html_balance import Balance

EVIL = "<script>alert(1)</script>"


def mt_bench() -> Result:
    parts = {"turn 1": part(7.5), "turn 2": part(6.4), "math": Part(score=None, ci=None, n=0, clusters=10)}
    policy = model("policy", 6.94, parts=parts, outcomes={"ranked": 158, "unparsed": 2}, more={"avg_length": 1890.0, "odd": None})
    base = model("base", 6.48, parts={"turn 1": part(7.0), "turn 2": part(5.9)})
    return spread(
        bench(policy, base, differences=(difference("policy", "base", 0.46),), notes=("13 references are wrong.",)), 0.071
    )


def safety() -> Result:
    found = replace(
        bench(model("base", 4.4), model("policy", 9.2)), benchmark="safety", title="XSTest", unit="% refused", judge=None
    )
    return replace(found, higher_is_better=False)


def text_of(html: str) -> str:
    """What a reader sees, spaces made one."""
    body = re.sub(r"<(style|svg)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).replace("\u202f", " ").split())


def pages() -> dict[str, str]:
    several = compare([Source("apa", mt_bench()), Source("ppo", bench(model("policy", 7.4)))])
    return {
        "one": evaluation_page.render([mt_bench()], title="tiny"),
        "two": evaluation_page.render([mt_bench(), safety()], title="tiny"),
        "none measured": evaluation_page.render([bench(model("a", None))], title="tiny"),
        "compared": evaluation_comparison.render(several),
    }


@pytest.fixture(scope="module")
def rendered() -> dict[str, str]:
    return pages()


@pytest.mark.parametrize("name", ["one", "two", "none measured", "compared"])
def test_a_page_is_whole_and_needs_nothing_from_elsewhere(rendered: dict[str, str], name: str) -> None:
    html = rendered[name]
    found = Balance()
    found.feed(html)
    assert found.open == ["!doctype"] or found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert set(found.targets) <= set(found.ids)
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", html)
    assert "<script" not in html
    assert "<svg" in html or name == "none measured"


def test_equal_results_give_equal_bytes(rendered: dict[str, str]) -> None:
    assert pages() == rendered


def test_the_numbers_are_those_of_the_result(rendered: dict[str, str]) -> None:
    text = text_of(rendered["one"])
    for said in ("6.94 6.64 to 7.24", "6.48 6.18 to 6.78", "1 890", "+0.46", "+0.26 to +0.66", "policy is better than base"):
        assert said in text, said
    assert "13 references are wrong." in text
    assert "ranked 158 unparsed 2" in text
    assert "7.50 (7.20 to 7.80)" in text, "parts in numbers"
    assert "protocol starling" in text, "settings"


def test_no_table_without_its_judge(rendered: dict[str, str]) -> None:
    text = text_of(rendered["one"])
    for said in (
        "The judge: gpt-4",
        "Favours the answer shown first – not measured",
        "Moves when asked again ± 0.071 points of 10; standard deviation over 3 rounds",
        "Calls without a verdict 2.5 % ranked 312, unparsed 8",
        "Agrees with people – no votes of people",
        "Cost 320 calls 320 000 + 80 000 tokens, dollars not known, 9 min of waiting, summed",
    ):
        assert said in text, said
    judge = replace(
        JUDGE, position_gap=-0.05, position_gap_ci=(-0.09, -0.01), human_agreement=0.66, human_agreement_ci=(0.6, 0.72),
        human_votes=1298, dollars=1234.5,
    )  # fmt: skip
    html = evaluation_page.render([bench(model("a", 7.0), judge=judge)], title="t")
    text = text_of(html)
    assert "−5.0 points 95 % interval −9.0 to −1.0" in text
    assert "66.0 % 95 % interval 60.0 to 72.0 % of 1 298 votes" in text
    assert "$1 234.50 320 calls, 320 000 + 80 000 tokens, 9 min of waiting, summed" in text
    assert "asked once: how far the table would move is not known" in text
    assert 'class="change worse"' in html, "a gap whose interval excludes 0 is coloured"
    assert "A fixed rule decides" in text_of(rendered["two"])


def test_a_difference_below_the_judge_s_spread_is_not_called_one() -> None:
    html = evaluation_page.render([spread(mt_bench(), 0.5)], title="t")
    assert "policy and base are not distinguishable: within the judge's repeat spread" in text_of(html).replace("&#39;", "'")
    assert "is better than" not in html


def test_all_benchmarks_stand_in_one_table_with_their_noise(rendered: dict[str, str]) -> None:
    text = text_of(rendered["two"])
    assert "MT-Bench policy is better than base gpt-4 order not measured, again ± 0.071, 2.5 % without a verdict" in text
    assert "XSTest base has the best score; no paired test – a fixed rule" in text
    assert "policy 6.94 6.64 to 7.24 9.2 8.9 to 9.5" in text
    assert "All benchmarks" not in text_of(rendered["one"])


def test_what_could_not_be_measured_is_no_number(rendered: dict[str, str]) -> None:
    text = text_of(rendered["none measured"])
    assert "nothing could be measured" in text
    assert "a – 160 80" in text


def test_everything_foreign_is_escaped() -> None:
    judge = replace(JUDGE, judge=EVIL, outcomes={EVIL: 1})
    odd = model(EVIL, 7.0, parts={EVIL: part(7.0), "b": part(6.0)}, outcomes={EVIL: 3}, more={EVIL: 1.0})
    result = replace(
        bench(odd, model("b", 6.0), differences=(difference(EVIL, "b", 1.0),), judge=judge, notes=(EVIL,), settings={EVIL: EVIL}),
        title=EVIL, unit=EVIL,
    )  # fmt: skip
    for html in (
        evaluation_page.render([result], title=EVIL),
        evaluation_comparison.render(compare([Source(EVIL, result), Source("y", result)])),
    ):
        assert "<script" not in html
        Balance().feed(html)


def test_many_models_make_no_endless_page(tmp_path: Path) -> None:
    names = [f"m{i:03}" for i in range(120)]
    pairs = tuple(difference(a, b, 0.1) for i, a in enumerate(names) for b in names[i + 1 :])
    result = bench(*(model(name, 9.0 - i / 20) for i, name in enumerate(names)), differences=pairs)
    html = evaluation_page.write_page([result], tmp_path, title="t").read_text("utf-8")
    assert html.count("not distinguishable: the interval includes 0</td>") == evaluation_page.MOST_PAIRS
    assert "The first 500 of 7 140; all stand in results.json." in text_of(html)
    assert "m119" in text_of(html), "the table of models has all"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"], "no draft is left"


def test_a_comparison_never_subtracts_across_judges() -> None:
    other = replace(bench(model("policy", 9.9)), judge=replace(JUDGE, judge="gpt-5"))
    text = text_of(evaluation_comparison.render(compare([Source("apa", mt_bench()), Source("new", other)])))
    assert "Group 2 was judged otherwise than group 1 (judge: gpt-5 / gpt-4): shown, never subtracted." in text
    assert "9.90" in text
    assert "2.96" not in text
    assert "Of 1 differences 1 counts" in text


@pytest.mark.parametrize(
    ("plain", "set_"),
    [
        ("gap -8.6 points [-1.0, +2.0]", "gap −8.6 points [−1.0, +2.0]"),
        ("gpt-4 and llama-2-7b", "gpt-4 and llama-2-7b"),
        ("1,234,567 calls, 2,5", "1\u202f234\u202f567 calls, 2,5"),
        ("2.5 % of calls", "2.5\u202f% of calls"),
        ("-0.5 to -0.1", "−0.5 to −0.1"),
    ],
)
def test_numbers_are_set_as_print_has_them(plain: str, set_: str) -> None:
    assert typeset(plain) == set_
