"""The table of rules: one name and one number for each, and its functions."""

import pytest

from openrlhf_orz.reward import rules
from openrlhf_orz.reward.guards import GUARDS
from openrlhf_orz.reward.rules import JUDGE_RULES, RULES, register_rules, rule_number
from openrlhf_orz.reward.verifiers import VERIFIERS


def test_each_rule_has_one_number_that_fits_the_wire():
    assert [rule_number(name) for name in RULES] == list(range(len(RULES)))
    assert len(set(RULES)) == len(RULES) < 256


def test_whatever_a_grade_may_name_is_in_the_table():
    guards = {guard.name for guard in GUARDS}
    front = {"", "identical", "reference", "boxes_disagree"}
    assert set(RULES) == front | JUDGE_RULES.keys() | guards | (VERIFIERS.keys() - {"math"})
    assert rule_number(None) == rule_number("") == 0


def rule(gold, answer):
    return None


def test_registration_refuses_unknown_missing_and_double_names(monkeypatch):
    monkeypatch.setattr(rules, "_functions", {})
    with pytest.raises(RuntimeError, match="no rules are registered"):
        rules.decide_by_rules("a", "b")
    functions = [(name, rule) for name in JUDGE_RULES]
    for wrong, name in (
        ([*functions, ("astrology", rule)], "astrology"),
        ([pair for pair in functions if pair[0] != "words"], "words"),
        ([*functions, ("unit", rule)], "unit"),
    ):
        with pytest.raises(ValueError, match=f"'{name}'"):
            register_rules(wrong)
    assert rules._functions == {}
    register_rules(functions)
    with pytest.raises(ValueError, match="'words'"):
        register_rules(functions)


def test_rules_are_asked_in_the_order_of_the_table_until_one_decides(monkeypatch):
    asked = []

    def speak(name):
        return lambda gold, answer: asked.append(name) or {"percent": False, "words": True}.get(name)

    monkeypatch.setattr(rules, "_functions", {})
    register_rules((name, speak(name)) for name in reversed(JUDGE_RULES))
    assert rules.decide_by_rules("a", "b") == (False, "percent")
    assert asked == ["unfinished", "clock", "amounts", "exact_number", "percent"]
    assert rules.decide_by_rules("1 + 2", "1+2") == (True, "identical")
    assert rules.decide_by_rules("1 2", "12") == (False, "percent")  # 1 2 may be two numbers
    assert rules.decide_by_rules("a", " ") == (False, "")
