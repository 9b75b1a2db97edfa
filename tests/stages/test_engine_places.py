"""Where a wave of rollouts begins."""

import pytest

from raml_ray.stages.engine_places import Place, State, begun


def test_groups_begin_on_engines_in_turns_and_each_is_told_how_many_requests_come() -> None:
    places = [Place(0, state=State.HEALTHY), Place(1, state=State.HEALTHY)]
    found = begun(places, num_groups=3, size=16, most=32, name=7)
    assert [(one.place.index, one.together) for one in found if one] == [(0, (7, 32)), (1, (7, 16)), (0, (7, 32))]


@pytest.mark.parametrize("second", [Place(1), Place(1, state=State.HEALTHY, num_under_way=1)])
def test_they_begin_as_they_find_room_where_an_engine_is_down_or_busy_or_too_small(second: Place) -> None:
    first = Place(0, state=State.HEALTHY)
    assert begun([first, second], num_groups=3, size=16, most=32, name=7) == [None] * 3
    assert begun([first], num_groups=3, size=16, most=32, name=7) == [None] * 3
