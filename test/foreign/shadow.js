// AWS IoT's device SDK, MQTT 5 or 3.1.1 with mutual TLS: publishes, then updates and reads the device's shadow, classic or
// named, hears its deltas and what changed, is refused, and deletes it. Arguments: host, port, CA, certificate, key, device,
// MQTT version (5 or 311), shadow or `-`. It prints `done`.
const fs = require('fs');
const assert = require('assert');
const { mqtt, mqtt5, iot, iotshadow } = require('aws-iot-device-sdk-v2');

const [host, port, ca, cert, key, thingName, version, named] = process.argv.slice(2);
const late = setTimeout(() => { console.error('too late'); process.exit(1); }, 50000);
const rpc = { maxRequestResponseSubscriptions: 10, maxStreamingSubscriptions: 4, operationTimeoutInSeconds: 20 };
const classic = named === '-';
const which = classic ? { thingName } : { thingName, shadowName: named };
const name = (verb, rest = '') => verb + (classic ? '' : 'Named') + 'Shadow' + rest;

// connect5 and connect311 give a client for shadows, and how to publish and to end.
async function connect5() {
  const client = new mqtt5.Mqtt5Client(iot.AwsIotMqtt5ClientConfigBuilder.newDirectMqttBuilderWithMtlsFromPath(host, cert, key)
    .withCertificateAuthorityFromPath(undefined, ca).withPort(Number(port)).withConnectProperties({ clientId: thingName, keepAliveIntervalSeconds: 30 }).build());
  const failed = new Promise((_, fail) => client.on('connectionFailure', (event) => fail(new Error(String(event.error)))));
  const connected = new Promise((done) => client.on('connectionSuccess', done));
  client.start();
  await Promise.race([connected, failed]);
  return {
    shadows: iotshadow.IotShadowClientv2.newFromMqtt5(client, rpc),
    publish: async (topicName, payload) => {
      const ack = await client.publish({ topicName, payload, qos: mqtt5.QoS.AtLeastOnce });
      assert.ok(ack.reasonCode < 128, `PUBLISH is answered with ${ack.reasonCode} ${ack.reasonString}`);
    },
    end: async () => { const stopped = new Promise((done) => client.on('stopped', done)); client.stop(); await stopped; client.close(); },
  };
}

async function connect311() {
  const connection = new mqtt.MqttClient().new_connection(iot.AwsIotMqttConnectionConfigBuilder.new_mtls_builder_from_path(cert, key)
    .with_certificate_authority_from_path(undefined, ca).with_client_id(thingName).with_clean_session(true).with_endpoint(host).with_port(Number(port)).build());
  await connection.connect();
  return {
    shadows: iotshadow.IotShadowClientv2.newFromMqtt311(connection, rpc),
    publish: (topic, payload) => connection.publish(topic, payload, mqtt.QoS.AtLeastOnce),
    end: () => connection.disconnect(),
  };
}

async function stream(make) {
  const heard = [];
  make.on('incomingPublish', (event) => heard.push(event.message));
  const established = new Promise((done, fail) => make.on('subscriptionStatus', (s) => (s.error ? fail(s.error) : done())));
  make.open();
  await established;
  return { make, next: async () => { while (!heard.length) await new Promise((done) => setTimeout(done, 5)); return heard.shift(); } };
}

async function refused(promise, code, message) {
  try {
    await promise;
  } catch (err) {
    assert.equal(err.modeledError.code, code);
    assert.equal(err.modeledError.message, message);
    return;
  }
  assert.fail(`not refused with ${code}`);
}

async function main() {
  const { shadows, publish, end } = version === '5' ? await connect5() : await connect311();
  await publish(`device/${thingName}/telemetry`, JSON.stringify({ celsius: 21.5 }));
  const deltas = await stream(shadows[classic ? 'createShadowDeltaUpdatedStream' : 'createNamedShadowDeltaUpdatedStream'](which));
  const changes = await stream(shadows[classic ? 'createShadowUpdatedStream' : 'createNamedShadowUpdatedStream'](which));
  await refused(shadows[name('get')](which), 404, `No shadow exists with name: '${classic ? thingName : named}'`);

  const first = await shadows[name('update')]({ ...which, state: { desired: { color: 'red', limits: { high: 30 } }, reported: { color: 'green' } } });
  assert.equal(first.version, 1);
  assert.deepEqual(first.state, { desired: { color: 'red', limits: { high: 30 } }, reported: { color: 'green' } });
  const delta = await deltas.next();
  assert.equal(delta.version, 1);
  assert.deepEqual(delta.state, { color: 'red', limits: { high: 30 } });
  const change = await changes.next();
  assert.deepEqual(change.current.state, first.state);
  assert.equal(change.current.version, 1);

  await refused(shadows[name('update')]({ ...which, state: { desired: { color: 'blue' } }, version: 7 }), 409, 'Version conflict');
  await refused(shadows[name('update')]({ ...which, state: { desired: { colors: [null] } } }), 400, "State contains an invalid node: 'colors'");

  const second = await shadows[name('update')]({ ...which, state: { reported: { color: 'red', limits: { high: 30 } } }, version: 1 });
  assert.equal(second.version, 2);
  assert.deepEqual((await changes.next()).previous.state, first.state);
  const got = await shadows[name('get')](which);
  assert.equal(got.version, 2);
  assert.deepEqual(got.state, { desired: { color: 'red', limits: { high: 30 } }, reported: { color: 'red', limits: { high: 30 } } });
  assert.equal(got.metadata.desired.color.timestamp, first.metadata.desired.color.timestamp);

  // The operator's wish, which the test says meanwhile.
  fs.writeSync(1, 'waiting\n');
  const wish = await deltas.next();
  assert.deepEqual(wish.state, { color: 'white' });
  await shadows[name('update')]({ ...which, state: { reported: wish.state } });

  const deleted = await shadows[name('delete')](which);
  assert.equal(deleted.version, 4);
  await refused(shadows[name('get')](which), 404, `No shadow exists with name: '${classic ? thingName : named}'`);
  deltas.make.close();
  changes.make.close();
  shadows.close();
  await end();
  clearTimeout(late);
  fs.writeSync(1, 'done');
  process.kill(process.pid, 'SIGKILL');
}

main().catch((err) => { console.error(err); process.exit(1); });
