"""The station's challenge: nothing passes before it was right, whatever becomes of it, and it comes again when it is due."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import pytest

from calibration.challenge import Result, Shown, wrong_parts
from edge.challenge import Challenge
from edge.watch_sections import ChallengeSection
from tests.fakes import FakeClock

NO_SCORE = {"score": None, "why": "cannot be read"}


def result(who: str, *decisions: str) -> Result:
    parts = [
        Shown(name=f"NG/{number}.png", good=False, decision=decision, **(NO_SCORE if decision == "FAULT" else {"score": 1.5}))
        for number, decision in enumerate(decisions)
    ]
    good = Shown(name="OK/1.png", good=True, decision="PASS", score=0.5)
    return Result(
        challenge="c" * 64,
        bundle_digest="b" * 64,
        backend="fake",
        precision="fp32",
        engine_digest="e" * 64,
        threshold=1.0,
        threshold_method="conformal",
        when="2024-01-01T00:00:00+00:00",
        who=who,
        parts=(good, *parts),
    )


def right(who: str) -> Result:
    return result(who, "REJECT", "REJECT")


def wrong(who: str) -> Result:
    return result(who, "REJECT", "PASS", "FAULT")


class Held:
    """A judge that waits until it is let go."""

    def __init__(self, judge: Callable[[str], Result]) -> None:
        self.go = threading.Event()
        self._judge = judge

    def __call__(self, who: str) -> Result:
        assert self.go.wait(30)
        return self._judge(who)


class Station:
    def __init__(self, **settings: object) -> None:
        self.clock = FakeClock()
        self.events: list[dict[str, object]] = []
        self.said: list[str] = []
        self.complaints: list[str] = []
        self.challenge = Challenge(
            ChallengeSection.model_validate(settings),
            self.clock,
            note=self.note,
            say=self.said.append,
            complain=self.complaints.append,
        )

    def note(self, name: str, details: Mapping[str, object]) -> None:
        assert name == "challenge"
        self.events.append(dict(details))

    def settled(self) -> str:
        self.challenge.settle(lambda: None)
        return self.challenge.fault()


def test_nothing_passes_before_all_were_judged_rightly() -> None:
    station, judge = Station(), Held(right)
    station.challenge.put_in_force(judge, who="Ada")
    assert station.challenge.fault() == "the challenge's parts are being judged"
    judge.go.set()
    assert station.settled() == ""
    (event,) = station.events
    assert (event["passed"], event["who"], event["challenge"], event["wrong"]) == (True, "Ada", "c" * 64, [])
    assert event["counts"] == "1 of 1 good parts passed, 2 of 2 bad ones were rejected, 0 faults"
    assert len(station.said) == 1


def test_a_threshold_that_was_set_by_hand_is_marked_beside_the_parts_that_it_decided_wrongly() -> None:
    said = wrong_parts(wrong("Ada").model_copy(update={"threshold_method": "manual"}))
    assert "NG/1.png is NG and was a PASS (score 1.5, threshold 1 SET BY HAND)" in said


def test_the_parts_that_were_wrong_are_named_in_one_line_and_journalled() -> None:
    station = Station()
    station.challenge.put_in_force(wrong, who="Ada")
    fault = station.settled()
    assert fault.startswith("2 of 4 labelled parts judged wrongly: NG/1.png is NG and was a PASS (score 1.5, threshold 1)")
    assert "\n" not in fault
    (event,) = station.events
    assert event["passed"] is False
    assert [part["name"] for part in event["wrong"]] == ["NG/1.png", "NG/2.png"]  # type: ignore[index,attr-defined]
    assert station.complaints == [f"challenge FAILED: {fault}"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("x"), SystemExit(3)])
def test_a_challenge_that_breaks_is_one_that_failed(error: BaseException) -> None:
    def broken(who: str) -> Result:
        raise error

    station = Station()
    station.challenge.put_in_force(broken, who="Ada")
    assert station.settled().startswith("the challenge's parts cannot be judged: ")
    assert station.events[0]["passed"] is False


def test_a_person_has_it_judged_again() -> None:
    station, answers = Station(), [wrong("start"), right("Ada")]
    station.challenge.put_in_force(lambda _who: answers.pop(0), who="start")
    assert station.settled()
    station.challenge.begin("Ada")
    assert station.settled() == ""
    assert [event["who"] for event in station.events] == ["start", "Ada"]


def test_it_comes_again_when_its_hours_are_over_and_blocks_meanwhile() -> None:
    station, judge = Station(every_hours=8, at_start=False), Held(wrong)
    station.challenge.put_in_force(judge, who="start", at_once=False)
    station.clock.advance_ms(8 * 3600e3 - 1)
    assert station.challenge.fault() == ""
    station.clock.advance_ms(1)
    station.challenge.fault()
    assert station.challenge.fault() == "the challenge's parts are being judged"
    judge.go.set()
    assert station.settled()
    station.clock.advance_ms(8 * 3600e3)  # and again, though it failed
    station.challenge.fault()
    station.settled()
    assert len(station.events) == 2


def test_a_due_challenge_blocks_at_the_very_turn_that_it_is_due() -> None:
    station, judge = Station(every_hours=1, at_start=False), Held(right)
    station.challenge.put_in_force(judge, who="start", at_once=False)
    station.clock.advance_ms(3600e3)
    assert station.challenge.fault() != ""
    judge.go.set()
    assert station.settled() == ""


def test_what_the_recipe_before_gave_does_not_count_for_the_next() -> None:
    station, first = Station(), Held(right)
    station.challenge.put_in_force(first, who="start")
    station.challenge.put_in_force(wrong, who="change")
    first.go.set()
    assert "labelled parts judged wrongly" in station.settled()
    assert [event["passed"] for event in station.events] == [False]


def test_a_recipe_without_labelled_parts_is_not_taken_for_right() -> None:
    station = Station()
    station.challenge.put_in_force(None, who="start")
    assert station.settled() == "no challenge for this recipe"
