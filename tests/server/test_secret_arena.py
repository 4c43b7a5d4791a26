"""Hostile answers in each stage of a secure sum: they cost their site, or end the round with a word on it, and change no sum."""

from __future__ import annotations

import numpy as np
import pytest
from arena import assert_equal
from hypothesis import HealthCheck, given, settings
from secret_arena import ALL, CASES, LOST, POISON, SECRET, Spoil, answers, play_answer, play_secret


def test_a_site_that_is_lost_after_its_vector_came_is_in_the_sum() -> None:
    assert ALL is not None
    assert LOST["opening"] is not None
    assert LOST["vector"] is not None
    assert_equal(ALL, LOST["opening"])
    assert any(not np.array_equal(ALL[name], LOST["vector"][name]) for name in ALL)


@pytest.mark.parametrize(("stage", "name"), CASES)
def test_a_hostile_answer_costs_its_site_alone(stage: str, name: str) -> None:
    parameters, what = play_secret(stage, SECRET[stage][name])
    assert parameters is not None, what
    reference = LOST[stage]
    assert reference is not None
    assert_equal(parameters, reference)
    assert (what == "ok") == (stage in {"agreeing", "opening"})


@pytest.mark.parametrize("name", POISON)
def test_what_spoils_a_sum_ends_the_round_and_nothing_is_opened(name: str) -> None:
    stage, spoil, said = POISON[name]
    parameters, what = play_secret(stage, spoil)
    assert parameters is None
    assert said in what


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(answer=answers())
def test_drawn_answers_cost_their_site_alone_or_end_the_round(answer: tuple[str, Spoil]) -> None:
    play_answer(answer)
