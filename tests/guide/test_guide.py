"""The user guide runs word for word, under both import names, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

REPOSITORY = Path(__file__).parent.parent.parent
GUIDE = REPOSITORY / "docs" / "class-tasks.md"

pytestmark = [pytest.mark.guide, pytest.mark.slow, pytest.mark.timeout(200)]


def test_the_guide_in_the_documentation_is_the_one_the_product_must_satisfy() -> None:
    original = REPOSITORY.parent / "shared" / "class-tasks.md"
    if not original.exists():
        pytest.skip("there is no other copy beside this repository")
    assert GUIDE.read_text() == original.read_text()


def test_every_snippet_of_the_guide_is_played() -> None:
    fences = re.findall(r"^```(\w*)$", GUIDE.read_text(), re.MULTILINE)
    assert fences == ["python", ""] * 6


def test_the_script_ends_well_and_leaves_no_process(played: Any) -> None:
    assert played.returncode == 0, played.output
    assert "Traceback" not in played.output
    facts = played.facts
    workers = {*facts["embedder"]["pids"], *facts["llm"]["pids"], *facts["probe"]["now"], facts["probe"]["first"]}
    assert facts["driver"] not in workers
    assert len(workers) == 4, "each class has a process of its own"
    assert not [pid for pid in workers if psutil.pid_exists(pid)]


def test_the_first_snippet_embeds_real_sentences(played: Any) -> None:
    vectors = np.array(played.facts["embedder"]["vectors"])
    assert vectors.shape == (3, 384)
    cat, feline, rates = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert cat @ feline > 0.5 > cat @ rates
    assert len(played.facts["embedder"]["pids"]) == 1


def test_hooks_run_in_order_around_the_requests_in_the_process_that_serves_them(played: Any) -> None:
    assert played.ledger_of("llm") == [
        "llm load /models/llama-3",
        "llm cuda",
        "llm generate one",
        "llm generate two",
        "llm del",
    ]
    (pid,) = played.facts["llm"]["pids"]
    assert {int(line[0]) for line in played.ledger if line[1] == "llm"} == {pid}
    assert played.facts["llm"]["said"] == [f"{prompt} ... said process {pid}" for prompt in ("one", "two")]


def test_one_worker_takes_sixteen_inputs_at_once_and_no_more(played: Any) -> None:
    together, crowd = played.facts["concurrent"]["together"], played.facts["concurrent"]["crowd"]
    assert len({pid for pid, _ in together}) == 1
    assert max(most for _, most in together) == 16
    assert len(crowd) == 60
    assert max(most for _, most in crowd) <= 16


def test_concurrent_inputs_become_batches_of_sixty_four_at_most(played: Any) -> None:
    sizes = [int(line.split()[1]) for line in played.ledger_of("batch")]
    assert sum(sizes) == played.facts["batched"]["texts"] == 96
    assert max(sizes) <= 64
    assert len(sizes) <= 4, "all 96 inputs were there before the first batch could run"


def test_a_batched_text_has_the_vector_it_has_alone(played: Any) -> None:
    alone = np.array(played.facts["embedder"]["vectors"])
    batched = np.array(played.facts["batched"]["vectors"])
    assert batched.shape == (96, 384)
    assert np.abs(batched - np.tile(alone, (32, 1))).max() < 1e-4


def test_a_parameter_decides_a_call_without_another_worker(played: Any) -> None:
    assert played.facts["classifier"] == {
        "at 0.7": "negative",
        "default": "positive",
        "at 0.55": "positive",
        "workers": 1,
    }


def test_a_failing_liveness_probe_has_its_worker_replaced_while_calls_are_served(played: Any) -> None:
    probe = played.facts["probe"]
    assert probe["answers"] == [None, {"ok": True}]
    assert probe["sick"] == {"ok": False}
    assert probe["healthy"] == {"ok": True}
    assert probe["first"] not in probe["now"]
    assert probe["restarts"] == 1
    # Three failures, 30 s apart, the first within 30 s; then the drain and a start.
    assert 59.0 <= probe["after_s"] <= 120.0


def test_a_gpu_that_the_machine_lacks_is_dropped_with_a_warning_and_a_cluster_gives_it(played: Any) -> None:
    notices = [line for line in played.output.splitlines() if "runs without a GPU" in line]
    if played.import_name == "gworker":
        assert not notices
        return
    assert all("GWORKER_GPU=required" in notice for notice in notices)
    classes = sorted(notice.split()[0] for notice in notices)
    assert classes == ["BatchEmbedder", "Classifier", "EmbedServer", "Embedder", "LLMServer", "Model"]
