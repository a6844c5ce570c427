"""Which code made a table is captured, and nobody waits for it."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from bus.provenance import Watch, ask

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for words in (
        ["init", "--quiet", "--initial-branch=work"],
        ["config", "user.email", "a@example.org"],
        ["config", "user.name", "A"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    (tmp_path / "script.py").write_text("print(1)\n")
    subprocess.run(["git", "-C", str(tmp_path), "add", "."], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "commit", "--quiet", "-m", "one"], check=True)
    return tmp_path


def test_a_clean_tree_has_a_commit_and_a_branch(repository: Path) -> None:
    found = ask(repository)
    assert found.git_commit is not None
    assert len(found.git_commit) == 40
    assert (found.git_branch, found.git_dirty, found.git_diff_sha256) == ("work", False, None)


def test_a_changed_tree_is_dirty_and_two_changes_are_told_apart(repository: Path) -> None:
    (repository / "script.py").write_text("print(2)\n")
    first = ask(repository)
    (repository / "script.py").write_text("print(3)\n")
    second = ask(repository)
    assert first.git_dirty
    assert None is not first.git_diff_sha256 != second.git_diff_sha256


def test_without_a_repository_nothing_is_said(tmp_path: Path) -> None:
    found = Watch(tmp_path).newest()
    assert (found.git_commit, found.git_dirty) == (None, None)


def test_a_git_that_hangs_keeps_nobody_waiting(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: object, **__: object) -> None:
        time.sleep(2)
        raise subprocess.SubprocessError

    monkeypatch.setattr(subprocess, "run", hang)
    watch = Watch(repository)
    begin_s = time.perf_counter()
    assert watch.newest().git_commit is None
    assert time.perf_counter() - begin_s < 1


def test_the_answer_is_asked_once_and_kept(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(repository)
    deadline_s = time.monotonic() + 10
    while watch.newest().git_commit is None:
        assert time.monotonic() < deadline_s
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked again"))
    begin_s = time.perf_counter()
    for _ in range(100):
        watch.newest()
    assert time.perf_counter() - begin_s < 0.1
