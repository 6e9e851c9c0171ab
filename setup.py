"""Says which Python is needed before pip looks for packages that an older one can't have."""

import sys

from setuptools import setup

if sys.version_info < (3, 11):  # noqa: UP036 - older ones run this file too
    sys.exit("coverart needs Python 3.11 or later, this is {}.{}".format(*sys.version_info))

setup()
