// graphbrainz: a GraphQL query for a release's covers, and the HEAD by which it looks for a Location.
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { follow, same, task, that } from './told.mjs';

const require = createRequire(`${task.npm}/`);
const main = require.resolve('graphbrainz');
const { default: express } = await import(pathToFileURL(require.resolve('express')));
process.env.NODE_ENV = 'production';
process.env.GRAPHBRAINZ_EXTENSIONS = '["graphbrainz/extensions/cover-art-archive"]';
const { middleware } = await import(pathToFileURL(main));
const server = express().use('/', middleware()).listen(0, '127.0.0.1');
await new Promise((listening) => server.once('listening', listening));
const place = `http://127.0.0.1:${server.address().port}/`;

async function query(mbid) {
  const text = `{lookup{release(mbid:"${mbid}"){coverArtArchive{front small:front(size:SMALL) count}}}}`;
  const answer = await fetch(`${place}?query=${encodeURIComponent(text)}`);
  return answer.json();
}

const found = await query(task.release);
const covers = found.data?.lookup?.release?.coverArtArchive;
that('GraphQL front', Boolean(covers?.front), JSON.stringify(found).slice(0, 300));
if (covers?.front) {
  await follow('GraphQL front', covers.front, 'front');
  await follow('GraphQL front(size: SMALL)', covers.small, 'front-250');
}
const none = await query(task.absent);
that('GraphQL, no art', none.data?.lookup?.release?.coverArtArchive?.count === 0, JSON.stringify(none).slice(0, 300));
server.close();

// What it does for a release with two fronts: its own client, since the simulator has no such release.
const path = join(dirname(main), 'extensions', 'cover-art-archive', 'client.js');
const { default: Client } = await import(pathToFileURL(path));
const url = await new Client().imageURL('release', task.release, 'front', 500);
that('HEAD, Location', Boolean(url), url);
if (url) await follow('HEAD, Location', url, 'front-500');
