'use strict'
// A real ilp-plugin-mini-accounts as the server, driven by JSON lines (see json_lines.js).

const MiniAccounts = require('ilp-plugin-mini-accounts')
const { serve } = require('./json_lines.js')
const { onLoopback } = require('./loopback_server.js')

let plugin
const handled = []

class MapStore {
  constructor () { this.entries = new Map() }
  async get (key) { return this.entries.get(key) }
  async put (key, value) { this.entries.set(key, value) }
  async del (key) { this.entries.delete(key) }
}

serve({
  // Resolves when the port is bound. Requests of the clients get the one answer, and are kept.
  async listen ({ port, info, answer }) {
    const { options, bound } = onLoopback(port)
    plugin = new MiniAccounts({ ...options, debugHostIldcpInfo: info }, { store: new MapStore() })
    plugin.registerDataHandler(async (data) => {
      handled.push(data.toString('hex'))
      return Buffer.from(answer, 'hex')
    })
    await plugin.connect()
    return { port: await bound }
  },
  async sendData ({ hex }) {
    return { hex: (await plugin.sendData(Buffer.from(hex, 'hex'))).toString('hex') }
  },
  async handled () {
    return { requests: handled }
  }
})
