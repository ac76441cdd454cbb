"""The first thing in every child: whatever goes wrong there is one sentence, in the log and to the supervisor."""

import os
import socket
from multiprocessing import get_context
from pathlib import Path

import msgspec

from conftest import DEADLINE_S
from workers.process import UNEXPECTED, enter
from workers.report import Report


def test_a_plan_that_cannot_be_read_is_one_sentence_and_its_trace_is_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "c0.1.log"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = get_context("spawn").Process(target=enter, args=(b"{", "c0", 1, theirs, os.getpid(), str(log)))
        child.start()
        child.join(DEADLINE_S)
        assert child.exitcode == UNEXPECTED
        ours.settimeout(DEADLINE_S)
        report = msgspec.msgpack.decode(ours.recv(1 << 16), type=Report)
        child.close()
    assert (report.component, report.incarnation, report.state) == ("c0", 1, "failed")
    assert report.reason.startswith("DecodeError: ")
    assert report.reason in log.read_text()
    assert "Traceback" in log.read_text()
