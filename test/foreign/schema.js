// Looks at documents with AsyncAPI's own parser, and at JSON Schemas with ajv: {"asyncapi": document} is answered with what is wrong with it, each
// as {path, message}; {"schema": …, "payloads": […]} with whether each payload is valid.
'use strict'
const asked = JSON.parse(require('fs').readFileSync(0, 'utf8'))

async function diagnostics (document) {
  const { Parser } = require('@asyncapi/parser')
  const found = await new Parser().validate(JSON.stringify(document))
  return found.filter((d) => d.severity <= 1).map((d) => ({ path: d.path.join('/'), message: d.message }))
}

function valid (schema, payloads) {
  const Ajv = require('ajv/dist/2020')
  const ajv = new Ajv({ strict: true, strictTypes: false, allowUnionTypes: true, strictTuples: false, keywords: ['x-unit', 'x-pattern-re2'] })
  require('ajv-formats')(ajv)
  const check = ajv.compile(schema)
  return payloads.map((p) => check(p))
}

(async () => {
  console.log(JSON.stringify(asked.asyncapi ? await diagnostics(asked.asyncapi) : valid(asked.schema, asked.payloads)))
})()
