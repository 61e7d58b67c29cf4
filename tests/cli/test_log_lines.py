"""What workers print, as lines in files, with the call they come from."""

from __future__ import annotations

import io
import threading
from pathlib import Path

from gworker.observe.logs import LogFile, LogReader, Tee, apps_in, folder_of


def texts(reader: LogReader) -> list[str]:
    return [line.text for line in reader.more()]


def test_lines_come_with_worker_call_and_stream_oldest_first(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "an app/with signs")
    one, two = LogFile(folder, "Embedder-1"), LogFile(folder, "Re-Ranker-2")
    one.write("out", "call-7", "first")
    two.write("err", "", "second [brackets] ümlaut")
    reader = LogReader(tmp_path, "an app/with signs")
    found = reader.latest(10)
    assert [(line.worker, line.call, line.stream, line.text) for line in found] == [
        ("Embedder-1", "call-7", "out", "first"),
        ("Re-Ranker-2", "", "err", "second [brackets] ümlaut"),
    ]
    assert apps_in(tmp_path) == ["an app/with signs"]
    assert [line.text for line in LogReader(tmp_path, "an app/with signs", "Re-Ranker").latest(10)] == [found[1].text]
    assert [line.text for line in LogReader(tmp_path, "an app/with signs").latest(1)] == [found[1].text]


def test_a_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    file = LogFile(folder_of(tmp_path, "app"), "A-1")
    reader = LogReader(tmp_path, "app")
    file.write("out", "", "old")
    assert reader.latest(0) == []
    file.write("out", "", "new")
    assert texts(reader) == ["new"]
    assert texts(reader) == []
    LogFile(folder_of(tmp_path, "app"), "A-2").write("out", "", "of a new worker")
    assert texts(reader) == ["of a new worker"]


def test_files_are_bounded_and_nothing_is_missed_when_one_is_set_aside(tmp_path: Path) -> None:
    file = LogFile(folder_of(tmp_path, "app"), "A-1", rotate_bytes=400)
    reader = LogReader(tmp_path, "app")
    seen = []
    for number in range(50):
        file.write("out", "", f"line {number}")
        if number % 3 == 0:
            seen += texts(reader)
    assert seen + texts(reader) == [f"line {number}" for number in range(50)]
    assert sum(path.stat().st_size for path in file.path.parent.iterdir()) < 1200


def test_a_line_that_is_half_written_is_left_for_later(tmp_path: Path) -> None:
    file = LogFile(folder_of(tmp_path, "app"), "A-1")
    file.write("out", "", "whole")
    with file.path.open("ab") as half:
        half.write(b'[1.0, "A-1", "", "out", "ha')
    reader = LogReader(tmp_path, "app")
    assert texts(reader) == ["whole"]
    with file.path.open("ab") as half:
        half.write(b'lf"]\nnot json\n')
    assert texts(reader) == ["half"]


def test_what_is_printed_goes_on_to_the_stream_and_lines_of_several_threads_do_not_mix() -> None:
    stream, lines = io.StringIO(), []
    calls = threading.local()
    tee = Tee(stream, lambda call, text: lines.append((call, text)), lambda: getattr(calls, "id", ""))
    print("a", "b", file=tee)
    print("no end", end="", file=tee)

    def other() -> None:
        calls.id = "call-1"
        print("from another thread\nand one more", file=tee)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    print(" yet", file=tee)
    tee.flush()
    assert lines == [
        ("", "a b"),
        ("call-1", "from another thread"),
        ("call-1", "and one more"),
        ("", "no end yet"),
    ]
    assert stream.getvalue() == "a b\nno endfrom another thread\nand one more\n yet\n"
    tee.write("x" * 100_000)
    assert lines[-1] == ("", "x" * 100_000)
