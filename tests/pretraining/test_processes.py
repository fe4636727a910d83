"""Several processes, here with gloo on the CPU: the losses of one process, and a clean end when a peer dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from music2vec_hf import Music2VecModel

HERE = Path(__file__).parent


def losses(output):
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"], record["grad_norm"], record["target_rank"]) for record in records]


def launch(corpus, output, rank, port, processes=2, host="127.0.0.1", prefix=(), changes=None, **variables):
    """One process of a run of `toy_processes`, as torchrun would start it."""
    environment = {
        **os.environ, "PYTHONPATH": str(HERE), "RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": host,
        "MASTER_PORT": str(port), "LOCAL_RANK": "0", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        **variables,
    }  # fmt: skip
    command = [*prefix, sys.executable, "-m", "toy_processes", str(corpus), str(output), json.dumps(changes or {})]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def one_process(toy_corpus, tmp_path_factory):
    from toy_processes import run

    return losses(run(toy_corpus, tmp_path_factory.mktemp("one") / "run"))


def launch_two(corpus, output, **variables):
    port = free_port()
    return [launch(corpus, output, rank, port, **variables) for rank in range(2)]


def wait_for_checkpoint(output):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (output / "checkpoint-2").exists():
        time.sleep(0.01)


def end_with(peers, returncode):
    """Wait for the processes, and check that each ended with `returncode`."""
    said = [peer.communicate(timeout=240)[0] for peer in peers]
    assert [peer.returncode for peer in peers] == [returncode] * len(peers), said


def agree(ours, theirs):
    assert [row[0] for row in ours] == [row[0] for row in theirs]
    for row, reference in zip(ours, theirs, strict=True):
        assert row == pytest.approx(reference, rel=2e-4)


def test_two_processes_have_the_losses_of_one(one_process, toy_corpus, tmp_path):
    end_with(launch_two(toy_corpus, tmp_path / "run"), 0)
    agree(losses(tmp_path / "run"), one_process)


def test_a_killed_peer_ends_the_run_and_resume_goes_on(one_process, toy_corpus, tmp_path):
    output = tmp_path / "run"
    peers = launch_two(toy_corpus, output)
    wait_for_checkpoint(output)
    peers[1].send_signal(signal.SIGKILL)
    said = peers[0].communicate(timeout=120)[0]
    peers[1].communicate()
    assert peers[0].returncode not in (0, None), said
    end_with(launch_two(toy_corpus, output), 0)
    agree(losses(output), one_process)


def test_a_signal_to_one_process_stops_both_with_a_checkpoint(toy_corpus, tmp_path):
    output = tmp_path / "run"
    peers = launch_two(toy_corpus, output)
    wait_for_checkpoint(output)
    peers[1].send_signal(signal.SIGTERM)
    end_with(peers, 75)


# What `accelerate launch` sets from a configuration with `distributed_type: FSDP`.
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def test_two_processes_in_shards_have_the_losses_of_one(one_process, toy_corpus, tmp_path):
    end_with(launch_two(toy_corpus, tmp_path / "run", **FSDP2), 0)
    agree(losses(tmp_path / "run"), one_process)
    model, report = Music2VecModel.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not report["missing_keys"] and model.config.architectures == ["Music2VecForPreTraining"]


@pytest.mark.parametrize("changes", [{"layerdrop": 0.5}, {"precision": "fp16"}])
def test_shards_train_as_copies_do(changes, toy_corpus, tmp_path):
    """Also where LayerDrop skips other layers on one process than on the other, and over micro-batches."""
    changes = {**changes, "max_seconds_per_device": 1.0, "max_steps": 4}
    for name, variables in (("copies", {}), ("shards", FSDP2)):
        end_with(launch_two(toy_corpus, tmp_path / name, changes=changes, **variables), 0)
    agree(losses(tmp_path / "shards"), losses(tmp_path / "copies"))


def test_compressed_gradients_are_those_of_one_process_but_for_bf16_rounding(one_process, toy_corpus, tmp_path):
    """Two roundings: of each process' gradient and of their sum."""
    changes = {"gradient_compression": "bf16", "max_steps": 12}
    end_with(launch_two(toy_corpus, tmp_path / "run", changes=changes), 0)
    ours = losses(tmp_path / "run")
    assert ours[0][1] == pytest.approx(one_process[0][1], rel=1e-5)  # the loss before the first update
    assert ours[0][2] == pytest.approx(one_process[0][2], rel=2**-8)
    assert ours[0][2] != pytest.approx(one_process[0][2], rel=1e-6)  # it did round
    for row, reference in zip(ours, one_process, strict=True):
        assert row[1] == pytest.approx(reference[1], rel=2**-8)


@pytest.mark.parametrize("first_in_shards", [True, False])
def test_a_run_goes_on_with_and_without_shards(first_in_shards, one_process, toy_corpus, tmp_path):
    output = tmp_path / "run"
    peers = launch_two(toy_corpus, output, **(FSDP2 if first_in_shards else {}))
    wait_for_checkpoint(output)
    for peer in peers:
        peer.send_signal(signal.SIGTERM)
    end_with(peers, 75)
    end_with(launch_two(toy_corpus, output, **({} if first_in_shards else FSDP2)), 0)
    agree(losses(output), one_process)


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
    peers = [
        launch(
            toy_corpus,
            tmp_path / "run",
            rank,
            29_500,
            host="10.77.0.1",
            prefix=("ip", "netns", "exec", name, "env", "GLOO_SOCKET_IFNAME=v0"),
        )
        for rank, name in enumerate(two_hosts)
    ]
    end_with(peers, 0)
    agree(losses(tmp_path / "run"), one_process)
