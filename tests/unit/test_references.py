"""What references mean, what they are told to be when they mean nothing, or several things."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from bus import lookup
from bus.errors import NotFound, Refused
from bus.model import Alias, Supersede, Tombstone
from bus.reader import Reader
from bus.settings import Settings
from tests.history import History

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bus.model import ArtifactRecord


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path / "lake")
    yield made
    made.manifest.close()


def delivered(history: History, name: str = "a", **fields: str) -> ArtifactRecord:
    made = history.artifact(name=name, kind=fields.pop("kind", "things"))
    history.commit(history.job(made, **fields))
    return made


def alias(history: History, kind: str, name: str, target: str | None) -> None:
    history.commit(history.change(Alias(op="alias", kind=kind, alias=name, target=target)))


def meant(history: History, reference: str, as_of: int | None = None) -> str:
    return lookup.find_artifact(history.lake, reference, as_of=as_of)


def refused(history: History, reference: str) -> NotFound:
    with pytest.raises(NotFound) as caught:
        meant(history, reference)
    assert (caught.value.code, caught.value.where) == ("E511", "REF")
    return caught.value


def test_each_form_of_a_reference_means_the_artifact(history: History) -> None:
    made = delivered(history, run_id="run-7", job_id="job-7")
    delivered(history, "b")
    alias(history, "things", "best", made.artifact_id)
    whole = made.artifact_id
    for reference in (
        *(whole, whole[:8], whole[:8].upper(), f"artifact:{whole}"),
        *("run-7/a", "job:job-7/a", "things:best"),
        *(f"things@1/{whole[:8]}", f"things@01/{whole}"),
    ):
        assert meant(history, reference) == whole, reference


def test_latest_needs_no_alias_and_gives_way_to_one(history: History) -> None:
    first = delivered(history)
    second = delivered(history, "b")
    assert meant(history, "things:latest") == second.artifact_id
    alias(history, "things", "latest", first.artifact_id)
    assert meant(history, "things:latest") == first.artifact_id
    alias(history, "things", "latest", None)
    assert meant(history, "things:latest") == second.artifact_id
    assert meant(history, "things:latest", as_of=3) == first.artifact_id
    assert meant(history, "things:latest", as_of=1) == first.artifact_id


def test_latest_is_the_active_artifact_that_was_delivered_last(history: History) -> None:
    first, second = delivered(history), delivered(history, "b")
    again = first.model_copy(update={"decision": "deduped", "mode": "file_hash"})
    history.commit(history.job(again))
    assert meant(history, "things:latest") == first.artifact_id
    by = Supersede(op="supersede", target=first.artifact_id, by=second.artifact_id)
    history.commit(history.change(by))
    assert meant(history, "things:latest") == second.artifact_id
    gone = Tombstone(op="tombstone", target=second.artifact_id, reason="wrong")
    history.commit(history.change(gone))
    assert "things" in refused(history, "things:latest").message


def test_names_with_colons_and_at_signs_are_read_in_every_way(history: History) -> None:
    odd = delivered(history, "x", kind="a:b", run_id="k@1", job_id="j:1")
    alias(history, "a:b", "c:d", odd.artifact_id)
    for reference in ("a:b:c:d", "a:b:latest", "k@1/x", "job:j:1/x"):
        assert meant(history, reference) == odd.artifact_id, reference


def test_a_text_that_may_be_read_in_two_ways_is_refused_with_both(history: History) -> None:
    one = delivered(history, kind="trades")
    other = delivered(history, one.artifact_id[:4], run_id="trades@1")
    with pytest.raises(Refused) as caught:
        meant(history, f"trades@1/{one.artifact_id[:4]}")
    assert caught.value.code == "E404"
    for made in (one, other):
        assert f"{made.artifact_id} ({made.kind} {made.logical_key}, created 2026-" in str(
            caught.value
        )


def test_the_beginning_of_an_id_that_fits_several_lists_them(history: History) -> None:
    made = [history.artifact(name=f"n{n}", kind="many") for n in range(400)]
    history.commit(history.job(*made))
    ids = sorted(one.artifact_id for one in made)
    first = next((a[0] for a, b in pairwise(ids) if a[0] == b[0]))
    with pytest.raises(Refused) as caught:
        meant(history, f"many@1/{first}")
    assert caught.value.code == "E404"
    fits = [one for one in ids if one.startswith(first)]
    assert sum(one in str(caught.value) for one in fits) == 10
    assert f"and {min(len(fits), 100) - 10} or more others" in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "near"),
    [
        ("run-42/alertz", "run-42/alerts"),
        ("run-24/alerts", "run-42/alerts"),
        ("job:nightly-08/alert", "job:nightly-08/alerts"),
        ("alerts_sdt:latest", "alerts_std:latest"),
        ("alerts_std:bset", "alerts_std:best"),
        ("alerts_std", "alerts_std:latest"),
    ],
)
def test_an_unknown_reference_names_what_is_near(
    history: History, reference: str, near: str
) -> None:
    made = delivered(history, "alerts", kind="alerts_std", run_id="run-42", job_id="nightly-08")
    alias(history, "alerts_std", "best", made.artifact_id)
    assert f"Did you mean {near}" in refused(history, reference).hint


def test_an_id_with_a_slip_names_the_ids_that_begin_like_it(history: History) -> None:
    made = delivered(history)
    wrong = made.artifact_id[:-1] + ("0" if made.artifact_id[-1] != "0" else "1")
    assert made.artifact_id in refused(history, wrong).hint


@pytest.mark.parametrize(
    "reference",
    ["", "abc", "latest", ":", "/", "x:", "job:", "@1/", "nobody:latest", "a" * 4000, "x\0y", "%"],
)
def test_what_no_reference_can_mean_is_not_found(history: History, reference: str) -> None:
    delivered(history)
    assert "bus find" in refused(history, reference).hint


def test_before_the_first_commit_nothing_is_meant(tmp_path: Path) -> None:
    reader = Reader(Settings(lake=tmp_path))
    for reference in ("things:latest", "run/a", "0123abcd"):
        with pytest.raises(NotFound):
            reader.get(reference)
        with pytest.raises(NotFound):
            lookup.find_artifact(reader.lake, reference)
    assert list(reader.find()) == []
    assert not reader.exists("sha256:" + "0" * 64)
