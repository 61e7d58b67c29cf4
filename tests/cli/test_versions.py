"""`serve --reload`: which version serves while edits come, one breaks, and two do not fit."""

from __future__ import annotations

import pytest

from gworker.cli.reloading import Edit, News, Versions


class Stage:
    """Versions, and a record of what they were told to do."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.said: list[str] = []
        self.versions = Versions(
            lambda n: self.did.append(f"start {n}"), lambda n: self.did.append(f"drain {n}"), self.said.append
        )
        self.versions.begin()

    def hear(self, *events: Edit | News) -> None:
        for event in events:
            self.versions.hear(event)


EDIT = Edit(("app.py",))


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_the_old_version_serves_until_the_new_one_is_ready(stage: Stage) -> None:
    stage.hear(News(1, "ready"), EDIT)
    assert stage.did == ["start 1", "start 2"] and stage.versions.serving == 1
    stage.hear(News(2, "ready"))
    assert stage.did == ["start 1", "start 2", "drain 1"] and stage.versions.serving == 2
    stage.hear(News(1, "ended"))
    assert stage.did[-1] == "drain 1" and stage.versions.serving == 2


def test_a_broken_edit_keeps_the_old_version_and_shows_the_error(stage: Stage) -> None:
    stage.hear(News(1, "ready"), EDIT, News(2, "failed", "SyntaxError: line 3"), News(2, "ended"))
    assert stage.did == ["start 1", "start 2"] and stage.versions.serving == 1
    assert "SyntaxError: line 3" in stage.said
    assert "version 2 did not start: the version before serves on until the next edit" in stage.said
    stage.hear(EDIT, News(3, "ready"))
    assert stage.versions.serving == 3


def test_a_first_version_that_is_broken_waits_for_an_edit(stage: Stage) -> None:
    stage.hear(News(1, "failed", "no"), EDIT, News(2, "ready"))
    assert "version 1 did not start: nothing serves until the next edit" in stage.said
    assert stage.versions.serving == 2


def test_an_edit_during_a_start_replaces_what_starts(stage: Stage) -> None:
    stage.hear(News(1, "ready"), EDIT, EDIT)
    assert stage.did == ["start 1", "start 2", "drain 2", "start 3"]
    stage.hear(News(2, "ready"), News(2, "ended"), News(3, "ready"))
    assert stage.versions.serving == 3 and stage.did[-1] == "drain 1"


def test_where_both_do_not_fit_the_old_one_goes_first(stage: Stage) -> None:
    stage.hear(News(1, "ready"), EDIT, News(2, "crowded"))
    assert stage.did[-1] == "drain 1" and stage.versions.serving is None
    stage.hear(News(1, "ended"), News(2, "ready"))
    assert stage.versions.serving == 2 and stage.did.count("drain 1") == 1


def test_a_server_that_ends_by_itself_is_started_again(stage: Stage) -> None:
    stage.hear(News(1, "ready"), News(1, "ended"))
    assert stage.did == ["start 1", "start 2"]
    stage.hear(News(2, "ended"))
    assert stage.versions.coming is None  # it cannot be started: an edit may help
