"""Which order goes to a worker next, and what orders and replies are laid out in."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedmed_client.work.frames import data_of, filled, outline
from fedmed_client.workbench import SiteHome
from fedmed_common import wire
from fedmed_common.config import Site
from fedmed_common.errors import CheckpointError, ConfigError, WorkerLost
from fedmed_common.loading import load_experiment
from fedmed_common.wire_arrays import ENCODED
from fedmed_simulations import runfolder
from fedmed_simulations.engines import _fitting, _held_to, _seen
from fedmed_simulations.grid import FIRST_NODE, LocalGrid
from fedmed_simulations.resources import Resources, check_resources
from fedmed_simulations.workers import memory
from fedmed_simulations.workers.crew import Answered, Event, Lost, Post, Ready, Shelf, Stepped
from fedmed_simulations.workers.grid import Settings, WorkersGrid
from fedmed_simulations.workers.ray_actors import packed, unpacked
from fedmed_simulations.workers.schedule import Order, Schedule

pytestmark = pytest.mark.usefixtures("identity")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def identity() -> None:
    """Flower makes no message in a process that is nobody."""
    LocalGrid(ClientApp(), 1)


def message(node: int = 0, kind: str = "train", **records: ArrayRecord) -> Message:
    return Message(RecordDict({**records}), FIRST_NODE + node, kind)


def arrays(*shapes: tuple[int, ...]) -> ArrayRecord:
    return ArrayRecord({f"a{n}": Array(RNG.random(shape, np.float32)) for n, shape in enumerate(shapes)})


def schedule_of(sizes: list[float], window: int = 8) -> Schedule:
    """Sites with so much to do, asked for training."""
    schedule = Schedule(window, lambda node, _kind: sizes[node - FIRST_NODE])
    ask_all(schedule, len(sizes), "first")
    return schedule


def ask_all(schedule: Schedule, sites: int, name: str) -> None:
    for node in range(sites):
        schedule.add(Order(name=f"{name} {node}", message=message(node)))


def begin(schedule: Schedule, awaited: str, now: float = 0.0) -> Order | None:
    order = schedule.next(awaited)
    if order is not None:
        schedule.begin(order, now)
    return order


def names(*orders: Order | None) -> list[str]:
    return [order.name if order else "" for order in orders]


def test_the_longest_of_the_window_goes_first() -> None:
    schedule = schedule_of([1, 3, 2, 9], window=3)
    orders = [begin(schedule, "first 0") for _ in range(4)]
    assert names(*orders) == ["first 1", "first 2", "first 0", ""]
    schedule.finish(orders[2], 1.0)
    assert begin(schedule, "first 0") is None, "its reply was not taken yet, and counts"
    schedule.remove("first 0")
    assert names(begin(schedule, "first 1")) == ["first 3"]


def test_what_is_awaited_is_in_the_window_wherever_it_stands() -> None:
    schedule = schedule_of([1, 1, 1, 1], window=1)
    assert names(begin(schedule, "first 3"), begin(schedule, "first 3")) == ["first 0", "first 3"]


def test_measured_times_count_more_than_sizes() -> None:
    schedule = schedule_of([10, 10, 30])
    for order, seconds in zip(
        [begin(schedule, "first 0") for _ in range(3)], (90.0, 20.0, 40.0), strict=True
    ):
        schedule.finish(order, seconds)
    assert [schedule["first 2"].done, schedule["first 0"].done] == [True, True]
    for node in range(3):
        schedule.remove(f"first {node}")
    ask_all(schedule, 3, "second")
    order = [begin(schedule, "second 0") for _ in range(3)]
    assert names(*order) == ["second 2", "second 1", "second 0"], "90, 40 and 20 seconds"


def test_a_site_that_was_not_timed_is_expected_to_keep_the_pace_of_the_others() -> None:
    schedule = schedule_of([10, 20])
    schedule.finish(begin(schedule, "first 1"), 40.0)
    schedule.remove("first 1")
    assert schedule.expected(schedule["first 0"]) == pytest.approx(20.0)


def test_what_a_lost_worker_had_is_given_out_again_and_counted() -> None:
    schedule = schedule_of([1, 2])
    order = begin(schedule, "first 0")
    schedule.take_back(order)
    assert begin(schedule, "first 0") is order
    assert order.given == 2


def test_a_slow_order_is_named_once() -> None:
    schedule = schedule_of([10, 10, 10])
    schedule.finish(begin(schedule, "first 0"), 10.0)
    slow = begin(schedule, "first 0", now=100.0)
    assert schedule.slow(4.0, 60.0, now=150.0) is None, "more than four times as long, and less than a minute"
    assert schedule.slow(4.0, 30.0, now=139.0) is None
    assert schedule.slow(4.0, 30.0, now=141.0) is slow
    assert schedule.slow(4.0, 30.0, now=999.0) is None


@pytest.fixture
def laid() -> Iterator[tuple[Shelf[object], list[object]]]:
    """A shelf, and what is on it."""
    there: list[object] = []

    def lay(parts: object) -> object:
        there.append(parts)
        return parts

    yield Shelf(lay, there.remove), there
    assert there == [], "something was left behind"


def test_what_messages_share_is_laid_out_once(laid: tuple[Shelf[object], list[object]]) -> None:
    shelf, there = laid
    shared, own = arrays((2, 3), ()), arrays((4,))
    first, second = message(0, parameters=shared), message(1, parameters=shared, down=own)
    shelf.expect(first)
    shelf.expect(second)
    assert there == []
    (one, _), (other, _) = shelf.of(first)["parameters"], shelf.of(second)["parameters"]
    assert one.number == other.number
    assert len(there) == 2
    shelf.of(second)
    shelf.release(first)
    assert len(there) == 2, "the second message needs it still, also a second time"
    shelf.release(second)


def test_what_was_never_given_out_is_never_laid_out(laid: tuple[Shelf[object], list[object]]) -> None:
    shelf, there = laid
    one = message(0, parameters=arrays((2,)))
    shelf.expect(one)
    shelf.release(one)
    assert shelf.numbers() == there == []


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    ours, theirs = Pipe()
    with ours, theirs:
        yield ours, theirs


def open_memory() -> int:
    """How many pieces of such memory this process has open or mapped."""
    gc.collect()
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return sum("memfd:fedmed" in str(link.readlink()) for link in links)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="not Linux")
def test_memory_is_handed_over_as_it_is_and_freed_with_its_last_array(
    pipe: tuple[Connection, Connection],
) -> None:
    ours, theirs = pipe
    parts = [b"abc", b"", bytes(range(200))]
    sizes = [len(part) for part in parts]
    with memory.written(parts) as file:
        memory.hand_over(ours, file, sizes)
        views = memory.taken_over(theirs, sizes)
    assert [bytes(view) for view in views] == parts
    assert all(view.readonly for view in views)
    last = np.frombuffer(views[2], np.uint8)
    assert last.ctypes.data % memory.ALIGNMENT == 0
    del views
    assert open_memory() == 1
    assert bytes(last[:3]) == b"\0\1\2"
    del last
    assert open_memory() == 0


def test_nothing_is_handed_over_where_there_is_nothing(pipe: tuple[Connection, Connection]) -> None:
    ours, theirs = pipe
    with memory.written([b"", b""]) as file:
        memory.hand_over(ours, file, [0, 0])
    assert [bytes(view) for view in memory.taken_over(theirs, [0, 0])] == [b"", b""]
    assert not theirs.poll()


def test_a_message_crosses_whole_mapped_or_packed() -> None:
    sent = message(0, parameters=arrays((3, 5), (), (0, 2)), sums=arrays((7,)))
    sent.metadata.__dict__["_message_id"] = "one"
    parts = data_of(sent)
    views = memory.cut(memoryview(memory.joined(parts)), [len(part) for part in parts])
    for found in (filled(outline(sent), views), unpacked(packed(sent))):
        assert found.metadata.message_id == "one"
        assert [bytes(data) for data in data_of(found)] == parts
        order = wire._any_arrays(found.content, "parameters", ENCODED)
        assert {name: array.tolist() for name, array in order.items()} == {
            name: array.numpy().tolist() for name, array in sent.content["parameters"].items()
        }
        assert not any(array.flags.writeable for array in order.values())


def test_workers_see_their_own_gpus(write_text) -> None:
    experiment = load_experiment(write_text(""))
    gpus = ["3", "GPU-ab"]
    assert [_seen(gpus, number, experiment) for number in range(3)] == [
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "GPU-ab"},
        {"CUDA_VISIBLE_DEVICES": "3"},
    ]
    both = load_experiment(write_text("[train]\nprocesses = 2"))
    assert _seen(gpus, 1, both) == {"CUDA_VISIBLE_DEVICES": "3,GPU-ab"}
    named = load_experiment(write_text('[train]\ndevice = "cuda:1"'))
    assert _seen(gpus, 1, named) == _seen([], 1, experiment) == {}


def test_a_site_at_a_worker_has_no_more_threads_than_the_worker(tmp_path: Path) -> None:
    def home(threads: int) -> SiteHome:
        data = {"format": "images", "root": tmp_path}
        fields = {"name": "one", "data": data, "labels": {"disc": ["1"]}, "device": {"threads": threads}}
        return SiteHome(site=Site.model_validate(fields), folder=tmp_path)

    held = _held_to([home(0), home(1), home(8)], 2)
    assert [each.site.device.threads for each in held] == [2, 1, 2]


def test_a_cluster_takes_what_fits_each_of_its_machines() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 7.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    assert _fitting(nodes, 2, 0.0) == 5
    assert _fitting(nodes, 2, 0.5) == 3
    with pytest.raises(ConfigError, match="no machine of the Ray cluster has the 8 cores"):
        _fitting(nodes, 8, 0.0)


def test_the_inline_engine_has_no_workers() -> None:
    with pytest.raises(ConfigError, match="--engine process"):
        check_resources("inline", Resources(workers=2))
    check_resources("inline", Resources(address="auto"))


def test_a_run_goes_on_elsewhere_with_its_baselines(write_text, tmp_path: Path) -> None:
    experiment = load_experiment(write_text(""))
    begun = runfolder.Plan(engine="ray", command="x", resources=Resources(workers=3, address="one:6379"))
    for name in ("run", "run.pooled", "other"):
        runfolder.create(tmp_path / name, experiment, begun)
    runfolder.move(tmp_path / "run", None, None, "two:6379")
    assert runfolder.open_run(tmp_path / "run")[1].resources == Resources(workers=3, address="two:6379")
    runfolder.move(tmp_path / "run", "inline", 0, None)
    plans = [runfolder.open_run(tmp_path / name)[1] for name in ("run", "run.pooled", "other")]
    assert [plan.engine for plan in plans] == ["inline", "inline", "ray"]
    with pytest.raises(ConfigError, match="no workers"):
        runfolder.move(tmp_path / "run", None, 2, None)
    with pytest.raises(CheckpointError):
        runfolder.move(tmp_path / "nothing", None, None, None)


@pytest.fixture
def write_text(tmp_path: Path):
    def write(more: str) -> Path:
        file = tmp_path / f"{abs(hash(more))}.toml"
        file.write_text(
            'name = "x"\nrounds = 1\n[task]\nclasses = ["disc"]\ndimensions = 2\n[data]\npatch = [16, 16]\n'
            + more
        )
        return file

    return write


def test_the_host_is_named_where_a_machine_does_not_see_the_run(tmp_path: Path) -> None:
    from fedmed_simulations.workers.ray_actors import Place, versions

    place = Place(mark=tmp_path / "mark", word="one", versions=versions())
    assert f"'{socket.gethostname()}' does not see {tmp_path}" in place.problem()
    place.mark.write_text("another run's")
    assert "does not see" in place.problem()
    place.mark.write_text("one")
    assert place.problem() == ""
    other = Place(mark=place.mark, word="one", versions={**versions(), "torch": "1.0"})
    assert "where 1.0 is here" in other.problem()


class Scripted:
    """Workers that do at once what the test says: "answers", "dies", "hangs" or "never starts"."""

    def __init__(self, post: Post, does: Callable[[int, int], str]) -> None:
        self.post, self.does = post, does
        self.ended: list[int] = []
        self.given: list[int] = []
        self.held: list[Message] = []
        self.last = 0

    def start(self) -> int:
        self.last += 1
        starts = self.does(self.last, -1) != "never starts"
        self.post(Ready(self.last) if starts else Lost(self.last, "said no word"))
        return self.last

    def give(self, worker: int, message: Message) -> None:
        node = message.metadata.dst_node_id - FIRST_NODE
        self.given.append(node)
        does = self.does(worker, node)
        reply = Answered(worker, Message(RecordDict(), reply_to=message))
        events: dict[str, list[Event]] = {
            "answers": [Stepped(worker, 1), reply],
            "dies": [Stepped(worker, 1), Lost(worker, "was ended by SIGKILL"), reply],
            "hangs": [],
        }
        for event in events[does]:
            self.post(event)

    def end(self, worker: int) -> None:
        self.ended.append(worker)

    def close(self) -> None:
        self.ended.append(0)

    def expect(self, message: Message) -> None:
        self.held.append(message)

    def release(self, message: Message) -> None:
        self.held.remove(message)


Play = Callable[..., WorkersGrid]


@pytest.fixture
def play() -> Iterator[Play]:
    """Sites with scripted workers: ``does(worker, site)`` says what a worker does of a site's order."""
    with ExitStack() as stack:

        def grid(
            does: Callable[[int, int], str] = lambda _w, _n: "answers", sites: int = 3, **more: object
        ) -> WorkersGrid:
            settings = {
                "workers": 2,
                "names": {FIRST_NODE + node: f"site-{node}" for node in range(sites)},
                "size": lambda _node, _kind: 1.0,
                "on_step": lambda _node, _step: None,
                "stop": threading.Event(),
                **more,
            }
            return stack.enter_context(WorkersGrid(lambda post: Scripted(post, does), Settings(**settings)))

        yield grid


def asked(grid: WorkersGrid, sites: int = 3) -> list[int]:
    """Ask every site, and take the replies in the roster's order: by whom they are."""
    identifiers = [*grid.push_messages([message(node) for node in range(sites)])]
    replies = [reply for name in identifiers for reply in grid.pull_messages([name])]
    assert [reply.metadata.reply_to_message_id for reply in replies] == identifiers[: len(replies)]
    return [reply.metadata.src_node_id - FIRST_NODE for reply in replies]


def test_replies_come_in_the_roster_s_order_and_nothing_is_held_on_to(play: Play) -> None:
    steps: list[tuple[int, int]] = []
    grid = play(on_step=lambda node, step: steps.append((node, step)), sites=9)
    assert asked(grid, 9) == list(range(9))
    assert asked(grid, 9) == list(range(9))
    assert {step for _, step in steps} <= {1}
    assert grid._crew.held == []
    assert [*grid.pull_messages(["of nobody"])] == []


def test_only_so_many_orders_are_begun_before_a_reply_is_taken(play: Play) -> None:
    grid = play(sites=40)
    identifiers = [*grid.push_messages([message(node) for node in range(40)])]
    for taken, name in enumerate(identifiers):
        assert len([*grid.pull_messages([name])]) == 1
        assert len(grid._crew.given) <= taken + 1 + 8
    assert sorted(grid._crew.given) == list(range(40))


def test_an_order_whose_worker_died_is_done_by_another(play: Play) -> None:
    grid = play(lambda worker, node: "dies" if worker <= 2 and node == 1 else "answers")
    assert asked(grid) == [0, 1, 2]
    assert 2 <= grid._crew.given.count(1) <= 3
    assert grid._crew.ended


def test_an_order_that_costs_one_worker_after_the_other_names_its_site(play: Play) -> None:
    grid = play(lambda _worker, node: "dies" if node == 1 else "answers")
    with pytest.raises(
        WorkerLost, match=r"site 'site-1': 3 workers were lost over its order 'train'.*SIGKILL"
    ):
        asked(grid)
    with pytest.raises(WorkerLost, match="site-1"):
        asked(grid)
    assert grid._crew.given.count(1) == 3


def test_workers_that_do_not_even_start_end_the_run(play: Play) -> None:
    grid = play(lambda _worker, _node: "never starts")
    with pytest.raises(WorkerLost, match="no worker can be started: said no word"):
        asked(grid)


def test_that_no_worker_becomes_ready_ends_the_run(play: Play) -> None:
    grid = play(workers=0, patience_seconds=0.0)
    with pytest.raises(WorkerLost, match="no worker was ready"):
        asked(grid)


def test_a_straggler_is_ended_and_its_order_done_elsewhere(play: Play) -> None:
    hung: list[int] = []

    def does(worker: int, node: int) -> str:
        if node != 2 or hung:
            return "answers"
        hung.append(worker)
        return "hangs"

    grid = play(does, slow_times=1e-9, slow_seconds=1e-9, workers=3)
    assert asked(grid) == [0, 1, 2]
    assert hung[0] in grid._crew.ended
    assert grid._crew.given.count(2) >= 2


def test_a_run_that_is_to_stop_waits_for_nobody(play: Play) -> None:
    stop = threading.Event()
    grid = play(lambda _worker, _node: "hangs", stop=stop)
    stop.set()
    assert asked(grid) == []


def test_what_nobody_waits_for_any_more_is_left(play: Play) -> None:
    grid = play()
    assert [*grid.send_and_receive([message(0), message(1)], timeout=-1.0)] == []
    assert grid._crew.held == []
    assert asked(grid) == [0, 1, 2]
