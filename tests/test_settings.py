"""Settings check themselves, and explain in one sentence what they refuse."""

import dataclasses
import json
from typing import Any

import pytest

from e3d_jax import settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner(settings.Settings):
    rate: float = settings.setting("Rate per step.", 0.5, at_least=0, below=1)
    sizes: tuple[int, ...] = settings.setting("Sizes in pixels.", (1, 2), at_least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer(settings.Settings):
    steps: int = settings.setting("Steps of the run.", at_least=1, at_most=9, resumable=True)
    kind: str = settings.setting("Which kind.", "plain", choices=("plain", "fancy"))
    level: float | None = settings.setting("A level; none if None.", None, above=0)
    flag: bool = settings.setting("Whether.", False)
    pair: tuple[float, int] = settings.setting("Two values.", (1.0, 2))
    factors: dict[str, float] = settings.setting("Factors by name.", {"a": 1.0})
    widths: int | tuple[int, ...] = settings.setting("One width, or several.", 4)
    anything: Any = settings.setting("Any value.", None)
    inner: Inner = settings.setting("A group.", Inner())

    def check(self):
        if self.flag and self.kind == "plain":
            raise ValueError("flag is True; expected False with kind plain")


def parse(**values):
    return settings.parse(Outer, {"steps": 3} | values, "part")


def refused(**values):
    """Return the message of refused settings."""
    with pytest.raises(ValueError) as error:
        parse(**values)
    return str(error.value)


def test_what_is_not_given_has_its_default():
    found = parse()
    assert (found.kind, found.level, found.factors, found.inner) == ("plain", None, {"a": 1.0}, Inner())


def test_groups_are_parsed():
    assert parse(inner={"rate": 0.25}).inner == Inner(rate=0.25)


def test_a_group_may_be_given_as_settings():
    assert parse(inner=Inner(rate=0.25)).inner.rate == 0.25


def test_an_unknown_setting_is_named_with_those_that_are_known():
    assert refused(inner={"magic": 1}) == "unknown setting part.inner.magic; known: rate, sizes"


def test_a_missing_setting_is_named_with_its_meaning():
    with pytest.raises(ValueError, match=r"^missing setting part\.steps: Steps of the run\.$"):
        settings.parse(Outer, {}, "part")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 1.5}, "part.steps is 1.5; expected an integer"),
        ({"steps": True}, "part.steps is True; expected an integer"),
        ({"kind": 3}, "part.kind is 3; expected a string"),
        ({"flag": 1}, "part.flag is 1; expected True or False"),
        ({"level": "high"}, "part.level is 'high'; expected a number or None"),
        ({"pair": [1.0]}, "part.pair is [1.0]; expected 2 values"),
        ({"factors": {"a": "x"}}, "part.factors.a is 'x'; expected a number"),
        ({"widths": [1, "x"]}, "part.widths is [1, 'x']; expected an integer or a sequence of integers"),
        ({"inner": {"sizes": 3}}, "part.inner.sizes is 3; expected a sequence of integers"),
        ({"inner": 3}, "part.inner is 3; expected settings by name"),
    ],
)
def test_a_value_of_another_type_is_refused(values, said):
    assert refused(**values) == said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 0}, "part.steps is 0; expected at least 1 and at most 9"),
        ({"steps": 10}, "part.steps is 10; expected at least 1 and at most 9"),
        ({"inner": {"rate": 1.0}}, "part.inner.rate is 1.0; expected at least 0 and below 1"),
        ({"level": 0}, "part.level is 0.0; expected above 0"),
        ({"level": float("inf")}, "part.level is inf; expected above 0"),
        ({"pair": [float("nan"), 1]}, "part.pair is (nan, 1); expected a finite number"),
        ({"inner": {"sizes": [4, 0]}}, "part.inner.sizes is (4, 0); expected at least 1"),
        ({"kind": "magic"}, "part.kind is 'magic'; expected one of plain, fancy"),
    ],
)
def test_a_value_out_of_range_is_refused(values, said):
    assert refused(**values) == said


def test_limits_themselves_are_in_range():
    assert [parse(steps=steps).steps for steps in (1, 9)] == [1, 9]


def test_values_that_do_not_fit_together_are_refused():
    assert refused(flag=True) == "part.flag is True; expected False with kind plain"


def test_settings_that_are_made_in_code_are_checked_too():
    with pytest.raises(ValueError, match=r"rate is 1\.0; expected at least 0 and below 1"):
        Inner(rate=1.0)


def test_what_is_not_a_mapping_is_refused():
    with pytest.raises(ValueError, match="the config is 3; expected settings by name"):
        settings.parse(Inner, 3)


def test_integers_become_numbers_where_numbers_are_expected():
    assert isinstance(parse(level=2).level, float)


def test_sequences_become_tuples_so_that_settings_are_hashable():
    found = settings.parse(Inner, {"sizes": [3, 4]})
    assert hash(found) and found.sizes == (3, 4)


def test_none_is_a_value_of_optional_settings():
    assert parse(level=None).level is None


def test_settings_come_back_from_their_mapping():
    changed = parse(steps=2, level=0.5, kind="fancy", flag=True, widths=[1, 2], factors={"b": 2.0})
    assert settings.parse(Outer, settings.to_dict(changed)) == changed


def test_the_mapping_of_settings_is_of_the_types_of_json():
    values = settings.to_dict(parse(widths=[1, 2]))
    assert json.loads(json.dumps(values)) == values


def test_defaults_that_are_mappings_are_not_shared():
    assert parse().factors is not parse().factors


def test_settings_are_described_with_those_of_their_groups():
    rows = {name: rest for name, *rest in settings.described(Outer, "part")}
    assert rows["part.inner.rate"] == ["a number", 0.5, "Rate per step."]
    assert rows["part.steps"] == ["an integer", "required", "Steps of the run."]
    assert rows["part.factors"][1] == {"a": 1.0}


def test_nested_mappings_are_flattened_to_dotted_names():
    assert settings.flatten({"a": {"b": [1, [2]]}, "c": 3}) == {"a.b": (1, (2,)), "c": 3}


def test_differences_are_named_with_both_values():
    found = settings.differences({"a": {"b": [1]}, "c": 1}, {"a": {"b": (1,)}, "c": 2})
    assert found == ["c is 1 there and 2 in the given config"]


def test_a_setting_on_one_side_alone_is_a_difference():
    assert settings.differences({}, {"a": 1}) == ["a is None there and 1 in the given config"]
