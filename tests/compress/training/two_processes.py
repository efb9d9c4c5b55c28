"""One of the processes that test_distributed starts: `two_processes.py JOBS`, run by torchrun.

JOBS is a JSON file of {"flags": […], "kill": null or a step}, one command line after the other. With "kill", process 1
is killed at that step of the first attempt. Everything is computed in f64.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from kerf.compress import cli
from kerf.compress.training import distributed
from tests.helpers.run_files import in_double

stop = distributed.stop
distributed.stop = lambda: None  # one start serves all jobs
torch.set_num_threads(1)
step = torch.optim.SGD.step


def killing(at: int):
    done = iter(range(1_000_000))

    def killed(self, *args):
        if next(done) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args)

    return killed


for job in json.loads(Path(sys.argv[1]).read_text()):
    first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    kills = job["kill"] is not None and first_attempt and os.environ["RANK"] == "1"
    torch.optim.SGD.step = killing(job["kill"]) if kills else step
    with in_double():
        code = cli.main(job["flags"])
    if code:
        raise SystemExit(code)
stop()
