// Takes aggregated Kinesis records apart, and makes them, with AWS's own module: a JSON document each way.
// {"records": [base64, …]} is answered with {"records": [[{key, hash, data}, …], …]}, and {"users": […]} with {"record": base64}.
'use strict'
const { deaggregateSync, RecordAggregator } = require('aws-kinesis-agg')

const asked = JSON.parse(require('fs').readFileSync(0, 'utf8'))
if (asked.users) {
  const made = new RecordAggregator()
  for (const u of asked.users) {
    made.addUserRecord({ partitionKey: u.key, explicitHashKey: u.hash, data: Buffer.from(u.data, 'base64') })
  }
  console.log(JSON.stringify({ record: made.build().data.toString('base64') }))
} else {
  const records = asked.records.map((data) => {
    let users
    deaggregateSync({ kinesisSchemaVersion: '1.0', partitionKey: 'k', sequenceNumber: '1', data }, true, (err, all) => {
      if (err) throw err
      users = all.map((u) => ({ key: u.partitionKey, hash: u.explicitPartitionKey, data: Buffer.from(u.data, 'base64').toString('base64') }))
    })
    return users
  })
  console.log(JSON.stringify({ records }))
}
