"""The mathematics: NumPy, SciPy and Numba, testable without Dask."""
