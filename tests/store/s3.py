"""An S3 server in this process, and what a client needs to reach it."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from unittest.mock import patch

import pytest


@contextmanager
def serving() -> Iterator[dict[str, Any]]:
    """Storage options for a server with the bucket "bucket"; skips where there is no moto or s3fs."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    s3fs = pytest.importorskip("s3fs")
    application = pytest.importorskip("moto.moto_server.werkzeug_app").DomainDispatcherApplication
    handle, alone = application.__call__, Lock()

    def handled_alone(*request: Any) -> Any:
        """moto looks whether an object is there before it puts one, and another request may come between."""
        with alone:
            return handle(*request)

    served = patch.object(application, "__call__", handled_alone)
    served.start()
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {
            "key": "testing",
            "secret": "testing",
            "endpoint_url": f"http://{host}:{port}",
        }
        boto3 = pytest.importorskip("boto3")
        known = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=options["endpoint_url"], **known).create_bucket(Bucket="bucket")
        yield options
    finally:
        server.stop()
        served.stop()
        s3fs.S3FileSystem.clear_instance_cache()
