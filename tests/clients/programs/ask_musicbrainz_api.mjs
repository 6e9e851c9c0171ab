// musicbrainz-api: listing; covers, for which it wants a 307 and returns the URL; a release without art.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { follow, task, that } from './told.mjs';

const require = createRequire(`${task.npm}/`);
const { CoverArtArchiveApi } = await import(pathToFileURL(require.resolve('musicbrainz-api')));
const client = new CoverArtArchiveApi();
const listing = await client.getReleaseCovers(task.release);
that('getReleaseCovers', listing.images?.some((each) => String(each.id) === task.image), listing.images?.length);
for (const [what, ask, name] of [
  ['getReleaseCover', () => client.getReleaseCover(task.release, 'front'), 'front'],
  ['getReleaseGroupCover', () => client.getReleaseGroupCover(task.group, 'front'), 'group'],
]) {
  try {
    await follow(what, (await ask()).url, name);
  } catch (error) {
    that(what, false, error.message);
  }
}
const none = await client.getReleaseCovers(task.absent);
that('no art: listing', 'error' in none, JSON.stringify(none));
const cover = await client.getReleaseCover(task.absent, 'front');
that('no art: cover', cover.url === null, JSON.stringify(cover));
