"""What people see of a result has what the JSON has: a field that was not given is not shown."""

from __future__ import annotations

from mtlc.commands.output import emit
from mtlc.results.profile import ProfileResult


def test_a_field_that_was_not_given_is_none_for_people_either(capsys) -> None:
    result = ProfileResult.model_construct(_fields_set={"bundle"}, bundle="a\x1b[2J.mtlc")
    seen: list[ProfileResult] = []
    emit(False, result, lambda shown: seen.append(shown) or shown.bundle)
    assert seen[0].model_fields_set == {"bundle"}
    assert capsys.readouterr().out == "a\\x1b[2J.mtlc\n"
