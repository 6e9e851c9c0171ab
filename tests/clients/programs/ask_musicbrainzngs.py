"""musicbrainzngs: listing, images by name and by id, a group, a release without art."""

import sys

import musicbrainzngs
from told import Task

task = Task()
musicbrainzngs.set_useragent("coverart-clients", "1", "coverart@example.org")
if "set" in sys.argv:
    scheme, _, place = task.base.partition("://")
    musicbrainzngs.set_caa_hostname(place, use_https=scheme == "https")
images = musicbrainzngs.get_image_list(task.release)["images"]
task.that("get_image_list", any(str(each["id"]) == task.image for each in images), len(images))
task.same("get_image_front", musicbrainzngs.get_image_front(task.release), "front")
task.same("get_image_front 500", musicbrainzngs.get_image_front(task.release, "500"), "front-500")
task.same(
    "get_image by id 250", musicbrainzngs.get_image(task.release, task.image, "250"), "front-250"
)
task.same("group's front", musicbrainzngs.get_release_group_image_front(task.group), "group")
try:
    musicbrainzngs.get_image_front(task.absent)
except musicbrainzngs.ResponseError as error:
    task.that("no art", error.cause.code == 404, error)
else:
    task.that("no art", False, "no error")
task.end()
