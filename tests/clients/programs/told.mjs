// What a program is told (a JSON file that CLIENT_TASK names), and how it says what it saw.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';

export const task = JSON.parse(readFileSync(process.env.CLIENT_TASK, 'utf8'));

export function that(what, right, saw = '') {
  console.log(`${right ? 'ok' : 'WRONG'}: ${what}: ${saw}`);
  if (!right) process.exitCode = 1;
}

export function same(what, body, name) {
  const right = createHash('sha256').update(body).digest('hex') === task.sha256[name];
  that(what, right, `${body.length} bytes${right ? '' : ", NOT the archive's"}`);
}

// Ask for a URL that a client gave its user, as the user would next.
export async function follow(what, url, name) {
  try {
    const answer = await fetch(url);
    same(`${what} ${url}`, Buffer.from(await answer.arrayBuffer()), name);
  } catch (error) {
    that(`${what} ${url}`, false, `${error} ${error.cause ?? ''}`);
  }
}
