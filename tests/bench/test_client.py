import socket
import ssl

import pytest

from arriero.bench.client import failure


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "name or service not known"),
        (ssl.SSLCertVerificationError(1, "certificate has expired"), "certificate has expired"),
        (ConnectionResetError("connection lost"), "connection lost"),
    ],
)
def test_failures_of_a_kind_are_told_in_the_same_words(error, words):
    assert words in failure(error)
