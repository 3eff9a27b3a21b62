// AWS IoT's device SDK, MQTT 5: a device's certificate by a claim certificate, its key made here (CSR in a file) or there, and
// the device registered with a template. Arguments: host, port, CA, claim certificate, claim key, template, serial number, CSR
// or `-`. It prints the device's name.
const fs = require('fs');
const { mqtt5, iot, iotidentity } = require('aws-iot-device-sdk-v2');

const [host, port, ca, cert, key, template, serial, csr] = process.argv.slice(2);
const late = setTimeout(() => { console.error('too late'); process.exit(1); }, 40000);

async function main() {
  const client = new mqtt5.Mqtt5Client(iot.AwsIotMqtt5ClientConfigBuilder.newDirectMqttBuilderWithMtlsFromPath(host, cert, key)
    .withCertificateAuthorityFromPath(undefined, ca).withPort(Number(port)).withConnectProperties({ clientId: `anything-${serial}`, keepAliveIntervalSeconds: 30 }).build());
  const failed = new Promise((_, fail) => client.on('connectionFailure', (event) => fail(new Error(String(event.error)))));
  const connected = new Promise((done) => client.on('connectionSuccess', done));
  client.start();
  await Promise.race([connected, failed]);
  const identity = iotidentity.IotIdentityClientv2.newFromMqtt5(client, { maxRequestResponseSubscriptions: 5, maxStreamingSubscriptions: 2, operationTimeoutInSeconds: 30 });
  const made = csr === '-' ? await identity.createKeysAndCertificate({}) : await identity.createCertificateFromCsr({ certificateSigningRequest: fs.readFileSync(csr, 'utf8') });
  const registered = await identity.registerThing({ templateName: template, certificateOwnershipToken: made.certificateOwnershipToken, parameters: { SerialNumber: serial } });
  const stopped = new Promise((done) => client.on('stopped', done));
  identity.close();
  client.stop();
  await stopped;
  client.close();
  clearTimeout(late);
  fs.writeSync(1, registered.thingName);
  process.kill(process.pid, 'SIGKILL');
}

main().catch((err) => { console.error(err); process.exit(1); });
