"""The recipe through `ray job submit`: do the variables of the runtime environment arrive, who chooses the threads?

  check_recipe.py QUATRAIN     with the Python of .deps/ray, whose `ray` is used
"""

import glob
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tests"))
from checks import check, finish  # noqa: E402

RAY = str(pathlib.Path(sys.executable).parent / "ray")
SCRIPT = ROOT / "examples" / "run-tiny-qwen3-moe-int4.sh"
FAMILY = "OPEN_TRAINING_"
# What the user of a recipe may have set must not be what the job sees.
CLEAN = {name: value for name, value in os.environ.items()
         if not name.startswith((FAMILY, "RAY_")) and name not in ("RAY", "OMP_NUM_THREADS", "TENSORBOARD_DIR")}

START_SECONDS = 180
SKIPPED = 77


def give_up(reason, log):
    """A machine on which Ray itself does not run says nothing about us; a failure only where the test was asked for by name."""
    print(log[-3000:], flush=True)
    if os.environ.get("RAY") == "1":
        sys.exit(f"ray: {reason}")
    print(f"ray: skipped: {reason} on this machine", flush=True)
    sys.exit(SKIPPED)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Head:
    """A Ray head on loopback, with dashboard and job submission, that ends with the block."""

    def __init__(self, folder):
        gcs, self.port = free_ports(2)
        self.address = f"http://127.0.0.1:{self.port}"
        self.log_path = folder / "head.log"
        command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}",
                   "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.port}",
                   "--num-cpus=1", "--disable-usage-stats", f"--temp-dir={folder / 'r'}"]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, env=CLEAN, stdout=log, stderr=subprocess.STDOUT,
                                            start_new_session=True)

    def __enter__(self):
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(self.address + "/api/version", timeout=5) as answer:
                    print(f"ray: head is up, version {json.load(answer)['ray_version']}", flush=True)
                    return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    give_up("the head did not start", self.log_path.read_text())
                # Not a wait for something to happen by itself: the next attempt asks again.
                try:
                    self.process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    pass

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def submit(command, environment):
    result = subprocess.run(command, env=environment, cwd=ROOT, check=False, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return result.returncode, re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)


def check_recipe(head, quatrain, folder):
    environment = dict(CLEAN, QUATRAIN=quatrain, RUN_DIR=str(folder / "run"), NUM_ROLLOUT="1",
                       RAY_ADDRESS=head.address, PATH=f"{pathlib.Path(RAY).parent}:{CLEAN['PATH']}",
                       TRAIN_FLAGS="--use-tensorboard")
    status, text = submit(["bash", str(SCRIPT)], environment)
    check(status == 0 and "succeeded" in text, "the recipe's job succeeds", f"exit {status}\n{text[-2500:]}")
    configuration = next((line for line in text.splitlines() if "configuration:" in line), text)
    check("OPEN_TRAINING_INT4_FAKE_QAT_FLAG=1" in configuration and "OPEN_TRAINING_INT4_GROUP_SIZE=32" in configuration,
          "both variables arrived through the runtime environment and are reported", configuration)
    check("OMP_NUM_THREADS=1 is not heeded" in text, "Ray's OMP_NUM_THREADS=1 is seen and not heeded",
          next((line for line in text.splitlines() if "threads:" in line), text))
    threads = re.search(r"(\d+) of them quantised as ([^;]+); (\d+) threads", text)
    cpus = len(os.sched_getaffinity(0))
    check(threads is not None and int(threads[3]) == cpus, f"all {cpus} CPUs are used and the count is printed",
          threads and threads[0])
    check(threads is not None and int(threads[1]) > 0 and "g32" in threads[2],
          "the variables switched quantisation on, in groups of 32", threads and threads[0])
    run = folder / "run" / "train"
    saved = json.loads((run / "config.json").read_text())
    check(saved.get("OPEN_TRAINING_INT4_GROUP_SIZE") == 32, "the run's config.json holds them", saved)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "train/code_flip_rate" in row]
    check(len(trained) == 1 and trained[0]["train/train_rollout_logprob_abs_diff"] == 0,
          "one rollout was trained on, and trainer and rollout agree exactly", rows[-1])
    return run, rows


def check_refusal(head, quatrain, folder):
    """Another group size in the runtime environment is refused, so it is what decided above."""
    variables = {"OPEN_TRAINING_INT4_FAKE_QAT_FLAG": "1", "OPEN_TRAINING_INT4_GROUP_SIZE": "64"}
    command = [RAY, "job", "submit", f"--address={head.address}",
               "--runtime-env-json=" + json.dumps({"env_vars": variables}), "--", quatrain, "train",
               "--hf-checkpoint", str(folder / "run" / "int4"), "--ref-load", str(ROOT / "examples/models/tiny-qwen3-moe"),
               "--save", str(folder / "other"), "--prompt-data", str(ROOT / "examples/data/arithmetic/train.jsonl"),
               "--input-key", "prompt", "--label-key", "label", "--num-rollout", "1", "--rollout-batch-size", "1"]
    status, text = submit(command, CLEAN)
    check(status != 0 and "64" in text and "32" in text and "error" in text,
          "a group size that is not the checkpoint's is refused with both numbers", f"exit {status}\n{text[-2000:]}")


def check_tensorboard(run, rows):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(glob.glob(str(run / "tensorboard" / "*"))[0])
    events.Reload()
    wrong = []
    for row in rows:
        for name, value in row.items():
            if name == "rollout" or not isinstance(value, (int, float)):
                continue
            found = [event.value for event in events.Scalars(name) if event.step == row["rollout"]]
            if len(found) != 1 or abs(found[0] - value) > 1e-6 * abs(value):
                wrong.append((name, row["rollout"], value, found))
    check(not wrong and len(events.Tags()["scalars"]) > 20, "TensorBoard reads every number of metrics.jsonl", wrong[:5])


def main():
    quatrain = str(pathlib.Path(sys.argv[1]).resolve())
    folder = pathlib.Path(tempfile.mkdtemp(prefix="qtray", dir="/tmp"))  # short: Ray's sockets lie in it
    try:
        with Head(folder) as head:
            status, text = submit([RAY, "job", "submit", f"--address={head.address}", "--", "true"], CLEAN)
            if status != 0:
                give_up("a job of nothing but `true` fails", text)
            run, rows = check_recipe(head, quatrain, folder)
            check_refusal(head, quatrain, folder)
        check_tensorboard(run, rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    finish("ray")


if __name__ == "__main__":
    main()
