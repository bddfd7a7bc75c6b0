"""Heads kept outside the journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge import StationError
from edge.chain import Head
from edge.heads import EVERY_ROWS, HeadKeeper, read_heads


def head(row: int) -> Head:
    return Head(row, f"{row:064x}")


def test_heads_are_said_and_kept_when_due_and_every_thousand_rows(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "far" / "heads.txt"
    keeper = HeadKeeper(path, said.append, pytest.fail)
    keeper.note(head(1), due=True)
    for row in range(2, 2100):
        keeper.note(head(row))
    keeper.note(head(2100), due=True)
    keeper.close()
    keeper.close()
    kept = [head(1), head(1 + EVERY_ROWS), head(1 + 2 * EVERY_ROWS), head(2100)]
    assert read_heads(path) == kept
    assert said == [f"journal head: row {head.row} {head.hash}" for head in kept]


def test_without_a_file_they_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    keeper = HeadKeeper(None, said.append, pytest.fail)
    keeper.note(head(1), due=True)
    keeper.close()
    assert len(said) == 1


def test_a_later_run_appends_also_behind_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "heads.txt"
    for row in (1, 2):
        keeper = HeadKeeper(path, [].append, pytest.fail)
        keeper.note(head(row), due=True)
        keeper.close()
        with path.open("ab") as file:
            file.write(b"2024-01-01T00:00:00+00:00 row 7 00")
    assert read_heads(path) == [head(1), head(2)]
    assert len(path.read_text().splitlines()) == 4


def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    complaints: list[str] = []
    keeper = HeadKeeper(tmp_path, [].append, complaints.append)
    for row in (1, 2):
        keeper.note(head(row), due=True)
    keeper.close()
    (complaint,) = complaints
    assert "heads of the journal are not kept (Is a directory); mend the file" in complaint


@pytest.mark.parametrize("text", ["", "nothing\n", "row 1\n", f"now row x {'0' * 64}\n"])
def test_a_file_without_heads_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "heads.txt"
    path.write_text(text)
    with pytest.raises(StationError, match="no heads there, expected lines of TIME row NUMBER SHA-256"):
        read_heads(path)
    with pytest.raises(StationError, match="cannot be read"):
        read_heads(tmp_path / "none.txt")


def test_the_name_of_a_new_file_is_synced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("edge.heads.sync_folder", synced.append)
    for row in (1, 2):
        keeper = HeadKeeper(tmp_path / "heads.txt", lambda line: None, lambda line: None)
        keeper.note(Head(row, "a" * 64), due=True)
        keeper.close()
    assert synced == [tmp_path]
