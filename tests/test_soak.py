"""What the soak test (tests/soak.py) reads of its own log; `test_survival.py` runs it."""

import pytest

from tests import soak


def test_a_log_of_stops_is_counted_round_by_round_over_several_calls():
    stops = "round {}: {} after 1.2 s, in: token cache, exit code 1"
    end = "round {}: at its end, the same bit for bit"
    call = "whole: undisturbed, 9.2 s"
    first = [call, stops.format(0, "full"), stops.format(0, "SIGKILL"), end.format(0)]
    ended_by_hand = [stops.format(1, "SIGINT")]  # its numbers were never compared
    second = [call, stops.format(1, "read-only"), end.format(1)]
    found, rounds = soak.earlier("\n".join([*first, *ended_by_hand, *second]))
    assert (found, rounds) == ({"full": 1, "SIGKILL": 1, "read-only": 1}, 2)
    assert soak.earlier("") == ({}, 0)
    with pytest.raises(SystemExit, match=r"round that failed.*round 2: FAILED, weights"):
        soak.earlier("\n".join([*first, "round 2: FAILED, weights", *second]))
