"""What a failed connection is called."""

from OpenSSL.SSL import Error as TLSError
from twisted.internet import error as errors
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseNeverReceived

from coverart.archive.connect_errors import kind_of


class KindTests(SynchronousTestCase):
    def test_kinds(self) -> None:
        """Each by RFC 9209; what is none of a connection by nobody."""
        lost = Failure(errors.ConnectionLost())
        certificate = TLSError([("SSL routines", "", "certificate verify failed")])
        for error, kind in (
            (errors.DNSLookupError(), "dns_error"),
            (errors.ConnectionRefusedError(), "connection_refused"),
            (errors.NoRouteError(), "destination_ip_unroutable"),
            (errors.TCPTimedOutError(), "connection_timeout"),
            (errors.TimeoutError(), "connection_timeout"),
            (errors.ConnectError(), "destination_unavailable"),
            (ResponseNeverReceived([lost]), "connection_terminated"),
            (ResponseNeverReceived([lost, Failure(certificate)]), "tls_certificate_error"),
            (ResponseNeverReceived([Failure(TLSError([]))]), "tls_protocol_error"),
            (DeferredTimeout(), None),
            (ValueError(), None),
        ):
            with self.subTest(error=error):
                self.assertEqual(kind_of(error), kind)
