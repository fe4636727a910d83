"""Several processes, here with gloo on the CPU: the losses of one process, and a clean end when a peer dies."""

import os
import signal
import subprocess
import time

import pytest
from toy_run import QUIET, end_with, read_records, run, start, toy
from warm_python import as_rank, fork, free_port

from music2vec_hf.pretraining.loop import pretrain

TWELVE = {**QUIET, "max_steps": 12, "keep_last": 10}


def losses(output):
    names = ("step", "loss", "grad_norm", "target_rank")
    return [[record[name] for name in names] for record in read_records(output)]


def agree(ours, theirs):
    assert [row[0] for row in ours] == [row[0] for row in theirs]
    for row, reference in zip(ours, theirs, strict=True):
        assert row == pytest.approx(reference, rel=2e-4)


def start_two(corpus, output, **changes):
    port = free_port()
    return [start(corpus, output, {**TWELVE, **changes}, **as_rank(rank, port)) for rank in range(2)]


def wait_for_checkpoint(output):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (output / "checkpoint-2").exists():
        time.sleep(0.01)


@pytest.fixture(scope="module")
def one_process(toy_corpus, tmp_path_factory):
    return losses(pretrain(toy(**TWELVE), toy_corpus, tmp_path_factory.mktemp("one") / "run"))


def test_a_killed_peer_ends_the_run_and_resume_goes_on_with_the_losses_of_one(one_process, toy_corpus, tmp_path):
    output = tmp_path / "run"
    peers = start_two(toy_corpus, output)
    wait_for_checkpoint(output)
    peers[1].kill()
    peers[0].join(timeout=120)
    assert peers[0].exitcode not in (0, None)
    end_with(start_two(toy_corpus, output), 0)
    agree(losses(output), one_process)


def test_a_signal_to_one_process_stops_both_with_a_checkpoint(toy_corpus, tmp_path):
    output = tmp_path / "run"
    peers = start_two(toy_corpus, output)
    wait_for_checkpoint(output)
    os.kill(peers[1].pid, signal.SIGTERM)
    end_with(peers, 75)


# Each is trained by the same two processes, one after another.
WAYS = {
    "fixed front end": {"feature_grad_mult": 0.0},
    "fixed, recomputed": {"feature_grad_mult": 0.0, "gradient_checkpointing": True, "max_seconds_per_device": 1.0},
    "two masks": {"gradient_checkpointing": True, "masks_per_crop": 2, "feature_grad_mult": 0.1},
}
OTHERS = {
    "layerdrop": {"layerdrop": 0.5, "max_seconds_per_device": 1.0},
    "layerdrop, recomputed": {"layerdrop": 0.5, "max_seconds_per_device": 1.0, "gradient_checkpointing": True},
    "compressed": {"gradient_compression": "bf16", "max_steps": 12},
}
SHORT = {**TWELVE, "max_steps": 3}


def train_all(corpus, folder, rank, ports):
    for (name, changes), port in zip({**WAYS, **OTHERS}.items(), ports, strict=True):
        run(corpus, f"{folder}/{name}", {**SHORT, **changes}, None, as_rank(rank, port))


@pytest.fixture(scope="module")
def two_processes(toy_corpus, tmp_path_factory):
    """The folder of all those runs."""
    folder, ports = tmp_path_factory.mktemp("two"), [free_port() for _ in (*WAYS, *OTHERS)]
    end_with([fork(train_all, str(toy_corpus), folder, rank, ports) for rank in range(2)], 0)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train_has_the_losses_of_one_process(way, two_processes, toy_corpus, tmp_path):
    one = pretrain(toy(**SHORT, **WAYS[way]), toy_corpus, tmp_path / "one")
    agree(losses(two_processes / way), losses(one))


@pytest.mark.parametrize("way", ["layerdrop", "layerdrop, recomputed"])
def test_layers_may_be_left_out_on_one_process_and_not_on_the_other(way, two_processes):
    rows = losses(two_processes / way)
    assert len(rows) == 3 and all(0 < row[1] < 100 and row[2] > 0 for row in rows)


def test_compressed_gradients_are_those_of_one_process_but_for_bf16_rounding(two_processes, one_process):
    """Two roundings: of each process' gradient and of their sum."""
    ours = losses(two_processes / "compressed")
    assert ours[0][1] == pytest.approx(one_process[0][1], rel=1e-5)  # the loss before the first update
    assert ours[0][2] == pytest.approx(one_process[0][2], rel=2**-8)
    assert ours[0][2] != pytest.approx(one_process[0][2], rel=1e-6)  # it did round
    for row, reference in zip(ours, one_process, strict=True):
        assert row[1] == pytest.approx(reference[1], rel=2**-8)


def _ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a virtual cable, 10.77.0.1 and 10.77.0.2."""
    names = [f"m2v{os.getpid()}{end}" for end in "ab"]
    try:
        made = _ip("netns", "add", names[0])
    except FileNotFoundError:
        pytest.skip("there is no `ip` command to make network namespaces with")
    if made.returncode:
        pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
    try:
        _ip("netns", "add", names[1])
        cable = _ip("link", "add", "v0", "netns", names[0], "type", "veth", "peer", "name", "v0", "netns", names[1])
        if cable.returncode:
            pytest.skip(f"virtual cables cannot be made here: {cable.stderr.strip()}")
        for number, name in enumerate(names, 1):
            _ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "v0")
            _ip("-n", name, "link", "set", "v0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            _ip("netns", "del", name)


def test_two_hosts_have_the_losses_of_one(two_hosts, one_process, toy_corpus, tmp_path):
    output, cable = tmp_path / "run", {"GLOO_SOCKET_IFNAME": "v0"}
    peers = [
        start(toy_corpus, output, TWELVE, host, **as_rank(rank, 29_500, "10.77.0.1"), **cable)
        for rank, host in enumerate(two_hosts)
    ]
    end_with(peers, 0)
    agree(losses(output), one_process)
