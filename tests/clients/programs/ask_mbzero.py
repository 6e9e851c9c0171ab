"""mbzero: listing, image, HEAD (which does not follow), a release without art."""

import json
import sys

from mbzero.caarequest import CaaRequest
from mbzero.mbzerror import MbzWebServiceError
from told import Task

task = Task()


def request(*arguments):
    made = CaaRequest("coverart-clients/1 ( coverart@example.org )", *arguments)
    if "set" in sys.argv:
        made.set_url(task.base)
    return made


images = json.loads(request("release", task.release).send())["images"]
task.that("listing", bool(images), len(images))
task.same("front-500", request("release", task.release, "front-500").send(), "front-500")
task.same("group's front", request("release-group", task.group, "front").send(), "group")
task.that("HEAD", request("release", task.release, "front").send(head=True) == b"", "no body")
try:
    request("release", task.absent).send()
except MbzWebServiceError as error:
    task.that("no art", "404" in str(error), error)
else:
    task.that("no art", False, "no error")
task.end()
