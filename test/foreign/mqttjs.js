// mqtt.js, MQTT 3.1.1 and 5, at an address such as ws://127.0.0.1:1884/mqtt or mqtts://127.0.0.1:8883: each QoS, a retained
// message, a session that outlives its connection. mqtts and wss take CA, CERT and KEY, mqtts also ALPN, a protocol's name
// that the server has to choose; TOPIC is where it may speak.
const fs = require('fs');
const mqtt = require('mqtt');

const [url, version, id, topic] = process.argv.slice(2);
const options = { clientId: id, protocolVersion: Number(version), clean: false, reconnectPeriod: 0, connectTimeout: 20000 };
if (process.env.CERT) {
  options.ca = fs.readFileSync(process.env.CA);
  options.cert = fs.readFileSync(process.env.CERT);
  options.key = fs.readFileSync(process.env.KEY);
}
if (process.env.ALPN) options.ALPNProtocols = [process.env.ALPN];
if (version === '5') options.properties = { sessionExpiryInterval: 600, topicAliasMaximum: 5 };
const late = setTimeout(() => { console.error('too late'); process.exit(1); }, 40000);

async function main() {
  let client = await mqtt.connectAsync(url, options);
  if (process.env.ALPN && client.stream.alpnProtocol !== process.env.ALPN) throw new Error(`the server has chosen ${client.stream.alpnProtocol}`);
  const heard = [];
  client.on('message', (t, payload, packet) => heard.push(`${t} ${payload} q${packet.qos} r${packet.retain}`));
  const got = async (n) => { while (heard.length < n) await new Promise((done) => setTimeout(done, 5)); return heard.splice(0, n); };
  const want = (list, expected) => {
    if (JSON.stringify(list) !== JSON.stringify(expected)) throw new Error(`got ${JSON.stringify(list)}, want ${JSON.stringify(expected)}`);
  };
  await client.subscribeAsync(`${topic}/#`, { qos: 2 });
  for (const qos of [0, 1, 2]) {
    await client.publishAsync(`${topic}/q`, `${qos}`, { qos });
    want(await got(1), [`${topic}/q ${qos} q${qos} rfalse`]);
  }
  await client.publishAsync(`${topic}/kept`, 'state', { qos: 1, retain: true });
  want(await got(1), [`${topic}/kept state q1 rfalse`]);
  await client.unsubscribeAsync(`${topic}/#`);
  await client.subscribeAsync(`${topic}/+`, { qos: 1 });
  want(await got(1), [`${topic}/kept state q1 rtrue`]);
  await client.publishAsync(`${topic}/kept`, '', { qos: 1, retain: true });
  want(await got(1), [`${topic}/kept  q1 rfalse`]);
  await client.endAsync();

  client = mqtt.connect(url, options);
  client.on('message', (t, payload, packet) => heard.push(`${t} ${payload} q${packet.qos} r${packet.retain}`));
  const present = await new Promise((done, fail) => { client.on('connect', (ack) => done(ack.sessionPresent)); client.on('error', fail); });
  if (!present) throw new Error('the session is not present');
  await client.publishAsync(`${topic}/again`, 'x', { qos: 2 });
  want(await got(1), [`${topic}/again x q1 rfalse`]); // the subscription is there still
  await client.endAsync();
  clearTimeout(late);
}

main().catch((err) => { console.error(err); process.exit(1); });
