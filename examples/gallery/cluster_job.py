"""
A cluster job that is disturbed
===============================

On a cluster, a fit is three commands: a scheduler, its workers, and the fit itself. Machines of a
cluster are lost, and jobs end at their time limit. Here both happen to one fit, on purpose; the
result is the same to the last bit.
"""

# %%
# The three commands
# ------------------
# On a real cluster the second line runs on each node, under Slurm, Kubernetes or by hand
# (``examples/slurm/fit.sbatch`` and ``examples/kubernetes/fit.yaml`` are complete). The scheduler
# writes into a file where it is; all nodes see that file, the rows and the checkpoint.

import atexit
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import zarr
from matplotlib import pyplot

import daskgmm

SCHEDULER = "dask scheduler --scheduler-file scheduler.json --port 0 --no-dashboard"
WORKER = "dask worker --scheduler-file scheduler.json --nthreads 1 --no-nanny --no-dashboard --death-timeout 120"
FIT = (
    "daskgmm fit rows.zarr -k 4 --tol 1e-5 --init-params random_from_data --seed 0 --out model.npz "
    "--checkpoint fit.ckpt --scheduler-file scheduler.json --verbose"
)
N = 20_000 if os.environ.get("DASKGMM_EXAMPLES") == "small" else 1_000_000

stack = ExitStack()
atexit.register(stack.close)  # whatever happens: nothing is left behind
folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))


def start(command: str, told: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """Start one of the commands in the folder; what it tells goes nowhere, or to a pipe."""
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-m", *command.split()]
    process = subprocess.Popen(words, cwd=folder, env=where, stdout=subprocess.DEVNULL, stderr=told, text=True)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


# %%
# Rows
# ----
# Four clusters that overlap, in a Zarr store of ten chunks.

random = np.random.default_rng(0)
means = random.normal(scale=2.0, size=(4, 4))
rows = means[random.integers(4, size=N)] + random.normal(size=(N, 4))
zarr.create_array(folder / "rows.zarr", data=rows, chunks=(N // 10, 4))

start(SCHEDULER)
workers = [start(WORKER) for _ in range(2)]

# %%
# A worker is lost, and then the job
# ----------------------------------
# After the fifth iteration one worker is killed as a lost node would be. The other one takes over
# its blocks. After the tenth the job itself gets the signal that Slurm sends before the time limit.
# It ends with exit code 5, which says: the same command goes on from the checkpoint.

reached: list[tuple[int, int, float]] = []  # job, iteration, when


def follow(number: int, job: subprocess.Popen[str]) -> int:
    """Write down when the iterations of a job end, and disturb it; its exit code."""
    assert job.stderr is not None
    for line in job.stderr:
        if found := re.match(r"iteration (\d+)", line):
            iteration = int(found[1])
            reached.append((number, iteration, time.perf_counter()))
            if iteration == 5:
                workers[0].kill()
            if iteration == 10 and number == 1:
                job.send_signal(signal.SIGTERM)
    return job.wait()


codes = [follow(number, start(FIT, subprocess.PIPE)) for number in (1, 2)]
for number, code in enumerate(codes, start=1):
    iterations = [iteration for job, iteration, _ in reached if job == number]
    print(f"job {number}: iterations {iterations[0]} to {iterations[-1]}, exit code {code}")

# %%
# The same bits
# -------------
# The same fit, undisturbed, on the threads of this process. The blocks are the same, and so is the
# order in which their sums are added: so is every bit of the model.

model = daskgmm.load(folder / "model.npz")
undisturbed = daskgmm.GaussianMixture(4, tol=1e-5, init_params="random_from_data", random_state=0)
undisturbed.fit(folder / "rows.zarr")
same = all(np.array_equal(getattr(model, name), getattr(undisturbed, name)) for name in ("means_", "covariances_"))
print(f"{model.n_iter_} iterations, mean log-likelihood {model.lower_bound_:.9f}")
print(f"bit for bit as without a cluster: {same}")
stack.close()

began = reached[0][2]
figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
for number, colour in ((1, "#0072b2"), (2, "#d55e00")):
    own = [(seconds - began, iteration) for job, iteration, seconds in reached if job == number]
    axes.plot(*np.transpose(own), ".-", color=colour, label=f"job {number}")
for iteration, text in ((5, "a worker is killed"), (10, "the job is stopped")):
    (seconds,) = (
        seconds for job, reached_iteration, seconds in reached if (job, reached_iteration) == (1, iteration)
    )
    axes.annotate(
        text, (seconds - began, iteration), (30, -22), textcoords="offset points", arrowprops={"arrowstyle": "->"}
    )
axes.set(xlabel="seconds since the first iteration", ylabel="EM iteration", title="one fit, two jobs")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
pyplot.show()
