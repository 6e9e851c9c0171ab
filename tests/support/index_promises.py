"""
What every index promises, written once: PROMISES are run over each kind of index.

A promise takes an empty index whose clock is clock(). Times lie in the far future, so that an
index which lets things expire by itself keeps them.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeAlias

import attrs
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, gatherResults

from coverart.index.base import Index, Seen, Stored
from coverart.index.codec import pack_seen
from coverart.model import (
    ORIGINAL,
    SIZES,
    Absence,
    Alias,
    AliasKey,
    Entity,
    FileEntry,
    FileKey,
    Found,
    ImageKey,
    ImageRef,
    ImageRequest,
    ListingKey,
    MediaType,
    Subject,
    Target,
)
from tests.support.strategies import MBID, OTHER_MBID

Promise: TypeAlias = Callable[[Index], Awaitable[None]]
PROMISES: list[Promise] = []

NOW = 4_000_000_000.0


def clock() -> float:
    """The time of day of the index: after all that a promise puts into it."""
    return NOW + 1000


REF = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=7)
OTHER = ImageRef(owner=Entity.RELEASE, mbid=OTHER_MBID, image_id=8)
OWN = REF.own_name
FRONT = AliasKey(entity=Entity.RELEASE, mbid=MBID, name="front")
BACK = AliasKey(entity=Entity.RELEASE, mbid=MBID, name="back")
GROUP = AliasKey(entity=Entity.RELEASE_GROUP, mbid=OTHER_MBID, name="front")
MERGED = AliasKey(entity=Entity.RELEASE, mbid=OTHER_MBID, name=7)
LISTING = ListingKey(entity=Entity.RELEASE, mbid=MBID)
GONE = Absence(since=NOW, until=NOW + 100)
ALIAS = Alias(target=Target(ref=REF, extension="png"), checked_at=NOW)


def promise(function: Promise) -> Promise:
    """Take a promise into the suite."""
    PROMISES.append(function)
    return function


def packed(*things: Seen) -> dict[bytes, bytes]:
    """What an index holds of things."""
    return dict(pack_seen(thing) for thing in things)


async def held(index: Index, mbid: str) -> dict[bytes, bytes]:
    """What an index knows of the slice of an MBID."""
    return await index.slice_packed(int(mbid[:3], 16))


async def learn(index: Index, seen: Iterable[Seen]) -> None:
    """Tell an index what lies on the disk."""
    await index.learn_packed([pack_seen(thing) for thing in seen])


def entry(size_bytes: int = 10, stored_at: float = NOW) -> FileEntry:
    """A JPEG."""
    return FileEntry(size_bytes=size_bytes, stored_at=stored_at, media=MediaType.JPEG)


def request(alias: AliasKey, size: int = 250) -> ImageRequest:
    """A request for one size."""
    return ImageRequest(alias=alias, size=size)


def equal(found: object, expected: object) -> None:
    """Both, where they differ."""
    assert found == expected, f"{found!r} is not {expected!r}"


@promise
async def empty_knows_nothing(index: Index) -> None:
    """An empty index finds nothing and holds nothing."""
    equal(await index.find_image(request(FRONT)), Found())
    equal(await index.find_image(request(OWN)), Found())
    equal(await index.find_listing(LISTING), Found())
    totals = await index.totals()
    equal((totals.size_bytes, totals.files, totals.oldest), (0, 0, None))
    equal((sum(totals.by_entity.values()), sum(totals.aliases.values())), (0, 0))
    assert totals.absences in (0, None)
    equal(await index.first_to_evict(10), [])
    assert index.kind
    assert index.available


@promise
async def file_under_its_own_name(index: Index) -> None:
    """An image is found by its own name as soon as it is put, in its size alone."""
    await index.put_file(REF.at(250), entry())
    found = await index.find_image(request(OWN, 250))
    equal(found, Found(key=REF.at(250), entry=entry(), target=Target(ref=REF)))
    other = await index.find_image(request(OWN, 500))
    equal(other, Found(target=Target(ref=REF)))
    equal(await index.find_image(request(FRONT)), Found())


@promise
async def original_tells_the_extension(index: Index) -> None:
    """Any size proves where an image lives; only the original tells its extension."""
    await index.put_file(
        REF.at(ORIGINAL), FileEntry(size_bytes=9, stored_at=NOW, media=MediaType.PNG)
    )
    found = await index.find_image(request(OWN, 1200))
    equal(found, Found(target=Target(ref=REF, extension="png")))


@promise
async def many_at_once(index: Index) -> None:
    """Of many who ask at the same moment, each learns about its own thing."""
    refs = [attrs.evolve(REF, image_id=number) for number in range(1, 251)]
    held = refs[::2]
    for ref in held:
        await index.put_file(ref.at(250), entry(10 + ref.image_id))
    await index.put_absence(refs[1].own_name, GONE)
    found = await gatherResults(
        Deferred.fromCoroutine(index.find_image(request(ref.own_name))) for ref in refs
    )
    equal([each.entry and each.entry.size_bytes for each in found[::2]], list(range(11, 261, 2)))
    equal(found[1], Found(absence=GONE))
    equal(found[3::2], [Found()] * 124)


@promise
async def alias_leads_to_a_file(index: Index) -> None:
    """A name leads to its image in every size that is held, and is known where none is."""
    await index.put_alias(FRONT, ALIAS)
    equal(await index.find_image(request(FRONT)), Found(alias=ALIAS, target=ALIAS.target))
    await index.put_file(REF.at(250), entry())
    found = await index.find_image(request(FRONT))
    equal(found, Found(key=REF.at(250), entry=entry(), alias=ALIAS, target=ALIAS.target))
    equal((await index.find_image(request(FRONT, 500))).entry, None)
    equal(await index.find_image(request(BACK)), Found())


@promise
async def alias_of_a_group_and_of_a_merged_release(index: Index) -> None:
    """Names under other MBIDs lead to the same file: one image, one entry."""
    await index.put_file(REF.at(250), entry())
    for key in (FRONT, GROUP, MERGED):
        await index.put_alias(key, ALIAS)
        equal((await index.find_image(request(key))).key, REF.at(250))
    totals = await index.totals()
    equal((totals.files, totals.size_bytes), (1, 10))
    equal(totals.aliases.get(Entity.RELEASE), 2)
    equal(totals.aliases.get(Entity.RELEASE_GROUP), 1)


@promise
async def alias_moves(index: Index) -> None:
    """A name put again points at the new image alone, and is counted once."""
    await index.put_file(REF.at(250), entry())
    await index.put_file(OTHER.at(250), entry(20))
    await index.put_alias(FRONT, ALIAS)
    moved = Alias(target=Target(ref=OTHER), checked_at=NOW + 5)
    await index.put_alias(FRONT, moved)
    found = await index.find_image(request(FRONT))
    equal((found.key, found.alias), (OTHER.at(250), moved))
    equal((await index.totals()).aliases.get(Entity.RELEASE), 1)


@promise
async def alias_forgotten_once(index: Index) -> None:
    """Forgetting a name says whether it was known; the image stays."""
    await index.put_file(REF.at(250), entry())
    await index.put_alias(FRONT, ALIAS)
    equal([await index.forget_alias(FRONT), await index.forget_alias(FRONT)], [True, False])
    equal(await index.find_image(request(FRONT)), Found())
    totals = await index.totals()
    equal((totals.files, totals.aliases.get(Entity.RELEASE, 0)), (1, 0))


@promise
async def held_under_the_name_itself(index: Index) -> None:
    """A file held under an MBID proves that it was not merged away: the alias is not followed."""
    await index.put_alias(MERGED, ALIAS)
    own = MERGED.own_ref
    assert own is not None
    await index.put_file(own.at(250), entry(30))
    found = await index.find_image(request(MERGED))
    equal((found.key, found.alias), (own.at(250), None))


@promise
async def put_again_replaces(index: Index) -> None:
    """A file put again is one file of the new size and time."""
    await index.put_file(LISTING, FileEntry(size_bytes=10, stored_at=NOW))
    new = FileEntry(size_bytes=25, stored_at=NOW + 1)
    await index.put_file(LISTING, new)
    equal(await index.find_listing(LISTING), Found(key=LISTING, entry=new))
    totals = await index.totals()
    equal((totals.size_bytes, totals.files, totals.oldest), (25, 1, NOW + 1))


@promise
async def forgotten_only_as_known(index: Index) -> None:
    """A file is forgotten if the entry is still what is known of it, so totals change once."""
    key = REF.at(250)
    await index.put_file(key, entry(10))
    await index.put_file(key, entry(20, NOW + 1))
    for stale in (entry(10), entry(20), entry(10, NOW + 1)):
        equal(await index.forget_file(key, stale), False)
    equal((await index.totals()).size_bytes, 20)
    equal(await index.forget_file(key, entry(20, NOW + 1)), True)
    equal(await index.forget_file(key, entry(20, NOW + 1)), False)
    totals = await index.totals()
    equal((totals.size_bytes, totals.files, totals.oldest), (0, 0, None))


@promise
async def forgotten_together(index: Index) -> None:
    """Many are forgotten as one would be: each only as known, and told which."""
    files: list[tuple[FileKey, FileEntry]] = [
        (REF.at(250), entry(10)),
        (REF.at(500), entry(20)),
        (LISTING, FileEntry(size_bytes=5, stored_at=NOW)),
    ]
    for key, held in files:
        await index.put_file(key, held)
    await index.put_file(REF.at(500), entry(21, NOW + 1))
    forgotten = await index.forget_files([*files, (OTHER.at(250), entry())], "")
    equal(forgotten, [files[0], files[2]])
    equal(await index.forget_files(files, ""), [])
    totals = await index.totals()
    equal((totals.files, totals.size_bytes), (1, 21))


@promise
async def totals_by_entity(index: Index) -> None:
    """Files count for the entity in whose folder they lie."""
    event = ImageRef(owner=Entity.EVENT, mbid=MBID, image_id=7)
    await index.put_file(REF.at(250), entry(1))
    await index.put_file(event.at(250), entry(2))
    for entity in Entity:
        key = ListingKey(entity=entity, mbid=MBID)
        await index.put_file(key, FileEntry(size_bytes=4, stored_at=NOW))
    totals = await index.totals()
    equal((totals.files, totals.size_bytes), (5, 15))
    equal(
        {entity: totals.by_entity.get(entity) for entity in Entity},
        {
            Entity.RELEASE: 2,
            Entity.RELEASE_GROUP: 1,
            Entity.EVENT: 2,
        },
    )


@promise
async def absence_of_a_name(index: Index) -> None:
    """A 404 of a name is found by every size of it, and takes the name's old target away."""
    await index.put_alias(FRONT, ALIAS)
    await index.put_absence(FRONT, GONE)
    for size in (ORIGINAL, *SIZES):
        equal(await index.find_image(request(FRONT, size)), Found(absence=GONE))
    equal((await index.totals()).aliases.get(Entity.RELEASE, 0), 0)
    equal(await index.find_image(request(BACK)), Found())


@promise
async def absence_of_one_size(index: Index) -> None:
    """A 404 of a thumbnail is of that size alone, by whichever name it is asked."""
    await index.put_alias(FRONT, ALIAS)
    await index.put_absence(REF.at(1200), GONE)
    found = await index.find_image(request(FRONT, 1200))
    equal((found.absence, found.target), (GONE, ALIAS.target))
    equal((await index.find_image(request(OWN, 1200))).absence, GONE)
    equal((await index.find_image(request(FRONT, 500))).absence, None)


@promise
async def absence_of_a_listing(index: Index) -> None:
    """A 404 of a listing is not one of the images, and the other way round."""
    await index.put_absence(LISTING, GONE)
    equal(await index.find_listing(LISTING), Found(absence=GONE))
    equal(await index.find_image(request(FRONT)), Found())


@promise
async def absence_ends_with_the_thing(index: Index) -> None:
    """What is put is not absent any more."""
    for subject in (FRONT, LISTING, REF.at(250)):
        await index.put_absence(subject, GONE)
    await index.put_alias(FRONT, ALIAS)
    await index.put_file(LISTING, FileEntry(size_bytes=5, stored_at=NOW))
    await index.put_file(REF.at(250), entry())
    equal((await index.find_image(request(FRONT))).absence, None)
    equal((await index.find_listing(LISTING)).absence, None)
    await index.forget_file(REF.at(250), entry())
    equal((await index.find_image(request(OWN))).absence, None)


@promise
async def absence_renewed_and_forgotten(index: Index) -> None:
    """The last 404 counts; forgetting it says whether it was known."""
    later = Absence(since=NOW + 50, until=NOW + 150)
    await index.put_absence(LISTING, GONE)
    await index.put_absence(LISTING, later)
    equal((await index.find_listing(LISTING)).absence, later)
    equal([await index.forget_absence(LISTING), await index.forget_absence(LISTING)], [True, False])
    equal(await index.find_listing(LISTING), Found())


@promise
async def later_answers_stay(index: Index) -> None:
    """What was asked for earlier replaces nothing: not an alias, nor a listing, nor their 404."""
    moved = Alias(target=Target(ref=OTHER), checked_at=NOW + 5)
    equal(await index.put_alias(FRONT, moved), True)
    equal(await index.put_alias(FRONT, ALIAS), False)
    equal(await index.put_absence(FRONT, GONE), False)
    equal(await index.find_image(request(FRONT)), Found(alias=moved, target=moved.target))
    new = FileEntry(size_bytes=25, stored_at=NOW + 5)
    equal(await index.put_file(LISTING, new), True)
    equal(await index.put_file(LISTING, FileEntry(size_bytes=10, stored_at=NOW)), False)
    equal(await index.put_absence(LISTING, GONE), False)
    equal(await index.find_listing(LISTING), Found(key=LISTING, entry=new))
    equal((await index.totals()).size_bytes, 25)
    # Asked for in the same moment, the last one counts.
    again = Alias(target=Target(ref=REF), checked_at=NOW + 5)
    equal(await index.put_alias(FRONT, again), True)
    equal((await index.find_image(request(FRONT))).alias, again)


@promise
async def later_absences_stay(index: Index) -> None:
    """An alias or a listing that was asked for before a 404 does not end it; an image does."""
    gone = Absence(since=NOW + 5, until=NOW + 105)
    for subject in (FRONT, LISTING, REF.at(250)):
        equal(await index.put_absence(subject, gone), True)
    equal(await index.put_absence(LISTING, GONE), False)
    equal(await index.put_alias(FRONT, ALIAS), False)
    equal(await index.put_file(LISTING, FileEntry(size_bytes=10, stored_at=NOW)), False)
    equal(await index.find_image(request(FRONT)), Found(absence=gone))
    equal(await index.find_listing(LISTING), Found(absence=gone))
    equal(await index.put_file(REF.at(250), entry()), True)
    equal((await index.find_image(request(OWN))).entry, entry())
    equal(await index.put_absence(REF.at(250), gone), True)
    equal((await index.find_image(request(OWN))).entry, entry())


@promise
async def times_ahead_of_the_clock_count_for_nothing(index: Index) -> None:
    """What a clock wrote that was ahead gives way, and its aliases are due at once."""
    ahead = clock() + 3600
    wrong = Alias(target=Target(ref=OTHER), checked_at=ahead)
    await index.put_alias(FRONT, wrong)
    await index.put_alias(BACK, wrong)
    await learn(index, [(GROUP, wrong)])
    await index.put_file(LISTING, FileEntry(size_bytes=10, stored_at=ahead))
    due = sorted(await index.due_aliases(NOW, 10, ""), key=repr)
    equal(due, sorted([(FRONT, wrong), (BACK, wrong), (GROUP, wrong)], key=repr))
    equal(await index.due_aliases(NOW, 10, ""), [])
    equal(await index.put_alias(FRONT, ALIAS), True)
    await learn(index, [(BACK, ALIAS), (FRONT, wrong)])
    for key in (FRONT, BACK):
        equal((await index.find_image(request(key))).alias, ALIAS)
    new = FileEntry(size_bytes=25, stored_at=NOW)
    equal(await index.put_file(LISTING, new), True)
    equal((await index.find_listing(LISTING)).entry, new)
    await index.put_absence(LISTING, Absence(since=ahead, until=ahead + 100))
    equal((await index.find_listing(LISTING)).entry, new)


@promise
async def learns_what_is_new(index: Index) -> None:
    """A look at the disk fills gaps, and does not overrule what came in meanwhile."""
    await index.put_file(REF.at(250), entry(10, NOW + 9))
    newer = Alias(target=Target(ref=OTHER), checked_at=NOW + 9)
    await index.put_alias(FRONT, newer)
    seen: list[Seen] = [
        (REF.at(250), entry(99)),
        (REF.at(500), entry(20)),
        (FRONT, ALIAS),
        (BACK, ALIAS),
    ]
    await learn(index, seen)
    await learn(index, seen)
    equal((await index.find_image(request(OWN, 250))).entry, entry(10, NOW + 9))
    equal((await index.find_image(request(OWN, 500))).entry, entry(20))
    equal((await index.find_image(request(FRONT))).alias, newer)
    equal((await index.find_image(request(BACK))).alias, ALIAS)
    totals = await index.totals()
    equal((totals.files, totals.size_bytes), (2, 30))
    equal(totals.aliases.get(Entity.RELEASE), 2)


@promise
async def learns_the_latest_alias(index: Index) -> None:
    """Of the symlinks of several sizes the one checked last is right, in whatever order."""
    newer = Alias(target=Target(ref=OTHER), checked_at=NOW + 9)
    await learn(index, [(FRONT, newer), (FRONT, ALIAS), (BACK, ALIAS), (BACK, newer)])
    equal((await index.find_image(request(FRONT))).alias, newer)
    equal((await index.find_image(request(BACK))).alias, newer)


@promise
async def oldest_in_order(index: Index) -> None:
    """The files first to be evicted, no more than asked for, and again until they are forgotten."""
    files: list[tuple[FileKey, FileEntry]] = [
        (ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=n + 1).at(250), entry(n + 1, NOW + n))
        for n in range(20)
    ]
    for n in range(20):
        await index.put_file(*files[n * 7 % 20])
    equal(await index.first_to_evict(0), [])
    equal(await index.first_to_evict(5), files[:5])
    equal(await index.first_to_evict(5), files[:5])
    for file in files[:3]:
        await index.forget_file(*file)
    equal(await index.first_to_evict(2), files[3:5])
    equal(await index.first_to_evict(100), files[3:])
    equal((await index.totals()).oldest, NOW + 3)


@promise
async def oldest_knows_the_renewed(index: Index) -> None:
    """A listing confirmed again is young again, and is named once."""
    first, second = LISTING, ListingKey(entity=Entity.EVENT, mbid=MBID)
    for at in (0, 5, 0, 9):
        await index.put_file(first, FileEntry(size_bytes=1, stored_at=NOW + at))
    await index.put_file(second, FileEntry(size_bytes=1, stored_at=NOW + 4))
    equal([key for key, _ in await index.first_to_evict(10)], [second, first])
    equal((await index.totals()).oldest, NOW + 4)


@promise
async def slices_hold_all(index: Index) -> None:
    """A slice is what is known of the MBIDs that begin with its three digits."""
    await index.put_file(REF.at(250), entry())
    await index.put_file(OTHER.at(250), entry(20))
    await index.put_alias(FRONT, ALIAS)
    await index.put_alias(GROUP, ALIAS)
    equal(await held(index, MBID), packed((REF.at(250), entry()), (FRONT, ALIAS)))
    others = packed((OTHER.at(250), entry(20)), (GROUP, ALIAS))
    equal(await held(index, OTHER_MBID), others)
    equal(await index.slice_packed(0), {})


@promise
async def whole_when_told(index: Index) -> None:
    """An index covers the disk only once it was told so."""
    equal(await index.whole(), False)
    await index.fill()
    await index.set_whole()
    equal(await index.whole(), True)


# Any interleaving, against a model that a child could check


@attrs.frozen
class PutFile:
    key: FileKey
    entry: FileEntry


@attrs.frozen
class ForgetFile:
    key: FileKey
    as_known: bool


@attrs.frozen
class PutAlias:
    key: AliasKey
    alias: Alias


@attrs.frozen
class ForgetAlias:
    key: AliasKey


@attrs.frozen
class PutAbsence:
    subject: Subject
    absence: Absence


@attrs.frozen
class Learn:
    seen: tuple[Seen, ...]


Step: TypeAlias = PutFile | ForgetFile | PutAlias | ForgetAlias | PutAbsence | Learn

_REFS = (REF, OTHER, ImageRef(owner=Entity.EVENT, mbid=MBID, image_id=7))
_FILES: tuple[FileKey, ...] = (
    *(ref.at(size) for ref in _REFS for size in (ORIGINAL, 250)),
    LISTING,
    ListingKey(entity=Entity.RELEASE_GROUP, mbid=OTHER_MBID),
)
_NAMES = (FRONT, BACK, GROUP, OWN, MERGED)
_SUBJECTS: tuple[Subject, ...] = (*_FILES, *_NAMES)
_REQUESTS = tuple(request(name, size) for name in _NAMES for size in (ORIGINAL, 250, 500))


def _entry_of(key: FileKey, size_bytes: int, stored_at: float) -> FileEntry:
    media = MediaType.JPEG if isinstance(key, ImageKey) else None
    return FileEntry(size_bytes=size_bytes, stored_at=NOW + stored_at, media=media)


def _files(cls: type[PutFile]) -> st.SearchStrategy[PutFile]:
    return st.builds(
        lambda key, size, at: cls(key, _entry_of(key, size, at)),
        st.sampled_from(_FILES),
        st.integers(1, 1000),
        st.integers(0, 9),
    )


_alias_values = st.builds(
    lambda ref, extension, at: Alias(
        target=Target(ref=ref, extension=extension), checked_at=NOW + at
    ),
    st.sampled_from(_REFS),
    st.sampled_from((None, "jpg", "pdf")),
    st.integers(0, 9),
)
_put_files = _files(PutFile)
_put_aliases = st.builds(PutAlias, st.sampled_from(_NAMES), _alias_values)
_seen = st.one_of(
    _put_files.map(lambda step: (step.key, step.entry)),
    _put_aliases.map(lambda step: (step.key, step.alias)),
)
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        _put_files,
        st.builds(ForgetFile, st.sampled_from(_FILES), st.booleans()),
        _put_aliases,
        st.builds(ForgetAlias, st.sampled_from(_NAMES)),
        st.builds(
            PutAbsence,
            st.sampled_from(_SUBJECTS),
            st.integers(0, 9).map(lambda n: Absence(since=NOW + n, until=NOW + n + 100)),
        ),
        st.builds(Learn, st.lists(_seen, max_size=4).map(tuple)),
    ),
    max_size=25,
)
"""Things that happen to an index, in any order."""


class Model:
    """An index so simple that it is right."""

    def __init__(self) -> None:
        self.files: dict[FileKey, FileEntry] = {}
        self.aliases: dict[AliasKey, Alias] = {}
        self.absences: dict[Subject, Absence] = {}

    async def take(self, step: Step, index: Index) -> None:
        """Do one thing to both, and compare what the index says to it."""
        match step:
            case PutFile(key, held):
                later = isinstance(key, ListingKey) and self.knows_later(key, held.stored_at)
                equal(await index.put_file(key, held), not later)
                if not later:
                    self.put_file(key, held)
            case ForgetFile(key, as_known):
                known = self.files.get(key)
                given = known if known and as_known else _entry_of(key, 2000, 0)
                equal(await index.forget_file(key, given), known == given)
                if known == given:
                    del self.files[key]
            case PutAlias(name, alias):
                later = self.knows_later(name, alias.checked_at)
                equal(await index.put_alias(name, alias), not later)
                if not later:
                    self.put_alias(name, alias)
            case ForgetAlias(name):
                equal(await index.forget_alias(name), self.aliases.pop(name, None) is not None)
            case PutAbsence(subject, absence):
                later = not isinstance(subject, ImageKey) and self.knows_later(
                    subject, absence.since
                )
                equal(await index.put_absence(subject, absence), not later)
                if not later:
                    self.absences[subject] = absence
                    if isinstance(subject, AliasKey):
                        self.aliases.pop(subject, None)
            case Learn(seen):
                await learn(index, seen)
                for thing, value in seen:
                    self.learn(thing, value)

    def knows_later(self, subject: AliasKey | ListingKey, at: float) -> bool:
        known = [self.absences[subject].since] if subject in self.absences else []
        if isinstance(subject, AliasKey):
            known += [self.aliases[subject].checked_at] if subject in self.aliases else []
        elif subject in self.files:
            known.append(self.files[subject].stored_at)
        return any(each > at for each in known)

    def put_file(self, key: FileKey, held: FileEntry) -> None:
        self.files[key] = held
        self.absences.pop(key, None)

    def put_alias(self, key: AliasKey, alias: Alias) -> None:
        self.aliases[key] = alias
        self.absences.pop(key, None)

    def learn(self, key: FileKey | AliasKey, value: FileEntry | Alias) -> None:
        if isinstance(key, AliasKey):
            assert isinstance(value, Alias)
            if key not in self.aliases or self.aliases[key].checked_at < value.checked_at:
                self.put_alias(key, value)
        elif key not in self.files:
            assert isinstance(value, FileEntry)
            self.put_file(key, value)

    def find(self, asked: ImageRequest) -> Found:
        name, own = asked.alias, asked.alias.own_ref
        if own is not None and any(own.at(size) in self.files for size in (ORIGINAL, *SIZES)):
            original = self.files.get(own.at(ORIGINAL))
            extension = original.media.extension if original and original.media else None
            alias, target = None, Target(ref=own, extension=extension)
        elif name in self.aliases:
            alias = self.aliases[name]
            target = alias.target
        else:
            absence = self.absences.get(name)
            if absence is None and own is not None:
                absence = self.absences.get(own.at(asked.size))
            return Found(absence=absence)
        key = target.ref.at(asked.size)
        if key in self.files:
            return Found(key=key, entry=self.files[key], alias=alias, target=target)
        return Found(alias=alias, target=target, absence=self.absences.get(key))

    async def compare(self, index: Index) -> None:
        """Say where an index differs."""
        for asked in _REQUESTS:
            equal(await index.find_image(asked), self.find(asked))
        for key in _FILES:
            if isinstance(key, ListingKey):
                held = self.files.get(key)
                expected = (
                    Found(absence=self.absences.get(key))
                    if held is None
                    else Found(key=key, entry=held)
                )
                equal(await index.find_listing(key), expected)
        totals = await index.totals()
        equal(totals.files, len(self.files))
        equal(totals.size_bytes, sum(held.size_bytes for held in self.files.values()))
        equal(totals.oldest, min((held.stored_at for held in self.files.values()), default=None))
        for entity in Entity:
            owners = [k.ref.owner if isinstance(k, ImageKey) else k.entity for k in self.files]
            equal(totals.by_entity.get(entity, 0), owners.count(entity))
            equal(totals.aliases.get(entity, 0), [k.entity for k in self.aliases].count(entity))
        if totals.absences is not None:
            equal(totals.absences, len(self.absences))
        oldest = await index.first_to_evict(len(self.files) + 1)
        equal(dict(oldest), self.files)
        equal(len(oldest), len(self.files))
        ages = [held.stored_at for _, held in oldest]
        equal(ages, sorted(ages))
        if self.files:
            equal(await index.first_to_evict(1), oldest[:1])


async def keeps_step(index: Index, story: Sequence[Step] | Iterable[Step]) -> None:
    """Whatever happens in whatever order, the index says what the model says, after each step."""
    model = Model()
    for step in story:
        await model.take(step, index)
        await model.compare(index)


@promise
async def hands_out_due_aliases_once(index: Index) -> None:
    """An alias past its time is handed out once; one checked again since is not; it stays known."""
    later = attrs.evolve(ALIAS, checked_at=NOW + 500)
    await index.put_alias(FRONT, ALIAS)
    await index.put_alias(BACK, ALIAS)
    await index.put_alias(BACK, later)
    await index.put_alias(MERGED, ALIAS)
    equal(await index.due_aliases(NOW, 10, ""), [])
    equal(await index.due_aliases(NOW + 120, 10, ""), [(FRONT, ALIAS)])
    equal(await index.due_aliases(NOW + 120, 10, ""), [])
    equal((await index.find_image(request(FRONT))).alias, ALIAS)
    equal(await index.due_aliases(NOW + 1000, 10, ""), [(BACK, later)])


@promise
async def suspicions_are_told_once(index: Index) -> None:
    """The slice of a file that was not as it should be is told once."""
    await index.suspect(REF.at(250))
    await index.suspect(LISTING)
    equal(await index.odd_slices(), [int(MBID[:3], 16)])
    equal(await index.odd_slices(), [])


@promise
async def learns_files_and_names(index: Index) -> None:
    """Of all that lies on the disk at once, each is learnt as it would be by itself."""
    await index.put_file(REF.at(250), entry(10, NOW + 9))
    newer = Alias(target=Target(ref=OTHER), checked_at=NOW + 9)
    listing = FileEntry(size_bytes=3, stored_at=NOW - 5)
    seen: list[Seen] = [
        (REF.at(250), entry(99)),
        (REF.at(500), entry(20)),
        (LISTING, listing),
        (FRONT, newer),
        (FRONT, ALIAS),
        (MERGED, ALIAS),
    ]
    await learn(index, seen)
    await learn(index, seen)
    await learn(index, [])
    known: list[Seen] = [(REF.at(250), entry(10, NOW + 9)), (REF.at(500), entry(20))]
    known += [(LISTING, listing), (FRONT, newer)]
    equal(await held(index, MBID), packed(*known))
    equal([key for key, _ in await index.first_to_evict(3)], [LISTING, REF.at(500), REF.at(250)])
    totals = await index.totals()
    equal((totals.files, totals.size_bytes), (3, 33))
    equal(totals.aliases.get(Entity.RELEASE), 2)


@promise
async def tallies_add_up(index: Index) -> None:
    """What was done is added up by name, whoever tells it; the totals bring it along."""
    equal((await index.totals()).tallies, {})
    await index.tally({"hits": 3, "direct_hits": 100_000})
    await index.tally({})
    await index.tally({"hits": 4, "misses": 1})
    equal((await index.totals()).tallies, {"hits": 7, "direct_hits": 100_000, "misses": 1})
    equal((await index.totals()).files, 0)


@promise
async def claims_end_with_the_file(index: Index) -> None:
    """Who claims a file that is not held may fetch it; once it is stored, nobody need."""
    key = REF.at(250)
    name = await index.claim_name(request(FRONT))
    found, claim = await index.claim(key)
    equal(found, Found())
    assert claim is not None
    equal((name.waited, claim.waited), (False, False))
    stored = await index.store(key, entry(), alias=(FRONT, ALIAS), claims=(name, claim))
    equal(stored, Stored(file=True, alias=True))
    known = await index.find_image(request(FRONT))
    equal((known.key, known.entry, known.alias), (key, entry(), ALIAS))
    equal(await index.claim(key), (Found(key=key, entry=entry(), target=Target(ref=REF)), None))
    equal((await index.claim_name(request(FRONT))).waited, False)
    equal(await index.doubtful(9), [])


@promise
async def claims_a_file_again(index: Index) -> None:
    """A listing that is held is claimed to be fetched anew; released, it can be claimed once more."""
    held = FileEntry(size_bytes=10, stored_at=NOW)
    await index.put_file(LISTING, held)
    equal(await index.claim(LISTING), (Found(key=LISTING, entry=held), None))
    for _ in range(2):
        found, claim = await index.claim(LISTING, again=True)
        equal(found, Found(key=LISTING, entry=held))
        assert claim is not None
        equal(claim.waited, False)
        await index.release([claim])
    new = FileEntry(size_bytes=25, stored_at=NOW + 5)
    found, claim = await index.claim(LISTING, again=True)
    assert claim is not None
    equal(await index.store(LISTING, new, claims=[claim]), Stored(file=True, alias=True))
    equal((await index.find_listing(LISTING)).entry, new)


@promise
async def claims_end_with_an_absence(index: Index) -> None:
    """A 404 ends the claims of those who asked, and is what the next one who claims is told."""
    name = await index.claim_name(request(FRONT))
    _, claim = await index.claim(REF.at(250))
    assert claim is not None
    equal(await index.put_absence(REF.at(250), GONE, [name, claim]), True)
    equal(await index.doubtful(9), [])
    found, claim = await index.claim(REF.at(250))
    equal(found, Found(absence=GONE))
    assert claim is not None
    equal(claim.waited, False)


@promise
async def stores_what_is_later(index: Index) -> None:
    """Of a file and a name that are stored together, each gives way to what is known to be later."""
    moved = Alias(target=Target(ref=OTHER), checked_at=NOW + 5)
    await index.put_alias(FRONT, moved)
    stored = await index.store(REF.at(250), entry(), alias=(FRONT, ALIAS))
    equal(stored, Stored(file=True, alias=False))
    equal((await index.find_image(request(FRONT))).alias, moved)
    equal((await index.find_image(request(OWN))).entry, entry())
    await index.put_absence(LISTING, attrs.evolve(GONE, since=NOW + 5))
    old = FileEntry(size_bytes=25, stored_at=NOW)
    equal(await index.store(LISTING, old), Stored(file=False, alias=True))
    equal((await index.find_listing(LISTING)).entry, None)
    equal((await index.totals()).files, 1)


@promise
async def complete_once_filled(index: Index) -> None:
    """What a whole index does not know is nowhere; a look-up tells whether it is whole."""
    await index.find_image(request(FRONT))
    equal(index.complete, False)
    await index.fill()
    await index.set_whole()
    await index.find_image(request(FRONT))
    equal(index.complete, True)
