"""Keys and values as bytes: nothing is lost, nothing is taken for something else."""

import struct
import uuid

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from coverart.index.codec import (
    LARGEST_FILE_BYTES,
    entity_of,
    pack_alias,
    pack_alias_key,
    pack_entry,
    pack_file_key,
    pack_subject,
    unpack_alias,
    unpack_alias_key,
    unpack_entry,
    unpack_file_key,
)
from coverart.model import (
    ORIGINAL,
    SIZES,
    Alias,
    AliasKey,
    Entity,
    FileEntry,
    FileKey,
    ImageRef,
    ListingKey,
    MediaType,
    Subject,
)
from tests.support.strategies import (
    MBID,
    OTHER_MBID,
    alias_keys,
    aliases,
    entries,
    examples,
    image_keys,
    listing_keys,
    subjects,
)

file_keys = st.one_of(image_keys(), listing_keys())
few_mbids = st.sampled_from((MBID, OTHER_MBID))


class KeyTests(SynchronousTestCase):
    """Keys."""

    @examples(200)
    @given(file_keys)
    def test_file_key(self, key: FileKey) -> None:
        """A file's key comes back as it was, and tells its entity without being unpacked."""
        packed = pack_file_key(key)
        self.assertEqual(unpack_file_key(packed), key)
        entity = key.entity if isinstance(key, ListingKey) else key.ref.owner
        self.assertIs(entity_of(packed), entity)

    @examples(200)
    @given(alias_keys())
    def test_alias_key(self, key: AliasKey) -> None:
        """A name's key comes back as it was: front, back, and any id between them."""
        packed = pack_alias_key(key)
        self.assertEqual(unpack_alias_key(packed), key)
        self.assertIs(entity_of(packed), key.entity)

    @examples(300)
    @given(subjects(few_mbids), subjects(few_mbids))
    def test_distinct(self, one: Subject, other: Subject) -> None:
        """Two subjects share bytes only if they are one: image, listing and name of one MBID too."""
        self.assertEqual(pack_subject(one) == pack_subject(other), one == other)

    def test_kin(self) -> None:
        """What is alike in every number still has bytes of its own."""
        kin: list[Subject] = []
        for entity in Entity:
            kin.append(ListingKey(entity=entity, mbid=MBID))
            kin.extend(
                AliasKey(entity=entity, mbid=MBID, name=name)
                for name in ("front", "back", 1, 250, 10**18 - 1)
            )
            kin.extend(
                ImageRef(owner=entity, mbid=MBID, image_id=image_id).at(size)
                for image_id in (1, 250, 10**18 - 1)
                for size in (ORIGINAL, *SIZES)
            )
        self.assertEqual(len({pack_subject(subject) for subject in kin}), len(kin))

    @examples(100)
    @given(subjects())
    def test_one_place(self, subject: Subject) -> None:
        """The MBID follows the first byte in every key, which is what shards are cut by."""
        mbid = subject.mbid if isinstance(subject, (AliasKey, ListingKey)) else subject.ref.mbid
        self.assertEqual(pack_subject(subject)[1:17], uuid.UUID(mbid).bytes)

    @examples(300)
    @given(st.one_of(st.binary(max_size=40), st.binary(min_size=26, max_size=26)))
    def test_foreign_bytes(self, packed: bytes) -> None:
        """Bytes that are no file's key raise ValueError, whatever they are."""
        try:
            key = unpack_file_key(packed)
        except ValueError:
            return
        self.assertEqual(pack_file_key(key), packed)


class ValueTests(SynchronousTestCase):
    """Values."""

    @examples(200)
    @given(entries)
    def test_entry(self, entry: FileEntry) -> None:
        """An entry comes back as it was, its time to the last bit: it is compared with equality."""
        self.assertEqual(unpack_entry(pack_entry(entry)), entry)

    @examples(200)
    @given(aliases)
    def test_alias(self, alias: Alias) -> None:
        """An alias comes back as it was, with the extension it learnt or none."""
        self.assertEqual(unpack_alias(pack_alias(alias)), alias)

    def test_small(self) -> None:
        """An image with its key and half an alias stays far below the budget of 200 bytes."""
        ref = ImageRef(owner=Entity.RELEASE, mbid=MBID, image_id=10**18 - 1)
        image = pack_file_key(ref.at(1200)) + pack_entry(
            FileEntry(size_bytes=LARGEST_FILE_BYTES, stored_at=1.7e9, media=MediaType.PDF)
        )
        self.assertLessEqual(len(image), 39)

    def test_too_large(self) -> None:
        """A size that does not fit is an error, not another size."""
        entry = FileEntry(size_bytes=LARGEST_FILE_BYTES + 1, stored_at=1.0)
        self.assertRaises(struct.error, pack_entry, entry)
