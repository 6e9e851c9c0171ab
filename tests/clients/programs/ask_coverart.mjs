// coverart (npm): listing, images, a release without art.
import { createRequire } from 'node:module';
import { same, task, that } from './told.mjs';

const require = createRequire(`${task.npm}/`);
const CoverArt = require('coverart');
const client = new CoverArt({ userAgent: 'coverart-clients/1 ( coverart@example.org )' });
const ask = (kind, mbid, options) =>
  new Promise((resolve) => client[kind](mbid, options, (error, answer) => resolve({ error, answer })));

const listing = await ask('release', task.release, {});
that('release', listing.answer?.images?.length > 0, JSON.stringify(listing.error ?? listing.answer.images.length));
for (const [what, kind, mbid, options, name] of [
  ['piece front', 'release', task.release, { piece: 'front' }, 'front'],
  ['piece front, large', 'release', task.release, { piece: 'front', size: 'large' }, 'front-500'],
  ["group's front", 'releaseGroup', task.group, { piece: 'front' }, 'group'],
]) {
  const { error, answer } = await ask(kind, mbid, options);
  if (error) that(what, false, JSON.stringify(error));
  else same(what, Buffer.from(answer.image, 'binary'), name);
}
const none = await ask('release', task.absent, { piece: 'front' });
that('no art', none.error?.statusCode === 404, JSON.stringify(none.error));
