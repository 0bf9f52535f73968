"""Where a command's passes run: threads of this process, or the workers of a Dask scheduler."""

import atexit
import gc
import inspect
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import click
import dask
from dask.utils import parse_timedelta
from distributed import Client, LocalCluster
from distributed.comm.addressing import get_address_host_port, parse_address
from distributed.security import Security

from daskgmm.cli.failure import handled, say
from daskgmm.cli.options import Decorator, together
from daskgmm.compute.cluster import check_package, workers
from daskgmm.errors import ClusterLostError


def _time(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A duration, such as "30s"; kept as written."""
    if value is not None:
        try:
            parse_timedelta(value)
        except (KeyError, ValueError):
            raise click.BadParameter(f"{value!r} is no duration, such as 30s.", ctx, param) from None
    return value


FILE = click.Path(exists=True, dir_okay=False)

# The options about TLS have the names that `dask scheduler` and `dask worker` give them.
_each: Decorator[Any] = together(
    click.option("--scheduler", metavar="ADDRESS", help="Run on the workers of this Dask scheduler."),
    click.option(
        "--scheduler-file", metavar="FILE", help="The same, found in the file that `dask scheduler` wrote."
    ),
    click.option(
        "--local", metavar="N", type=click.IntRange(1), help="Run on N worker processes, started for the command."
    ),
    click.option("--tls-ca-file", type=FILE, help="CA certificate(s) of the cluster, in PEM format."),
    click.option("--tls-cert", type=FILE, help="Own certificate, in PEM format."),
    click.option("--tls-key", type=FILE, help="Own private key, in PEM format."),
    click.option(
        "--scheduler-timeout",
        metavar="TIME",
        callback=_time,
        help="How long a scheduler may be silent, such as 30s.  [default: 1 minute]",
    ),
    click.option(
        "--no-workers-timeout",
        metavar="TIME",
        callback=_time,
        help="How long there may be no worker.  [default: 5 minutes]",
    ),
)


@contextmanager
def running(
    scheduler: str | None,
    scheduler_file: str | None,
    local: int | None,
    tls_ca_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    scheduler_timeout: str | None,
    no_workers_timeout: str | None,
) -> Iterator[None]:
    """The client that the options ask for, as the current one, which is told; none leaves threads."""
    timeouts = {"scheduler": scheduler_timeout, "no-workers": no_workers_timeout}
    tls = {"tls_ca_file": tls_ca_file, "tls_client_cert": tls_cert, "tls_client_key": tls_key}
    given = {f"daskgmm.timeouts.{name}": value for name, value in timeouts.items() if value is not None}
    _check([scheduler, scheduler_file, local], any(tls.values()), bool(given))
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(given))
        if local is not None:
            # Ctrl-C reaches all processes of a terminal, but is for this one, which ends the others.
            with handled(signal.SIGINT, signal.SIG_IGN):
                cluster = LocalCluster(n_workers=local, threads_per_worker=1, dashboard_address=":0")
            stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster, set_as_default=False))
            # As a process ends, Python looks for garbage in all that Numba made: for longer than Dask waits.
            client.run(atexit.register, gc.freeze)
        elif scheduler is not None or scheduler_file is not None:
            client = stack.enter_context(_connected(scheduler, scheduler_file, tls))
        else:
            yield
            return
        stack.enter_context(client.as_current())
        check_package(client)
        found = workers(client).values()
        threads = sum(worker["nthreads"] for worker in found)
        say(f"Workers: {len(found)}, threads: {threads}.{_dashboard(client)}")
        yield


# What a scheduler has imported that shows a dashboard, and one that cannot.
DASHBOARDS = ("distributed.dashboard.scheduler", "distributed.http.scheduler.missing_bokeh")


def _dashboard(client: Client) -> str:
    """Where the dashboard is, or why there is none; nothing for a scheduler that was asked for none."""
    with suppress(Exception):  # it may let nobody ask
        shows, cannot = client.run_on_scheduler(eval, f"[m in __import__('sys').modules for m in {DASHBOARDS}]")
        if shows:
            return f" Dashboard: {client.dashboard_link}"
        if cannot:
            return " No dashboard: the scheduler needs bokeh for it (pip install bokeh)."
    return ""


def _check(places: list[Any], tls: bool, timeouts: bool) -> None:
    """Refuse options that do not go together."""
    there = [place is not None for place in places]
    if sum(there) > 1:
        raise click.UsageError("Give one of --scheduler, --scheduler-file and --local.")
    if tls and not any(there[:2]):
        raise click.UsageError("The options about TLS need --scheduler or --scheduler-file.")
    if timeouts and not any(there):
        raise click.UsageError("--scheduler-timeout and --no-workers-timeout need a cluster.")


NAMES = tuple(inspect.signature(running).parameters)


def options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say where a command's passes run; it gets them as one dict, ``where``, for `running`."""

    @wraps(command)
    def gathered(**given: Any) -> None:
        command(where={name: given.pop(name) for name in NAMES}, **given)

    found: Callable[..., None] = _each(gathered)
    return found


def _connected(address: str | None, file: str | None, tls: dict[str, str | None]) -> Client:
    """A client of a scheduler that is there."""
    timeout = parse_timedelta(dask.config.get("daskgmm.timeouts.scheduler", "1 minute"))
    place = address if file is None else _found(file, timeout)
    assert place is not None
    security = _security(place, tls)
    try:
        return Client(place, security=security, timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        found = f"{place}, the address in {file}" if file is not None else place
        told = f"No Dask scheduler answers at {found}: {str(error) or type(error).__name__}."
        hint = "If it uses TLS, its address begins with tls://, and it needs --tls-ca-file, --tls-cert, --tls-key."
        if _encrypted(place):
            hint = "If it uses no TLS, its address begins with tcp://. Or it does not know the certificates."
        raise ClusterLostError(f"{told} {hint}") from error


def _found(file: str, timeout: float) -> str:
    """The address in a scheduler file, once it is there."""
    began = time.monotonic()
    while True:  # Dask itself would wait for ever
        try:
            return str(json.loads(Path(file).read_text())["address"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # it may be half written
            pass
        except OSError as error:
            raise click.UsageError(f"The scheduler file cannot be read: {error}.") from error
        if time.monotonic() - began > timeout:
            raise ClusterLostError(f"No Dask scheduler has written the file {file} within {timeout:g} s.")
        time.sleep(0.1)


def _security(address: str, tls: dict[str, str | None]) -> Security:
    """What the connection needs; refuses an address and TLS options that do not go together."""
    given = {name: value for name, value in tls.items() if value is not None}
    # Dask's configuration has what is not given.
    security = Security(**given, **({"require_encryption": True} if given else {}))
    try:
        get_address_host_port(address)
    except ValueError as error:
        raise click.UsageError(f"The address {address} cannot be used: {error}.") from error
    try:
        context = security.get_connection_args("client")["ssl_context"] if _encrypted(address) else None
    except OSError as error:  # OpenSSL's own words name no file
        given_as = (str(getattr(security, name) or "") for name in tls)
        files = ", ".join(place for place in given_as if place and "\n" not in place)  # no key's own text
        raise click.UsageError(
            f"The files for TLS cannot be used: {error}. They are {files}; each has to be in PEM format, and "
            "the key to belong to the certificate."
        ) from error
    if _encrypted(address) and context is None:
        raise click.UsageError(f"{address} uses TLS: give --tls-ca-file, --tls-cert and --tls-key.")
    if security.require_encryption and not _encrypted(address):
        raise click.UsageError(
            f"{address} would not be encrypted, and the options about TLS, or Dask's configuration, ask for that. "
            "The address of a scheduler with TLS begins with tls://."
        )
    return security


def _encrypted(address: str) -> bool:
    return parse_address(address)[0] in ("tls", "wss")
