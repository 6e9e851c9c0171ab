// cover-art-archive (npm): listing, images, a release without art.
import { createRequire } from 'node:module';
import { same, task, that } from './told.mjs';

const require = createRequire(`${task.npm}/`);
const client = require('cover-art-archive');
const listing = await client.getReleaseCoverArt(task.release);
that('listing', listing.images?.length > 0, listing.images?.length);
same('front', await client.getReleaseCoverArt(task.release, { image: 'front' }), 'front');
same('front, 500', await client.getReleaseCoverArt(task.release, { image: 'front', size: 500 }), 'front-500');
same("group's front, 250", await client.getReleaseGroupCoverArt(task.group, { size: 250 }), 'group-250');
try {
  await client.getReleaseCoverArt(task.absent, { image: 'front' });
  that('no art', false, 'no error');
} catch (error) {
  that('no art', error.statusCode === 404, error.statusCode);
}
