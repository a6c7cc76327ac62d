"""A second device in Python alone: each method trains, writes and predicts there as on the CPU, mixes no
devices, and makes the host wait no more often than is counted here. It runs in one process of its own."""
import json
import subprocess
import sys
from pathlib import Path

import elsewhere
import pytest
from run_elsewhere import CASES

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(bool(elsewhere.unknown()), reason=elsewhere.unknown())]


@pytest.fixture(scope="module")
def report():
    r = subprocess.run([sys.executable, HERE/"run_elsewhere.py"], capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr
    return json.loads(r.stdout)


def test_the_device_refuses_and_counts(report):
    "What a GPU refuses is refused, what it makes the host wait for is counted, and nothing else is."
    device = report["device"]
    assert all(device["refusals"])
    assert {name for name, n in device["waits"].items() if not n} == {"plain", "pinned"}


@pytest.mark.parametrize("case", CASES)
def test_a_second_device_computes_what_the_cpu_computes(report, case):
    r = report[case]
    assert "error" not in r, r["error"]
    assert r["loss"] < 1e-4 and r["weight"] < 1e-5
    assert r["texts"] and r["predictions"]


@pytest.mark.parametrize("case", CASES)
def test_the_host_waits_for_the_device_seldom(report, case):
    """Once for an update, batch and optimizer included: for its losses. Once for eight tokens. Twice more for
    the centres and widths of a prediction."""
    r = report[case]
    assert "error" not in r, r["error"]
    waits = {part: sum(by_name.values()) for part, by_name in r["waits"].items()}
    assert waits["stage 1"] <= 1 and waits["stage 2"] <= 1
    assert 8 * waits["generation"] <= r["steps"][1]
    assert waits["prediction"] <= 2 + 4 and waits["counting"] <= 4
