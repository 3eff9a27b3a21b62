// A worker in Node: a device that is too hot blinks.
//
//   naru worker add hot-node --url http://127.0.0.1:9002/ --hears 'device/+/telemetry'
const http = require('http');

const [host, port] = (process.env.LISTEN || '127.0.0.1:9002').split(':');

const server = http.createServer(async (q, a) => {
  const parts = [];
  for await (const part of q) parts.push(part);
  let celsius;
  try {
    celsius = JSON.parse(Buffer.concat(parts)).celsius;
  } catch {
    return a.writeHead(400, { 'content-type': 'text/plain' }).end('no reading'); // dead, and listed with this reason
  }
  if (!(celsius > 30)) return a.writeHead(204).end(); // handled, and nothing follows
  // The message's id names the command: given twice, it is still one. This answer is an event in binary mode.
  const id = q.headers['ce-id'];
  a.writeHead(200, {
    'ce-specversion': '1.0', 'ce-id': id, 'ce-source': 'hot-node', 'ce-type': 'blink',
    'ce-subject': `device.${q.headers['ce-narudevice']}.command.blink.${id}`, 'content-type': 'application/json',
  }).end(JSON.stringify({ times: 3 }));
}).listen(Number(port), host);

process.on('SIGTERM', () => server.close()); // as a container's first process it would not end by itself
