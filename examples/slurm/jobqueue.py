"""Fit a mixture on workers that dask-jobqueue submits to Slurm as jobs of their own.

    python jobqueue.py patches.zarr model.npz -k 16 --jobs 4

The fit itself runs here, on a machine from which jobs can be submitted and which they can reach. However it was
stopped, the same line again goes on from MODEL.ckpt, to the same bits. Needs ``pip install dask-jobqueue``.
"""

from __future__ import annotations

import argparse

from dask_jobqueue.slurm import SLURMCluster

from daskgmm import GaussianMixture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", help="path of a Zarr array that all nodes see")
    parser.add_argument("model", help="where to save the model")
    parser.add_argument("-k", type=int, default=16, help="number of components")
    parser.add_argument("--jobs", type=int, default=4, help="number of jobs, one worker in each")
    parser.add_argument("--cores", type=int, default=2, help="threads of each")
    parser.add_argument("--memory", default="4GiB", help="memory of each")
    parser.add_argument("--walltime", default="12:00:00", help="time limit of each; the fit survives their end")
    given = parser.parse_args()

    cluster = SLURMCluster(
        cores=given.cores, processes=1, memory=given.memory, walltime=given.walltime, job_name="daskgmm-worker"
    )
    with cluster, cluster.get_client():  # type: ignore[no-untyped-call]
        # Jobs that are lost are submitted again. No worker for daskgmm.timeouts.no-workers is an error:
        # where the queue is long, set DASK_DASKGMM__TIMEOUTS__NO_WORKERS to as long as you will wait.
        cluster.adapt(minimum_jobs=given.jobs, maximum_jobs=given.jobs)
        mixture = GaussianMixture(given.k, random_state=0, checkpoint=f"{given.model}.ckpt").fit(given.data)
    mixture.save(given.model)
    print(f"{mixture.n_iter_} iterations, mean log-likelihood {mixture.lower_bound_:.6f}")


if __name__ == "__main__":
    main()
