"""Skipping, hashing, resuming, --from/--until and forking, on stages that only write a file."""

from __future__ import annotations

import pytest

from worldline.recipes.builder import RecipeError
from worldline.recipes.graph import Interrupted, Node, StageError, execute, hashes
from worldline.recipes.store import StageStore


class Bench:
    """A chain data -> camera -> ar (with an evaluation of camera) that counts what runs."""

    def __init__(self, root):
        self.store, self.ran, self.trouble = StageStore(root), [], {}
        self.options = {"data": 1, "camera": 1, "ar": 1}

    def node(self, name, inputs, **kwargs):
        def work(directory):
            self.ran.append(name)
            (directory / "out.txt").write_text(f"{name} {self.options.get(name)}")
            if name in self.trouble:
                raise self.trouble.pop(name)
            return {"loss": 0.5}

        return Node(name, {"option": self.options.get(name)}, inputs, work, **kwargs)

    def nodes(self):
        return [
            self.node("data", ()),
            self.node("camera", ("data",)),
            self.node("camera-evaluation", ("camera",), of="camera", may_fail=True),
            self.node("ar", ("camera",)),
            self.node("report", ("ar",), always=True),
        ]

    def run(self, **kwargs):
        self.ran.clear()
        execute(self.nodes(), self.store, **kwargs)
        return list(self.ran)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "run")


ALL = ["data", "camera", "camera-evaluation", "ar", "report"]


def test_finished_stages_are_skipped(bench):
    assert bench.run() == ALL
    assert bench.run() == ["report"]
    record = bench.store.read("camera")
    assert record.status == "done"
    assert record.losses == {"loss": 0.5}
    assert record.inputs == {"data": hashes(bench.nodes())["data"]}


def test_a_changed_option_reruns_the_stage_and_what_reads_it(bench):
    bench.run()
    bench.options["camera"] = 2
    assert bench.run() == ["camera", "camera-evaluation", "ar", "report"]
    bench.options["ar"] = 2
    assert bench.run() == ["ar", "report"]


def test_an_option_changed_back_finds_its_result_again(bench):
    bench.run()
    bench.options["ar"] = 2
    bench.run()
    bench.options["ar"] = 1
    assert bench.run() == ["report"]
    assert (bench.store.directory("ar") / "out.txt").read_text() == "ar 1"


def test_until_stops_and_from_redoes(bench):
    assert bench.run(until="camera") == ["data", "camera", "camera-evaluation"]
    assert bench.run(from_="camera", until="ar") == ["camera", "camera-evaluation", "ar"]
    with pytest.raises(RecipeError, match=r"--until cameras: no such stage; did you mean 'camera'"):
        bench.run(until="cameras")
    with pytest.raises(RecipeError, match="comes after"):
        bench.run(from_="ar", until="data")


def test_from_needs_the_earlier_stages(bench):
    with pytest.raises(RecipeError, match="earlier stage 'data' is not finished"):
        bench.run(from_="camera")
    assert bench.ran == []


def test_ctrl_c_is_recorded_and_the_stage_resumes(bench):
    bench.trouble["ar"] = KeyboardInterrupt()
    with pytest.raises(Interrupted, match="'ar'"):
        bench.run()
    assert bench.store.read("ar").status == "interrupted"
    (bench.store.directory("ar") / "checkpoint").write_text("step 5")
    assert bench.run() == ["ar", "report"]
    assert (bench.store.directory("ar") / "checkpoint").exists(), "a resumed stage keeps its checkpoint"


def test_a_killed_stage_counts_as_not_done(bench):
    bench.run()
    record = bench.store.read("ar")
    record.status = "running"  # what kill -9 leaves behind
    bench.store.write(record)
    assert bench.run() == ["ar", "report"]
    (bench.store.directory("ar") / "stage.json").write_text('{"name": "ar", "ha')  # torn
    assert bench.run() == ["ar", "report"]


def test_a_failing_evaluation_does_not_lose_the_training(bench):
    bench.trouble["camera-evaluation"] = RuntimeError("no episodes")
    assert bench.run() == ALL
    assert "no episodes" in bench.store.read("camera-evaluation").error
    assert bench.run() == ["camera-evaluation", "report"], "only the failed one is tried again"


def test_a_failing_stage_stops_the_run(bench):
    bench.trouble["camera"] = RuntimeError("broken")
    with pytest.raises(StageError, match="'camera' failed: RuntimeError: broken"):
        bench.run()
    assert bench.ran == ["data", "camera"]
    assert bench.store.read("camera").status == "failed"


def test_a_fork_takes_over_what_is_the_same(bench, tmp_path):
    bench.run()
    other = Bench(tmp_path / "other")
    other.options["ar"] = 2
    assert other.run(fork=bench.store) == ["ar", "report"]
    assert (other.store.directory("camera") / "out.txt").read_text() == "camera 1"
    assert (bench.store.directory("ar") / "out.txt").read_text() == "ar 1"
