'use strict'
// A real ilp-connector, driven by JSON lines (see json_lines.js).

const { createApp } = require('ilp-connector')
const { setOutputStream } = require('ilp-connector/dist/common/log')
const { serve } = require('./json_lines.js')
const { onLoopback } = require('./loopback_server.js')

setOutputStream(process.stderr) // it logs to stdout, where the replies go

serve({
  // Start a connector with the given settings and, beside the accounts in them, one of ilp-plugin-mini-accounts whose
  // id is `children`, and which has the settings `children`. Resolves when every account is connected.
  async start ({ settings: { accounts, children: changes, ...settings } }) {
    const { options, bound } = onLoopback()
    const plugin = 'ilp-plugin-mini-accounts'
    const children = { relation: 'child', plugin, assetCode: 'XRP', assetScale: 9, options, ...changes }
    const connector = createApp({
      store: 'memory',
      backend: 'one-to-one',
      spread: 0,
      ...settings,
      accounts: { ...accounts, children }
    })
    await connector.listen()
    return { port: await bound }
  }
})
