"""An S3 server in this process, and what a client needs to reach it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def serving() -> Iterator[dict[str, Any]]:
    """Storage options for a server with the bucket "bucket"; skips where there is no moto or s3fs."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    s3fs = pytest.importorskip("s3fs")
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
        s3fs.S3FileSystem.clear_instance_cache()
